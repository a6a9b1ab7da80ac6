/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the driver's nv-p2p.c takes from the rest of the driver, in our words, so that this one file of
 * it can be built over the model of the resource manager. Every other header that it names includes
 * this one. Versions 470 to 595.
 */
#ifndef STANDIN_SHIM_H
#define STANDIN_SHIM_H

#include <linux/errno.h>
#include <linux/io.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/semaphore.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/types.h>
#include <asm/div64.h>

typedef u64 NvU64;
typedef u32 NvU32;
typedef u8 NvU8;
typedef bool NvBool;
typedef u32 NV_STATUS;
#define NV_TRUE true
#define NV_FALSE false
#define NV_API_CALL

enum {
	NV_OK,
	NV_ERR_GENERIC = 0x100,
	NV_ERR_INSUFFICIENT_RESOURCES,
	NV_ERR_NO_MEMORY,
	NV_ERR_INVALID_ARGUMENT,
	NV_ERR_INVALID_OBJECT_HANDLE,
	NV_ERR_INVALID_STATE,
	NV_ERR_NOT_SUPPORTED,
	NV_ERR_OBJECT_NOT_FOUND,
	NV_ERR_STATE_IN_USE,
	NV_ERR_GPU_UUID_NOT_FOUND,
};

#define NVRM_P2P_PAGESIZE_SMALL_4K (4 << 10)
#define NVRM_P2P_PAGESIZE_BIG_64K (64 << 10)
#define NVRM_P2P_PAGESIZE_BIG_128K (128 << 10)

#define NV_IS_ALIGNED64(value, to) (((value) & ((u64)(to) - 1)) == 0)
#define NV_ARRAY_ELEMENTS(array) ARRAY_SIZE(array)
#define NV_DBG_ERRORS 0
#define nv_printf(level, ...) do { } while (0)

#ifdef STANDIN_PROPRIETARY
#define NV_EXPORT_SYMBOL(symbol) EXPORT_SYMBOL(symbol)
#else
#define NV_EXPORT_SYMBOL(symbol) EXPORT_SYMBOL_GPL(symbol)
#endif

/* ---- memory ---- */

NV_STATUS os_alloc_mem(void **memory, NvU64 bytes);
void os_free_mem(void *memory);
#define os_mem_copy(to, from, n) memcpy(to, from, n)
#define NV_KMEM_CACHE_ALLOC(cache) kmem_cache_alloc((struct kmem_cache *)(cache), GFP_KERNEL)
#define NV_KMEM_CACHE_FREE(object, cache) kmem_cache_free((struct kmem_cache *)(cache), object)
#define NV_INIT_MUTEX(mutex) sema_init(mutex, 1)

/* On x86 the resource manager runs on a stack of its own: a call that gets none fails, putting included. */
typedef struct nvidia_stack {
	u64 words[512];
} nvidia_stack_t;

static inline int nv_kmem_cache_alloc_stack(nvidia_stack_t **stack)
{
	*stack = kmalloc(sizeof(**stack), GFP_KERNEL);
	return *stack ? 0 : -ENOMEM;
}

static inline void nv_kmem_cache_free_stack(nvidia_stack_t *stack)
{
	kfree(stack);
}

int nvidia_dev_get_uuid(const NvU8 *uuid, nvidia_stack_t *sp);
void nvidia_dev_put_uuid(const NvU8 *uuid, nvidia_stack_t *sp);

/* ---- the resource manager: each takes what its version of the driver passes ---- */

struct nvidia_p2p_page_table;

#ifdef STANDIN_MIG_INFO /* 565 on */
#define MIG_OUT , void **mig_info
#define MIG_IN , void *mig_info
#else
#define MIG_OUT
#define MIG_IN
#endif
#ifdef STANDIN_FORCE_PCIE /* 570 on */
#define FORCE_PCIE NvBool force_pcie,
#else
#define FORCE_PCIE
#endif
#ifdef STANDIN_CPU_CACHEABLE /* 580 on */
#define CACHEABLE_OUT , NvBool *cacheable
#else
#define CACHEABLE_OUT
#endif

NV_STATUS rm_p2p_get_pages(nvidia_stack_t *sp, NvU64 token, NvU32 va_space, NvU64 va, NvU64 length,
			   NvU64 *bus, NvU32 *wreqmb_h, NvU32 *rreqmb_h, NvU32 *entries,
			   NvU8 **uuid, void *key CACHEABLE_OUT);
NV_STATUS rm_p2p_register_callback(nvidia_stack_t *sp, NvU64 token, NvU64 va, NvU64 length,
				   void *key, void (*callback)(void *data), void *data);
NV_STATUS rm_p2p_put_pages(nvidia_stack_t *sp, NvU64 token, NvU32 va_space, NvU64 va, void *key);
NV_STATUS rm_p2p_get_gpu_info(nvidia_stack_t *sp, NvU64 va, NvU64 length, NvU8 **uuid, void **gpu);
NV_STATUS rm_p2p_get_pages_persistent(nvidia_stack_t *sp, NvU64 va, NvU64 length, void **object,
				      NvU64 *bus, NvU32 *entries, FORCE_PCIE void *key,
				      void *gpu MIG_OUT CACHEABLE_OUT);
NV_STATUS rm_p2p_put_pages_persistent(nvidia_stack_t *sp, void *object, void *key MIG_IN);

/* ---- what nv-p2p.c has besides, and no client of ours uses ---- */

typedef struct {
	struct {
		NvU64 start, limit;
	} addressable_range;
	struct device *dev;
} nv_dma_device_t;

#define nv_dma_unmap_alloc(...) NV_ERR_NOT_SUPPORTED
#define nv_dma_unmap_peer(...) do { } while (0)
#define rm_p2p_dma_map_pages(sp, device, uuid, size, count, addresses, private) \
	(*(private) = NULL, (void)(device), NV_ERR_NOT_SUPPORTED)
#define rm_p2p_init_mapping(sp, ...) NV_ERR_NOT_SUPPORTED
#define rm_p2p_destroy_mapping(sp, token) NV_ERR_NOT_SUPPORTED
#define nv_register_rsync_driver(...) (-ENODEV)
#define nv_unregister_rsync_driver(...) do { } while (0)

typedef struct nv_linux_state {
	struct nv_linux_state *next;
	struct pci_dev *pci_dev;
} nv_linux_state_t;
typedef struct nv_state nv_state_t;
#define nv_linux_devices ((nv_linux_state_t *)NULL)
#define NV_STATE_PTR(nvl) ((nv_state_t *)(nvl))
#define LOCK_NV_LINUX_DEVICES() do { } while (0)
#define UNLOCK_NV_LINUX_DEVICES() do { } while (0)
#define nv_get_ibmnpu_genreg_info(nv, address, size, device) \
	((void)(nv), (void)(device), NV_ERR_NOT_SUPPORTED)
#define nv_get_ibmnpu_chip_id(nv) 0
#define nv_ioremap_nocache(address, size) NULL
#define nv_iounmap(address, size) do { } while (0)

#endif
