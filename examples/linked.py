"""A search tree of pointers that the CPU edits between the look-ups of a kernel.

An edit makes a new node in place of an old one and then swings the pointers to it: its parent's,
and the one in an array of pointers to the nodes that are used often.
"""

import numpy as np
from _c import library, pointer
from _cuda import Event, address, copy_in, pinned, upload

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
SIZES = (10, 14, 18)  # levels of the tree
SMALL = 6
KINDS = ("4 edits", "32 edits", "256 edits")
CHUNKS = (2048, 8192, 32768)  # bytes of packed words, 16 each
TOLERANCE = 0
ROUNDS = 4
QUERIES = 256
WORDS = 4  # of 8 bytes in a node


class Work:
    """The tree, the queries, and the edits: for each round which words get which values.

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
        self.edits = [(chosen[r % 2], rng.integers(0, 1 << 40, count)) for r in range(ROUNDS)]
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

    def edit(self, r: int, base: int) -> tuple[np.ndarray, np.ndarray]:
        """(places, values) of the words that round r changes in memory at ``base``."""
        nodes, values = self.edits[r]
        half, count = r % 2, len(nodes)
        new = 2 * nodes + (r < 2)  # first to the second place, two rounds later back
        children = base + 8 * WORDS * 2 * (2 * nodes[:, None] + (1, 2))
        children[2 * nodes + 2 >= self.nodes] = 0
        records = np.column_stack([children, self.keys[nodes], values])
        at = base + 8 * WORDS * new
        parents = (nodes - 1) // 2
        places = np.concatenate([
            (WORDS * new[:, None] + np.arange(WORDS)).ravel(),
            WORDS * 2 * parents + 1 - nodes % 2,  # left children have odd numbers
            self.first + half * count + np.arange(count),
        ])  # fmt: skip
        return places, np.concatenate([records.ravel(), at, at])

    def host_traffic(self, version: str) -> int:
        everything, packed, back = 8 * self.size, 2 * self.nbytes, 8 * (QUERIES + len(self.often))
        return {
            "copy, pageable": self.nbytes + 3 * everything,
            "copy, pinned": self.nbytes + everything,
            "double-buffered": 2 * packed,
            "direct": 0,
        }[version] + back


ORIGINAL = """
struct node { const struct node *left, *right; long long key, value; };
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
DECLARATION = """void look_up(const void *root, const void *queries, int n, const void *often, int m,
                            void *found);"""


def sequential(work):
    memory = np.empty(work.size, "i8")
    base = address(memory)
    memory[:] = work.words(base)
    found = np.empty(QUERIES + len(work.often), "i8")
    look_up = library(DECLARATION, ORIGINAL).look_up

    def update(r):
        places, words = work.edit(r, base)
        memory[places] = words

    def run():
        look_up(pointer(memory), pointer(work.queries), QUERIES, pointer(memory[work.first :]),
                len(work.often), pointer(found))  # fmt: skip
        return found

    return update, run


def walk(work, memory):
    """The launch that all versions share: what was found comes back in page-locked memory."""
    queries, m = gd.asarray(work.queries), len(work.often)
    found = pinned(QUERIES + m, "i8")
    look_up = gd.kernel(SOURCE, "look_up")
    often = memory.ptr + 8 * work.first

    def run():
        look_up[-(-(QUERIES + m) // 64), 64](memory, queries, QUERIES, often, m, address(found))
        gd.synchronize()
        return found

    return run


def copy(work, host=np.empty):
    memory, mirror = gd.empty(work.size, "i8"), host(work.size, "i8")
    mirror[:] = work.words(memory.ptr)

    def update(r):
        places, words = work.edit(r, memory.ptr)
        mirror[places] = words
        upload(memory, mirror)

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


def double_buffered(work, chunk):
    memory, count = gd.empty(work.size, "i8"), chunk // 16
    upload(memory, work.words(memory.ptr))
    buffers = [(pinned((count, 2), "i8"), gd.empty((count, 2), "i8"), Event()) for _ in range(2)]
    put = gd.kernel(PUT, "put")
    stream = gd.device().default_stream  # which the look-ups run on

    def update(r):
        places, words = work.edit(r, memory.ptr)
        for i, start in enumerate(range(0, len(places), count)):
            staging, changes, free = buffers[i % 2]
            m = min(count, len(places) - start)
            free.synchronize()
            staging[:m, 0] = places[start : start + m]
            staging[:m, 1] = words[start : start + m]
            copy_in(changes.ptr, address(staging), 16 * m, stream)
            put[-(-m // 128), 128](changes, m, memory)
            free.record(stream)

    return update, walk(work, memory)


def direct(work):
    memory = gd.empty(work.size, "i8")
    memory.host[:] = work.words(memory.ptr)

    def update(r):
        places, words = work.edit(r, memory.ptr)
        memory.host[places] = words
        memory.flush()

    return update, walk(work, memory)
