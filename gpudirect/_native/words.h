/* SPDX-License-Identifier: MIT */
/*
 * Copies by naturally aligned words, sides told apart by volatile: no access to the mapping is
 * made twice, widened, or turned into a call of memcpy. For the edges of the other engines too.
 */
#ifndef GPUDIRECT_WORDS_H
#define GPUDIRECT_WORDS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WORD(type)                                                                                \
    do {                                                                                          \
        type word;                                                                                \
        memcpy(&word, src, sizeof(word));                                                         \
        *(volatile type *)dst = word;                                                             \
        dst += sizeof(word);                                                                      \
        src += sizeof(word);                                                                      \
        n -= sizeof(word);                                                                        \
    } while (0)

/* Store n bytes. */
static inline void gd_store_words(char *dst, const char *src, size_t n)
{
    if (((uintptr_t)dst & 1) && n >= 1)
        WORD(uint8_t);
    if (((uintptr_t)dst & 2) && n >= 2)
        WORD(uint16_t);
    if (((uintptr_t)dst & 4) && n >= 4)
        WORD(uint32_t);
    while (n >= 8)
        WORD(uint64_t);
    if (n & 4)
        WORD(uint32_t);
    if (n & 2)
        WORD(uint16_t);
    if (n & 1)
        WORD(uint8_t);
}
#undef WORD

#define WORD(type)                                                                                \
    do {                                                                                          \
        type word = *(const volatile type *)src;                                                  \
        memcpy(dst, &word, sizeof(word));                                                         \
        dst += sizeof(word);                                                                      \
        src += sizeof(word);                                                                      \
        n -= sizeof(word);                                                                        \
    } while (0)

/* Load n bytes. */
static inline void gd_load_words(char *dst, const char *src, size_t n)
{
    if (((uintptr_t)src & 1) && n >= 1)
        WORD(uint8_t);
    if (((uintptr_t)src & 2) && n >= 2)
        WORD(uint16_t);
    if (((uintptr_t)src & 4) && n >= 4)
        WORD(uint32_t);
    while (n >= 8)
        WORD(uint64_t);
    if (n & 4)
        WORD(uint32_t);
    if (n & 2)
        WORD(uint16_t);
    if (n & 1)
        WORD(uint8_t);
}
#undef WORD

#endif
