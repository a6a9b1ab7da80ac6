/* SPDX-License-Identifier: MIT */
/*
 * Everything the Python runtime may call in C: what C programs may call too (include/gpudirect/copy.h,
 * with the conventions), and what is its own. cffi reads these files as they stand (build.py strips the
 * preprocessor lines), so they hold declarations and nothing else.
 *
 * This layer knows addresses and sizes. It knows nothing of devices, bridges or arrays.
 */
#ifndef GPUDIRECT_NATIVE_H
#define GPUDIRECT_NATIVE_H

#include "../include/gpudirect/copy.h"

/* ---- copy.c: gd_scatter_items(), with indices that count elements of `step` bytes ---- */
int gd_scatter_elements(uintptr_t dst, size_t dst_size, size_t step, const int64_t *indices,
                        size_t count, const char *src, size_t itemsize, unsigned flags);

/* ---- bell.c ---- */
/* Count a word up and wake who waits for it; wait until it is no longer what was heard, so long at most. */
void gd_ring_bell(uint32_t *bell);
void gd_await_bell(uint32_t *bell, uint32_t heard, uint64_t ns);
/*
 * A full fence in every thread of the process: each has either made its stores from before visible, or will
 * see this thread's. Works when gd_fence_all_ready() has returned 0 once. 0, or -errno.
 */
int gd_fence_all_ready(void);
int gd_fence_all(void);

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
    uint64_t event_new, event_free, event_record, event_query, stream_wait, stream_wait_word;
    uint64_t current, push, pop, capture_mode, capturing, context;
    uint64_t memory_create, memory_release, memory_reserve, memory_unreserve, memory_map, memory_unmap,
        memory_access;
    unsigned char memory_properties[64]; /* a CUmemAllocationProp */
    unsigned char memory_access_of[16];  /* a CUmemAccessDesc */
};
/* Each returns 0 or the driver's own error (> 0). The caller's context stays as it was. */
int gd_driver_copy_in(const struct gd_driver *driver, uint64_t to, const char *from, size_t n);
int gd_driver_copy_out(const struct gd_driver *driver, char *to, uint64_t from, size_t n);
/* Wait for a stream, however long that takes, and whatever signals come. */
int gd_driver_settle(const struct gd_driver *driver, uint64_t stream);
/*
 * Wait for a stream, and settle what was queued on it. -EAGAIN if that takes long (0.2 ms): record an
 * event then and wait for that, since a stream on which others go on queueing may never be idle.
 * work: NULL where that is not counted.
 */
int gd_driver_synchronize(const struct gd_driver *driver, uint64_t stream, struct gd_work *work);
/* A block of device memory at an address of its own, as memory_properties have it; its handle. */
int gd_driver_memory_new(const struct gd_driver *driver, size_t size, size_t granularity,
                         uint64_t *address, uint64_t *handle);
int gd_driver_memory_free(const struct gd_driver *driver, uint64_t address, size_t size, uint64_t handle);
/*
 * Wait for an event; -EAGAIN after GD_WAIT_PIECE ns or on a signal: look at the signals and call again.
 * waited: ns of the calls before, by which the pauses between two questions grow.
 */
#define GD_WAIT_PIECE 10000000
int gd_driver_wait_event(const struct gd_driver *driver, uint64_t event, uint64_t waited);
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
/* The same; -EBUSY: the stream is being captured, and does nothing now. */
int gd_driver_ready(const struct gd_driver *driver, uint64_t stream);
int gd_driver_event_new(const struct gd_driver *driver, uint64_t *event);
int gd_driver_event_free(const struct gd_driver *driver, uint64_t event);
int gd_driver_event_record(const struct gd_driver *driver, uint64_t event, uint64_t stream);
int gd_driver_stream_wait(const struct gd_driver *driver, uint64_t stream, uint64_t event);
#define GD_DRIVER_NOT_SUPPORTED 801 /* CUDA_ERROR_NOT_SUPPORTED */
/* Work queued from now on waits until the word of device memory has reached `value` (modulo 2^32). */
int gd_driver_stream_wait_word(const struct gd_driver *driver, uint64_t stream, uint64_t address,
                               uint32_t value);

struct gd_courier; /* courier.h */
struct gd_left;

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
    struct gd_courier *courier;     /* of the device; NULL: there is none */
    size_t courier_pageable[2], courier_pinned[2]; /* bytes from and up to which it is faster */
    size_t courier_gather, courier_scatter;        /* elements from which it is */
    /* elements up to which loads are, and bytes of DMA that one more of them takes as long as */
    size_t gather_words, gather_span;
};
/* 0: the mapping is faster for n bytes from or to `ordinary`; 1: DMA. */
int gd_path(const struct gd_paths *paths, int write, const void *ordinary, size_t n);
/*
 * How a courier is to be asked for a read of n bytes (courier.h), or -1 where another way is faster and
 * it is not forced.
 */
int gd_path_courier(const struct gd_paths *paths, const void *ordinary, size_t n, int forced);
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

/* ---- for the CPython type Mapped (mapped.h), which is another shared object ---- */
struct gd_api {
    int (*write)(uintptr_t, const char *, size_t, unsigned);
    int (*read)(char *, uintptr_t, size_t, unsigned);
    void (*fence)(void);
    int (*path)(const struct gd_paths *, int, const void *, size_t);
    int (*dma_in)(const struct gd_paths *, uint64_t, const char *, size_t);
    int (*dma_out)(const struct gd_paths *, char *, uint64_t, size_t);
    int (*path_courier)(const struct gd_paths *, const void *, size_t, int);
    int (*courier_read)(struct gd_courier *, char *, uint64_t, size_t, unsigned, struct gd_left *);
    int (*courier_gather)(struct gd_courier *, char *, uint64_t, uint64_t, const int64_t *, size_t,
                          size_t, unsigned, struct gd_left *);
    int (*courier_scatter)(struct gd_courier *, uint64_t, uint64_t, size_t, const int64_t *, size_t,
                           const char *, size_t, unsigned, struct gd_left *);
    int (*gather)(char *, uintptr_t, size_t, const int64_t *, size_t, size_t, unsigned);
    int (*scatter)(uintptr_t, size_t, size_t, const int64_t *, size_t, const char *, size_t, unsigned);
    int64_t (*indices_check)(const int64_t *, size_t, size_t, int64_t *, int64_t *);
    int (*locked)(const void *, size_t, uint64_t);
    const unsigned *forks;
};
const struct gd_api *gd_api(void);

#endif
