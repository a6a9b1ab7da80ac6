/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Differences among kernels and among NVIDIA drivers: all of them are here, and nowhere else.
 *
 * No symbol used here or anywhere in the module may be exported GPL-only: beside the proprietary
 * driver, whose symbols the module needs, such a module does not load. tests/vm checks it.
 */
#ifndef P2PMOD_COMPAT_H
#define P2PMOD_COMPAT_H

#include <linux/futex.h>
#include <linux/io.h>
#include <linux/mem_encrypt.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/futex.h>

#ifdef P2PMOD_NV_P2P_OWN
#include "nv-p2p-own.h"
#else
#include <nv-p2p.h>
#endif

/* ---- the driver ---- */

#define NV_CPU_CACHEABLE 1u /* NVIDIA_P2P_PAGE_TABLE_FLAGS_CPU_CACHEABLE, from version 2.0 on */
#define NV_FORCE_BAR1 1u    /* NVIDIA_P2P_FLAGS_FORCE_BAR1_MAPPING, from driver 570 on */

static inline u32 nv_table_major(const struct nvidia_p2p_page_table *table)
{
	return *(const u32 *)table >> 16;
}

/* Version 2.0 appends flags to the layout of 1.x; the header we build with may be older. */
static inline bool nv_table_cacheable(const struct nvidia_p2p_page_table *table)
{
	const u32 *flags = (void *)table + offsetofend(struct nvidia_p2p_page_table, gpu_uuid);

	return nv_table_major(table) >= 2 && *flags & NV_CPU_CACHEABLE;
}

#if defined(NVIDIA_P2P_CAP_PERSISTENT_PAGES) && !defined(NVIDIA_P2P_CAP_GET_PAGES_PERSISTENT_API)
#error "p2pmod: drivers 515 to 530 free page tables that put_pages still reads: install 535 or newer"
#endif

/* In the header, and in the driver that is installed (its symbols were looked at). */
#if defined(NVIDIA_P2P_CAP_GET_PAGES_PERSISTENT_API) && !defined(P2PMOD_NO_PERSISTENT)
#define NV_HAVE_PERSISTENT 1
#else
#define NV_HAVE_PERSISTENT 0
#define nvidia_p2p_get_pages_persistent(address, length, table, flags) (-EOPNOTSUPP)
#define nvidia_p2p_put_pages_persistent(address, table, flags) ((void)(table), 0)
#endif

/*
 * Drivers 515 to 530 alone export this variable. A module that was built for a driver before them
 * loads beside them as well, so it looks once more: a weak symbol may be missing. (A kernel that
 * checks symbol versions refuses by itself: for this one there is none.) In data, since code reaches
 * no address as low as the one it then has.
 */
static inline bool nv_driver_refused(void)
{
#if !NV_HAVE_PERSISTENT
	extern int nvidia_p2p_cap_persistent_pages __weak;
	static int *exported = &nvidia_p2p_cap_persistent_pages;

	return READ_ONCE(exported);
#else
	return false;
#endif
}

/* ---- the kernel ---- */

/*
 * Where a distribution carries newer interfaces back to an older kernel, the number of the version
 * says nothing of them: so Kbuild looks for the interface.
 */

#ifndef P2PMOD_HAVE_VM_FLAGS_INIT /* where it is, vm_flags itself is read-only */
#define vm_flags_init(vma, flags) ((vma)->vm_flags = (flags))
#endif

#ifdef P2PMOD_PIN_TELLS_VMAS /* 6.5, and what carries it back, has dropped it */
#define pin_user_pages(...) pin_user_pages(__VA_ARGS__, NULL)
#endif

/*
 * Pages of the calling process, at an address that access_ok() has seen, for as long as one likes.
 * Sleeps for as long as the process's own page faults may: its memory can be under userfaultfd.
 */
static inline long compat_pin_user_pages(unsigned long address, unsigned long count,
					 struct page **pages)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	return pin_user_pages_unlocked(address & PAGE_MASK, count, pages, FOLL_WRITE | FOLL_LONGTERM);
#else
	unsigned long i, at;
	long got;
	int old;

	/*
	 * Here a long-term pin does not let go of the mmap_lock, so a fault that user space must serve
	 * ends it. Hence each page is asked for before, as a user's store: an atomic "or" of nothing.
	 */
	for (i = 0; i < count; i++) {
		at = i ? (address & PAGE_MASK) + i * PAGE_SIZE : address;
		if (arch_futex_atomic_op_inuser(FUTEX_OP_OR, 0, &old, (u32 __user *)at))
			return -EFAULT;
	}
	mmap_read_lock(current->mm);
	got = pin_user_pages(address & PAGE_MASK, count, FOLL_WRITE | FOLL_LONGTERM, pages);
	mmap_read_unlock(current->mm);
	return got;
#endif
}

/* Does userfaultfd's mark stand where a page is to be put? It would stay, and the fault come again. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
#define compat_marked(vmf) ((vmf)->flags & FAULT_FLAG_ORIG_PTE_VALID && !pte_none((vmf)->orig_pte))
#else
#define compat_marked(vmf) false /* it marks ordinary memory only */
#endif

/* ---- the architecture ---- */

#ifdef CONFIG_X86

/* Without PAT (nopat) the conversion gives the bits of uncached. pat_enabled() is GPL-only. */
static inline bool compat_can_write_combine(void)
{
	return cachemode2protval(_PAGE_CACHE_MODE_WC) !=
	       cachemode2protval(_PAGE_CACHE_MODE_UC_MINUS);
}

/* pgprot_writecombine() is GPL-only; the conversion it uses is not. */
static inline pgprot_t compat_cache_mode(pgprot_t prot, enum page_cache_mode mode)
{
	return __pgprot((pgprot_val(prot) & ~_PAGE_CACHE_MASK) | cachemode2protval(mode));
}

#define compat_writecombine(prot) compat_cache_mode(prot, _PAGE_CACHE_MODE_WC)
#define compat_uncached(prot) compat_cache_mode(prot, _PAGE_CACHE_MODE_UC_MINUS)

/*
 * The memory of a device is never encrypted by the CPU, whatever the guest's own memory is.
 * pgprot_decrypted() is GPL-only from 6.1 on; AMD's mask is not, and where Intel's TDX would need
 * more, the driver pins nothing.
 */
static inline pgprot_t compat_decrypted(pgprot_t prot)
{
	return __pgprot(__sme_clr(pgprot_val(prot)));
}

/*
 * After a page that a fault has just put in for write-combining: was it mapped so? Then put in, too, what
 * follows it on the bus and has its type, up to @bytes with it, in the same table: entries like its own,
 * a page further each. vmf_insert_pfn_prot() comes to the same, but asks for the type of each page anew,
 * at ten times the cost. Returns how many bytes are in now; 0: mapped otherwise.
 */
static inline unsigned long compat_insert_following(struct vm_fault *vmf, unsigned long at,
						    unsigned long bytes)
{
	/* the table stays while the fault is handled; the kernel's way to it is GPL-only */
	pte_t *first = pte_offset_kernel(vmf->pmd, at), *pte = first, entry;
	spinlock_t *lock = pte_lockptr(vmf->vma->vm_mm, vmf->pmd);
	unsigned long n = PAGE_SIZE;

	spin_lock(lock);
	entry = *first;
	if (!(pte_flags(entry) & _PAGE_PRESENT))
		bytes = n; /* somebody was emptying this handle's mappings, late */
	else if ((pte_flags(entry) & _PAGE_CACHE_MASK) != cachemode2protval(_PAGE_CACHE_MODE_WC))
		n = 0;
	for (; n && n < bytes; n += PAGE_SIZE)
		if (pte_none(*++pte))
			set_pte_at(vmf->vma->vm_mm, at + n, pte, __pte(pte_val(entry) + n));
	spin_unlock(lock);
	return n;
}

/* For the kernel's own use. Nothing is coherent here. */
#define compat_ioremap(bus, bytes, cacheable) ioremap_wc(bus, bytes)

/* A store of 64 bytes that arrives whole, if the CPU has it. Ordered with no other: fence before it. */
#define compat_has_store64() boot_cpu_has(X86_FEATURE_MOVDIR64B)
#define compat_store64(to, from) movdir64b(to, from)

#else

#define compat_can_write_combine() true
#define compat_writecombine(prot) pgprot_writecombine(prot)
#define compat_uncached(prot) pgprot_noncached(prot)
#define compat_decrypted(prot) pgprot_decrypted(prot)
#define compat_insert_following(vmf, at, bytes) PAGE_SIZE
/* the kernel may map coherent memory already, and that mapping is taken */
#define compat_ioremap(bus, bytes, cacheable) \
	((cacheable) ? ioremap_cache(bus, bytes) : ioremap_wc(bus, bytes))
#define compat_has_store64() false
#define compat_store64(to, from) ((void)(from))

#endif

#endif /* P2PMOD_COMPAT_H */
