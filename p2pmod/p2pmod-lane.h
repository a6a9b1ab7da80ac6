/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * A lane: calls of device functions, passed from a CPU to a resident kernel as 64-byte packets.
 *
 * One header for the three that speak it: CPU user space, GPU code and the Linux kernel. So it
 * uses only types that all three have.
 *
 *   device memory   struct p2pmod_packet packets[slots]    written by the CPU, polled by the GPU
 *   host memory     struct p2pmod_reply  replies[slots]    written by the GPU, polled by the CPU
 *
 * One caller at a time owns a lane. Its calls are numbered 1, 2, 3, ... (modulo 2^32); call n
 * lives in slot n & (slots - 1) of both rings, and may be sent when the reply to call n - slots
 * was seen. The GPU answers a lane's calls in their order. Both rings start zeroed; slots is a
 * power of two, at least 2 and at most 2^15, so that neither sequence nor tag of a slot's old
 * packet is that of the new one.
 *
 * A packet is taken when its first word says the number awaited and its last word ends in the
 * same number's lower half: one 64-byte store (MOVDIR64B) arrives whole, and if a reader sees
 * the two 32-byte halves at different times, one of the two words is old. A CPU without such a
 * store writes the words between first, fences, and then the first and the last.
 * A reply is one 16-byte store of the GPU.
 *
 * Naps: a resident kernel without calls may leave the GPU. The host memory holds words that tell it,
 * and the device memory a wake word. The rounds of its launches are numbered like calls; when the
 * words P2PMOD_TOLD_BEGUN, P2PMOD_TOLD_ENDED and P2PMOD_TOLD_NAPPED are all equal, nothing is resident.
 * Whoever sends then stores the number of the next round, P2PMOD_TOLD_ENDED + 1, to the wake word,
 * behind the packet; and again whenever the three are found equal anew while the reply is awaited. So a
 * packet that comes just as the kernel decides to leave is not lost: it is there when the next round
 * looks. A caller that does not wait stores once. Wherever a wake is lost all the same (two CPUs may
 * store old numbers over new ones), a waker finds nothing resident, and starts a round within a slice.
 */
#ifndef P2PMOD_LANE_H
#define P2PMOD_LANE_H

#define P2PMOD_PACKET_BYTES 64
#define P2PMOD_PACKET_WORDS 14      /* words of arguments in a packet */
#define P2PMOD_PACKET_ARGUMENTS 56  /* the same in bytes */
#define P2PMOD_REPLY_BYTES 16
#define P2PMOD_LANE_SLOTS_MAX 32768

#define P2PMOD_TOLD_ENDED 0         /* the last round that has ended */
#define P2PMOD_TOLD_OVER 1          /* not 0: no lane is served any more */
#define P2PMOD_TOLD_NAPPED 2        /* the last round that ended for want of calls */
#define P2PMOD_TOLD_BEGUN 3         /* the last round that has begun */
#define P2PMOD_TOLD_CALLED 4        /* the last round that had calls */
#define P2PMOD_TOLD_WORDS 5

struct p2pmod_packet {
	unsigned int sequence;
	unsigned int words[14]; /* arguments, as the function's declaration lays them out */
	unsigned int tag;       /* function << 16 | (sequence & 0xffff) */
};

struct p2pmod_reply {
	unsigned long long value; /* the result, bit for bit in its lower bytes; 0 of void */
	unsigned int status;      /* P2PMOD_STATUS_*; the function's own status above 0xff */
	unsigned int sequence;    /* of the call that this answers */
};

/* Functions are numbered from 0; these are the ring's own. */
#define P2PMOD_FUNCTION_NOTHING 0xfffe /* answered at once, runs nothing */
#define P2PMOD_FUNCTION_STOP 0xffff    /* the lane answers, and ends */

#define P2PMOD_STATUS_OK 0
#define P2PMOD_STATUS_NO_FUNCTION 1 /* no function of this number */
#define P2PMOD_STATUS_ARGUMENT 2    /* the function refused an argument */
#define P2PMOD_STATUS_ASSERT 3      /* an assertion on the device failed; value: its line */
#define P2PMOD_STATUS_STOPPED 4     /* the service had been told to stop */

#endif /* P2PMOD_LANE_H */
