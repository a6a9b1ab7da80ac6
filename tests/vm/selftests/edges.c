// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The edges of the contract: every size of every struct, every bad pointer, lengths beyond reason,
 * bus addresses held against the PCI device itself, the reservation behind write-combining, and
 * unloading. Beside p2pmod.c, which tests what each call is for.
 *
 * P2PMOD_KO names the module's file: the last test unloads the module and loads it again.
 */
#include "tap.h"

#include <setjmp.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>

#include "gpu.h"

#define EXPECT_EQ(want, got)                                                          \
	do {                                                                          \
		long long want_ = (long long)(want), got_ = (long long)(got);         \
		if (want_ != got_) {                                                  \
			tap_failed++;                                                 \
			DIAG("%s:%d: %s is %lld, not %lld", __func__, __LINE__, #got, \
			     got_, want_);                                            \
		}                                                                     \
	} while (0)

static int p2p_pages(int fd, uint32_t handle, uint64_t first, uint64_t *count, uint64_t *addresses)
{
	struct p2pmod_pages p = { .size = sizeof(p), .handle = handle, .first = first,
				  .count = *count, .addresses = (uintptr_t)addresses };
	int r = ioctl(fd, P2PMOD_PAGES, &p);

	*count = p.count;
	return r;
}

/* ---- accesses that may raise SIGBUS ---- */

static __thread sigjmp_buf escape;
static __thread volatile int guarded, fault_code;
static __thread void *volatile fault_address;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (!guarded)
		_exit(128 + signal);
	fault_code = info->si_code;
	fault_address = info->si_addr;
	guarded = 0;
	siglongjmp(escape, signal);
}

static void catch_faults(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

/* The signal that a load (or a store) of one byte raises, or 0. */
static int touch(volatile uint8_t *at, int store)
{
	int signal = sigsetjmp(escape, 0);

	if (!signal) {
		guarded = 1;
		if (store)
			*at = 0x77;
		else
			(void)*at;
		guarded = 0;
	}
	return signal;
}

static void read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	ASSERT(fd >= 0);
	n = read(fd, text, size - 1);
	ASSERT(n >= 0);
	text[n] = 0;
	close(fd);
}

static const struct {
	const char *name;
	unsigned long number;
	uint32_t size, smallest; /* that of ABI 1 */
} commands[] = {
	{ "query", P2PMOD_QUERY, sizeof(struct p2pmod_query), 40 },
	{ "pin", P2PMOD_PIN, sizeof(struct p2pmod_pin), 64 },
	{ "pages", P2PMOD_PAGES, sizeof(struct p2pmod_pages), 32 },
	{ "unpin", P2PMOD_UNPIN, sizeof(struct p2pmod_unpin), 8 },
	{ "status", P2PMOD_STATUS, sizeof(struct p2pmod_status), 64 },
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* A call of each command that succeeds, as bytes; the memory and handles stay until exit. */
static void good_call(unsigned int command, int fd, const struct gpu *gpu, void *bytes)
{
	static uint64_t addresses[1];
	struct p2pmod_pin pin;

	memset(bytes, 0, 2 * CPU_PAGE);
	ASSERT(!p2p_pin_flags(fd, gpu->va, GPU_PAGE, 0, &pin));
	switch (commands[command].number) {
	case P2PMOD_PIN:
		*(struct p2pmod_pin *)bytes =
			(struct p2pmod_pin){ .address = gpu->va, .length = GPU_PAGE };
		break;
	case P2PMOD_PAGES:
		*(struct p2pmod_pages *)bytes = (struct p2pmod_pages){
			.handle = pin.handle, .count = 1, .addresses = (uintptr_t)addresses };
		break;
	case P2PMOD_UNPIN:
		((struct p2pmod_unpin *)bytes)->handle = pin.handle;
		break;
	case P2PMOD_STATUS:
		((struct p2pmod_status *)bytes)->handle = pin.handle;
		break;
	}
	*(uint32_t *)bytes = commands[command].size;
}

TEST(struct_sizes)
{
	struct gpu gpu = gpu_alloc(1 * GPU_PAGE);
	int fd = p2p_open();
	static uint8_t bytes[2 * 65536] __attribute__((aligned(8)));
	unsigned int i;
	uint32_t size;

	for (i = 0; i < COMMANDS; i++) {
		DIAG("%s", commands[i].name);
		for (size = 0; size < commands[i].size; size++) {
			good_call(i, fd, &gpu, bytes);
			*(uint32_t *)bytes = size;
			if (size < commands[i].smallest)
				EXPECT_ERRNO(EINVAL, ioctl(fd, commands[i].number, bytes));
			else
				EXPECT(ioctl(fd, commands[i].number, bytes) == 0);
		}
		good_call(i, fd, &gpu, bytes);
		EXPECT((ioctl(fd, commands[i].number, bytes)) == 0);
		/* longer, the rest zero: a newer program that asks for nothing new */
		good_call(i, fd, &gpu, bytes);
		*(uint32_t *)bytes = commands[i].size + 40;
		EXPECT((ioctl(fd, commands[i].number, bytes)) == 0);
		/* longer, not zero at the very end */
		good_call(i, fd, &gpu, bytes);
		*(uint32_t *)bytes = commands[i].size + 40;
		bytes[commands[i].size + 39] = 1;
		EXPECT_ERRNO(E2BIG, ioctl(fd, commands[i].number, bytes));
		good_call(i, fd, &gpu, bytes);
		*(uint32_t *)bytes = CPU_PAGE + 1;
		EXPECT_ERRNO(E2BIG, ioctl(fd, commands[i].number, bytes));
		*(uint32_t *)bytes = UINT32_MAX;
		EXPECT_ERRNO(E2BIG, ioctl(fd, commands[i].number, bytes));
	}
}

TEST(bad_pointers)
{
	struct gpu gpu = gpu_alloc(1 * GPU_PAGE);
	int fd = p2p_open();
	uint8_t *pages = mmap(NULL, 2 * CPU_PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static uint8_t bytes[2 * 65536] __attribute__((aligned(8)));
	struct p2pmod_status before, after;
	unsigned int i;

	munmap(pages + CPU_PAGE, CPU_PAGE);
	for (i = 0; i < COMMANDS; i++) {
		DIAG("%s", commands[i].name);
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].number, NULL));
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].number, (void *)-8L));
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].number, (void *)0xffffffff81000000UL));
		/* the struct runs into unmapped memory */
		good_call(i, fd, &gpu, bytes);
		memcpy(pages + CPU_PAGE - 4, bytes, 4);
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].number, pages + CPU_PAGE - 4));
		/* the answer cannot be written: nothing may have been left pinned */
		if (commands[i].number == P2PMOD_UNPIN)
			continue;
		memcpy(pages, bytes, commands[i].size);
		mprotect(pages, CPU_PAGE, PROT_READ);
		ASSERT(!p2p_status(fd, 0, &before));
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].number, pages));
		ASSERT(!p2p_status(fd, 0, &after));
		EXPECT_EQ(before.total_pins, after.total_pins);
		EXPECT_EQ(before.total_bytes, after.total_bytes);
		mprotect(pages, CPU_PAGE, PROT_READ | PROT_WRITE);
	}
}

TEST(pin_absurd_lengths)
{
	struct gpu gpu = gpu_alloc(1 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open(), shift;

	for (shift = 30; shift <= 44; shift++) {
		EXPECT(p2p_pin_flags(fd, 0, 1ULL << shift, 0, &pin) == -1);
		EXPECT(errno == EINVAL || errno == ENOMEM || errno == ENOSPC);
		EXPECT(p2p_pin_flags(fd, gpu.va, 1ULL << shift, 0, &pin) == -1);
		EXPECT(errno == EINVAL || errno == ENOMEM || errno == ENOSPC);
	}
}

TEST(every_byte_is_where_it_belongs)
{
	struct gpu gpu = gpu_alloc(9 * GPU_PAGE);
	uint64_t *view = (void *)gpu.view, *map, i;
	struct p2pmod_pin pin;
	int fd = p2p_open();

	ASSERT(!p2p_pin_flags(fd, gpu.va, gpu.length, 0, &pin));
	map = (void *)p2p_map(fd, &pin, 0, pin.map_length);
	ASSERT(map != MAP_FAILED);
	for (i = 0; i < gpu.length / 8; i++)
		map[i] = i * 0x9e3779b97f4a7c15ULL;
	__sync_synchronize();
	for (i = 0; i < gpu.length / 8; i++)
		if (view[i] != i * 0x9e3779b97f4a7c15ULL)
			break;
	EXPECT_EQ(gpu.length / 8, i);
}

/* mmap clears VM_SHARED where the descriptor is not open for writing: still a shared mapping. */
TEST(a_descriptor_for_reading_maps_for_reading)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = open(P2PMOD_NODE, O_RDONLY | O_CLOEXEC);
	volatile uint8_t *map;

	catch_faults();
	ASSERT(fd >= 0);
	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	EXPECT(p2p_map(fd, &pin, 0, CPU_PAGE) == MAP_FAILED && errno == EACCES);
	EXPECT(mmap(NULL, CPU_PAGE, PROT_READ, MAP_PRIVATE, fd, pin.map_offset) == MAP_FAILED &&
	       errno == EINVAL);
	map = mmap(NULL, CPU_PAGE, PROT_READ, MAP_SHARED, fd, pin.map_offset);
	ASSERT(map != MAP_FAILED);
	gpu.view[9] = 0x5c;
	__sync_synchronize();
	EXPECT_EQ(0x5c, map[9]);
	EXPECT_EQ(SIGSEGV, touch(map, 1));
	EXPECT_ERRNO(EACCES, mprotect((void *)map, CPU_PAGE, PROT_READ | PROT_WRITE));
}

TEST(bus_addresses_are_true)
{
	struct gpu gpu = gpu_alloc(8 * GPU_PAGE);
	uint64_t pages[9], count, i, j;
	uint8_t *map, *bar;
	struct p2pmod_pin pin;
	unsigned long long start = 0, end, flags;
	char path[64] = "", line[512], *at;
	int fd = p2p_open(), memory, device;

	ASSERT(!p2p_pin_flags(fd, gpu.va + 5, gpu.length - 5, 0, &pin));
	count = 9;
	ASSERT(!p2p_pages(fd, pin.handle, 0, &count, pages));
	EXPECT_EQ(8, count);
	map = p2p_map(fd, &pin, 0, pin.map_length);
	ASSERT(map != MAP_FAILED);
	for (device = 0; device < 32; device++) { /* the stand-in's PCI device */
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/device", device);
		if (access(path, R_OK))
			continue;
		read_text(path, line, sizeof(line));
		if (!strncmp(line, "0x1110", 6))
			break;
	}
	ASSERT(device < 32);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource", device);
	read_text(path, line, sizeof(line));
	at = strchr(strchr(line, '\n') + 1, '\n') + 1;
	ASSERT(sscanf(at, "%llx %llx %llx", &start, &end, &flags) == 3);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource2_wc", device);
	if (!machine_combines_writes())
		path[strlen(path) - strlen("_wc")] = 0;
	memory = open(path, O_RDWR);
	ASSERT(memory >= 0);
	for (i = 0; i < count; i++) {
		EXPECT_EQ(0, pages[i] % GPU_PAGE);
		ASSERT(pages[i] >= start && pages[i] + GPU_PAGE - 1 <= end);
		for (j = 0; j < i; j++)
			EXPECT(pages[i] != pages[j]);
		map[i * GPU_PAGE + 4097] = 0xa0 + i;
		__sync_synchronize();
		bar = mmap(NULL, GPU_PAGE, PROT_READ, MAP_SHARED, memory, pages[i] - start);
		ASSERT(bar != MAP_FAILED);
		EXPECT_EQ(0xa0 + i, bar[4097]);
		munmap(bar, GPU_PAGE);
	}
}

TEST(pages_wrong_fields)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	uint64_t pages[4] = {}, all[4], count;
	struct p2pmod_pin pin;
	int fd = p2p_open();

	ASSERT(!p2p_pin_flags(fd, gpu.va, gpu.length, 0, &pin));
	count = 4;
	ASSERT(!p2p_pages(fd, pin.handle, 0, &count, all));
	count = 2;
	EXPECT((p2p_pages(fd, pin.handle, 1, &count, pages)) == 0);
	EXPECT_EQ(2, count);
	EXPECT(pages[0] == all[1] && pages[1] == all[2] && !pages[2]);
	count = UINT64_MAX;
	EXPECT((p2p_pages(fd, pin.handle, 3, &count, pages)) == 0);
	EXPECT_EQ(1, count);
	count = 1;
	EXPECT((p2p_pages(fd, pin.handle, 4, &count, pages)) == 0);
	EXPECT_EQ(0, count);
	EXPECT_ERRNO(EINVAL, p2p_pages(fd, pin.handle, 5, &count, pages));
	EXPECT_ERRNO(EINVAL, p2p_pages(fd, pin.handle, UINT64_MAX, &count, pages));
	count = 1;
	EXPECT_ERRNO(EFAULT, p2p_pages(fd, pin.handle, 0, &count, NULL));
	count = 1;
	EXPECT_ERRNO(EFAULT, p2p_pages(fd, pin.handle, 0, &count, (void *)0xffffffff81000000UL));
	ASSERT(!standin_control(gpu.fd, STANDIN_REVOKE, 0));
	count = 1;
	EXPECT_ERRNO(ENODEV, p2p_pages(fd, pin.handle, 0, &count, pages));
}

TEST(protection_of_mappings)
{
	struct gpu gpu = gpu_alloc(1 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	uint8_t *map;

	catch_faults();
	ASSERT(!p2p_pin_flags(fd, gpu.va, 1, 0, &pin));
	map = mmap(NULL, GPU_PAGE, PROT_READ, MAP_SHARED, fd, pin.map_offset);
	ASSERT(map != MAP_FAILED);
	EXPECT_EQ(0, touch(map, 0));
	EXPECT_EQ(SIGSEGV, touch(map, 1));
	EXPECT((mprotect(map, GPU_PAGE, PROT_READ | PROT_WRITE)) == 0);
	EXPECT_EQ(0, touch(map, 1));
	EXPECT_EQ(0x77, gpu.view[0]);
	EXPECT_ERRNO(EACCES, mprotect(map, GPU_PAGE, PROT_READ | PROT_EXEC));
	EXPECT_ERRNO(EINVAL, madvise(map, GPU_PAGE, MADV_DOFORK));
}

/* ---- userfaultfd ---- */

#ifndef UFFD_FEATURE_WP_UNPOPULATED /* 6.4 */
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC /* 6.7: a mapping of any kind may be protected */
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

enum toucher { LOADS, STORES, IS_READ_INTO };

/* In a child: a mapping nobody has touched, @pages of it protected from @first on; the first of these touched. */
static int touch_protected(enum toucher how, size_t first, size_t pages)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register watched = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect protect = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC), fd = p2p_open(), zero = open("/dev/zero", O_RDONLY);
	struct gpu gpu = gpu_alloc(16 * CPU_PAGE);
	struct p2pmod_pin pin;
	volatile uint8_t *map, *at;
	ssize_t n;

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		return DIAG("userfaultfd %d: %s", uffd, strerror(errno)), 2;
	ASSERT(zero >= 0 && !p2p_pin_flags(fd, gpu.va, gpu.length, 0, &pin));
	map = p2p_map(fd, &pin, 0, gpu.length);
	ASSERT(map != MAP_FAILED);
	at = map + first * CPU_PAGE;
	watched.range.start = (uintptr_t)map;
	watched.range.len = gpu.length;
	if (ioctl(uffd, UFFDIO_REGISTER, &watched))
		return DIAG("UFFDIO_REGISTER: %s", strerror(errno)), 2;
	protect.range.start = (uintptr_t)at;
	protect.range.len = pages * CPU_PAGE;
	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &protect))
		return DIAG("UFFDIO_WRITEPROTECT: %s", strerror(errno)), 2;
	memset((void *)gpu.view, 0x33, gpu.length);
	__sync_synchronize();
	switch (how) {
	case LOADS:
		EXPECT_EQ(0x33, *at);
		break;
	case STORES:
		*at = 0x44;
		__sync_synchronize();
		EXPECT_EQ(0x44, gpu.view[first * CPU_PAGE]);
		break;
	case IS_READ_INTO:
		n = read(zero, (void *)at, 2 * CPU_PAGE);
		EXPECT((n == -1 && errno == EFAULT) || (n > 0 && !gpu.view[first * CPU_PAGE]));
		break;
	}
	return tap_failed ? 1 : 0;
}

/*
 * A page that is protected before it is there is no empty entry of the page table: who takes it for one puts nothing
 * in, says that all is well, and is called again, for ever. SIGBUS is an answer, and so is the page.
 */
TEST(what_userfaultfd_protects_before_it_is_touched_ends_in_a_page_or_a_signal)
{
	static const char *const names[] = { "a load", "a store", "read()" };
	static const struct { size_t first, pages; } ranges[] = { { 0, 2 }, { 5, 1 }, { 3, 8 } };

	for (enum toucher how = LOADS; how <= IS_READ_INTO; how++)
		for (unsigned int i = 0; i < sizeof(ranges) / sizeof(*ranges); i++) {
			int status, waited;
			pid_t child = fork();

			if (child == 0)
				_exit(touch_protected(how, ranges[i].first, ranges[i].pages));
			for (waited = 0; waitpid(child, &status, WNOHANG) == 0; waited++) {
				if (waited < 300) {
					usleep(100000);
					continue;
				}
				DIAG("%s of page %zu has not ended", names[how], ranges[i].first);
				kill(child, SIGKILL);
				/* in a system call it may not hear it: so none is tried after this */
				ASSERT(!"it ends");
			}
			if (WIFEXITED(status) && WEXITSTATUS(status) == 2) {
				DIAG("this kernel protects no mapping of devices: not tried");
				return;
			}
			EXPECT((WIFEXITED(status) && !WEXITSTATUS(status)) ||
			       (how != IS_READ_INTO && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS));
		}
}

TEST(write_combining_is_reserved_and_given_back)
{
	const char *list = "/sys/kernel/debug/x86/pat_memtype_list";
	static char text[1 << 20];
	struct gpu gpu = gpu_alloc(1 * GPU_PAGE);
	struct p2pmod_pin first, second;
	uint64_t bus, count = 1;
	int fd = p2p_open(), i;
	char want[64];

	if (access(list, R_OK))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	ASSERT(!p2p_pin_flags(fd, gpu.va, 1, 0, &first));
	EXPECT(!!(first.state & P2PMOD_STATE_WRITE_COMBINED) == machine_combines_writes());
	if (access(list, R_OK)) { /* no PAT, or no x86: nothing is reserved */
#ifdef __x86_64__
		EXPECT(!machine_combines_writes());
#endif
		return;
	}
	ASSERT(!p2p_pages(fd, first.handle, 0, &count, &bus));
	ASSERT(!p2p_pin_flags(fd, gpu.va, 1, 0, &second));
	ASSERT(p2p_map(fd, &first, 0, CPU_PAGE) != MAP_FAILED &&
	       p2p_map(fd, &second, 0, CPU_PAGE) != MAP_FAILED);
	snprintf(want, sizeof(want), "%llx", (unsigned long long)bus);
	for (i = 0; i < 3; i++) {
		int in = open(list, O_RDONLY);
		ssize_t n = 0, got;
		char *at, *end;

		ASSERT(in >= 0);
		while ((got = read(in, text + n, sizeof(text) - 1 - n)) > 0)
			n += got;
		close(in);
		text[n] = 0;
		at = strstr(text, want);
		if (i < 2) {
			ASSERT(at);
			for (end = at; *end && *end != '\n'; end++)
				;
			*end = 0;
			while (at > text && at[-1] != '\n')
				at--;
			EXPECT(strstr(at, "write-combining"));
			p2p_unpin(fd, i ? second.handle : first.handle);
		} else {
			EXPECT(!at);
		}
	}
}

TEST(revoking_one_file_leaves_the_other)
{
	struct gpu a = gpu_alloc(1 * GPU_PAGE), b = gpu_alloc(1 * GPU_PAGE);
	int fd_a = p2p_open(), fd_b = p2p_open();
	struct p2pmod_pin pin_a, pin_b;
	uint8_t *map_a, *map_b;

	catch_faults();
	ASSERT(!p2p_pin_flags(fd_a, a.va, 1, 0, &pin_a) && !p2p_pin_flags(fd_b, b.va, 1, 0, &pin_b));
	EXPECT_EQ(pin_a.map_offset, pin_b.map_offset); /* same offset, different files */
	map_a = p2p_map(fd_a, &pin_a, 0, GPU_PAGE);
	map_b = p2p_map(fd_b, &pin_b, 0, GPU_PAGE);
	ASSERT(map_a != MAP_FAILED && map_b != MAP_FAILED);
	ASSERT(!standin_control(a.fd, STANDIN_REVOKE, 0));
	EXPECT_EQ(SIGBUS, touch(map_a, 1));
	EXPECT_EQ(0, touch(map_b, 1));
}

TEST(status_fields)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_status s;
	struct p2pmod_pin pin;
	int fd = p2p_open();

	ASSERT(!p2p_pin_flags(fd, gpu.va, 1, 0, &pin));
#define WRONG(field)                                                                    \
	s = (struct p2pmod_status){ .size = sizeof(s), .handle = pin.handle };          \
	s.field = 1;                                                                    \
	EXPECT_ERRNO(EINVAL, ioctl(fd, P2PMOD_STATUS, &s))
	WRONG(state);
	WRONG(__reserved);
	WRONG(address);
	WRONG(length);
	WRONG(__reserved_too[0]);
	WRONG(__reserved_too[1]);
	WRONG(total_bytes);
	WRONG(total_pins);
#undef WRONG
	ASSERT(!p2p_pin_flags(fd, gpu.va, gpu.length, 0, &pin));
	ASSERT(!p2p_status(fd, 0, &s));
	EXPECT_EQ(2, s.total_pins);
	EXPECT_EQ(3 * GPU_PAGE, s.total_bytes);
}

TEST(statistics)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	char before[512], after[512];
	long long a, b;

#define COUNTER(text, name) atoll(strstr(text, name) + strlen(name))
	read_text("/proc/driver/p2pmod", before, sizeof(before));
	ASSERT(!p2p_pin_flags(fd, gpu.va, gpu.length, 0, &pin));
	ASSERT(!standin_control(gpu.fd, STANDIN_REVOKE, 0));
	read_text("/proc/driver/p2pmod", after, sizeof(after));
	ASSERT(strstr(before, "revoked") && strstr(after, "revoked"));
	a = COUNTER(before, "revoked");
	b = COUNTER(after, "revoked");
	EXPECT_EQ(a + 1, b);
}

TEST(unload)
{
	const char *path = getenv("P2PMOD_KO");
	struct p2pmod_pin pin;
	struct gpu gpu = gpu_alloc(1 * GPU_PAGE);
	int fd = p2p_open(), image;
	uint8_t *map;

	syscall(SYS_delete_module, "p2pmod_quixote", O_NONBLOCK);
	EXPECT(syscall(SYS_delete_module, "p2pmod", O_NONBLOCK) == -1);
	ASSERT(!p2p_pin_flags(fd, gpu.va, 1, 0, &pin));
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED);
	close(fd); /* the mapping alone holds it */
	EXPECT(syscall(SYS_delete_module, "p2pmod", O_NONBLOCK) == -1);
	munmap(map, GPU_PAGE);
	EXPECT_EQ(0, gpu_pins());
	ASSERT(path); /* set P2PMOD_KO */
	EXPECT((syscall(SYS_delete_module, "p2pmod", O_NONBLOCK)) == 0);
	EXPECT_ERRNO(ENOENT, access(P2PMOD_NODE, F_OK));
	EXPECT_ERRNO(ENOENT, access("/proc/driver/p2pmod", F_OK));
	image = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT(image >= 0);
	EXPECT((syscall(SYS_finit_module, image, "", 0)) == 0);
	close(p2p_open());
}

int main(int count, char **words)
{
	return tap_main(count > 1 ? words[1] : NULL);
}
