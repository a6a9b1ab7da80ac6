/* SPDX-License-Identifier: MIT */
/*
 * Everything the Python runtime may call in C. cffi reads this file as it stands
 * (build.py strips the preprocessor lines), so it holds declarations and nothing else.
 *
 * This layer knows addresses and sizes. It knows nothing of devices, bridges or arrays.
 *
 * Conventions
 *   - Addresses in a mapping are uintptr_t; ordinary memory is a pointer.
 *   - Sizes and offsets are bytes, times are nanoseconds.
 *   - Functions that can fail return 0 (or a count, or an address) or -errno.
 *   - A guarded access that met a revoked mapping returns -EFAULT; gd_fault_address() tells where.
 */
#ifndef GPUDIRECT_NATIVE_H
#define GPUDIRECT_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* ---- flags of the copy functions ---- */
#define GD_NO_FENCE 1    /* leave the caller's stores in the write-combining buffers; it fences */
                         /* itself. Copy threads fence theirs in any case */
#define GD_GUARDED 2     /* the mapping can be revoked: turn SIGBUS into -EFAULT */
#define GD_ONE_THREAD 4  /* never use the copy threads, whatever the size */

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

/* ---- work.c: what was queued on a device and not waited for since ---- */
/* Of one stream, or (device: NULL) the sum over the streams of a device. Counted by any thread. */
struct gd_work {
    uint64_t begun, queued, settled; /* pieces of work: about to be queued, queued, waited for */
    struct gd_work *device;          /* the sum that this belongs to */
};
void gd_work_begin(struct gd_work *work);  /* before work is queued */
void gd_work_queued(struct gd_work *work); /* after it was */
int gd_work_open(const struct gd_work *work); /* 1 if there is work that nobody waited for */
/* What may be settled once a wait that begins now is over; 0: nothing. */
uint64_t gd_work_mark(const struct gd_work *work);
void gd_work_settle(struct gd_work *work, uint64_t mark);

/* ---- driver.c: functions of the device's driver, called without Python in between ---- */
/* Their addresses, and the context they want to be current; their types are in driver.c. */
struct gd_driver {
    uint64_t copy_in, copy_out, settle, attribute, launch, launch_cooperative, query;
    uint64_t event_new, event_free, event_record, stream_wait, stream_wait_word;
    uint64_t current, push, pop, capture_mode, context;
    uint64_t memory_create, memory_release, memory_reserve, memory_unreserve, memory_map, memory_unmap,
        memory_access;
    unsigned char memory_properties[64]; /* a CUmemAllocationProp */
    unsigned char memory_access_of[16];  /* a CUmemAccessDesc */
};
/* Each returns 0 or the driver's own error (> 0). The caller's context stays as it was. */
int gd_driver_copy_in(const struct gd_driver *driver, uint64_t to, const char *from, size_t n);
int gd_driver_copy_out(const struct gd_driver *driver, char *to, uint64_t from, size_t n);
/* Wait for a stream, and settle what was queued on it. work: NULL where that is not counted. */
int gd_driver_synchronize(const struct gd_driver *driver, uint64_t stream, struct gd_work *work);
int gd_driver_settle(const struct gd_driver *driver, uint64_t stream); /* the same, uncounted */
/* A block of device memory at an address of its own, as memory_properties have it; its handle. */
int gd_driver_memory_new(const struct gd_driver *driver, size_t size, size_t granularity,
                         uint64_t *address, uint64_t *handle);
int gd_driver_memory_free(const struct gd_driver *driver, uint64_t address, size_t size, uint64_t handle);
/* 1 if the memory is page-locked and the driver knows it. */
int gd_driver_pinned(const struct gd_driver *driver, const void *ordinary);
/* Fence, and queue a kernel whose argument block is n bytes at `arguments`; counted in `work`. */
struct gd_grid {
    uint32_t grid[3], block[3];
    uint32_t shared; /* bytes */
};
int gd_driver_launch(const struct gd_driver *driver, uint64_t function, const struct gd_grid *grid,
                     uint64_t stream, const char *arguments, size_t n, struct gd_work *work);
/* The same with all blocks resident at once. offsets: where each of `count` parameters starts. */
int gd_driver_launch_cooperative(const struct gd_driver *driver, uint64_t function,
                                 const struct gd_grid *grid, uint64_t stream, char *arguments,
                                 const uint32_t *offsets, unsigned count);
/* For a thread of ours: the context is its own from now on, and no stream capture minds its calls. */
int gd_driver_thread(const struct gd_driver *driver);
/* 0: all work of the stream is done; -EAGAIN: not yet. */
int gd_driver_query(const struct gd_driver *driver, uint64_t stream);
int gd_driver_event_new(const struct gd_driver *driver, uint64_t *event);
int gd_driver_event_free(const struct gd_driver *driver, uint64_t event);
int gd_driver_event_record(const struct gd_driver *driver, uint64_t event, uint64_t stream);
int gd_driver_stream_wait(const struct gd_driver *driver, uint64_t stream, uint64_t event);
#define GD_DRIVER_NOT_SUPPORTED 801 /* CUDA_ERROR_NOT_SUPPORTED */
/* Work queued from now on waits until the word of device memory has reached `value` (modulo 2^32). */
int gd_driver_stream_wait_word(const struct gd_driver *driver, uint64_t stream, uint64_t address,
                               uint32_t value);

/* ---- paths.c: through the mapping or by the device's copy engine (DMA) ---- */
#define GD_TURNS 6
/*
 * The sizes at which the faster path changes, rising: up to at[0] bytes the mapping is faster, then
 * DMA up to at[1], then the mapping again, and so on. What is unused is SIZE_MAX.
 */
struct gd_turns {
    size_t at[6]; /* GD_TURNS */
};
struct gd_paths {
    struct gd_turns write_pageable, write_pinned, read_pageable, read_pinned;
    const struct gd_driver *driver; /* NULL: no DMA from here, the caller does it */
};
/* 0: the mapping is faster for n bytes from or to `ordinary`; 1: DMA. */
int gd_path(const struct gd_paths *paths, int write, const void *ordinary, size_t n);
/* Fence, copy, and return when it is done. 0, the driver's own error (> 0), or -ENOTSUP. */
int gd_dma_in(const struct gd_paths *paths, uint64_t to, const char *from, size_t n);
int gd_dma_out(const struct gd_paths *paths, char *to, uint64_t from, size_t n);

/* ---- mappings.c: placing and removing mappings ---- */
/* mmap(2). at != 0: MAP_FIXED there. Always MADV_DONTFORK. Returns the address or -errno. */
int64_t gd_map(uintptr_t at, size_t length, int readable, int writable, int fd, int64_t offset,
               int private_anonymous);
/* Put a PROT_NONE, MAP_NORESERVE reservation there (at != 0: replaces what is mapped there). */
int64_t gd_reserve(uintptr_t at, size_t length, size_t alignment);
int gd_unmap(uintptr_t at, size_t length);

/* ---- process.c ---- */
/*
 * How many forks lie between this process and the one that loaded the library. Whoever remembers an
 * address of a mapping remembers this number beside it: where it has changed, the mapping is gone.
 */
const unsigned *gd_forks(void);

/* ---- for the CPython type in mapped.c, which is another shared object ---- */
struct gd_api {
    int (*write)(uintptr_t, const char *, size_t, unsigned);
    int (*read)(char *, uintptr_t, size_t, unsigned);
    void (*fence)(void);
    int (*path)(const struct gd_paths *, int, const void *, size_t);
    int (*dma_in)(const struct gd_paths *, uint64_t, const char *, size_t);
    int (*dma_out)(const struct gd_paths *, char *, uint64_t, size_t);
    const unsigned *forks;
};
const struct gd_api *gd_api(void);

#endif
