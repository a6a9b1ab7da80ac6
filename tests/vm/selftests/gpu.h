/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Shorthand for the two devices that the tests talk to. */
#ifndef GPU_H
#define GPU_H

#include "p2pmod.h"
#include "standin.h"
#include "tap.h"

#include <sys/mount.h>

#define GPU_PAGE ((size_t)P2PMOD_GPU_PAGE_SIZE)
#define CPU_PAGE ((size_t)sysconf(_SC_PAGESIZE)) /* 4 KiB; 16 or 64 on some arm64 kernels */

struct gpu {
	int fd;
	uint64_t va;
	size_t length;
	volatile uint8_t *view; /* what the GPU sees */
};

static inline int standin_control(int fd, uint32_t op, uint64_t value)
{
	struct standin_control c = {sizeof(c), op, value};

	return ioctl(fd, STANDIN_CONTROL, &c);
}

/* Device memory, with the GPU's own view of it. flags: STANDIN_CONTIGUOUS; NEIGHBOUR, of va. */
static inline struct gpu gpu_alloc_flags(size_t length, uint32_t flags, uint64_t va)
{
	struct standin_alloc a = {.size = sizeof(a), .flags = flags, .length = length, .va = va};
	struct gpu gpu = {.length = length};

	gpu.fd = open(STANDIN_NODE, O_RDWR | O_CLOEXEC);
	ASSERT(gpu.fd >= 0);
	ASSERT(ioctl(gpu.fd, STANDIN_ALLOC, &a) == 0);
	gpu.va = a.va;
	gpu.view = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, gpu.fd, 0);
	ASSERT(gpu.view != MAP_FAILED);
	return gpu;
}

static inline struct gpu gpu_alloc(size_t length)
{
	return gpu_alloc_flags(length, 0, 0);
}

static inline void gpu_free(struct gpu *gpu)
{
	ASSERT(ioctl(gpu->fd, STANDIN_FREE) == 0);
}

static inline uint64_t gpu_pins(void)
{
	struct standin_query q = {.size = sizeof(q)};
	int fd = open(STANDIN_NODE, O_RDWR);

	ASSERT(fd >= 0 && ioctl(fd, STANDIN_QUERY, &q) == 0);
	close(fd);
	return q.pins;
}

static inline int p2p_open(void)
{
	int fd = open(P2PMOD_NODE, O_RDWR | O_CLOEXEC);

	ASSERT(fd >= 0);
	return fd;
}

static inline int p2p_pin_flags(int fd, uint64_t va, uint64_t length, uint32_t flags,
			 struct p2pmod_pin *pin)
{
	*pin = (struct p2pmod_pin){.size = sizeof(*pin), .flags = flags, .address = va,
				   .length = length};
	return ioctl(fd, P2PMOD_PIN, pin);
}

static inline int p2p_pin(int fd, uint64_t va, uint64_t length, struct p2pmod_pin *pin)
{
	return p2p_pin_flags(fd, va, length, 0, pin);
}

static inline int p2p_unpin(int fd, uint32_t handle)
{
	struct p2pmod_unpin u = {sizeof(u), handle};

	return ioctl(fd, P2PMOD_UNPIN, &u);
}

static inline int p2p_status(int fd, uint32_t handle, struct p2pmod_status *s)
{
	*s = (struct p2pmod_status){.size = sizeof(*s), .handle = handle};
	return ioctl(fd, P2PMOD_STATUS, s);
}

static inline void *p2p_map(int fd, const struct p2pmod_pin *pin, size_t offset, size_t length)
{
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, pin->map_offset + offset);
}

/* Can this machine combine writes? An x86 without PAT ("nopat") cannot, and no state may say so. */
static inline int machine_combines_writes(void)
{
	char words[4096] = "";
	int fd = open("/proc/cmdline", O_RDONLY);

	ASSERT(fd >= 0 && read(fd, words, sizeof(words) - 1) > 0);
	close(fd);
	return !strstr(words, "nopat");
}

/* Lines of the kernel's list of memory types that start at an address, and the type of the first. */
static inline int reservations(uint64_t bus, char *type)
{
	static char text[1 << 20];
	const char *list = "/sys/kernel/debug/x86/pat_memtype_list";
	char want[64], *at = text;
	ssize_t n = 0, got;
	int fd, found = 0;

	if (access(list, R_OK))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	fd = open(list, O_RDONLY);
	if (fd < 0)
		return -1;
	while ((got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += got;
	close(fd);
	text[n] = 0;
	snprintf(want, sizeof(want), "0x%016llx-", (unsigned long long)bus);
	while ((at = strstr(at, want))) {
		if (!found++ && type)
			sscanf(strchr(at, ']') + 1, "%63s", type);
		at++;
	}
	return found;
}

static inline uint64_t first_bus(int fd, uint32_t handle)
{
	uint64_t bus = 0;
	struct p2pmod_pages p = { .size = sizeof(p), .handle = handle, .count = 1,
				  .addresses = (uintptr_t)&bus };

	ASSERT(ioctl(fd, P2PMOD_PAGES, &p) == 0);
	return bus;
}

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* A module parameter, written as text. */
static inline int parameter(const char *name, const char *value)
{
	char path[128];
	int fd, ok;

	snprintf(path, sizeof(path), "/sys/module/p2pmod/parameters/%s", name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -1;
	ok = write(fd, value, strlen(value)) == (ssize_t)strlen(value);
	close(fd);
	return ok ? 0 : -1;
}

#endif /* GPU_H */
