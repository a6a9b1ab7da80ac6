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
static struct rb_root orphans = RB_ROOT; /* by owner: who has none pays for nobody else's */
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

static void buffer_free(struct p2pmod_buffer *buffer)
{
	struct p2pmod_file *file = buffer->file;

	if (buffer->user) {
		p2pmod_uncharge(buffer->user, buffer->span);
		atomic64_inc(&p2pmod_count.unpinned);
	}
	kvfree(buffer->bus);
	kfree(buffer);
	p2pmod_file_put(file);
}

/* ---- revoking ---- */

/*
 * Empty every mapping of the buffer, then give its reservation back: the pages may be somebody else's
 * soon. No page, and no mapping, can appear again once the buffer is revoked or unlisted. (Both may
 * happen at once.)
 */
static void empty_mappings(struct p2pmod_buffer *buffer)
{
	if (READ_ONCE(buffer->maps))
		unmap_mapping_range(buffer->file->inode->i_mapping,
				    (loff_t)buffer->handle << HANDLE_SHIFT, 1ULL << HANDLE_SHIFT, 1);
	if (xchg(&buffer->reserved, false))
		p2pmod_release_write_combining(buffer->bus, buffer->pages);
}

static void revoke(struct p2pmod_buffer *buffer)
{
	unsigned long flags;

	down_write(&buffer->file->lock);
	raw_spin_lock_irqsave(&buffer->access, flags);
	buffer->revoked = true;
	raw_spin_unlock_irqrestore(&buffer->access, flags);
	up_write(&buffer->file->lock);
	empty_mappings(buffer);
}

/* Held for reading over every callback: closing a file waits until those under way have ended. */
static DECLARE_RWSEM(callbacks);

static void free_callback(void *data)
{
	struct p2pmod_buffer *buffer;
	bool orphan, alive;

	down_read(&callbacks);
	spin_lock(&cookies_lock);
	hash_for_each_possible(cookies, buffer, by_cookie, (unsigned long)data)
		if (buffer->cookie == (unsigned long)data)
			break;
	if (WARN_ON_ONCE(!buffer)) { /* a pin that was put, or called back, before */
		spin_unlock(&cookies_lock);
		goto out;
	}
	buffer->pinned = false; /* the driver frees the page table after this */
	orphan = !RB_EMPTY_NODE(&buffer->orphan);
	if (orphan) {
		rb_erase(&buffer->orphan, &orphans);
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

/* ---- pinning ---- */

/* get_pages holds it shared, put_pages alone; the callback never takes it. */
static DECLARE_RWSEM(gate);

/*
 * By the owner, or a persistent pin's by anybody. The driver may find no memory for a stack of its own,
 * and has done nothing then: only a killed process, or a test, comes to that.
 */
static void put_pages(struct p2pmod_buffer *buffer)
{
	int err;

	do {
		if (buffer->flags & P2PMOD_PIN_PERSISTENT) {
			err = nvidia_p2p_put_pages_persistent(buffer->start, buffer->table, 0);
			continue;
		}
		down_write(&gate);
		err = READ_ONCE(buffer->pinned) ?
			nvidia_p2p_put_pages(0, 0, buffer->start, buffer->table) : 0;
		up_write(&gate);
	} while (err == -ENOMEM && !schedule_timeout_uninterruptible(1));
}

static int get_persistent(struct p2pmod_buffer *buffer)
{
	u32 flags = buffer->flags & P2PMOD_PIN_FORCE_BAR1 ? NV_FORCE_BAR1 : 0;
	int err = nvidia_p2p_get_pages_persistent(buffer->start, buffer->span, &buffer->table, flags);

	if (err != -EINVAL || !flags)
		return err;
	/* the memory, or the flag? Drivers before 570 know none */
	if (nvidia_p2p_get_pages_persistent(buffer->start, buffer->span, &buffer->table, 0))
		return -EINVAL;
	put_pages(buffer);
	return -EOPNOTSUPP;
}

static int get_pages(struct p2pmod_buffer *buffer)
{
	int err;

	buffer->pinned = true; /* the callback may say otherwise before get_pages returns */
	down_read(&gate);
	if (buffer->flags & P2PMOD_PIN_PERSISTENT)
		err = get_persistent(buffer);
	else
		err = nvidia_p2p_get_pages(0, 0, buffer->start, buffer->span, &buffer->table,
					   free_callback, (void *)buffer->cookie);
	up_read(&gate);
	if (err)
		buffer->pinned = false;
	return err == -524 ? -EOPNOTSUPP : err; /* ENOTSUPP is the kernel's own */
}

/* What the driver hands out is believed only as far as it was checked. */
static int read_table(struct p2pmod_buffer *buffer)
{
	struct nvidia_p2p_page_table *table = buffer->table;
	u32 major = nv_table_major(table);
	unsigned long i;

	if (major < 1 || major > 2 || (u32)table->page_size != NVIDIA_P2P_PAGE_SIZE_64KB ||
	    table->entries < buffer->pages)
		return -EIO;
	for (i = 0; i < buffer->pages; i++) {
		buffer->bus[i] = table->pages[i]->physical_address;
		if (!IS_ALIGNED(buffer->bus[i], GPU_PAGE))
			return -EIO;
	}
	buffer->cacheable = nv_table_cacheable(table);
	buffer->write_combined = !(buffer->flags & P2PMOD_PIN_UNCACHED) && !buffer->cacheable;
	return buffer->flags & P2PMOD_PIN_CACHED && !buffer->cacheable ? -EOPNOTSUPP : 0;
}

/* No reference is left, and no orphan: only a callback can still come, and find that out. */
static void buffer_finish(struct p2pmod_buffer *buffer)
{
	if (READ_ONCE(buffer->pinned))
		put_pages(buffer);
	spin_lock(&cookies_lock);
	hash_del(&buffer->by_cookie);
	spin_unlock(&cookies_lock);
	buffer_free(buffer);
}

static struct p2pmod_buffer *orphan_of(struct rb_node *node)
{
	return rb_entry(node, struct p2pmod_buffer, orphan);
}

static void add_orphan(struct p2pmod_buffer *buffer)
{
	struct rb_node **link = &orphans.rb_node, *parent = NULL;

	while (*link) {
		parent = *link;
		link = buffer->owner < orphan_of(parent)->owner ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&buffer->orphan, parent, link);
	rb_insert_color(&buffer->orphan, &orphans);
	atomic64_inc(&p2pmod_count.orphans);
}

/*
 * The last reference is gone: no handle, no kernel user, no callback under way. A pin that only its
 * owner can put, elsewhere, is left to the callback, which then frees it. It keeps its charge, and
 * the module.
 */
static void buffer_release(struct kref *ref)
{
	struct p2pmod_buffer *buffer = container_of(ref, struct p2pmod_buffer, ref);
	bool leave;

	spin_lock(&cookies_lock);
	leave = buffer->pinned && !(buffer->flags & P2PMOD_PIN_PERSISTENT) &&
		buffer->owner != current->tgid;
	if (leave) {
		__module_get(THIS_MODULE);
		add_orphan(buffer);
	}
	spin_unlock(&cookies_lock);
	if (!leave)
		buffer_finish(buffer);
}

/* Unpin the orphans of the calling process: it can. */
static void adopt_orphans(void)
{
	struct p2pmod_buffer *mine;
	pid_t me = current->tgid;
	struct rb_node *node;

	while (atomic64_read(&p2pmod_count.orphans)) {
		spin_lock(&cookies_lock);
		for (node = orphans.rb_node; node; node = me < mine->owner ? node->rb_left : node->rb_right) {
			mine = orphan_of(node);
			if (me == mine->owner)
				break;
		}
		if (node) {
			rb_erase(node, &orphans);
			RB_CLEAR_NODE(node);
		}
		spin_unlock(&cookies_lock);
		if (!node)
			return;
		atomic64_dec(&p2pmod_count.orphans);
		buffer_finish(mine);
		module_put(THIS_MODULE); /* not the last one: a file is open */
	}
}

/* For the administrator, and not for long: how many there are says the counter. */
void p2pmod_orphans_show(struct seq_file *out)
{
	struct rb_node *node;
	int left = capable(CAP_SYS_ADMIN) ? 64 : 0;

	spin_lock(&cookies_lock);
	for (node = rb_first(&orphans); node && left--; node = rb_next(node))
		seq_printf(out, "orphan     %llu bytes of process %d\n", orphan_of(node)->span,
			   orphan_of(node)->owner);
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

static int check_pin(const struct p2pmod_pin *pin, u64 *span)
{
	u64 end;

	if (pin->flags & ~PIN_FLAGS ||
	    (pin->flags & P2PMOD_PIN_UNCACHED && pin->flags & P2PMOD_PIN_CACHED) ||
	    (pin->flags & P2PMOD_PIN_FORCE_BAR1 && !(pin->flags & P2PMOD_PIN_PERSISTENT)))
		return -EINVAL;
	if (!pin->length || check_add_overflow(pin->address, pin->length, &end) ||
	    check_add_overflow(end, GPU_PAGE - 1, &end))
		return -EINVAL;
	*span = (end & ~(GPU_PAGE - 1)) - (pin->address & ~(GPU_PAGE - 1));
	if (*span > 1ULL << HANDLE_SHIFT || too_long(*span))
		return -EINVAL;
	if (pin->flags & P2PMOD_PIN_PERSISTENT && !NV_HAVE_PERSISTENT)
		return -EOPNOTSUPP;
	return 0;
}

static struct p2pmod_buffer *buffer_new(struct p2pmod_file *file, const struct p2pmod_pin *pin, u64 span)
{
	struct p2pmod_buffer *buffer = kzalloc(sizeof(*buffer), GFP_KERNEL_ACCOUNT);

	if (!buffer)
		return NULL;
	buffer->pages = span >> GPU_PAGE_SHIFT;
	/* before the driver is asked: its callback waits for what is done between that and "ready" */
	buffer->bus = kvmalloc_array(buffer->pages, sizeof(*buffer->bus),
				     GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!buffer->bus) {
		kfree(buffer);
		return NULL;
	}
	kref_init(&buffer->ref);
	kref_get(&file->ref);
	buffer->file = file;
	buffer->owner = current->tgid;
	buffer->flags = pin->flags;
	buffer->address = pin->address;
	buffer->length = pin->length;
	buffer->start = pin->address & ~(GPU_PAGE - 1);
	buffer->span = span;
	RB_CLEAR_NODE(&buffer->orphan);
	raw_spin_lock_init(&buffer->access);
	init_completion(&buffer->ready);
	spin_lock(&cookies_lock);
	buffer->cookie = ++last_cookie;
	hash_add(cookies, &buffer->by_cookie, buffer->cookie);
	spin_unlock(&cookies_lock);
	return buffer;
}

/* Charge it, and give it a handle, by which the file finds it from here on. */
static int hand_out(struct p2pmod_buffer *buffer, struct p2pmod_pin *pin)
{
	struct p2pmod_user *user = p2pmod_charge(buffer->span);
	struct p2pmod_file *file = buffer->file;
	int err;

	if (IS_ERR(user))
		return PTR_ERR(user);
	buffer->user = user;
	atomic64_inc(&p2pmod_count.pinned);
	down_write(&file->lock);
	err = xa_alloc_cyclic(&file->buffers, &buffer->handle, buffer, XA_LIMIT(1, HANDLE_MAX),
			      &file->next_handle, GFP_KERNEL);
	pin->handle = buffer->handle;
	pin->map_offset = (u64)buffer->handle << HANDLE_SHIFT;
	pin->map_length = buffer->span;
	pin->lead = buffer->address - buffer->start;
	pin->page_count = buffer->pages;
	pin->state = p2pmod_buffer_state(buffer); /* a revocation may have been faster */
	up_write(&file->lock);
	return err == -EBUSY ? -ENOSPC : min(err, 0);
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
	u64 span;
	int err;

	err = check_pin(pin, &span);
	if (err)
		return err;
	adopt_orphans();
	err = -ENOSPC;
	if (!p2pmod_may_charge(span))
		goto fail;
	err = -ENOMEM;
	buffer = buffer_new(file, pin, span);
	if (!buffer)
		goto fail;
	err = get_pages(buffer);
	if (!err)
		err = read_table(buffer);
	/* from here on the callback may go on, and the page table may go */
	complete_all(&buffer->ready);
	if (!err)
		err = hand_out(buffer, pin);
	if (!err)
		return 0;
	/* a callback may be looking at it: so by its references only */
	p2pmod_put(buffer);
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
	empty_mappings(buffer);
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
