/* SPDX-License-Identifier: GPL-2.0 OR MIT */
#ifndef P2PMOD_INTERNAL_H
#define P2PMOD_INTERNAL_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/rbtree.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/xarray.h>

#include "p2pmod-kernel.h"
#include "p2pmod.h"

struct nvidia_p2p_page_table;
struct p2pmod_user;
struct seq_file;

#define GPU_PAGE ((u64)P2PMOD_GPU_PAGE_SIZE)
#define GPU_PAGE_SHIFT 16

/*
 * An mmap offset: handle in the upper bits, offset in the buffer in the lower ones. A loff_t has 63
 * bits, so: 2^19 buffers of up to 2^44 bytes.
 */
#define HANDLE_SHIFT 44
#define HANDLE_MAX ((1u << (63 - HANDLE_SHIFT)) - 1)

/*
 * Locks, in order of taking:
 *   mmap_lock          (the fault handler is called with it)
 *   p2pmod_file.lock   buffers of a file, and the "revoked" of each for sleeping readers
 *   p2pmod_lane.lock   calls of a lane
 *   p2pmod_buffer.access   the "revoked" of a buffer for those that may not sleep
 * The driver holds a lock of its own around the free callback, and takes it in get_pages and
 * put_pages: so none of these is held over those calls, and mmap_lock is never taken in the callback.
 * The one lock that is held over them, buffer.c's gate, is taken by nothing else.
 */

/* An open file. It lives until its last buffer does: a kernel user may hold one for longer. */
struct p2pmod_file {
	struct kref ref;
	struct rw_semaphore lock;
	/* handle -> buffer, or, of one that was unpinned, how many mappings are left. Under @lock */
	struct xarray buffers;
	u32 next_handle;
	struct inode *inode;    /* anonymous: its i_mapping holds this file's mappings and no others */
};

/* Pinned GPU memory. Lives by @ref; without one, by being unpinned, or until the owner's memory goes. */
struct p2pmod_buffer {
	struct kref ref;
	struct p2pmod_file *file;
	struct p2pmod_user *user; /* who is charged, or NULL: nobody was yet */
	pid_t owner;            /* the process, as the driver knows it: whose memory it is */
	u32 handle;
	u32 flags;              /* P2PMOD_PIN_* */
	unsigned long cookie;   /* what the driver's callback gets instead of a pointer */
	struct hlist_node by_cookie;
	struct rb_node orphan;  /* in the tree: it waits for its owner */
	unsigned int maps;      /* mappings; under file->lock. At 0 it stays when no more can be made */
	u64 address, length;    /* as asked for */
	u64 start, span;        /* whole GPU pages */
	unsigned long pages;
	bool cacheable;
	bool reserved;          /* our reservation of the pages' type is to be given back */
	bool write_combined;    /* all of it is to be mapped so, and was so far */
	bool in_one;            /* what is contiguous was reserved in one, and has one type */
	bool pinned;            /* @table is there to be put; the callback clears it */
	bool revoked;           /* under file->lock and @access */
	raw_spinlock_t access;  /* raw: it is taken in interrupts, also on PREEMPT_RT */
	struct completion ready;    /* @bus is filled in: the callback may go on */
	struct nvidia_p2p_page_table *table;
	u64 *bus;               /* bus address of each GPU page */
};

extern const struct file_operations p2pmod_fops;

void p2pmod_file_put(struct p2pmod_file *file);

int p2pmod_buffer_pin(struct p2pmod_file *file, struct p2pmod_pin *pin);
int p2pmod_buffer_unpin(struct p2pmod_file *file, u32 handle);
/* With file->lock held, for reading at least. NULL: no such handle. */
struct p2pmod_buffer *p2pmod_buffer_find(struct p2pmod_file *file, u32 handle);
struct p2pmod_buffer *p2pmod_buffer_get(struct p2pmod_file *file, u32 handle);
u32 p2pmod_buffer_state(const struct p2pmod_buffer *buffer);
/* Before it is mapped, with file->lock held for writing. */
int p2pmod_buffer_reserve(struct p2pmod_buffer *buffer);
void p2pmod_buffers_drain(struct p2pmod_file *file);
void p2pmod_orphans_show(struct seq_file *out);
void p2pmod_callbacks_wait(void);

/*
 * 0: not all of it is, since another type is there. 1: all (if no type was there that the kernel takes
 * for good enough: page tables tell). 2: and what is contiguous has one type. -ENOMEM: nothing is.
 */
int p2pmod_reserve_write_combining(const u64 *bus, unsigned long pages);
void p2pmod_release_write_combining(const u64 *bus, unsigned long pages);

/* The calling process's user pays. ERR_PTR: -ENOSPC, -ENOMEM. */
struct p2pmod_user *p2pmod_charge(u64 bytes);
void p2pmod_uncharge(struct p2pmod_user *user, u64 bytes);
bool p2pmod_may_charge(u64 bytes); /* asked before the driver is */

/* GPU pages are scattered, and ioremap takes one run: a window is an array of pages. */
struct p2pmod_window {
	struct p2pmod_buffer *buffer;
	u64 length, lead;     /* bytes; from the first page's start to the window's */
	const u64 *bus;       /* address of each page */
	unsigned int pages;
	void __iomem *page[]; /* one GPU page each */
};

/* Where a byte of a window is mapped; its GPU page is contiguous. With buffer->access held. */
static inline void __iomem *p2pmod_window_at(const struct p2pmod_window *window, u64 offset)
{
	u64 at = window->lead + offset;

	return window->page[at >> GPU_PAGE_SHIFT] + (at & (GPU_PAGE - 1));
}

/* module-wide limits and counters */
extern ulong p2pmod_max_bytes_per_user, p2pmod_max_pins_per_user, p2pmod_max_bytes_total;

struct p2pmod_counters {
	atomic64_t bytes, pins, lanes, orphans;       /* now */
	atomic64_t pinned, unpinned, revoked, failed; /* ever */
	atomic64_t maps;
};

extern struct p2pmod_counters p2pmod_count;

#endif /* P2PMOD_INTERNAL_H */
