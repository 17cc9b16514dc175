"""A value with its derivative in the network's parameter: how the formulas get a gradient without autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dual:
    """``value + derivative d theta`` over any numbers: exact ones or floats."""

    value: Any
    derivative: Any = 0

    def __add__(self, other: Any) -> Dual:
        right = _dual(other)
        return Dual(self.value + right.value, self.derivative + right.derivative)

    __radd__ = __add__

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.derivative)

    def __sub__(self, other: Any) -> Dual:
        return self + (-_dual(other))

    def __rsub__(self, other: Any) -> Dual:
        return _dual(other) + (-self)

    def __mul__(self, other: Any) -> Dual:
        right = _dual(other)
        slope = _product(self.derivative, right.value) + _product(right.derivative, self.value)
        return Dual(self.value * right.value, slope)

    __rmul__ = __mul__

    def __pow__(self, exponent: Any) -> Dual:
        if exponent == 0:
            return Dual(self.value**0)
        slope = _product(self.derivative, self.value ** (exponent - 1) * exponent) if _given(self.derivative) else 0
        return Dual(self.value**exponent, slope)


def stop_gradient(x: Any) -> Dual:
    """The value alone."""
    return Dual(_dual(x).value)


def _dual(x: Any) -> Dual:
    return x if isinstance(x, Dual) else Dual(x)


def _given(x: Any) -> bool:
    """Whether a derivative is more than a literal zero."""
    return not (isinstance(x, int) and x == 0)


def _product(derivative: Any, factor: Any) -> Any:
    return derivative * factor if _given(derivative) else 0
