"""UDP packets into GPU memory: one recvmmsg takes a batch of datagrams, each straight to its place.

The system's copy from the socket is the only one: its target is the mapped memory. A kernel then works
on the batch in place. Here it adds up what each sensor measured.
"""

import os
import socket
import threading
import time

import numpy as np
from _show import histogram, where
from cffi import FFI

import gpudirect as gd

SOURCE = """
struct packet { unsigned sensor, number; float samples[62]; };

// one warp for each packet
__global__ void add(const packet *packets, double *sums)
{
    for (int i = threadIdx.x; i < 62; i += 32)
        atomicAdd(&sums[packets[blockIdx.x].sensor], packets[blockIdx.x].samples[i]);
}
"""
PACKET = np.dtype([("sensor", "u4"), ("number", "u4"), ("samples", "f4", 62)])
SENSORS, BATCH, PACKETS = 16, 64, 3200

ffi = FFI()
ffi.cdef("""
struct iovec { void *base; size_t length; };
struct msghdr { void *name; unsigned namelen; struct iovec *iov; size_t iovlen; void *control;
                size_t controllen; int flags; };
struct mmsghdr { struct msghdr hdr; unsigned length; };
int recvmmsg(int socket, struct mmsghdr *messages, unsigned n, int flags, void *timeout);
""")
libc = ffi.dlopen(None)
MSG_WAITFORONE = 0x10000  # the first is waited for, the others are taken if they are there


def receiver_into(places, receiver):
    """receive() -> how many datagrams it put into the first places; at least one."""
    starts = places.host_ptr + places.itemsize * np.arange(len(places))
    pieces = ffi.new("struct iovec[]", [(ffi.cast("void *", int(at)), places.itemsize) for at in starts])
    messages = ffi.new("struct mmsghdr[]", [([ffi.NULL, 0, pieces + i, 1],) for i in range(len(places))])

    def receive():
        n = libc.recvmmsg(receiver.fileno(), messages, len(places), MSG_WAITFORONE, ffi.NULL)
        if n < 0:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        return n

    receive.keeps = pieces  # the messages point to them, and C keeps nothing alive
    return receive


def main():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())
    data = np.zeros(PACKETS, PACKET)
    data["sensor"], data["number"] = np.arange(PACKETS) % SENSORS, np.arange(PACKETS)
    data["samples"] = np.random.default_rng(2).random((PACKETS, 62), "f4")
    room = threading.Semaphore(BATCH)  # no more are under way, so the socket loses none

    def send():
        for packet in data:
            room.acquire()
            sender.send(packet.tobytes())

    places, sums = gd.empty(BATCH, PACKET), gd.zeros(SENSORS, "f8")
    add, receive = gd.kernel(SOURCE, "add"), receiver_into(places, receiver)
    threading.Thread(target=send, daemon=True).start()
    sizes, took, begun = [], [], time.perf_counter()
    while sum(sizes) < PACKETS:
        sizes.append(receive())
        start = time.perf_counter()
        add[sizes[-1], 32](places, sums)
        gd.synchronize()  # the places are free again
        took.append(time.perf_counter() - start)
        room.release(sizes[-1])
    rate = PACKETS / (time.perf_counter() - begun)

    assert np.allclose(sums.read(), np.bincount(data["sensor"], data["samples"].sum(1, dtype="f8")))
    print(f"{PACKETS} datagrams in {len(sizes)} batches of up to {max(sizes)}, {rate:,.0f}/s, on {where()}")
    print("the sums of all sensors are right")
    histogram(took, "A batch, from received to summed")


if __name__ == "__main__":
    main()
