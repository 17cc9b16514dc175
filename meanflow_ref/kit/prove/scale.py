"""A guidance scale that stays a symbol."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from meanflow_ref.kit.prove.errors import NotExactError


@dataclass(eq=False)
class Scale:
    """A real number to Python code, a traced tensor to torch.

    Code may ask how it compares with other numbers, as :class:`meanflow_ref.objectives.guidance.Guidance` does. It is
    answered for ``sample``, and the answer becomes a hypothesis of the proof.

    Args:
        name: The letter.
        tensor: The traced value, of no dimension.
        sample: The value for which comparisons are answered.
        hypotheses: Where the answers are noted.

    """

    name: str
    tensor: Tensor
    sample: Fraction
    hypotheses: list[str] = field(default_factory=list)

    # So that numpy leaves the arithmetic to this class.
    __array_ufunc__: ClassVar[None] = None

    def _combine(self, other: Any, operation: Callable[[Any, Any], Any], text: str, swapped: bool = False) -> Any:
        if isinstance(other, Tensor):
            return operation(other, self.tensor) if swapped else operation(self.tensor, other)
        if not isinstance(other, Scale | int | float):
            return NotImplemented
        theirs = (
            (other.tensor, other.sample, other.name) if isinstance(other, Scale) else (other, Fraction(other), other)
        )
        pairs = list(zip((self.tensor, self.sample, self.name), theirs, strict=True))
        (a, b), (p, q), (m, n) = (pair[::-1] if swapped else pair for pair in pairs)
        return Scale(f"({m} {text} {n})", operation(a, b), operation(p, q), self.hypotheses)

    def __add__(self, other: Any) -> Any:
        return self._combine(other, operator.add, "+")

    def __radd__(self, other: Any) -> Any:
        return self._combine(other, operator.add, "+", swapped=True)

    def __sub__(self, other: Any) -> Any:
        return self._combine(other, operator.sub, "-")

    def __rsub__(self, other: Any) -> Any:
        return self._combine(other, operator.sub, "-", swapped=True)

    def __mul__(self, other: Any) -> Any:
        return self._combine(other, operator.mul, "*")

    def __rmul__(self, other: Any) -> Any:
        return self._combine(other, operator.mul, "*", swapped=True)

    def __truediv__(self, other: Any) -> Any:
        return self._combine(other, operator.truediv, "/")

    def __rtruediv__(self, other: Any) -> Any:
        return self._combine(other, operator.truediv, "/", swapped=True)

    def __neg__(self) -> Scale:
        return Scale(f"(-{self.name})", -self.tensor, -self.sample, self.hypotheses)

    def __abs__(self) -> Scale:
        return Scale(f"|{self.name}|", self.tensor.abs(), abs(self.sample), self.hypotheses)

    def _compare(self, other: Any, relation: Callable[[Any, Any], bool], text: str) -> bool:
        if isinstance(other, Tensor):
            raise NotExactError(f"`{self.name}` is compared with a tensor")
        answer = relation(self.sample, other.sample if isinstance(other, Scale) else other)
        # That a scale is finite goes without saying.
        if other not in (float("inf"), float("-inf")):
            shown = other.name if isinstance(other, Scale) else f"{other:g}"
            note = f"{self.name} {text} {shown}" if answer else f"not {self.name} {text} {shown}"
            if note not in self.hypotheses:
                self.hypotheses.append(note)
        return answer

    def __lt__(self, other: Any) -> bool:
        return self._compare(other, operator.lt, "<")

    def __le__(self, other: Any) -> bool:
        return self._compare(other, operator.le, "<=")

    def __gt__(self, other: Any) -> bool:
        return self._compare(other, operator.gt, ">")

    def __ge__(self, other: Any) -> bool:
        return self._compare(other, operator.ge, ">=")

    def __eq__(self, other: object) -> bool:
        return self._compare(other, operator.eq, "=")

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return not self._compare(0, operator.eq, "=")

    def __float__(self) -> float:
        raise NotExactError(f"float({self.name}): the value of a symbolic scale is asked for")
