// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Reservations of physical ranges as write-combined.
 *
 * On x86, vmf_insert_pfn_prot() gives a page the type that its physical range is reserved with, and
 * uncached when it is not: asking for write-combining is not enough. The kernel keeps every
 * reservation in one list under one lock, so each byte is reserved once, in runs as long as they are,
 * however many buffers hold it.
 */
#include <linux/io.h>
#include <linux/mutex.h>
#include <linux/rbtree.h>
#include <linux/slab.h>

#include "internal.h"

/* Runs do not overlap. A buffer holds all of a run that it touches. */
struct run {
	struct rb_node node;
	u64 start, end;
	unsigned long holders;
	bool reserved; /* or somebody else has it with another type */
};

static struct rb_root runs = RB_ROOT;
static DEFINE_MUTEX(runs_lock);

/* The first run that ends after an address. */
static struct run *run_after(u64 at)
{
	struct rb_node *node = runs.rb_node;
	struct run *run, *found = NULL;

	while (node) {
		run = rb_entry(node, struct run, node);
		if (run->end > at)
			found = run;
		node = run->end > at ? node->rb_left : node->rb_right;
	}
	return found;
}

static int add_run(u64 start, u64 end)
{
	struct rb_node **link = &runs.rb_node, *parent = NULL;
	struct run *run = kmalloc(sizeof(*run), GFP_KERNEL);
	int err;

	if (!run)
		return -ENOMEM;
	run->start = start;
	run->end = end;
	run->holders = 0;
	err = arch_io_reserve_memtype_wc(start, end - start);
	run->reserved = !err;
	if (err == -ENOMEM) {
		kfree(run);
		return err;
	}
	while (*link) {
		parent = *link;
		link = start < rb_entry(parent, struct run, node)->start ? &parent->rb_left :
									   &parent->rb_right;
	}
	rb_link_node(&run->node, parent, link);
	rb_insert_color(&run->node, &runs);
	return 0;
}

static void release_range(u64 start, u64 end)
{
	struct run *run = run_after(start), *next;

	for (; run && run->start < end; run = next) {
		next = rb_entry_safe(rb_next(&run->node), struct run, node);
		if (--run->holders)
			continue;
		if (run->reserved)
			arch_io_free_memtype_wc(run->start, run->end - run->start);
		rb_erase(&run->node, &runs);
		kfree(run);
	}
}

/* p2pmod_reserve_write_combining() of a range. */
static int reserve_range(u64 start, u64 end)
{
	struct run *run;
	int got = 2, err;
	u64 at = start;

	while (at < end) {
		run = run_after(at);
		if (!run || run->start > at) {
			err = add_run(at, run ? min(end, run->start) : end);
			if (err) {
				release_range(start, at);
				return err;
			}
			continue;
		}
		run->holders++;
		got = run->reserved ? min(got, at == start ? 2 : 1) : 0;
		at = run->end;
	}
	return got;
}

/* Pages from @i on that follow each other. */
static unsigned long contiguous(const u64 *bus, unsigned long i, unsigned long pages)
{
	unsigned long n = 1;

	while (i + n < pages && bus[i + n] == bus[i + n - 1] + GPU_PAGE)
		n++;
	return n;
}

void p2pmod_release_write_combining(const u64 *bus, unsigned long pages)
{
	unsigned long i, n;

	mutex_lock(&runs_lock);
	for (i = 0; i < pages; i += n) {
		n = contiguous(bus, i, pages);
		release_range(bus[i], bus[i] + n * GPU_PAGE);
	}
	mutex_unlock(&runs_lock);
}

int p2pmod_reserve_write_combining(const u64 *bus, unsigned long pages)
{
	unsigned long i, n;
	int got = 2, one = 0;

	mutex_lock(&runs_lock);
	for (i = 0; i < pages; i += n) {
		n = contiguous(bus, i, pages);
		one = reserve_range(bus[i], bus[i] + n * GPU_PAGE);
		if (one < 0)
			break;
		got = min(got, one);
	}
	mutex_unlock(&runs_lock);
	if (one < 0) {
		/* pages up to i: their runs end where this one would have started, or before */
		p2pmod_release_write_combining(bus, i);
		return one;
	}
	return got;
}
