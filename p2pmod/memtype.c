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
#include <linux/slab.h>
#include <linux/xarray.h>

#include "internal.h"

/* Runs do not overlap. A buffer holds all of a run that it touches. */
struct run {
	u64 start, end;
	unsigned long holders;
	bool reserved; /* or somebody else has it with another type */
};

static DEFINE_XARRAY(runs); /* by the number of a run's last GPU page */
static DEFINE_MUTEX(runs_lock);

static unsigned long last_page(const struct run *run)
{
	return (run->end >> GPU_PAGE_SHIFT) - 1;
}

/* The first run that ends after an address. */
static struct run *run_after(u64 at)
{
	unsigned long page = at >> GPU_PAGE_SHIFT;

	return xa_find(&runs, &page, ULONG_MAX, XA_PRESENT);
}

static int add_run(u64 start, u64 end)
{
	struct run *run = kzalloc(sizeof(*run), GFP_KERNEL);
	int err;

	if (!run)
		return -ENOMEM;
	run->start = start;
	run->end = end;
	err = xa_err(xa_store(&runs, last_page(run), run, GFP_KERNEL));
	if (!err) {
		err = arch_io_reserve_memtype_wc(start, end - start);
		run->reserved = !err;
		if (err != -ENOMEM)
			return 0;
		xa_erase(&runs, last_page(run));
	}
	kfree(run);
	return err;
}

/* Of whole runs, which the caller holds. */
static int release_range(u64 start, u64 end)
{
	struct run *run;

	while (start < end) {
		run = run_after(start);
		start = run->end;
		if (--run->holders)
			continue;
		if (run->reserved)
			arch_io_free_memtype_wc(run->start, run->end - run->start);
		xa_erase(&runs, last_page(run));
		kfree(run);
	}
	return 0;
}

/* p2pmod_reserve_write_combining() of a range. */
static int reserve_range(u64 start, u64 end)
{
	u64 at = start;
	struct run *run;
	int got = 2, err;

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

/*
 * Call @change for each stretch of pages that follow each other: the least it returns. It ends at an
 * error, with @pages as far as it was.
 */
static int each_range(const u64 *bus, unsigned long *pages, int (*change)(u64 start, u64 end))
{
	unsigned long i, n;
	int least = 2;

	for (i = 0; i < *pages && least >= 0; i += n) {
		for (n = 1; i + n < *pages && bus[i + n] == bus[i] + n * GPU_PAGE; n++)
			;
		least = min(least, change(bus[i], bus[i] + n * GPU_PAGE));
		if (least < 0)
			*pages = i;
	}
	return least;
}

void p2pmod_release_write_combining(const u64 *bus, unsigned long pages)
{
	mutex_lock(&runs_lock);
	each_range(bus, &pages, release_range);
	mutex_unlock(&runs_lock);
}

int p2pmod_reserve_write_combining(const u64 *bus, unsigned long pages)
{
	int got;

	mutex_lock(&runs_lock);
	got = each_range(bus, &pages, reserve_range);
	if (got < 0)
		each_range(bus, &pages, release_range);
	mutex_unlock(&runs_lock);
	return got;
}
