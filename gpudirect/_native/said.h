/* SPDX-License-Identifier: MIT */
/*
 * What the owner of shared memory says: JSON (gpudirect/sharing/_wire.py), read where it stands. A text
 * that gd_said() took is well formed; the others rely on it. None of them allocates.
 */
#ifndef GPUDIRECT_NATIVE_SAID_H
#define GPUDIRECT_NATIVE_SAID_H

#include <stddef.h>
#include <stdint.h>

struct gd_said { /* one value: its text; of items(), those that are left */
    const char *at, *end;
};

/* The object that a text of n bytes is. -EPROTO: it is none. */
int gd_said(const char *text, size_t n, struct gd_said *object);
/* A member of an object; -EPROTO where there is none of this name, or no object. */
int gd_said_member(struct gd_said object, const char *name, struct gd_said *value);
/* The items of an array, and each in turn: 1, or 0 behind the last. -EPROTO: no array. */
int gd_said_items(struct gd_said array, struct gd_said *items);
int gd_said_next(struct gd_said *items, struct gd_said *value);
/* A whole number, 0 to `most`. -EPROTO: something else. */
int gd_said_number(struct gd_said value, uint64_t most, uint64_t *number);
/* true or false. */
int gd_said_truth(struct gd_said value, int *truth);
int gd_said_is_null(struct gd_said value);
/* A string as UTF-8 with a 0 behind; its length, or -EPROTO (none, or one that `size` bytes do not hold). */
int64_t gd_said_text(struct gd_said value, char *into, size_t size);

#endif
