// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * p2pmod: pins NVIDIA GPU memory, tells where it is, and maps it for programs and other modules.
 *
 * This file: loading, limits, and statistics.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "compat.h"
#include "internal.h"

ulong p2pmod_max_bytes_per_user = ULONG_MAX;
module_param_named(max_bytes_per_user, p2pmod_max_bytes_per_user, ulong, 0644);
MODULE_PARM_DESC(max_bytes_per_user, "Bytes that one user may pin");

ulong p2pmod_max_pins_per_user = 65536;
module_param_named(max_pins_per_user, p2pmod_max_pins_per_user, ulong, 0644);
MODULE_PARM_DESC(max_pins_per_user, "Buffers that one user may hold");

ulong p2pmod_max_bytes_total = ULONG_MAX;
module_param_named(max_bytes_total, p2pmod_max_bytes_total, ulong, 0644);
MODULE_PARM_DESC(max_bytes_total, "Bytes that all users together may pin");

ulong p2pmod_max_lanes = 1024;
module_param_named(max_lanes, p2pmod_max_lanes, ulong, 0644);
MODULE_PARM_DESC(max_lanes, "Lanes that other modules may be attached to");

bool p2pmod_show_bus_addresses;
module_param_named(show_bus_addresses, p2pmod_show_bus_addresses, bool, 0644);
MODULE_PARM_DESC(show_bus_addresses, "Tell bus addresses to every owner, not only CAP_SYS_RAWIO");

struct p2pmod_counters p2pmod_count;

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
	SHOW(orphans);
	p2pmod_orphans_show(out);
	return 0;
}

#define PROC_NAME "driver/p2pmod"

/* ---- loading ---- */

static struct miscdevice p2pmod_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "p2pmod",
	.fops = &p2pmod_fops,
	.mode = 0660, /* for whom else is the administrator's to say: 60-p2pmod.rules */
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
	p2pmod_callbacks_wait_in_driver();
}

module_init(p2pmod_init);
module_exit(p2pmod_exit);

MODULE_DESCRIPTION("Pin and map NVIDIA GPU memory through BAR1");
MODULE_AUTHOR("the gpudirect authors");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION("0.1.0");
