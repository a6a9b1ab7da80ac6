/*
 * GPU-only functions for one 16-bit floating-point type, GD_HALF, and its pair, GD_HALF2. Included
 * once for each. They compute in float (in double where three numbers meet) and round to nearest.
 */
template <> struct gd_shuffled<GD_HALF> : std::true_type {};
template <> struct gd_shuffled<GD_HALF2> : std::true_type {};

GD_FUNCTION float gd_wide(GD_HALF x) { return float(x); }
GD_FUNCTION GD_HALF2 gd_pair(GD_HALF low, GD_HALF high)
{
    GD_HALF2 both;
    both.x = low;
    both.y = high;
    return both;
}

/* -- to whole numbers, rounded up, down and to nearest; the header rounds to zero itself -- */

#define GD_WHOLE(T, name)                                                                         \
    GD_FUNCTION T GD_HALF_NAME(__, 2##name##_rn)(GD_HALF x) { return gd_to_integer<T>(rintf(gd_wide(x))); }    \
    GD_FUNCTION T GD_HALF_NAME(__, 2##name##_rd)(GD_HALF x) { return gd_to_integer<T>(floorf(gd_wide(x))); }   \
    GD_FUNCTION T GD_HALF_NAME(__, 2##name##_ru)(GD_HALF x) { return gd_to_integer<T>(ceilf(gd_wide(x))); }
GD_WHOLE(short, short)
GD_WHOLE(unsigned short, ushort)
GD_WHOLE(int, int)
GD_WHOLE(unsigned, uint)
GD_WHOLE(long long, ll)
GD_WHOLE(unsigned long long, ull)
#undef GD_WHOLE

/* -- multiply and add, rounded once -- */

GD_FUNCTION GD_HALF __hfma(GD_HALF a, GD_HALF b, GD_HALF c)
{
    return GD_HALF(fma(double(gd_wide(a)), double(gd_wide(b)), double(gd_wide(c))));
}
GD_FUNCTION GD_HALF __hfma_sat(GD_HALF a, GD_HALF b, GD_HALF c)
{
    return GD_HALF(__saturatef(gd_wide(__hfma(a, b, c))));
}
GD_FUNCTION GD_HALF __hfma_relu(GD_HALF a, GD_HALF b, GD_HALF c)
{
    float r = gd_wide(__hfma(a, b, c));
    return GD_HALF(r < 0.0f ? 0.0f : r);
}
#define GD_PAIRWISE(name, one)                                                                    \
    GD_FUNCTION GD_HALF2 name(GD_HALF2 a, GD_HALF2 b, GD_HALF2 c)                                 \
    {                                                                                             \
        return gd_pair(one(a.x, b.x, c.x), one(a.y, b.y, c.y));                                   \
    }
GD_PAIRWISE(__hfma2, __hfma)
GD_PAIRWISE(__hfma2_sat, __hfma_sat)
GD_PAIRWISE(__hfma2_relu, __hfma_relu)
#undef GD_PAIRWISE

/* -- mathematics -- */

#define GD_MATH(name, ...)                                                                        \
    GD_FUNCTION GD_HALF h##name(GD_HALF a)                                                        \
    {                                                                                             \
        float x = gd_wide(a);                                                                     \
        return GD_HALF(__VA_ARGS__);                                                              \
    }                                                                                             \
    GD_FUNCTION GD_HALF2 h2##name(GD_HALF2 a) { return gd_pair(h##name(a.x), h##name(a.y)); }
GD_MATH(ceil, ceilf(x))
GD_MATH(floor, floorf(x))
GD_MATH(trunc, truncf(x))
GD_MATH(rint, rintf(x))
GD_MATH(sqrt, sqrtf(x))
GD_MATH(rsqrt, 1.0f / sqrtf(x))
GD_MATH(rcp, 1.0f / x)
GD_MATH(exp, expf(x))
GD_MATH(exp2, exp2f(x))
GD_MATH(exp10, exp10f(x))
GD_MATH(log, logf(x))
GD_MATH(log2, log2f(x))
GD_MATH(log10, log10f(x))
GD_MATH(sin, sinf(x))
GD_MATH(cos, cosf(x))
GD_MATH(tanh, tanhf(x))
GD_MATH(tanh_approx, tanhf(x))
#undef GD_MATH

/* -- atomics: a pair is two additions on the GPU as well, each whole by itself -- */

GD_FUNCTION GD_HALF atomicAdd(GD_HALF *address, GD_HALF value)
{
    typedef unsigned short word;
    static_assert(sizeof(GD_HALF) == sizeof(word), "");
    word old = gd_atomic_update(reinterpret_cast<word *>(address), [value](word bits) -> word {
        GD_HALF sum = GD_HALF(gd_wide(gd_from_bits<GD_HALF>(bits)) + gd_wide(value));
        return word(gd_bits(&sum, sizeof sum));
    });
    return gd_from_bits<GD_HALF>(old);
}
GD_FUNCTION GD_HALF2 atomicAdd(GD_HALF2 *address, GD_HALF2 value)
{
    GD_HALF low = atomicAdd(reinterpret_cast<GD_HALF *>(address), value.x);
    return gd_pair(low, atomicAdd(reinterpret_cast<GD_HALF *>(address) + 1, value.y));
}
