/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Differences among kernels and among NVIDIA drivers: all of them are here, and nowhere else.
 *
 * No symbol used here or anywhere in the module may be exported GPL-only: beside the proprietary
 * driver, whose symbols the module needs, such a module does not load. tests/vm checks it.
 */
#ifndef P2PMOD_COMPAT_H
#define P2PMOD_COMPAT_H

#include <linux/io.h>
#include <linux/mm.h>
#include <linux/version.h>

#ifdef P2PMOD_NV_P2P_OWN
#include "nv-p2p-own.h"
#else
#include <nv-p2p.h>
#endif

/* ---- the driver ---- */

#define NV_PAGE_SIZE_64KB 1 /* NVIDIA_P2P_PAGE_SIZE_64KB, an enumerator in every version */
#define NV_CPU_CACHEABLE 1u /* NVIDIA_P2P_PAGE_TABLE_FLAGS_CPU_CACHEABLE, from version 2.0 on */
#define NV_FORCE_BAR1 1u    /* NVIDIA_P2P_FLAGS_FORCE_BAR1_MAPPING, from driver 570 on */

/* Version 2.0 appends flags to the layout of 1.x; the header we build with may be older. */
struct nv_page_table_2 {
	u32 version;
	u32 page_size;
	void **pages;
	u32 entries;
	u8 *gpu_uuid;
	u32 flags;
};

static inline u32 nv_table_major(const struct nvidia_p2p_page_table *table)
{
	return *(const u32 *)table >> 16;
}

static inline bool nv_table_cacheable(const struct nvidia_p2p_page_table *table)
{
	return nv_table_major(table) >= 2 &&
	       ((const struct nv_page_table_2 *)table)->flags & NV_CPU_CACHEABLE;
}

#ifdef NVIDIA_P2P_CAP_GET_PAGES_PERSISTENT_API
#define NV_HAVE_PERSISTENT 1
static inline int nv_get_persistent(u64 address, u64 length, struct nvidia_p2p_page_table **table,
				    u32 flags)
{
	return nvidia_p2p_get_pages_persistent(address, length, table, flags);
}

static inline int nv_put_persistent(u64 address, struct nvidia_p2p_page_table *table)
{
	return nvidia_p2p_put_pages_persistent(address, table, 0);
}
#else
#define NV_HAVE_PERSISTENT 0
static inline int nv_get_persistent(u64 address, u64 length, struct nvidia_p2p_page_table **table,
				    u32 flags)
{
	return -EOPNOTSUPP;
}

static inline int nv_put_persistent(u64 address, struct nvidia_p2p_page_table *table)
{
	return -EOPNOTSUPP;
}
#endif

/* ---- the kernel ---- */

/* Inside ->mmap only: the VMA is not attached yet, so no lock is needed (and vm_flags_set's is). */
static inline void compat_add_vm_flags(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_init(vma, vma->vm_flags | flags);
#else
	vma->vm_flags |= flags;
#endif
}

static inline void compat_drop_vm_flags(struct vm_area_struct *vma, unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_init(vma, vma->vm_flags & ~flags);
#else
	vma->vm_flags &= ~flags;
#endif
}

/* pgprot_writecombine() is GPL-only on x86; the conversion it uses is not. */
static inline pgprot_t compat_writecombine(pgprot_t prot)
{
#ifdef CONFIG_X86
	return __pgprot((pgprot_val(prot) & ~_PAGE_CACHE_MASK) |
			cachemode2protval(_PAGE_CACHE_MODE_WC));
#else
	return pgprot_writecombine(prot);
#endif
}

static inline pgprot_t compat_uncached(pgprot_t prot)
{
#ifdef CONFIG_X86
	return __pgprot((pgprot_val(prot) & ~_PAGE_CACHE_MASK) |
			cachemode2protval(_PAGE_CACHE_MODE_UC_MINUS));
#else
	return pgprot_noncached(prot);
#endif
}

/* Pages of the calling process, for as long as one likes; with the mmap_lock held. */
static inline long compat_pin_user_pages(unsigned long address, unsigned long count,
					 struct page **pages)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	return pin_user_pages(address, count, FOLL_WRITE | FOLL_LONGTERM, pages);
#else
	return pin_user_pages(address, count, FOLL_WRITE | FOLL_LONGTERM, pages, NULL);
#endif
}

/* Has the CPU a store of 64 bytes that arrives whole, MOVDIR64B? */
static inline bool compat_has_store64(void)
{
#ifdef CONFIG_X86_64
	return boot_cpu_has(X86_FEATURE_MOVDIR64B);
#else
	return false;
#endif
}

/* Ordered with no other store: fence before it. */
static inline void compat_store64(void __iomem *to, const void *from)
{
#ifdef CONFIG_X86_64
	/* movdir64b (%rdx), %rax: in bytes, since binutils before 2.33 lack the name */
	asm volatile(".byte 0x66, 0x0f, 0x38, 0xf8, 0x02"
		     : : "a"((void __force *)to), "d"(from) : "memory");
#endif
}

#endif /* P2PMOD_COMPAT_H */
