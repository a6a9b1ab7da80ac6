/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * The user interface of /dev/p2pmod: pin GPU memory, learn where it is, map it.
 *
 * DOC: the contract
 *
 * Every ioctl takes a pointer to a struct whose first field is its size in bytes. Structs grow at
 * the end: the kernel accepts a shorter struct of an older program down to the size of version 1,
 * and a longer one of a newer program if the bytes it does not know are zero.
 *
 *   ENOTTY      the command is unknown
 *   E2BIG       non-zero bytes that this kernel does not understand, or more than a page of them
 *   EINVAL      a field is wrong: size, alignment, range; a reserved field, or one that is "out" only,
 *               that is not zero on the way in (so clear a struct before it is used again)
 *   EOPNOTSUPP  a known flag that this kernel, driver or memory does not offer; any call of a
 *               32-bit program, which could pin but not map
 *   EFAULT      a pointer to memory that cannot be read or written
 *   ENOENT      the handle names no buffer of this file
 *   ENODEV      the buffer was revoked: the owner freed the memory, or died
 *   EPERM       bus addresses need CAP_SYS_RAWIO (or the module parameter show_bus_addresses)
 *   ENOSPC      a limit of the user or of the module is reached
 *   ENOMEM      no memory, or the GPU's aperture (BAR1) is exhausted
 *   other       what the NVIDIA driver answered (-EIO, -ENODEV, ...)
 *
 * After an error nothing has changed.
 *
 * mmap(2): offset is p2pmod_pin.map_offset plus any multiple of the system's page inside
 * map_length, MAP_SHARED only. A buffer can be mapped any number of times, whole and in parts.
 * Pages appear when they are touched. Mappings are not inherited over fork(2).
 *
 * Caching: memory that the driver calls cacheable (on machines where CPU and GPU are coherent) is
 * mapped cached, all other write-combined, unless asked otherwise. One physical page has one type: where
 * somebody else has reserved the range with another (the driver, or a mapping of the PCI device), that
 * is what every mapping gets. p2pmod_pin.state says what is asked for; P2PMOD_STATUS what the first
 * mapping could reserve and, of pages that were touched, what the page tables hold. On x86 device memory
 * that is asked for CACHED is uncached.
 *
 * Owner: a pin is the process's that made it (its thread group), and the driver lets nobody else unpin
 * it. The file may be inherited or passed on: whoever has it may map, and may unpin. Where that, or the
 * last close, happens in another process, mappings are emptied at once, and the memory stays pinned until
 * the owner frees it, pins again, closes a file of its own, or dies. Till then it is charged to who pinned
 * it, listed in /proc/driver/p2pmod (for CAP_SYS_ADMIN, the first 64), and keeps the module loaded.
 * Persistent pins know no owner.
 *
 * Limits count what a user pins, through however many files. A pin is charged once the driver has found
 * the memory. None is longer than the largest memory BAR of the machine (on arm64, or than its
 * memory): EINVAL.
 *
 * Revocation: when the owner of the memory frees it, every mapping of the buffer is emptied before
 * the driver goes on. An access then raises SIGBUS (EFAULT in a system call), a new mmap fails with
 * ENODEV, and the handle stays valid for P2PMOD_STATUS and P2PMOD_UNPIN.
 */
#ifndef P2PMOD_H
#define P2PMOD_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define P2PMOD_NODE "/dev/p2pmod"
#define P2PMOD_ABI_VERSION 2
#define P2PMOD_MAGIC 'p'
#define P2PMOD_GPU_PAGE_SIZE 65536

/* p2pmod_query.features */
#define P2PMOD_FEATURE_PERSISTENT 1    /* P2PMOD_PIN_PERSISTENT works with this driver */
#define P2PMOD_FEATURE_BUS_ADDRESSES 2 /* P2PMOD_PAGES is allowed to this caller */

/* p2pmod_pin.flags */
#define P2PMOD_PIN_PERSISTENT 1 /* keep the memory until unpinned: it is never revoked */
#define P2PMOD_PIN_UNCACHED 2   /* map uncached instead of write-combined */
#define P2PMOD_PIN_CACHED 4     /* map cached: only memory that the driver calls cacheable */
#define P2PMOD_PIN_FORCE_BAR1 8 /* with PERSISTENT: through BAR1 even on a coherent platform */

/* p2pmod_status.state */
#define P2PMOD_STATE_REVOKED 1
#define P2PMOD_STATE_PERSISTENT 2
#define P2PMOD_STATE_CACHEABLE 4      /* the driver says that the pages may be mapped cached */
#define P2PMOD_STATE_WRITE_COMBINED 8 /* is to be, and nothing was found to be otherwise yet */

/**
 * struct p2pmod_query - what module and driver offer
 * @size: sizeof(struct p2pmod_query)
 * @flags: 0
 * @abi_version: out, P2PMOD_ABI_VERSION of the module
 * @features: out, P2PMOD_FEATURE_*
 * @__reserved: 0 (in ABI 1: limits of an open file)
 * @max_bytes_total: out, bytes all users together may pin
 * @max_bytes_per_user: out, bytes one user may pin
 * @max_pins_per_user: out, buffers one user may hold
 */
struct p2pmod_query {
	__u32 size;
	__u32 flags;
	__u32 abi_version;
	__u32 features;
	__u64 __reserved[2];
	__u64 max_bytes_total;
	__u64 max_bytes_per_user;
	__u64 max_pins_per_user;
};

/**
 * struct p2pmod_pin - pin GPU memory and get a handle
 * @size: sizeof(struct p2pmod_pin)
 * @flags: P2PMOD_PIN_*
 * @address: device address of the first byte, any alignment
 * @length: bytes, at least 1
 * @handle: out, names the buffer on this open file
 * @state: out, P2PMOD_STATE_*
 * @map_offset: out, offset for mmap of the first GPU page
 * @map_length: out, bytes that can be mapped: whole GPU pages
 * @lead: out, bytes from the start of the mapping to @address
 * @page_count: out, GPU pages of P2PMOD_GPU_PAGE_SIZE
 */
struct p2pmod_pin {
	__u32 size;
	__u32 flags;
	__u64 address;
	__u64 length;
	__u32 handle;
	__u32 state;
	__u64 map_offset;
	__u64 map_length;
	__u64 lead;
	__u64 page_count;
};

/**
 * struct p2pmod_pages - bus addresses of a buffer's GPU pages
 * @size: sizeof(struct p2pmod_pages)
 * @handle: the buffer
 * @first: index of the first page wanted
 * @count: in, pages wanted; out, pages told (fewer at the end of the buffer)
 * @addresses: pointer to @count values of 64 bits
 *
 * A bus address is what the CPU uses to reach the page. Behind an IOMMU another PCI device must
 * not use it: it needs a mapping of its own.
 */
struct p2pmod_pages {
	__u32 size;
	__u32 handle;
	__u64 first;
	__u64 count;
	__u64 addresses;
};

/**
 * struct p2pmod_unpin - give a buffer back
 * @size: sizeof(struct p2pmod_unpin)
 * @handle: the buffer; its mappings are emptied, as if it were revoked. It may be given to another
 *	buffer once nothing of it is mapped any more
 */
struct p2pmod_unpin {
	__u32 size;
	__u32 handle;
};

/**
 * struct p2pmod_status - state of a buffer, and use of the limits
 * @size: sizeof(struct p2pmod_status)
 * @handle: the buffer, or 0 for the module's figures only
 * @state: out, P2PMOD_STATE_*
 * @__reserved, @__reserved_too: 0 (in ABI 1, the latter: figures of an open file)
 * @address: out, device address as pinned
 * @length: out, bytes as pinned
 * @total_bytes: out, bytes pinned by all users
 * @total_pins: out, buffers of all users
 */
struct p2pmod_status {
	__u32 size;
	__u32 handle;
	__u32 state;
	__u32 __reserved;
	__u64 address;
	__u64 length;
	__u64 __reserved_too[2];
	__u64 total_bytes;
	__u64 total_pins;
};

/* numbers from 0x40 on: small ones of some magics are taken by the VFS */
#define P2PMOD_QUERY _IOWR(P2PMOD_MAGIC, 0x40, struct p2pmod_query)
#define P2PMOD_PIN _IOWR(P2PMOD_MAGIC, 0x41, struct p2pmod_pin)
#define P2PMOD_PAGES _IOWR(P2PMOD_MAGIC, 0x42, struct p2pmod_pages)
#define P2PMOD_UNPIN _IOWR(P2PMOD_MAGIC, 0x43, struct p2pmod_unpin)
#define P2PMOD_STATUS _IOWR(P2PMOD_MAGIC, 0x44, struct p2pmod_status)

#endif /* P2PMOD_H */
