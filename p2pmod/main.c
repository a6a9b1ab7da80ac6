// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * p2pmod: pins NVIDIA GPU memory, tells where it is, and maps it for programs and other modules.
 *
 * This file: loading, statistics, and limits.
 */
#include <linux/cred.h>
#include <linux/hashtable.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>

#include "compat.h"
#include "internal.h"

/*
 * ---- limits ----
 *
 * Who pins is charged, by user: opening more files, or passing them around, changes nothing. A charge
 * is made when the driver has found the memory, so that pins of nothing take nobody's share.
 */

ulong p2pmod_max_bytes_per_user = ULONG_MAX;
module_param_named(max_bytes_per_user, p2pmod_max_bytes_per_user, ulong, 0644);
MODULE_PARM_DESC(max_bytes_per_user, "Bytes that one user may pin");

ulong p2pmod_max_pins_per_user = 65536;
module_param_named(max_pins_per_user, p2pmod_max_pins_per_user, ulong, 0644);
MODULE_PARM_DESC(max_pins_per_user, "Buffers that one user may hold");

ulong p2pmod_max_bytes_total = ULONG_MAX;
module_param_named(max_bytes_total, p2pmod_max_bytes_total, ulong, 0644);
MODULE_PARM_DESC(max_bytes_total, "Bytes that all users together may pin");

/* Who has something pinned. */
struct p2pmod_user {
	struct hlist_node by_uid;
	kuid_t uid;
	u64 bytes, pins;
};

static DEFINE_HASHTABLE(users, 8);
static DEFINE_SPINLOCK(users_lock); /* over what they have, too */

static struct p2pmod_user *calling_user(void)
{
	struct p2pmod_user *user;

	lockdep_assert_held(&users_lock);
	hash_for_each_possible(users, user, by_uid, __kuid_val(current_uid()))
		if (uid_eq(user->uid, current_uid()))
			return user;
	return NULL;
}

static bool may_have(const struct p2pmod_user *user, u64 more)
{
	return (user ? user->pins : 0) < p2pmod_max_pins_per_user &&
	       (user ? user->bytes : 0) + more <= p2pmod_max_bytes_per_user &&
	       (u64)atomic64_read(&p2pmod_count.bytes) + more <= p2pmod_max_bytes_total;
}

bool p2pmod_may_charge(u64 bytes)
{
	bool may;

	spin_lock(&users_lock);
	may = may_have(calling_user(), bytes);
	spin_unlock(&users_lock);
	return may;
}

/* Who has nothing is forgotten. */
static void change_share(struct p2pmod_user *user, s64 pins, s64 bytes)
{
	lockdep_assert_held(&users_lock);
	atomic64_add(pins, &p2pmod_count.pins);
	atomic64_add(bytes, &p2pmod_count.bytes);
	user->bytes += bytes;
	user->pins += pins;
	if (!user->pins) {
		hash_del(&user->by_uid);
		kfree(user);
	}
}

struct p2pmod_user *p2pmod_charge(u64 bytes)
{
	struct p2pmod_user *user, *made = NULL;
	bool may;

	for (;;) {
		spin_lock(&users_lock);
		user = calling_user();
		if (user || made)
			break;
		spin_unlock(&users_lock);
		made = kzalloc(sizeof(*made), GFP_KERNEL_ACCOUNT);
		if (!made)
			return ERR_PTR(-ENOMEM);
		made->uid = current_uid();
	}
	if (!user) {
		swap(user, made);
		hash_add(users, &user->by_uid, __kuid_val(user->uid));
	}
	may = may_have(user, bytes);
	change_share(user, may, may ? bytes : 0);
	spin_unlock(&users_lock);
	kfree(made); /* somebody was faster */
	return may ? user : ERR_PTR(-ENOSPC);
}

void p2pmod_uncharge(struct p2pmod_user *user, u64 bytes)
{
	spin_lock(&users_lock);
	change_share(user, -1, -(s64)bytes);
	spin_unlock(&users_lock);
}

/* ---- /proc/driver/p2pmod ---- */

struct p2pmod_counters p2pmod_count;

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
	static u64 nobodys[64]; /* a page table, and the driver's record around it, that no pin has */

	misc_deregister(&p2pmod_device);
	remove_proc_entry(PROC_NAME, NULL);
	p2pmod_callbacks_wait();
	/* to their last instruction: the driver holds over callbacks the lock that put_pages takes */
	while (nvidia_p2p_put_pages(0, 0, 0, (struct nvidia_p2p_page_table *)&nobodys[32]) == -ENOMEM)
		schedule_timeout_uninterruptible(1);
}

module_init(p2pmod_init);
module_exit(p2pmod_exit);

MODULE_DESCRIPTION("Pin and map NVIDIA GPU memory through BAR1");
MODULE_AUTHOR("the gpudirect authors");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION("0.1.0");
