// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What the driver's own rules ask of the module: whose a pin is and who can undo it, what a late
 * put_pages may hit, what a request makes the driver allocate, what is left of a reservation.
 *
 * P2PMOD_KO names the module's file: some tests unload the module and load it again.
 */
#include "tap.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "gpu.h"

/* ---- accesses that may raise SIGBUS ---- */

static sigjmp_buf escape;

static void on_fault(int signal)
{
	siglongjmp(escape, signal);
}

static int faults(volatile uint8_t *at)
{
	struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &action, NULL);
	if (sigsetjmp(escape, 1))
		return 1;
	(void)*at;
	return 0;
}

static long long proc_counter(const char *name)
{
	char text[4096], *at;
	int fd = open("/proc/driver/p2pmod", O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	ASSERT(n > 0);
	close(fd);
	text[n] = 0;
	at = strstr(text, name);
	return at ? atoll(at + strlen(name)) : -1;
}

static void stay_on_one_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void sleep_ms(int ms)
{
	usleep(ms * 1000);
}

/* ---- a late put ---- */

struct unpinning {
	int fd;
	uint32_t handle;
};

static void *unpin_thread(void *data)
{
	struct unpinning *u = data;

	EXPECT(p2p_unpin(u->fd, u->handle) == 0);
	return NULL;
}

TEST(a_late_put_unpins_nobody_elses_pin)
{
	struct gpu a = gpu_alloc(GPU_PAGE), b = gpu_alloc(GPU_PAGE);
	int fd_a = p2p_open(), fd_b = p2p_open();
	struct p2pmod_pin pin_a, pin_b;
	struct unpinning u;
	pthread_t thread;
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd_a, a.va, a.length, &pin_a) == 0);
	ASSERT(standin_control(a.fd, STANDIN_DELAY_PUT, 500) == 0);
	u = (struct unpinning){ fd_a, pin_a.handle };
	pthread_create(&thread, NULL, unpin_thread, &u);
	sleep_ms(200); /* it is on its way to the driver's lock */
	gpu_free(&a);  /* the driver calls back, and frees its record of the pin */
	ASSERT(p2p_pin(fd_b, b.va, b.length, &pin_b) == 0); /* which the next pin gets */
	pthread_join(thread, NULL);
	ASSERT(standin_control(a.fd, STANDIN_DELAY_PUT, 0) == 0);
	EXPECT(gpu_pins() == 1);
	map = p2p_map(fd_b, &pin_b, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED);
	EXPECT(!faults(map));
	gpu_free(&b);
	EXPECT(faults(map));
}

static pthread_barrier_t start;

static void *free_thread(void *data)
{
	pthread_barrier_wait(&start);
	gpu_free(data);
	return NULL;
}

static void *late_unpin_thread(void *data)
{
	pthread_barrier_wait(&start);
	return unpin_thread(data);
}

TEST(late_puts_race_frees_and_new_pins)
{
	const char *rounds = getenv("ROUNDS");
	int n = rounds ? atoi(rounds) : 300, hits = 0;
	int fd_a = p2p_open(), fd_b = p2p_open();

	pthread_barrier_init(&start, NULL, 3);
	for (int i = 0; i < n; i++) {
		struct gpu a = gpu_alloc(GPU_PAGE), b = gpu_alloc(GPU_PAGE);
		struct p2pmod_pin pin_a, pin_b;
		pthread_t freeing, unpinning;
		struct unpinning u;

		ASSERT(p2p_pin(fd_a, a.va, a.length, &pin_a) == 0);
		u = (struct unpinning){ fd_a, pin_a.handle };
		pthread_create(&unpinning, NULL, late_unpin_thread, &u);
		pthread_create(&freeing, NULL, free_thread, &a);
		pthread_barrier_wait(&start);
		ASSERT(p2p_pin(fd_b, b.va, b.length, &pin_b) == 0);
		pthread_join(unpinning, NULL);
		pthread_join(freeing, NULL);
		hits += gpu_pins() != 1;
		gpu_free(&b);
		EXPECT(p2p_unpin(fd_b, pin_b.handle) == 0);
		munmap((void *)a.view, a.length);
		munmap((void *)b.view, b.length);
		close(a.fd);
		close(b.fd);
	}
	DIAG("%d rounds, %d hits", n, hits);
	EXPECT(hits == 0 && gpu_pins() == 0);
}

/* ---- whose a pin is ---- */

static void send_fd(int socket, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {};
	struct iovec io = { "x", 1 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	ASSERT(sendmsg(socket, &m, 0) == 1);
}

static int receive_fd(int socket)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {};
	char byte;
	struct iovec io = { &byte, 1 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	int fd;

	ASSERT(recvmsg(socket, &m, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return fd;
}

/* A child that inherits the descriptor, does @what with it, and exits. */
static void in_a_child(int fd, uint32_t handle)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (handle)
			EXPECT(p2p_unpin(fd, handle) == 0);
		close(fd);
		_exit(tap_failed);
	}
	close(fd);
	ASSERT(waitpid(child, &status, 0) == child);
	EXPECT(status == 0);
}

/* The last close happens in the child, as with every fork that outlives the parent's descriptor. */
static void orphan_pins(const struct gpu *gpu, struct p2pmod_pin *pin, int n)
{
	int fd = p2p_open(), status, ready[2], go[2];
	char byte;
	pid_t child;

	for (int i = 0; i < n; i++)
		ASSERT(p2p_pin(fd, gpu->va, gpu->length, pin) == 0);
	ASSERT(pipe(ready) == 0 && pipe(go) == 0);
	child = fork();
	if (child == 0) {
		ASSERT(read(go[0], &byte, 1) == 1);
		close(fd);
		_exit(0);
	}
	close(fd);
	ASSERT(write(go[1], "x", 1) == 1);
	ASSERT(waitpid(child, &status, 0) == child && status == 0);
	close(ready[0]);
	close(ready[1]);
	close(go[0]);
	close(go[1]);
}

static void orphan_a_pin(const struct gpu *gpu, struct p2pmod_pin *pin)
{
	orphan_pins(gpu, pin, 1);
}

TEST(a_pin_closed_in_a_child_ends_with_the_owners_free)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	long long orphans = proc_counter("orphans");
	struct p2pmod_pin pin;

	orphan_a_pin(&gpu, &pin);
	EXPECT(gpu_pins() == 1 && proc_counter("orphans") == orphans + 1);
	EXPECT(proc_counter("pins ") == 1 && proc_counter("bytes ") == (long long)gpu.length);
	EXPECT_ERRNO(EAGAIN, syscall(SYS_delete_module, "p2pmod", O_NONBLOCK));
	gpu_free(&gpu);
	EXPECT(gpu_pins() == 0);
	EXPECT(proc_counter("orphans") == orphans && proc_counter("pins ") == 0);
}

TEST(a_pin_closed_in_a_child_ends_when_the_owner_pins_or_closes)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd;

	for (int i = 0; i < 10; i++)
		orphan_a_pin(&gpu, &pin);
	fd = p2p_open();
	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	EXPECT(gpu_pins() == 1 && proc_counter("orphans") == 0);
	EXPECT(p2p_unpin(fd, pin.handle) == 0 && gpu_pins() == 0);
	orphan_a_pin(&gpu, &pin);
	EXPECT(gpu_pins() == 1);
	close(fd);
	EXPECT(gpu_pins() == 0 && proc_counter("orphans") == 0);
}

TEST(a_pin_closed_elsewhere_ends_with_its_owner)
{
	int pair[2], status, received;
	struct p2pmod_pin pin;
	char byte;

	ASSERT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	pid_t child = fork();
	if (child == 0) { /* the owner */
		struct gpu gpu = gpu_alloc(GPU_PAGE);
		int fd = p2p_open();

		ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
		send_fd(pair[1], fd);
		close(fd);
		ASSERT(write(pair[1], "x", 1) == 1);
		ASSERT(read(pair[1], &byte, 1) == 1);
		_exit(tap_failed);
	}
	received = receive_fd(pair[0]);
	ASSERT(read(pair[0], &byte, 1) == 1); /* ours is the last one */
	close(received);
	EXPECT(gpu_pins() == 1 && proc_counter("orphans") == 1);
	ASSERT(write(pair[0], "x", 1) == 1);
	ASSERT(waitpid(child, &status, 0) == child);
	EXPECT(status == 0 && gpu_pins() == 0 && proc_counter("orphans") == 0);
}

TEST(an_unpin_in_a_child_empties_mappings_at_once)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open(), copy = dup(fd);
	volatile uint8_t *map;

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED && !faults(map));
	in_a_child(fd, pin.handle);
	EXPECT(faults(map));
	EXPECT_ERRNO(ENOENT, p2p_unpin(copy, pin.handle));
	EXPECT(gpu_pins() == 1);
	close(copy);
	munmap((void *)map, GPU_PAGE);
	EXPECT(gpu_pins() == 0); /* the last close was the owner's */
}

TEST(either_side_of_a_fork_may_free_first)
{
	for (int child_first = 0; child_first < 2; child_first++) {
		struct gpu gpu = gpu_alloc(GPU_PAGE);
		struct p2pmod_pin pin;
		int fd = p2p_open(), go[2], status;
		char byte;
		pid_t child;

		ASSERT(pipe(go) == 0);
		ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
		child = fork();
		if (child == 0) {
			close(go[1]);
			if (!child_first)
				EXPECT(read(go[0], &byte, 1) == 0);
			EXPECT(p2p_unpin(fd, pin.handle) == 0);
			_exit(tap_failed);
		}
		close(go[0]);
		if (child_first)
			ASSERT(waitpid(child, &status, 0) == child && status == 0);
		gpu_free(&gpu);
		close(go[1]);
		if (!child_first)
			ASSERT(waitpid(child, &status, 0) == child && status == 0);
		close(fd);
		EXPECT(gpu_pins() == 0 && proc_counter("orphans") == 0);
	}
}

static void *pin_thread(void *data)
{
	struct gpu *gpu = data;
	struct p2pmod_pin pin;
	int fd = p2p_open();

	EXPECT(p2p_pin(fd, gpu->va, gpu->length, &pin) == 0);
	return (void *)(long)fd;
}

TEST(a_thread_pins_and_another_closes)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	pthread_t thread;
	void *fd;

	pthread_create(&thread, NULL, pin_thread, &gpu);
	pthread_join(thread, &fd);
	EXPECT(gpu_pins() == 1);
	close((int)(long)fd);
	EXPECT(gpu_pins() == 0);
}

TEST(a_persistent_pin_is_anybodys_to_unpin)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_query q = { .size = sizeof(q) };
	struct p2pmod_pin pin;
	int fd = p2p_open();

	ASSERT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
	if (!(q.features & P2PMOD_FEATURE_PERSISTENT))
		return;
	ASSERT(p2p_pin_flags(fd, gpu.va, 1, P2PMOD_PIN_PERSISTENT, &pin) == 0);
	in_a_child(fd, pin.handle);
	EXPECT(gpu_pins() == 0 && proc_counter("orphans") == 0);
}

TEST(forcing_bar1_works_or_is_not_supported)
{
	const uint32_t flags = P2PMOD_PIN_PERSISTENT | P2PMOD_PIN_FORCE_BAR1;
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_query q = { .size = sizeof(q) };
	struct p2pmod_pin pin;
	int fd = p2p_open();
	volatile uint8_t *map;

	ASSERT(ioctl(fd, P2PMOD_QUERY, &q) == 0);
	if (!(q.features & P2PMOD_FEATURE_PERSISTENT)) {
		EXPECT_ERRNO(EOPNOTSUPP, p2p_pin_flags(fd, gpu.va, 1, flags, &pin));
		return;
	}
	if (p2p_pin_flags(fd, gpu.va, 1, flags, &pin) == 0) {
		map = p2p_map(fd, &pin, 0, GPU_PAGE);
		ASSERT(map != MAP_FAILED);
		map[8] = 9;
		EXPECT(gpu.view[8] == 9);
		EXPECT(p2p_unpin(fd, pin.handle) == 0);
	} else {
		EXPECT(errno == EOPNOTSUPP);
	}
	EXPECT_ERRNO(EINVAL, p2p_pin_flags(fd, gpu.va + 100 * GPU_PAGE, 1, flags, &pin));
	EXPECT(gpu_pins() == 0);
}

TEST(a_neighbour_in_the_same_gpu_page_may_be_freed)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct gpu neighbour = gpu_alloc_flags(GPU_PAGE, STANDIN_NEIGHBOUR, gpu.va);
	struct p2pmod_pin pin, other;
	int fd = p2p_open();
	volatile uint8_t *map, *other_map;

	ASSERT(p2p_pin(fd, gpu.va, 4096, &pin) == 0 && p2p_pin(fd, gpu.va + 8192, 4096, &other) == 0);
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	other_map = p2p_map(fd, &other, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED && other_map != MAP_FAILED);
	EXPECT(!faults(map) && !faults(other_map));
	EXPECT(p2p_unpin(fd, other.handle) == 0);
	gpu_free(&neighbour);
	EXPECT(!faults(map) && faults(other_map) && gpu_pins() == 1);
	map[5] = 55;
	EXPECT(gpu.view[5] == 55);
	gpu_free(&gpu);
	EXPECT(faults(map) && gpu_pins() == 0);
}

TEST(a_full_aperture_is_enomem_and_leaves_nothing)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	struct p2pmod_pin pin, more;
	int fd = p2p_open();

	ASSERT(standin_control(gpu.fd, STANDIN_BAR1_LIMIT, 3 * GPU_PAGE) == 0);
	EXPECT(p2p_pin(fd, gpu.va, 2 * GPU_PAGE, &pin) == 0);
	EXPECT_ERRNO(ENOMEM, p2p_pin(fd, gpu.va, 2 * GPU_PAGE, &more));
	EXPECT(gpu_pins() == 1 && p2p_unpin(fd, pin.handle) == 0);
	EXPECT(p2p_pin(fd, gpu.va, 3 * GPU_PAGE, &pin) == 0);
	ASSERT(standin_control(gpu.fd, STANDIN_BAR1_LIMIT, 0) == 0);
}

/* As the virtual-memory API makes it: one range of addresses over several pieces of memory. */
TEST(a_pin_lies_in_one_piece_of_memory)
{
	struct gpu low = gpu_alloc(2 * GPU_PAGE), high;
	struct p2pmod_pin pin, other;
	int fd = p2p_open();
	volatile uint8_t *map;

	high = gpu_alloc_flags(2 * GPU_PAGE, 0, low.va + low.length);
	EXPECT_ERRNO(EINVAL, p2p_pin(fd, low.va, 4 * GPU_PAGE, &pin));
	ASSERT(p2p_pin(fd, low.va, low.length, &pin) == 0);
	ASSERT(p2p_pin(fd, high.va, high.length, &other) == 0);
	gpu_free(&low);
	map = p2p_map(fd, &other, 0, high.length);
	ASSERT(map != MAP_FAILED);
	EXPECT(!faults(map) && p2p_map(fd, &pin, 0, GPU_PAGE) == MAP_FAILED && gpu_pins() == 1);
}

TEST(one_memory_is_mapped_combined_and_uncached_at_once)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin combined, uncached;
	int fd = p2p_open();
	volatile uint8_t *a, *b;

	for (int order = 0; order < 2; order++) {
		ASSERT(p2p_pin_flags(fd, gpu.va, 1, order ? P2PMOD_PIN_UNCACHED : 0, &combined) == 0);
		ASSERT(p2p_pin_flags(fd, gpu.va, 1, order ? 0 : P2PMOD_PIN_UNCACHED, &uncached) == 0);
		a = p2p_map(fd, &combined, 0, GPU_PAGE);
		b = p2p_map(fd, &uncached, 0, GPU_PAGE);
		ASSERT(a != MAP_FAILED && b != MAP_FAILED);
		a[1] = 10 + order;
		__sync_synchronize();
		EXPECT(b[1] == 10 + order && gpu.view[1] == 10 + order);
		b[2] = 20 + order;
		__sync_synchronize();
		EXPECT(a[2] == 20 + order);
		EXPECT(p2p_unpin(fd, combined.handle) == 0 && faults(a) && !faults(b));
		EXPECT(p2p_unpin(fd, uncached.handle) == 0 && faults(b));
	}
}

/* ---- what others suffer ---- */

TEST(no_length_makes_the_driver_allocate_more_than_the_machine_could_need)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct standin_query q = { .size = sizeof(q) };
	struct p2pmod_pin pin;
	int fd = p2p_open();
	uint64_t most;

	ASSERT(ioctl(gpu.fd, STANDIN_QUERY, &q) == 0); /* forgets what came before */
	for (int shift = 28; shift <= 44; shift++)
		for (uint32_t flags = 0; flags < 2; flags++) {
			EXPECT(p2p_pin_flags(fd, gpu.va, (1ull << shift) + 1, flags, &pin) == -1);
			EXPECT(errno == EINVAL || errno == EOPNOTSUPP);
		}
	ASSERT(ioctl(gpu.fd, STANDIN_QUERY, &q) == 0);
	most = q.total;
#ifdef __aarch64__ /* a GPU's memory may be part of the machine's */
	if (most < (uint64_t)sysconf(_SC_PHYS_PAGES) * CPU_PAGE)
		most = (uint64_t)sysconf(_SC_PHYS_PAGES) * CPU_PAGE;
#endif
	EXPECT(q.largest <= most / GPU_PAGE * sizeof(uint64_t));
}

TEST(pins_of_nothing_take_nobodys_share)
{
	struct gpu gpu = gpu_alloc(4 * GPU_PAGE);
	int fd = p2p_open(), refused = 0, status;
	struct p2pmod_pin pin;
	pid_t child;

	ASSERT(parameter("max_bytes_total", "262144") == 0); /* 4 GPU pages */
	child = fork();
	if (child == 0) {
		int own = p2p_open();

		for (;;)
			p2p_pin(own, 0x100000000000ull, 4 * GPU_PAGE, &pin);
	}
	for (int i = 0; i < 1000; i++) {
		if (p2p_pin(fd, gpu.va, gpu.length, &pin))
			refused++;
		else
			EXPECT(p2p_unpin(fd, pin.handle) == 0);
	}
	kill(child, SIGKILL);
	waitpid(child, &status, 0);
	ASSERT(parameter("max_bytes_total", "18446744073709551615") == 0);
	DIAG("%d of 1000 refused", refused);
	EXPECT(refused == 0);
}

TEST(opening_more_files_gets_no_user_more)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int first = p2p_open(), second = p2p_open(), status;
	pid_t child;

	ASSERT(parameter("max_pins_per_user", "1") == 0);
	EXPECT(p2p_pin(first, gpu.va, 1, &pin) == 0);
	EXPECT_ERRNO(ENOSPC, p2p_pin(second, gpu.va, 1, &pin));
	ASSERT(chmod(P2PMOD_NODE, 0666) == 0);
	child = fork();
	if (child == 0) { /* another user */
		struct gpu own;

		ASSERT(setuid(1000) == 0);
		own = gpu_alloc(GPU_PAGE);
		EXPECT(p2p_pin(p2p_open(), own.va, 1, &pin) == 0);
		_exit(tap_failed);
	}
	ASSERT(waitpid(child, &status, 0) == child && status == 0);
	ASSERT(chmod(P2PMOD_NODE, 0660) == 0);
	ASSERT(parameter("max_pins_per_user", "65536") == 0);
	EXPECT(p2p_pin(second, gpu.va, 1, &pin) == 0);
}

/* ---- reservations ---- */

TEST(a_reservation_goes_with_the_revocation)
{
	struct gpu gpu = gpu_alloc(2 * GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	uint64_t bus;

	ASSERT(p2p_pin(fd, gpu.va, gpu.length, &pin) == 0);
	bus = first_bus(fd, pin.handle);
	if (reservations(bus, NULL) < 0)
		return; /* no PAT here */
	EXPECT(reservations(bus, NULL) == 0); /* it comes with the first mapping */
	ASSERT(p2p_map(fd, &pin, 0, CPU_PAGE) != MAP_FAILED);
	EXPECT(reservations(bus, NULL) == 1);
	gpu_free(&gpu);
	EXPECT(reservations(bus, NULL) == 0);
}

TEST(a_run_is_reserved_once_however_many_hold_it)
{
	struct gpu gpu = gpu_alloc_flags(8 * GPU_PAGE, STANDIN_CONTIGUOUS, 0);
	struct p2pmod_pin pin[6];
	int fd = p2p_open();
	uint64_t bus, from[6] = { 2, 0, 5, 2, 0, 3 }, pages[6] = { 2, 4, 3, 2, 8, 1 };

	for (int i = 0; i < 6; i++)
		ASSERT(p2p_pin(fd, gpu.va + from[i] * GPU_PAGE, pages[i] * GPU_PAGE, &pin[i]) == 0 &&
		       p2p_map(fd, &pin[i], 0, CPU_PAGE) != MAP_FAILED);
	bus = first_bus(fd, pin[4].handle);
	if (reservations(bus, NULL) < 0)
		return;
	/* runs: 2-3, 0-1, 5-7, 4 */
	EXPECT(reservations(bus, NULL) == 1 && reservations(bus + 2 * GPU_PAGE, NULL) == 1);
	EXPECT(reservations(bus + 4 * GPU_PAGE, NULL) == 1 && reservations(bus + 5 * GPU_PAGE, NULL) == 1);
	EXPECT(reservations(bus + 3 * GPU_PAGE, NULL) == 0 && reservations(bus + 6 * GPU_PAGE, NULL) == 0);
	EXPECT(p2p_unpin(fd, pin[4].handle) == 0);
	EXPECT(reservations(bus + 4 * GPU_PAGE, NULL) == 0 && reservations(bus, NULL) == 1);
	EXPECT(p2p_unpin(fd, pin[0].handle) == 0 && reservations(bus + 2 * GPU_PAGE, NULL) == 1);
	EXPECT(p2p_unpin(fd, pin[1].handle) == 0 && reservations(bus, NULL) == 0);
	EXPECT(p2p_unpin(fd, pin[3].handle) == 0 && reservations(bus + 2 * GPU_PAGE, NULL) == 1);
	EXPECT(p2p_unpin(fd, pin[5].handle) == 0 && reservations(bus + 2 * GPU_PAGE, NULL) == 0);
	EXPECT(p2p_unpin(fd, pin[2].handle) == 0 && reservations(bus + 5 * GPU_PAGE, NULL) == 0);
}

/* One fault puts in many pages, and asks for the type of few: all must be the right ones all the same. */
TEST(pages_that_one_fault_puts_in_are_the_right_ones)
{
	enum { PAGES = 72 }; /* more than a table of 2 MiB holds */
	static const struct { unsigned int from, pages; } pins[] = { { 8, 8 }, { 0, PAGES }, { 12, 40 } };
	uint32_t flags[] = { STANDIN_CONTIGUOUS, 0 };

	for (int f = 0; f < 2; f++) {
		struct gpu gpu = gpu_alloc_flags(PAGES * GPU_PAGE, flags[f], 0);
		int fd = p2p_open();

		for (size_t at = 0; at < gpu.length; at += CPU_PAGE)
			*(volatile uint32_t *)(gpu.view + at) = at / CPU_PAGE;
		for (int i = 0; i < 3; i++) {
			size_t start = pins[i].from * GPU_PAGE, lead = i * CPU_PAGE % GPU_PAGE;
			size_t length = pins[i].pages * GPU_PAGE - lead;
			volatile uint8_t *map;
			struct p2pmod_pin pin;

			ASSERT(p2p_pin(fd, gpu.va + start, pins[i].pages * GPU_PAGE, &pin) == 0);
			map = p2p_map(fd, &pin, lead, length);
			ASSERT(map != MAP_FAILED);
			/* the first touch in the middle of what a fault fills */
			EXPECT(!faults(map + length / 2));
			for (size_t at = 0; at < length; at += CPU_PAGE)
				ASSERT(*(volatile uint32_t *)(map + at) == (start + lead + at) / CPU_PAGE);
			map[length - 1] = 100 + i;
			EXPECT(gpu.view[start + lead + length - 1] == 100 + i);
		}
		gpu_free(&gpu);
		munmap((void *)gpu.view, gpu.length);
		close(gpu.fd);
		close(fd);
	}
}

TEST(pinning_one_page_again_and_again_stays_cheap)
{
	enum { ROUNDS = 5000, SAMPLE = 100, COMPARED = ROUNDS / SAMPLE / 5 };
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	uint64_t before = now_ns(), first = UINT64_MAX, last = UINT64_MAX;

	/* the best of the first fifth, and of the last: the machine may be busy */
	for (int i = 0; i < ROUNDS / SAMPLE; i++) {
		uint64_t *best = i < COMPARED ? &first : &last, each;

		for (int j = 0; j < SAMPLE; j++)
			ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0 &&
			       p2p_map(fd, &pin, 0, CPU_PAGE) != MAP_FAILED);
		each = (now_ns() - before) / SAMPLE;
		if ((i < COMPARED || i >= ROUNDS / SAMPLE - COMPARED) && each < *best)
			*best = each;
		before = now_ns();
	}
	DIAG("%llu ns a pin at first, %llu at last", (unsigned long long)first,
	     (unsigned long long)last);
	EXPECT(last < 4 * first);
}

/* ---- many orphans ---- */

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* What opening, pinning, unpinning and closing cost a process that has nothing to do with any orphan. */
static uint64_t median_to_another(void)
{
	enum { ROUNDS = 201 };
	uint64_t times[ROUNDS], median = 0;
	int answer[2], status;
	pid_t child;

	ASSERT(pipe(answer) == 0);
	child = fork();
	if (child == 0) {
		struct gpu own = gpu_alloc(GPU_PAGE);

		for (int i = 0; i < ROUNDS; i++) {
			uint64_t start = now_ns();
			struct p2pmod_pin pin;
			int fd = p2p_open();

			ASSERT(p2p_pin(fd, own.va, 1, &pin) == 0 && p2p_unpin(fd, pin.handle) == 0);
			close(fd);
			times[i] = now_ns() - start;
		}
		qsort(times, ROUNDS, sizeof(*times), compare);
		ASSERT(write(answer[1], &times[ROUNDS / 2], sizeof(*times)) == sizeof(*times));
		_exit(0);
	}
	ASSERT(waitpid(child, &status, 0) == child && status == 0);
	ASSERT(read(answer[0], &median, sizeof(median)) == sizeof(median));
	close(answer[0]);
	close(answer[1]);
	return median;
}

/* The best of some: the machine may be busy. */
static uint64_t cost_to_another(void)
{
	uint64_t best = UINT64_MAX, median;

	for (int i = 0; i < 5; i++) {
		median = median_to_another();
		if (median < best)
			best = median;
	}
	return best;
}

/* Of the pin with which the owner takes @n orphans back, for each of them. */
static uint64_t cost_of_taking_back(int n)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int fd = p2p_open();
	uint64_t start = now_ns();

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	start = now_ns() - start;
	EXPECT(proc_counter("orphans") == 0 && gpu_pins() == 1);
	close(fd);
	munmap((void *)gpu.view, gpu.length);
	close(gpu.fd);
	return start / n;
}

TEST(however_many_orphans_there_are_nobody_waits_for_them)
{
	enum { FEW = 500, SAMPLES = 5 };
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	uint64_t none, beside, few[SAMPLES], each, start;
	int cheap = 0, quick = 0; /* the machine may be busy */
	int many = 24000;
	struct p2pmod_pin pin;

	none = cost_to_another();
	for (int i = 0; i < SAMPLES; i++) {
		start = now_ns();
		orphan_pins(&gpu, &pin, FEW);
		if (now_ns() - start > FEW * 1000000ull)
			many = 8 * FEW; /* a kernel that looks for mistakes, emulated */
		few[i] = cost_of_taking_back(FEW);
	}
	qsort(few, SAMPLES, sizeof(*few), compare);
	/* going through them all makes it 10 and 50 times as much, and more, however often it is tried */
	for (int tries = 0; tries < 4 && !(cheap && quick); tries++) {
		orphan_pins(&gpu, &pin, many);
		EXPECT(proc_counter("orphans") == many && gpu_pins() == (uint64_t)many);
		beside = cost_to_another();
		each = cost_of_taking_back(many);
		DIAG("another's pin: %llu ns beside none, %llu beside %d; taken back: %llu ns each "
		     "of %d, %llu of %d",
		     (unsigned long long)none, (unsigned long long)beside, many,
		     (unsigned long long)few[SAMPLES / 2], FEW, (unsigned long long)each, many);
		cheap |= beside < 3 * none;
		quick |= each < 8 * few[SAMPLES / 2];
	}
	EXPECT(cheap && quick);
}

/* How many orphans /proc/driver/p2pmod lists, one a line. */
static int orphans_listed(void)
{
	FILE *proc = fopen("/proc/driver/p2pmod", "r");
	char line[256];
	int n = 0;

	ASSERT(proc);
	while (fgets(line, sizeof(line), proc))
		n += !strncmp(line, "orphan ", 7);
	fclose(proc);
	return n;
}

/* A line tells another user's process: root's to know. And no reader gets more than fit on a screen. */
TEST(who_may_see_which_orphans)
{
	enum { ORPHANS = 100, LISTED = 64 };
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	int status;
	pid_t child;

	orphan_pins(&gpu, &pin, 3);
	EXPECT(proc_counter("orphans") == 3 && orphans_listed() == 3);
	orphan_pins(&gpu, &pin, ORPHANS); /* the first of them takes the three back */
	EXPECT(proc_counter("orphans") == ORPHANS && orphans_listed() == LISTED);
	child = fork();
	if (child == 0) {
		ASSERT(setgid(1000) == 0 && setuid(1000) == 0);
		EXPECT(proc_counter("orphans") == ORPHANS && proc_counter("pins ") == ORPHANS);
		EXPECT(orphans_listed() == 0);
		_exit(tap_failed);
	}
	ASSERT(waitpid(child, &status, 0) == child);
	EXPECT(status == 0);
	gpu_free(&gpu);
	EXPECT(proc_counter("orphans") == 0 && orphans_listed() == 0);
}

/* Somebody with the rights maps the BAR uncached: then so are all mappings, and the state says it. */
TEST(the_state_tells_when_another_type_won)
{
	struct gpu gpu = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin pin;
	struct p2pmod_status s;
	unsigned long long bar = 0, end, flags;
	char path[64] = "", line[512], type[64] = "", *at;
	int fd = p2p_open(), device, memory;
	volatile uint8_t *map;
	uint64_t bus;
	ssize_t n;
	void *uncached;

	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	bus = first_bus(fd, pin.handle);
	ASSERT(p2p_unpin(fd, pin.handle) == 0);
	for (device = 0; device < 32; device++) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/device", device);
		memory = open(path, O_RDONLY);
		if (memory < 0)
			continue;
		n = read(memory, line, sizeof(line) - 1);
		close(memory);
		if (n > 0 && !strncmp(line, "0x1110", 6))
			break;
	}
	ASSERT(device < 32);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource", device);
	memory = open(path, O_RDONLY);
	n = read(memory, line, sizeof(line) - 1);
	ASSERT(n > 0);
	line[n] = 0;
	close(memory);
	at = strchr(strchr(line, '\n') + 1, '\n') + 1;
	ASSERT(sscanf(at, "%llx %llx %llx", &bar, &end, &flags) == 3);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/0000:00:%02x.0/resource2", device);
	memory = open(path, O_RDWR);
	ASSERT(memory >= 0);
	uncached = mmap(NULL, GPU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, bus - bar);
	ASSERT(uncached != MAP_FAILED);
	if (reservations(bus, type) < 1 || strcmp(type, "uncached-minus"))
		return; /* not as on x86 */
	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED && !faults(map));
	EXPECT(p2p_status(fd, pin.handle, &s) == 0);
	EXPECT(!(s.state & P2PMOD_STATE_WRITE_COMBINED));
	ASSERT(p2p_unpin(fd, pin.handle) == 0);
	munmap(uncached, GPU_PAGE);
	ASSERT(p2p_pin(fd, gpu.va, 1, &pin) == 0);
	map = p2p_map(fd, &pin, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED && !faults(map));
	EXPECT(p2p_status(fd, pin.handle, &s) == 0 && s.state & P2PMOD_STATE_WRITE_COMBINED);
}

/* ---- handles ---- */

TEST(a_handle_that_is_mapped_is_not_given_again)
{
	enum { HANDLES = 1 << 19 };
	struct gpu gpu = gpu_alloc(GPU_PAGE), other = gpu_alloc(GPU_PAGE);
	struct p2pmod_pin first, pin;
	int fd = p2p_open(), again = 0;
	volatile uint8_t *map, *part;
	uint64_t before;

	ASSERT(p2p_pin(fd, gpu.va, 1, &first) == 0);
	map = p2p_map(fd, &first, 0, GPU_PAGE);
	ASSERT(map != MAP_FAILED && !faults(map));
	/* a piece of it, somewhere else, is what stays */
	part = mremap((void *)(map + CPU_PAGE), CPU_PAGE, CPU_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      mmap(NULL, CPU_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT(part != MAP_FAILED);
	munmap((void *)map, GPU_PAGE);
	EXPECT(!faults(part));
	EXPECT(p2p_unpin(fd, first.handle) == 0 && faults(part));
	before = now_ns();
	for (int i = 0; i < HANDLES + 10; i++) {
		ASSERT(p2p_pin(fd, other.va, 1, &pin) == 0);
		if (pin.handle == first.handle) {
			again++;
			EXPECT(faults(part));
		}
		ASSERT(p2p_unpin(fd, pin.handle) == 0);
		if (i == 999 && now_ns() - before > 100 * 1000000ull) {
			DIAG("not tried to the end: this kernel is too slow for %d pins", HANDLES);
			return;
		}
	}
	EXPECT(!again);
}

/* ---- unloading ---- */

static void load(void)
{
	const char *path = getenv("P2PMOD_KO");
	int image;

	ASSERT(path);
	image = open(path, O_RDONLY | O_CLOEXEC);
	ASSERT(image >= 0);
	ASSERT(syscall(SYS_finit_module, image, "", 0) == 0);
	close(image);
}

/* The callback lets the module go; the module must not be gone before the callback has returned. */
TEST(unloading_the_instant_an_orphan_ends)
{
	const char *rounds = getenv("ROUNDS");
	int n = rounds ? atoi(rounds) / 10 : 30;

	stay_on_one_cpu();
	for (int i = 0; i < n; i++) {
		struct gpu gpu = gpu_alloc(GPU_PAGE);
		struct p2pmod_pin pin;
		pthread_t thread;

		orphan_a_pin(&gpu, &pin);
		pthread_barrier_init(&start, NULL, 2);
		pthread_create(&thread, NULL, free_thread, &gpu);
		pthread_barrier_wait(&start);
		while (syscall(SYS_delete_module, "p2pmod", O_NONBLOCK))
			sched_yield();
		pthread_join(thread, NULL);
		EXPECT(gpu_pins() == 0);
		munmap((void *)gpu.view, gpu.length);
		close(gpu.fd);
		load();
	}
}

int main(int count, char **words)
{
	return tap_main(count > 1 ? words[1] : NULL);
}
