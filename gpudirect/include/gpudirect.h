/* SPDX-License-Identifier: MIT */
/*
 * gpudirect for C and C++: what a program may do with memory of a GPU that is mapped into it.
 *
 *   gpudirect/copy.h    copies, strided and scattered ones, fences, single words, waits
 *   gpudirect/lane.h    calls of a resident kernel's functions
 *   gpudirect/attach.h  memory and services that another process shares, without CUDA or Python here
 *   p2pmod.h            the kernel module's device file: pin, map
 *
 *     cc program.c $(gpudirect config --cflags --libs)
 *
 * These headers are the whole of libgpudirect: what they do not declare, it does not export. Functions
 * are only ever added; a struct that callers allocate grows with a new version of the library only,
 * which GD_VERSION and the soname tell.
 */
#ifndef GPUDIRECT_H
#define GPUDIRECT_H

#define GD_VERSION 0 /* of this interface: libgpudirect.so.0 */

#ifdef __cplusplus
extern "C" {
#endif

#include "gpudirect/attach.h"
#include "gpudirect/copy.h"
#include "gpudirect/lane.h"

#ifdef __cplusplus
}
#endif

#endif
