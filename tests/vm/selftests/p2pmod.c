// SPDX-License-Identifier: GPL-2.0 OR MIT
/* The contract of p2pmod.h, command by command; and revocation at every moment. */
#include "gpu.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define UNMAPPED 0x123400000000ull /* nobody's device address */

static __thread sigjmp_buf on_bus;
static __thread volatile sig_atomic_t bus_armed;
static __thread volatile uintptr_t bus_address;

static void handle_bus(int signal, siginfo_t *info, void *context)
{
	if (!bus_armed)
		_exit(99);
	bus_address = (uintptr_t)info->si_addr;
	siglongjmp(on_bus, 1);
}

/* Does an access raise SIGBUS? */
static int faults(volatile uint8_t *at, int write)
{
	struct sigaction action = {.sa_sigaction = handle_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};
	int faulted = 1;

	sigaction(SIGBUS, &action, NULL);
	bus_armed = 1;
	if (!sigsetjmp(on_bus, 1)) {
		if (write)
			*at = 1;
		else
			(void)*at;
		faulted = 0;
	}
	bus_armed = 0;
	return faulted;
}

/* ---- data ---- */

TEST(stores_reach_the_gpu_and_its_stores_come_back)
{
	struct gpu gpu = gpu_alloc(8 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	EXPECT(pin.lead == 0 && pin.page_count == 8 && pin.map_length == gpu.length);
	map = p2p_map(fd, &pin, 0, gpu.length);
	ASSERT(map != MAP_FAILED);
	for (size_t i = 0; i < gpu.length; i += 509)
		map[i] = (uint8_t)(i * 7);
	for (size_t i = 0; i < gpu.length; i += 509)
		ASSERT(gpu.view[i] == (uint8_t)(i * 7));
	for (size_t i = 3; i < gpu.length; i += 1021)
		gpu.view[i] = (uint8_t)(i * 5);
	for (size_t i = 3; i < gpu.length; i += 1021)
		ASSERT(map[i] == (uint8_t)(i * 5));
	EXPECT(!!(pin.state & P2PMOD_STATE_WRITE_COMBINED) == machine_combines_writes());
}

TEST(ranges_inside_a_page_get_the_right_lead)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	int fd = p2p_open();
	const struct { uint64_t offset, length, pages; } cases[] = {
		{0, 1, 1}, {1, 1, 1}, {GPU_PAGE - 1, 1, 1}, {GPU_PAGE - 1, 2, 2}, {4097, 100, 1},
		{100, 3 * GPU_PAGE, 4}, {GPU_PAGE, GPU_PAGE, 1}, {2 * GPU_PAGE + 7, 2 * GPU_PAGE - 7, 2},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct p2pmod_pin pin;
		volatile uint8_t *map;

		ASSERT(p2p_pin(fd, gpu.va + cases[i].offset, cases[i].length, &pin) == 0);
		EXPECT(pin.lead == cases[i].offset % GPU_PAGE && pin.page_count == cases[i].pages);
		map = p2p_map(fd, &pin, 0, pin.map_length);
		ASSERT(map != MAP_FAILED);
		map[pin.lead] = 0xa0 + i;
		map[pin.lead + cases[i].length - 1] = 0xa0 + i;
		EXPECT(gpu.view[cases[i].offset] == 0xa0 + i);
		EXPECT(gpu.view[cases[i].offset + cases[i].length - 1] == 0xa0 + i);
		EXPECT(p2p_unpin(fd, pin.handle) == 0);
	}
}

TEST(two_buffers_in_one_gpu_page_do_not_disturb_each_other)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin a, b;
	int fd = p2p_open(), other = p2p_open();
	volatile uint8_t *x, *y;

	ASSERT(p2p_pin(fd, gpu.va + 100, 50, &a) == 0);
	ASSERT(p2p_pin(other, gpu.va + 200, 50, &b) == 0);
	x = p2p_map(fd, &a, 0, GPU_PAGE);
	y = p2p_map(other, &b, 0, GPU_PAGE);
	ASSERT(x != MAP_FAILED && y != MAP_FAILED);
	x[a.lead] = 1;
	y[b.lead] = 2;
	EXPECT(gpu.view[100] == 1 && gpu.view[200] == 2);
	EXPECT(p2p_unpin(fd, a.handle) == 0);
	EXPECT(faults(x, 0));
	y[b.lead + 1] = 3;
	EXPECT(gpu.view[201] == 3);
}

TEST(a_buffer_is_mapped_many_times_whole_and_in_parts)
{
	struct gpu gpu = gpu_alloc(48 * CPU_PAGE > 4 * GPU_PAGE ? 48 * CPU_PAGE : 4 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map[10];

	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	for (int i = 0; i < 10; i++) {
		size_t offset = i * 5 * CPU_PAGE;

		map[i] = p2p_map(fd, &pin, offset, 3 * CPU_PAGE);
		ASSERT(map[i] != MAP_FAILED);
		map[i][CPU_PAGE + 1] = 10 + i;
		EXPECT(gpu.view[offset + CPU_PAGE + 1] == 10 + i);
	}
	munmap((void *)map[4], 3 * CPU_PAGE);
	map[3][0] = 99;
	EXPECT(gpu.view[3 * 5 * CPU_PAGE] == 99);
}

/* ---- what is refused ---- */

TEST(query_tells_the_limits)
{
	struct p2pmod_query q = {.size = sizeof(q)};
	int fd = p2p_open();

	ASSERT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
	EXPECT(q.abi_version == P2PMOD_ABI_VERSION && q.max_pins_per_user > 0);
	EXPECT(q.features & P2PMOD_FEATURE_BUS_ADDRESSES); /* the tests run as root */
	q = (struct p2pmod_query){.size = sizeof(q), .flags = 1};
	EXPECT_ERRNO(EINVAL, ioctl(fd, P2PMOD_QUERY, &q));
}

TEST(structs_may_be_longer_but_not_shorter)
{
	static const struct { unsigned long cmd; uint32_t size; } commands[] = {
		{P2PMOD_QUERY, sizeof(struct p2pmod_query)}, {P2PMOD_PIN, sizeof(struct p2pmod_pin)},
		{P2PMOD_PAGES, sizeof(struct p2pmod_pages)}, {P2PMOD_UNPIN, sizeof(struct p2pmod_unpin)},
		{P2PMOD_STATUS, sizeof(struct p2pmod_status)},
	};
	uint32_t buffer[2048];
	int fd = p2p_open();

	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
		uint32_t n = commands[i].size;

		memset(buffer, 0, sizeof(buffer));
		/* QUERY has grown since ABI 1, which ended with max_bytes_total */
		for (uint32_t size = 0; size < (commands[i].cmd == P2PMOD_QUERY ? 40 : n); size += 4) {
			buffer[0] = size;
			EXPECT_ERRNO(EINVAL, ioctl(fd, commands[i].cmd, buffer));
		}
		buffer[0] = n + 64; /* zero beyond what is known: as if it were not there */
		errno = 0;
		ioctl(fd, commands[i].cmd, buffer);
		EXPECT(errno != E2BIG);
		memset(buffer, 0, sizeof(buffer));
		buffer[0] = n + 64;
		buffer[(n + 60) / 4] = 1;
		EXPECT_ERRNO(E2BIG, ioctl(fd, commands[i].cmd, buffer));
		buffer[0] = 4097;
		EXPECT_ERRNO(E2BIG, ioctl(fd, commands[i].cmd, buffer));
		buffer[0] = 0xffffffff;
		EXPECT_ERRNO(E2BIG, ioctl(fd, commands[i].cmd, buffer));
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].cmd, NULL));
		EXPECT_ERRNO(EFAULT, ioctl(fd, commands[i].cmd, (void *)-4096L));
	}
}

TEST(unknown_commands_are_enotty)
{
	char buffer[256] = {};
	int fd = p2p_open();

	for (int number = 0; number < 256; number++)
		if (number < 0x40 || number > 0x44)
			EXPECT_ERRNO(ENOTTY, ioctl(fd, _IOWR(P2PMOD_MAGIC, number + 0, char[64]), buffer));
	EXPECT_ERRNO(ENOTTY, ioctl(fd, _IOWR('q', 0x41, struct p2pmod_pin), buffer));
	/* direction and size in the number do not matter: the struct tells its own */
	((struct p2pmod_query *)buffer)->size = sizeof(struct p2pmod_query);
	EXPECT(ioctl(fd, _IO(P2PMOD_MAGIC, 0x40), buffer) == 0);
}

TEST(pin_checks_every_field)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin good = {.size = sizeof(good), .address = gpu.va, .length = 100}, p;
	int fd = p2p_open();

#define WRONG(wanted, field, value)                                     \
	do {                                                            \
		p = good;                                               \
		p.field = (value);                                      \
		EXPECT_ERRNO(wanted, ioctl(fd, P2PMOD_PIN, &p));        \
	} while (0)
	for (int bit = 4; bit < 32; bit++)
		WRONG(EINVAL, flags, 1u << bit);
	WRONG(EINVAL, flags, P2PMOD_PIN_UNCACHED | P2PMOD_PIN_CACHED);
	WRONG(EINVAL, flags, P2PMOD_PIN_FORCE_BAR1);
	WRONG(EINVAL, length, 0);
	WRONG(EINVAL, length, UINT64_MAX);
	WRONG(EINVAL, length, UINT64_MAX - gpu.va);
	WRONG(EINVAL, length, 1ull << 46);
	WRONG(EINVAL, address, UINT64_MAX);
	WRONG(EINVAL, address, UINT64_MAX - 99);
	WRONG(EINVAL, address, UNMAPPED);
	WRONG(EINVAL, address, 0);
	WRONG(EINVAL, length, 3 * GPU_PAGE); /* more than there is */
	WRONG(EINVAL, handle, 1);
	WRONG(EINVAL, state, 1);
	WRONG(EINVAL, map_offset, 1);
	WRONG(EINVAL, map_length, 1);
	WRONG(EINVAL, lead, 1);
	WRONG(EINVAL, page_count, 1);
	WRONG(EOPNOTSUPP, flags, P2PMOD_PIN_CACHED);
#undef WRONG
	p = good;
	EXPECT(ioctl(fd, P2PMOD_PIN, &p) == 0);
	EXPECT(gpu_pins() == 1);
}

TEST(memory_of_another_process_cannot_be_pinned)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	int status;

	if (fork() == 0) {
		struct p2pmod_pin pin;

		EXPECT_ERRNO(EINVAL, p2p_pin(p2p_open(), gpu.va, GPU_PAGE, &pin));
		_exit(tap_failed);
	}
	wait(&status);
	EXPECT(status == 0);
}

TEST(handles_belong_to_their_file)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	struct p2pmod_status s;
	uint64_t bus;
	int fd = p2p_open(), other = p2p_open();
	struct p2pmod_pages pages = {sizeof(pages), 0, 0, 1, (uintptr_t)&bus};

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	for (uint32_t handle = 0; handle < 70000; handle += handle < 20 ? 1 : 4999) {
		if (handle == pin.handle)
			continue;
		EXPECT_ERRNO(ENOENT, p2p_unpin(fd, handle));
	}
	EXPECT_ERRNO(ENOENT, p2p_unpin(fd, UINT32_MAX));
	EXPECT_ERRNO(ENOENT, p2p_unpin(other, pin.handle));
	EXPECT_ERRNO(ENOENT, p2p_status(other, pin.handle, &s));
	pages.handle = pin.handle;
	EXPECT_ERRNO(ENOENT, ioctl(other, P2PMOD_PAGES, &pages));
	EXPECT(p2p_map(other, &pin, 0, CPU_PAGE) == MAP_FAILED && errno == ENOENT);
	EXPECT(p2p_unpin(fd, pin.handle) == 0);
	EXPECT_ERRNO(ENOENT, p2p_unpin(fd, pin.handle));
	EXPECT(p2p_map(fd, &pin, 0, CPU_PAGE) == MAP_FAILED && errno == ENOENT);
}

TEST(mmap_checks_everything)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	int rw = PROT_READ | PROT_WRITE;

#define REFUSED(wanted, length, prot, flags, offset)                                            \
	do {                                                                                    \
		errno = 0;                                                                      \
		EXPECT(mmap(NULL, length, prot, flags, fd, offset) == MAP_FAILED &&             \
		       errno == (wanted));                                                      \
	} while (0)
	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	REFUSED(EINVAL, CPU_PAGE, rw, MAP_PRIVATE, pin.map_offset);
	REFUSED(EINVAL, CPU_PAGE, PROT_READ, MAP_PRIVATE, pin.map_offset);
	REFUSED(EACCES, CPU_PAGE, rw | PROT_EXEC, MAP_SHARED, pin.map_offset);
	REFUSED(EINVAL, 3 * GPU_PAGE, rw, MAP_SHARED, pin.map_offset);
	REFUSED(EINVAL, 2 * CPU_PAGE, rw, MAP_SHARED, pin.map_offset + 2 * GPU_PAGE - CPU_PAGE);
	REFUSED(EINVAL, CPU_PAGE, rw, MAP_SHARED, pin.map_offset + 2 * GPU_PAGE);
	REFUSED(EINVAL, CPU_PAGE, rw, MAP_SHARED, pin.map_offset + (1ull << 40));
	REFUSED(ENOENT, CPU_PAGE, rw, MAP_SHARED, 0);
	REFUSED(ENOENT, CPU_PAGE, rw, MAP_SHARED, pin.map_offset + (1ull << 44));
#undef REFUSED
	char *map = p2p_map(fd, &pin, 0, 2 * CPU_PAGE);
	ASSERT(map != MAP_FAILED);
	EXPECT_ERRNO(EACCES, mprotect(map, CPU_PAGE, rw | PROT_EXEC));
	EXPECT(mremap(map, CPU_PAGE, 4 * CPU_PAGE, MREMAP_MAYMOVE) == MAP_FAILED);
	EXPECT_ERRNO(EINVAL, madvise(map, CPU_PAGE, MADV_DOFORK));
	map[5] = 1;
	EXPECT(mprotect(map, CPU_PAGE, PROT_READ) == 0);
	EXPECT(map[5] == 1);
	EXPECT(mprotect(map, CPU_PAGE, rw) == 0);
	map[5] = 2;
	EXPECT(gpu.view[5] == 2);
}

/* ---- bus addresses ---- */

TEST(bus_addresses_are_told_page_by_page)
{
	struct gpu gpu = gpu_alloc(16 * GPU_PAGE);
	struct p2pmod_pin pin;
	uint64_t bus[20];
	struct p2pmod_pages p;
	int fd = p2p_open(), neighbours = 0;

	ASSERT(p2p_pin(fd, gpu.va + 5, gpu.length - 5, &pin) == 0);
#define PAGES(h, f, c, a) (p = (struct p2pmod_pages){sizeof(p), h, f, c, (uintptr_t)(a)}, \
			   ioctl(fd, P2PMOD_PAGES, &p))
	memset(bus, 0xff, sizeof(bus));
	ASSERT(PAGES(pin.handle, 0, 20, bus) == 0);
	EXPECT(p.count == 16 && bus[16] == UINT64_MAX);
	for (int i = 0; i < 16; i++) {
		EXPECT(bus[i] % GPU_PAGE == 0 && bus[i] != 0);
		neighbours += i && bus[i] == bus[i - 1] + GPU_PAGE;
	}
	EXPECT(neighbours < 4); /* the stand-in scrambles them: none is assumed to follow another */
	EXPECT(PAGES(pin.handle, 15, 5, bus + 18) == 0 && p.count == 1 && bus[18] == bus[15]);
	EXPECT(PAGES(pin.handle, 16, 5, bus) == 0 && p.count == 0);
	EXPECT(PAGES(pin.handle, 3, 0, NULL) == 0 && p.count == 0);
	EXPECT_ERRNO(EINVAL, PAGES(pin.handle, 17, 1, bus));
	EXPECT_ERRNO(EINVAL, PAGES(pin.handle, UINT64_MAX, 2, bus));
	EXPECT(PAGES(pin.handle, 0, UINT64_MAX, bus) == 0 && p.count == 16);
	EXPECT_ERRNO(EFAULT, PAGES(pin.handle, 0, 16, NULL));
	EXPECT_ERRNO(EFAULT, PAGES(pin.handle, 0, 16, -4096L));
	EXPECT_ERRNO(ENOENT, PAGES(pin.handle + 1, 0, 1, bus));
}

TEST(bus_addresses_need_the_privilege_or_the_parameter)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_query q = {.size = sizeof(q)};
	struct p2pmod_pin pin;
	uint64_t bus;
	struct p2pmod_pages p = {sizeof(p), 0, 0, 1, (uintptr_t)&bus};
	int fd = p2p_open(), status;
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	p.handle = pin.handle;
	ASSERT(parameter("show_bus_addresses", "N") == 0);
	for (int shown = 0; shown < 2; shown++) {
		if (fork() == 0) {
			ASSERT(setgid(65534) == 0 && setuid(65534) == 0);
			if (shown)
				EXPECT(ioctl(fd, P2PMOD_PAGES, &p) == 0);
			else
				EXPECT_ERRNO(EPERM, ioctl(fd, P2PMOD_PAGES, &p));
			EXPECT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
			EXPECT(!(q.features & P2PMOD_FEATURE_BUS_ADDRESSES) == !shown);
			map = p2p_map(fd, &pin, 0, CPU_PAGE); /* mapping needs no privilege */
			ASSERT(map != MAP_FAILED);
			map[9] = 9;
			_exit(tap_failed);
		}
		wait(&status);
		EXPECT(status == 0 && gpu.view[9] == 9);
		ASSERT(parameter("show_bus_addresses", "Y") == 0);
	}
	ASSERT(parameter("show_bus_addresses", "N") == 0);
}

/* ---- limits ---- */

TEST(limits_are_kept_per_user_and_in_total)
{
	struct gpu gpu = gpu_alloc(8 * GPU_PAGE);
	struct p2pmod_pin pin, more;
	struct p2pmod_status s;
	int fd = p2p_open(), other = p2p_open();

	ASSERT(parameter("max_pins_per_user", "2") == 0);
	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0 && p2p_pin(fd, gpu.va, 1, &more) == 0);
	EXPECT_ERRNO(ENOSPC, p2p_pin(fd, gpu.va, 1, &more));
	EXPECT_ERRNO(ENOSPC, p2p_pin(other, gpu.va, 1, &more));
	EXPECT(p2p_unpin(fd, pin.handle) == 0);
	EXPECT(p2p_pin(other, gpu.va, 1, &pin) == 0);
	ASSERT(parameter("max_pins_per_user", "65536") == 0);

	ASSERT(parameter("max_bytes_per_user", "262144") == 0); /* 4 GPU pages; 2 are pinned */
	EXPECT(p2p_pin(fd, gpu.va, 2 * GPU_PAGE, &pin) == 0);
	EXPECT_ERRNO(ENOSPC, p2p_pin(fd, gpu.va, 1, &more));
	EXPECT_ERRNO(ENOSPC, p2p_pin(other, gpu.va, 1, &more));
	EXPECT(p2p_status(fd, 0, &s) == 0 && s.total_bytes == 4 * GPU_PAGE && s.total_pins == 3);
	ASSERT(parameter("max_bytes_per_user", "18446744073709551615") == 0);

	ASSERT(parameter("max_bytes_total", "327680") == 0); /* 5 */
	EXPECT(p2p_pin(other, gpu.va, 1, &more) == 0);
	EXPECT_ERRNO(ENOSPC, p2p_pin(other, gpu.va, 1, &more));
	EXPECT_ERRNO(ENOSPC, p2p_pin(fd, gpu.va, 1, &more));
	ASSERT(parameter("max_bytes_total", "18446744073709551615") == 0);
	EXPECT(p2p_pin(fd, gpu.va, 1, &more) == 0);
}

/* ---- the driver says no ---- */

TEST(the_drivers_errors_are_passed_on_and_leave_nothing)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	const int errors[] = {ENOMEM, EIO, EBUSY, ENODEV, EINVAL};
	struct standin_query driver = {.size = sizeof(driver)};
	struct p2pmod_pin pin;
	struct p2pmod_status s;
	int fd = p2p_open();

	ASSERT(ioctl(gpu.fd, STANDIN_QUERY, &driver) == 0);
	for (size_t i = 0; i < sizeof(errors) / sizeof(*errors); i++) {
		if (standin_control(gpu.fd, STANDIN_FAIL_NEXT, errors[i])) { /* 470 answers EIO for it */
			EXPECT(errno == EOPNOTSUPP && errors[i] == ENODEV);
			EXPECT(driver.flags & STANDIN_DRIVER_SOURCE);
			continue;
		}
		for (int persistent = 0; persistent < 2; persistent++) {
			struct p2pmod_query q = {.size = sizeof(q)};

			ASSERT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
			if (persistent && !(q.features & P2PMOD_FEATURE_PERSISTENT))
				continue;
			ASSERT(standin_control(gpu.fd, STANDIN_FAIL_NEXT, errors[i]) == 0);
			EXPECT_ERRNO(errors[i], p2p_pin_flags(fd, gpu.va, 1, persistent, &pin));
		}
	}
	ASSERT(standin_control(gpu.fd, STANDIN_FAIL_NEXT, 524) == 0);
	EXPECT_ERRNO(EOPNOTSUPP, p2p_pin(fd, gpu.va, 1, &pin));
	EXPECT(p2p_status(fd, 0, &s) == 0 && s.total_pins == 0 && s.total_bytes == 0);
	EXPECT(gpu_pins() == 0);
	EXPECT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
}

/* The driver's own source writes one version, its own; of any other layout only the word can be tried. */
TEST(page_tables_of_versions_1_and_2_are_read_others_refused)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	struct standin_query q = {.size = sizeof(q)};
	static const uint32_t versions[] = {0x00010002, 0x00020000};

	ASSERT(ioctl(gpu.fd, STANDIN_QUERY, &q) == 0);
	for (int i = 0; i < 2; i++) {
		if (standin_control(gpu.fd, STANDIN_VERSION, versions[i])) {
			EXPECT(errno == EOPNOTSUPP && q.flags & STANDIN_DRIVER_SOURCE);
			continue;
		}
		for (int cacheable = 0; cacheable < 2; cacheable++) {
			ASSERT(standin_control(gpu.fd, STANDIN_CACHEABLE, cacheable) == 0);
			EXPECT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
			EXPECT(!(pin.state & P2PMOD_STATE_CACHEABLE) == !(cacheable && i));
			EXPECT(p2p_unpin(fd, pin.handle) == 0);
		}
		if (!i) {
			EXPECT_ERRNO(EOPNOTSUPP, p2p_pin_flags(fd, gpu.va, 1, P2PMOD_PIN_CACHED, &pin));
			continue;
		}
		EXPECT(p2p_pin_flags(fd, gpu.va, 1, P2PMOD_PIN_CACHED, &pin) == 0);
		volatile uint8_t *map = p2p_map(fd, &pin, 0, CPU_PAGE);
		ASSERT(map != MAP_FAILED);
		map[1] = 5;
		EXPECT(gpu.view[1] == 5);
		EXPECT(p2p_unpin(fd, pin.handle) == 0);
	}
	ASSERT(standin_control(gpu.fd, STANDIN_VERSION, 0x00030000) == 0);
	EXPECT_ERRNO(EIO, p2p_pin(fd, gpu.va, 1, &pin));
	EXPECT(gpu_pins() == 0);
	standin_control(gpu.fd, STANDIN_CACHEABLE, 0);
	ASSERT(standin_control(gpu.fd, STANDIN_VERSION, 0) == 0);
}

TEST(an_uncached_pin_maps_uncached)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map;

	ASSERT(p2p_pin_flags(fd, gpu.va, gpu.length, P2PMOD_PIN_UNCACHED, &pin) == 0);
	EXPECT(!(pin.state & P2PMOD_STATE_WRITE_COMBINED));
	map = p2p_map(fd, &pin, 0, gpu.length);
	ASSERT(map != MAP_FAILED);
	map[GPU_PAGE + 1] = 3;
	EXPECT(gpu.view[GPU_PAGE + 1] == 3);
}

/* ---- lifetimes ---- */

TEST(unpin_while_mapped_empties_the_mapping)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	map = p2p_map(fd, &pin, 0, gpu.length);
	ASSERT(map != MAP_FAILED);
	map[0] = 1;
	EXPECT(p2p_unpin(fd, pin.handle) == 0);
	EXPECT(gpu_pins() == 0);
	EXPECT(faults(map, 1) && bus_address == (uintptr_t)map);
	EXPECT(faults(map + GPU_PAGE + 77, 0) && bus_address == (uintptr_t)map + GPU_PAGE + 77);
	EXPECT(gpu.view[0] == 1);
}

TEST(a_mapping_outlives_the_descriptor)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED);
	close(fd);
	map[3] = 4;
	EXPECT(gpu.view[3] == 4 && gpu_pins() == 1);
	munmap((void *)map, GPU_PAGE);
	EXPECT(gpu_pins() == 0);
}

TEST(closing_unpins_everything)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();

	for (int i = 0; i < 50; i++)
		ASSERT(p2p_pin(fd, gpu.va + i, 1 + i * 1000, &pin) == 0);
	EXPECT(gpu_pins() == 50);
	close(fd);
	EXPECT(gpu_pins() == 0);
}

TEST(a_hole_and_a_move_keep_working_and_are_revoked)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map, *moved;

	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	map = p2p_map(fd, &pin, 0, gpu.length);
	ASSERT(map != MAP_FAILED);
	map[0] = map[3 * GPU_PAGE] = 1;
	ASSERT(munmap((void *)(map + GPU_PAGE), GPU_PAGE) == 0);
	map[5] = 5;
	map[3 * GPU_PAGE + 5] = 6;
	EXPECT(gpu.view[5] == 5 && gpu.view[3 * GPU_PAGE + 5] == 6);
	moved = mremap((void *)(map + 2 * GPU_PAGE), GPU_PAGE, GPU_PAGE,
		       MREMAP_MAYMOVE | MREMAP_FIXED, (void *)0x10000000000);
	ASSERT(moved != MAP_FAILED);
	moved[9] = 9;
	EXPECT(gpu.view[2 * GPU_PAGE + 9] == 9);
	gpu_free(&gpu);
	EXPECT(faults(map, 0) && faults(map + 3 * GPU_PAGE, 1) && faults(moved + 9, 0));
}

TEST(a_child_inherits_no_mapping)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open(), status;
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED);
	map[0] = 1;
	if (fork() == 0) {
		map[0] = 2;
		_exit(0);
	}
	wait(&status);
	EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV && gpu.view[0] == 1);
}

static void send_fd(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte = 0;
	struct iovec io = {&byte, 1};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control,
			   .msg_controllen = sizeof(control)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	ASSERT(sendmsg(socket, &m, 0) == 1);
}

static int receive_fd(int socket)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec io = {&byte, 1};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control,
			   .msg_controllen = sizeof(control)};
	int fd;

	ASSERT(recvmsg(socket, &m, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return fd;
}

TEST(a_descriptor_passed_on_maps_in_the_other_process)
{
	struct p2pmod_pin pin;
	int pair[2], status;

	ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid_t child = fork();
	if (child == 0) { /* owns the memory */
		struct gpu gpu = gpu_alloc(GPU_PAGE);
		int fd = p2p_open();
		char byte;

		ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
		ASSERT(write(pair[1], &pin, sizeof(pin)) == sizeof(pin));
		send_fd(pair[1], fd);
		close(fd);
		ASSERT(read(pair[1], &byte, 1) == 1);
		EXPECT(gpu.view[7] == 77);
		_exit(tap_failed);
	}
	ASSERT(read(pair[0], &pin, sizeof(pin)) == sizeof(pin));
	int fd = receive_fd(pair[0]);
	volatile uint8_t *map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED);
	map[7] = 77;
	ASSERT(write(pair[0], "x", 1) == 1);
	ASSERT(waitpid(child, &status, 0) == child);
	EXPECT(status == 0);
	/* the owner has died: its memory is gone, and so is the mapping */
	EXPECT(faults(map, 0));
	EXPECT(p2p_map(fd, &pin, 0, GPU_PAGE) == MAP_FAILED && errno == ENODEV);
	EXPECT(p2p_unpin(fd, pin.handle) == 0);
}

TEST(persistent_pins_keep_the_memory)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_query q = {.size = sizeof(q)};
	struct p2pmod_pin pin;
	struct p2pmod_status s;
	int fd = p2p_open();
	volatile uint8_t *map;

	ASSERT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
	if (!(q.features & P2PMOD_FEATURE_PERSISTENT)) {
		EXPECT_ERRNO(EOPNOTSUPP, p2p_pin_flags(fd, gpu.va, 1, P2PMOD_PIN_PERSISTENT, &pin));
		return;
	}
	ASSERT(p2p_pin_flags(fd, gpu.va, gpu.length, P2PMOD_PIN_PERSISTENT, &pin) == 0);
	EXPECT(pin.state & P2PMOD_STATE_PERSISTENT);
	map = p2p_map(fd, &pin, 0, gpu.length);
	ASSERT(map != MAP_FAILED);
	map[1] = 11;
	EXPECT(gpu.view[1] == 11);
	gpu_free(&gpu);
	munmap((void *)gpu.view, gpu.length);
	close(gpu.fd);
	EXPECT(!faults(map + 1, 0) && map[1] == 11);
	EXPECT(p2p_status(fd, pin.handle, &s) == 0 && !(s.state & P2PMOD_STATE_REVOKED));
	EXPECT(p2p_unpin(fd, pin.handle) == 0 && gpu_pins() == 0);
}

/* ---- revocation ---- */

TEST(revoke_while_idle)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	struct p2pmod_status s;
	uint64_t bus;
	int fd = p2p_open();

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	struct p2pmod_pages p = {sizeof(p), pin.handle, 0, 1, (uintptr_t)&bus};
	gpu_free(&gpu);
	EXPECT(p2p_status(fd, pin.handle, &s) == 0 && s.state & P2PMOD_STATE_REVOKED);
	EXPECT(p2p_map(fd, &pin, 0, CPU_PAGE) == MAP_FAILED && errno == ENODEV);
	EXPECT_ERRNO(ENODEV, ioctl(fd, P2PMOD_PAGES, &p));
	EXPECT(p2p_unpin(fd, pin.handle) == 0);
	EXPECT_ERRNO(ENOENT, p2p_unpin(fd, pin.handle));
	EXPECT_ERRNO(EINVAL, p2p_pin(fd, gpu.va, 1, &pin));
}

TEST(revoke_while_mapped)
{
	struct gpu gpu = gpu_alloc(8 * GPU_PAGE), other = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin, kept;
	int fd = p2p_open(), file = p2p_open(), pipes[2];
	volatile uint8_t *map, *stays;

	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	ASSERT(p2p_pin(file, other.va, 1, &kept) == 0);
	map = p2p_map(fd, &pin, 0, gpu.length);
	stays = p2p_map(file, &kept, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED && stays != MAP_FAILED);
	memset((void *)map, 1, gpu.length);
	gpu_free(&gpu);
	for (size_t i = 0; i < gpu.length; i += GPU_PAGE / 2 + 12)
		EXPECT(faults(map + i, i & 1));
	/* a system call that touches it fails cleanly */
	ASSERT(pipe(pipes) == 0);
	EXPECT_ERRNO(EFAULT, write(pipes[1], (void *)map, 10));
	stays[0] = 3;
	EXPECT(other.view[0] == 3);
}

TEST(default_action_on_revoked_memory_is_sigbus)
{
	int status;

	if (fork() == 0) {
		struct gpu gpu = gpu_alloc(GPU_PAGE);
		struct p2pmod_pin pin;
		int fd = p2p_open();

		ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
		volatile uint8_t *map = p2p_map(fd, &pin, 0, GPU_PAGE);
		gpu_free(&gpu);
		map[0] = 1;
		_exit(0);
	}
	wait(&status);
	EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

struct race {
	int fd;
	struct p2pmod_pin pin;
	volatile uint8_t *map;
	size_t length;
	volatile int stop;
	volatile int after; /* accesses that worked although the free had returned */
	volatile int freed;
};

static void *race_fault(void *argument)
{
	struct race *r = argument;
	unsigned seed = (unsigned)(uintptr_t)&seed;

	while (!r->stop) {
		volatile uint8_t *at = r->map + rand_r(&seed) % r->length;
		int freed = r->freed;

		if (!faults(at, seed & 1) && freed)
			__sync_fetch_and_add(&r->after, 1);
	}
	return NULL;
}

static void *race_map(void *argument)
{
	struct race *r = argument;

	while (!r->stop) {
		int freed = r->freed;
		volatile uint8_t *map = p2p_map(r->fd, &r->pin, 0, r->length);

		if (map == MAP_FAILED)
			continue;
		if (freed || (!faults(map + 5, 1) && freed))
			__sync_fetch_and_add(&r->after, 1);
		munmap((void *)(map + GPU_PAGE), GPU_PAGE);
		munmap((void *)map, r->length);
	}
	return NULL;
}

TEST(revoke_while_faulting_in_from_several_threads)
{
	for (int round = 0; round < 15; round++) {
		struct gpu gpu = gpu_alloc(16 * GPU_PAGE);
		struct race r = {.fd = p2p_open(), .length = gpu.length};
		pthread_t thread[4];

		ASSERT(p2p_pin(r.fd, gpu.va, gpu.length, &r.pin) == 0);
		r.map = p2p_map(r.fd, &r.pin, 0, r.length);
		ASSERT(r.map != MAP_FAILED);
		for (int i = 0; i < 4; i++)
			pthread_create(&thread[i], NULL, i == 3 ? race_map : race_fault, &r);
		usleep(2000 + round * 500);
		gpu_free(&gpu);
		r.freed = 1;
		usleep(5000);
		r.stop = 1;
		for (int i = 0; i < 4; i++)
			pthread_join(thread[i], NULL);
		EXPECT(r.after == 0);
		munmap((void *)r.map, r.length);
		close(r.fd);
		munmap((void *)gpu.view, gpu.length);
		close(gpu.fd);
	}
	EXPECT(gpu_pins() == 0);
}

TEST(revoke_while_unpinning_and_closing)
{
	for (int round = 0; round < 40; round++) {
		struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
		struct p2pmod_pin pin[4];
		int fd = p2p_open();

		for (int i = 0; i < 4; i++)
			ASSERT(p2p_pin(fd, gpu.va + i * GPU_PAGE, GPU_PAGE, &pin[i]) == 0);
		standin_control(gpu.fd, STANDIN_DELAY_CALLBACK, round % 3);
		ASSERT(standin_control(gpu.fd, STANDIN_REVOKE, 1 + round % 4) == 0);
		usleep(round * 137 % 4000);
		for (int i = 0; i < 4 && round % 2; i++)
			EXPECT(p2p_unpin(fd, pin[i].handle) == 0);
		close(fd);
		munmap((void *)gpu.view, gpu.length);
		close(gpu.fd);
	}
	usleep(50000);
	EXPECT(gpu_pins() == 0);
}

TEST(revoke_before_pinning_has_returned)
{
	for (int round = 0; round < 5; round++) {
		struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
		struct p2pmod_pin pin;
		struct p2pmod_status s;
		int fd = p2p_open();

		ASSERT(standin_control(gpu.fd, STANDIN_EARLY_CALLBACK, 1) == 0);
		ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
		usleep(20000);
		EXPECT(p2p_status(fd, pin.handle, &s) == 0 && s.state & P2PMOD_STATE_REVOKED);
		EXPECT(p2p_map(fd, &pin, 0, CPU_PAGE) == MAP_FAILED && errno == ENODEV);
		EXPECT(p2p_unpin(fd, pin.handle) == 0);
		close(fd);
		munmap((void *)gpu.view, gpu.length);
		close(gpu.fd);
	}
	EXPECT(gpu_pins() == 0);
}

TEST(revoke_while_being_killed)
{
	for (int round = 0; round < 10; round++) {
		pid_t child = fork();

		if (child == 0) {
			struct gpu gpu = gpu_alloc(16 * GPU_PAGE);
			struct p2pmod_pin pin;
			int fd = p2p_open();

			ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
			volatile uint8_t *map = p2p_map(fd, &pin, 0, gpu.length);
			standin_control(gpu.fd, STANDIN_REVOKE, 5 + round);
			for (unsigned i = 0;; i++)
				faults(map + i * 4093 % gpu.length, 1);
		}
		usleep(4000 + round * 1500);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	usleep(100000);
	EXPECT(gpu_pins() == 0);
}

/* ---- 32-bit callers ---- */

#if defined(__x86_64__)
/* int 0x80 takes the kernel's 32-bit entry, whoever calls; arguments must lie below 4 GiB. */
static long ioctl32(int fd, unsigned long cmd, void *argument)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result)
			 : "a"(54L), "b"((long)fd), "c"(cmd), "d"(argument)
			 : "memory", "r8", "r9", "r10", "r11");
	if ((int)result < 0 && (int)result > -4096) {
		errno = -(int)result;
		return -1;
	}
	return result;
}

static sigjmp_buf no_entry;

static void handle_segv(int signal)
{
	siglongjmp(no_entry, 1);
}

TEST(callers_of_32_bits_are_refused_before_they_pin)
{
	struct p2pmod_query *q = mmap(NULL, CPU_PAGE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct p2pmod_pin *pin = (void *)(q + 1);
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	int fd = p2p_open();

	ASSERT(q != MAP_FAILED);
	signal(SIGSEGV, handle_segv);
	if (sigsetjmp(no_entry, 1)) {
		DIAG("this kernel has no 32-bit entry");
		return;
	}
	q->size = sizeof(*q);
	EXPECT_ERRNO(EOPNOTSUPP, ioctl32(fd, P2PMOD_QUERY, q));
	*pin = (struct p2pmod_pin){.size = sizeof(*pin), .address = gpu.va + 3, .length = 7};
	EXPECT_ERRNO(EOPNOTSUPP, ioctl32(fd, P2PMOD_PIN, pin));
	EXPECT(pin->handle == 0 && gpu_pins() == 0);
}
#endif

/* ---- the in-kernel interface ---- */

static int quixote(int fd, uint32_t handle)
{
	char text[32];
	int proc = open("/proc/p2pmod_quixote", O_WRONLY), result, error;

	ASSERT(proc >= 0);
	snprintf(text, sizeof(text), "%d %u", fd, handle);
	result = write(proc, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
	error = errno;
	close(proc);
	errno = error;
	return result;
}

TEST(another_module_writes_the_buffer)
{
	struct gpu gpu = gpu_alloc(3 * GPU_PAGE);
	struct p2pmod_pin pin, small;
	int fd = p2p_open(), other = open("/dev/null", O_RDWR);
	const char first[] = "In a village of La Mancha", last[] = "bill-hook.";

	/* starts and ends inside a page, so the text crosses from one scattered page to another */
	ASSERT(p2p_pin(fd, gpu.va + GPU_PAGE - 100, GPU_PAGE + 200, &pin) == 0);
	EXPECT(quixote(fd, pin.handle) == 0);
	EXPECT(!memcmp((char *)gpu.view + GPU_PAGE - 100, first, sizeof(first) - 1));
	EXPECT(!memcmp((char *)gpu.view + 2 * GPU_PAGE + 100 - (sizeof(last) - 1), last,
		       sizeof(last) - 1));
	ASSERT(p2p_pin(fd, gpu.va, 100, &small) == 0);
	EXPECT_ERRNO(ENOSPC, quixote(fd, small.handle));
	EXPECT_ERRNO(ENOENT, quixote(fd, 54321));
	EXPECT_ERRNO(EBADF, quixote(other, pin.handle));
	EXPECT_ERRNO(EBADF, quixote(999, pin.handle));
	gpu_free(&gpu);
	EXPECT_ERRNO(ENODEV, quixote(fd, pin.handle));
}

/* ---- cost ---- */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

#define MEDIAN(times, n) (qsort(times, n, sizeof(*(times)), compare), (times)[(n) / 2])

TEST(ten_thousand_pins_do_not_slow_down_the_lookup)
{
	enum { PINS = 10000, LOOKS = 2001 };
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	static uint64_t times[LOOKS];
	struct p2pmod_pin pin;
	struct p2pmod_status s;
	uint64_t few, many;
	uint32_t first;
	int fd = p2p_open();

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	first = pin.handle;
	for (int i = 0; i < LOOKS; i++) {
		uint64_t start = now_ns();

		ASSERT(p2p_status(fd, first, &s) == 0);
		times[i] = now_ns() - start;
	}
	few = MEDIAN(times, LOOKS);
	for (int i = 1; i < PINS; i++)
		ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	for (int i = 0; i < LOOKS; i++) {
		uint64_t start = now_ns();

		ASSERT(p2p_status(fd, first + i * 4 % PINS, &s) == 0);
		times[i] = now_ns() - start;
	}
	many = MEDIAN(times, LOOKS);
	DIAG("lookup: %llu ns beside 1 pin, %llu ns beside %d", (unsigned long long)few,
	     (unsigned long long)many, PINS);
	EXPECT(many < 3 * few);
	close(fd);
	EXPECT(gpu_pins() == 0);
}

TEST(costs)
{
	enum { ROUNDS = 301 };
	static uint64_t nothing[ROUNDS], pin_ns[ROUNDS], map_ns[ROUNDS], touch[ROUNDS],
		unmap[ROUNDS], unpin[ROUNDS];
	struct gpu gpu = gpu_alloc(32 * GPU_PAGE);
	struct p2pmod_query q;
	struct p2pmod_pin pin;
	int fd = p2p_open();

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t t0 = now_ns(), t1, t2, t3, t4, t5;
		volatile uint8_t *map;

		q = (struct p2pmod_query){.size = sizeof(q)};
		ASSERT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
		t1 = now_ns();
		ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
		t2 = now_ns();
		map = p2p_map(fd, &pin, 0, gpu.length);
		t3 = now_ns();
		map[0] = 1;
		t4 = now_ns();
		munmap((void *)map, gpu.length);
		t5 = now_ns();
		ASSERT(p2p_unpin(fd, pin.handle) == 0);
		unpin[i] = now_ns() - t5;
		nothing[i] = t1 - t0;
		pin_ns[i] = t2 - t1;
		map_ns[i] = t3 - t2;
		touch[i] = t4 - t3;
		unmap[i] = t5 - t4;
	}
	DIAG("cost ns: query %llu pin %llu mmap %llu touch %llu munmap %llu unpin %llu",
	     (unsigned long long)MEDIAN(nothing, ROUNDS), (unsigned long long)MEDIAN(pin_ns, ROUNDS),
	     (unsigned long long)MEDIAN(map_ns, ROUNDS), (unsigned long long)MEDIAN(touch, ROUNDS),
	     (unsigned long long)MEDIAN(unmap, ROUNDS), (unsigned long long)MEDIAN(unpin, ROUNDS));
}

/* ---- unloading ---- */

TEST(the_module_cannot_be_unloaded_while_in_use)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	void *map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED);
	/* EWOULDBLOCK: the in-kernel interface's test module uses it as well */
	EXPECT_ERRNO(EWOULDBLOCK, syscall(SYS_delete_module, "p2pmod", O_NONBLOCK));
	close(fd);
	EXPECT_ERRNO(EWOULDBLOCK, syscall(SYS_delete_module, "p2pmod", O_NONBLOCK));
	EXPECT(gpu_pins() == 1);
}

int main(int argc, char **argv)
{
	return tap_main(argc > 1 ? argv[1] : NULL);
}
