/*
 * What cuda_fp16.h has for the GPU only, made from what it has for the CPU: included behind it.
 * half_parts.h writes it for one type; bfloat16.h does the same for the other.
 */
#ifndef GPUDIRECT_EMULATION_HALF_H
#define GPUDIRECT_EMULATION_HALF_H

#define GD_HALF __half
#define GD_HALF2 __half2
#define GD_HALF_NAME(before, after) before##half##after
#include "half_parts.h"
#undef GD_HALF
#undef GD_HALF2
#undef GD_HALF_NAME

GD_FUNCTION __half2 __hcmadd(__half2 a, __half2 b, __half2 c)
{
    float x = __low2float(a), y = __high2float(a), u = __low2float(b), v = __high2float(b);
    return __floats2half2_rn(fmaf(-y, v, fmaf(x, u, __low2float(c))),
                             fmaf(y, u, fmaf(x, v, __high2float(c))));
}

#endif
