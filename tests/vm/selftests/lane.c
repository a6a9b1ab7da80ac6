// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Calls of device functions from inside the kernel, from every context; what attaching refuses; and
 * revocation, detaching and dying with calls in flight. A thread plays the GPU: see resident.h.
 */
#include "tap.h"

#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "gpu.h"
#include "resident.h"

#define SLOTS 16
#define PATIENCE_NS 60000000000ull /* an emulated machine on a busy one may stand still for seconds */

static const uint32_t contexts[] = {CALLER_PROCESS, CALLER_TIMER, CALLER_TASKLET,
				    CALLER_INTERRUPT};
#define CONTEXTS 4

/* One of everything: memory, its pin, a resident kernel, a file of the calling module. */
struct scene {
	struct gpu gpu;
	struct p2pmod_pin pin;
	struct resident resident;
	int p2p, caller;
	void *replies;
	size_t reply_bytes;
};

static void *reply_memory(size_t bytes)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT(at != MAP_FAILED);
	return at;
}

static struct scene *scene_new(size_t pages)
{
	struct scene *s = calloc(1, sizeof(*s));

	s->gpu = gpu_alloc(pages * GPU_PAGE);
	memset((void *)s->gpu.view, 0, s->gpu.length);
	s->p2p = p2p_open();
	ASSERT(p2p_pin(s->p2p, s->gpu.va, s->gpu.length, &s->pin) == 0);
	s->resident.gpu = &s->gpu;
	s->caller = open(CALLER_NODE, O_RDWR | O_CLOEXEC);
	ASSERT(s->caller >= 0);
	s->reply_bytes = LANES_MOST * P2PMOD_LANE_SLOTS_MAX * sizeof(struct p2pmod_reply);
	s->replies = reply_memory(s->reply_bytes);
	return s;
}

static void scene_end(struct scene *s)
{
	close(s->caller);
	if (s->resident.thread)
		resident_stop(&s->resident);
	munmap(s->replies, s->reply_bytes);
	close(s->p2p);
	munmap((void *)s->gpu.view, s->gpu.length);
	close(s->gpu.fd);
	free(s);
}

static struct caller_attach describe(const struct scene *s, size_t packets, void *replies,
				     uint32_t slots, uint32_t first)
{
	return (struct caller_attach){.fd = s->p2p, .handle = s->pin.handle, .packets = packets,
				      .replies = (uintptr_t)replies, .slots = slots, .first = first};
}

/* Make a lane on both sides; its index. */
static uint32_t lane_new(struct scene *s, size_t packets, uint32_t slots, uint32_t first)
{
	char *replies = (char *)s->replies +
			s->resident.rings * P2PMOD_LANE_SLOTS_MAX * sizeof(struct p2pmod_reply);
	struct caller_attach a = describe(s, packets, replies, slots, first);

	resident_add(&s->resident, packets, replies, slots, first);
	ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	return a.lane;
}

static int submit(struct scene *s, uint32_t lane, uint32_t context, uint32_t function,
		  uint32_t word, uint32_t *sequence)
{
	struct caller_submit c = {.lane = lane, .context = context, .function = function,
				  .bytes = 8, .unasked = !sequence};
	int result;

	memcpy(c.arguments, &word, sizeof(word));
	result = ioctl(s->caller, CALLER_SUBMIT, &c);
	if (sequence)
		*sequence = c.sequence;
	return result;
}

static int poll_reply(struct scene *s, uint32_t lane, uint32_t context, uint32_t sequence,
		      struct caller_reply *reply)
{
	*reply = (struct caller_reply){.lane = lane, .context = context, .sequence = sequence};
	return ioctl(s->caller, CALLER_REPLY, reply);
}

static int wait_reply(struct scene *s, uint32_t lane, uint32_t sequence, uint32_t timeout_ms,
		      struct caller_reply *reply)
{
	*reply = (struct caller_reply){.lane = lane, .sequence = sequence, .wait = 1,
				       .timeout_ms = timeout_ms};
	return ioctl(s->caller, CALLER_REPLY, reply);
}

static struct caller_run run_of(uint32_t lane, uint32_t context, uint32_t calls, uint32_t ahead)
{
	return (struct caller_run){.lane = lane, .context = context, .calls = calls, .ahead = ahead,
				   .seed = 1605 + context, .timeout_ms = 120000};
}

/* A run in a thread of its own. */
struct runner {
	struct caller_run run;
	int caller, error;
	pthread_t thread;
};

static void *runner_thread(void *argument)
{
	struct runner *r = argument;

	r->error = ioctl(r->caller, CALLER_RUN, &r->run) ? errno : 0;
	return NULL;
}

static void runner_start(struct runner *r, int caller, struct caller_run run)
{
	r->run = run;
	r->caller = caller;
	ASSERT(pthread_create(&r->thread, NULL, runner_thread, r) == 0);
}

/* Its errno, or 0. */
static int runner_end(struct runner *r)
{
	pthread_join(r->thread, NULL);
	return r->error;
}

/* ---- what is held ---- */

/* A line "name value" of a file in /proc. */
static long long number_in(const char *path, const char *name)
{
	char text[16384], *at;
	int fd = open(path, O_RDONLY);
	ssize_t n, have = 0;

	ASSERT(fd >= 0);
	while ((n = read(fd, text + have, sizeof(text) - 1 - have)) > 0)
		have += n;
	close(fd);
	text[have] = 0;
	for (at = text; at; at = strchr(at, '\n')) {
		at += *at == '\n';
		if (!strncmp(at, name, strlen(name)) && at[strlen(name)] == ' ')
			return atoll(at + strlen(name));
	}
	DIAG("%s has no %s", path, name);
	exit(1);
}

static long long counter(const char *name)
{
	return number_in("/proc/driver/p2pmod", name);
}

/* Pages of processes that anybody in the kernel has pinned. */
static long long pages_pinned(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY);

	ASSERT(fd >= 0 && write(fd, "1", 1) == 1); /* each CPU counts by itself */
	close(fd);
	return number_in("/proc/vmstat", "nr_foll_pin_acquired") -
	       number_in("/proc/vmstat", "nr_foll_pin_released");
}

/* ---- calls ---- */

TEST(a_call_is_answered_in_each_context)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;

	resident_start(&s->resident);
	for (int i = 0; i < CONTEXTS; i++) {
		ASSERT(submit(s, lane, contexts[i], DEVICE_FOLD, 0, &sequence) == 0);
		EXPECT(sequence == 1 + (uint32_t)i);
		ASSERT(wait_reply(s, lane, sequence, 10000, &reply) == 0);
		EXPECT(reply.status == 0 && reply.value == device_fold((uint32_t[]){0}));
		/* a reply is fetched once */
		EXPECT_ERRNO(ENOENT, poll_reply(s, lane, contexts[i], sequence, &reply));
	}
	scene_end(s);
}

TEST(thousands_of_calls_from_each_context_wrap_the_ring)
{
	for (int i = 0; i < CONTEXTS; i++) {
		struct scene *s = scene_new(2);
		/* across the boundary of two scattered GPU pages */
		uint32_t lane = lane_new(s, GPU_PAGE - 5 * 64, SLOTS, 1);
		struct caller_run run = run_of(lane, contexts[i], 2000, 64);

		resident_start(&s->resident);
		EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0);
		EXPECT(run.answered == 2000 && run.wrong == 0);
		EXPECT(run.full > 0); /* 64 do not fit in 16 slots */
		EXPECT(s->resident.ring[0].taken == 2000);
		scene_end(s);
	}
}

TEST(all_contexts_call_on_two_lanes_at_once)
{
	struct scene *s = scene_new(2);
	uint32_t lanes[2] = {lane_new(s, 64, 8, 1), lane_new(s, 64 + 8 * 64, 64, 1)};
	struct runner runners[2 * CONTEXTS] = {};

	resident_start(&s->resident);
	for (int i = 0; i < 2 * CONTEXTS; i++)
		runner_start(&runners[i], s->caller, run_of(lanes[i / CONTEXTS], contexts[i % CONTEXTS], 700, 20 + i));
	for (int i = 0; i < 2 * CONTEXTS; i++) {
		EXPECT(runner_end(&runners[i]) == 0);
		EXPECT(runners[i].run.answered == 700 && runners[i].run.wrong == 0);
	}
	EXPECT(s->resident.ring[0].taken == CONTEXTS * 700 && s->resident.ring[1].taken == CONTEXTS * 700);
	scene_end(s);
}

TEST(sequences_wrap_in_each_context)
{
	for (int i = 0; i < CONTEXTS; i++) {
		struct scene *s = scene_new(1);
		uint32_t first = UINT32_MAX - 300 + i, lane = lane_new(s, 128, SLOTS, first);
		struct caller_run run = run_of(lane, contexts[i], 1000, 64);
		struct caller_detach d = {.lane = lane};

		resident_start(&s->resident);
		EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0);
		EXPECT(run.answered == 1000 && run.wrong == 0);
		EXPECT(ioctl(s->caller, CALLER_DETACH, &d) == 0);
		EXPECT(d.next == first + 1000 && d.next < 1000);
		scene_end(s);
	}
}

TEST(the_smallest_and_the_largest_ring_wrap)
{
	static const struct { uint32_t slots, first, calls; } cases[] = {
		{2, 1, 500}, {2, UINT32_MAX - 50, 500},
		{P2PMOD_LANE_SLOTS_MAX, 1, P2PMOD_LANE_SLOTS_MAX + 2000},
		{P2PMOD_LANE_SLOTS_MAX, UINT32_MAX - 1000, 3000},
	};

	for (int i = 0; i < 4; i++) {
		struct scene *s = scene_new(34);
		uint32_t lane = lane_new(s, 64, cases[i].slots, cases[i].first);
		struct caller_run run = run_of(lane, CALLER_PROCESS, cases[i].calls, 256);

		resident_start(&s->resident);
		EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0);
		EXPECT(run.answered == cases[i].calls && run.wrong == 0);
		scene_end(s);
	}
}

TEST(replies_start_anywhere_in_a_page)
{
	for (size_t offset = 0; offset < CPU_PAGE; offset += 1008) {
		struct scene *s = scene_new(1);
		char *replies = (char *)s->replies + offset;
		struct caller_attach a = describe(s, 0, replies, 512, 1);
		struct caller_run run;

		resident_add(&s->resident, 0, replies, 512, 1);
		ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
		run = run_of(a.lane, CALLER_PROCESS, 1500, 200);
		resident_start(&s->resident);
		EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0 && run.wrong == 0);
		scene_end(s);
	}
}

TEST(arguments_arrive_to_the_byte_and_the_rest_is_zero)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1);

	resident_start(&s->resident);
	for (uint32_t bytes = 0; bytes <= P2PMOD_PACKET_ARGUMENTS; bytes++) {
		struct caller_submit c = {.lane = lane, .context = contexts[bytes % CONTEXTS], .bytes = bytes};
		uint32_t words[16] = {};
		struct caller_reply reply;

		memset(c.arguments, 0xee, sizeof(c.arguments));
		c.arguments[0] = DEVICE_FOLD_MOST;
		c.arguments[1] = c.arguments[2] = c.arguments[3] = 0;
		memcpy(words, c.arguments, bytes);
		ASSERT(ioctl(s->caller, CALLER_SUBMIT, &c) == 0);
		ASSERT(wait_reply(s, lane, c.sequence, 10000, &reply) == 0);
		EXPECT(reply.value == device_fold(words));
	}
	scene_end(s);
}

TEST(a_call_writes_device_memory)
{
	struct scene *s = scene_new(2);
	uint32_t lane = lane_new(s, 0, SLOTS, 1);
	struct caller_submit c = {.lane = lane, .context = CALLER_TIMER, .function = DEVICE_WRITE,
				  .bytes = 8};
	const uint32_t words[2] = {20000, 0xc0ffee};
	struct caller_reply reply;

	resident_start(&s->resident);
	memcpy(c.arguments, words, sizeof(words));
	ASSERT(ioctl(s->caller, CALLER_SUBMIT, &c) == 0);
	ASSERT(wait_reply(s, lane, c.sequence, 10000, &reply) == 0);
	EXPECT(((volatile uint32_t *)s->gpu.view)[20000] == 0xc0ffee);
	scene_end(s);
}

/* ---- the ring is full; replies are waited for ---- */

TEST(a_full_ring_says_so_until_a_reply_is_fetched)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence[SLOTS], more;
	struct caller_reply reply;

	s->resident.mute = 1;
	resident_start(&s->resident);
	for (int i = 0; i < SLOTS; i++)
		ASSERT(submit(s, lane, contexts[i % CONTEXTS], P2PMOD_FUNCTION_NOTHING, 0, &sequence[i]) == 0);
	for (int i = 0; i < CONTEXTS; i++) {
		EXPECT_ERRNO(EAGAIN, submit(s, lane, contexts[i], P2PMOD_FUNCTION_NOTHING, 0, &more));
		EXPECT_ERRNO(EINPROGRESS, poll_reply(s, lane, contexts[i], sequence[i], &reply));
	}
	s->resident.mute = 0;
	ASSERT(wait_reply(s, lane, sequence[SLOTS - 1], 10000, &reply) == 0);
	/* all are answered, but the first one's reply is still wanted */
	EXPECT_ERRNO(EAGAIN, submit(s, lane, CALLER_PROCESS, P2PMOD_FUNCTION_NOTHING, 0, &more));
	for (int i = 0; i < SLOTS - 1; i++)
		EXPECT(poll_reply(s, lane, contexts[i % CONTEXTS], sequence[i], &reply) == 0);
	EXPECT(submit(s, lane, CALLER_PROCESS, P2PMOD_FUNCTION_NOTHING, 0, &more) == 0);
	EXPECT(more == SLOTS + 1);
	scene_end(s);
}

TEST(calls_that_nobody_asks_for_free_their_slot_when_answered)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;
	int full = 0;

	s->resident.mute = 1;
	resident_start(&s->resident);
	for (int i = 0; i < SLOTS; i++)
		ASSERT(submit(s, lane, contexts[i % CONTEXTS], P2PMOD_FUNCTION_NOTHING, 0, NULL) == 0);
	EXPECT_ERRNO(EAGAIN, submit(s, lane, CALLER_TASKLET, P2PMOD_FUNCTION_NOTHING, 0, NULL));
	EXPECT_ERRNO(ENOENT, poll_reply(s, lane, CALLER_PROCESS, 3, &reply));
	s->resident.mute = 0;
	for (int i = 0; i < 10 * SLOTS; i++)
		while (submit(s, lane, CALLER_PROCESS, P2PMOD_FUNCTION_NOTHING, 0, NULL)) {
			ASSERT(errno == EAGAIN && full++ < 100000);
			usleep(50);
		}
	while (submit(s, lane, CALLER_PROCESS, DEVICE_FOLD, 0, &sequence)) {
		ASSERT(errno == EAGAIN && full++ < 100000);
		usleep(50);
	}
	EXPECT(sequence == 11 * SLOTS + 1);
	ASSERT(wait_reply(s, lane, sequence, 10000, &reply) == 0);
	EXPECT(reply.value == device_fold((uint32_t[]){0}));
	scene_end(s);
}

TEST(waiting_ends_in_time_and_can_be_repeated)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;
	uint64_t start;

	s->resident.mute = 1;
	resident_start(&s->resident);
	ASSERT(submit(s, lane, CALLER_PROCESS, DEVICE_REFUSE, 0, &sequence) == 0);
	EXPECT_ERRNO(ETIMEDOUT, wait_reply(s, lane, sequence, 0, &reply));
	start = now_ns();
	EXPECT_ERRNO(ETIMEDOUT, wait_reply(s, lane, sequence, 200, &reply));
	EXPECT(now_ns() - start >= 190 * 1000000ull && now_ns() - start < PATIENCE_NS);
	s->resident.mute = 0;
	EXPECT(wait_reply(s, lane, sequence, UINT32_MAX, &reply) == 0);
	EXPECT(reply.status == P2PMOD_STATUS_ARGUMENT && reply.value == 0);
	scene_end(s);
}

TEST(a_killed_waiter_goes_at_once)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;
	uint64_t start;
	pid_t child;

	ASSERT(submit(s, lane, CALLER_PROCESS, DEVICE_FOLD, 0, &sequence) == 0);
	child = fork();
	if (!child) {
		wait_reply(s, lane, sequence, 500000, &reply);
		_exit(1);
	}
	usleep(100000);
	start = now_ns();
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	EXPECT(now_ns() - start < PATIENCE_NS);
	EXPECT_ERRNO(EINPROGRESS, poll_reply(s, lane, CALLER_PROCESS, sequence, &reply));
	scene_end(s);
}

/* ---- what is refused ---- */

TEST(attaching_checks_every_field)
{
	struct scene *s = scene_new(2);
	const size_t ring = SLOTS * sizeof(struct p2pmod_packet);
	char *device = p2p_map(s->p2p, &s->pin, 0, s->gpu.length);
	char *readable = mmap(NULL, CPU_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *two = reply_memory(2 * CPU_PAGE);
	const struct { size_t packets; uint64_t replies; uint32_t slots, first; int error; } cases[] = {
		{32, (uintptr_t)s->replies, SLOTS, 1, EINVAL},
		{1, (uintptr_t)s->replies, SLOTS, 1, EINVAL},
		{0, (uintptr_t)s->replies, 0, 1, EINVAL},
		{0, (uintptr_t)s->replies, 1, 1, EINVAL},
		{0, (uintptr_t)s->replies, 3, 1, EINVAL},
		{0, (uintptr_t)s->replies, SLOTS + 1, 1, EINVAL},
		{0, (uintptr_t)s->replies, 2 * P2PMOD_LANE_SLOTS_MAX, 1, EINVAL},
		{0, (uintptr_t)s->replies, UINT32_MAX, 1, EINVAL},
		{0, (uintptr_t)s->replies, 1u << 31, 1, EINVAL},
		{s->gpu.length, (uintptr_t)s->replies, SLOTS, 1, ERANGE},
		{s->gpu.length - ring + 64, (uintptr_t)s->replies, SLOTS, 1, ERANGE},
		{UINT64_MAX - 63, (uintptr_t)s->replies, SLOTS, 1, ERANGE},
		{0, (uintptr_t)s->replies, P2PMOD_LANE_SLOTS_MAX, 1, ERANGE},
		{0, (uintptr_t)s->replies + 8, SLOTS, 1, EINVAL},
		{0, 0, SLOTS, 1, EFAULT},
		{0, UINT64_MAX - 15, SLOTS, 1, EFAULT},
		{0, UINT64_MAX - 4095, 256, 1, EFAULT},
		{0, 0xffff888000000000ull, SLOTS, 1, EFAULT}, /* the kernel's own memory */
		{0, 0x7ffffffff000ull - 64, SLOTS, 1, EFAULT},
		{0, (uintptr_t)readable, SLOTS, 1, EFAULT},
		{0, (uintptr_t)two + CPU_PAGE - 64, SLOTS, 1, EFAULT}, /* the second page is gone */
		{0, (uintptr_t)device, SLOTS, 1, EFAULT}, /* no host memory */
		{0, (uintptr_t)s->replies, SLOTS, 2, EBUSY}, /* call 1 is not answered */
		{0, (uintptr_t)s->replies, SLOTS, 0, EBUSY},
		{0, (uintptr_t)s->replies, SLOTS, UINT32_MAX, EBUSY},
	};
	struct caller_attach a;

	ASSERT(device != MAP_FAILED && readable != MAP_FAILED);
	munmap(two + CPU_PAGE, CPU_PAGE);
	memset(s->replies, 0, CPU_PAGE);
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		a = describe(s, cases[i].packets, (void *)cases[i].replies, cases[i].slots,
			     cases[i].first);
		if (ioctl(s->caller, CALLER_ATTACH, &a) != -1 || errno != cases[i].error)
			EXPECT(!DIAG("case %zu: errno %d, not %d", i, errno, cases[i].error));
	}
	a = describe(s, 0, s->replies, SLOTS, 1);
	a.fd = 999;
	EXPECT_ERRNO(EBADF, ioctl(s->caller, CALLER_ATTACH, &a));
	a.fd = s->gpu.fd;
	EXPECT_ERRNO(EBADF, ioctl(s->caller, CALLER_ATTACH, &a));
	a = describe(s, 0, s->replies, SLOTS, 1);
	a.handle++;
	EXPECT_ERRNO(ENOENT, ioctl(s->caller, CALLER_ATTACH, &a));
	/* a reply to a later call is there already */
	((struct p2pmod_reply *)s->replies)[5].sequence = 5;
	a = describe(s, 0, s->replies, SLOTS, 1);
	EXPECT_ERRNO(EBUSY, ioctl(s->caller, CALLER_ATTACH, &a));
	((struct p2pmod_reply *)s->replies)[5].sequence = 0;
	EXPECT(counter("lanes") == 0 && pages_pinned() == 0);

	/* and after all that it works; the last place that fits, too */
	lane_new(s, 0, SLOTS, 1);
	lane_new(s, s->gpu.length - ring, SLOTS, 1);
	EXPECT(counter("lanes") == 2 && pages_pinned() == 2);
	gpu_free(&s->gpu);
	a = describe(s, ring, s->replies, SLOTS, 1);
	EXPECT_ERRNO(ENODEV, ioctl(s->caller, CALLER_ATTACH, &a));
	munmap(device, s->gpu.length);
	scene_end(s);
	EXPECT(counter("lanes") == 0 && pages_pinned() == 0);
}

TEST(alignment_is_that_of_the_device_address)
{
	struct scene *s = scene_new(1);
	struct p2pmod_pin pin;
	struct caller_attach a;

	ASSERT(p2p_pin(s->p2p, s->gpu.va + 4096 + 32, 20000, &pin) == 0);
	a = describe(s, 0, s->replies, SLOTS, 1);
	a.handle = pin.handle;
	EXPECT_ERRNO(EINVAL, ioctl(s->caller, CALLER_ATTACH, &a));
	a.packets = 96; /* device address: 128 after a multiple of 4096 */
	resident_add(&s->resident, 4096 + 128, s->replies, SLOTS, 1);
	ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	resident_start(&s->resident);
	struct caller_run run = run_of(a.lane, CALLER_TIMER, 100, 4);

	EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0 && run.wrong == 0);
	scene_end(s);
}

TEST(a_lane_has_one_caller)
{
	struct scene *s = scene_new(1);
	const size_t ring = SLOTS * sizeof(struct p2pmod_packet);
	const int offsets[] = {-(int)ring + 64, -64, 0, 64, (int)ring - 64};
	int other = open(CALLER_NODE, O_RDWR | O_CLOEXEC);
	struct caller_detach d = {};
	struct caller_attach a;

	lane_new(s, 2 * ring, SLOTS, 1);
	for (int i = 0; i < 5; i++) {
		a = describe(s, 2 * ring + offsets[i], (char *)s->replies + CPU_PAGE, SLOTS, 1);
		EXPECT_ERRNO(EBUSY, ioctl(other, CALLER_ATTACH, &a));
	}
	lane_new(s, ring, SLOTS, 1); /* its neighbours are free */
	lane_new(s, 3 * ring, SLOTS, 1);
	ASSERT(ioctl(s->caller, CALLER_DETACH, &d) == 0 && d.next == 1);
	a = describe(s, 2 * ring, (char *)s->replies + CPU_PAGE, SLOTS, 1);
	EXPECT(ioctl(other, CALLER_ATTACH, &a) == 0);
	close(other);
	scene_end(s);
}

TEST(lanes_share_no_memory_however_it_is_named)
{
	struct scene *s = scene_new(2);
	const size_t ring = SLOTS * sizeof(struct p2pmod_packet), at = GPU_PAGE - ring / 2;
	char *elsewhere = (char *)s->replies + 16 * CPU_PAGE;
	struct p2pmod_pin again;
	struct caller_attach a;
	char *twice;
	int memory;

	/* the same memory pinned once more, on another file, from another address on */
	int file = p2p_open();

	ASSERT(p2p_pin(file, s->gpu.va + 64, s->gpu.length - 64, &again) == 0);
	lane_new(s, at, SLOTS, 1); /* across two GPU pages */
	for (size_t offset = at - ring + 64; offset < at + ring; offset += 64) {
		a = describe(s, offset - 64, elsewhere, SLOTS, 1);
		a.fd = file;
		a.handle = again.handle;
		EXPECT_ERRNO(EBUSY, ioctl(s->caller, CALLER_ATTACH, &a));
	}
	a.packets = at + ring - 64; /* just behind it */
	EXPECT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);

	/* replies: any slot of them, through another mapping of the same pages */
	memory = memfd_create("replies", 0);
	ASSERT(memory >= 0 && ftruncate(memory, 4 * CPU_PAGE) == 0);
	twice = mmap(NULL, 4 * CPU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	ASSERT(twice != MAP_FAILED);
	a = describe(s, 2 * ring, mmap(NULL, 4 * CPU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0),
		     SLOTS, 1);
	a.replies += CPU_PAGE - 8 * sizeof(struct p2pmod_reply);
	ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	for (int slot = 1 - SLOTS; slot < SLOTS; slot++) {
		a = describe(s, 4 * ring, twice + CPU_PAGE + (slot - 8) * sizeof(struct p2pmod_reply), SLOTS, 1);
		EXPECT_ERRNO(EBUSY, ioctl(s->caller, CALLER_ATTACH, &a));
	}
	a = describe(s, 4 * ring, twice + CPU_PAGE + 8 * sizeof(struct p2pmod_reply), SLOTS, 1);
	EXPECT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	close(memory);

	/* a lane whose packets were revoked keeps its replies until it is detached */
	struct scene *other = scene_new(1);

	gpu_free(&s->gpu);
	a = describe(other, 0, twice + CPU_PAGE, SLOTS, 1);
	EXPECT_ERRNO(EBUSY, ioctl(other->caller, CALLER_ATTACH, &a));
	a.replies += 3 * CPU_PAGE / 2;
	EXPECT(ioctl(other->caller, CALLER_ATTACH, &a) == 0);
	scene_end(other);
	scene_end(s);
	close(file);
	EXPECT(gpu_pins() == 0 && counter("lanes") == 0 && pages_pinned() == 0);
}

/*
 * A window is reserved with a type, and every mapping of the page gets that one: so a window of a pin that is
 * to be uncached must be, and of any other write-combined.
 */
TEST(a_window_leaves_an_uncached_pin_uncached)
{
	static const uint32_t flags[] = {0, P2PMOD_PIN_UNCACHED, P2PMOD_PIN_UNCACHED | P2PMOD_PIN_PERSISTENT};

	for (int i = 0; i < 3; i++) {
		struct scene *s = scene_new(1);
		struct gpu gpu = gpu_alloc(GPU_PAGE);
		struct p2pmod_pin pin;
		volatile uint8_t *before, *map;
		struct p2pmod_status status;
		char type[64] = "none";
		uint64_t bus;

		if (p2p_pin_flags(s->p2p, gpu.va, gpu.length, flags[i], &pin)) {
			EXPECT(errno == EOPNOTSUPP && flags[i] & P2PMOD_PIN_PERSISTENT);
			scene_end(s);
			continue;
		}
		bus = first_bus(s->p2p, pin.handle);
		if (reservations(bus, NULL) < 0) {
			DIAG("this kernel lists no types of memory");
			return;
		}
		before = p2p_map(s->p2p, &pin, 0, CPU_PAGE);
		ASSERT(before != MAP_FAILED);
		before[1] = 11;
		struct caller_attach a = describe(s, 0, s->replies, SLOTS, 1);

		a.handle = pin.handle;
		ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
		map = p2p_map(s->p2p, &pin, 0, GPU_PAGE);
		ASSERT(map != MAP_FAILED);
		map[GPU_PAGE - 1] = 12;
		EXPECT(before[1] == 11 && gpu.view[GPU_PAGE - 1] == 12);
		EXPECT(reservations(bus, type) >= 1); /* the window's */
		DIAG("flags %u: %s", flags[i], type);
		EXPECT(!strcmp(type, "write-combining") == !(flags[i] & P2PMOD_PIN_UNCACHED));
		EXPECT(p2p_status(s->p2p, pin.handle, &status) == 0);
		EXPECT(!(status.state & P2PMOD_STATE_WRITE_COMBINED) == !!(flags[i] & P2PMOD_PIN_UNCACHED));
		munmap((void *)before, CPU_PAGE);
		munmap((void *)map, GPU_PAGE);
		scene_end(s);
		EXPECT(reservations(bus, NULL) == 0);
	}
}

/* Serves page faults of a range of memory, after a while each. */
struct pager {
	int fd;
	unsigned served;
};

static void *pager_thread(void *argument)
{
	struct pager *pager = argument;
	struct uffd_msg message;

	while (read(pager->fd, &message, sizeof(message)) == sizeof(message)) {
		struct uffdio_zeropage zero = {
			.range = {message.arg.pagefault.address & ~(CPU_PAGE - 1), CPU_PAGE},
		};

		if (message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		usleep(20000);
		if (ioctl(pager->fd, UFFDIO_ZEROPAGE, &zero) == 0)
			pager->served++;
	}
	return NULL;
}

TEST(replies_that_user_space_pages_in_are_waited_for)
{
	struct scene *s = scene_new(2);
	const size_t bytes = 1024 * sizeof(struct p2pmod_reply) + CPU_PAGE;
	char *replies = reply_memory(bytes);
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register watched = {.range = {(uintptr_t)replies, bytes},
					  .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct caller_attach a = describe(s, 0, replies + CPU_PAGE - 64, 1024, 1);
	struct pager pager = {.fd = syscall(SYS_userfaultfd, O_CLOEXEC)};
	pthread_t thread;

	ASSERT(pager.fd >= 0 && ioctl(pager.fd, UFFDIO_API, &api) == 0);
	ASSERT(ioctl(pager.fd, UFFDIO_REGISTER, &watched) == 0);
	ASSERT(pthread_create(&thread, NULL, pager_thread, &pager) == 0);
	a.first = 1;
	ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	EXPECT(pager.served == bytes / CPU_PAGE);
	ASSERT(ioctl(pager.fd, UFFDIO_UNREGISTER, &watched.range) == 0);
	resident_add(&s->resident, 0, replies + CPU_PAGE - 64, 1024, 1);
	resident_start(&s->resident);
	struct caller_run run = run_of(a.lane, CALLER_INTERRUPT, 200, 64);

	EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0 && run.wrong == 0);
	scene_end(s);
	EXPECT(pages_pinned() == 0);
}

TEST(the_number_of_lanes_is_limited)
{
	struct scene *s = scene_new(1);
	struct caller_attach a;

	ASSERT(parameter("max_lanes", "2") == 0);
	lane_new(s, 0, 2, 1);
	lane_new(s, 128, 2, 1);
	a = describe(s, 256, (char *)s->replies + CPU_PAGE, 2, 1);
	EXPECT_ERRNO(ENOSPC, ioctl(s->caller, CALLER_ATTACH, &a));
	ASSERT(parameter("max_lanes", "1024") == 0);
	EXPECT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	scene_end(s);
	EXPECT(counter("lanes") == 0);
}

TEST(submitting_checks_every_argument_in_each_context)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	static const uint32_t sizes[] = {57, 64, 65, 4096, INT32_MAX, UINT32_MAX};
	struct caller_submit c;

	for (int i = 0; i < CONTEXTS; i++) {
		for (int k = 0; k < 6; k++) {
			c = (struct caller_submit){.lane = lane, .context = contexts[i],
						   .bytes = sizes[k]};
			EXPECT_ERRNO(E2BIG, ioctl(s->caller, CALLER_SUBMIT, &c));
		}
		c = (struct caller_submit){.lane = lane, .context = contexts[i], .bytes = 1,
					   .no_arguments = 1};
		EXPECT_ERRNO(EINVAL, ioctl(s->caller, CALLER_SUBMIT, &c));
		EXPECT_ERRNO(EINVAL, submit(s, lane, contexts[i], P2PMOD_FUNCTION_STOP, 0, &sequence));
	}
	/* nothing has changed */
	for (int i = 0; i < 16; i++)
		EXPECT(((volatile uint32_t *)s->gpu.view)[16 + i] == 0);
	c = (struct caller_submit){.lane = lane, .no_arguments = 1};
	EXPECT(ioctl(s->caller, CALLER_SUBMIT, &c) == 0 && c.sequence == 1);
	scene_end(s);
}

TEST(a_reply_is_asked_for_by_its_number_only)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;
	const uint32_t wrong[] = {0, 2, 17, 1 - SLOTS, 1 + 2 * SLOTS, UINT32_MAX, 1u << 31};

	resident_start(&s->resident);
	ASSERT(submit(s, lane, CALLER_PROCESS, DEVICE_FOLD, 0, &sequence) == 0 && sequence == 1);
	for (int i = 0; i < 7; i++) {
		EXPECT_ERRNO(ENOENT, poll_reply(s, lane, contexts[i % CONTEXTS], wrong[i], &reply));
		EXPECT_ERRNO(ENOENT, wait_reply(s, lane, wrong[i], 1000, &reply));
	}
	EXPECT(wait_reply(s, lane, 1, 10000, &reply) == 0);
	scene_end(s);
}

/* ---- revoked, detached, unmapped, dead ---- */

TEST(revoking_with_calls_in_flight_from_every_context)
{
	int answered = 0, ended = 0;

	for (int round = 0; round < 60; round++) {
		struct scene *s = scene_new(2);
		uint32_t lanes[2] = {lane_new(s, 0, SLOTS, 1), lane_new(s, GPU_PAGE - 64, SLOTS, 1)};
		struct runner runners[2 * CONTEXTS] = {};
		uint32_t sequence;
		char *before;

		resident_start(&s->resident);
		for (int i = 0; i < 2 * CONTEXTS; i++)
			runner_start(&runners[i], s->caller,
				     run_of(lanes[i / CONTEXTS], contexts[i % CONTEXTS], 100000000, 5 + round));
		usleep(1000 + round * 300);
		if (round % 3 == 0)
			gpu_free(&s->gpu);
		else if (round % 3 == 1)
			ASSERT(standin_control(s->gpu.fd, STANDIN_REVOKE, 0) == 0);
		else
			ASSERT(standin_control(s->gpu.fd, STANDIN_REVOKE, 1 + round % 5) == 0);
		while (gpu_pins()) /* from another thread; the driver counts down after the callback */
			usleep(1000);
		/* from here on the memory is not the kernel's to touch */
		before = malloc(s->gpu.length);
		memcpy(before, (char *)s->gpu.view, s->gpu.length);
		for (int i = 0; i < 2 * CONTEXTS; i++) {
			EXPECT(runner_end(&runners[i]) == ENODEV);
			EXPECT(runners[i].run.wrong == 0);
			answered += runners[i].run.answered;
			ended++;
		}
		for (int i = 0; i < CONTEXTS; i++)
			EXPECT_ERRNO(ENODEV, submit(s, lanes[0], contexts[i], DEVICE_FOLD, 0, &sequence));
		if (!EXPECT(memcmp(before, (char *)s->gpu.view, s->gpu.length) == 0))
			DIAG("round %d", round);
		free(before);
		scene_end(s);
	}
	DIAG("%d runs ended by revoking, %d calls answered before", ended, answered);
	EXPECT(answered > 100);
	EXPECT(gpu_pins() == 0 && counter("lanes") == 0 && pages_pinned() == 0);
}

TEST(a_reply_that_came_before_revoking_can_be_fetched)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), first, second;
	struct caller_reply reply;

	ASSERT(submit(s, lane, CALLER_TIMER, DEVICE_FOLD, 0, &first) == 0);
	while (!resident_look(&s->resident))
		;
	ASSERT(submit(s, lane, CALLER_TIMER, DEVICE_FOLD, 0, &second) == 0);
	gpu_free(&s->gpu);
	EXPECT(poll_reply(s, lane, CALLER_TASKLET, first, &reply) == 0);
	EXPECT(reply.value == device_fold((uint32_t[]){0}));
	EXPECT_ERRNO(ENODEV, poll_reply(s, lane, CALLER_TASKLET, second, &reply));
	EXPECT_ERRNO(ENODEV, wait_reply(s, lane, second, 500000, &reply));
	scene_end(s);
}

TEST(revoking_ends_a_wait)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;
	uint64_t start = now_ns();

	ASSERT(submit(s, lane, CALLER_PROCESS, DEVICE_FOLD, 0, &sequence) == 0);
	ASSERT(standin_control(s->gpu.fd, STANDIN_REVOKE, 100) == 0);
	EXPECT_ERRNO(ENODEV, wait_reply(s, lane, sequence, 500000, &reply));
	EXPECT(now_ns() - start < 10000 * 1000000ull);
	scene_end(s);
}

TEST(unpinning_leaves_the_lane_its_memory)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1);
	struct caller_run run = run_of(lane, CALLER_TASKLET, 300, 10);

	resident_start(&s->resident);
	EXPECT(p2p_unpin(s->p2p, s->pin.handle) == 0);
	close(s->p2p);
	EXPECT(gpu_pins() == 1);
	EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0 && run.wrong == 0);
	scene_end(s);
	EXPECT(gpu_pins() == 0);
}

TEST(detaching_with_calls_in_flight_and_attaching_again)
{
	uint32_t first = UINT32_MAX - 40;

	for (int round = 0; round < 30; round++) {
		struct scene *s = scene_new(1);
		uint32_t lane = lane_new(s, 0, SLOTS, first), sequence;
		struct caller_detach d = {.lane = lane};
		struct caller_attach a;
		struct caller_run run;
		int sent = 1 + round % SLOTS, tries = 0;

		s->resident.mute = round % 2;
		resident_start(&s->resident);
		for (int i = 0; i < sent; i++)
			ASSERT(submit(s, lane, contexts[i % CONTEXTS], DEVICE_SLEEP, 100, &sequence) == 0);
		ASSERT(ioctl(s->caller, CALLER_DETACH, &d) == 0);
		EXPECT(d.next == first + sent);
		EXPECT_ERRNO(ENOENT, submit(s, lane, CALLER_PROCESS, DEVICE_FOLD, 0, &sequence));
		if (round % 2) { /* not one is answered yet: the lane is not quiet */
			a = describe(s, 0, s->replies, SLOTS, d.next);
			EXPECT_ERRNO(EBUSY, ioctl(s->caller, CALLER_ATTACH, &a));
			s->resident.mute = 0;
		}
		for (;;) {
			a = describe(s, 0, s->replies, SLOTS, d.next);
			if (ioctl(s->caller, CALLER_ATTACH, &a) == 0)
				break;
			ASSERT(errno == EBUSY && tries++ < 10000);
			usleep(500);
		}
		run = run_of(a.lane, contexts[round % CONTEXTS], 50, 30);
		EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0 && run.wrong == 0);
		scene_end(s);
		first += 3;
	}
	EXPECT(gpu_pins() == 0 && counter("lanes") == 0 && pages_pinned() == 0);
}

/* The GPU holds the reply pages itself: what the process does with its own mapping is nothing to it. */
TEST(replies_unmapped_by_the_process_still_arrive)
{
	struct scene *s = scene_new(1);
	int memory = memfd_create("replies", MFD_CLOEXEC);
	struct caller_attach a;
	struct caller_run run;
	char *mine, *gpus;

	ASSERT(memory >= 0 && ftruncate(memory, 3 * CPU_PAGE) == 0);
	mine = mmap(NULL, 3 * CPU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	gpus = mmap(NULL, 3 * CPU_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	ASSERT(mine != MAP_FAILED && gpus != MAP_FAILED);
	resident_add(&s->resident, 0, gpus + 64, 512, 1);
	a = describe(s, 0, mine + 64, 512, 1);
	ASSERT(ioctl(s->caller, CALLER_ATTACH, &a) == 0);
	EXPECT(pages_pinned() == (long long)((64 + 512 * sizeof(struct p2pmod_reply) - 1) / CPU_PAGE + 1));
	munmap(mine, 3 * CPU_PAGE);
	close(memory);
	resident_start(&s->resident);
	run = run_of(a.lane, CALLER_TIMER, 1200, 60);
	EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0);
	EXPECT(run.answered == 1200 && run.wrong == 0);
	scene_end(s);
	EXPECT(pages_pinned() == 0);
}

TEST(replies_unmapped_and_gone_are_waited_for_in_vain)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;

	ASSERT(submit(s, lane, CALLER_PROCESS, DEVICE_FOLD, 0, &sequence) == 0);
	munmap(s->replies, s->reply_bytes);
	for (int i = 0; i < 50; i++) /* the pages must not have become anybody else's */
		memset(reply_memory(64 * CPU_PAGE), 1, 64 * CPU_PAGE);
	for (int i = 0; i < CONTEXTS; i++)
		EXPECT_ERRNO(EINPROGRESS, poll_reply(s, lane, contexts[i], sequence, &reply));
	EXPECT_ERRNO(ETIMEDOUT, wait_reply(s, lane, sequence, 50, &reply));
	s->replies = reply_memory(s->reply_bytes);
	scene_end(s);
	EXPECT(pages_pinned() == 0);
}

TEST(a_fork_does_not_part_the_kernel_from_the_replies)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1);
	struct caller_run run = run_of(lane, CALLER_PROCESS, 100, 10);
	pid_t child;

	/* a child shares the pages copy-on-write, and the GPU writes the parent's */
	child = fork();
	if (!child) {
		pause();
		_exit(0);
	}
	resident_start(&s->resident);
	EXPECT(ioctl(s->caller, CALLER_RUN, &run) == 0);
	EXPECT(run.answered == 100 && run.wrong == 0);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	scene_end(s);
}

/* Another process holds the calling module's file open: the lane outlives the one that made it. */
TEST(the_process_exits_while_attached)
{
	for (int round = 0; round < 12; round++) {
		int told[2], gone[2], code = -1;
		pid_t owner;

		ASSERT(pipe(told) == 0 && pipe(gone) == 0);
		owner = fork();
		if (!owner) {
			struct scene *s = scene_new(1);
			uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence = 0;
			struct caller_reply reply;
			char byte;

			s->resident.mute = 1;
			resident_start(&s->resident);
			for (int i = 0; i < 5; i++)
				ASSERT(submit(s, lane, CALLER_TIMER, DEVICE_FOLD, 0, &sequence) == 0);
			if (fork()) {
				s->resident.mute = 0;
				usleep(round * 100);
				kill(getpid(), round % 2 ? SIGKILL : SIGTERM);
				pause();
			}
			/* the other one: no thread, no GPU memory; only the calling module's file */
			close(s->gpu.fd);
			close(s->p2p);
			close(gone[1]);
			ASSERT(read(gone[0], &byte, 1) == 0); /* until the owner is reaped */
			code = 0;
			for (int i = 0; i < CONTEXTS; i++) {
				if (!submit(s, lane, contexts[i], DEVICE_FOLD, 0, &sequence) ||
				    errno != ENODEV)
					code |= 1;
				if (poll_reply(s, lane, contexts[i], 1 + i, &reply) && errno != ENODEV)
					code |= 2;
			}
			if (counter("lanes") != 1)
				code |= 4;
			close(s->caller);
			if (counter("lanes") != 0 || pages_pinned() != 0)
				code |= 8;
			ASSERT(write(told[1], &code, sizeof(code)) == sizeof(code));
			_exit(0);
		}
		close(gone[0]);
		waitpid(owner, NULL, 0);
		close(gone[1]);
		ASSERT(read(told[0], &code, sizeof(code)) == sizeof(code));
		if (!EXPECT(code == 0))
			DIAG("code %#x", code);
		close(told[0]);
		close(told[1]);
	}
	EXPECT(gpu_pins() == 0);
}

TEST(the_process_is_killed_with_calls_in_flight)
{
	for (int round = 0; round < 25; round++) {
		pid_t child = fork();

		if (!child) {
			struct scene *s = scene_new(1);
			uint32_t lane = lane_new(s, 0, SLOTS, 1);
			struct runner runners[CONTEXTS];

			resident_start(&s->resident);
			for (int i = 0; i < CONTEXTS; i++)
				runner_start(&runners[i], s->caller,
					     run_of(lane, contexts[i], 100000000, 20));
			pause();
		}
		usleep(3000 + 1500 * round);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	EXPECT(gpu_pins() == 0 && counter("lanes") == 0 && pages_pinned() == 0);
}

/* The replies are the process's memory: whatever it writes there, only its own calls suffer. */
TEST(a_process_that_forges_replies_harms_only_itself)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1);
	volatile uint32_t *words = s->replies;
	struct runner runners[CONTEXTS] = {};
	uint64_t until = now_ns() + 2000000000ull, x = 1605;
	struct caller_reply reply;

	resident_start(&s->resident);
	for (int i = 0; i < CONTEXTS; i++) {
		struct caller_run run = run_of(lane, contexts[i], 100000000, 20);

		run.timeout_ms = 2500;
		runner_start(&runners[i], s->caller, run);
	}
	while (now_ns() < until) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		words[(x >> 33) % (SLOTS * 4)] = (x >> 40) % 3000;
	}
	for (int i = 0; i < CONTEXTS; i++) {
		EXPECT(runner_end(&runners[i]) == ETIMEDOUT);
		EXPECT(runners[i].run.answered <= runners[i].run.sent);
	}
	for (uint32_t i = 0; i < 100; i++)
		poll_reply(s, lane, CALLER_PROCESS, i, &reply);
	scene_end(s);
	EXPECT(gpu_pins() == 0 && pages_pinned() == 0);
}

/* ---- the example: work scheduled by priority ---- */

struct progress {
	unsigned int queued, flying, answered, failed;
	int error;
};

static struct progress progress_of(int fd, const char *name)
{
	struct progress p = {};
	char text[1024] = {}, *line;

	ASSERT(pread(fd, text, sizeof(text) - 1, 0) > 0);
	line = strstr(text, name);
	ASSERT(line && sscanf(line + strlen(name), "%u %u %u %u %d", &p.queued, &p.flying,
			      &p.answered, &p.failed, &p.error) == 5);
	return p;
}

static int tell(int fd, const char *format, ...)
{
	char text[256];
	va_list words;
	int n;

	va_start(words, format);
	n = vsnprintf(text, sizeof(text), format, words);
	va_end(words);
	return write(fd, text, n) == n ? 0 : -1;
}

TEST(the_example_lets_urgent_calls_pass)
{
	struct scene *s = scene_new(1);
	char *replies = (char *)s->replies + CPU_PAGE;
	int fd = open("/proc/p2pmod_priority", O_RDWR | O_CLOEXEC), tries = 0;
	struct progress urgent, bulk = {}, before, now;

	ASSERT(fd >= 0);
	EXPECT_ERRNO(ENXIO, tell(fd, "call urgent 1 0 0"));
	resident_add(&s->resident, 0, s->replies, SLOTS, 1);
	resident_add(&s->resident, GPU_PAGE / 2, replies, SLOTS, 1);
	ASSERT(tell(fd, "lane urgent %d %u 0 %d %llu", s->p2p, s->pin.handle, SLOTS,
		    (unsigned long long)(uintptr_t)s->replies) == 0);
	ASSERT(tell(fd, "lane bulk %d %u %zu %d %llu", s->p2p, s->pin.handle, GPU_PAGE / 2, SLOTS,
		    (unsigned long long)(uintptr_t)replies) == 0);
	EXPECT_ERRNO(EBUSY, tell(fd, "lane bulk %d %u 0 16 0", s->p2p, s->pin.handle));
	EXPECT_ERRNO(EINVAL, tell(fd, "call nobody 1 0 0"));
	EXPECT_ERRNO(EINVAL, tell(fd, "call bulk 1 65536 0"));
	resident_start(&s->resident);

	ASSERT(tell(fd, "call bulk 1000 %d 3000", DEVICE_SLEEP) == 0);
	EXPECT_ERRNO(EBUSY, tell(fd, "call bulk 1 %d 0", DEVICE_SLEEP));
	usleep(50000);
	ASSERT(tell(fd, "call urgent 100 %d 1000", DEVICE_SLEEP) == 0);
	before = progress_of(fd, "bulk");
	do {
		now = progress_of(fd, "bulk");
		urgent = progress_of(fd, "urgent");
		if (urgent.answered < 100) /* then they were not done when bulk was looked at */
			bulk = now;
		usleep(200);
	} while (urgent.answered < 100 && tries++ < 50000);
	EXPECT(urgent.answered == 100 && urgent.failed == 0);
	/* the one that was under way, and none since; the GPU would have done dozens */
	EXPECT(bulk.queued > 0 && bulk.answered >= before.answered);
	EXPECT(bulk.answered <= before.answered + 1);
	DIAG("bulk: %u answered when the urgent calls came, %u when those were", before.answered,
	     bulk.answered);

	ASSERT(tell(fd, "call urgent 3 %d 0", DEVICE_FUNCTIONS) == 0); /* no such function */
	for (tries = 0; progress_of(fd, "urgent").answered < 103 && tries < 50000; tries++)
		usleep(200);
	EXPECT(progress_of(fd, "urgent").failed == 3);
	gpu_free(&s->gpu);
	for (tries = 0; !progress_of(fd, "bulk").error && tries < 50000; tries++)
		usleep(200);
	EXPECT(progress_of(fd, "bulk").error == -ENODEV);
	EXPECT_ERRNO(ENODEV, tell(fd, "call bulk 1 0 0"));
	close(fd);
	scene_end(s);
	EXPECT(gpu_pins() == 0 && counter("lanes") == 0 && pages_pinned() == 0);
}

int main(int argc, char **argv)
{
	return tap_main(argc > 1 ? argv[1] : NULL);
}
