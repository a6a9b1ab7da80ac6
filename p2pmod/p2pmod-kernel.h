/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The in-kernel interface: other modules use a buffer that a process pinned.
 *
 *   buffer = p2pmod_get(file, handle)      a reference; the pin stays as long as it is held
 *   window = p2pmod_window_open(...)       map all or part of it, write-combined
 *   p2pmod_window_write(window, ...)       stores, from any context
 *   lane = p2pmod_lane_attach(...)         call device functions of a resident kernel
 *   p2pmod_lane_submit(lane, ...)          from any context
 *   p2pmod_put(buffer)                     drop it; may sleep, and takes the driver's lock
 *
 * The driver may revoke the memory at any moment: every access then fails with -ENODEV.
 *
 * A pin is its owner's: the process that pinned. The driver lets nobody else unpin, so where the last
 * reference is dropped elsewhere (by a kernel thread, say), the memory stays pinned, and this module
 * loaded, until the owner frees it, pins again or dies; /proc/driver/p2pmod lists such pins.
 */
#ifndef P2PMOD_KERNEL_H
#define P2PMOD_KERNEL_H

#include <linux/fs.h>
#include <linux/types.h>

#include "p2pmod-lane.h"

struct p2pmod_buffer;
struct p2pmod_lane;
struct p2pmod_window;

/* A reference on buffer @handle of an open /dev/p2pmod, or ERR_PTR: -EBADF, -ENOENT. */
struct p2pmod_buffer *p2pmod_get(struct file *file, u32 handle);
void p2pmod_put(struct p2pmod_buffer *buffer);

u64 p2pmod_length(const struct p2pmod_buffer *buffer); /* bytes as pinned */

/*
 * A window: part of the buffer, mapped into the kernel with the type that processes map it with: -ERANGE,
 * -ENODEV, -ENOMEM. Opening and closing it may sleep; reading and writing do not, and may be done in
 * interrupt context. Closing one that is in use is for the caller to rule out; NULL or an ERR_PTR is
 * passed over. Close it soon after an -ENODEV: until then the range keeps its type, whoever has it by then.
 */
struct p2pmod_window *p2pmod_window_open(struct p2pmod_buffer *buffer, u64 offset, u64 length);
void p2pmod_window_close(struct p2pmod_window *window);
/* @offset from the start of the window. -ERANGE, -ENODEV. Writes are fenced. */
int p2pmod_window_write(struct p2pmod_window *window, u64 offset, const void *data, size_t n);
int p2pmod_window_read(struct p2pmod_window *window, u64 offset, void *data, size_t n);

/*
 * A lane: calls of device functions that a resident kernel answers (p2pmod-lane.h). The process
 * that started that kernel tells the calling module where the lane is; the module attaches while it
 * runs on behalf of that process (in an ioctl of its own, say), and then calls from any context but
 * NMI. What comes back is what the process's memory holds: check a value before it is used.
 */

/**
 * struct p2pmod_lane_description - where a lane is
 * @packets: offset of their ring in the buffer, in bytes; its device address is a multiple of 64
 * @replies: address in the calling process of the ring of replies, a multiple of 16: ordinary
 *	writable memory that the GPU writes to (from cuMemHostAlloc, or page-locked by
 *	cuMemHostRegister). Its pages stay pinned until the lane is detached, even if the process
 *	unmaps them; they are not charged to its RLIMIT_MEMLOCK.
 * @slots: of each ring
 * @first: number of the first call: 1 on a fresh lane, otherwise one more than the last call's,
 *	which must have been answered
 * @told: address in the calling process of the words P2PMOD_TOLD_*, a multiple of 4, in memory
 *	of the same kind as the replies; 0: the kernel that serves the lane never naps
 * @wake_buffer: where the wake word is; the lane takes a reference. Not looked at without @told
 * @wake: offset in that buffer of the wake word, whose device address is a multiple of 4
 */
struct p2pmod_lane_description {
	u64 packets;
	u64 replies;
	u32 slots;
	u32 first;
	u64 told;
	struct p2pmod_buffer *wake_buffer;
	u64 wake;
};

/*
 * Attach to a lane of @buffer, of which it takes a reference. May sleep. ERR_PTR of
 *   -EINVAL   the number of slots, or an alignment; or @told without @wake_buffer
 *   -ERANGE   the packets, or the wake word, are not inside their buffer
 *   -EFAULT   the replies, or the words that tell, are not writable memory of the calling process
 *   -EBUSY    another lane uses some of the same packets or replies, whichever buffer or address
 *             it was given; or the replies do not fit @first: a call before it is not answered
 *   -ENODEV   the buffer was revoked
 *   -ENOSPC   the parameter max_lanes is reached
 *   -ENOMEM
 */
struct p2pmod_lane *p2pmod_lane_attach(struct p2pmod_buffer *buffer,
				       const struct p2pmod_lane_description *description);

/*
 * Detach, with or without calls in flight: the GPU may still answer them. May sleep. That nobody else
 * uses the lane any more is for the caller to see to. Returns the number of the next call.
 */
u32 p2pmod_lane_detach(struct p2pmod_lane *lane);

/*
 * Call device function @function with @bytes of arguments, laid out as its declaration says. Any
 * context; never sleeps. @sequence gets the call's number, whose reply is then kept until it is
 * fetched by poll or wait; NULL: nobody will ask for it. Where the kernel on the GPU naps, this
 * wakes it; poll and wait do so again if it left just then.
 *   -EAGAIN   the ring is full: the slot's reply is not there yet, or was not fetched
 *   -E2BIG    more than P2PMOD_PACKET_ARGUMENTS bytes
 *   -EINVAL   bytes, but no @arguments; or P2PMOD_FUNCTION_STOP, which is for the lane's owner
 *   -ENODEV   the buffer was revoked
 */
int p2pmod_lane_submit(struct p2pmod_lane *lane, u16 function, const void *arguments, size_t bytes,
		       u32 *sequence);

/*
 * Fetch a reply, once. Any context; never sleeps. A reply that was there before the buffer was
 * revoked can still be fetched. reply->status says what became of the call.
 *   -EINPROGRESS   not yet
 *   -ENOENT        no such call: never submitted, without a number, or fetched already
 *   -ENODEV        the buffer was revoked, and this reply will not come
 */
int p2pmod_lane_poll(struct p2pmod_lane *lane, u32 sequence, struct p2pmod_reply *reply);

/*
 * The same, waiting for at most @timeout jiffies (0: look once): it spins for some microseconds,
 * and sleeps then. Process context. Besides: -ETIMEDOUT; -EINTR when the caller is being killed.
 * The reply can then be asked for again.
 */
int p2pmod_lane_wait(struct p2pmod_lane *lane, u32 sequence, unsigned long timeout,
		     struct p2pmod_reply *reply);

#endif /* P2PMOD_KERNEL_H */
