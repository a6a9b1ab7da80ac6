// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What stands between the driver's own nv-p2p.c and the model: the resource manager's entry points,
 * as that version of the driver calls them. The lab puts nv-p2p.c and nv-p2p.h of one of Debian's
 * driver packages beside this file.
 */
#include "shim/nv-linux.h"
#include "nv-p2p.h"
#include "rm.h"

#ifndef NVIDIA_P2P_GPU_UUID_LEN /* 470 writes the number */
#define NVIDIA_P2P_GPU_UUID_LEN 16
#endif

void *nvidia_p2p_page_t_cache;

bool layer_offers_version(u32 version)
{
	/* its own layout, or one that clients refuse */
	return !version || version >> 16 == NVIDIA_P2P_PAGE_TABLE_VERSION >> 16 || version >> 16 > 2;
}

bool layer_tells(u64 err)
{
#ifdef STANDIN_GPU_NOT_FOUND
	return true;
#else
	return err != ENODEV; /* 470 knows no word for it */
#endif
}

u32 layer_version(void)
{
	return NVIDIA_P2P_PAGE_TABLE_VERSION;
}

u32 layer_flags(void)
{
	return STANDIN_DRIVER_SOURCE;
}

/* what the lab passes to the other layer */
static uint version;
module_param(version, uint, 0444);
static atomic_t devices_held = ATOMIC_INIT(0);

int layer_init(void)
{
	nvidia_p2p_page_t_cache = kmem_cache_create("nvidia_p2p_page_t_cache",
						    sizeof(struct nvidia_p2p_page), 0, 0, NULL);
	return nvidia_p2p_page_t_cache ? 0 : -ENOMEM;
}

void layer_exit(void)
{
	WARN_ON(atomic_read(&devices_held));
	kmem_cache_destroy(nvidia_p2p_page_t_cache);
}

NV_STATUS os_alloc_mem(void **memory, NvU64 bytes)
{
	*memory = rm_alloc(bytes);
	return *memory ? NV_OK : NV_ERR_NO_MEMORY;
}

void os_free_mem(void *memory)
{
	rm_free(memory);
}

int nvidia_dev_get_uuid(const NvU8 *uuid, nvidia_stack_t *sp)
{
	atomic_inc(&devices_held);
	return 0;
}

void nvidia_dev_put_uuid(const NvU8 *uuid, nvidia_stack_t *sp)
{
	atomic_dec(&devices_held);
}

static NV_STATUS status_of(int err)
{
	switch (err) {
	case 0:
		return NV_OK;
	case -ENOENT:
		return NV_ERR_OBJECT_NOT_FOUND;
	case -ENOMEM:
		return NV_ERR_NO_MEMORY;
	case -EINVAL:
		return NV_ERR_INVALID_ARGUMENT;
	case -524: /* ENOTSUPP */
		return NV_ERR_NOT_SUPPORTED;
	case -EBUSY:
		return NV_ERR_STATE_IN_USE;
	case -ENODEV:
		return NV_ERR_GPU_UUID_NOT_FOUND;
	}
	return NV_ERR_GENERIC;
}

static NV_STATUS new_uuid(NvU8 **uuid)
{
	*uuid = rm_alloc(NVIDIA_P2P_GPU_UUID_LEN);
	if (!*uuid)
		return NV_ERR_NO_MEMORY;
	memset(*uuid, 0x11, NVIDIA_P2P_GPU_UUID_LEN);
	return NV_OK;
}

NV_STATUS rm_p2p_get_pages(nvidia_stack_t *sp, NvU64 token, NvU32 va_space, NvU64 va, NvU64 length,
			   NvU64 *bus, NvU32 *wreqmb_h, NvU32 *rreqmb_h, NvU32 *entries,
			   NvU8 **uuid, void *key CACHEABLE_OUT)
{
	bool cached;
	int err;

	if (va % PAGE64 || length % PAGE64 || !length)
		return NV_ERR_INVALID_ARGUMENT;
	err = rm_pin(va, length, key, bus, &cached);
	if (err)
		return status_of(err);
	*entries = length / PAGE64;
	memset(wreqmb_h, 0, *entries * sizeof(*wreqmb_h));
	memset(rreqmb_h, 0, *entries * sizeof(*rreqmb_h));
#ifdef STANDIN_CPU_CACHEABLE
	*cacheable = cached;
#endif
	if (new_uuid(uuid)) {
		rm_unpin(key);
		return NV_ERR_NO_MEMORY;
	}
	return NV_OK;
}

NV_STATUS rm_p2p_register_callback(nvidia_stack_t *sp, NvU64 token, NvU64 va, NvU64 length,
				   void *key, void (*callback)(void *data), void *data)
{
	if (rm_table_version())
		((struct nvidia_p2p_page_table *)key)->version = rm_table_version();
	return status_of(rm_register(va, length, key, callback, data));
}

NV_STATUS rm_p2p_put_pages(nvidia_stack_t *sp, NvU64 token, NvU32 va_space, NvU64 va, void *key)
{
	return status_of(rm_unpin(key));
}

NV_STATUS rm_p2p_get_gpu_info(nvidia_stack_t *sp, NvU64 va, NvU64 length, NvU8 **uuid, void **gpu)
{
	*gpu = NULL;
	return rm_owns(va, length) ? new_uuid(uuid) : NV_ERR_OBJECT_NOT_FOUND;
}

NV_STATUS rm_p2p_get_pages_persistent(nvidia_stack_t *sp, NvU64 va, NvU64 length, void **object,
				      NvU64 *bus, NvU32 *entries, FORCE_PCIE void *key,
				      void *gpu MIG_OUT CACHEABLE_OUT)
{
	bool cached;
	int err;

	if (va % PAGE64 || length % PAGE64 || !length)
		return NV_ERR_INVALID_ARGUMENT;
	err = rm_pin_persistent(va, length, key, bus, &cached, (struct rm_memory **)object);
	if (err)
		return status_of(err);
	*entries = length / PAGE64;
#ifdef STANDIN_CPU_CACHEABLE
	*cacheable = cached;
#endif
	return NV_OK;
}

NV_STATUS rm_p2p_put_pages_persistent(nvidia_stack_t *sp, void *object, void *key MIG_IN)
{
	return status_of(rm_unpin_persistent(object, key));
}
