// SPDX-License-Identifier: GPL-2.0 OR MIT
/* The in-kernel interface: see p2pmod-kernel.h. */
#include <linux/io.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "compat.h"
#include "internal.h"

struct p2pmod_buffer *p2pmod_get(struct file *filp, u32 handle)
{
	struct p2pmod_buffer *buffer;

	if (filp->f_op != &p2pmod_fops)
		return ERR_PTR(-EBADF);
	buffer = p2pmod_buffer_get(filp->private_data, handle);
	return buffer ?: ERR_PTR(-ENOENT);
}
EXPORT_SYMBOL(p2pmod_get);

u64 p2pmod_length(const struct p2pmod_buffer *buffer)
{
	return buffer->length;
}
EXPORT_SYMBOL(p2pmod_length);

/* ---- windows ---- */

struct p2pmod_window *p2pmod_window_open(struct p2pmod_buffer *buffer, u64 offset, u64 length)
{
	u64 at = buffer->address - buffer->start + offset;
	struct p2pmod_window *window;
	unsigned int pages;

	if (!length || offset > buffer->length || length > buffer->length - offset)
		return ERR_PTR(-ERANGE);
	if (READ_ONCE(buffer->revoked))
		return ERR_PTR(-ENODEV);
	pages = ((at + length - 1) >> GPU_PAGE_SHIFT) - (at >> GPU_PAGE_SHIFT) + 1;
	window = kvzalloc(struct_size(window, page, pages), GFP_KERNEL);
	if (!window)
		return ERR_PTR(-ENOMEM);
	kref_get(&buffer->ref);
	window->buffer = buffer;
	window->length = length;
	window->lead = at & (GPU_PAGE - 1);
	window->bus = buffer->bus + (at >> GPU_PAGE_SHIFT);
	for (; window->pages < pages; window->pages++) {
		u64 bus = window->bus[window->pages];

		/* of the type that processes map it with: one page has one */
		window->page[window->pages] = buffer->flags & P2PMOD_PIN_UNCACHED ? ioremap(bus, GPU_PAGE) :
					      compat_ioremap(bus, GPU_PAGE, buffer->cacheable);
		if (!window->page[window->pages]) {
			p2pmod_window_close(window);
			return ERR_PTR(-ENOMEM);
		}
	}
	return window;
}
EXPORT_SYMBOL(p2pmod_window_open);

void p2pmod_window_close(struct p2pmod_window *window)
{
	if (IS_ERR_OR_NULL(window))
		return;
	while (window->pages)
		iounmap(window->page[--window->pages]);
	p2pmod_put(window->buffer);
	kvfree(window);
}
EXPORT_SYMBOL(p2pmod_window_close);

/*
 * Revoking waits for the lock held here, so no access is under way once it has happened. Interrupts
 * are off meanwhile, also on PREEMPT_RT: hence small pieces. A load from the device takes a
 * microsecond however small it is; stores of a KiB are out after less.
 */
#define READ_PIECE 64
#define WRITE_PIECE 1024

static int window_copy(struct p2pmod_window *window, u64 offset, void *data, size_t n, bool write)
{
	struct p2pmod_buffer *buffer = window->buffer;
	u64 most = write ? WRITE_PIECE : READ_PIECE;
	unsigned long flags;
	int err = 0;

	if (offset > window->length || n > window->length - offset)
		return -ERANGE;
	while (n && !err) {
		size_t piece = min3((u64)n, most, GPU_PAGE - ((window->lead + offset) & (GPU_PAGE - 1)));
		void __iomem *at = p2pmod_window_at(window, offset);

		raw_spin_lock_irqsave(&buffer->access, flags);
		if (buffer->revoked) {
			err = -ENODEV;
		} else if (write) {
			memcpy_toio(at, data, piece);
			wmb(); /* out of the write-combining buffers before revoking may go on */
		} else {
			memcpy_fromio(data, at, piece);
		}
		raw_spin_unlock_irqrestore(&buffer->access, flags);
		offset += piece;
		data += piece;
		n -= piece;
	}
	return err;
}

int p2pmod_window_write(struct p2pmod_window *window, u64 offset, const void *data, size_t n)
{
	return window_copy(window, offset, (void *)data, n, true);
}
EXPORT_SYMBOL(p2pmod_window_write);

int p2pmod_window_read(struct p2pmod_window *window, u64 offset, void *data, size_t n)
{
	return window_copy(window, offset, data, n, false);
}
EXPORT_SYMBOL(p2pmod_window_read);
