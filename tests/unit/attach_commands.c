/* SPDX-License-Identifier: MIT */
/*
 * A process of C alone for tests of attach.h: a command a line, each answered with a line, which begins with
 * the code that the library gave. Handles are digits.
 */
#include <gpudirect.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct gd_attached *held[10];
static char line[1 << 17], bytes[1 << 16];

static size_t unhex(const char *text)
{
    size_t n = 0;

    for (; text[0] > ' ' && text[1] > ' ' && n < sizeof(bytes); text += 2, n++) {
        char two[3] = {text[0], text[1], 0};

        bytes[n] = (char)strtoul(two, NULL, 16);
    }
    return n;
}

/* An owner's words, on this line whatever they are. */
static void say(const char *text)
{
    for (; *text; text++)
        putchar((unsigned char)*text < ' ' ? '?' : *text);
}

static void tell(int code)
{
    printf("%d", code);
    if (code < 0) {
        putchar(' ');
        say(gd_attach_message());
    }
    putchar('\n');
}

static void show(const struct gd_attached *a)
{
    printf("0 %llu %u ", (unsigned long long)a->size, a->itemsize);
    say(a->dtype ? a->dtype : "-");
    printf(" %d %d [", a->writable, a->owner);
    for (int i = 0; i < a->ndim; i++)
        printf(i ? ",%lld" : "%lld", (long long)a->shape[i]);
    printf("]");
    for (int i = 0; i < a->function_count; i++) {
        putchar(' ');
        say(a->functions[i].name);
        printf(":%u:", a->functions[i].size);
        say(a->functions[i].declaration);
    }
    printf("\n");
}

static void call(struct gd_attached *a, char *rest)
{
    char name[64], hex[4096] = "";
    long long timeout;
    struct p2pmod_reply reply = {0, 0, 0};
    size_t n;
    int code;

    sscanf(rest, "%63s %lld %4095s", name, &timeout, hex);
    n = unhex(hex);
    code = gd_attached_find(a, name, n);
    if (code >= 0)
        code = gd_attached_call(a, code, bytes, n, timeout, &reply);
    if (code < 0)
        tell(code);
    else
        printf("0 %u %llu\n", reply.status, (unsigned long long)reply.value);
}

static void in_child(struct gd_attached *a)
{
    int status;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (!child) {
        int code = gd_attached_write(a, 0, "x", 1, 0), looked = gd_attached_look(a);

        gd_detach(a);
        _exit(code == -ECHILD && looked == -ECHILD ? 7 : 1);
    }
    waitpid(child, &status, 0);
    printf("0 %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

int main(void)
{
    while (fgets(line, sizeof(line), stdin)) {
        char *rest = line + 4;
        unsigned long long offset, n;
        struct gd_attached *a = NULL, **place = &held[line[2] - '0'];
        long long timeout;
        int used;

        if (line[0] != 'a')
            a = *place;
        switch (line[0]) {
        case 'h': tell(0); break;
        case 'a': /* TIMEOUT TOKEN */
            timeout = strtoll(rest, &rest, 10);
            rest[strcspn(rest, "\n")] = 0;
            tell(gd_attach(rest + 1, timeout, place));
            break;
        case 's': show(a); break;
        case 'w': /* OFFSET HEX */
            sscanf(rest, "%llu %n", &offset, &used);
            n = unhex(rest + used);
            tell(gd_attached_write(a, offset, bytes, n, 0));
            break;
        case 'r': /* OFFSET COUNT */
            sscanf(rest, "%llu %llu", &offset, &n);
            used = gd_attached_read(a, bytes, offset, n, 0);
            if (used < 0) {
                tell(used);
                break;
            }
            printf("0 ");
            for (size_t i = 0; i < n; i++)
                printf("%02x", (unsigned char)bytes[i]);
            printf("\n");
            break;
        case 'l': tell(gd_attached_look(a)); break;
        case 'c': call(a, rest); break; /* NAME TIMEOUT HEX */
        case 't': { /* TIMEOUT: take a reply */
            struct p2pmod_reply reply = {0, 0, 0};
            int code = gd_lane_take(a->lane, strtoll(rest, NULL, 10), &reply);

            printf("%d %u %llu\n", code, reply.status, (unsigned long long)reply.value);
            break;
        }
        case 'g': /* a store past the library, guarded */
            printf("%d\n", gd_write(a->address, "x", 1, GD_GUARDED));
            break;
        case 'f': in_child(a); break;
        case 'u': printf("%d\n", setgid(65534) || setuid(65534)); break;
        case 'd':
            gd_detach(a);
            *place = NULL;
            tell(0);
            break;
        }
        fflush(stdout);
    }
    return 0;
}
