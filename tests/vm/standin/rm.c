// SPDX-License-Identifier: GPL-2.0 OR MIT
/* See rm.h. */
#include <linux/delay.h>
#include <linux/hashtable.h>
#include <linux/kref.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "rm.h"

#define FIRST_VA 0x500000000000ULL

struct rm_memory {
	struct list_head entry;
	struct kref ref; /* the open files that hold it, and every persistent pin */
	unsigned int users; /* open files that have not freed it */
	pid_t owner;     /* thread group that allocated it */
	u64 va, length;
	bool freed;
	struct list_head pins;
	u32 page[]; /* which 64 KiB of the BAR each page is */
};

struct pin {
	struct list_head entry; /* in the memory's pins */
	struct hlist_node by_key;
	struct rm_memory *memory;
	void *key;
	u64 length;
	bool persistent;
	void (*callback)(void *data);
	void *data;
};

static DEFINE_MUTEX(rm_lock);
static LIST_HEAD(memories);
static DEFINE_HASHTABLE(pins, 12); /* by key: a test holds tens of thousands of one memory */
static unsigned long *used;
static u64 bar, bar_pages, pages_free, next_va = FIRST_VA, next_page, pins_held, bar1_used;
static u64 bar1_limit = U64_MAX;
static u64 fail_next, delay_pin, delay_put, delay_callback, cacheable, early_callback;
static u32 version;

/* ---- the driver's allocator ---- */

struct block {
	u64 bytes;
	u64 content[];
};

static DEFINE_MUTEX(block_lock);
static struct block *freed_last; /* what a slab does on one CPU, whatever the CPU and the debugging */
static u64 largest;

void *rm_alloc(u64 bytes)
{
	struct block *block = NULL;

	mutex_lock(&block_lock);
	largest = max(largest, bytes);
	if (freed_last && freed_last->bytes == bytes)
		swap(block, freed_last);
	mutex_unlock(&block_lock);
	if (!block)
		block = kvmalloc(sizeof(*block) + bytes, GFP_KERNEL | __GFP_NOWARN);
	if (!block)
		return NULL;
	block->bytes = bytes;
	return block->content;
}

void rm_free(void *memory)
{
	struct block *block = container_of(memory, struct block, content[0]);

	if (!memory)
		return;
	memset(memory, 0x5a, block->bytes);
	mutex_lock(&block_lock);
	swap(block, freed_last);
	mutex_unlock(&block_lock);
	kvfree(block);
}

/* ---- memory ---- */

static void memory_free(struct kref *ref)
{
	struct rm_memory *m = container_of(ref, struct rm_memory, ref);
	u64 i;

	for (i = 0; i < m->length / PAGE64; i++)
		clear_bit(m->page[i], used);
	pages_free += m->length / PAGE64;
	kvfree(m);
}

static void drop_pin(struct pin *pin)
{
	list_del(&pin->entry);
	hash_del(&pin->by_key);
	pins_held--;
	bar1_used -= pin->length;
	kfree(pin);
}

/* Take the pins back. */
static void revoke(struct rm_memory *m)
{
	struct pin *pin, *next;

	lockdep_assert_held(&rm_lock);
	list_for_each_entry_safe(pin, next, &m->pins, entry) {
		if (pin->persistent)
			continue;
		if (delay_callback)
			msleep(delay_callback);
		if (pin->callback)
			pin->callback(pin->data);
		drop_pin(pin);
	}
}

void rm_release(struct rm_memory *m)
{
	mutex_lock(&rm_lock);
	if (m->users && --m->users == 0) {
		m->freed = true;
		list_del(&m->entry);
		revoke(m);
	}
	mutex_unlock(&rm_lock);
}

static void put_memory(struct rm_memory *m)
{
	mutex_lock(&rm_lock);
	kref_put(&m->ref, memory_free);
	mutex_unlock(&rm_lock);
}

void rm_forget(struct rm_memory *m)
{
	put_memory(m);
}

/* A page that is free, in an order that leaves no two neighbours together unless asked. */
static u32 take_page(bool contiguous)
{
	do {
		next_page = (next_page + (contiguous ? 1 : 1021)) % bar_pages;
		if (!contiguous && (next_page == 0 || test_bit(next_page, used)))
			next_page = (next_page + 1) % bar_pages;
	} while (test_bit(next_page, used));
	set_bit(next_page, used);
	return next_page;
}

/* The first page of @n in a row, or nothing. */
static s64 find_run(u64 n)
{
	u64 start = 0, i;

	for (i = 0; i < bar_pages; i++) {
		if (test_bit(i, used))
			start = i + 1;
		else if (i + 1 - start == n)
			return start;
	}
	return -1;
}

static struct rm_memory *find(u64 va, u64 length)
{
	struct rm_memory *m;

	lockdep_assert_held(&rm_lock);
	list_for_each_entry(m, &memories, entry)
		if (m->owner == current->tgid && va >= m->va && length <= m->length &&
		    va - m->va <= m->length - length)
			return m;
	return NULL;
}

bool rm_owns(u64 va, u64 length)
{
	bool found;

	mutex_lock(&rm_lock);
	found = find(va, length);
	mutex_unlock(&rm_lock);
	return found;
}

struct rm_memory *rm_allocate(struct standin_alloc *arg)
{
	u64 n = arg->length / PAGE64, i;
	bool contiguous = arg->flags & STANDIN_CONTIGUOUS;
	struct rm_memory *m, *other;
	s64 run = 0;

	if (!n || arg->length % PAGE64 || arg->va % PAGE64 || arg->flags & ~STANDIN_CONTIGUOUS)
		return ERR_PTR(-EINVAL);
	if (n > bar_pages)
		return ERR_PTR(-ENOMEM);
	m = kvzalloc(struct_size(m, page, n), GFP_KERNEL);
	if (!m)
		return ERR_PTR(-ENOMEM);
	mutex_lock(&rm_lock);
	if (contiguous)
		run = find_run(n);
	if (n > pages_free || run < 0) {
		mutex_unlock(&rm_lock);
		kvfree(m);
		return ERR_PTR(-ENOMEM);
	}
	if (!arg->va) {
		arg->va = next_va;
		next_va += arg->length;
	}
	list_for_each_entry(other, &memories, entry)
		if (other->owner == current->tgid && arg->va < other->va + other->length &&
		    other->va < arg->va + arg->length) {
			mutex_unlock(&rm_lock);
			kvfree(m);
			return ERR_PTR(-EEXIST);
		}
	kref_init(&m->ref);
	m->users = 1;
	INIT_LIST_HEAD(&m->pins);
	m->owner = current->tgid;
	m->va = arg->va;
	m->length = arg->length;
	pages_free -= n;
	if (contiguous)
		next_page = (run + bar_pages - 1) % bar_pages;
	for (i = 0; i < n; i++)
		m->page[i] = take_page(contiguous);
	list_add(&m->entry, &memories);
	mutex_unlock(&rm_lock);
	return m;
}

struct rm_memory *rm_join(u64 va)
{
	struct rm_memory *m;

	mutex_lock(&rm_lock);
	m = find(va, 1);
	if (m) {
		m->users++;
		kref_get(&m->ref);
	}
	mutex_unlock(&rm_lock);
	return m ? m : ERR_PTR(-ENOENT);
}

u64 rm_length(const struct rm_memory *m)
{
	return m->length;
}

int rm_bus(struct rm_memory *m, u64 offset, u64 *bus)
{
	if (offset >= m->length)
		return -ERANGE;
	*bus = bar + m->page[offset / PAGE64] * PAGE64 + offset % PAGE64;
	return 0;
}

/* ---- pins ---- */

static int pin_memory(u64 va, u64 length, void *key, u64 *bus, bool *cached, bool persistent,
		      struct rm_memory **object)
{
	struct rm_memory *m;
	struct pin *pin;
	int err;
	u64 i;

	mutex_lock(&rm_lock);
	err = -(int)fail_next;
	fail_next = 0;
	if (err)
		goto out;
	err = -ENOENT;
	m = find(va, length);
	if (!m)
		goto out;
	err = -ENOMEM;
	if (bar1_used + length > bar1_limit)
		goto out;
	pin = kzalloc(sizeof(*pin), GFP_KERNEL);
	if (!pin)
		goto out;
	pin->memory = m;
	pin->key = key;
	pin->length = length;
	pin->persistent = persistent;
	list_add(&pin->entry, &m->pins);
	hash_add(pins, &pin->by_key, (unsigned long)key);
	pins_held++;
	bar1_used += length;
	for (i = 0; i < length / PAGE64; i++)
		bus[i] = bar + m->page[(va - m->va) / PAGE64 + i] * PAGE64;
	*cached = cacheable;
	if (persistent) {
		kref_get(&m->ref);
		*object = m;
	}
	err = 0;
out:
	mutex_unlock(&rm_lock);
	return err;
}

int rm_pin(u64 va, u64 length, void *key, u64 *bus, bool *cached)
{
	return pin_memory(va, length, key, bus, cached, false, NULL);
}

int rm_pin_persistent(u64 va, u64 length, void *key, u64 *bus, bool *cached,
		      struct rm_memory **object)
{
	return pin_memory(va, length, key, bus, cached, true, object);
}

static struct pin *pin_of(struct rm_memory *m, void *key)
{
	struct pin *pin;

	hash_for_each_possible(pins, pin, by_key, (unsigned long)key)
		if (pin->memory == m && pin->key == key)
			return pin;
	return NULL;
}

/* Among the calling process's memory, and only there. */
static struct pin *find_pin(void *key)
{
	struct pin *pin;

	hash_for_each_possible(pins, pin, by_key, (unsigned long)key)
		if (pin->key == key && !pin->persistent && !pin->memory->freed &&
		    pin->memory->owner == current->tgid)
			return pin;
	return NULL;
}

static int revoke_later(struct rm_memory *m, u64 ms);

int rm_register(u64 va, u64 length, void *key, void (*callback)(void *data), void *data)
{
	unsigned int pause = 0;
	struct rm_memory *m;
	struct pin *pin;

	mutex_lock(&rm_lock);
	m = find(va, length);
	pin = m ? find_pin(key) : NULL;
	if (pin) {
		pin->callback = callback;
		pin->data = data;
		if (early_callback) {
			/* from elsewhere, and before we return: it waits for the pin, with the lock */
			early_callback = 0;
			revoke_later(m, 0);
			pause = 20;
		}
	}
	mutex_unlock(&rm_lock);
	if (pin && (pause || delay_pin))
		msleep(pause + delay_pin);
	return pin ? 0 : -ENOENT;
}

int rm_unpin(void *key)
{
	struct pin *pin;

	if (delay_put)
		msleep(delay_put);
	mutex_lock(&rm_lock);
	pin = find_pin(key);
	if (pin)
		drop_pin(pin);
	mutex_unlock(&rm_lock);
	return pin ? 0 : -ENOENT;
}

int rm_unpin_persistent(struct rm_memory *m, void *key)
{
	struct pin *pin;

	mutex_lock(&rm_lock);
	pin = pin_of(m, key);
	if (pin) {
		drop_pin(pin);
		kref_put(&m->ref, memory_free);
	}
	mutex_unlock(&rm_lock);
	return pin ? 0 : -ENOENT;
}

/* ---- what tests ask for ---- */

struct later {
	struct rm_memory *memory;
	u64 ms;
};

static int later_thread(void *data)
{
	struct later *later = data;
	struct rm_memory *m = later->memory;

	msleep(later->ms);
	kfree(later);
	mutex_lock(&rm_lock);
	if (!m->freed)
		revoke(m);
	kref_put(&m->ref, memory_free);
	mutex_unlock(&rm_lock);
	module_put(THIS_MODULE);
	return 0;
}

/* Revoke from another thread, which keeps the memory and this module. With the lock held. */
static int revoke_later(struct rm_memory *m, u64 ms)
{
	struct later *later = kmalloc(sizeof(*later), GFP_KERNEL);
	struct task_struct *thread;

	if (!later)
		return -ENOMEM;
	later->memory = m;
	later->ms = ms;
	thread = kthread_create(later_thread, later, "standin-revoke");
	if (IS_ERR(thread)) {
		kfree(later);
		return PTR_ERR(thread);
	}
	kref_get(&m->ref);
	__module_get(THIS_MODULE);
	wake_up_process(thread);
	return 0;
}

u32 rm_table_version(void)
{
	return version;
}

int rm_control(struct rm_memory *m, const struct standin_control *c)
{
	int err = 0;

	switch (c->op) {
	case STANDIN_FAIL_NEXT:
		if (!layer_tells(c->value))
			return -EOPNOTSUPP;
		fail_next = c->value;
		return 0;
	case STANDIN_DELAY_PIN:
		delay_pin = c->value;
		return 0;
	case STANDIN_DELAY_PUT:
		delay_put = c->value;
		return 0;
	case STANDIN_DELAY_CALLBACK:
		delay_callback = c->value;
		return 0;
	case STANDIN_VERSION:
		if (!layer_offers_version(c->value))
			return -EOPNOTSUPP;
		version = c->value;
		return 0;
	case STANDIN_CACHEABLE:
		cacheable = c->value;
		return 0;
	case STANDIN_EARLY_CALLBACK:
		early_callback = c->value;
		return 0;
	case STANDIN_BAR1_LIMIT:
		bar1_limit = c->value ? c->value : U64_MAX;
		return 0;
	case STANDIN_REVOKE:
		if (!m)
			return -EINVAL;
		mutex_lock(&rm_lock);
		if (c->value)
			err = revoke_later(m, c->value);
		else if (!m->freed)
			revoke(m);
		mutex_unlock(&rm_lock);
		return err;
	}
	return -EINVAL;
}

void rm_query(struct standin_query *query)
{
	mutex_lock(&rm_lock);
	query->version = version ? version : layer_version();
	query->flags = layer_flags();
	query->total = bar_pages * PAGE64;
	query->free = pages_free * PAGE64;
	query->pins = pins_held;
	mutex_unlock(&rm_lock);
	mutex_lock(&block_lock);
	query->largest = largest;
	largest = 0;
	mutex_unlock(&block_lock);
}

int rm_init(u64 bus, u64 bytes)
{
	bar = bus;
	bar_pages = bytes / PAGE64;
	pages_free = bar_pages;
	used = kvcalloc(BITS_TO_LONGS(bar_pages), sizeof(long), GFP_KERNEL);
	return used ? 0 : -ENOMEM;
}

void rm_exit(void)
{
	struct pin *pin, *next_pin;
	struct rm_memory *m, *next;

	/* only a client that went without unpinning leaves anything */
	WARN_ON(pins_held);
	list_for_each_entry_safe(m, next, &memories, entry) {
		list_for_each_entry_safe(pin, next_pin, &m->pins, entry)
			kfree(pin);
		kvfree(m);
	}
	kvfree(freed_last);
	kvfree(used);
}
