"""The emulated GPU: run as ``python -I -S gpu_process.py CONTROL OBITUARY PARENT``.

CONTROL is a SOCK_SEQPACKET socket. A request on it is a marshalled tuple (number, command,
arguments ...), with a file descriptor beside it where the command takes one; it is answered by
(number, None, result) or (number, errno, text). ``stream`` brings a socket of the same kind, on
which a thread of its own serves launches in order.

A fault in a kernel ends this process, as it ends a context on a GPU. The fault's reason is then
in the file OBITUARY: the number of the launch's stream, a newline, the text.

It also ends when CONTROL is closed or the process PARENT dies, whatever its kernels do. Only the
standard library's cheapest modules are imported: the start is part of every user's start.
"""

# mypy: disable-error-code="operator,assignment"

import _socket
import _thread
import array
import ctypes
import errno
import marshal
import os
import select
import sys

PACKET = 1 << 17  # bytes of the largest packet
MAP_SHARED, MAP_FIXED_NOREPLACE = 0x01, 0x100000
MAP_FAILED = ctypes.c_void_p(-1).value
PR_SET_NAME = 15

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Gpu:
    """What the process holds: loaded kernels and its streams."""

    def __init__(self, obituary: int) -> None:
        self.obituary = obituary
        self.modules: list[ctypes.CDLL] = []
        self.streams = 0
        self.commands = {
            "map": self.map, "unmap": self.unmap, "load": self.load, "stream": self.stream,
        }  # fmt: skip

    def map(self, fds: list[int], address: int, length: int, prot: int, offset: int) -> None:
        """Map the file beside the packet at exactly this address."""
        flags = MAP_SHARED | MAP_FIXED_NOREPLACE
        found = libc.mmap(address, length, prot, flags, fds[0], offset)
        if found == address:
            return
        error = ctypes.get_errno()
        if found != MAP_FAILED:  # a kernel before 4.17 takes the address for a hint
            libc.munmap(found, length)
            error = errno.EEXIST
        raise OSError(error, f"cannot map {length} bytes at {address:#x}: {os.strerror(error)}")

    def unmap(self, fds: list[int], address: int, length: int) -> None:
        if libc.munmap(address, length):
            error = ctypes.get_errno()
            text = f"cannot unmap {length} bytes at {address:#x}: {os.strerror(error)}"
            raise OSError(error, text)

    def load(self, fds: list[int], path: str) -> int:
        """Load a compiled kernel, and with the first one the runtime that it is linked to."""
        module = ctypes.CDLL(path)
        if not self.modules:
            module.gd_start(self.obituary)
        self.modules.append(module)
        return len(self.modules) - 1

    def stream(self, fds: list[int]) -> int:
        number = self.streams
        self.streams += 1
        connection = _socket.socket(fileno=os.dup(fds[0]))
        _thread.start_new_thread(self.serve_or_end, (connection, number))
        return number

    def serve_or_end(self, connection: _socket.socket, number: int) -> None:
        try:
            self.serve_stream(connection, number)
        except ConnectionError:  # the program has ended, or closed the stream without listening
            connection.close()

    def serve_stream(self, connection: _socket.socket, number: int) -> None:
        three = ctypes.c_uint * 3
        while packet := connection.recv(PACKET):
            launch, index, name, grid, block, arguments, cooperative = marshal.loads(packet)
            module = self.modules[index]
            module.gd_launch(
                module.gd_entry, name.encode(), number, three(*grid), three(*block),
                arguments, ctypes.c_size_t(len(arguments)), cooperative,
            )  # fmt: skip
            connection.send(marshal.dumps(launch))
        connection.close()

    def serve(self, control: _socket.socket) -> None:
        while True:
            packet, fds = receive(control)
            if not packet:
                return
            number, command, *arguments = marshal.loads(packet)
            try:
                answer = number, None, self.commands[command](fds, *arguments)
            except OSError as error:
                answer = number, error.errno or 0, error.strerror or str(error)
            except Exception as error:
                answer = number, 0, repr(error)
            for fd in fds:
                os.close(fd)
            control.send(marshal.dumps(answer))


def receive(control: _socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and the file descriptors beside it; an empty one at the end."""
    fds = array.array("i")
    packet, beside, _, _ = control.recvmsg(PACKET, _socket.CMSG_SPACE(4 * fds.itemsize))
    for level, kind, data in beside:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds.frombytes(data)
    return packet, list(fds)


def end_with(parent: int) -> None:
    """End when the process that made this one ends. Its socket may live on in a fork of it."""
    try:
        handle = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(0)
    except (AttributeError, OSError):  # not here: the end of the control connection must do
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os._exit(0)


def main() -> None:
    control, obituary, parent = map(int, sys.argv[1:])
    libc.prctl(PR_SET_NAME, b"emulated-gpu", 0, 0, 0)
    _thread.start_new_thread(end_with, (parent,))
    try:
        Gpu(obituary).serve(_socket.socket(fileno=control))
    except ConnectionError:
        pass
    os._exit(0)  # without waiting for kernels that may never end


if __name__ == "__main__":
    main()
