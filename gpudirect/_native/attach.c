/* SPDX-License-Identifier: MIT */
/*
 * Attaching to what another process shares: gpudirect/sharing in C. The owner (sharing/_owner.py) listens
 * on a socket in the abstract namespace; whoever shows a token's secret is told in JSON what it stands for,
 * with descriptors beside it, and keeps the connection, whose end is the other side's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "../include/gpudirect/attach.h"
#include "native.h"
#include "rm.h"
#include "said.h"

#define SIGN "gpudirect-token-"
#define TOKEN 1                /* the version of tokens */
#define PROTOCOL 1             /* of what the owner says: sharing/_wire.py */
#define LONGEST (64 << 10)     /* bytes of a packet, as there */
#define DESCRIPTORS 4          /* that one answer brings at most, as there */
#define PADDING 16             /* bytes: no type asks for more alignment */
#define BLOCKS 3               /* mappings of a service: replies, its memory, its wake word */
#define BETWEEN_LOOKS 1000000  /* ns of waiting between two looks at whether the owner lives */

struct block {
    struct gd_rm rm; /* control -1: none */
    uintptr_t base;
    size_t size; /* 0: not mapped */
};

struct whole {
    struct gd_attached shown; /* first: what callers have */
    struct gd_lane lane;
    struct block blocks[BLOCKS];
    unsigned forks; /* gd_forks() when it was made */
    int ended;      /* what gd_attached_look() found once: 0 or -errno */
    char *texts;    /* of names; `room` bytes are left */
    size_t room;
    int64_t shape[GD_MAX_DIMS];
    struct gd_attached_function functions[];
};

static __thread char message[512];

const char *gd_attach_message(void)
{
    return message;
}

__attribute__((format(printf, 2, 3))) static int failed(int code, const char *words, ...)
{
    va_list arguments;

    va_start(arguments, words);
    vsnprintf(message, sizeof(message), words, arguments);
    va_end(arguments);
    return code;
}

static int misunderstood(const char *what)
{
    return failed(-EPROTO, "the owner's answer is not understood (%s): is gpudirect of one version on both "
                           "sides?", what);
}

/* ---- the token ---- */

struct token {
    char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
    char secret[65];
    unsigned long pid;
};

/* The part of a token from *at to the next colon, which *at comes to stand behind; its length. */
static int part(const char **at, char *into, size_t size)
{
    size_t n = strcspn(*at, ":");

    if (n >= size)
        return -1;
    memcpy(into, *at, n);
    into[n] = 0;
    *at += n;
    if (**at)
        ++*at;
    return (int)n;
}

static int parse(const char *text, struct token *token)
{
    char number[24], mode[8];
    const char *at = text;

    if (!text || strncmp(at, SIGN, strlen(SIGN)))
        return failed(-EINVAL, "this is no token: give what array.share() gave, as str() has it");
    at += strlen(SIGN);
    if (part(&at, number, sizeof(number)) < 1 || strspn(number, "0123456789") != strlen(number))
        return failed(-EINVAL, "this is no token: give what array.share() gave, as str() has it");
    if (strtoul(number, NULL, 10) != TOKEN)
        return failed(-EINVAL, "the token is of version %s, and this library knows %d: install one version "
                               "of gpudirect on both sides", number, TOKEN);
    /* a name that leaves no room for the 0 in front of it is none of an abstract socket */
    if (part(&at, token->socket, sizeof(token->socket) - 1) < 1 ||
        part(&at, token->secret, sizeof(token->secret)) < 0 ||
        part(&at, number, sizeof(number)) < 1 || strspn(number, "0123456789") != strlen(number) ||
        part(&at, mode, sizeof(mode)) < 1 || strspn(at, "0123456789") != strlen(at) || !*at ||
        strspn(token->secret, "0123456789abcdef") != strlen(token->secret))
        return failed(-EINVAL, "this is no token: give what array.share() gave, as str() has it");
    token->pid = strtoul(number, NULL, 10);
    return 0;
}

/* ---- the owner ---- */

static int64_t left(uint64_t start, int64_t timeout)
{
    int64_t spent = (int64_t)(gd_now() - start);

    return timeout < 0 ? -1 : spent < timeout ? timeout - spent : 0;
}

static int no_answer(const struct token *token)
{
    return failed(-ETIMEDOUT, "process %lu, which shared it, did not answer in time: is it stopped, or in a "
                              "debugger?", token->pid);
}

static int no_owner(const struct token *token, int code)
{
    return failed(-ECONNREFUSED, "process %lu, which shared it, does not answer (%s): it has ended, or runs "
                                 "in another network namespace (container)", token->pid, strerror(code));
}

/* A connection to the token's owner, who is this user; or -errno. */
static int meet(const struct token *token, uint64_t start, int64_t timeout)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    socklen_t size = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(token->socket);
    socklen_t own = sizeof(struct ucred);
    struct ucred other = {0, 0, 0};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), code;

    if (fd < 0)
        return failed(-errno, "no socket to ask the owner: %s", strerror(errno));
    memcpy(to.sun_path + 1, token->socket, strlen(token->socket));
    do {
        int64_t ns = left(start, timeout);
        /* 0 would be for ever */
        struct timeval most = {ns > 0 ? ns / 1000000000 : 0, ns > 0 ? ns % 1000000000 / 1000 : 0};

        if (timeout >= 0 && !most.tv_sec && !most.tv_usec)
            most.tv_usec = 1;
        if (timeout >= 0)
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
        code = connect(fd, (struct sockaddr *)&to, size) ? errno : 0;
    } while (code == EINTR);
    if (code) {
        close(fd);
        return code == EAGAIN ? no_answer(token) : no_owner(token, code);
    }
    /* somebody may have taken the name after the owner had ended */
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &other, &own) || other.uid != getuid()) {
        close(fd);
        return failed(-EPERM, "user %u answers on the token's socket, and not you (user %u): process %lu has "
                              "ended, or is another user's", other.uid, getuid(), token->pid);
    }
    return fd;
}

/* One packet; its length, or -errno. The descriptors are the caller's in any case. */
static ssize_t hear(int fd, uint64_t start, int64_t timeout, char *into, int *descriptors, int *count)
{
    union {
        char bytes[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
        struct cmsghdr aligned;
    } beside;
    struct iovec text = {into, LONGEST};
    struct msghdr packet = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = beside.bytes,
                            .msg_controllen = sizeof(beside.bytes)};
    ssize_t n;

    *count = 0;
    for (;;) {
        struct pollfd look = {fd, POLLIN, 0};
        int64_t ns = left(start, timeout);
        int found = poll(&look, 1, ns < 0 ? -1 : ns > 1000000000 ? 1000 : (int)((ns + 999999) / 1000000));

        if (found < 0 && errno != EINTR)
            return -errno;
        if (found <= 0 && left(start, timeout) == 0)
            return -ETIMEDOUT;
        if (found <= 0)
            continue;
        n = recvmsg(fd, &packet, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (n >= 0)
            break;
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&packet); c; c = CMSG_NXTHDR(&packet, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        *count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(descriptors, CMSG_DATA(c), (size_t)*count * sizeof(int));
    }
    if (packet.msg_flags & MSG_TRUNC)
        return -EMSGSIZE;
    if (packet.msg_flags & MSG_CTRUNC)
        return -EMFILE;
    return n;
}

/* Ask; what the owner says is in `text` then, and *said shows it. */
static int ask(int fd, const struct token *token, uint64_t start, int64_t timeout, char *text,
               struct gd_said *said, int *descriptors, int *count)
{
    char question[96], words[300];
    int size = snprintf(question, sizeof(question), "{\"secret\": \"%s\"}", token->secret);
    struct gd_said found;
    uint64_t protocol;
    ssize_t n;

    *count = 0;
    if (send(fd, question, (size_t)size, MSG_NOSIGNAL) != size)
        return no_owner(token, errno);
    n = hear(fd, start, timeout, text, descriptors, count);
    if (n == -ETIMEDOUT)
        return no_answer(token);
    if (n == -EMFILE)
        return failed(-EMFILE, "this process has as many descriptors open as it may have (ulimit -n): there "
                               "is none for the memory of process %lu", token->pid);
    if (n == -EMSGSIZE)
        return misunderstood("longer than any answer is");
    if (n < 0 && n != -ECONNRESET)
        return failed((int)n, "asking process %lu: %s", token->pid, strerror((int)-n));
    if (n <= 0)
        return failed(-ECONNRESET, "process %lu ended while it was asked", token->pid);
    if (gd_said(text, (size_t)n, said))
        return misunderstood("no JSON object, or a part of one");
    if (!gd_said_member(*said, "refused", &found)) {
        if (gd_said_text(found, words, sizeof(words)) < 0)
            strcpy(words, "it does not say why");
        return failed(-EACCES, "process %lu refused: %s", token->pid, words);
    }
    if (gd_said_member(*said, "protocol", &found) || gd_said_number(found, UINT32_MAX, &protocol))
        return misunderstood("without a version");
    if (protocol != PROTOCOL)
        return failed(-EPROTO, "process %lu speaks version %llu of sharing, and this library %d: install one "
                               "version of gpudirect on both sides", token->pid,
                      (unsigned long long)protocol, PROTOCOL);
    return 0;
}

/* ---- what it says, member by member ---- */

/* Numbers of an object by name; the first that is missing or too large is told of. */
static int number(struct gd_said of, const char *name, uint64_t most, uint64_t *value)
{
    struct gd_said found;

    if (gd_said_member(of, name, &found) || gd_said_number(found, most, value))
        return misunderstood(name);
    return 0;
}

static int next_number(struct gd_said *items, uint64_t most, uint64_t *value)
{
    struct gd_said found;

    return gd_said_next(items, &found) && !gd_said_number(found, most, value) ? 0 : -EPROTO;
}

/* A text among those of the whole; NULL where it is none. */
static const char *kept(struct whole *whole, struct gd_said value)
{
    char *at = whole->texts;
    int64_t n = gd_said_text(value, at, whole->room);

    if (n < 0)
        return NULL;
    whole->texts += n + 1;
    whole->room -= (size_t)n + 1;
    return at;
}

/* ---- memory ---- */

/* Whether nobody can take away what a file's descriptor shows: its size is fixed, and large enough. */
static int trusted(int fd, uint64_t size)
{
    struct stat told;
    int seals;

    if (fstat(fd, &told))
        return failed(-errno, "asking about the memory that was handed over: %s", strerror(errno));
    if (!S_ISREG(told.st_mode)) /* the lab's stand-in device, which looks after its mappings */
        return S_ISCHR(told.st_mode) ? 0 : failed(-EBADF, "what was handed over is no memory");
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return failed(-EBADF, "the memory that was handed over is a file that can be made shorter, which "
                              "would end this process: it is not sealed, so it is not mapped");
    if ((uint64_t)told.st_size < size)
        return failed(-EBADF, "the memory that was handed over is a file of %lld bytes, and %llu are asked "
                              "for", (long long)told.st_size, (unsigned long long)size);
    return 0;
}

/* The pages around a range of a file. Where the range begins, or -errno. */
static int64_t map_file(struct block *block, int fd, uint64_t offset, uint64_t size, int writable)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), lead = offset & (page - 1);
    uint64_t length = (lead + size + page - 1) & -page;
    int64_t base;
    int code = trusted(fd, offset + size);

    if (code)
        return code;
    base = gd_map(0, length, 1, writable, fd, (int64_t)(offset - lead), 0);
    if (base < 0)
        return failed((int)base, "mapping %llu bytes: %s", (unsigned long long)length, strerror((int)-base));
    block->base = (uintptr_t)base;
    block->size = length;
    return base + (int64_t)lead;
}

static int64_t map_device(struct block *block, int fd, const char *pci_address, uint64_t offset,
                          uint64_t size, int writable)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), lead = offset & (page - 1);
    uint64_t length = (lead + size + page - 1) & -page;
    int64_t base = gd_rm_map(&block->rm, fd, pci_address, offset - lead, length, writable);

    if (base < 0 && block->rm.status)
        return failed((int)base, "%s failed with driver status %#x%s", block->rm.doing, block->rm.status,
                      base == -ENOMEM ? ": the driver is out of room; BAR1 is shared by every process on "
                                        "this GPU" : " (see nvstatuscodes.h)");
    if (base < 0)
        return failed((int)base, "%s: %s", block->rm.doing, strerror((int)-base));
    block->base = (uintptr_t)base;
    block->size = length;
    return base + (int64_t)lead;
}

/* Map what `placed` (sharing/_owner.py) describes. Where its first byte is, or -errno. */
static int64_t map_placed(struct block *block, int fd, struct gd_said placed, int emulated, int writable,
                          uint64_t *size)
{
    struct gd_said found;
    uint64_t offset, whole;
    char pci[32];

    /* far from where a sum would wrap */
    if (number(placed, "offset", INT64_MAX / 4, &offset) || number(placed, "nbytes", INT64_MAX / 4, size) ||
        number(placed, "size", INT64_MAX / 4, &whole))
        return -EPROTO;
    if (offset + *size > whole)
        return misunderstood("bytes behind the end of their block");
    if (emulated)
        return map_file(block, fd, offset, *size ? *size : 1, writable);
    if (gd_said_member(placed, "pci_address", &found) || gd_said_text(found, pci, sizeof(pci)) < 0)
        return misunderstood("pci_address");
    return map_device(block, fd, pci, offset, *size ? *size : 1, writable);
}

/* ---- an array ---- */

static int make_array(struct whole *whole, struct gd_said said, const int *descriptors, int emulated)
{
    struct gd_attached *shown = &whole->shown;
    struct gd_said found;
    uint64_t itemsize, count;
    int64_t address;

    if (gd_said_member(said, "shape", &found) || gd_said_items(found, &found))
        return misunderstood("shape");
    for (struct gd_said item; gd_said_next(&found, &item);) {
        if (shown->ndim == GD_MAX_DIMS || gd_said_number(item, INT64_MAX, &count))
            return misunderstood("shape");
        whole->shape[shown->ndim++] = (int64_t)count;
    }
    shown->shape = whole->shape;
    if (gd_said_member(said, "dtype", &found) || !(shown->dtype = kept(whole, found)))
        return misunderstood("dtype");
    if (number(said, "itemsize", UINT32_MAX, &itemsize) || number(said, "ptr", UINT64_MAX, &shown->device))
        return -EPROTO;
    shown->itemsize = (uint32_t)itemsize;
    address = map_placed(&whole->blocks[0], descriptors[0], said, emulated, shown->writable, &shown->size);
    if (address < 0)
        return (int)address;
    shown->address = (uintptr_t)address;
    return 0;
}

/* ---- a service ---- */

static int take_functions(struct whole *whole, struct gd_said items)
{
    /* [name, number, bytes, kind and bytes of the result, parameters, declaration] */
    for (struct gd_said item, value; gd_said_next(&items, &item);) {
        struct gd_attached_function *f = &whole->functions[whole->shown.function_count];
        uint64_t place, size, result;

        if (gd_said_items(item, &item) || !gd_said_next(&item, &value) || !(f->name = kept(whole, value)) ||
            next_number(&item, P2PMOD_FUNCTION_NOTHING - 1, &place) ||
            next_number(&item, UINT32_MAX, &size) || !gd_said_next(&item, &value) ||
            next_number(&item, 8, &result) || !gd_said_next(&item, &value) ||
            !gd_said_next(&item, &value) || !(f->declaration = kept(whole, value)))
            return misunderstood("functions");
        f->number = (uint32_t)place;
        f->size = (uint32_t)size;
        f->result_size = (uint32_t)result;
        whole->shown.function_count++;
    }
    whole->shown.functions = whole->functions;
    return 0;
}

static int fits(uint64_t offset, uint64_t count, uint64_t each, uint64_t size)
{
    return offset <= size && (!each || count <= (size - offset) / each);
}

static int take_ring(struct whole *whole, struct gd_said said, uint64_t host_size, uint64_t memory_size,
                     uint64_t host, uint64_t memory, uint64_t wake)
{
    struct gd_lane *lane = &whole->lane;
    struct gd_said ring;
    uint64_t packets, replies, arguments, arguments_device, stride, told, slots, sent;

    if (gd_said_member(said, "ring", &ring) || gd_said_items(ring, &ring) ||
        next_number(&ring, INT64_MAX, &packets) || next_number(&ring, INT64_MAX, &replies) ||
        next_number(&ring, INT64_MAX, &arguments) || next_number(&ring, UINT64_MAX, &arguments_device) ||
        next_number(&ring, 1 << 20, &stride) || next_number(&ring, INT64_MAX, &told))
        return misunderstood("ring");
    if (number(said, "slots", P2PMOD_LANE_SLOTS_MAX, &slots) || number(said, "sent", UINT32_MAX, &sent))
        return -EPROTO;
    if (!fits(packets, slots, P2PMOD_PACKET_BYTES, memory_size) || !fits(arguments, slots, stride, memory_size) ||
        !fits(replies, slots, P2PMOD_REPLY_BYTES, host_size) ||
        !fits(told, P2PMOD_TOLD_WORDS, sizeof(uint32_t), host_size) || told % sizeof(uint32_t))
        return misunderstood("a ring behind the end of its memory");
    lane->packets = memory + packets;
    lane->replies = host + replies;
    lane->arguments = memory + arguments;
    lane->arguments_device = arguments_device;
    lane->stride = (uint32_t)stride;
    lane->slots = (uint32_t)slots;
    lane->told = wake ? host + told : 0;
    lane->wake = wake;
    if (gd_lane_init(lane))
        return misunderstood("no ring that a lane can have");
    lane->sent = lane->taken = (uint32_t)sent;
    whole->shown.lane = lane;
    return 0;
}

static int make_service(struct whole *whole, struct gd_said said, const int *descriptors, int count,
                        int emulated)
{
    struct gd_said found, placed;
    uint64_t host_size, memory_size, wake_size;
    int64_t host, memory, wake = 0;
    int code;

    if (gd_said_member(said, "functions", &found) || gd_said_items(found, &found))
        return misunderstood("functions");
    if ((code = take_functions(whole, found)) || (code = number(said, "host_size", INT64_MAX / 4, &host_size)))
        return code;
    if (count < 2 || gd_said_member(said, "memory", &placed) || gd_said_member(said, "wake", &found))
        return misunderstood("memory of a service");
    if ((host = map_file(&whole->blocks[0], descriptors[0], 0, host_size, 0)) < 0)
        return (int)host;
    memory = map_placed(&whole->blocks[1], descriptors[1], placed, emulated, 1, &memory_size);
    if (memory < 0)
        return (int)memory;
    if (!gd_said_is_null(found)) {
        if (count < 3)
            return misunderstood("a wake word without its memory");
        wake = map_placed(&whole->blocks[2], descriptors[2], found, emulated, 1, &wake_size);
        if (wake < 0)
            return (int)wake;
        if (wake_size < sizeof(uint32_t))
            return misunderstood("wake");
    }
    return take_ring(whole, said, host_size, memory_size, (uint64_t)host, (uint64_t)memory, (uint64_t)wake);
}

/* ---- the two as one ---- */

static size_t count_functions(struct gd_said said)
{
    struct gd_said items, item;
    size_t n = 0;

    if (gd_said_member(said, "functions", &items) || gd_said_items(items, &items))
        return 0;
    while (gd_said_next(&items, &item))
        n++;
    return n;
}

static int make(struct gd_said said, int connection, const int *descriptors, int count,
                struct gd_attached **attached)
{
    size_t n = count_functions(said), texts = (size_t)(said.end - said.at);
    size_t size = sizeof(struct whole) + n * sizeof(struct gd_attached_function);
    struct whole *whole;
    struct gd_said found;
    uint64_t pid;
    char mode[8];
    int emulated, code;

    if (!count)
        return misunderstood("no memory came with it");
    whole = calloc(1, size + texts); /* a text is no longer than where it stands with its marks */
    if (!whole)
        return failed(-ENOMEM, "no memory for %zu bytes about what is attached", size + texts);
    whole->texts = (char *)whole + size;
    whole->room = texts;
    whole->forks = *gd_forks();
    for (int i = 0; i < BLOCKS; i++)
        whole->blocks[i].rm.control = whole->blocks[i].rm.gpu = -1;
    whole->shown.fd = -1; /* the caller's until all is well */
    code = number(said, "pid", INT32_MAX, &pid);
    if (!code && (gd_said_member(said, "mode", &found) || gd_said_text(found, mode, sizeof(mode)) < 0 ||
                  gd_said_member(said, "emulated", &found) || gd_said_truth(found, &emulated)))
        code = misunderstood("mode");
    if (!code) {
        whole->shown.owner = (int32_t)pid;
        whole->shown.writable = strcmp(mode, "r") != 0;
        if (!strcmp(mode, "call"))
            code = make_service(whole, said, descriptors, count, emulated);
        else if (!strcmp(mode, "r") || !strcmp(mode, "rw"))
            code = make_array(whole, said, descriptors, emulated);
        else
            code = misunderstood("mode");
    }
    if (code) {
        gd_detach(&whole->shown);
        return code;
    }
    whole->shown.fd = connection;
    *attached = &whole->shown;
    return 0;
}

int gd_attach(const char *text, int64_t timeout, struct gd_attached **attached)
{
    uint64_t start = gd_now();
    int descriptors[DESCRIPTORS], count, connection, code;
    struct token token;
    struct gd_said said;
    char *packet;

    *attached = NULL;
    code = parse(text, &token);
    if (code)
        return code;
    packet = malloc(LONGEST);
    if (!packet)
        return failed(-ENOMEM, "no memory for the owner's answer");
    connection = meet(&token, start, timeout);
    if (connection < 0) {
        free(packet);
        return connection;
    }
    code = ask(connection, &token, start, timeout, packet, &said, descriptors, &count);
    if (!code)
        code = make(said, connection, descriptors, count, attached);
    for (int i = 0; i < count; i++)
        close(descriptors[i]);
    if (code)
        close(connection);
    free(packet);
    return code;
}

void gd_detach(struct gd_attached *attached)
{
    struct whole *whole = (struct whole *)attached;

    if (!attached)
        return;
    for (int i = 0; i < BLOCKS; i++) {
        if (whole->blocks[i].size && whole->forks == *gd_forks()) /* a child may have something else there */
            gd_unmap(whole->blocks[i].base, whole->blocks[i].size);
        gd_rm_close(&whole->blocks[i].rm);
    }
    if (attached->fd >= 0)
        close(attached->fd);
    free(whole);
}

/* ---- using it ---- */

/* Whether it can be used, for all that is known without asking the system. */
static int standing(const struct gd_attached *attached)
{
    const struct whole *whole = (const struct whole *)attached;
    int ended = __atomic_load_n(&whole->ended, __ATOMIC_RELAXED);

    if (__builtin_expect(whole->forks != *gd_forks(), 0))
        return failed(-ECHILD, "this was attached by the parent process, and mappings of device memory are "
                               "not inherited over fork(): attach with a token of its own");
    if (__builtin_expect(ended, 0))
        return failed(ended, "process %d, its owner, %s", attached->owner,
                      ended == -ESTALE ? "closed it" : "has ended");
    return 0;
}

int gd_attached_look(const struct gd_attached *attached)
{
    struct whole *whole = (struct whole *)attached;
    struct gd_said said, closed;
    char text[256];
    ssize_t n;
    int truth = 0, code = standing(attached);

    if (code)
        return code;
    do /* the packet stays, so that everybody who looks finds it */
        n = recv(attached->fd, text, sizeof(text), MSG_PEEK | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (n > 0 && !gd_said(text, (size_t)n, &said) && !gd_said_member(said, "closed", &closed))
        gd_said_truth(closed, &truth);
    __atomic_store_n(&whole->ended, truth ? -ESTALE : -EPIPE, __ATOMIC_RELAXED);
    return standing(attached);
}

static int inside(const struct gd_attached *attached, uint64_t offset, size_t n)
{
    int code = standing(attached);

    if (code)
        return code;
    if (!attached->address)
        return failed(-ENOTSUP, "this is a lane of a service, and no array");
    if (offset > attached->size || n > attached->size - offset)
        return failed(-ERANGE, "%zu bytes from %llu on are not inside an array of %llu bytes", n,
                      (unsigned long long)offset, (unsigned long long)attached->size);
    return 0;
}

int gd_attached_write(const struct gd_attached *attached, uint64_t offset, const char *src, size_t n,
                      unsigned flags)
{
    int code = inside(attached, offset, n);

    if (!code && !attached->writable)
        code = failed(-EACCES, "process %d shared this array read-only; ask for share(mode='rw')",
                      attached->owner);
    return code ? code : gd_write(attached->address + offset, src, n, flags);
}

int gd_attached_read(const struct gd_attached *attached, char *dst, uint64_t offset, size_t n,
                     unsigned flags)
{
    int code = inside(attached, offset, n);

    return code ? code : gd_read(dst, attached->address + offset, n, flags);
}

/* Whether a caller's arguments can be a function's: a C struct of them may have padding at its end. */
static int takes(const struct gd_attached_function *f, size_t size)
{
    return size >= f->size && size - f->size < PADDING;
}

static int wrong_size(const struct gd_attached_function *f, size_t size)
{
    return failed(-EMSGSIZE, "%s takes %u bytes of arguments, as a C struct of them is: %s; %zu are given",
                  f->name, f->size, f->declaration, size);
}

int gd_attached_find(const struct gd_attached *attached, const char *name, size_t size)
{
    for (int i = 0; i < attached->function_count; i++) {
        const struct gd_attached_function *f = &attached->functions[i];

        if (strcmp(f->name, name))
            continue;
        return takes(f, size) ? i : wrong_size(f, size);
    }
    return failed(-ENOENT, "the service of process %d has no function %s", attached->owner, name);
}

int gd_attached_call(struct gd_attached *attached, int function, const void *arguments, size_t size,
                     int64_t timeout, struct p2pmod_reply *reply)
{
    const struct gd_attached_function *f;
    struct gd_lane *lane = attached->lane;
    uint64_t start;
    int code = standing(attached);

    if (code)
        return code;
    if (!lane || function < 0 || function >= attached->function_count)
        return failed(-EINVAL, "there is no function %d among %d", function, attached->function_count);
    f = &attached->functions[function];
    if (!takes(f, size))
        return wrong_size(f, size);
    if (lane->taken != lane->sent)
        return failed(-EBUSY, "%u earlier calls of this lane are not taken: gd_lane_take() does that",
                      lane->sent - lane->taken);
    code = gd_lane_send(lane, f->number, arguments, f->size);
    if (code)
        return failed(code, "sending a call of %s: %s", f->name, strerror(-code));
    for (start = gd_now();;) {
        int64_t ns = left(start, timeout);

        code = gd_lane_take(lane, ns < 0 || ns > BETWEEN_LOOKS ? BETWEEN_LOOKS : ns, reply);
        if (code != -ETIMEDOUT)
            return code;
        if ((code = gd_attached_look(attached)))
            return code;
        if (left(start, timeout) == 0)
            return failed(-ETIMEDOUT, "%s did not answer in %.3g s", f->name, (double)timeout / 1e9);
    }
}
