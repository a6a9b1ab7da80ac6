"""Data acquisition: packets from a file or a socket, which a kernel sums up one by one."""

import mmap
import os
import socket
import tempfile
import threading

import numpy as np

import gpudirect as gd

PACKET = 8192  # bytes
HEADER = np.dtype([("magic", "u4"), ("length", "u4"), ("number", "u4"), ("channels", "u4")])
SAMPLES = (PACKET - HEADER.itemsize) // 2
MAGIC, THRESHOLD = 0x44415131, 30000
SOURCE = """
struct packet { unsigned magic, length, number, channels; short samples[4088]; };
struct summary { int number, sum, peaks; };

// one block for each packet
__global__ void summarise(const packet *packets, summary *out)
{
    const packet &p = packets[blockIdx.x];
    __shared__ int sum, peaks;
    if (threadIdx.x == 0)
        sum = peaks = 0;
    __syncthreads();
    int own = 0, high = 0;
    for (int i = threadIdx.x; i < 4088; i += blockDim.x) {
        own += p.samples[i];
        high += p.samples[i] > 30000;
    }
    atomicAdd(&sum, own);
    atomicAdd(&peaks, high);
    __syncthreads();
    bool good = p.magic == 0x44415131 && p.length == sizeof(packet);
    if (threadIdx.x == 0)
        out[blockIdx.x] = {good ? (int)p.number : -1, sum, peaks};
}
"""
SUMMARY = np.dtype([("number", "i4"), ("sum", "i4"), ("peaks", "i4")])
FLOW = "CPU to GPU"
SIZES = (32, 512, 4096)  # packets in a step
SMALL = 5
KINDS = ("file", "socket", "mapped file")
TOLERANCE = 0


class Work:
    """n packets, waiting in a file or sent by another thread through a socket."""

    def __init__(self, n: int, kind: str = "file", data: bytes | None = None) -> None:
        self.n, self.nbytes, self.results = n, n * PACKET, n * SUMMARY.itemsize
        self.sources = self.nbytes  # the system reads them once from its page cache or the socket
        if data is None:
            rng = np.random.default_rng(6)
            packets = np.zeros((n, PACKET), "u1")
            head = packets[:, : HEADER.itemsize].view(HEADER)[:, 0]
            head["magic"], head["length"], head["channels"] = MAGIC, PACKET, 8
            head["number"] = np.arange(n)
            samples = packets[:, HEADER.itemsize :].view("i2")
            samples[:] = rng.integers(-32768, 32768, samples.shape, "i2")
            data = packets.tobytes()
        self.data = memoryview(data)
        self.file = self.socket = self.mapped = None
        if kind != "socket":
            memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # the disk is not the matter
            self.file = tempfile.TemporaryFile(dir=memory, buffering=0)
            self.file.write(data)
            if kind == "mapped file" and data:
                self.mapped = memoryview(mmap.mmap(self.file.fileno(), 0))
        else:
            self.socket, self.sender = socket.socketpair()

    def start(self) -> None:
        """The next n packets begin to arrive."""
        if self.mapped:
            self.at = 0
        elif self.file:
            self.file.seek(0)
        else:
            threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        self.sender.sendall(self.data)
        if len(self.data) < self.nbytes:
            self.sender.close()

    def _some(self, buffer: memoryview) -> int:
        """Put what there is into the buffer; the bytes, 0 at the end."""
        if self.socket:
            return self.socket.recv_into(buffer, 0, socket.MSG_WAITALL)
        if not self.mapped:
            return self.file.readinto(buffer)
        part = self.mapped[self.at : self.at + len(buffer)]
        np.frombuffer(buffer, "u1")[: len(part)] = part
        self.at += len(part)
        return len(part)

    def produce(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with what comes next. Raises gd.Error if the packets end before."""
        got = 0
        while got < len(buffer):
            n = self._some(buffer[got:])
            if not n:
                raise gd.Error(
                    f"the packets end after {got} of {len(buffer)} bytes, in packet {got // PACKET}"
                    f" of {len(buffer) // PACKET} asked for: nothing of them was processed"
                )
            got += n

    def checked(self, summaries: np.ndarray) -> np.ndarray:
        """The summaries. Raises gd.Error if a packet was none, or has the wrong size."""
        bad = np.flatnonzero(summaries["number"] < 0)
        if len(bad):
            at = int(bad[0]) * PACKET
            head = np.frombuffer(self.data[at : at + HEADER.itemsize], HEADER)[0]
            raise gd.Error(
                f"{len(bad)} of {self.n} packets are bad, the first is {bad[0]}: magic "
                f"{head['magic']:#x}, {head['length']} bytes; {MAGIC:#x}, {PACKET} are right"
            )
        return summaries

    def alone(self, empty):
        """One step's production by itself, into arrays that ``empty`` makes."""
        buffer = memoryview(empty(self.nbytes, "u1"))
        return lambda: (self.start(), self.produce(buffer))


def sequential(work):
    packets = np.empty((work.n, PACKET), "u1")
    summaries = np.empty(work.n, SUMMARY)

    def step():
        work.start()
        work.produce(memoryview(packets).cast("B"))
        head = packets[:, : HEADER.itemsize].view(HEADER)[:, 0]
        samples = packets[:, HEADER.itemsize :].view("i2")
        good = (head["magic"] == MAGIC) & (head["length"] == PACKET)
        summaries["number"] = np.where(good, head["number"].astype("i4"), -1)
        summaries["sum"] = samples.sum(1, dtype="i4")
        summaries["peaks"] = (samples > THRESHOLD).sum(1)
        return work.checked(summaries)

    return step


def copy(work, host=np.empty):
    packets, summaries = gd.empty(work.nbytes, "u1"), gd.empty(work.n, SUMMARY)
    buffer, result = host(work.nbytes, "u1"), host(work.n, SUMMARY)
    summarise, gpu = gd.kernel(SOURCE, "summarise"), gd.device()

    def step():
        work.start()
        work.produce(memoryview(buffer))
        gpu.copy_in(packets.ptr, buffer.ctypes.data, work.nbytes)
        summarise[work.n, 256](packets, summaries)
        gpu.copy_out(result.ctypes.data, summaries.ptr, summaries.nbytes)
        return work.checked(result)

    return step


def double_buffered(work, chunk):
    count = max(1, min(work.n, chunk // PACKET))
    packets, summaries = gd.empty(work.nbytes, "u1"), gd.empty(work.n, SUMMARY)
    buffers = [(gd.stream(), gd.pinned(count * PACKET, "u1")) for _ in range(2)]
    result = gd.pinned(work.n, SUMMARY)
    summarise, gpu = gd.kernel(SOURCE, "summarise"), gd.device()

    def step():
        work.start()
        for i, start in enumerate(range(0, work.n, count)):
            stream, buffer = buffers[i % 2]
            m = min(count, work.n - start)
            stream.synchronize()  # the buffer is free again
            work.produce(memoryview(buffer)[: m * PACKET])
            to = packets.ptr + start * PACKET
            gpu.copy_in(to, buffer.ptr, m * PACKET, stream)
            out = start * SUMMARY.itemsize
            summarise[m, 256, stream](to, summaries.ptr + out)
            gpu.copy_out(result.ptr + out, summaries.ptr + out, m * SUMMARY.itemsize, stream)
        for stream, _ in buffers:
            stream.synchronize()
        return work.checked(result)

    return step


def direct(work):
    packets, summaries = gd.empty(work.nbytes, "u1"), gd.pinned(work.n, SUMMARY)
    summarise = gd.kernel(SOURCE, "summarise")

    def step():
        work.start()
        work.produce(packets.buffer)
        summarise[work.n, 256](packets, summaries)
        gd.synchronize()
        return work.checked(summaries)

    return step
