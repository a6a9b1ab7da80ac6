/* SPDX-License-Identifier: MIT */
/* What the CPython type Mapped, which is in another shared object, calls. */
#include "courier.h"
#include "native.h"

const struct gd_api *gd_api(void)
{
    static struct gd_api api = {
        .write = gd_write,
        .read = gd_read,
        .fence = gd_fence,
        .path = gd_path,
        .dma_in = gd_dma_in,
        .dma_out = gd_dma_out,
        .path_courier = gd_path_courier,
        .courier_read = gd_courier_read,
        .courier_gather = gd_courier_gather,
        .courier_scatter = gd_courier_scatter,
        .gather = gd_gather_items,
        .scatter = gd_scatter_elements,
        .indices_check = gd_indices_check,
        .locked = gd_locked,
    };

    api.forks = gd_forks();
    return &api;
}
