"""What random draws mean: every entry is a new symbol that knows its law.

The proof holds for all values of the symbols, hence for whatever is drawn. Of the laws only what the formula needs is
looked at afterwards: that noise is normal and times are not, and that no draw is used twice.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.ring import Number
from meanflow_ref.kit.prove.table import Array, Call, meaning

UNIT = (Fraction(0), Fraction(1))


def _draws(call: Call, law: str, **properties: Any) -> Array:
    out = np.empty(call.shape, dtype=object)
    first = len(call.ring.atoms)
    for k, index in enumerate(np.ndindex(*call.shape)):
        out[index] = call.ring.symbol(f"{law}{first + k}", "draw", law=law, **properties)
    return out


def _normals(call: Call) -> Array:
    return _draws(call, "normal")


def _uniforms(call: Call) -> Array:
    return _draws(call, "uniform", bounds=UNIT)


@meaning("randn", "randn_like")
def _randn(call: Call, *_: Any, **__: Any) -> Array:
    return _normals(call)


@meaning("rand", "rand_like")
def _rand(call: Call, *_: Any, **__: Any) -> Array:
    return _uniforms(call)


@meaning("normal")
def _normal(call: Call, first: Any, *rest: Any, **options: Any) -> Array:
    """``normal(mean, std)`` in its many forms; in place, the first argument is what is overwritten."""
    numbers = [value for value in (first, *rest) if not isinstance(value, list)]
    if call.name.endswith("_") or call.name.endswith("functional"):
        numbers = numbers[1:]
    mean, std = (
        [*numbers, options.get("mean", 0), options.get("std", 1)][:2]
        if len(numbers) != 1
        else (
            numbers[0],
            options.get("std", 1),
        )
    )
    out = _normals(call) * call.array(std) + call.array(mean)
    return out if isinstance(out, np.ndarray) else call.full(out, ())


@meaning("uniform")
def _uniform(call: Call, _: Any, low: Any = 0, high: Any = 1, **__: Any) -> Array:
    out = _uniforms(call) * (call.number(high) - call.number(low)) + call.number(low)
    return out if isinstance(out, np.ndarray) else call.full(out, ())


@meaning("bernoulli")
def _bernoulli(call: Call, *_: Any, **__: Any) -> Array:
    out = np.empty(call.shape, dtype=object)
    for index in np.ndindex(*call.shape):
        value = Fraction(call.ring.random_value(bounds=UNIT) > Fraction(1, 2))
        out[index] = call.ring.symbol(f"coin{len(call.ring.atoms)}", "mask", law="draw", value=value)
    return out


@meaning("randint", "randint_like")
def _randint(call: Call, *arguments: Any, **_: Any) -> Array:
    bounds = [value for value in arguments if isinstance(value, int)]
    low, high = bounds if len(bounds) == 2 else (0, *bounds)

    def one() -> Number:
        value = low + int(call.ring.random_value(bounds=UNIT) * (high - low))
        name = f"integer{len(call.ring.atoms)}"
        return call.ring.symbol(name, "draw", law="integer", value=Fraction(value))

    out = np.empty(call.shape, dtype=object)
    for index in np.ndindex(*call.shape):
        out[index] = one()
    return out


@meaning("randperm")
def _randperm(call: Call, n: int, *_: Any, **__: Any) -> Array:
    order = list(range(n))
    random.Random(len(call.ring.atoms)).shuffle(order)
    names = (f"permutation{len(call.ring.atoms)}[{k}]" for k in range(n))
    return np.array(
        [
            call.ring.symbol(name, "draw", law="integer", value=Fraction(k))
            for name, k in zip(names, order, strict=True)
        ],
        dtype=object,
    )


@meaning("native_dropout", "dropout", "rrelu_with_noise", "multinomial", "exponential", "random", "log_normal")
def _unknown(call: Call, *_: Any, **__: Any) -> Array:
    raise NotExactError(f"draws by {call.name}")


def evaluated(array: Array, dtype: torch.dtype) -> torch.Tensor:
    """The values of an array at the witness, as a tensor."""
    values = [float(number.value()) for number in array.reshape(-1)]
    return torch.tensor(values, dtype=torch.float64).to(dtype).reshape(array.shape)
