"""What operators of Python mean on an array: what they mean for ``a.read()``, or an error.

Comparisons, ``in``, iteration and conversions read the array. Arithmetic would read it and give an
array in ordinary memory, and ``a += 1`` would leave the device without a word: it says so instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import DTypeError


def _comparison(compare: Callable[[Any, Any], Any], doc: str) -> Any:
    def method(self: Any, other: Any) -> Any:
        return compare(self.read(), other.read() if isinstance(other, type(self)) else other)

    method.__doc__ = doc
    return method


def _refused(sign: str) -> Any:
    def method(self: Any, *others: object) -> Any:
        raise DTypeError(
            f"an Array is device memory and has no {sign}: compute with a.read(), store with "
            "a.write() or a.host[...], or launch a kernel"
        )

    return method


class Operators:
    """The operators of ``Array``."""

    __slots__ = ()

    __eq__ = _comparison(operator.eq, "Element by element, as NumPy: ``a.read() == other``.")
    __ne__ = _comparison(operator.ne, "Element by element, as NumPy: ``a.read() != other``.")
    __lt__ = _comparison(operator.lt, "Element by element, as NumPy: ``a.read() < other``.")
    __le__ = _comparison(operator.le, "Element by element, as NumPy: ``a.read() <= other``.")
    __gt__ = _comparison(operator.gt, "Element by element, as NumPy: ``a.read() > other``.")
    __ge__ = _comparison(operator.ge, "Element by element, as NumPy: ``a.read() >= other``.")
    __hash__ = object.__hash__  # an array is itself, whatever it holds

    def __contains__(self: Any, value: object) -> bool:
        return value in self.read()

    def __iter__(self: Any) -> Iterator[Any]:
        """Rows as Arrays that share the memory; the elements of one dimension, read at once."""
        if self.ndim == 0:
            raise DTypeError("iteration over an array of no dimensions: its element is a.item()")
        if self.ndim == 1:
            return iter(self.read())
        return (self[i] for i in range(len(self)))

    def __bool__(self: Any) -> bool:
        if self.size != 1:
            raise DTypeError(
                f"the truth of an array of {self.size} elements is ambiguous: use "
                "a.read().any() or a.read().all()"
            )
        return bool(self.item())

    def __int__(self: Any) -> int:
        return int(self.read())

    def __float__(self: Any) -> float:
        return float(self.read())

    def __complex__(self: Any) -> complex:
        return complex(self.read())

    def __index__(self: Any) -> int:
        return operator.index(self.read())


for _name, _sign in {
    "add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "floordiv": "//", "mod": "%",
    "divmod": "divmod()", "pow": "**", "lshift": "<<", "rshift": ">>", "and": "&", "or": "|",
    "xor": "^",
}.items():  # fmt: skip
    for _form in ("__{}__", "__r{}__", "__i{}__"):
        if (_form, _name) != ("__i{}__", "divmod"):
            setattr(Operators, _form.format(_name), _refused(_sign))
for _name, _sign in {"neg": "-", "pos": "+", "abs": "abs()", "invert": "~"}.items():
    setattr(Operators, f"__{_name}__", _refused(_sign))

__all__ = ["Operators"]
