/* SPDX-License-Identifier: MIT */
/*
 * Copies, fences and single words: ordinary memory and memory of a device that is mapped into this
 * process. cffi reads this file too (the runtime calls the same functions), so it holds declarations
 * and nothing else.
 *
 * Conventions
 *   - Addresses in a mapping are uintptr_t; ordinary memory is a pointer.
 *   - Sizes and offsets are bytes, times are nanoseconds.
 *   - Functions that can fail return 0 (or a count, or an address) or -errno.
 *   - A guarded access that met a revoked mapping returns -EFAULT; gd_fault_address() tells where.
 */
#ifndef GPUDIRECT_COPY_H
#define GPUDIRECT_COPY_H

#include <stddef.h>
#include <stdint.h>

/* ---- flags of the copy functions ---- */
#define GD_NO_FENCE 1    /* leave the caller's stores in the write-combining buffers; it fences */
                         /* itself. Copy threads fence theirs in any case */
#define GD_GUARDED 2     /* the mapping can be revoked: turn SIGBUS into -EFAULT */
#define GD_ONE_THREAD 4  /* never use the copy threads, whatever the size */
/* team << GD_TEAM_SHIFT: which copy threads serve it; each team serves one copy at a time */
#define GD_TEAM_SHIFT 8
#define GD_TEAMS 16      /* numbered from 0 */

/*
 * ---- copy.c, strided.c: ordinary memory <-> mapping ----
 * Source and destination must not overlap: -EINVAL, and nothing is copied. (Two mappings of the
 * same device memory cannot be told apart; copying one onto the other is undefined.)
 * A copy that returned -EFAULT may have been done in part.
 */
/* Store n bytes into the mapping. Never loads from it. Fences unless GD_NO_FENCE. */
int gd_write(uintptr_t dst, const char *src, size_t n, unsigned flags);
/* Load n bytes out of the mapping with the widest streaming loads that pay for n. */
int gd_read(char *dst, uintptr_t src, size_t n, unsigned flags);
/* Store `value` (repeated, 1 byte) over n bytes of the mapping. */
int gd_fill(uintptr_t dst, int value, size_t n, unsigned flags);
#define GD_MAX_DIMS 64 /* NumPy's limit */
/*
 * Strided copies, ndim <= GD_MAX_DIMS: shape in elements, strides in bytes, itemsize in bytes. The
 * order in which the mapping is best accessed is found here; no staging copy is made. What the two
 * sides reach must not overlap. One thread, unless both sides turn out to be contiguous.
 */
int gd_write_nd(uintptr_t dst, const int64_t *dst_strides, const char *src,
                const int64_t *src_strides, const int64_t *shape, int ndim, size_t itemsize,
                unsigned flags);
int gd_read_nd(char *dst, const int64_t *dst_strides, uintptr_t src, const int64_t *src_strides,
               const int64_t *shape, int ndim, size_t itemsize, unsigned flags);
/*
 * Scattered stores: piece i goes to dst + offset. Nothing is written if one leaves dst_size
 * (-ERANGE) or comes from inside it (-EINVAL).
 */
struct gd_piece {
    uint64_t offset; /* bytes from dst */
    uint64_t length; /* bytes */
    uint64_t source; /* address of the piece in ordinary memory */
};
int gd_scatter(uintptr_t dst, size_t dst_size, const struct gd_piece *pieces, size_t count,
               unsigned flags);
/* The same for equal pieces packed one after the other in src. */
int gd_scatter_items(uintptr_t dst, size_t dst_size, const int64_t *offsets, size_t count,
                     const char *src, size_t itemsize, unsigned flags);

/*
 * ---- gather.c: single elements of a mapping, packed in ordinary memory ----
 * Indices count elements of `itemsize` bytes from src on; negative ones count from the end of `size`
 * elements, as NumPy's do.
 */
/* Which index is the first that is outside, or -1; and the lowest and highest, none negative. */
int64_t gd_indices_check(const int64_t *indices, size_t count, size_t size, int64_t *low,
                         int64_t *high);
/* -ERANGE: an index is outside; -EINVAL: dst lies in the mapping. Nothing was loaded then. */
int gd_gather_items(char *dst, uintptr_t src, size_t size, const int64_t *indices, size_t count,
                    size_t itemsize, unsigned flags);

/* ---- order ---- */
void gd_fence(void); /* every store made so far by this thread leaves for the device */
int64_t gd_fault_address(void); /* of this thread's last -EFAULT */

/*
 * ---- choice of instructions ----
 * "avx512+movdir64b", "avx512", "movdir64b", "avx2", "sse2", "neon", "plain"
 */
int gd_isa_count(void);
const char *gd_isa_name(int index);      /* in order of preference */
int gd_isa_usable(int index);            /* 1 if this CPU and OS have it */
const char *gd_isa_selected(void);
int gd_isa_select(const char *name); /* -EINVAL unknown, -ENOTSUP not on this CPU; NULL: best */

/* ---- threads.c: copy threads, started once, on first use above the threshold ---- */
/*
 * Bytes from which a copy uses several threads: in a row with others (the last ended less than 50 us
 * ago, so the threads are awake), or alone (they must be woken first).
 */
struct gd_thresholds {
    size_t read_in_a_row, read_alone, write_in_a_row, write_alone;
};
/* cpus: CPUs the threads may run on (near the device), or NULL. -EBUSY while a copy runs. */
int gd_threads_configure(int count, const int *cpus, int cpu_count,
                         const struct gd_thresholds *from);
int gd_threads_count(void);
/* The same for one team: one for each device, say, whose threads run near it. The sizes are those of all. */
int gd_threads_configure_team(unsigned team, int count, const int *cpus, int cpu_count,
                              const struct gd_thresholds *from);

/* ---- doorbell.c: single words and waiting; an address must be a multiple of the word ---- */
int gd_store32(uintptr_t address, uint32_t value, unsigned flags);
int gd_store64(uintptr_t address, uint64_t value, unsigned flags);
int gd_load32(uintptr_t address, uint32_t *value, unsigned flags);
int gd_load64(uintptr_t address, uint64_t *value, unsigned flags);
/*
 * Spin until *address == value. -ETIMEDOUT after timeout (< 0: for ever); timeout 0 looks once.
 * Always guarded: -EFAULT if the word is revoked meanwhile.
 */
int gd_wait32(uintptr_t address, uint32_t value, int64_t timeout);
int gd_wait64(uintptr_t address, uint64_t value, int64_t timeout);
uint64_t gd_now(void); /* monotonic clock */

#endif
