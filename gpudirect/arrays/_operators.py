"""What operators of Python mean on an array: what they mean for ``a.read()``, or an error.

Comparisons, ``in``, iteration and conversions read the array. Arithmetic would read it and give an
array in ordinary memory, and ``a += 1`` would leave the device without a word: it says so instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from ..arguments import REFUSALS, refusal
from ..errors import DTypeError


def _comparison(compare: Callable[[Any, Any], Any], doc: str) -> Any:
    def method(self: Any, other: Any) -> Any:
        try:
            return compare(self.read(), other.read() if isinstance(other, type(self)) else other)
        except REFUSALS as e:
            raise refusal(e, f"comparing an array of shape {self.shape}") from None

    method.__doc__ = doc
    return method


def _as_number(what: Callable[[Any], Any], array: Any) -> Any:
    """A number of Python, where NumPy makes one of such an array."""
    try:
        return what(array.read())
    except REFUSALS as e:
        raise refusal(e, f"an array of shape {array.shape} and {array.dtype} is no such number") from None


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
        try:
            return value in self.read()
        except REFUSALS as e:
            raise refusal(e, f"looking into an array of shape {self.shape}") from None

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
        return int(_as_number(int, self))

    def __float__(self: Any) -> float:
        return float(_as_number(float, self))

    def __complex__(self: Any) -> complex:
        return complex(_as_number(complex, self))

    def __index__(self: Any) -> int:
        return int(_as_number(operator.index, self))


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
