/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The part of the NVIDIA driver's nv-p2p interface that p2pmod uses, declared in our own words for
 * machines where the driver's header is not installed. Layout of driver 535 and newer.
 */
#ifndef P2PMOD_NV_P2P_OWN_H
#define P2PMOD_NV_P2P_OWN_H

#include <linux/types.h>

#define NVIDIA_P2P_CAP_GET_PAGES_PERSISTENT_API /* unless the build says P2PMOD_NO_PERSISTENT */

enum nvidia_p2p_page_size_type { NVIDIA_P2P_PAGE_SIZE_64KB = 1 };

struct nvidia_p2p_page {
	uint64_t physical_address;
	uint64_t opaque[4]; /* request information of the driver */
};

struct nvidia_p2p_page_table {
	uint32_t version;
	uint32_t page_size;
	struct nvidia_p2p_page **pages;
	uint32_t entries;
	uint8_t *gpu_uuid;
	uint32_t flags; /* only where version says 2.0 */
};

int nvidia_p2p_get_pages(uint64_t token, uint32_t va_space, uint64_t address, uint64_t length,
			 struct nvidia_p2p_page_table **table, void (*callback)(void *data),
			 void *data);
int nvidia_p2p_put_pages(uint64_t token, uint32_t va_space, uint64_t address,
			 struct nvidia_p2p_page_table *table);
int nvidia_p2p_get_pages_persistent(uint64_t address, uint64_t length,
				    struct nvidia_p2p_page_table **table, uint32_t flags);
int nvidia_p2p_put_pages_persistent(uint64_t address, struct nvidia_p2p_page_table *table,
				    uint32_t flags);

#endif
