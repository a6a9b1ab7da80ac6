// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * p2pmod: pins NVIDIA GPU memory, tells where it is, and maps it for programs and other modules.
 *
 * This file: loading, limits, statistics, and the address space of each open file.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mount.h>
#include <linux/proc_fs.h>
#include <linux/pseudo_fs.h>
#include <linux/seq_file.h>

#include "compat.h"
#include "internal.h"

ulong p2pmod_max_bytes_per_file = ULONG_MAX;
module_param_named(max_bytes_per_file, p2pmod_max_bytes_per_file, ulong, 0644);
MODULE_PARM_DESC(max_bytes_per_file, "Bytes that one open file may pin");

ulong p2pmod_max_pins_per_file = 65536;
module_param_named(max_pins_per_file, p2pmod_max_pins_per_file, ulong, 0644);
MODULE_PARM_DESC(max_pins_per_file, "Buffers that one open file may hold");

ulong p2pmod_max_bytes_total = ULONG_MAX;
module_param_named(max_bytes_total, p2pmod_max_bytes_total, ulong, 0644);
MODULE_PARM_DESC(max_bytes_total, "Bytes that all files together may pin");

ulong p2pmod_max_lanes = 1024;
module_param_named(max_lanes, p2pmod_max_lanes, ulong, 0644);
MODULE_PARM_DESC(max_lanes, "Lanes that other modules may be attached to");

bool p2pmod_show_bus_addresses;
module_param_named(show_bus_addresses, p2pmod_show_bus_addresses, bool, 0644);
MODULE_PARM_DESC(show_bus_addresses, "Tell bus addresses to every owner, not only CAP_SYS_RAWIO");

struct p2pmod_counters p2pmod_count;

/* ---- an anonymous inode for each open file: its i_mapping is the file's own ---- */

#define P2PMOD_FS_MAGIC 0x70327070

static int p2pmod_init_fs_context(struct fs_context *context)
{
	return init_pseudo(context, P2PMOD_FS_MAGIC) ? 0 : -ENOMEM;
}

static struct file_system_type p2pmod_fs = {
	.name = "p2pmod",
	.owner = THIS_MODULE,
	.init_fs_context = p2pmod_init_fs_context,
	.kill_sb = kill_anon_super,
};

static struct vfsmount *p2pmod_mount;
static int p2pmod_mount_count;

int p2pmod_inode_new(struct inode **result)
{
	struct inode *inode;
	int err;

	err = simple_pin_fs(&p2pmod_fs, &p2pmod_mount, &p2pmod_mount_count);
	if (err)
		return err;
	inode = alloc_anon_inode(p2pmod_mount->mnt_sb);
	if (IS_ERR(inode)) {
		simple_release_fs(&p2pmod_mount, &p2pmod_mount_count);
		return PTR_ERR(inode);
	}
	*result = inode;
	return 0;
}

void p2pmod_inode_free(struct inode *inode)
{
	iput(inode);
	simple_release_fs(&p2pmod_mount, &p2pmod_mount_count);
}

/* ---- /proc/driver/p2pmod ---- */

static int p2pmod_show(struct seq_file *out, void *unused)
{
#define SHOW(name) seq_printf(out, "%-10s %lld\n", #name, (s64)atomic64_read(&p2pmod_count.name))
	SHOW(pins);
	SHOW(bytes);
	SHOW(lanes);
	SHOW(pinned);
	SHOW(unpinned);
	SHOW(revoked);
	SHOW(failed);
	SHOW(maps);
	SHOW(faults);
	SHOW(sigbus);
	return 0;
}

#define PROC_NAME "driver/p2pmod"

/* ---- loading ---- */

static struct miscdevice p2pmod_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "p2pmod",
	.fops = &p2pmod_fops,
	.mode = 0666, /* pinning works only on memory that the caller's own process allocated */
};

static int __init p2pmod_init(void)
{
	int err;

	if (nv_driver_refused()) {
		pr_err("p2pmod: drivers 515 to 530 free page tables that they still read: install 535\n");
		return -ENODEV;
	}
	if (!proc_create_single(PROC_NAME, 0444, NULL, p2pmod_show))
		return -ENOMEM;
	err = misc_register(&p2pmod_device);
	if (err)
		remove_proc_entry(PROC_NAME, NULL);
	return err;
}

static void __exit p2pmod_exit(void)
{
	misc_deregister(&p2pmod_device);
	remove_proc_entry(PROC_NAME, NULL);
}

module_init(p2pmod_init);
module_exit(p2pmod_exit);

MODULE_DESCRIPTION("Pin and map NVIDIA GPU memory through BAR1");
MODULE_AUTHOR("the gpudirect authors");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION("0.1.0");
