/* SPDX-License-Identifier: MIT */
/* What a loop does between two looks at memory that another processor or a device will change. */
#ifndef GPUDIRECT_RELAX_H
#define GPUDIRECT_RELAX_H

static inline void gd_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
