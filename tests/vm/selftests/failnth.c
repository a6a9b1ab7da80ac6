// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Fails each allocation of each call in turn (Documentation/fault-injection, fail-nth). The call must
 * fail cleanly or work; nothing may stay pinned, and the same call must work afterwards. For a kernel
 * with fault injection; the log checks that there is nothing to complain about.
 */
#include "gpu.h"
#include "test/caller.h"

#define MOST 400 /* allocations of one call */

static int knob(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY), ok;

	if (fd < 0)
		return -1;
	ok = write(fd, value, strlen(value)) > 0;
	close(fd);
	return ok ? 0 : -1;
}

/* Sleeping allocations fail too, whoever makes them. */
static void arm(void)
{
	ASSERT(knob("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") == 0);
	ASSERT(knob("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N") == 0);
	knob("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	knob("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	knob("/sys/kernel/debug/failslab/verbose", "0");
	knob("/sys/kernel/debug/fail_page_alloc/verbose", "0");
}

/* Run with the n-th allocation failing; whether there was an n-th one. */
static int with_failure(int n, int (*call)(void *), void *argument, int *result)
{
	char text[16];
	int fd = open("/proc/thread-self/fail-nth", O_RDWR), left;

	ASSERT(fd >= 0); /* needs a kernel with CONFIG_FAULT_INJECTION */
	snprintf(text, sizeof(text), "%d", n);
	ASSERT(write(fd, text, strlen(text)) > 0);
	*result = call(argument);
	memset(text, 0, sizeof(text));
	ASSERT(pread(fd, text, sizeof(text) - 1, 0) > 0);
	left = atoi(text);
	ASSERT(pwrite(fd, "0", 1, 0) == 1);
	close(fd);
	return left == 0;
}

struct state {
	struct gpu gpu;
	int fd;
	struct p2pmod_pin pin;
	uint32_t flags;
	volatile uint8_t *map;
};

static int call_open(void *argument)
{
	struct state *s = argument;

	s->fd = open(P2PMOD_NODE, O_RDWR | O_CLOEXEC);
	return s->fd < 0 ? -errno : 0;
}

static int call_pin(void *argument)
{
	struct state *s = argument;

	return p2p_pin_flags(s->fd, s->gpu.va + 9, s->gpu.length - 9, s->flags, &s->pin) ? -errno : 0;
}

static int call_map(void *argument)
{
	struct state *s = argument;

	s->map = p2p_map(s->fd, &s->pin, 0, s->pin.map_length);
	return s->map == MAP_FAILED ? -errno : 0;
}

static int call_pages(void *argument)
{
	struct state *s = argument;
	static uint64_t bus[64];
	struct p2pmod_pages p = {sizeof(p), s->pin.handle, 0, 64, (uintptr_t)bus};

	return ioctl(s->fd, P2PMOD_PAGES, &p) ? -errno : 0;
}

static int call_touch(void *argument)
{
	struct state *s = argument;
	int null = open("/dev/zero", O_RDONLY), result;

	/* a system call touches the mapping, so that a failing fault is an errno and not a signal */
	if (null < 0)
		return -errno;
	result = read(null, (void *)s->map, 100000) == 100000 ? 0 : -errno;
	close(null);
	return result;
}

static int call_unpin(void *argument)
{
	struct state *s = argument;

	return p2p_unpin(s->fd, s->pin.handle) ? -errno : 0;
}

static struct state fresh(uint32_t flags)
{
	struct state s = {.gpu = gpu_alloc(32 * GPU_PAGE), .fd = -1, .flags = flags};

	arm();
	return s;
}

TEST(open_with_each_allocation_failing)
{
	struct state s = fresh(0);
	int n, result;

	for (n = 1; n < MOST && with_failure(n, call_open, &s, &result); n++) {
		if (s.fd >= 0)
			close(s.fd);
		EXPECT(result == 0 || result == -ENOMEM || result == -ENFILE);
	}
	EXPECT(result == 0);
	DIAG("%d allocations failed in turn", n - 1);
}

static void pin_sweep(uint32_t flags)
{
	struct state s = fresh(flags);
	uint64_t before = gpu_pins();
	int n, result;

	ASSERT(call_open(&s) == 0);
	for (n = 1; n < MOST && with_failure(n, call_pin, &s, &result); n++) {
		if (result == 0)
			EXPECT(call_unpin(&s) == 0);
		else
			EXPECT(result == -ENOMEM || result == -ENOSPC);
		EXPECT(gpu_pins() == before);
	}
	EXPECT(result == 0 && call_map(&s) == 0 && call_touch(&s) == 0);
	DIAG("%d allocations failed in turn", n - 1);
}

TEST(pin_with_each_allocation_failing)
{
	pin_sweep(0);
}

TEST(persistent_pin_with_each_allocation_failing)
{
	pin_sweep(P2PMOD_PIN_PERSISTENT);
}

TEST(mmap_with_each_allocation_failing)
{
	struct state s = fresh(0);
	int n, result;

	ASSERT(call_open(&s) == 0 && call_pin(&s) == 0);
	for (n = 1; n < MOST && with_failure(n, call_map, &s, &result); n++)
		if (result == 0)
			munmap((void *)s.map, s.pin.map_length);
	EXPECT(result == 0 && call_touch(&s) == 0);
	DIAG("%d allocations failed in turn", n - 1);
}

TEST(touching_with_each_allocation_failing)
{
	struct state s = fresh(0);
	int n, result;

	ASSERT(call_open(&s) == 0 && call_pin(&s) == 0 && call_map(&s) == 0);
	for (n = 1; n < MOST && with_failure(n, call_touch, &s, &result); n++) {
		munmap((void *)s.map, s.pin.map_length);
		ASSERT(call_map(&s) == 0);
	}
	EXPECT(result == 0);
	DIAG("%d allocations failed in turn", n - 1);
}

TEST(pages_and_unpin_with_each_allocation_failing)
{
	struct state s = fresh(0);
	int n, result;

	ASSERT(call_open(&s) == 0 && call_pin(&s) == 0);
	for (n = 1; n < MOST && with_failure(n, call_pages, &s, &result); n++)
		;
	EXPECT(result == 0);
	for (n = 1; n < MOST; n++) {
		int reached = with_failure(n, call_unpin, &s, &result);

		EXPECT(result == 0); /* giving back must not need memory */
		ASSERT(call_pin(&s) == 0);
		if (!reached)
			break;
	}
	DIAG("%d allocations failed in turn", n - 1);
}

static int call_close(void *argument)
{
	struct state *s = argument;

	return close(s->fd) ? -errno : 0;
}

static long long orphans(void)
{
	char text[4096], *at;
	int fd = open("/proc/driver/p2pmod", O_RDONLY);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	ASSERT(n > 0);
	close(fd);
	text[n] = 0;
	at = strstr(text, "orphans ");
	return at ? atoll(at + 8) : -1;
}

/*
 * The driver's put_pages takes memory, too, and then unpins nothing and says so. What it did not unpin may wait until
 * the owner pins or closes again. It may not be forgotten: the driver keeps the pin, and calls back for it.
 */
static void give_back_sweep(int (*call)(void *), uint32_t flags, int mapped)
{
	uint64_t before = gpu_pins();
	int n, result, reached = 1, late = 0;

	for (n = 1; n < MOST && reached; n++) {
		struct state s = fresh(flags);

		ASSERT(call_open(&s) == 0 && call_pin(&s) == 0);
		if (mapped) { /* unpinned, the handle stays until this is gone */
			ASSERT(call_map(&s) == 0 && call_touch(&s) == 0);
			if (call == call_close)
				munmap((void *)s.map, s.pin.map_length);
		}
		reached = with_failure(n, call, &s, &result);
		EXPECT(result == 0); /* giving back must not need memory */
		late += gpu_pins() != before;
		if (mapped && call == call_unpin)
			munmap((void *)s.map, s.pin.map_length);
		if (call == call_unpin)
			close(s.fd);
		ASSERT(call_open(&s) == 0 && call_close(&s) == 0);
		if (!EXPECT(gpu_pins() == before && orphans() == 0))
			reached = 0; /* one is enough */
		gpu_free(&s.gpu); /* calls nobody back */
		munmap((void *)s.gpu.view, s.gpu.length);
		close(s.gpu.fd);
	}
	DIAG("%d allocations failed in turn, %d times it was given back later", n - 1, late);
}

TEST(unpin_with_each_allocation_failing_loses_no_pin)
{
	give_back_sweep(call_unpin, 0, 0);
	give_back_sweep(call_unpin, 0, 1);
}

TEST(close_with_each_allocation_failing_loses_no_pin)
{
	give_back_sweep(call_close, 0, 0);
	give_back_sweep(call_close, 0, 1);
}

TEST(giving_back_a_persistent_pin_with_each_allocation_failing_loses_none)
{
	give_back_sweep(call_unpin, P2PMOD_PIN_PERSISTENT, 0);
	give_back_sweep(call_close, P2PMOD_PIN_PERSISTENT, 0);
}

struct attaching {
	int caller;
	struct caller_attach wanted, got;
};

static int call_attach(void *argument)
{
	struct attaching *a = argument;

	a->got = a->wanted;
	return ioctl(a->caller, CALLER_ATTACH, &a->got) ? -errno : 0;
}

static int call_detach(void *argument)
{
	struct attaching *a = argument;
	struct caller_detach d = {.lane = a->got.lane};

	return ioctl(a->caller, CALLER_DETACH, &d) ? -errno : 0;
}

static int call_submit(void *argument)
{
	struct attaching *a = argument;
	struct caller_submit c = {.lane = a->got.lane, .unasked = 1, .context = CALLER_TASKLET};

	return ioctl(a->caller, CALLER_SUBMIT, &c) ? -errno : 0;
}

/* What a sweep must leave as it was: pages that are pinned, lanes that are attached. */
static long held(void)
{
	FILE *vmstat, *proc;
	char name[64];
	long value, acquired = 0, released = 0, lanes = 0;

	ASSERT(knob("/proc/sys/vm/stat_refresh", "1") == 0);
	ASSERT((vmstat = fopen("/proc/vmstat", "r")) && (proc = fopen("/proc/driver/p2pmod", "r")));
	while (fscanf(vmstat, "%63s %ld", name, &value) == 2)
		if (!strcmp(name, "nr_foll_pin_acquired"))
			acquired = value;
		else if (!strcmp(name, "nr_foll_pin_released"))
			released = value;
	while (fscanf(proc, "%63s %ld", name, &value) == 2)
		if (!strcmp(name, "lanes"))
			lanes = value;
	fclose(vmstat);
	fclose(proc);
	return acquired - released + lanes;
}

static void attach_sweep(uint32_t slots)
{
	struct state s = fresh(0);
	struct attaching a = {.caller = open(CALLER_NODE, O_RDWR | O_CLOEXEC)};
	size_t bytes = slots * sizeof(struct p2pmod_reply);
	long before = held();
	int n, result;
	char *replies;

	ASSERT(a.caller >= 0 && call_open(&s) == 0 && call_pin(&s) == 0);
	for (n = 1; n < MOST; n++) {
		int reached;

		/* fresh memory each time, so that pinning has to fault it in */
		replies = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT(replies != MAP_FAILED);
		a.wanted = (struct caller_attach){.fd = s.fd, .handle = s.pin.handle, .packets = 55,
						  .replies = (uintptr_t)replies, .slots = slots,
						  .first = 1};
		reached = with_failure(n, call_attach, &a, &result);
		if (result == 0)
			EXPECT(call_detach(&a) == 0);
		else
			EXPECT(result == -ENOMEM || result == -EFAULT);
		EXPECT(held() == before);
		munmap(replies, bytes);
		if (!reached)
			break;
	}
	EXPECT(result == 0 && n > 3);
	DIAG("%d allocations failed in turn", n - 1);
}

TEST(attach_with_each_allocation_failing)
{
	attach_sweep(16);
}

TEST(attach_of_the_largest_lane_with_each_allocation_failing)
{
	attach_sweep(16384); /* many pages of replies, several GPU pages of packets */
}

TEST(submit_and_detach_with_each_allocation_failing)
{
	struct state s = fresh(0);
	struct attaching a = {.caller = open(CALLER_NODE, O_RDWR | O_CLOEXEC)};
	void *replies = mmap(NULL, CPU_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int n, result, sent = 0;

	ASSERT(a.caller >= 0 && call_open(&s) == 0 && call_pin(&s) == 0);
	a.wanted = (struct caller_attach){.fd = s.fd, .handle = s.pin.handle, .packets = 55,
					  .replies = (uintptr_t)replies, .slots = 256, .first = 1};
	ASSERT(call_attach(&a) == 0);
	for (n = 1; n < MOST && with_failure(n, call_submit, &a, &result); n++) {
		EXPECT(result == 0 || result == -ENOMEM); /* the test module's own allocation */
		sent += !result;
	}
	EXPECT(result == 0);
	for (n = 1; n < MOST; n++) {
		int reached = with_failure(n, call_detach, &a, &result);

		EXPECT(result == 0); /* giving back must not need memory */
		memset(replies, 0, CPU_PAGE);
		ASSERT(call_attach(&a) == 0);
		if (!reached)
			break;
	}
	DIAG("%d allocations failed in turn, %d calls sent", n - 1, sent);
}

int main(int argc, char **argv)
{
	return tap_main(argc > 1 ? argv[1] : NULL);
}
