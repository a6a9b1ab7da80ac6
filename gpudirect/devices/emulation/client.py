"""The program's end of an emulated GPU process."""

from __future__ import annotations

import contextlib
import itertools
import marshal
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._descriptors import telling
from ...errors import ArgumentError, ClosedError, DeviceLostError, ForkError, LaunchError
from .compiler import SHARED_MEMORY, CompiledKernel

# A launch can have no more than this, as on a GPU of compute capability 9.0.
MOST_THREADS = 1024
MOST_BLOCK = (1024, 1024, 64)
MOST_GRID = (2**31 - 1, 65535, 65535)
MOST_ARGUMENTS = 32764
MOST_RESIDENT = 64
"""Blocks of one launch that run at once: RESIDENT_BLOCKS of the runtime."""
MOST_RESIDENT_THREADS = 16384
"""Threads of one launch that run at once: RESIDENT_THREADS of the runtime."""

_PACKET = 4096


@dataclass(frozen=True)
class Module:
    """A kernel loaded into a GpuProcess."""

    number: int
    kernel: CompiledKernel


class GpuProcess:
    """An emulated GPU: a process that runs kernels in its own address space.

    Memory is mapped into it at the address that it has here, so pointers are the same on both
    sides. A fault in a kernel ends the process: that launch raises LaunchError with the reason,
    and everything after it DeviceLostError, as after a sticky error of CUDA.

    All methods may be called from any thread.
    """

    def __init__(self, name: str = "emulated") -> None:
        self.name = name
        self._owner = os.getpid()
        # a collection in the middle of a request may bring another one on the same thread
        self._lock = threading.RLock()
        self._requests = itertools.count()
        self._awaited: dict[int, tuple[Any, ...] | None] = {}  # requests and their answers
        self._modules: dict[Path, Module] = {}
        self._lost: str | None = None
        self._lost_by: int | None = None
        self._closed = False
        with contextlib.ExitStack() as undo, telling(f"starting the process of {name}"):
            self._obituary = os.memfd_create("gpudirect-obituary")
            undo.callback(os.close, self._obituary)
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._control.close)
            program = Path(__file__).parent / "gpu_process.py"
            fds = (theirs.fileno(), self._obituary)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable or "python3", "-I", "-S", program, *map(str, (*fds, self._owner))],
                    pass_fds=fds,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C in the terminal is not meant for it
                )
            undo.pop_all()
        self._end = weakref.finalize(
            self, _end_process, self._process, self._control, self._obituary, self._owner
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether the process has ended by itself; ``lost`` then says why."""
        if self._lost is None and not self._closed and self._process.poll() is not None:
            self.mourn()
        return self._lost is not None

    @property
    def lost(self) -> str | None:
        """The fault that ended the process, or None."""
        return self._lost

    def check(self) -> None:
        """Raise ForkError, ClosedError or DeviceLostError when the process is out of reach."""
        if os.getpid() != self._owner:
            raise ForkError(
                f"{self.name} belongs to process {self._owner}, which forked this one: open a "
                "device of your own after the fork"
            )
        if self._closed or not self._end.alive:  # the interpreter ends, perhaps, beside a finalizer
            raise ClosedError(f"{self.name} is closed")
        if self._lost is not None:
            raise DeviceLostError(f"{self.name} is lost: {self._lost}")

    def map(
        self,
        address: int,
        length: int,
        fd: int,
        offset: int = 0,
        prot: int = mmap.PROT_READ | mmap.PROT_WRITE,
    ) -> None:
        """Map ``length`` bytes of a file at ``address`` in the GPU's address space.

        Raises OSError; with errno EEXIST something is mapped there, so take another address.
        """
        self._request("map", address, length, prot, offset, fd=fd)

    def unmap(self, address: int, length: int) -> None:
        """Take a mapping away. Raises OSError."""
        self._request("unmap", address, length)

    def load(self, kernel: CompiledKernel) -> Module:
        """Load a kernel, to be launched by what comes back. Again costs nothing."""
        module = self._modules.get(kernel.path)
        if module is None:
            module = Module(self._request("load", str(kernel.path)), kernel)
            self._modules[kernel.path] = module
        return module

    def open_stream(self) -> StreamConnection:
        """A queue of launches; those of several streams run at once."""
        with telling(f"opening a stream of {self.name}"):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, telling(f"opening a stream of {self.name}"):
                number = self._request("stream", fd=theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return StreamConnection(self, ours, number)

    def close(self) -> None:
        """End the process and whatever runs on it. Safe twice."""
        self._closed = True
        self._end()

    def _request(self, command: str, *arguments: int | str, fd: int | None = None) -> Any:
        with self._lock:
            self.check()
            number = next(self._requests)
            packet = marshal.dumps((number, command, *arguments))
            self._awaited[number] = None
            try:
                socket.send_fds(self._control, [packet], [] if fd is None else [fd])
                while (answer := self._awaited[number]) is None:
                    other = marshal.loads(self._control.recv(_PACKET) or _raise_end())
                    if other[0] in self._awaited:  # else of a request that was interrupted
                        self._awaited[other[0]] = other
            except OSError:
                self.mourn()
                self.check()
                raise
            finally:
                self._awaited.pop(number, None)
        _, code, result = answer
        if code is not None:
            raise OSError(code, f"{self.name}: {result}")
        return result

    def mourn(self) -> int | None:
        """The process has ended: find out why. The stream whose launch ended it, if one did."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self._lost is None and not self._closed:
            stream, _, text = os.pread(self._obituary, _PACKET, 0).decode(errors="replace").partition("\n")
            if text:
                self._lost_by, self._lost = int(stream), text
            elif status < 0:
                self._lost = f"its process {self.pid} ended with {signal.Signals(-status).name}"
            else:
                self._lost = f"its process {self.pid} ended with status {status}"
        return self._lost_by

    def __enter__(self) -> GpuProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"lost: {self._lost}" if self._lost else "running"
        return f"<GpuProcess {self.name}, emulated by process {self.pid}, {state}>"


class StreamConnection:
    """A queue of launches on an emulated GPU. Made by ``GpuProcess.open_stream()``."""

    def __init__(self, gpu: GpuProcess, connection: socket.socket, number: int) -> None:
        self.gpu = gpu
        self.number = number
        self._connection = connection
        self._lock = threading.RLock()
        self._launches = itertools.count()
        self._closed = False

    def launch(
        self,
        module: Module,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int = 0,
        arguments: bytes = b"",
        *,
        cooperative: bool = False,
    ) -> None:
        """Run a kernel to its end.

        ``arguments`` is the argument block that ``module.kernel.parameters`` describes,
        ``shared`` the dynamic shared memory of a block, in bytes. Up to 64 blocks run at once;
        ``cooperative`` refuses a grid that has more.

        Raises ArgumentError or LaunchError when nothing was launched, LaunchError when the
        kernel failed (the GPU is lost then), DeviceLostError when another one did.
        """
        self.check(module, grid, block, shared, arguments, cooperative)
        with self._lock:
            self.gpu.check()
            if self._closed:
                raise ClosedError(f"stream {self.number} of {self.gpu.name} is closed")
            number = next(self._launches)
            name = module.kernel.name
            packet = marshal.dumps(
                (number, module.number, name, tuple(grid), tuple(block), arguments, cooperative)
            )
            try:
                self._connection.send(packet)
                while marshal.loads(self._connection.recv(_PACKET) or _raise_end()) != number:
                    pass  # of a launch before this one, which was interrupted
            except OSError:
                if self.gpu.mourn() == self.number:
                    raise LaunchError(f"{self.gpu.name}: {self.gpu.lost}") from None
                self.gpu.check()
                raise

    def check(
        self,
        module: Module,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        arguments: bytes,
        cooperative: bool = False,
    ) -> None:
        """Raise ArgumentError or LaunchError for a launch that no GPU would take."""
        name = module.kernel.name
        for what, given, most in ("grid", grid, MOST_GRID), ("block", block, MOST_BLOCK):
            if len(given) != 3 or not all(1 <= n <= m for n, m in zip(given, most, strict=True)):
                raise ArgumentError(
                    f"{name}: {what} {tuple(given)} must be three numbers from 1 to {most}"
                )
        threads = block[0] * block[1] * block[2]
        if threads > MOST_THREADS:
            raise LaunchError(
                f"{name}: a block of {tuple(block)} has {threads} threads; the most is "
                f"{MOST_THREADS}"
            )
        if not 0 <= shared <= SHARED_MEMORY:
            raise LaunchError(
                f"{name}: {shared} bytes of dynamic shared memory; a block has 0 to {SHARED_MEMORY}"
            )
        blocks = grid[0] * grid[1] * grid[2]
        resident = min(MOST_RESIDENT, MOST_RESIDENT_THREADS // (block[0] * block[1] * block[2]))
        if cooperative and blocks > resident:
            raise LaunchError(
                f"{name}: a cooperative launch of {blocks} blocks is too large; the emulated "
                f"device runs {resident} of this size at once"
            )
        wanted = module.kernel.argument_size
        if len(arguments) != wanted or wanted > MOST_ARGUMENTS:
            raise ArgumentError(
                f"{name}: an argument block of {len(arguments)} bytes; the kernel's is {wanted} "
                f"(and at most {MOST_ARGUMENTS})"
            )

    def close(self) -> None:
        """Give the queue back, after the launch that runs on it. Safe twice."""
        with self._lock:
            self._closed = True
            self._connection.close()

    def __repr__(self) -> str:
        return f"<StreamConnection {self.number} of {self.gpu!r}>"


def _raise_end() -> bytes:
    """What an empty packet means."""
    raise ConnectionResetError("the emulated GPU's process has ended")


def _end_process(
    process: subprocess.Popen[bytes], control: socket.socket, obituary: int, owner: int
) -> None:
    control.close()
    os.close(obituary)
    if os.getpid() == owner:
        process.kill()
        process.wait()
