/* SPDX-License-Identifier: MIT */
/*
 * Memory of a GPU, and a service on it, that another process shares: attached to with the token that
 * array.share() or service.share_lane() gave there (docs/sharing.md). Needs neither CUDA nor Python here.
 *
 *     struct gd_attached *frames;
 *
 *     if (gd_attach(token, 10000000000, &frames))
 *         return fprintf(stderr, "%s\n", gd_attach_message()), 1;
 *     gd_attached_write(frames, 0, (const char *)row, sizeof(row), 0);
 *
 * Nothing here starts a thread or takes a lock. Any number of threads may read and write; one thread at a
 * time calls through a lane.
 */
#ifndef GPUDIRECT_ATTACH_H
#define GPUDIRECT_ATTACH_H

#include <stddef.h>
#include <stdint.h>

#include "lane.h"

struct gd_attached_function {
    const char *name;
    const char *declaration; /* for people */
    uint32_t number;         /* gd_lane_send() wants it */
    uint32_t size;           /* bytes of its arguments, laid out as a C struct has them */
    uint32_t result_size;    /* bytes of struct p2pmod_reply's value that are its result */
};

/* Made by gd_attach() only, to be read only; it may grow at its end. */
struct gd_attached {
    uintptr_t address;    /* of an array: where it is mapped; gd_write() and its like take it. Else 0 */
    uint64_t device;      /* the same at the device's address: what calls are given */
    uint64_t size;        /* bytes */
    uint32_t itemsize;    /* bytes of an element */
    const char *dtype;    /* NumPy's type string, "<f4" */
    int32_t ndim;         /* elements of shape */
    const int64_t *shape; /* in elements */
    int32_t writable;     /* 0: the mapping is read-only, and a store to it a SIGSEGV */
    int32_t owner;        /* its process */
    int32_t fd;           /* readable once the owner closed it or ended: for poll(), for nothing else */
    int32_t function_count;
    const struct gd_attached_function *functions; /* of a service, in the order of their numbers */
    struct gd_lane *lane; /* of a service; gd_lane_submit() and gd_lane_take() pipeline calls. Else NULL */
};

/*
 * Attach. timeout: ns that the owner may take to answer; < 0: for ever.
 *   -EINVAL        this is no token, or one of another version
 *   -ECONNREFUSED  nobody answers: the owner has ended, or runs in another network namespace
 *   -EPERM         another user answers
 *   -EACCES        the owner refuses: used already, closed, never shared
 *   -ETIMEDOUT     no answer; is the owner stopped?
 *   -ECONNRESET    the owner ended while it was asked
 *   -EPROTO        the owner's answer is not what this version understands
 *   -EBADF         memory came that somebody could take away under the mapping
 *   -ENOMEM        no memory, or no room in BAR1
 * and what the system or the driver says else (-EMFILE, -EIO). Nothing is left mapped or open then.
 */
int gd_attach(const char *token, int64_t timeout, struct gd_attached **attached);

/* What this thread's last call that failed here met, in words, and what to do about it. */
const char *gd_attach_message(void);

/*
 * gd_write() and gd_read() with a look at what they are about: -ERANGE: bytes outside the array;
 * -EACCES: it is read-only; -ECHILD: this is a child of fork(), where no mapping of it is; and why the
 * owner is gone, where a look or a call found that.
 */
int gd_attached_write(const struct gd_attached *attached, uint64_t offset, const char *src, size_t n,
                      unsigned flags);
int gd_attached_read(const struct gd_attached *attached, char *dst, uint64_t offset, size_t n,
                     unsigned flags);

/*
 * 0: the owner still has it. -ESTALE: it closed the array, or stopped the service. -EPIPE: it has ended.
 * One system call. The memory stays until gd_detach(), but nobody else sees it then.
 */
int gd_attached_look(const struct gd_attached *attached);

/*
 * Where a function stands in `functions`. size: of the caller's arguments, a C struct; -EMSGSIZE: it takes
 * others. -ENOENT: there is none of this name.
 */
int gd_attached_find(const struct gd_attached *attached, const char *name, size_t size);

/*
 * Call a function by its place in `functions`, and wait for the reply, at most `timeout` ns (< 0: for ever).
 * What reply->status says is the function's. As gd_lane_call(), and -ESTALE, -EPIPE or -ECHILD as above.
 * After -ETIMEDOUT the reply is still to be taken, by gd_lane_take(); a call before that is -EBUSY.
 */
int gd_attached_call(struct gd_attached *attached, int function, const void *arguments, size_t size,
                     int64_t timeout, struct p2pmod_reply *reply);

/* Unmap it and let go; the owner sees that. NULL is let be. */
void gd_detach(struct gd_attached *attached);

#endif
