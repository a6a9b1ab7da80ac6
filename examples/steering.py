"""A simulation that runs on the GPU without end, steered by the CPU at any moment.

Every cell relaxes towards its own set point; the CPU changes the table of set points. The kernel
looks for a new table in each of its steps, and reports the state some steps after it took one.
"""

import time

import numpy as np

import gpudirect as gd

SOURCE = """
struct report { volatile unsigned taken, ended; };

__global__ void simulate(const volatile float *table, const volatile unsigned *number, float *state,
                         volatile float *shown, report *report, int cells, int steps,
                         long long patience)
{
    __shared__ unsigned seen, now;
    unsigned age = steps + 1;
    if (threadIdx.x == 0)
        seen = report->taken;
    long long last = clock64();
    for (;;) {
        __syncthreads();
        if (threadIdx.x == 0)
            now = *number;
        __syncthreads();
        if (now == 0)
            break;
        if (now != seen) {
            __syncthreads();
            __threadfence_system();     /* the table is read after its number */
            age = 0;
            last = clock64();
            if (threadIdx.x == 0)
                seen = now;
        } else if (__syncthreads_or(clock64() - last > patience)) {
            break;                      /* nobody steers any more: the watchdog */
        }
        for (int i = threadIdx.x; i < cells; i += blockDim.x)
            state[i] += 0.75f * (table[i] - state[i]);
        if (++age == steps) {
            for (int i = threadIdx.x; i < cells; i += blockDim.x)
                shown[i] = state[i];
            __threadfence_system();
            __syncthreads();
            if (threadIdx.x == 0)
                report->taken = seen;
        }
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0)
        report->ended = 1;
}
"""
FLOW = "updates while a kernel runs"
UPDATE = True
SIZES = (16, 256, 4096)  # cells
SMALL = 16
KINDS = ("new table",)
CHUNKS = (16384,)  # the table goes as a whole
TOLERANCE = 1e-5
ROUNDS = 4
STEPS = 16  # of the simulation between a new table and the report; the old one is forgotten then
PATIENCE = 20_000_000  # clock cycles (on the emulated device ns) without news: the kernel ends
LIMIT = 10.0  # seconds that the CPU waits for a report


class Work:
    """The tables, one for each round."""

    def __init__(self, n: int, kind: str = KINDS[0], tables: np.ndarray | None = None) -> None:
        if tables is None:
            tables = np.random.default_rng(8).random((ROUNDS, n), "f4")
        if tables.shape != (ROUNDS, n) or not np.isfinite(tables).all():
            raise gd.ArgumentError(f"give {ROUNDS} tables of {n} finite numbers: a NaN would stay "
                                   "in the simulation for ever")  # fmt: skip
        self.n, self.tables = n, tables
        self.nbytes = 4 * n + 4

    def host_traffic(self, version: str) -> int:
        each = {"copy, pageable": 4, "copy, pinned": 2, "double-buffered": 2, "direct": 0}[version]
        return each * self.nbytes + 4 * self.n + 4


def sequential(work):
    state, table = np.zeros(work.n, "f4"), np.zeros(work.n, "f4")

    def update(r):
        table[:] = work.tables[r]

    def run():
        for _ in range(STEPS):
            state[:] += np.float32(0.75) * (table - state)
        return state

    return update, run


class Simulation:
    """What all versions share. The kernel is started when it is not running, and stopped when
    nobody refers to it any more; its report lies in page-locked memory."""

    def __init__(self, work):
        self.table, self.number = gd.zeros(work.n), gd.zeros(1, "u4")
        self.state, self.shown, self.report = gd.zeros(work.n), gd.pinned(work.n), gd.pinned(2, "u4")
        self.report[:] = 0, 1
        self.taken_ended = memoryview(self.report)
        self.threads = min(1024, -(-work.n // 32) * 32)
        self.kernel, self.stream = gd.kernel(SOURCE, "simulate"), gd.stream()

    def wait(self, wanted):
        """The state, some steps after table number ``wanted`` was taken."""
        spins, words, start = 0, self.taken_ended, time.monotonic()
        while words[0] != wanted:
            if words[1]:
                words[1] = 0
                self.kernel[1, self.threads, self.stream](
                    self.table, self.number, self.state, self.shown, self.report,
                    len(self.state), STEPS, PATIENCE,
                )  # fmt: skip
            spins += 1
            if spins % 1000 == 0 and time.monotonic() > start + 1e-3:
                time.sleep(1e-5)  # it takes long: others may want to run
                if time.monotonic() > start + LIMIT:
                    raise gd.KernelError(f"no report of table {wanted} in {LIMIT} s; the last one "
                                         f"was of {words[0]}")  # fmt: skip
        return self.shown

    def __del__(self):
        if hasattr(self, "stream"):  # it was made whole
            self.number.write(np.zeros(1, "u4"))
            self.stream.synchronize()


def copy(work, host=np.empty):
    simulation = Simulation(work)
    table, number = simulation.table, simulation.number
    host_table, host_number = host(work.n, "f4"), host(1, "u4")
    host_number[0] = 0
    gpu, stream = gd.device(), gd.stream()

    def update(r):
        host_table[:] = work.tables[r]
        host_number[0] += 1
        gpu.copy_in(table.ptr, host_table.ctypes.data, table.nbytes, stream)
        gpu.copy_in(number.ptr, host_number.ctypes.data, number.nbytes, stream)

    return update, lambda: simulation.wait(host_number[0])


def double_buffered(work, chunk):
    simulation = Simulation(work)
    table, number = simulation.table, simulation.number
    buffers = [(gd.pinned(work.n), gd.pinned(1, "u4")) for _ in range(2)]
    gpu, stream = gd.device(), gd.stream()
    free = [stream.record() for _ in range(2)]
    count = 0

    def update(r):
        nonlocal count
        count += 1
        host_table, host_number = buffers[count % 2]
        free[count % 2].sync()
        host_table[:] = work.tables[r]
        host_number[0] = count
        gpu.copy_in(table.ptr, host_table.ptr, table.nbytes, stream)
        gpu.copy_in(number.ptr, host_number.ptr, number.nbytes, stream)
        free[count % 2] = stream.record(timing=False)

    return update, lambda: simulation.wait(count)


def direct(work):
    simulation = Simulation(work)
    table, number = simulation.table, simulation.number
    count = 0

    def update(r):
        nonlocal count
        count += 1
        table.write(work.tables[r])  # ends with a fence, so that the number comes after it
        number.host[0] = count
        number.flush()

    return update, lambda: simulation.wait(count)
