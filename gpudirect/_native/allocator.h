/* SPDX-License-Identifier: MIT */
/*
 * Device memory for other libraries, which ask for it from C and name it by its address only: PyTorch
 * through torch.cuda.memory.CUDAPluggableAllocator, with the two functions at the end.
 *
 * They are called with locks of the caller held, by threads that do not have Python's; and a thread
 * that has Python's may be waiting for the caller's. So nothing here takes Python's lock, and nothing
 * waits without a bound. A block is mapped for the CPU only when somebody asks for that (in Python,
 * where there is a bridge to do it): gd_allocator_hold. From then on it is given back by Python, the
 * mapping first; one that was never held goes at once.
 */
#ifndef GPUDIRECT_ALLOCATOR_H
#define GPUDIRECT_ALLOCATOR_H

#include <stddef.h>
#include <stdint.h>

#define GD_MOST_DEVICES 64

struct gd_driver;

/* Where the blocks of a device come from: 0 or the driver's error. OUT_OF_MEMORY is CUDA's, 2. */
struct gd_origin {
    const struct gd_driver *driver; /* NULL: the two below */
    int (*make)(int device, size_t size, uint64_t *address, uint64_t *handle);
    int (*unmake)(int device, uint64_t address, size_t size, uint64_t handle);
    size_t granularity; /* bytes: a block's size is a multiple */
};

struct gd_block {
    uint64_t address;
    size_t size; /* bytes */
    int device;
};

/* What there is of one device. */
struct gd_allocated {
    uint64_t blocks, bytes; /* in use */
    uint64_t waiting;       /* blocks given back whose mapping goes first */
    uint64_t refused;       /* how often there was no memory */
    int code;               /* the driver's last error */
};

/* From now on the functions below serve this device. -EINVAL: no such number. Safe twice. */
int gd_allocator_open(int device, const struct gd_origin *origin);
/* The process ends: nothing is given and nothing is taken back any more. */
void gd_allocator_close(void);
/* The block that an address lies in, which Python gives back from now on. 1, or 0 where none is. */
int gd_allocator_hold(uint64_t address, struct gd_block *found);
#define GD_UNMAP 1 /* a block was given back: remove its mapping, then gd_allocator_bury */
#define GD_PRESS 2 /* memory ran out: give back what can be had, then gd_allocator_pressed */
/* What there is to do for Python: one of the two, or 0 after `timeout`. Releases nothing by itself. */
int gd_allocator_next(struct gd_block *found, int64_t timeout);
void gd_allocator_bury(uint64_t address);
void gd_allocator_pressed(void);
void gd_allocator_statistics(int device, struct gd_allocated *found);

/* For the other libraries; exported. NULL where there is no memory. */
void *gpudirect_alloc(size_t size, int device, void *stream);
void gpudirect_free(void *address, size_t size, int device, void *stream);

#endif
