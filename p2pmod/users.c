// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Limits. Who pins is charged, by user: opening more files, or passing them around, changes nothing.
 * A charge is made when the driver has found the memory, so that pins of nothing take nobody's share.
 */
#include <linux/cred.h>
#include <linux/slab.h>

#include "internal.h"

struct p2pmod_user {
	unsigned long uid;
	unsigned int buffers; /* that refer to this; under the lock of @users */
	atomic64_t bytes, pins;
};

static DEFINE_XARRAY(users); /* uid -> user */

struct p2pmod_user *p2pmod_user_get(void)
{
	unsigned long uid = __kuid_val(current_uid());
	struct p2pmod_user *user, *other;

	for (;;) {
		xa_lock(&users);
		user = xa_load(&users, uid);
		if (user)
			user->buffers++;
		xa_unlock(&users);
		if (user)
			return user;
		user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
		if (!user)
			return ERR_PTR(-ENOMEM);
		user->uid = uid;
		user->buffers = 1;
		other = xa_cmpxchg(&users, uid, NULL, user, GFP_KERNEL);
		if (!other)
			return user;
		kfree(user);
		if (xa_is_err(other))
			return ERR_PTR(xa_err(other));
	}
}

void p2pmod_user_put(struct p2pmod_user *user)
{
	bool last;

	xa_lock(&users);
	last = --user->buffers == 0;
	if (last)
		__xa_erase(&users, user->uid);
	xa_unlock(&users);
	if (last)
		kfree(user);
}

static bool take_share(atomic64_t *count, u64 n, u64 limit)
{
	if ((u64)atomic64_add_return(n, count) <= limit)
		return true;
	atomic64_sub(n, count);
	return false;
}

bool p2pmod_charge(struct p2pmod_user *user, u64 bytes)
{
	if (!take_share(&user->pins, 1, p2pmod_max_pins_per_user))
		return false;
	if (!take_share(&user->bytes, bytes, p2pmod_max_bytes_per_user))
		goto undo_pin;
	if (!take_share(&p2pmod_count.bytes, bytes, p2pmod_max_bytes_total))
		goto undo_bytes;
	atomic64_inc(&p2pmod_count.pins);
	return true;
undo_bytes:
	atomic64_sub(bytes, &user->bytes);
undo_pin:
	atomic64_dec(&user->pins);
	return false;
}

/* Before the driver is troubled; the charge itself decides. */
bool p2pmod_may_charge(struct p2pmod_user *user, u64 bytes)
{
	return (u64)atomic64_read(&user->pins) < p2pmod_max_pins_per_user &&
	       (u64)atomic64_read(&user->bytes) + bytes <= p2pmod_max_bytes_per_user &&
	       (u64)atomic64_read(&p2pmod_count.bytes) + bytes <= p2pmod_max_bytes_total;
}

void p2pmod_uncharge(struct p2pmod_user *user, u64 bytes)
{
	atomic64_dec(&p2pmod_count.pins);
	atomic64_sub(bytes, &p2pmod_count.bytes);
	atomic64_sub(bytes, &user->bytes);
	atomic64_dec(&user->pins);
}
