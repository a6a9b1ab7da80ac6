/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What every test does to p2pmod and to the stand-in driver. */
#ifndef LAB_H
#define LAB_H

#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "../../../p2pmod/p2pmod.h"
#include "../standin/standin.h"
#include "tap.h"

#define PAGE 4096
#define GPU_PAGE ((uint64_t)P2PMOD_GPU_PAGE_SIZE)

/* Device memory: one allocation of the stand-in. */
struct gpu {
	int fd;
	uint64_t va, length;
};

static inline struct gpu gpu_alloc(uint64_t pages)
{
	struct standin_alloc a = { .size = sizeof(a), .length = pages * GPU_PAGE };
	struct gpu gpu = { .fd = open(STANDIN_NODE, O_RDWR | O_CLOEXEC) };

	NEED(gpu.fd >= 0);
	NEED(!ioctl(gpu.fd, STANDIN_ALLOC, &a));
	gpu.va = a.va;
	gpu.length = a.length;
	return gpu;
}

static inline int gpu_control(const struct gpu *gpu, uint32_t op, uint64_t value)
{
	struct standin_control c = { .size = sizeof(c), .op = op, .value = value };

	return ioctl(gpu->fd, STANDIN_CONTROL, &c);
}

/* The GPU's own view of it. */
static inline uint8_t *gpu_view(const struct gpu *gpu)
{
	void *at = mmap(NULL, gpu->length, PROT_READ | PROT_WRITE, MAP_SHARED, gpu->fd, 0);

	NEED(at != MAP_FAILED);
	return at;
}

static inline uint64_t gpu_pins(const struct gpu *gpu)
{
	struct standin_query q = { .size = sizeof(q) };

	NEED(!ioctl(gpu->fd, STANDIN_QUERY, &q));
	return q.pins;
}

static inline int p2p_open(void)
{
	int fd = open(P2PMOD_NODE, O_RDWR | O_CLOEXEC);

	NEED(fd >= 0);
	return fd;
}

static inline int p2p_pin(int fd, uint64_t va, uint64_t length, uint32_t flags,
			  struct p2pmod_pin *pin)
{
	*pin = (struct p2pmod_pin){ .size = sizeof(*pin), .flags = flags, .address = va,
				    .length = length };
	return ioctl(fd, P2PMOD_PIN, pin);
}

static inline int p2p_unpin(int fd, uint32_t handle)
{
	struct p2pmod_unpin u = { .size = sizeof(u), .handle = handle };

	return ioctl(fd, P2PMOD_UNPIN, &u);
}

static inline int p2p_status(int fd, uint32_t handle, struct p2pmod_status *status)
{
	*status = (struct p2pmod_status){ .size = sizeof(*status), .handle = handle };
	return ioctl(fd, P2PMOD_STATUS, status);
}

static inline int p2p_pages(int fd, uint32_t handle, uint64_t first, uint64_t *count,
			    uint64_t *addresses)
{
	struct p2pmod_pages p = { .size = sizeof(p), .handle = handle, .first = first,
				  .count = *count, .addresses = (uintptr_t)addresses };
	int r = ioctl(fd, P2PMOD_PAGES, &p);

	*count = p.count;
	return r;
}

static inline int p2p_query(int fd, struct p2pmod_query *query)
{
	*query = (struct p2pmod_query){ .size = sizeof(*query) };
	return ioctl(fd, P2PMOD_QUERY, query);
}

static inline uint8_t *p2p_map(int fd, uint64_t offset, uint64_t length)
{
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
}

#endif /* LAB_H */
