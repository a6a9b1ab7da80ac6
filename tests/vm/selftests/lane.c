// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Calls of device functions from inside the kernel, from every context; what attaching refuses; and
 * revocation, detaching and dying with calls in flight. A thread plays the GPU: see resident.h.
 */
#include "tap.h"

#include <sys/resource.h>

#include "gpu.h"
#include "resident.h"

#define SLOTS 16

static const uint32_t contexts[] = {CALLER_PROCESS, CALLER_TIMER, CALLER_TASKLET};

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

/* ---- calls ---- */

TEST(a_call_is_answered_in_each_context)
{
	struct scene *s = scene_new(1);
	uint32_t lane = lane_new(s, 0, SLOTS, 1), sequence;
	struct caller_reply reply;

	resident_start(&s->resident);
	for (int i = 0; i < 3; i++) {
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
	for (int i = 0; i < 3; i++) {
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

int main(int argc, char **argv)
{
	return tap_main(argc > 1 ? argv[1] : NULL);
}
