/* SPDX-License-Identifier: MIT */
/* Which process this is: mappings are not inherited over fork(). */
#define _GNU_SOURCE
#include <pthread.h>

#include "native.h"

static unsigned forks;

static void in_child(void)
{
    forks++;
}

__attribute__((constructor)) static void prepare(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

const unsigned *gd_forks(void)
{
    return &forks;
}
