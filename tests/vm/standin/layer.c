// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The driver's nv-p2p layer in our words, over the model: for cells of the matrix that are built
 * without the driver's own (see glue.c for those that are). It keeps the same rules: the arrays are
 * sized by the length that was asked for before the address is looked up; the page table lies inside
 * the record of the pin, by whose address the pin is known; the record is freed after the client's
 * callback; a failed get leaves a dangling pointer behind; a late put answers 0; each call needs memory
 * for the manager's stack, and fails without, a put as well.
 */
#include <linux/errno.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "../../../p2pmod/nv-p2p-own.h"
#include "rm.h"

#ifdef STANDIN_PROPRIETARY
#define EXPORT(symbol) EXPORT_SYMBOL(symbol)
#else
#define EXPORT(symbol) EXPORT_SYMBOL_GPL(symbol)
#endif

struct record {
	void (*callback)(void *data);
	void *data;
	struct nvidia_p2p_page_table table;
	struct rm_memory *object; /* of a persistent pin */
};

static uint version = 0x00010002;
module_param(version, uint, 0644);

bool layer_offers_version(u32 v)
{
	return true;
}

bool layer_tells(u64 err)
{
	return true;
}

u32 layer_version(void)
{
	return version;
}

u32 layer_flags(void)
{
	return 0;
}

int layer_init(void)
{
	return 0;
}

void layer_exit(void)
{
}

static void record_free(struct record *record)
{
	u32 i;

	for (i = 0; i < record->table.entries; i++)
		rm_free(record->table.pages[i]);
	rm_free(record->table.pages);
	rm_free(record);
}

static void freed(void *data)
{
	struct record *record = data;

	record->callback(record->data);
	record_free(record);
}

#define STACK 4096

static int errno_of(int err)
{
	return err == -ENOENT ? -EINVAL : err;
}

static int fill(struct nvidia_p2p_page_table *table, const u64 *bus, u64 n, bool cacheable)
{
	u64 i;

	table->pages = rm_alloc(n * sizeof(*table->pages));
	if (!table->pages)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		table->pages[i] = rm_alloc(sizeof(**table->pages));
		if (!table->pages[i])
			return -ENOMEM;
		memset(table->pages[i], 0, sizeof(**table->pages));
		table->pages[i]->physical_address = bus[i];
		table->entries = i + 1;
	}
	table->version = rm_table_version() ? rm_table_version() : version;
	table->page_size = NVIDIA_P2P_PAGE_SIZE_64KB;
	/* not there before version 2: must not be read */
	table->flags = table->version >= 0x00020000 ? cacheable : 0x5a5a5a5a;
	return 0;
}

static int get(u64 va, u64 length, struct nvidia_p2p_page_table **table,
	       void (*callback)(void *data), void *data)
{
	u64 n = length / PAGE64;
	struct record *record;
	bool cacheable;
	u64 *bus;
	int err;

	if (!length || va % PAGE64 || length % PAGE64)
		return -EINVAL;
	record = rm_alloc(sizeof(*record));
	if (!record)
		return -ENOMEM;
	memset(record, 0, sizeof(*record));
	*table = &record->table;
	bus = rm_alloc(n * sizeof(*bus));
	err = -ENOMEM;
	if (!bus)
		goto undo_record;
	if (callback)
		err = rm_pin(va, length, record, bus, &cacheable);
	else
		err = rm_pin_persistent(va, length, record, bus, &cacheable, &record->object);
	if (!err)
		err = fill(&record->table, bus, n, cacheable);
	else
		goto undo_bus;
	if (!err && callback) {
		record->callback = callback;
		record->data = data;
		err = rm_register(va, length, record, freed, record);
	}
	if (err)
		goto undo_pin;
	rm_free(bus);
	return 0;

undo_pin:
	if (callback)
		rm_unpin(record);
	else
		rm_unpin_persistent(record->object, record);
undo_bus:
	rm_free(bus);
undo_record:
	record_free(record); /* and *table points into it */
	return errno_of(err);
}

static int get_on_stack(u64 va, u64 length, struct nvidia_p2p_page_table **table,
			void (*callback)(void *data), void *data)
{
	void *stack = kmalloc(STACK, GFP_KERNEL);
	int err = stack ? get(va, length, table, callback, data) : -ENOMEM;

	kfree(stack);
	return err;
}

int nvidia_p2p_get_pages(uint64_t token, uint32_t va_space, uint64_t va, uint64_t length,
			 struct nvidia_p2p_page_table **table, void (*callback)(void *data),
			 void *data)
{
	return callback ? get_on_stack(va, length, table, callback, data) : -EINVAL;
}
EXPORT(nvidia_p2p_get_pages);

int nvidia_p2p_put_pages(uint64_t token, uint32_t va_space, uint64_t va,
			 struct nvidia_p2p_page_table *table)
{
	struct record *record = container_of(table, struct record, table);
	void *stack = kmalloc(STACK, GFP_KERNEL);

	if (!stack)
		return -ENOMEM;
	if (!rm_unpin(record))
		record_free(record);
	kfree(stack);
	return 0; /* also where there was nothing to unpin */
}
EXPORT(nvidia_p2p_put_pages);

int nvidia_p2p_free_page_table(struct nvidia_p2p_page_table *table); /* nothing of ours calls it */

int nvidia_p2p_free_page_table(struct nvidia_p2p_page_table *table)
{
	return 0; /* the driver does so itself, after the callback */
}
EXPORT(nvidia_p2p_free_page_table);

int nvidia_p2p_get_pages_persistent(uint64_t va, uint64_t length,
				    struct nvidia_p2p_page_table **table, uint32_t flags)
{
	if (flags & ~1u)
		return -EINVAL;
	return get_on_stack(va, length, table, NULL, NULL);
}
EXPORT(nvidia_p2p_get_pages_persistent);

int nvidia_p2p_put_pages_persistent(uint64_t va, struct nvidia_p2p_page_table *table,
				    uint32_t flags)
{
	struct record *record = container_of(table, struct record, table);
	void *stack = kmalloc(STACK, GFP_KERNEL);
	int err = stack ? rm_unpin_persistent(record->object, record) : -ENOMEM;

	if (!err)
		record_free(record);
	kfree(stack);
	return errno_of(err);
}
EXPORT(nvidia_p2p_put_pages_persistent);
