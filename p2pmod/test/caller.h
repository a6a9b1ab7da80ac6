/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the tests tell p2pmod_caller, through /proc/p2pmod_caller: attach to lanes, and call device
 * functions from a context of one's choice. Lanes belong to the open file, and go with it.
 *
 * The device functions that the tests' emulated GPU offers are below: caller.c checks every result.
 */
#ifndef P2PMOD_CALLER_H
#define P2PMOD_CALLER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#include "../p2pmod-lane.h"

#define CALLER_NODE "/proc/p2pmod_caller"
#define CALLER_MAGIC 'c'
#define CALLER_LANES 4 /* of an open file */

/* contexts */
#define CALLER_PROCESS 0
#define CALLER_TIMER 1
#define CALLER_TASKLET 2
#define CALLER_INTERRUPT 3 /* of another CPU */

struct caller_attach {
	__u32 fd;      /* of /dev/p2pmod */
	__u32 handle;
	__u64 packets;
	__u64 replies;
	__u32 slots;
	__u32 first;
	__u32 lane;    /* out */
	__u32 wake_handle; /* of the buffer with the wake word */
	__u64 told;    /* 0: no naps */
	__u64 wake;
};

struct caller_detach {
	__u32 lane;
	__u32 next;    /* out: number of the next call */
};

struct caller_submit {
	__u32 lane;
	__u32 context;
	__u32 function;
	__u32 bytes;   /* of arguments; those beyond the 64 that fit here are not looked at */
	__u32 unasked; /* nobody will ask for the reply */
	__u32 no_arguments; /* pass NULL */
	__u32 sequence; /* out */
	__u32 reserved;
	__u8 arguments[64];
};

struct caller_reply {
	__u32 lane;
	__u32 context;
	__u32 sequence;
	__u32 wait;    /* process context: wait for timeout_ms instead of polling */
	__u32 timeout_ms;
	__u32 status;  /* out, and below */
	__u64 value;
};

/* Many calls with random arguments, each reply checked. Fails with what a call failed with. */
struct caller_run {
	__u32 lane;
	__u32 context;
	__u32 calls;
	__u32 ahead;    /* in flight at most */
	__u32 seed;
	__u32 timeout_ms;
	__u32 sent;     /* out, and below */
	__u32 answered;
	__u32 wrong;    /* replies with another value or status than they should have */
	__u32 full;     /* times that the ring was full */
};

#define CALLER_ATTACH _IOWR(CALLER_MAGIC, 0x40, struct caller_attach)
#define CALLER_DETACH _IOWR(CALLER_MAGIC, 0x41, struct caller_detach)
#define CALLER_SUBMIT _IOWR(CALLER_MAGIC, 0x42, struct caller_submit)
#define CALLER_REPLY _IOWR(CALLER_MAGIC, 0x43, struct caller_reply)
#define CALLER_RUN _IOWR(CALLER_MAGIC, 0x44, struct caller_run)

/* ---- the device functions ---- */

#define DEVICE_FOLD 0   /* word 0: number of words after it, up to 13; folds them into a value */
#define DEVICE_REFUSE 1 /* answers P2PMOD_STATUS_ARGUMENT */
#define DEVICE_SLEEP 2  /* word 0: microseconds; answers 0 */
#define DEVICE_WRITE 3  /* word 0: offset of a word in the buffer; word 1: what is stored there */
#define DEVICE_FUNCTIONS 4
#define DEVICE_FOLD_MOST 13

static inline __u64 device_fold(const __u32 *words)
{
	__u64 value = 0xcbf29ce484222325ull;
	__u32 i;

	for (i = 0; i <= words[0] && i <= DEVICE_FOLD_MOST; i++)
		value = (value ^ words[i]) * 0x100000001b3ull;
	return value;
}

#endif /* P2PMOD_CALLER_H */
