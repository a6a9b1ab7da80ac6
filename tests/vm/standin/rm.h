/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A model of the driver's resource manager, as far as nv-p2p rests on it. Its rules are the driver's:
 *
 *   - one lock is held around the free callbacks, and taken to pin and to unpin
 *   - memory is looked up among what the calling process (its thread group's number) allocated
 *   - a pin is known by its key, the driver's record of it, and nothing else
 *   - unpinning looks for the key among the calling process's memory only, except of persistent pins,
 *     which carry the memory they belong to
 *   - freeing memory calls back for every pin of it, then forgets the pin
 *
 * Answers: 0, -ENOENT (nothing of that kind in this process), -ENOMEM, -EINVAL, and what a test asked
 * for.
 */
#ifndef STANDIN_RM_H
#define STANDIN_RM_H

#include <linux/types.h>

#include "standin.h"

#define PAGE64 ((u64)STANDIN_PAGE_SIZE)

struct rm_memory;

int rm_pin(u64 va, u64 length, void *key, u64 *bus, bool *cacheable);
int rm_pin_persistent(u64 va, u64 length, void *key, u64 *bus, bool *cacheable,
		      struct rm_memory **object);
/* Last step of a pin: from now on the owner's free calls back. */
int rm_register(u64 va, u64 length, void *key, void (*callback)(void *data), void *data);
int rm_unpin(void *key);
int rm_unpin_persistent(struct rm_memory *object, void *key);
bool rm_owns(u64 va, u64 length); /* is this memory of the calling process? */

/* The driver's allocator; remembers the largest request. What was freed last is given out first. */
void *rm_alloc(u64 bytes);
void rm_free(void *memory);

/* The version that page tables are to say; 0: the layer's own. */
u32 rm_table_version(void);

/* Does the layer above write page tables of this version? (layer.c, glue.c) */
bool layer_offers_version(u32 version);
bool layer_tells(u64 err); /* it answers this errno where the manager means it; else -EIO */
u32 layer_version(void);
u32 layer_flags(void); /* STANDIN_DRIVER_SOURCE */
int layer_init(void);
void layer_exit(void);

int rm_init(u64 bus, u64 bytes);
void rm_exit(void);
struct rm_memory *rm_allocate(struct standin_alloc *arg);
struct rm_memory *rm_join(u64 va); /* a neighbour in the same pages */
void rm_release(struct rm_memory *memory); /* one user less; the last one frees */
void rm_forget(struct rm_memory *memory);  /* after rm_release, when nobody refers to it any more */
int rm_bus(struct rm_memory *memory, u64 offset, u64 *bus);
u64 rm_length(const struct rm_memory *memory);
int rm_control(struct rm_memory *memory, const struct standin_control *c);
void rm_query(struct standin_query *query);

#endif
