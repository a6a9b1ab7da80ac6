"""What a user would otherwise use: the driver's copies, host memory that the GPU reads, libraries.

Every case is a callable for one size; what is not installed or does not work here is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._native import bytes_at
from ..devices import Device

Case = Callable[[], Any]


class Memory:
    """Host and device memory for one benchmark: ``largest`` bytes of each kind."""

    def __init__(self, device: Device, largest: int) -> None:
        import gpudirect as gd

        self.device = device
        self.array = gd.empty(largest, "u1", device=device, mapped=True)
        self.pageable = np.random.default_rng(1).integers(0, 256, largest, np.uint8)
        self._locked = device.host_allocate(largest)
        self.pinned = bytes_at(self._locked.ptr, largest)
        self.pinned[:] = self.pageable
        self.stream = device.stream()

    def close(self) -> None:
        self.stream.close()
        self.array.close()
        self._locked.free()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextlib.contextmanager
def current(device: Device) -> Iterator[Any]:
    """The driver's own calls with the device's context current; None on the emulated device."""
    if device.emulated:
        yield None
        return
    from cuda.bindings import driver

    with device.current():  # type: ignore[attr-defined]
        yield driver


def copies(driver: Any, memory: Memory, n: int, host: np.ndarray[Any, Any], write: bool,
           name: str) -> dict[str, Case]:
    """cuMemcpy, synchronous and asynchronous, of n bytes between ``host`` and the array."""
    if driver is None:
        return {}
    ptr, address = memory.array.ptr, int(host.ctypes.data)
    stream = memory.stream.handle

    # host is a default argument to stay alive as long as the cases, which use its address
    def sync(host: Any = host) -> None:
        if write:
            driver.cuMemcpyHtoD(ptr, address, n)
        else:
            driver.cuMemcpyDtoH(address, ptr, n)

    def queued(host: Any = host) -> None:
        if write:
            driver.cuMemcpyHtoDAsync(ptr, address, n, stream)
        else:
            driver.cuMemcpyDtoHAsync(address, ptr, n, stream)
        driver.cuStreamSynchronize(stream)

    return {f"{name}: cuMemcpy": sync, f"{name}: cuMemcpyAsync + synchronise": queued}


def idioms(memory: Memory, n: int, write: bool, keep: list[Any]) -> dict[str, Case]:
    """NumPy on the mapping, zero-copy and managed memory, CuPy and PyTorch, for n bytes.

    keep: takes what must live as long as the cases.
    """
    name = "write" if write else "read"
    found: dict[str, Case] = {}
    here, pinned = memory.pageable[:n], memory.pinned[:n]
    if write:
        mapped = memory.array.host[:n]
        found["write: a.host[:] = x (NumPy, unfenced)"] = lambda: mapped.__setitem__(..., here)
        found["write: zero-copy (into page-locked host memory)"] = lambda: np.copyto(pinned, here)
    else:
        found["read: zero-copy (from page-locked host memory)"] = lambda: np.copyto(here, pinned)
    if memory.device.emulated:
        return found
    with contextlib.suppress(Exception):
        found.update(_managed(memory, n, write, keep))
    with contextlib.suppress(Exception):
        found.update(_cupy(here, n, name, keep))
    with contextlib.suppress(Exception):
        found.update(_torch(here, n, name, keep))
    return found


def _managed(memory: Memory, n: int, write: bool, keep: list[Any]) -> dict[str, Case]:
    from cuda.bindings import driver

    code, ptr = driver.cuMemAllocManaged(n, driver.CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL.value)
    assert not int(code)
    keep.append(contextlib.ExitStack())
    keep[-1].callback(driver.cuMemFree, ptr)
    where = driver.CUmemLocation()
    where.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    where.id = memory.device.ordinal
    shown, here, stream = bytes_at(int(ptr), n), memory.pageable[:n], memory.stream.handle

    def move() -> None:
        if write:
            np.copyto(shown, here)
        code = driver.cuMemPrefetchAsync(ptr, n, where, 0, stream)[0]
        driver.cuStreamSynchronize(stream)
        if int(code):
            raise RuntimeError(code)
        if not write:
            np.copyto(here, shown)

    move()
    return {f"{'write' if write else 'read'}: managed memory (with its migration)": move}


def _cupy(here: np.ndarray[Any, Any], n: int, name: str, keep: list[Any]) -> dict[str, Case]:
    import cupy  # type: ignore[import-not-found,unused-ignore]

    there = cupy.empty(n, cupy.uint8)
    keep.append(there)
    synchronise = cupy.cuda.get_current_stream().synchronize
    if name == "write":
        return {"write: CuPy set + synchronise": lambda: (there.set(here), synchronise())}
    return {"read: CuPy get": lambda: there.get(out=here)}


def _torch(here: np.ndarray[Any, Any], n: int, name: str, keep: list[Any]) -> dict[str, Case]:
    import torch  # type: ignore[import-not-found,unused-ignore]

    there, tensor = torch.empty(n, dtype=torch.uint8, device="cuda"), torch.from_numpy(here)
    keep.append(there)
    if name == "write":
        return {"write: PyTorch copy_": lambda: there.copy_(tensor)}
    return {"read: PyTorch copy_": lambda: tensor.copy_(there)}


def release(keep: list[Any]) -> None:
    """Give back what cases kept."""
    for kept in keep:
        if isinstance(kept, contextlib.ExitStack):
            kept.close()
    keep.clear()


def bridges_beside(device: Device) -> list[str]:
    """Usable bridges other than the one in use: measured beside it."""
    from .. import bridges

    used = bridges.choose(device).name
    return [n for n, s in bridges.standings(device).items() if s.usable and n != used]
