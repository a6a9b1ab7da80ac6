"""What dlpack.c offers."""

from typing import Any

def lend(
    keep: object,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    kind: tuple[int, int],
    device_type: int,
    device_number: int,
    versioned: bool,
    flags: int,
    /,
) -> object: ...
def borrow(capsule: object, /) -> tuple[Any, ...]: ...
