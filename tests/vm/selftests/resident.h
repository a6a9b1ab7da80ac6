/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The emulated GPU's resident kernel: a thread that serves lanes as GPU code would. It sees the
 * packets through the GPU's own view of device memory, never through BAR1; it knows of no lock and of
 * no CPU-side state, takes a packet when its first word and the last one say the number awaited, and
 * answers in host memory.
 */
#ifndef RESIDENT_H
#define RESIDENT_H

#include <pthread.h>
#include <sched.h>

#include "gpu.h"
#include "test/caller.h"

#define LANES_MOST 4

struct ring { /* a lane, as the GPU knows it */
	volatile struct p2pmod_packet *packets;
	volatile struct p2pmod_reply *replies;
	uint32_t slots, next;
	uint64_t taken, half; /* packets; those seen with only one of the two words in place */
};

struct resident {
	struct gpu *gpu;
	struct ring ring[LANES_MOST];
	int rings;
	volatile int stop, mute; /* end; look at nothing for a while */
	pthread_t thread;
};

/* A packet as it is now, word by word in the order of a load; whether it is the one awaited. */
static inline int ring_take(struct ring *ring, struct p2pmod_packet *packet)
{
	volatile uint32_t *from = (volatile uint32_t *)&ring->packets[ring->next & (ring->slots - 1)];
	uint32_t *to = (uint32_t *)packet;
	int first, last;

	for (int i = 0; i < 16; i++) {
		to[i] = from[i];
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
	}
	first = packet->sequence == ring->next;
	last = (packet->tag & 0xffff) == (ring->next & 0xffff);
	ring->half += first != last;
	return first && last;
}

static inline struct p2pmod_reply device_function(struct resident *r, const struct p2pmod_packet *p)
{
	struct p2pmod_reply reply = {.sequence = p->sequence};
	volatile uint32_t *memory = (volatile uint32_t *)r->gpu->view;

	switch (p->tag >> 16) {
	case DEVICE_FOLD:
		reply.value = device_fold(p->words);
		break;
	case DEVICE_REFUSE:
		reply.status = P2PMOD_STATUS_ARGUMENT;
		break;
	case DEVICE_SLEEP:
		usleep(p->words[0]);
		break;
	case DEVICE_WRITE:
		memory[p->words[0] % (r->gpu->length / 4)] = p->words[1];
		__atomic_thread_fence(__ATOMIC_RELEASE);
		break;
	case P2PMOD_FUNCTION_NOTHING:
		break;
	default:
		reply.status = P2PMOD_STATUS_NO_FUNCTION;
	}
	return reply;
}

/* Serve what is there; whether there was something. */
static inline int resident_look(struct resident *r)
{
	int busy = 0;

	for (int i = 0; i < r->rings; i++) {
		struct ring *ring = &r->ring[i];
		struct p2pmod_packet packet;

		if (!ring_take(ring, &packet))
			continue;
		struct p2pmod_reply reply = device_function(r, &packet);
		volatile struct p2pmod_reply *to = &ring->replies[ring->next & (ring->slots - 1)];

		/* a GPU's store of 16 bytes; here the number goes last, and lets nothing pass it */
		to->value = reply.value;
		to->status = reply.status;
		__atomic_store_n((uint32_t *)&to->sequence, reply.sequence, __ATOMIC_RELEASE);
		ring->next++;
		ring->taken++;
		busy = 1;
	}
	return busy;
}

static inline void *resident_thread(void *argument)
{
	struct resident *r = argument;

	for (unsigned idle = 0; !r->stop;) {
		if (!r->mute && resident_look(r))
			idle = 0;
		else if (++idle > 100)
			usleep(50); /* two CPUs emulate everything */
		else
			sched_yield();
	}
	return NULL;
}

/*
 * A lane at an offset of the GPU's memory, whose last call was @first - 1: both rings hold what that
 * call and those before it have left.
 */
static inline void resident_add(struct resident *r, size_t packets, void *replies, uint32_t slots,
				uint32_t first)
{
	struct ring *ring = &r->ring[r->rings++];

	ring->packets = (void *)(r->gpu->view + packets);
	ring->replies = replies;
	ring->slots = slots;
	ring->next = first;
	for (uint32_t i = 0; i < slots; i++) {
		uint32_t last = first - slots + i, slot = last & (slots - 1);

		if (first == 1)
			last = 0; /* zeroed */
		ring->packets[slot].sequence = last;
		ring->packets[slot].tag = last & 0xffff;
		ring->replies[slot].value = 0;
		ring->replies[slot].status = 0;
		ring->replies[slot].sequence = last;
	}
}

static inline void resident_start(struct resident *r)
{
	ASSERT(pthread_create(&r->thread, NULL, resident_thread, r) == 0);
}

static inline void resident_stop(struct resident *r)
{
	r->stop = 1;
	pthread_join(r->thread, NULL);
}

#endif /* RESIDENT_H */
