// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Test of the in-kernel interface: writes the first sentences of Don Quixote into a pinned buffer
 * from inside the kernel, and checks them. Write "FD HANDLE" to /proc/p2pmod_quixote; the write
 * fails with what went wrong.
 */
#include <linux/file.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "../p2pmod-kernel.h"

/* Cervantes, in John Ormsby's translation of 1885 */
static const char quixote[] =
	"In a village of La Mancha, the name of which I have no desire to call to mind, there lived "
	"not long since one of those gentlemen that keep a lance in the lance-rack, an old buckler, a "
	"lean hack, and a greyhound for coursing. "
	"An olla of rather more beef than mutton, a salad on most nights, scraps on Saturdays, "
	"lentils on Fridays, and a pigeon or so extra on Sundays, made away with three-quarters of "
	"his income. "
	"The rest of it went in a doublet of fine cloth and velvet breeches and shoes to match for "
	"holidays, while on week-days he made a brave figure in his best homespun. "
	"He had in his house a housekeeper past forty, a niece under twenty, and a lad for the field "
	"and market-place, who used to saddle the hack as well as handle the bill-hook.";
#define LENGTH (sizeof(quixote) - 1)

struct witness {
	struct p2pmod_listener listener;
	bool told;
};

static void told(struct p2pmod_listener *listener)
{
	container_of(listener, struct witness, listener)->told = true;
}

static int write_and_check(struct p2pmod_buffer *buffer, char *copy)
{
	u64 length = p2pmod_length(buffer), bus, run, at;
	struct witness witness = { .listener.revoked = told };
	struct p2pmod_window *window;
	int err;

	if (length < LENGTH)
		return -ENOSPC;
	err = p2pmod_listen(buffer, &witness.listener);
	if (err)
		return err;

	/* at the start, and at the end of the buffer through the same window */
	window = p2pmod_window_open(buffer, 0, LENGTH);
	err = PTR_ERR_OR_ZERO(window);
	if (err)
		goto out;
	for (at = 0; !err; at = length - LENGTH) {
		err = p2pmod_window_move(window, at);
		if (!err)
			err = p2pmod_window_write(window, 0, quixote, LENGTH);
		if (!err)
			err = p2pmod_window_read(window, 0, copy, LENGTH);
		if (!err && memcmp(copy, quixote, LENGTH))
			err = -EIO;
		if (at == length - LENGTH)
			break;
	}
	/* what must be refused */
	if (!err && (p2pmod_window_write(window, 1, quixote, LENGTH) != -ERANGE ||
		     p2pmod_window_move(window, length - LENGTH + 1) != -ERANGE ||
		     p2pmod_bus_address(buffer, length, &bus, &run) != -ERANGE))
		err = -EDOM;
	if (!err)
		err = p2pmod_bus_address(buffer, length - 1, &bus, &run);
	if (!err && run != 1)
		err = -EDOM;
	p2pmod_window_close(window);
out:
	p2pmod_unlisten(buffer, &witness.listener);
	return witness.told ? -ENODEV : err;
}

static ssize_t quixote_write(struct file *file, const char __user *user, size_t size, loff_t *pos)
{
	struct p2pmod_buffer *buffer;
	unsigned int fd, handle;
	char text[32] = {}, *copy;
	struct file *filp;
	int err;

	if (size >= sizeof(text) || copy_from_user(text, user, size) ||
	    sscanf(text, "%u %u", &fd, &handle) != 2)
		return -EINVAL;
	copy = kmalloc(LENGTH, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	filp = fget(fd);
	if (!filp) {
		kfree(copy);
		return -EBADF;
	}
	buffer = p2pmod_get(filp, handle);
	fput(filp); /* the buffer outlives the file, if need be */
	err = PTR_ERR_OR_ZERO(buffer);
	if (!err) {
		err = write_and_check(buffer, copy);
		p2pmod_put(buffer);
	}
	kfree(copy);
	return err ? err : size;
}

static const struct proc_ops quixote_ops = {
	.proc_write = quixote_write,
};

static int __init quixote_init(void)
{
	return proc_create("p2pmod_quixote", 0200, NULL, &quixote_ops) ? 0 : -ENOMEM;
}

static void __exit quixote_exit(void)
{
	remove_proc_entry("p2pmod_quixote", NULL);
}

module_init(quixote_init);
module_exit(quixote_exit);
MODULE_DESCRIPTION("Test of p2pmod's in-kernel interface");
MODULE_LICENSE("Dual MIT/GPL");
