/* SPDX-License-Identifier: MIT */
/*
 * Couriers: blocks of a resident kernel, beside the memory, that move data for the CPU (courier.cuh has
 * their end). cffi reads this file too: declarations and nothing else.
 *
 * A courier has seats. Who has an errand takes one and holds it until the errand is over: a lane, a
 * place in page-locked memory that the kernel stores to, and one in device memory for lists that the
 * CPU stores. Each place has parts, so that one is filled while another is emptied.
 *
 * There is one courier a device, and it is never freed: whoever finds it closed goes another way.
 */
#ifndef GPUDIRECT_COURIER_H
#define GPUDIRECT_COURIER_H

#include <stdint.h>

#include "lane.h"

#define GD_COURIER_SEATS 8        /* at most: errands at once */
#define GD_COURIER_PARTS 4
#define GD_COURIER_PART 65536     /* bytes of data in a part */
#define GD_COURIER_PLACE 65600    /* from one part to the next: the data may begin within a line */
#define GD_COURIER_ITEM 4096      /* bytes of an item, at most */
#define GD_COURIER_DIMS 4         /* of strided data, once neighbours are merged */

/* How an errand is begun. */
#define GD_COURIER_FORCED 1 /* wait for a seat; take a kernel that naps */
#define GD_COURIER_DIRECT 2 /* the CPU's side is page-locked: the kernel stores there itself */

/* Strided elements, the last dimension the fastest. */
struct gd_strided {
    uint64_t device;    /* address of the first */
    uint32_t word;      /* bytes: 1, 2, 4, 8 or 16; everything is a multiple of it */
    uint32_t dims;
    uint32_t shape[4];  /* GD_COURIER_DIMS; of those that are not used: 1 */
    int64_t strides[4]; /* bytes */
};

/* What is being done, and how far it is. */
struct gd_errand {
    uint32_t kind;
    uint32_t direct;
    uint64_t device;        /* what it moves from or to */
    char *to;               /* the CPU's side of what brings */
    const char *from;       /* and of what takes away */
    const int64_t *indices;
    uint64_t size;          /* elements that the indices count */
    uint32_t word, per;     /* an item is so many words of so many bytes */
    uint32_t step;          /* words from one index to the next */
    struct gd_strided strided;
    uint64_t total, begun;  /* bytes of a read, items of the others */
    uint64_t amount[4];     /* GD_COURIER_PARTS; of what was begun last */
    uint32_t calls, taken;  /* sent, and answered */
    int32_t failed;         /* why no more calls are sent, or 0 */
};

struct gd_seat {
    struct gd_lane lane;
    uintptr_t staging;     /* page-locked memory: GD_COURIER_PARTS places */
    uintptr_t list;        /* the same in device memory, mapped */
    uint64_t list_device;
    uint32_t taken;        /* not 0: somebody sits there */
    struct gd_courier *courier;
    struct gd_errand errand;
};

struct gd_courier {
    uint32_t open;         /* 0: nobody may begin */
    uint32_t seats;
    uint32_t push, pick, put, pack, unpack; /* numbers of the kernel's functions */
    uint32_t flags;        /* GD_GUARDED or 0: of the lists' mapping */
    uint64_t owner;        /* whose page-locked memory it stores to, beside that of all */
    uint64_t errands[5];   /* begun so far: reads, gathers, scatters, strided reads, strided writes */
    struct gd_seat seat[8]; /* GD_COURIER_SEATS */
};

/* A courier without seats, closed. NULL: no memory. */
struct gd_courier *gd_courier_new(void);
/* The seats are filled in, and stay so until each was cleared: they can be taken. */
void gd_courier_ready(struct gd_courier *courier);
/* Errands may begin, or may not. */
void gd_courier_open(struct gd_courier *courier);
void gd_courier_close(struct gd_courier *courier);

/* An errand that takes long. */
struct gd_left {
    struct gd_seat *seat; /* NULL: it is over */
    int32_t code;         /* as what began it would have returned then */
};

/*
 * Each returns 0 when it is done; -EAGAIN when nothing was begun, as no seat is free or the courier is
 * closed, paused or napping; -ETIMEDOUT when it takes long: `left` is then to be given to
 * gd_courier_go_on() until its seat is NULL, and what is read and written must stay so long;
 * -ESHUTDOWN when the service ended before all was done; -EFAULT when its memory was revoked; -E2BIG for
 * items that are not for it: more than GD_COURIER_ITEM bytes; -ERANGE for an index outside, and then
 * nothing was moved, unless somebody changed indices meanwhile. Addresses were checked.
 */
int gd_courier_read(struct gd_courier *courier, char *to, uint64_t device, size_t n, unsigned how,
                    struct gd_left *left);
/* Items of `itemsize` bytes, from device + index * itemsize; negative ones count from `size`. */
int gd_courier_gather(struct gd_courier *courier, char *to, uint64_t device, uint64_t size,
                      const int64_t *indices, size_t count, size_t itemsize, unsigned how,
                      struct gd_left *left);
/*
 * Items of `itemsize` bytes, one behind the other, to device + index * step bytes, `step` being the bytes
 * of one of `size` elements. Where they overlap, the last one stays.
 */
int gd_courier_scatter(struct gd_courier *courier, uint64_t device, uint64_t size, size_t step,
                       const int64_t *indices, size_t count, const char *items, size_t itemsize,
                       unsigned how, struct gd_left *left);
/* All of the elements, packed. */
int gd_courier_pack(struct gd_courier *courier, char *to, const struct gd_strided *strided,
                    unsigned how, struct gd_left *left);
int gd_courier_unpack(struct gd_courier *courier, const struct gd_strided *strided,
                      const char *from, unsigned how, struct gd_left *left);
int gd_courier_go_on(struct gd_left *left, int64_t timeout);
/* Take a seat for good, so that nobody uses its memory any more. -EAGAIN: somebody sits there. */
int gd_courier_clear(struct gd_courier *courier, uint32_t seat);

/* ---- locked.c: page-locked memory that the device may store to, as its owner tells it ---- */
/*
 * owner: the one device that may; 0: all may. -ENOSPC: it is not remembered, and gd_locked() says no.
 */
int gd_locked_add(uintptr_t start, size_t n, uint64_t owner);
void gd_locked_remove(uintptr_t start);
/* 1 if all n bytes are in one such range. */
int gd_locked(const void *start, size_t n, uint64_t owner);
void gd_locked_forget(void); /* in a child of fork(), which has none of them */

#endif
