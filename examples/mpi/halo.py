"""The stencil of stencil3d.py on several ranks of MPI: each has a slab of the grid on a GPU of its own.

    mpiexec -n 4 python examples/mpi/halo.py [N] [STEPS] [--share]

Any MPI does: none of it needs to know of GPUs. After each step the ranks exchange the planes at their slabs'
ends. A rank reads its own from the GPU and sends them; what it receives lands in its GPU's memory as it
arrives, since the place to receive into is the mapping itself. With --share the ranks of one host hand
each other tokens instead, and store the planes to their neighbours' GPUs; MPI only says when all have.

Rank 0 compares the result with the whole grid on one GPU, bit for bit.
"""

import sys
import time
import traceback
from pathlib import Path

import numpy as np
from mpi4py import MPI

import gpudirect as gd
from gpudirect.devices import cuda, emulated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stencil3d

# planes of a slab: 0 is the neighbour's below, then 1 ... planes, then the neighbour's above
SOURCE = """
__global__ void advance_slab(const float *u, const float *source, float *after, int n, int first)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, z = blockIdx.z + 1;
    if (x >= n)
        return;
    int i = (z * n + y) * n + x, depth = first + z - 1;
    if (x == 0 || y == 0 || depth == 0 || x == n - 1 || y == n - 1 || depth == n - 1) {
        after[i] = 0;
        return;
    }
    float around = u[i - 1] + u[i + 1] + u[i - n] + u[i + n] + u[i - n * n] + u[i + n * n];
    after[i] = 0.5f * u[i] + (1 / 12.0f) * around + source[i - n * n];
}
"""


class Slab:
    """The planes [first, first + planes) of a rank, two generations of them, on its GPU."""

    def __init__(self, comm, n, share):
        rank, size = comm.rank, comm.size
        self.comm, self.n = comm, n
        self.first, end = n * rank // size, n * (rank + 1) // size
        self.planes = end - self.first
        self.below = rank - 1 if rank else MPI.PROC_NULL
        self.above = rank + 1 if rank + 1 < size else MPI.PROC_NULL
        self.device = own_device(comm)
        shape = (self.planes + 2, n, n)
        self.fields = [gd.zeros(shape, device=self.device, shareable=share) for _ in range(2)]
        self.source = gd.empty((self.planes, n, n), device=self.device)
        self.ends = [np.empty((n, n), "f4") for _ in range(2)]  # of what is sent
        self.advance = gd.kernel(SOURCE, "advance_slab", device=self.device)
        self.neighbours = self.exchange_tokens() if share else None

    def exchange_tokens(self):
        """{a neighbour: its two fields, mapped here}."""
        found = {}
        for other, back in ((self.below, self.above), (self.above, self.below)):
            own = [str(f.share("rw")) for f in self.fields] if back != MPI.PROC_NULL else None
            tokens = self.comm.sendrecv(own, dest=back, source=other)
            if other != MPI.PROC_NULL:
                found[other] = [gd.attach(t) for t in tokens]
        return found

    def step(self, work, t):
        """One time step of all ranks."""
        u, after = self.fields[(t + 1) % 2], self.fields[t % 2]
        work.produce(self.source.host, t, self.first)  # plain stores, to the GPU
        self.advance[(-(-self.n // 128), self.n, self.planes), 128](u, self.source, after, self.n, self.first)
        for plane, end in zip((1, self.planes), self.ends, strict=True):
            after[plane].read(end)  # waits for the kernel
        self.store(after, t) if self.neighbours is not None else self.receive(after)

    def receive(self, after):
        """The neighbours' planes come by MPI, straight into GPU memory."""
        low, high = self.ends
        requests = [
            self.comm.Irecv([after.host[0], MPI.FLOAT], self.below, tag=1),
            self.comm.Irecv([after.host[-1], MPI.FLOAT], self.above, tag=2),
            self.comm.Isend([low, MPI.FLOAT], self.below, tag=2),
            self.comm.Isend([high, MPI.FLOAT], self.above, tag=1),
        ]
        MPI.Request.Waitall(requests)

    def store(self, after, t):
        """Our planes go to the neighbours' GPUs by stores of ours."""
        cells = self.n**2
        if self.below != MPI.PROC_NULL:
            there = self.neighbours[self.below][t % 2]
            there.write(self.ends[0], (there.shape[0] - 1) * cells)
        if self.above != MPI.PROC_NULL:
            self.neighbours[self.above][t % 2].write(self.ends[1], 0)
        self.comm.Barrier()  # all have stored, and read what they had to of the generation before

    def gathered(self, t):
        """The whole grid on rank 0 after step t; None elsewhere."""
        own = self.fields[t % 2].read()[1:-1]
        parts = self.comm.gather(own)
        return None if parts is None else np.concatenate(parts)


def own_device(comm):
    """The ranks of a host share its GPUs out."""
    local = comm.Split_type(MPI.COMM_TYPE_SHARED).rank
    kind = gd.device().kind
    count = {"cuda": cuda.count, "emulated": emulated.count}[kind]()
    return gd.device(f"{kind}:{local % count}")


def wrong(comm, n, steps, share):
    """What is wrong with how the ranks were started, the same on all of them; "" if nothing."""
    if len(set(comm.allgather((n, steps, share)))) > 1:
        return "the ranks were given different arguments: start all with the same"
    if n < max(3, comm.size) or steps < 1:
        return (f"{n} planes and {steps} steps for {comm.size} ranks: give at least a plane for each rank, 3 "
                "planes, and a step")  # fmt: skip
    if share and comm.Split_type(MPI.COMM_TYPE_SHARED).size < comm.size:
        return "--share is for ranks of one host, and these are on several: leave it out"
    return ""


def main(n=48, steps=stencil3d.STEPS, share=False):
    """0 if the result is that of one GPU, bit for bit. Rank 0 prints."""
    comm = MPI.COMM_WORLD
    if why := wrong(comm, n, steps, share):
        print(why if comm.rank == 0 else "", end="", file=sys.stderr, flush=True)
        return 2
    work = stencil3d.Work(n)
    slab = Slab(comm, n, share)
    took = []
    for t in range(steps):
        comm.Barrier()
        start = time.perf_counter()
        slab.step(work, t % stencil3d.STEPS)
        took.append(time.perf_counter() - start)
    found = slab.gathered(steps - 1)
    devices = comm.gather(slab.device.id)
    right = True
    if comm.rank == 0:
        right = np.array_equal(found, alone(n, steps, slab.device)) and bool(found.any())
        mark = " (no GPU is involved: no times of one)" if slab.device.emulated else ""
        way = "stored to the neighbours' memory" if share else "received into GPU memory"
        print(f"{n}^3 on {comm.size} ranks, {', '.join(sorted(set(devices)))}{mark}; planes {way}; "
              f"{'equal' if right else 'NOT EQUAL'} to one GPU bit for bit; a step takes "
              f"{np.median(took) * 1e3:.3f} ms in the median", flush=True)  # fmt: skip
    return 0 if comm.bcast(right) else 1


def alone(n, steps, device):
    """The same on one GPU, by the kernel of stencil3d.py."""
    work, shape = stencil3d.Work(n), (n, n, n)
    u, source = gd.zeros(shape, device=device), gd.empty(shape, device=device)
    fields = [gd.empty(shape, device=device) for _ in range(2)]
    advance = gd.kernel(stencil3d.SOURCE, "advance", device=device)
    for t in range(steps):
        work.produce(source.host, t % stencil3d.STEPS)
        advance[stencil3d.grid(n)](u, source, fields[t % 2], n)
        u = fields[t % 2]
        device.synchronize()
    return u.read()


if __name__ == "__main__":
    numbers = [int(a) for a in sys.argv[1:] if a != "--share"]
    try:
        code = main(*numbers, share="--share" in sys.argv)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)  # or the others wait for ever
    sys.exit(code)
