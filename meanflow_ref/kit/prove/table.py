"""The table of what tensor operations mean, and what the files that fill it share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from meanflow_ref.kit.prove import functions
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.ring import Number, Ring

# A tensor of exact numbers.
Array: TypeAlias = npt.NDArray[np.object_]

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Call:
    """The operation being executed: its name, and shape and dtype of what comes out."""

    ring: Ring
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    # Whether a mask is among the tensors that index.
    mask_index: bool = False

    def full(self, value: Any, shape: Iterable[int] | None = None) -> Array:
        """An array of the output's shape (or another) with one value everywhere."""
        array = np.empty(tuple(self.shape if shape is None else shape), dtype=object)
        array.fill(self.number(value))
        return array

    def number(self, value: Any) -> Number:
        """A Python number, or the only entry of an array, as an exact number."""
        if isinstance(value, np.ndarray):
            (value,) = value.reshape(-1)
        if isinstance(value, Number):
            return value
        if isinstance(value, bool | int | Fraction):
            return self.ring.constant(int(value) if isinstance(value, bool) else value)
        if isinstance(value, float):
            return functions.read_constant(self.ring, value)
        raise NotExactError(f"{self.name} of {type(value).__name__}")

    def array(self, value: Any) -> Array:
        """An array of exact numbers from an array or a Python number."""
        return value if isinstance(value, np.ndarray) else self.full(value, ())


# Always of (Call, *arguments) and to an Array or a list of them.
Meaning: TypeAlias = Callable[..., Any]
AnyMeaning = TypeVar("AnyMeaning", bound=Meaning)
MEANINGS: dict[str, Meaning] = {}


def meaning(*names: str) -> Callable[[AnyMeaning], AnyMeaning]:
    """Decorator that enters a function under the names of operations."""

    def enter(function: AnyMeaning) -> AnyMeaning:
        for name in names:
            MEANINGS[f"aten.{name}"] = function
        return function

    return enter


def elementwise(function: Callable[..., Number], *arrays: Array) -> Array:
    """A function of numbers, entry by entry, with broadcasting."""
    shaped = np.broadcast_arrays(*arrays)
    out = np.empty(shaped[0].shape, dtype=object)
    for index in np.ndindex(out.shape):
        out[index] = function(*(array[index] for array in shaped))
    return out


def integers(array: Any) -> npt.NDArray[np.int64] | None:
    """The integers that an array of constants holds; ``None`` if it holds anything else."""
    values = [number.as_constant() for number in np.asarray(array, dtype=object).reshape(-1)]
    if any(value is None or value.denominator != 1 for value in values):
        return None
    return np.array([int(value) for value in values if value is not None], dtype=np.int64).reshape(np.shape(array))


def cast(call: Call, array: Array, to: torch.dtype) -> Array:
    """An array read as another dtype; refused where that loses more than rounding."""
    if to in FLOATS:
        return array
    if to == torch.bool:
        return elementwise(functions.truth, array)
    if to in INTEGERS and all(_is_whole(number) for number in array.reshape(-1)):
        return array
    raise NotExactError(f"a cast to {to} loses more than rounding")


def _is_whole(number: Number) -> bool:
    """Whether a number is an integer by construction."""
    atoms = number.ring.atoms
    return all(Fraction(c).denominator == 1 for c in number.terms.values()) and all(
        (atoms[i].kind == "mask" or atoms[i].law == "integer") and isinstance(e, int) and e > 0
        for monomial in number.terms
        for i, e in monomial
    )
