// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Buffers: pinning, revoking, unpinning.
 *
 * What the driver holds us to:
 *
 *   - Its free callback may come at any moment from when get_pages registers it, even before get_pages
 *     has returned, and may still be on its way while the buffer is unpinned. It is therefore given a
 *     number and not a pointer, which is taken back when the driver can no longer use it. What it
 *     needs of the page table it waits for.
 *   - The page table lies in the driver's record of the pin, by whose address alone put_pages knows the
 *     pin, and which is freed after the callback: the next pin may get the same one. So no pin of ours
 *     begins between the last look at whether a pin still lives and the end of its put_pages (@gate).
 *     Pins that other modules make for the same process cannot be fenced off.
 *   - put_pages looks among the memory of the calling process only, elsewhere it does nothing and says
 *     0. Whoever lets go of a pin in another process leaves it, an orphan, to the callback, or to the
 *     owner when that pins again.
 */
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/pci.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "compat.h"
#include "internal.h"

/* Buffers by cookie, for the callback. The lock is for what it changes in them, too. */
static DEFINE_HASHTABLE(cookies, 10);
static LIST_HEAD(orphans);
static unsigned long last_cookie; /* none is used twice */
static DEFINE_SPINLOCK(cookies_lock);

struct p2pmod_buffer *p2pmod_buffer_find(struct p2pmod_file *file, u32 handle)
{
	void *entry = xa_load(&file->buffers, handle);

	return xa_is_value(entry) ? NULL : entry; /* a number: only mapped */
}

struct p2pmod_buffer *p2pmod_buffer_get(struct p2pmod_file *file, u32 handle)
{
	struct p2pmod_buffer *buffer;

	down_read(&file->lock);
	buffer = p2pmod_buffer_find(file, handle);
	if (buffer)
		kref_get(&buffer->ref);
	up_read(&file->lock);
	return buffer;
}

u32 p2pmod_buffer_state(const struct p2pmod_buffer *buffer)
{
	return (buffer->revoked ? P2PMOD_STATE_REVOKED : 0) |
	       (buffer->flags & P2PMOD_PIN_PERSISTENT ? P2PMOD_STATE_PERSISTENT : 0) |
	       (buffer->cacheable ? P2PMOD_STATE_CACHEABLE : 0) |
	       (buffer->write_combined && compat_can_write_combine() ?
			P2PMOD_STATE_WRITE_COMBINED : 0);
}

/* ---- revoking ---- */

/*
 * Empty every mapping of the buffer, then give its reservation back: the pages may be somebody else's
 * soon. No page, and no mapping, can appear again once the buffer is revoked or unlisted. (Both may
 * happen at once.)
 */
static void empty_mappings(struct p2pmod_buffer *buffer, bool mapped)
{
	if (mapped)
		unmap_mapping_range(buffer->file->inode->i_mapping,
				    (loff_t)buffer->handle << HANDLE_SHIFT, 1ULL << HANDLE_SHIFT, 1);
	if (xchg(&buffer->reserved, false))
		p2pmod_release_write_combining(buffer->bus, buffer->pages);
}

static void revoke(struct p2pmod_buffer *buffer)
{
	unsigned long flags;
	bool mapped;

	down_write(&buffer->file->lock);
	raw_spin_lock_irqsave(&buffer->access, flags);
	buffer->revoked = true;
	raw_spin_unlock_irqrestore(&buffer->access, flags);
	mapped = buffer->maps;
	up_write(&buffer->file->lock);
	empty_mappings(buffer, mapped);
}

/* Held for reading over every callback: closing a file waits until those under way have ended. */
static DECLARE_RWSEM(callbacks);

static void buffer_free(struct p2pmod_buffer *buffer);

/* With the lock held. */
static struct p2pmod_buffer *of_cookie(unsigned long cookie)
{
	struct p2pmod_buffer *buffer;

	hash_for_each_possible(cookies, buffer, by_cookie, cookie)
		if (buffer->cookie == cookie)
			return buffer;
	return NULL;
}

static void free_callback(void *data)
{
	struct p2pmod_buffer *buffer;
	bool orphan, alive;

	down_read(&callbacks);
	spin_lock(&cookies_lock);
	buffer = of_cookie((unsigned long)data);
	if (WARN_ON_ONCE(!buffer)) { /* a pin that was put, or called back, before */
		spin_unlock(&cookies_lock);
		goto out;
	}
	buffer->pinned = false; /* the driver frees the page table after this */
	orphan = !list_empty(&buffer->orphan);
	if (orphan) {
		list_del(&buffer->orphan);
		hash_del(&buffer->by_cookie);
	}
	alive = kref_get_unless_zero(&buffer->ref);
	spin_unlock(&cookies_lock);
	if (orphan) {
		atomic64_dec(&p2pmod_count.orphans);
		buffer_free(buffer);
		module_put(THIS_MODULE); /* unloading waits for the driver's lock, which is held here */
	} else if (alive) {
		wait_for_completion(&buffer->ready);
		revoke(buffer);
		atomic64_inc(&p2pmod_count.revoked);
		p2pmod_put(buffer);
	} /* else it is being unpinned: its mappings are gone already */
out:
	up_read(&callbacks);
}

/* Wait until no callback is under way: closing may be what lets the module go. */
void p2pmod_callbacks_wait(void)
{
	down_write(&callbacks);
	up_write(&callbacks);
}

/* The same to the last instruction: the driver holds over callbacks the lock that put_pages takes. */
void p2pmod_callbacks_wait_in_driver(void)
{
	static u64 nobodys[64]; /* a page table, and the driver's record around it, that no pin has */

	p2pmod_callbacks_wait();
	nvidia_p2p_put_pages(0, 0, 0, (struct nvidia_p2p_page_table *)&nobodys[32]);
}

/* ---- pinning ---- */

/* get_pages holds it shared, put_pages alone; the callback never takes it. */
static DECLARE_RWSEM(gate);

static int get_persistent(struct p2pmod_buffer *buffer)
{
	u32 flags = buffer->flags & P2PMOD_PIN_FORCE_BAR1 ? NV_FORCE_BAR1 : 0;
	int err = nvidia_p2p_get_pages_persistent(buffer->start, buffer->span, &buffer->table, flags);

	if (err != -EINVAL || !flags)
		return err;
	/* the memory, or the flag? Drivers before 570 know none */
	if (nvidia_p2p_get_pages_persistent(buffer->start, buffer->span, &buffer->table, 0))
		return -EINVAL;
	nvidia_p2p_put_pages_persistent(buffer->start, buffer->table, 0);
	return -EOPNOTSUPP;
}

static int get_pages(struct p2pmod_buffer *buffer)
{
	int err;

	buffer->owner = current->tgid;
	buffer->pinned = true; /* the callback may say otherwise before get_pages returns */
	down_read(&gate);
	if (buffer->flags & P2PMOD_PIN_PERSISTENT)
		err = get_persistent(buffer);
	else
		err = nvidia_p2p_get_pages(0, 0, buffer->start, buffer->span, &buffer->table,
					   free_callback, (void *)buffer->cookie);
	up_read(&gate);
	if (err) {
		buffer->pinned = false;
		buffer->table = NULL; /* the driver may have left a pointer to freed memory */
		return err == -524 ? -EOPNOTSUPP : err; /* ENOTSUPP is the kernel's own */
	}
	return 0;
}

/* By the owner, or a persistent pin's by anybody. */
static void put_pages(struct p2pmod_buffer *buffer)
{
	bool pinned;

	if (buffer->flags & P2PMOD_PIN_PERSISTENT) {
		nvidia_p2p_put_pages_persistent(buffer->start, buffer->table, 0);
		return;
	}
	down_write(&gate);
	spin_lock(&cookies_lock);
	pinned = buffer->pinned;
	spin_unlock(&cookies_lock);
	if (pinned)
		nvidia_p2p_put_pages(0, 0, buffer->start, buffer->table);
	up_write(&gate);
}

/* What the driver hands out is believed only as far as it was checked. */
static int read_table(struct p2pmod_buffer *buffer)
{
	struct nvidia_p2p_page_table *table = buffer->table;
	u32 major = nv_table_major(table);
	unsigned long i;

	if (major < 1 || major > 2 || (u32)table->page_size != NV_PAGE_SIZE_64KB ||
	    table->entries < buffer->pages)
		return -EIO;
	for (i = 0; i < buffer->pages; i++) {
		buffer->bus[i] = table->pages[i]->physical_address;
		if (!IS_ALIGNED(buffer->bus[i], GPU_PAGE))
			return -EIO;
	}
	buffer->cacheable = nv_table_cacheable(table);
	return 0;
}

static void buffer_free(struct p2pmod_buffer *buffer)
{
	struct p2pmod_file *file = buffer->file;

	if (buffer->charged) {
		p2pmod_uncharge(buffer->user, buffer->span);
		atomic64_sub(buffer->span, &file->bytes);
		atomic64_dec(&file->pins);
		atomic64_inc(&p2pmod_count.unpinned);
	}
	p2pmod_user_put(buffer->user);
	kvfree(buffer->bus);
	kfree(buffer);
	p2pmod_file_put(file);
}

/*
 * Leave a pin that only its owner can put to the callback, which then frees it. It keeps its charge,
 * and the module. False: the callback was here already.
 */
static bool leave_to_owner(struct p2pmod_buffer *buffer)
{
	bool pinned;

	spin_lock(&cookies_lock);
	pinned = buffer->pinned;
	if (pinned) {
		__module_get(THIS_MODULE);
		list_add(&buffer->orphan, &orphans);
		atomic64_inc(&p2pmod_count.orphans);
	}
	spin_unlock(&cookies_lock);
	return pinned;
}

static void forget_cookie(struct p2pmod_buffer *buffer)
{
	spin_lock(&cookies_lock);
	hash_del(&buffer->by_cookie);
	spin_unlock(&cookies_lock);
}

/* No reference is left, and no orphan: only a callback can still come, and find that out. */
static void buffer_finish(struct p2pmod_buffer *buffer)
{
	if (READ_ONCE(buffer->pinned))
		put_pages(buffer);
	forget_cookie(buffer);
	buffer_free(buffer);
}

/* The last reference is gone: no handle, no kernel user, no callback under way. */
static void buffer_release(struct kref *ref)
{
	struct p2pmod_buffer *buffer = container_of(ref, struct p2pmod_buffer, ref);

	if (!(buffer->flags & P2PMOD_PIN_PERSISTENT) && buffer->owner != current->tgid &&
	    leave_to_owner(buffer))
		return;
	buffer_finish(buffer);
}

/* Unpin the orphans of the calling process: it can. */
static void adopt_orphans(void)
{
	struct p2pmod_buffer *buffer, *mine;

	while (atomic64_read(&p2pmod_count.orphans)) {
		mine = NULL;
		spin_lock(&cookies_lock);
		list_for_each_entry(buffer, &orphans, orphan)
			if (buffer->owner == current->tgid)
				mine = buffer;
		if (mine)
			list_del_init(&mine->orphan);
		spin_unlock(&cookies_lock);
		if (!mine)
			return;
		atomic64_dec(&p2pmod_count.orphans);
		buffer_finish(mine);
		module_put(THIS_MODULE); /* not the last one: a file is open */
	}
}

void p2pmod_orphans_show(struct seq_file *out)
{
	struct p2pmod_buffer *buffer;

	spin_lock(&cookies_lock);
	list_for_each_entry(buffer, &orphans, orphan)
		seq_printf(out, "orphan     %llu bytes of process %d\n", buffer->span, buffer->owner);
	spin_unlock(&cookies_lock);
}

void p2pmod_put(struct p2pmod_buffer *buffer)
{
	kref_put(&buffer->ref, buffer_release);
}
EXPORT_SYMBOL(p2pmod_put);

#define PIN_FLAGS (P2PMOD_PIN_PERSISTENT | P2PMOD_PIN_UNCACHED | P2PMOD_PIN_CACHED | \
		   P2PMOD_PIN_FORCE_BAR1)

/*
 * No pin is longer than the largest memory BAR of this machine, or than its memory where a GPU's is
 * part of it: the driver would allocate for any length that it is asked for.
 */
static bool too_long(u64 span)
{
	static u64 longest;
	struct pci_dev *pci = NULL;
	u64 found;
	int i;

	if (span <= READ_ONCE(longest))
		return false;
	found = IS_ENABLED(CONFIG_ARM64) ? (u64)totalram_pages() << PAGE_SHIFT : 0;
	while ((pci = pci_get_device(PCI_ANY_ID, PCI_ANY_ID, pci)))
		for (i = 0; i < PCI_STD_NUM_BARS; i++)
			if (pci_resource_flags(pci, i) & IORESOURCE_MEM)
				found = max_t(u64, found, pci_resource_len(pci, i));
	WRITE_ONCE(longest, found); /* devices come and go */
	return span > found;
}

static int check_pin(const struct p2pmod_pin *pin, u64 *start, u64 *span)
{
	u64 end;

	if (pin->flags & ~PIN_FLAGS || pin->handle || pin->state || pin->map_offset ||
	    pin->map_length || pin->lead || pin->page_count)
		return -EINVAL;
	if ((pin->flags & P2PMOD_PIN_UNCACHED && pin->flags & P2PMOD_PIN_CACHED) ||
	    (pin->flags & P2PMOD_PIN_FORCE_BAR1 && !(pin->flags & P2PMOD_PIN_PERSISTENT)))
		return -EINVAL;
	if (!pin->length || check_add_overflow(pin->address, pin->length, &end) ||
	    check_add_overflow(end, GPU_PAGE - 1, &end))
		return -EINVAL;
	*start = pin->address & ~(GPU_PAGE - 1);
	*span = (end & ~(GPU_PAGE - 1)) - *start;
	if (*span > 1ULL << HANDLE_SHIFT || too_long(*span))
		return -EINVAL;
	if (pin->flags & P2PMOD_PIN_PERSISTENT && !NV_HAVE_PERSISTENT)
		return -EOPNOTSUPP;
	return 0;
}

static struct p2pmod_buffer *buffer_new(struct p2pmod_file *file, const struct p2pmod_pin *pin,
					u64 start, u64 span)
{
	struct p2pmod_buffer *buffer = kzalloc(sizeof(*buffer), GFP_KERNEL_ACCOUNT);

	if (!buffer)
		return NULL;
	buffer->pages = span >> GPU_PAGE_SHIFT;
	/* before the driver is asked: its callback waits for what is done between that and "ready" */
	buffer->bus = kvmalloc_array(buffer->pages, sizeof(*buffer->bus),
				     GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	buffer->user = p2pmod_user_get();
	if (!buffer->bus || !buffer->user) {
		if (buffer->user)
			p2pmod_user_put(buffer->user);
		kvfree(buffer->bus);
		kfree(buffer);
		return NULL;
	}
	kref_init(&buffer->ref);
	kref_get(&file->ref);
	buffer->file = file;
	buffer->flags = pin->flags;
	buffer->address = pin->address;
	buffer->length = pin->length;
	buffer->start = start;
	buffer->span = span;
	INIT_LIST_HEAD(&buffer->orphan);
	raw_spin_lock_init(&buffer->access);
	init_completion(&buffer->ready);
	return buffer;
}

/* Nobody finds the buffer before it is stored. */
static int take_handle(struct p2pmod_buffer *buffer)
{
	struct p2pmod_file *file = buffer->file;
	int err;

	down_write(&file->lock);
	err = xa_alloc_cyclic(&file->buffers, &buffer->handle, NULL, XA_LIMIT(1, HANDLE_MAX),
			      &file->next_handle, GFP_KERNEL);
	up_write(&file->lock);
	return err == -EBUSY ? -ENOSPC : min(err, 0);
}

static void give_handle_back(struct p2pmod_buffer *buffer)
{
	struct p2pmod_file *file = buffer->file;

	down_write(&file->lock);
	xa_erase(&file->buffers, buffer->handle);
	up_write(&file->lock);
}

static bool charge(struct p2pmod_buffer *buffer)
{
	buffer->charged = p2pmod_charge(buffer->user, buffer->span);
	if (buffer->charged) {
		atomic64_add(buffer->span, &buffer->file->bytes);
		atomic64_inc(&buffer->file->pins);
	}
	return buffer->charged;
}

int p2pmod_buffer_reserve(struct p2pmod_buffer *buffer)
{
	int got;

	lockdep_assert_held_write(&buffer->file->lock);
	if (buffer->reserved || !buffer->write_combined)
		return 0;
	got = p2pmod_reserve_write_combining(buffer->bus, buffer->pages);
	if (got < 0)
		return got;
	buffer->reserved = true;
	buffer->write_combined = got > 0;
	buffer->in_one = got > 1;
	return 0;
}

int p2pmod_buffer_pin(struct p2pmod_file *file, struct p2pmod_pin *pin)
{
	struct p2pmod_buffer *buffer;
	u64 start, span;
	int err;

	err = check_pin(pin, &start, &span);
	if (err)
		return err;
	adopt_orphans();
	err = -ENOMEM;
	buffer = buffer_new(file, pin, start, span);
	if (!buffer)
		goto fail;
	err = -ENOSPC;
	if (!p2pmod_may_charge(buffer->user, span))
		goto undo_buffer;
	err = take_handle(buffer);
	if (err)
		goto undo_buffer;
	spin_lock(&cookies_lock);
	buffer->cookie = ++last_cookie;
	hash_add(cookies, &buffer->by_cookie, buffer->cookie);
	spin_unlock(&cookies_lock);
	err = get_pages(buffer);
	if (err)
		goto undo_cookie;
	err = read_table(buffer);
	buffer->write_combined = !(buffer->flags & P2PMOD_PIN_UNCACHED) && !buffer->cacheable;
	/* from here on the callback may go on, and the page table may go */
	complete_all(&buffer->ready);
	if (!err && buffer->flags & P2PMOD_PIN_CACHED && !buffer->cacheable)
		err = -EOPNOTSUPP;
	if (!err && !charge(buffer))
		err = -ENOSPC;
	if (err)
		goto undo_pin;

	pin->handle = buffer->handle;
	pin->map_offset = (u64)buffer->handle << HANDLE_SHIFT;
	pin->map_length = span;
	pin->lead = pin->address - start;
	pin->page_count = buffer->pages;
	down_write(&file->lock);
	pin->state = p2pmod_buffer_state(buffer); /* a revocation may have been faster */
	xa_store(&file->buffers, buffer->handle, buffer, GFP_KERNEL); /* cannot fail: the slot is there */
	up_write(&file->lock);
	atomic64_inc(&p2pmod_count.pinned);
	return 0;

undo_pin:
	/* a callback may be looking at it: so by its references only */
	give_handle_back(buffer);
	p2pmod_put(buffer);
	goto fail;
undo_cookie:
	forget_cookie(buffer);
	give_handle_back(buffer);
undo_buffer:
	buffer_free(buffer);
fail:
	atomic64_inc(&p2pmod_count.failed);
	return err;
}

/*
 * Take the handle away, and empty the mappings; what remains is for the last reference to do. A handle
 * that is still mapped is not given to another buffer.
 */
int p2pmod_buffer_unpin(struct p2pmod_file *file, u32 handle)
{
	struct p2pmod_buffer *buffer;

	down_write(&file->lock);
	buffer = p2pmod_buffer_find(file, handle);
	if (buffer && buffer->maps)
		xa_store(&file->buffers, handle, xa_mk_value(buffer->maps), GFP_KERNEL);
	else if (buffer)
		xa_erase(&file->buffers, handle);
	up_write(&file->lock);
	if (!buffer)
		return -ENOENT;
	empty_mappings(buffer, buffer->maps);
	p2pmod_put(buffer);
	return 0;
}

/* The file is closed: no ioctl, no fault and no mapping is left, only callbacks. */
void p2pmod_buffers_drain(struct p2pmod_file *file)
{
	struct p2pmod_buffer *buffer;
	unsigned long handle;

	xa_for_each(&file->buffers, handle, buffer)
		p2pmod_buffer_unpin(file, handle);
	adopt_orphans(); /* whoever closed them elsewhere could not */
	p2pmod_callbacks_wait(); /* one may hold the last reference, and the module go with this file */
}
