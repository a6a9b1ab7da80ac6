// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Calls of device functions from inside the kernel: see p2pmod-kernel.h for the interface, and
 * p2pmod-lane.h for what travels.
 *
 * Packets are stored under the lock that revoking takes, so none is under way once it has happened.
 * That lock and a lane's own are raw ones: on PREEMPT_RT the others sleep, and calls come from
 * interrupts there, too. So what is done under them is short: one packet, one reply.
 * Replies come into host memory of the process that offers the lane: it is pinned, and revoking
 * leaves it alone. The process can write what it likes there, so a reply is data and nothing more.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "internal.h"

static_assert(sizeof(struct p2pmod_packet) == P2PMOD_PACKET_BYTES);
static_assert(sizeof(struct p2pmod_reply) == P2PMOD_REPLY_BYTES);

/* A slot of the rings, from the kernel's side. */
enum slot {
	SLOT_FREE,
	SLOT_SENT,    /* nobody waits for the reply: free again when it is there */
	SLOT_AWAITED, /* free again when the reply was fetched */
};

/* Host memory of the process that attached. */
struct host {
	struct page **pages;
	unsigned int page_count;
	void *at;               /* where that is mapped */
};

struct p2pmod_lane {
	struct list_head entry; /* in @lanes */
	struct p2pmod_window *packets;
	u32 slots;
	struct host replies;    /* struct p2pmod_reply [slots] */
	struct host host_told;
	const u32 *told;        /* NULL: the kernel that serves it never naps */
	struct p2pmod_window *wake; /* of one word */
	u32 woken;              /* the last round that was found to have ended; under @lock */
	raw_spinlock_t lock;
	u32 next;               /* number of the next call; under @lock */
	u8 slot[];              /* enum slot; under @lock */
};

static u32 slot_of(const struct p2pmod_lane *lane, u32 sequence)
{
	return sequence & (lane->slots - 1);
}

/* ---- replies ---- */

/* Is call @sequence answered? The number is looked at first: what it comes with is there then. */
static bool answered(const struct p2pmod_lane *lane, u32 sequence, struct p2pmod_reply *reply)
{
	const struct p2pmod_reply *at = lane->replies.at + slot_of(lane, sequence) * sizeof(*at);

	if (READ_ONCE(at->sequence) != sequence)
		return false;
	dma_rmb();
	if (reply) {
		reply->value = READ_ONCE(at->value);
		reply->status = READ_ONCE(at->status);
		reply->sequence = sequence;
	}
	return true;
}

/* ---- naps ---- */

/*
 * With the lane's lock held. If a round has ended since the last look, and nobody was left: start
 * the next. The words are the process's, and so is the wake word: what it makes of them is nobody
 * else's concern.
 */
static void wake_napping(struct p2pmod_lane *lane, bool sent)
{
	struct p2pmod_buffer *buffer;
	u32 ended;

	if (!lane->told)
		return;
	ended = READ_ONCE(lane->told[P2PMOD_TOLD_ENDED]);
	if (!sent && ended == lane->woken)
		return;
	lane->woken = ended;
	if (READ_ONCE(lane->told[P2PMOD_TOLD_NAPPED]) != ended ||
	    READ_ONCE(lane->told[P2PMOD_TOLD_BEGUN]) != ended)
		return;
	buffer = lane->wake->buffer;
	raw_spin_lock(&buffer->access);
	if (!buffer->revoked)
		__raw_writel(ended + 1, p2pmod_window_at(lane->wake, 0));
	wmb(); /* on its way, and before revoking goes on */
	raw_spin_unlock(&buffer->access);
}

int p2pmod_lane_poll(struct p2pmod_lane *lane, u32 sequence, struct p2pmod_reply *reply)
{
	u8 *slot = &lane->slot[slot_of(lane, sequence)];
	unsigned long flags;
	int err = 0;

	raw_spin_lock_irqsave(&lane->lock, flags);
	/* of a slot's calls only the last one can be awaited */
	if (lane->next - 1 - sequence >= lane->slots || *slot != SLOT_AWAITED)
		err = -ENOENT;
	else if (answered(lane, sequence, reply))
		*slot = SLOT_FREE;
	else
		err = READ_ONCE(lane->packets->buffer->revoked) ? -ENODEV : -EINPROGRESS;
	if (err == -EINPROGRESS)
		wake_napping(lane, false);
	raw_spin_unlock_irqrestore(&lane->lock, flags);
	return err;
}
EXPORT_SYMBOL(p2pmod_lane_poll);

#define SPINS 500 /* polls before the first sleep */
#define PAUSE_LAST 1000 /* us */

int p2pmod_lane_wait(struct p2pmod_lane *lane, u32 sequence, unsigned long timeout,
		     struct p2pmod_reply *reply)
{
	unsigned long end = jiffies + min_t(unsigned long, timeout, MAX_JIFFY_OFFSET);
	unsigned int spins, pause = 10; /* us */
	bool late;
	int err;

	might_sleep();
	for (spins = 0;; spins++) {
		late = time_after_eq(jiffies, end); /* before the last look, not after it */
		err = p2pmod_lane_poll(lane, sequence, reply);
		if (err != -EINPROGRESS)
			return err;
		if (late)
			return -ETIMEDOUT;
		if (fatal_signal_pending(current))
			return -EINTR;
		if (spins < SPINS && !need_resched()) {
			cpu_relax();
		} else {
			usleep_range(pause, 2 * pause);
			pause = min_t(unsigned int, 2 * pause, PAUSE_LAST);
		}
	}
}
EXPORT_SYMBOL(p2pmod_lane_wait);

/* ---- packets ---- */

static void store_packet(u8 __iomem *to, const struct p2pmod_packet *packet)
{
	if (compat_has_store64()) {
		wmb(); /* what the call refers to goes first */
		compat_store64(to, packet);
	} else {
		memcpy_toio(to + offsetof(struct p2pmod_packet, words), packet->words,
			    sizeof(packet->words));
		wmb(); /* that, and what the call refers to, before the two words that make it valid */
		__raw_writel(packet->tag, to + offsetof(struct p2pmod_packet, tag));
		__raw_writel(packet->sequence, to + offsetof(struct p2pmod_packet, sequence));
	}
	wmb(); /* nothing waits in the CPU's buffers when the lock is let go: revoking relies on it */
}

/* Interrupts are off: the lane's lock is held. */
static int send_packet(struct p2pmod_lane *lane, const struct p2pmod_packet *packet)
{
	struct p2pmod_buffer *buffer = lane->packets->buffer;
	u64 at = (u64)slot_of(lane, packet->sequence) * sizeof(*packet);
	int err;

	raw_spin_lock(&buffer->access);
	err = buffer->revoked ? -ENODEV : 0;
	if (!err)
		store_packet(p2pmod_window_at(lane->packets, at), packet);
	raw_spin_unlock(&buffer->access);
	return err;
}

int p2pmod_lane_submit(struct p2pmod_lane *lane, u16 function, const void *arguments, size_t bytes,
		       u32 *sequence)
{
	struct p2pmod_packet packet = {};
	unsigned long flags;
	u8 *slot;
	int err;

	if (bytes > sizeof(packet.words))
		return -E2BIG;
	if ((bytes && !arguments) || function == P2PMOD_FUNCTION_STOP)
		return -EINVAL;
	memcpy(packet.words, arguments, bytes);

	raw_spin_lock_irqsave(&lane->lock, flags);
	slot = &lane->slot[slot_of(lane, lane->next)];
	if (*slot == SLOT_SENT && answered(lane, lane->next - lane->slots, NULL))
		*slot = SLOT_FREE;
	if (*slot == SLOT_FREE) {
		packet.sequence = lane->next;
		packet.tag = (u32)function << 16 | (lane->next & 0xffff);
		err = send_packet(lane, &packet);
	} else {
		err = READ_ONCE(lane->packets->buffer->revoked) ? -ENODEV : -EAGAIN;
	}
	if (!err) {
		*slot = sequence ? SLOT_AWAITED : SLOT_SENT;
		if (sequence)
			*sequence = lane->next;
		lane->next++;
		wake_napping(lane, true); /* behind the packet, which is out */
	}
	raw_spin_unlock_irqrestore(&lane->lock, flags);
	return err;
}
EXPORT_SYMBOL(p2pmod_lane_submit);

/* ---- attaching ---- */

static ulong max_lanes = 1024;
module_param(max_lanes, ulong, 0644);
MODULE_PARM_DESC(max_lanes, "Lanes that other modules may be attached to");

#define TOLD_BYTES (P2PMOD_TOLD_WORDS * sizeof(u32))

static int check_description(const struct p2pmod_buffer *buffer, const struct p2pmod_lane_description *d)
{
	if (d->slots < 2 || d->slots > P2PMOD_LANE_SLOTS_MAX || d->slots & (d->slots - 1))
		return -EINVAL;
	if ((buffer->address + d->packets) % sizeof(struct p2pmod_packet) ||
	    d->replies % sizeof(struct p2pmod_reply))
		return -EINVAL;
	if (d->told && (!d->wake_buffer || d->told % sizeof(u32) ||
			(d->wake_buffer->address + d->wake) % sizeof(u32)))
		return -EINVAL;
	return current->mm ? 0 : -EFAULT; /* a kernel thread has no memory of that kind */
}

static void release_host(struct host *host)
{
	if (host->at)
		vunmap(PTR_ALIGN_DOWN(host->at, PAGE_SIZE));
	if (host->page_count)
		unpin_user_pages_dirty_lock(host->pages, host->page_count, true); /* the GPU wrote them */
	kvfree(host->pages);
}

/* Pinned for writing: so they stay the very pages that the process has page-locked for the GPU. */
static int pin_host(struct host *host, unsigned long address, size_t bytes)
{
	unsigned int wanted = PFN_UP(offset_in_page(address) + bytes);
	void *mapped;
	long got;

	if (!access_ok((void __user *)address, bytes))
		return -EFAULT;
	host->pages = kvcalloc(wanted, sizeof(*host->pages), GFP_KERNEL_ACCOUNT);
	if (!host->pages)
		return -ENOMEM;
	got = compat_pin_user_pages(address, wanted, host->pages);
	host->page_count = max(got, 0L);
	if (got != wanted)
		return got < 0 ? got : -EFAULT;
	mapped = vmap(host->pages, wanted, VM_MAP, PAGE_KERNEL);
	if (!mapped)
		return -ENOMEM;
	host->at = mapped + offset_in_page(address);
	return 0;
}

/* Do the replies look as if all calls before the next one were answered, and none after it? */
static bool replies_fit(const struct p2pmod_lane *lane)
{
	u32 i;

	for (i = 0; i < lane->slots; i++)
		if (answered(lane, lane->next + i, NULL))
			return false;
	return answered(lane, lane->next - 1, NULL);
}

/* ---- a lane has one caller ---- */

static LIST_HEAD(lanes);         /* all that are attached, under the lock */
static DEFINE_MUTEX(lanes_lock); /* process context only; nothing else is taken under it */

/*
 * What of a ring lies in its @i-th page: how many bytes, and from where on. The ring is @bytes long, and
 * starts @lead bytes into its first page.
 */
static u64 piece_of(u64 *start, u64 page, u64 page_size, unsigned int i, u64 lead, u64 bytes)
{
	u64 from = i ? 0 : lead;

	*start = page + from;
	return min(lead + bytes - i * page_size, page_size) - from;
}

/*
 * The @i-th contiguous piece of what a lane uses, packets first; of no bytes after the last one. These
 * are physical addresses, since a buffer may be pinned twice, and memory mapped twice.
 */
static u64 lane_piece(const struct p2pmod_lane *lane, unsigned int i, u64 *start)
{
	const struct p2pmod_window *packets = lane->packets;
	const struct host *replies = &lane->replies;

	if (i < packets->pages)
		return piece_of(start, packets->bus[i], GPU_PAGE, i, packets->lead, packets->length);
	i -= packets->pages;
	if (i >= replies->page_count)
		return 0;
	return piece_of(start, page_to_phys(replies->pages[i]), PAGE_SIZE, i,
			offset_in_page(replies->at), lane->slots * sizeof(struct p2pmod_reply));
}

static bool lanes_meet(const struct p2pmod_lane *a, const struct p2pmod_lane *b)
{
	/* packets that were revoked are no longer the lane's, and may be another's; replies stay */
	unsigned int i, j, from = READ_ONCE(b->packets->buffer->revoked) ? b->packets->pages : 0;
	u64 one, bytes, other, others;

	for (i = 0; (bytes = lane_piece(a, i, &one)); i++)
		for (j = from; (others = lane_piece(b, j, &other)); j++)
			if (one < other + others && other < one + bytes)
				return true;
	return false;
}

static int list_lane(struct p2pmod_lane *lane)
{
	struct p2pmod_lane *other;
	int err = 0;

	mutex_lock(&lanes_lock);
	if (READ_ONCE(lane->packets->buffer->revoked))
		err = -ENODEV;
	list_for_each_entry(other, &lanes, entry)
		if (lanes_meet(lane, other))
			err = -EBUSY;
	if (!err)
		list_add(&lane->entry, &lanes);
	mutex_unlock(&lanes_lock);
	return err;
}

/* Packets, replies and the words that tell of naps. What an error leaves is for lane_free(). */
static int open_rings(struct p2pmod_lane *lane, struct p2pmod_buffer *buffer,
		      const struct p2pmod_lane_description *d)
{
	int err;

	lane->packets = p2pmod_window_open(buffer, d->packets,
					   (u64)d->slots * sizeof(struct p2pmod_packet));
	if (IS_ERR(lane->packets))
		return PTR_ERR(lane->packets);
	err = pin_host(&lane->replies, d->replies, d->slots * sizeof(struct p2pmod_reply));
	if (err || !d->told)
		return err;
	lane->wake = p2pmod_window_open(d->wake_buffer, d->wake, sizeof(u32));
	if (IS_ERR(lane->wake))
		return PTR_ERR(lane->wake);
	err = pin_host(&lane->host_told, d->told, TOLD_BYTES);
	if (err)
		return err;
	lane->told = lane->host_told.at;
	lane->woken = READ_ONCE(lane->told[P2PMOD_TOLD_ENDED]) - 1;
	return 0;
}

static void lane_free(struct p2pmod_lane *lane)
{
	release_host(&lane->host_told);
	release_host(&lane->replies);
	p2pmod_window_close(lane->wake);
	p2pmod_window_close(lane->packets); /* and with it the reference on the buffer */
	kvfree(lane);
	atomic64_dec(&p2pmod_count.lanes);
}

struct p2pmod_lane *p2pmod_lane_attach(struct p2pmod_buffer *buffer,
				       const struct p2pmod_lane_description *d)
{
	struct p2pmod_lane *lane;
	int err;

	err = check_description(buffer, d);
	if (err)
		return ERR_PTR(err);
	lane = kvzalloc(struct_size(lane, slot, d->slots), GFP_KERNEL_ACCOUNT);
	if (!lane)
		return ERR_PTR(-ENOMEM);
	lane->slots = d->slots;
	lane->next = d->first;
	raw_spin_lock_init(&lane->lock);
	err = -ENOSPC;
	if (atomic64_inc_return(&p2pmod_count.lanes) <= max_lanes)
		err = open_rings(lane, buffer, d);
	if (!err)
		err = replies_fit(lane) ? list_lane(lane) : -EBUSY;
	if (!err)
		return lane;
	lane_free(lane);
	return ERR_PTR(err);
}
EXPORT_SYMBOL(p2pmod_lane_attach);

u32 p2pmod_lane_detach(struct p2pmod_lane *lane)
{
	u32 next = lane->next;

	mutex_lock(&lanes_lock);
	list_del(&lane->entry);
	mutex_unlock(&lanes_lock);
	lane_free(lane);
	return next;
}
EXPORT_SYMBOL(p2pmod_lane_detach);
