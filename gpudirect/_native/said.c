/* SPDX-License-Identifier: MIT */
/* JSON, as far as one process has to understand another's. */
#include <errno.h>
#include <string.h>

#include "said.h"

#define DEEPEST 64 /* of arrays and objects in one another; a structured dtype needs a few */

static const char *space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Each of these: where the thing that begins at `at` ends, or NULL where it is not well formed. */

static const char *string(const char *at, const char *end)
{
    for (at++; at < end && *at != '"'; at++) {
        if ((unsigned char)*at < 32)
            return NULL;
        if (*at != '\\')
            continue;
        if (++at == end || !strchr("\"\\/bfnrtu", *at) || !*at)
            return NULL;
        for (int i = 0, digits = *at == 'u' ? 4 : 0; i < digits; i++) {
            if (++at == end || hex(*at) < 0)
                return NULL;
        }
    }
    return at < end ? at + 1 : NULL;
}

static const char *digits(const char *at, const char *end)
{
    const char *start = at;

    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at > start ? at : NULL;
}

static const char *number(const char *at, const char *end)
{
    if (*at == '-')
        at++;
    at = digits(at, end);
    if (at && at < end && *at == '.')
        at = digits(at + 1, end);
    if (at && at < end && (*at | 32) == 'e') {
        at++;
        if (at < end && (*at == '+' || *at == '-'))
            at++;
        at = digits(at, end);
    }
    return at;
}

static const char *word(const char *at, const char *end, const char *expected)
{
    size_t n = strlen(expected);

    return (size_t)(end - at) >= n && !memcmp(at, expected, n) ? at + n : NULL;
}

static const char *value(const char *at, const char *end, int depth);

static const char *many(const char *at, const char *end, int depth, int object)
{
    char close = object ? '}' : ']';

    at = space(at + 1, end);
    if (at < end && *at == close)
        return at + 1;
    while (at < end) {
        if (object) {
            at = *at == '"' ? string(at, end) : NULL;
            at = at ? space(at, end) : NULL;
            if (!at || at == end || *at != ':')
                return NULL;
            at++;
        }
        at = value(space(at, end), end, depth - 1);
        if (!at || (at = space(at, end)) == end)
            return NULL;
        if (*at == close)
            return at + 1;
        if (*at != ',')
            return NULL;
        at = space(at + 1, end);
    }
    return NULL;
}

static const char *value(const char *at, const char *end, int depth)
{
    if (at >= end || depth == 0)
        return NULL;
    switch (*at) {
    case '"': return string(at, end);
    case '{': return many(at, end, depth, 1);
    case '[': return many(at, end, depth, 0);
    case 't': return word(at, end, "true");
    case 'f': return word(at, end, "false");
    case 'n': return word(at, end, "null");
    }
    return number(at, end);
}

int gd_said(const char *text, size_t n, struct gd_said *object)
{
    const char *end = text + n, *at = space(text, end), *behind;

    if (at == end || *at != '{' || !(behind = value(at, end, DEEPEST)) || space(behind, end) != end)
        return -EPROTO;
    object->at = at;
    object->end = behind;
    return 0;
}

/* The value at the front of what is left, which is well formed; what is left then is behind it. */
static void take(struct gd_said *left, struct gd_said *found)
{
    found->at = space(left->at, left->end);
    found->end = left->at = value(found->at, left->end, DEEPEST);
    left->at = space(left->at, left->end);
}

static struct gd_said inside(struct gd_said of)
{
    struct gd_said left = {space(of.at + 1, of.end), of.end - 1};

    return left;
}

int gd_said_member(struct gd_said object, const char *name, struct gd_said *found)
{
    struct gd_said left, key;
    size_t n = strlen(name);

    if (*object.at != '{')
        return -EPROTO;
    for (left = inside(object); left.at < left.end;) {
        take(&left, &key);
        left.at++; /* the colon */
        take(&left, found);
        if ((size_t)(key.end - key.at) == n + 2 && !memcmp(key.at + 1, name, n))
            return 0;
        if (left.at < left.end)
            left.at = space(left.at + 1, left.end); /* the comma */
    }
    return -EPROTO;
}

int gd_said_items(struct gd_said array, struct gd_said *items)
{
    if (*array.at != '[')
        return -EPROTO;
    *items = inside(array);
    return 0;
}

int gd_said_next(struct gd_said *items, struct gd_said *found)
{
    if (items->at >= items->end)
        return 0;
    take(items, found);
    if (items->at < items->end)
        items->at = space(items->at + 1, items->end);
    return 1;
}

int gd_said_number(struct gd_said of, uint64_t most, uint64_t *found)
{
    uint64_t n = 0;

    if (digits(of.at, of.end) != of.end)
        return -EPROTO;
    for (const char *at = of.at; at < of.end; at++) {
        unsigned digit = (unsigned)(*at - '0');

        if (n > (UINT64_MAX - digit) / 10)
            return -EPROTO;
        n = 10 * n + digit;
    }
    if (n > most)
        return -EPROTO;
    *found = n;
    return 0;
}

int gd_said_truth(struct gd_said of, int *truth)
{
    *truth = *of.at == 't';
    return *of.at == 't' || *of.at == 'f' ? 0 : -EPROTO;
}

int gd_said_is_null(struct gd_said of)
{
    return *of.at == 'n';
}

static uint32_t four(const char *at)
{
    return (uint32_t)(hex(at[0]) << 12 | hex(at[1]) << 8 | hex(at[2]) << 4 | hex(at[3]));
}

/* The character of an escape whose letter is at *at, which comes to stand on its last one. */
static uint32_t escaped(const char **at, const char *end)
{
    static const char letters[] = "bfnrt", meant[] = "\b\f\n\r\t";
    const char *found = strchr(letters, **at);
    uint32_t c, low;

    if (found)
        return (uint32_t)meant[found - letters];
    if (**at != 'u')
        return (uint32_t)**at;
    c = four(*at + 1);
    *at += 4;
    if (c >= 0xd800 && c < 0xdc00 && end - *at > 6 && (*at)[1] == '\\' && (*at)[2] == 'u') {
        low = four(*at + 3);
        if (low >= 0xdc00 && low < 0xe000) {
            *at += 6;
            return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    /* half a pair stands for nothing, and a 0 would end the text */
    return !c || (c >= 0xd800 && c < 0xe000) ? '?' : c;
}

static int utf8(uint32_t c, char *to)
{
    int behind = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xc0, 0xe0, 0xf0};

    to[0] = (char)(first[behind] | c >> 6 * behind);
    for (int i = 1; i <= behind; i++)
        to[i] = (char)(0x80 | (c >> 6 * (behind - i) & 0x3f));
    return behind + 1;
}

int64_t gd_said_text(struct gd_said of, char *into, size_t size)
{
    size_t n = 0;

    if (*of.at != '"')
        return -EPROTO;
    for (const char *at = of.at + 1, *end = of.end - 1; at < end; at++) {
        char one[4];
        int bytes = 1;

        one[0] = *at;
        if (*at == '\\') {
            at++;
            bytes = utf8(escaped(&at, of.end), one);
        }
        if (n + (size_t)bytes >= size)
            return -EPROTO;
        memcpy(into + n, one, (size_t)bytes);
        n += (size_t)bytes;
    }
    if (n >= size)
        return -EPROTO;
    into[n] = 0;
    return (int64_t)n;
}
