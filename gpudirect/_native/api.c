/* SPDX-License-Identifier: MIT */
/* What the CPython types in mapped.c, which is another shared object, call. */
#include "courier.h"
#include "native.h"

const struct gd_api *gd_api(void)
{
    static struct gd_api api = {gd_write,  gd_read,    gd_fence,        gd_path,
                                gd_dma_in, gd_dma_out, gd_path_courier, gd_courier_read, NULL};

    api.forks = gd_forks();
    return &api;
}
