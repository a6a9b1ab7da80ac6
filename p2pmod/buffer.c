// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Buffers: pinning, revoking, unpinning.
 *
 * The driver's free callback may come at any moment from when get_pages registers it, even before
 * get_pages has returned, and may still be on its way while the buffer is unpinned. It is therefore
 * given a number and not a pointer: it finds the buffer, and takes a reference, only while the
 * number is known. What it needs of the page table it waits for.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/slab.h>

#include "compat.h"
#include "internal.h"
#include "p2pmod-kernel.h"

/* cookie -> buffer, for the callback. The lock is the XArray's own. */
static DEFINE_XARRAY_ALLOC1(cookies);
static u32 next_cookie = 1; /* a number is used again as late as can be: see buffer_release */

struct p2pmod_buffer *p2pmod_buffer_find(struct p2pmod_file *file, u32 handle)
{
	return handle ? xa_load(&file->buffers, handle) : NULL;
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

/* ---- caching ---- */

/*
 * On x86, vmf_insert_pfn_prot() gives a page the type that its physical range is reserved with, and
 * uncached when it is not: asking for write-combining is not enough. Reservations of one type nest.
 */
static int reserve_write_combining(struct p2pmod_buffer *buffer)
{
	unsigned long i;
	int err;

	for (i = 0; i < buffer->pages; i++) {
		err = arch_io_reserve_memtype_wc(buffer->bus[i], GPU_PAGE);
		if (err)
			goto undo;
	}
	buffer->write_combined = true;
	return 0;
undo:
	while (i--)
		arch_io_free_memtype_wc(buffer->bus[i], GPU_PAGE);
	return err;
}

static void free_write_combining(struct p2pmod_buffer *buffer)
{
	unsigned long i;

	if (!buffer->write_combined)
		return;
	buffer->write_combined = false;
	for (i = 0; i < buffer->pages; i++)
		arch_io_free_memtype_wc(buffer->bus[i], GPU_PAGE);
}

/* ---- revoking ---- */

/* Empty every mapping of the buffer. No page can appear again once it is revoked or unlisted. */
static void zap(struct p2pmod_buffer *buffer)
{
	unmap_mapping_range(buffer->file->inode->i_mapping,
			    (loff_t)buffer->handle << HANDLE_SHIFT, 1ULL << HANDLE_SHIFT, 1);
}

static void revoke(struct p2pmod_buffer *buffer)
{
	struct p2pmod_listener *listener, *next;
	unsigned long flags;

	down_write(&buffer->file->lock);
	raw_spin_lock_irqsave(&buffer->access, flags);
	buffer->revoked = true;
	buffer->pinned = false; /* the driver frees the page table after the callback */
	raw_spin_unlock_irqrestore(&buffer->access, flags);
	list_for_each_entry_safe(listener, next, &buffer->listeners, entry) {
		list_del_init(&listener->entry);
		listener->revoked(listener);
	}
	up_write(&buffer->file->lock);
	zap(buffer);
}

/* Held for reading over every callback: closing a file waits until those under way have ended. */
static DECLARE_RWSEM(callbacks);

static void free_callback(void *data)
{
	struct p2pmod_buffer *buffer;

	down_read(&callbacks);
	xa_lock(&cookies);
	buffer = xa_load(&cookies, (unsigned long)data);
	if (buffer && !kref_get_unless_zero(&buffer->ref))
		buffer = NULL;
	xa_unlock(&cookies);
	if (!buffer)
		goto out; /* unpinned meanwhile: its mappings are gone already */

	wait_for_completion(&buffer->ready);
	revoke(buffer);
	atomic64_inc(&p2pmod_count.revoked);
	nvidia_p2p_free_page_table(buffer->table);
	p2pmod_buffer_put(buffer);
out:
	up_read(&callbacks);
}

/* ---- pinning ---- */

static bool take(atomic64_t *count, u64 n, u64 limit)
{
	if ((u64)atomic64_add_return(n, count) <= limit)
		return true;
	atomic64_sub(n, count);
	return false;
}

static int charge(struct p2pmod_file *file, u64 bytes)
{
	if (!take(&file->pins, 1, p2pmod_max_pins_per_file))
		return -ENOSPC;
	if (!take(&file->bytes, bytes, p2pmod_max_bytes_per_file))
		goto undo_pin;
	if (!take(&p2pmod_count.bytes, bytes, p2pmod_max_bytes_total))
		goto undo_bytes;
	atomic64_inc(&p2pmod_count.pins);
	return 0;
undo_bytes:
	atomic64_sub(bytes, &file->bytes);
undo_pin:
	atomic64_dec(&file->pins);
	return -ENOSPC;
}

static void uncharge(struct p2pmod_file *file, u64 bytes)
{
	atomic64_dec(&p2pmod_count.pins);
	atomic64_sub(bytes, &p2pmod_count.bytes);
	atomic64_sub(bytes, &file->bytes);
	atomic64_dec(&file->pins);
}

static int get_pages(struct p2pmod_buffer *buffer)
{
	int err;

	if (buffer->flags & P2PMOD_PIN_PERSISTENT)
		err = nv_get_persistent(buffer->start, buffer->span, &buffer->table,
					buffer->flags & P2PMOD_PIN_FORCE_BAR1 ? NV_FORCE_BAR1 : 0);
	else
		err = nvidia_p2p_get_pages(0, 0, buffer->start, buffer->span, &buffer->table,
					   free_callback, (void *)(unsigned long)buffer->cookie);
	if (err) {
		buffer->table = NULL; /* the driver may have left a pointer to freed memory */
		return err == -524 ? -EOPNOTSUPP : err; /* ENOTSUPP is the kernel's own */
	}
	return 0;
}

static void put_pages(struct p2pmod_buffer *buffer)
{
	if (buffer->flags & P2PMOD_PIN_PERSISTENT)
		nv_put_persistent(buffer->start, buffer->table);
	else
		nvidia_p2p_put_pages(0, 0, buffer->start, buffer->table);
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
	/* only now: the length was the caller's word until the driver found that much memory */
	buffer->bus = kvmalloc_array(buffer->pages, sizeof(*buffer->bus),
				     GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!buffer->bus)
		return -ENOMEM;
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

	uncharge(file, buffer->span);
	kvfree(buffer->bus);
	kfree(buffer);
	p2pmod_file_put(file);
}

/* The last reference is gone: no handle, no kernel user, no callback under way. */
static void buffer_release(struct kref *ref)
{
	struct p2pmod_buffer *buffer = container_of(ref, struct p2pmod_buffer, ref);

	free_write_combining(buffer);
	if (buffer->pinned)
		put_pages(buffer);
	/*
	 * Only now: until put_pages has returned, the driver may call back with this number, which finds
	 * no reference left to take. Were the number free before, it could be a new buffer's by then,
	 * and the callback would wait for a pin that waits for the callback's lock.
	 */
	xa_erase(&cookies, buffer->cookie);
	if (buffer->table)
		atomic64_inc(&p2pmod_count.unpinned);
	buffer_free(buffer);
}

void p2pmod_buffer_put(struct p2pmod_buffer *buffer)
{
	kref_put(&buffer->ref, buffer_release);
}

#define PIN_FLAGS (P2PMOD_PIN_PERSISTENT | P2PMOD_PIN_UNCACHED | P2PMOD_PIN_CACHED | \
		   P2PMOD_PIN_FORCE_BAR1)

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
	if (*span > 1ULL << HANDLE_SHIFT)
		return -EINVAL;
	if (pin->flags & P2PMOD_PIN_PERSISTENT && !NV_HAVE_PERSISTENT)
		return -EOPNOTSUPP;
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
	err = charge(file, span);
	if (err)
		return err;

	err = -ENOMEM;
	buffer = kzalloc(sizeof(*buffer), GFP_KERNEL_ACCOUNT);
	if (!buffer)
		goto undo_charge;
	kref_init(&buffer->ref);
	kref_get(&file->ref);
	buffer->file = file;
	buffer->flags = pin->flags;
	buffer->address = pin->address;
	buffer->length = pin->length;
	buffer->start = start;
	buffer->span = span;
	buffer->pages = span >> GPU_PAGE_SHIFT;
	raw_spin_lock_init(&buffer->access);
	INIT_LIST_HEAD(&buffer->listeners);
	init_completion(&buffer->ready);

	err = xa_alloc_cyclic(&cookies, &buffer->cookie, buffer, XA_LIMIT(1, U32_MAX), &next_cookie,
			      GFP_KERNEL);
	if (err < 0)
		goto undo;
	/* reserves the handle; nobody finds it before it is stored */
	down_write(&file->lock);
	err = xa_alloc_cyclic(&file->buffers, &buffer->handle, NULL, XA_LIMIT(1, HANDLE_MAX),
			      &file->next_handle, GFP_KERNEL);
	up_write(&file->lock);
	if (err < 0) {
		buffer->handle = 0;
		err = err == -EBUSY ? -ENOSPC : err;
		goto undo;
	}

	err = get_pages(buffer);
	if (err)
		goto undo;
	buffer->pinned = true;
	err = read_table(buffer);
	if (!err && buffer->flags & P2PMOD_PIN_CACHED && !buffer->cacheable)
		err = -EOPNOTSUPP;
	if (!err && !(buffer->flags & P2PMOD_PIN_UNCACHED) && !buffer->cacheable)
		err = reserve_write_combining(buffer);
	if (err == -EBUSY)
		err = 0; /* somebody has reserved it with another type: so it is mapped, and told */
	if (err)
		goto undo;
	/* from here on the callback may run, and the page table may go */
	complete_all(&buffer->ready);

	pin->handle = buffer->handle;
	pin->map_offset = (u64)buffer->handle << HANDLE_SHIFT;
	pin->map_length = span;
	pin->lead = pin->address - start;
	pin->page_count = buffer->pages;
	down_write(&file->lock);
	pin->state = p2pmod_buffer_state(buffer);
	/* cannot fail: the slot was reserved */
	xa_store(&file->buffers, buffer->handle, buffer, GFP_KERNEL);
	up_write(&file->lock);
	atomic64_inc(&p2pmod_count.pinned);
	return 0;

undo:
	/* a callback may be looking at it, if the driver failed late: so by its references only */
	complete_all(&buffer->ready);
	if (buffer->handle) {
		down_write(&file->lock);
		xa_erase(&file->buffers, buffer->handle);
		up_write(&file->lock);
	}
	p2pmod_buffer_put(buffer);
	atomic64_inc(&p2pmod_count.failed);
	return err;
undo_charge:
	uncharge(file, span);
	atomic64_inc(&p2pmod_count.failed);
	return err;
}

/* Take the handle away and empty the mappings; what remains is for the last reference to do. */
static void unlist(struct p2pmod_buffer *buffer)
{
	zap(buffer);
	p2pmod_buffer_put(buffer);
}

int p2pmod_buffer_unpin(struct p2pmod_file *file, u32 handle)
{
	struct p2pmod_buffer *buffer;

	down_write(&file->lock);
	buffer = p2pmod_buffer_find(file, handle);
	if (buffer)
		xa_erase(&file->buffers, handle);
	up_write(&file->lock);
	if (!buffer)
		return -ENOENT;
	unlist(buffer);
	return 0;
}

void p2pmod_buffers_drain(struct p2pmod_file *file)
{
	struct p2pmod_buffer *buffer;
	unsigned long handle;

	/* the file is closed: no ioctl, no fault and no mapping is left, only callbacks */
	for (;;) {
		handle = 0;
		down_write(&file->lock);
		buffer = xa_find(&file->buffers, &handle, ULONG_MAX, XA_PRESENT);
		if (buffer)
			xa_erase(&file->buffers, handle);
		up_write(&file->lock);
		if (!buffer)
			break;
		unlist(buffer);
	}
	/* a callback may hold the last reference, and closing may be what lets the module go */
	down_write(&callbacks);
	up_write(&callbacks);
}
