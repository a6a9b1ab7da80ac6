/* SPDX-License-Identifier: MIT */
#ifndef GPUDIRECT_THREADS_H
#define GPUDIRECT_THREADS_H

#include <stddef.h>

#include "engine.h"

/* Whether a copy of n bytes is worth more than one thread. */
int gd_threads_wanted(size_t n, int write);
/* Copy with the caller and the copy threads; every thread fences its own stores. */
int gd_threads_copy(const struct gd_engine *engine, char *dst, const char *src, size_t n,
                    int write, unsigned flags);

#endif
