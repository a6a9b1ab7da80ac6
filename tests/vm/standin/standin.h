/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The lab's stand-in for the NVIDIA driver: device memory in the BAR of a PCI device that QEMU
 * makes of ordinary memory, handed out in scrambled pages of 64 KiB, behind the same nv-p2p symbols.
 *
 * An open file becomes one allocation by STANDIN_ALLOC, at a device address, owned by the caller's
 * process. mmap of it is the GPU's own view. Freeing it, or closing its last descriptor, revokes.
 */
#ifndef STANDIN_H
#define STANDIN_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define STANDIN_NODE "/dev/nvidia-standin"
#define STANDIN_MAGIC 's'
#define STANDIN_PAGE_SIZE 65536

struct standin_alloc {
	__u32 size;
	__u32 flags;  /* STANDIN_CONTIGUOUS or STANDIN_NEIGHBOUR */
	__u64 length; /* bytes, a multiple of STANDIN_PAGE_SIZE */
	__u64 va;     /* device address; 0: choose; out: the address */
};

/* struct standin_alloc.flags */
#define STANDIN_CONTIGUOUS 1 /* pages that follow each other, and not scrambled */
#define STANDIN_NEIGHBOUR 2  /* va lies in memory of this process: share it; the last user frees it */

/* struct standin_control.op */
#define STANDIN_FAIL_NEXT 1       /* the next get_pages fails with errno value */
#define STANDIN_DELAY_PIN 2       /* get_pages sleeps for value ms, after registering the callback */
#define STANDIN_DELAY_CALLBACK 3  /* revoking sleeps for value ms before each callback */
#define STANDIN_REVOKE 4          /* revoke the pins of this allocation after value ms; 0: now */
#define STANDIN_VERSION 5         /* page tables say version value; EOPNOTSUPP: not with this source */
#define STANDIN_CACHEABLE 6       /* page tables say that the CPU may cache (version 2.0) */
#define STANDIN_EARLY_CALLBACK 7  /* the next get_pages is revoked before it returns */
#define STANDIN_DELAY_PUT 8       /* put_pages sleeps for value ms before it takes the driver's lock */
#define STANDIN_BAR1_LIMIT 9      /* pins of more than value bytes at once fail; 0: no limit */

/* struct standin_query.flags */
#define STANDIN_DRIVER_SOURCE 1   /* the nv-p2p layer is the driver's own source */

struct standin_control {
	__u32 size;
	__u32 op;
	__u64 value;
};

struct standin_query {
	__u32 size;
	__u32 version;
	__u64 total; /* bytes of device memory */
	__u64 free;
	__u64 pins;  /* page tables that clients hold */
	__u64 largest; /* bytes of the largest allocation of the driver since the last query */
	__u32 flags;
	__u32 __reserved;
};

#define STANDIN_ALLOC _IOWR(STANDIN_MAGIC, 0x40, struct standin_alloc)
#define STANDIN_FREE _IO(STANDIN_MAGIC, 0x41)
#define STANDIN_CONTROL _IOWR(STANDIN_MAGIC, 0x42, struct standin_control)
#define STANDIN_QUERY _IOWR(STANDIN_MAGIC, 0x43, struct standin_query)

#endif /* STANDIN_H */
