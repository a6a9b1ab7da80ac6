/*
 * Cooperative groups for the emulated GPU, as NVIDIA's CUDA C++ Programming Guide describes them:
 * a block, tiles of a warp, threads that happen to be together, a grid that was launched
 * cooperatively; and reduce(). Clusters, scans and asynchronous copies need a GPU.
 */
#ifndef GPUDIRECT_EMULATION_GROUPS_H
#define GPUDIRECT_EMULATION_GROUPS_H

namespace cooperative_groups {

namespace gd {

inline unsigned rank_in_block()
{
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

inline unsigned block_size() { return blockDim.x * blockDim.y * blockDim.z; }

/* Lanes of the block's last warp that are not there take part in nothing. */
inline unsigned lanes_here(unsigned mask)
{
    unsigned left = block_size() - (rank_in_block() - gd_lane());
    return left < 32 ? mask & ((1u << left) - 1) : mask;
}

/* Some lanes of a warp, numbered from 0 in the order of the lanes. */
class lanes {
  public:
    unsigned thread_rank() const { return unsigned(__popc(mask & ((1u << gd_lane()) - 1))); }
    unsigned num_threads() const { return unsigned(__popc(mask)); }
    unsigned size() const { return num_threads(); }
    void sync() const { __syncwarp(mask); }
    template <class T> T shfl(T value, int rank) const { return gd_shuffle(mask, value, lane(rank)); }
    template <class T> T shfl_up(T value, unsigned delta) const
    {
        unsigned rank = thread_rank();
        return gd_shuffle(mask, value, lane(rank >= delta ? rank - delta : rank));
    }
    template <class T> T shfl_down(T value, unsigned delta) const
    {
        unsigned rank = thread_rank();
        return gd_shuffle(mask, value, lane(rank + delta < size() ? rank + delta : rank));
    }
    template <class T> T shfl_xor(T value, unsigned bits) const
    {
        unsigned other = thread_rank() ^ bits;
        return gd_shuffle(mask, value, lane(other < size() ? other : thread_rank()));
    }
    int any(int predicate) const { return __any_sync(mask, predicate); }
    int all(int predicate) const { return __all_sync(mask, predicate); }
    unsigned ballot(int predicate) const { return packed(__ballot_sync(mask, predicate)); }
    template <class T> unsigned match_any(T value) const { return packed(__match_any_sync(mask, value)); }
    template <class T> unsigned match_all(T value, int &all) const
    {
        return packed(__match_all_sync(mask, value, &all));
    }

  protected:
    explicit lanes(unsigned mask) : mask(mask) {}
    unsigned mask;

  private:
    unsigned lane(unsigned rank) const      /* the lane with this rank in the group */
    {
        unsigned rest = mask;
        for (; rank && rest & (rest - 1); rank--)
            rest &= rest - 1;
        return unsigned(__ffs(int(rest)) - 1);
    }
    unsigned packed(unsigned found) const   /* bits by lane made into bits by rank */
    {
        unsigned result = 0, rank = 0;
        for (unsigned rest = mask; rest; rest &= rest - 1, rank++)
            if (found & rest & -rest)
                result |= 1u << rank;
        return result;
    }
};

}  // namespace gd

class thread_block {
  public:
    static void sync() { __syncthreads(); }
    static unsigned thread_rank() { return gd::rank_in_block(); }
    static unsigned num_threads() { return gd::block_size(); }
    static unsigned size() { return gd::block_size(); }
    static dim3 group_index() { return blockIdx; }
    static dim3 thread_index() { return threadIdx; }
    static dim3 group_dim() { return blockDim; }
    static dim3 dim_threads() { return blockDim; }
};

inline thread_block this_thread_block() { return {}; }

class grid_group {
  public:
    bool is_valid() const { return gd_cooperative(); }
    void sync() const
    {
        __syncthreads();
        if (gd::rank_in_block() == 0)
            gd_grid_barrier();
        __syncthreads();
    }
    static unsigned long long num_blocks()
    {
        return (unsigned long long)gridDim.x * gridDim.y * gridDim.z;
    }
    static unsigned long long block_rank()
    {
        return blockIdx.x + (unsigned long long)gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    }
    static unsigned long long thread_rank()
    {
        return block_rank() * gd::block_size() + gd::rank_in_block();
    }
    static unsigned long long num_threads() { return num_blocks() * gd::block_size(); }
    static unsigned long long size() { return num_threads(); }
    static dim3 group_dim() { return gridDim; }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 dim_threads()
    {
        return dim3(gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z);
    }
    static dim3 block_index() { return blockIdx; }
    static dim3 thread_index()
    {
        return dim3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y,
                    blockIdx.z * blockDim.z + threadIdx.z);
    }
};

inline grid_group this_grid() { return {}; }

class coalesced_group : public gd::lanes {
  public:
    unsigned meta_group_rank() const { return 0; }
    unsigned meta_group_size() const { return 1; }

  private:
    explicit coalesced_group(unsigned mask) : lanes(mask) {}
    friend coalesced_group coalesced_threads();
};

/* CUDA promises that this thread is in it, and of the others nothing. */
inline coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }

template <unsigned Size, class Parent = void> class thread_block_tile : public gd::lanes {
    static_assert(Size && Size <= 32 && !(Size & (Size - 1)),
                  "a tile has 1, 2, 4, 8, 16 or 32 threads on the emulated device");

  public:
    thread_block_tile() : lanes(gd::lanes_here((Size == 32 ? ~0u : (1u << Size % 32) - 1)
                                               << (gd_lane() & ~(Size - 1)))) {}
    template <class Other> thread_block_tile(const thread_block_tile<Size, Other> &) : thread_block_tile() {}
    static unsigned thread_rank() { return gd_lane() & (Size - 1); }
    static constexpr unsigned num_threads() { return Size; }
    static constexpr unsigned size() { return Size; }
    static unsigned meta_group_rank() { return rank(static_cast<Parent *>(nullptr)); }
    static unsigned meta_group_size() { return count(static_cast<Parent *>(nullptr)); }

  private:
    static unsigned rank(const void *) { return gd::rank_in_block() / Size; }
    static unsigned count(const void *) { return (gd::block_size() + Size - 1) / Size; }
    template <unsigned Outer, class P> static unsigned rank(const thread_block_tile<Outer, P> *)
    {
        return (gd_lane() & (Outer - 1)) / Size;
    }
    template <unsigned Outer, class P> static unsigned count(const thread_block_tile<Outer, P> *)
    {
        return Outer / Size;
    }
};

template <unsigned Size, class Parent> thread_block_tile<Size, Parent> tiled_partition(const Parent &)
{
    return {};
}

template <class Group> void sync(const Group &group) { group.sync(); }
template <class Group> auto thread_rank(const Group &group) -> decltype(group.thread_rank())
{
    return group.thread_rank();
}
template <class Group> auto group_size(const Group &group) -> decltype(group.size())
{
    return group.size();
}

/* ---- cooperative_groups/reduce.h ---- */

template <class T> struct plus { T operator()(T a, T b) const { return a + b; } };
template <class T> struct less { T operator()(T a, T b) const { return b < a ? b : a; } };
template <class T> struct greater { T operator()(T a, T b) const { return a < b ? b : a; } };
template <class T> struct bit_and { T operator()(T a, T b) const { return a & b; } };
template <class T> struct bit_or { T operator()(T a, T b) const { return a | b; } };
template <class T> struct bit_xor { T operator()(T a, T b) const { return a ^ b; } };

/* Every thread gets the same result: values are taken in the order of the ranks. */
template <class Group, class T, class F> T reduce(const Group &group, T value, F &&operation)
{
    T result = group.shfl(value, 0);
    for (unsigned rank = 1; rank < group.size(); rank++)
        result = operation(result, group.shfl(value, int(rank)));
    return result;
}

}  // namespace cooperative_groups

#endif
