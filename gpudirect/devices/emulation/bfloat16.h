/* What cuda_bf16.h has for the GPU only, as half.h for cuda_fp16.h. */
#ifndef GPUDIRECT_EMULATION_BFLOAT16_H
#define GPUDIRECT_EMULATION_BFLOAT16_H

#define GD_HALF __nv_bfloat16
#define GD_HALF2 __nv_bfloat162
#define GD_HALF_NAME(before, after) before##bfloat16##after
#include "half_parts.h"
#undef GD_HALF
#undef GD_HALF2
#undef GD_HALF_NAME

#endif
