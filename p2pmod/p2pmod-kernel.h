/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The in-kernel interface: other modules use a buffer that a process pinned.
 *
 *   buffer = p2pmod_get(file, handle)      a reference; the pin stays as long as it is held
 *   window = p2pmod_window_open(...)       map all or part of it, write-combined
 *   p2pmod_window_write(window, ...)       stores, from any context
 *   p2pmod_put(buffer)                     drop it
 *
 * The driver may revoke the memory at any moment: every access then fails with -ENODEV, and a
 * listener is called. Nothing here ever touches memory that was revoked.
 */
#ifndef P2PMOD_KERNEL_H
#define P2PMOD_KERNEL_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/types.h>

struct p2pmod_buffer;
struct p2pmod_window;

/* Called once, when the driver takes the pages back. May sleep; must not call p2pmod_put. */
struct p2pmod_listener {
	struct list_head entry;
	void (*revoked)(struct p2pmod_listener *listener);
};

/* A reference on buffer @handle of an open /dev/p2pmod, or ERR_PTR: -EBADF, -ENOENT, -ENODEV. */
struct p2pmod_buffer *p2pmod_get(struct file *file, u32 handle);
void p2pmod_put(struct p2pmod_buffer *buffer);

u64 p2pmod_address(const struct p2pmod_buffer *buffer); /* device address as pinned */
u64 p2pmod_length(const struct p2pmod_buffer *buffer);  /* bytes as pinned */
bool p2pmod_revoked(struct p2pmod_buffer *buffer);
/* Bus address of the byte at @offset, and how many bytes follow it in the same GPU page. */
int p2pmod_bus_address(struct p2pmod_buffer *buffer, u64 offset, u64 *bus, u64 *run);

/* -ENODEV if it was revoked already. */
int p2pmod_listen(struct p2pmod_buffer *buffer, struct p2pmod_listener *listener);
void p2pmod_unlisten(struct p2pmod_buffer *buffer, struct p2pmod_listener *listener);

/*
 * A window: part of the buffer, mapped write-combined into the kernel. Opening and moving it may
 * sleep; reading and writing do not, and may be done in interrupt context. Moving or closing a
 * window while it is used is for the caller to rule out.
 */
struct p2pmod_window *p2pmod_window_open(struct p2pmod_buffer *buffer, u64 offset, u64 length);
int p2pmod_window_move(struct p2pmod_window *window, u64 offset);
void p2pmod_window_close(struct p2pmod_window *window);
/* @offset from the start of the window. -ERANGE, -ENODEV. Writes are fenced. */
int p2pmod_window_write(struct p2pmod_window *window, u64 offset, const void *data, size_t n);
int p2pmod_window_read(struct p2pmod_window *window, u64 offset, void *data, size_t n);

#endif /* P2PMOD_KERNEL_H */
