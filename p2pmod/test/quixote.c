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

static int write_and_check_at(struct p2pmod_buffer *buffer, u64 at, char *copy)
{
	struct p2pmod_window *window = p2pmod_window_open(buffer, at, LENGTH);
	int err;

	if (IS_ERR(window))
		return PTR_ERR(window);
	err = p2pmod_window_write(window, 0, quixote, LENGTH);
	if (!err)
		err = p2pmod_window_read(window, 0, copy, LENGTH);
	if (!err && memcmp(copy, quixote, LENGTH))
		err = -EIO;
	/* what must be refused */
	if (!err && p2pmod_window_write(window, 1, quixote, LENGTH) != -ERANGE)
		err = -EDOM;
	p2pmod_window_close(window);
	return err;
}

/* At the start of the buffer, at its end, and no byte beyond. */
static int write_and_check(struct p2pmod_buffer *buffer, char *copy)
{
	u64 length = p2pmod_length(buffer);
	int err;

	if (length < LENGTH)
		return -ENOSPC;
	err = write_and_check_at(buffer, 0, copy);
	if (!err)
		err = write_and_check_at(buffer, length - LENGTH, copy);
	if (!err && !IS_ERR(p2pmod_window_open(buffer, length - LENGTH + 1, LENGTH)))
		err = -EDOM;
	return err;
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
