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
	unsigned int buffers; /* that refer to this; under the lock of @users, as all here */
	u64 bytes, pins;
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
			return NULL;
		user->uid = uid;
		user->buffers = 1;
		other = xa_cmpxchg(&users, uid, NULL, user, GFP_KERNEL);
		if (!other)
			return user;
		kfree(user);
		if (xa_is_err(other))
			return NULL;
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

bool p2pmod_may_charge(struct p2pmod_user *user, u64 bytes)
{
	return READ_ONCE(user->pins) < p2pmod_max_pins_per_user &&
	       READ_ONCE(user->bytes) + bytes <= p2pmod_max_bytes_per_user &&
	       (u64)atomic64_read(&p2pmod_count.bytes) + bytes <= p2pmod_max_bytes_total;
}

static void change_share(struct p2pmod_user *user, s64 pins, s64 bytes)
{
	WRITE_ONCE(user->pins, user->pins + pins);
	WRITE_ONCE(user->bytes, user->bytes + bytes);
	atomic64_add(pins, &p2pmod_count.pins);
	atomic64_add(bytes, &p2pmod_count.bytes);
}

bool p2pmod_charge(struct p2pmod_user *user, u64 bytes)
{
	bool may;

	xa_lock(&users);
	may = p2pmod_may_charge(user, bytes);
	if (may)
		change_share(user, 1, bytes);
	xa_unlock(&users);
	return may;
}

void p2pmod_uncharge(struct p2pmod_user *user, u64 bytes)
{
	xa_lock(&users);
	change_share(user, -1, -(s64)bytes);
	xa_unlock(&users);
}
