/*
 * A courier's end on the device: functions of a service, each run by a block, that move data between
 * device memory and page-locked host memory. _native/courier.c calls them; arguments are laid out there as
 * here, each list in one structure. Addresses and indices were checked.
 *
 * What the CPU stored before it called is seen, since loads here bypass the L1 cache; what is stored here
 * is seen by whoever sees the reply, since the service releases it before it replies.
 */
namespace gd_courier {

typedef unsigned long long address;

struct push_what { address to, from, n; };
struct pick_what { address to, from, list; unsigned count, word, per, wide; };
struct put_what { address to, list, items; unsigned count, word, per, step, wide, ordered; };
struct spread_what {
    address packed, first;
    unsigned count, unused;
    address strided;
    unsigned word, dims, shape[4];
    long long strides[4];
};

constexpr unsigned AHEAD = 4;            /* loads of a thread that are under way at once */

/* For each of `count` words: load all of a round, then store them. */
template <class T, class From, class To>
__device__ inline void move_words(unsigned count, From from, To to)
{
    unsigned size = gd_size();

    for (unsigned start = gd_rank(); start < count; start += AHEAD * size) {
        T words[AHEAD];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++)
            if (start + i * size < count)
                words[i] = *(const T *)from(start + i * size);
#pragma unroll
        for (unsigned i = 0; i < AHEAD; i++)
            if (start + i * size < count)
                *(T *)to(start + i * size) = words[i];
    }
}

/* Which item and which of its words is word number k, as an offset in words. */
__device__ inline address place(address list, unsigned k, unsigned per, unsigned step, bool wide)
{
    unsigned item = per == 1 ? k : k / per, rest = k - item * per;
    address at = wide ? ((const address *)list)[item] : ((const unsigned *)list)[item];

    return at * step + rest;
}

template <class T> __device__ inline void pick_words(const pick_what &a)
{
    move_words<T>(
        a.count * a.per,
        [&](unsigned k) { return a.from + place(a.list, k, a.per, a.per, a.wide) * sizeof(T); },
        [&](unsigned k) { return a.to + k * address(sizeof(T)); });
}

__device__ inline bool same(uint4 a, uint4 b)
{
    return a.x == b.x && a.y == b.y && a.z == b.z && a.w == b.w;
}
template <class T> __device__ inline bool same(T a, T b) { return a == b; }
__device__ inline uint4 anew(const uint4 *at) { return gd_service::look(at); }
template <class T> __device__ inline T anew(const T *at) { return *(const volatile T *)at; }

/*
 * Indices that do not rise may repeat, and the last item must stay. Where each word holds what its thread
 * stored, none was overwritten by another value; else all are stored once more, by one thread in order.
 */
template <class T> __device__ inline void put_words(const put_what &a)
{
    unsigned count = a.count * a.per;
    auto to = [&](unsigned k) {
        return a.to + place(a.list, k, a.per, a.step, a.wide) * sizeof(T);
    };
    auto item = [&](unsigned k) { return a.items + k * address(sizeof(T)); };

    move_words<T>(count, item, to);
    if (!a.ordered)
        return;
    __threadfence();
    gd_sync();
    bool other = false;
    for (unsigned k = gd_rank(); k < count; k += gd_size())
        other |= !same(anew((const T *)to(k)), *(const T *)item(k));
    if (__syncthreads_or(other) && gd_rank() == 0)
        for (unsigned k = 0; k < count; k++)
            *(T *)to(k) = *(const T *)item(k);
}

/* Where word number k of strided data is. */
__device__ inline address spread(const spread_what &a, unsigned k)
{
    address at = a.strided;
    unsigned rest = unsigned(a.first) + k; /* there are fewer than 2^32 */

#pragma unroll
    for (int i = 3; i > 0; i--) {
        at += address((long long)(rest % a.shape[i]) * a.strides[i]);
        rest /= a.shape[i];
    }
    return at + address((long long)rest * a.strides[0]);
}

template <class T> __device__ inline void pack_words(const spread_what &a)
{
    move_words<T>(
        a.count, [&](unsigned k) { return spread(a, k); },
        [&](unsigned k) { return a.packed + k * address(sizeof(T)); });
}

template <class T> __device__ inline void unpack_words(const spread_what &a)
{
    move_words<T>(
        a.count, [&](unsigned k) { return a.packed + k * address(sizeof(T)); },
        [&](unsigned k) { return spread(a, k); });
}

}  // namespace gd_courier

#define GD_COURIER_BY_WORD(gd_function, gd_arguments)                                             \
    switch ((gd_arguments).word) {                                                                \
    case 1: gd_courier::gd_function<unsigned char>(gd_arguments); break;                          \
    case 2: gd_courier::gd_function<unsigned short>(gd_arguments); break;                         \
    case 4: gd_courier::gd_function<unsigned>(gd_arguments); break;                               \
    case 8: gd_courier::gd_function<unsigned long long>(gd_arguments); break;                     \
    default: gd_courier::gd_function<uint4>(gd_arguments);                                        \
    }

/*
 * Called, not copied into each place that calls them: that is many in a resident kernel, and its compiler
 * took minutes.
 */
#define GD_COURIER_FUNCTION __device__ __noinline__ void

/* Bytes in one piece; where they begin within 16 bytes is the same on both sides. */
GD_COURIER_FUNCTION push(gd_courier::push_what a)
{
    using gd_courier::address;
    address head = (16 - a.from % 16) % 16;
    if (head > a.n)
        head = a.n;
    address wide = (a.n - head) / 16, tail = a.n - head - wide * 16;
    unsigned me = gd_rank();

    gd_courier::move_words<uint4>(
        unsigned(wide), [&](unsigned k) { return a.from + head + k * address(16); },
        [&](unsigned k) { return a.to + head + k * address(16); });
    if (me < head)
        *(char *)(a.to + me) = *(const char *)(a.from + me);
    if (me < tail)
        *(char *)(a.to + a.n - tail + me) = *(const char *)(a.from + a.n - tail + me);
}

/* Items at the places of a list, packed. */
GD_COURIER_FUNCTION pick(gd_courier::pick_what a) { GD_COURIER_BY_WORD(pick_words, a) }

/* Packed items, to the places of a list. */
GD_COURIER_FUNCTION put(gd_courier::put_what a) { GD_COURIER_BY_WORD(put_words, a) }

/* Strided words, packed; and the other way. */
GD_COURIER_FUNCTION pack(gd_courier::spread_what a) { GD_COURIER_BY_WORD(pack_words, a) }
GD_COURIER_FUNCTION unpack(gd_courier::spread_what a) { GD_COURIER_BY_WORD(unpack_words, a) }
