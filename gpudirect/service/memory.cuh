/* Memory that the CPU writes while the kernel reads it, and the other way round. */
namespace gd_service {

constexpr unsigned ALL = 0xffffffff;     /* threads of a warp */

/* Not from a cache, each time anew. */
__device__ inline unsigned look(const unsigned *at)
{
    return *(const volatile unsigned *)at;
}

__device__ inline unsigned long long look(const unsigned long long *at)
{
    return *(const volatile unsigned long long *)at;
}

__device__ inline uint4 look(const uint4 *at)
{
#ifdef GPUDIRECT_EMULATED
    return __ldcv(at);
#else
    uint4 v;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
    return v;
#endif
}

/* Of what the threads of a warp saw each for itself: the first one's, so that they go one way. */
__device__ inline unsigned alike(unsigned seen)
{
    return __shfl_sync(ALL, seen, 0);
}

/* 16 bytes in one store. */
__device__ inline void put(uint4 *at, uint4 v)
{
#ifdef GPUDIRECT_EMULATED
    __stwt(at, v);
#else
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}

}  // namespace gd_service
