"""A search tree of pointers that the CPU edits between the look-ups of a kernel.

An edit makes a new node in place of an old one and then swings the pointers to it: its parent's,
and the one in an array of pointers to the nodes that are used often.
"""

import numpy as np
from _c import library, pointer

import gpudirect as gd

SOURCE = """
struct node { const node *left, *right; long long key, value; };

// one thread for each query, and then one for each pointer of the array
__global__ void look_up(const node *root, const long long *queries, int n, const node *const *often,
                        int m, long long *found)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        const node *at = root;
        while (at && at->key != queries[i])
            at = queries[i] < at->key ? at->left : at->right;
        found[i] = at ? at->value : -1;
    } else if (i < n + m) {
        found[i] = often[i - n]->value;
    }
}
"""
FLOW = "scattered updates"
UPDATE = True
SIZES = (12, 16, 20)  # levels of the tree
SMALL = 6
KINDS = ("4 edits", "16 edits", "64 edits")
CHUNKS = (6144,)  # bytes of packed words, 16 each: all edits of a round go at once
TOLERANCE = 0
ROUNDS = 4
QUERIES = 256
WORDS = 4  # of 8 bytes in a node


class Work:
    """The tree, the queries, and the edits: for each round which nodes get which values.

    Node number i has two places, 2i and 2i + 1: an edit moves it from one to the other. ``words``
    lays everything out for memory at an address: the nodes, then the array of pointers.
    """

    def __init__(self, levels: int, kind: str = KINDS[0]) -> None:
        if not 4 <= levels <= 26:
            raise gd.ArgumentError(f"{levels} levels: give 4 to 26, which is 4 GiB of nodes")
        rng = np.random.default_rng(7)
        self.nodes = n = 2**levels - 1  # heap order: children of i are 2i + 1 and 2i + 2
        depth = np.floor(np.log2(np.arange(n) + 1)).astype("i8")
        place = np.arange(n) + 1 - 2**depth
        self.keys = ((2 * place + 1) * 2 ** (levels - 1 - depth)).astype("i8")
        self.values = rng.integers(0, 1 << 40, n)
        # nodes of even depth below the root are edited, so that no edited node is another's parent
        free = np.flatnonzero((depth > 0) & (depth % 2 == 0))
        count = min(int(kind.split()[0]), len(free) // 2)
        chosen = rng.permutation(free)[: 2 * count].reshape(2, count)
        self.edits = [(chosen[r % 2].copy(), rng.integers(0, 1 << 40, count))
                      for r in range(ROUNDS)]  # fmt: skip
        self.often = chosen.ravel()
        self.queries = self.keys[rng.integers(0, n, QUERIES)]
        self.queries[:count] = self.keys[chosen[0]][:QUERIES]
        self.queries[-1] = -5  # is not there
        self.first = 2 * n * WORDS  # the word where the array of pointers begins
        self.size = self.first + len(self.often)
        self.nbytes = count * 8 * (WORDS + 2)

    def words(self, base: int) -> np.ndarray:
        """Everything as it is at first, for memory at address ``base``."""
        at = (base + 2 * 8 * WORDS * np.arange(2 * self.nodes + 1)).astype("i8")
        at[self.nodes :] = 0  # leaves point nowhere
        nodes = np.zeros((self.nodes, 2, WORDS), "i8")
        nodes[:, 0, 0], nodes[:, 0, 1] = at[1::2], at[2::2]
        nodes[:, 0, 2], nodes[:, 0, 3] = self.keys, self.values
        return np.concatenate([nodes.ravel(), at[self.often]])

    def host_traffic(self, version: str) -> int:
        everything, packed, back = 8 * self.size, 2 * self.nbytes, 8 * (QUERIES + len(self.often))
        return {
            "copy, pageable": self.nbytes + 3 * everything,
            "copy, pinned": self.nbytes + everything,
            "double-buffered": 2 * packed,
            "direct": 0,
        }[version] + back


ORIGINAL = """
struct node { struct node *left, *right; long long key, value; };

#ifndef STORE
#define STORE(where, what) (where) = (what)
#endif

// Round r: every node of a list moves to its other place, with a new value. The tree is written at
// `tree`; pointers in it are those of a tree at `seen`, which is the same where one pointer is
// good for both sides.
void edit(struct node *tree, struct node *seen, struct node **often, long long nodes,
          const long long *list, const long long *keys, const long long *values, int n, int r)
{
    for (int i = 0; i < n; i++) {
        long long id = list[i], child = 2 * id + 1, place = 2 * id + (r < 2);
        struct node *new = seen + place, *parent = tree + 2 * ((id - 1) / 2);
        STORE(tree[place].left, child < nodes ? seen + 2 * child : 0);
        STORE(tree[place].right, child < nodes ? seen + 2 * child + 2 : 0);
        STORE(tree[place].key, keys[id]);
        STORE(tree[place].value, values[i]);
        if (id % 2)
            STORE(parent->left, new);
        else
            STORE(parent->right, new);
        STORE(often[i + r % 2 * n], new);
    }
}

void look_up(const struct node *root, const long long *queries, int n,
             const struct node *const *often, int m, long long *found)
{
    for (int i = 0; i < n; i++) {
        const struct node *at = root;
        while (at && at->key != queries[i])
            at = queries[i] < at->key ? at->left : at->right;
        found[i] = at ? at->value : -1;
    }
    for (int i = 0; i < m; i++)
        found[n + i] = often[i]->value;
}
"""
DECLARATIONS = """
void edit(void *tree, void *seen, void *often, long long nodes, const void *list, const void *keys,
          const void *values, int n, int r);
void look_up(const void *root, const void *queries, int n, const void *often, int m, void *found);
"""


def editor(work, tree, seen, source=ORIGINAL, declarations=DECLARATIONS):
    """edit(r) for a tree written at one address and walked at another."""
    c = library(declarations, source)
    often, keys = pointer(tree + 8 * work.first), pointer(work.keys)
    tree, seen = pointer(tree), pointer(seen)
    rounds = [(pointer(nodes), keys, pointer(values), len(nodes)) for nodes, values in work.edits]
    return lambda r: c.edit(tree, seen, often, work.nodes, *rounds[r], r)


def sequential(work):
    memory = np.empty(work.size, "i8")
    base = memory.ctypes.data
    memory[:] = work.words(base)
    found = np.empty(QUERIES + len(work.often), "i8")
    look_up = library(DECLARATIONS, ORIGINAL).look_up

    def run():
        look_up(pointer(memory), pointer(work.queries), QUERIES, pointer(memory[work.first :]),
                len(work.often), pointer(found))  # fmt: skip
        return found

    return editor(work, base, base), run


def walk(work, memory):
    """The launch that all versions share: what was found comes back in page-locked memory."""
    queries, m = gd.asarray(work.queries), len(work.often)
    found = gd.pinned(QUERIES + m, "i8")
    look_up = gd.kernel(SOURCE, "look_up")
    often = memory.ptr + 8 * work.first

    def run():
        look_up[-(-(QUERIES + m) // 64), 64](memory, queries, QUERIES, often, m, found)
        gd.synchronize()
        return found

    return run


def copy(work, host=np.empty):
    memory, mirror = gd.empty(work.size, "i8"), host(work.size, "i8")
    mirror[:] = work.words(memory.ptr)
    edit, gpu = editor(work, mirror.ctypes.data, memory.ptr), gd.device()

    def update(r):
        edit(r)
        gpu.copy_in(memory.ptr, mirror.ctypes.data, mirror.nbytes)

    return update, walk(work, memory)


PUT = """
struct change { long long place, word; };
__global__ void put(const change *changes, int n, long long *memory)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        memory[changes[i].place] = changes[i].word;
}
"""
PACKED = """
static long long *changes, count;
static void *base;
void pack(long long *to, void *tree) { changes = to; count = 0; base = tree; }
long long packed(void) { return count; }
#define STORE(where, what) \\
    (changes[2 * count] = (long long *)&(where) - (long long *)base, \\
     changes[2 * count++ + 1] = (long long)(what))
"""
PACKED_DECLARATIONS = """
void pack(void *to, void *tree);
long long packed(void);
"""


def double_buffered(work, chunk):
    memory, count = gd.empty(work.size, "i8"), 6 * max(len(nodes) for nodes, _ in work.edits)
    memory.write(work.words(memory.ptr))
    buffers = [(gd.pinned((count, 2), "i8"), gd.empty((count, 2), "i8")) for _ in range(2)]
    declarations, source = PACKED_DECLARATIONS + DECLARATIONS, PACKED + ORIGINAL
    c, tree = library(declarations, source), memory.ptr
    edit = editor(work, tree, tree, source, declarations)
    put, gpu = gd.kernel(PUT, "put"), gd.device()
    stream = gpu.default_stream  # which the look-ups run on
    free = [stream.record() for _ in range(2)]

    def update(r):
        staging, changes = buffers[r % 2]
        free[r % 2].sync()
        c.pack(pointer(staging), pointer(tree))
        edit(r)
        m = c.packed()
        gpu.copy_in(changes.ptr, staging.ptr, 16 * m, stream)
        put[-(-m // 128), 128](changes, m, memory)
        free[r % 2] = stream.record(timing=False)

    return update, walk(work, memory)


def direct(work):
    memory = gd.empty(work.size, "i8")
    memory.host[:] = work.words(memory.ptr)
    edit = editor(work, memory.host_ptr, memory.ptr)

    def update(r):
        edit(r)
        memory.flush()

    return update, walk(work, memory)
