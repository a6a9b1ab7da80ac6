/* SPDX-License-Identifier: MIT */
/* What the benchmarks' C files share: the runtime as they call it. */
#ifndef GPUDIRECT_BENCH_RUNTIME_H
#define GPUDIRECT_BENCH_RUNTIME_H

#include "timing.h"

extern struct gd_bench_runtime gd_runtime;

#endif
