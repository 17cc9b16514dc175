"""What arithmetic, functions, comparisons and reductions mean."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from meanflow_ref.kit.prove import functions
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.ring import Number
from meanflow_ref.kit.prove.table import FLOATS, MEANINGS, Array, Call, elementwise, meaning

HALF = Fraction(1, 2)


def _sum(values: Any, start: Number) -> Number:
    total = start
    for value in values:
        total = total + value
    return total


# ---------------------------------------------------------------- arithmetic


@meaning("add")
def _add(call: Call, a: Any, b: Any, alpha: Any = 1) -> Array:
    if call.dtype == torch.bool:
        return elementwise(functions.either, call.array(a), call.array(b))
    return _result(call, call.array(a) + call.array(b) * call.number(alpha))


@meaning("sub")
def _sub(call: Call, a: Any, b: Any, alpha: Any = 1) -> Array:
    return _result(call, call.array(a) - call.array(b) * call.number(alpha))


@meaning("rsub")
def _rsub(call: Call, a: Any, b: Any, alpha: Any = 1) -> Array:
    return _result(call, call.array(b) - call.array(a) * call.number(alpha))


@meaning("mul")
def _mul(call: Call, a: Any, b: Any) -> Array:
    return _result(call, call.array(a) * call.array(b))


@meaning("div", "true_divide")
def _div(call: Call, a: Any, b: Any, rounding_mode: str | None = None) -> Array:
    if rounding_mode is not None:
        raise NotExactError("a division that rounds")
    return elementwise(lambda x, y: x / y, call.array(a), call.array(b))


@meaning("neg")
def _neg(call: Call, a: Array) -> Array:
    return _result(call, -a)


@meaning("reciprocal")
def _reciprocal(call: Call, a: Array) -> Array:
    return elementwise(lambda x: x**-1, a)


@meaning("square")
def _square(call: Call, a: Array) -> Array:
    return _result(call, a * a)


@meaning("pow")
def _pow(call: Call, a: Any, b: Any) -> Array:
    def power(x: Number, y: Number) -> Number:
        exponent = y.as_constant()
        if exponent is None:
            raise NotExactError("a power with an exponent that is no constant")
        return x**exponent

    return elementwise(power, call.array(a), call.array(b))


@meaning("addcmul")
def _addcmul(call: Call, a: Array, b: Array, c: Array, value: Any = 1) -> Array:
    return _result(call, a + b * c * call.number(value))


@meaning("addcdiv")
def _addcdiv(call: Call, a: Array, b: Array, c: Array, value: Any = 1) -> Array:
    return _result(call, a + _div(call, b, c) * call.number(value))


@meaning("lerp")
def _lerp(call: Call, a: Array, b: Array, weight: Any) -> Array:
    return _result(call, a + (b - a) * call.array(weight))


def _result(call: Call, array: Any) -> Array:
    """An array from a numpy expression, which gives a bare number where no dimension is left."""
    return array if isinstance(array, np.ndarray) else call.full(array, ())


# ---------------------------------------------------------------- functions

UNARY: dict[str, Callable[[Number], Number]] = {
    "sqrt": lambda x: x**HALF,
    "rsqrt": lambda x: x ** (-HALF),
    "exp": functions.exp,
    "expm1": lambda x: functions.exp(x) - 1,
    "log": functions.log,
    "log1p": lambda x: functions.log(1 + x),
    "sin": functions.sin,
    "cos": functions.cos,
    "tanh": functions.tanh,
    "sigmoid": functions.sigmoid,
    "erf": functions.erf,
    "abs": functions.absolute,
    "sgn": lambda x: functions.less_than(x.ring.constant(0), x) - functions.less_than(x, x.ring.constant(0)),
    "relu": lambda x: functions.maximum(x, x.ring.constant(0)),
    "logical_not": lambda x: 1 - functions.truth(x),
    # Real numbers are finite.
    "isnan": lambda x: x.ring.constant(0),
    "isinf": lambda x: x.ring.constant(0),
    "isfinite": lambda x: x.ring.constant(1),
}
UNARY["sign"] = UNARY["sgn"]

for _name, _function in UNARY.items():
    MEANINGS[f"aten.{_name}"] = lambda call, x, function=_function: elementwise(function, x)


@meaning("nan_to_num")
def _nan_to_num(call: Call, x: Array, *replacements: Any) -> Array:
    return x


@meaning("bitwise_not")
def _bitwise_not(call: Call, x: Array) -> Array:
    _require_bool(call)
    return _result(call, 1 - x)


BINARY: dict[str, Callable[[Number, Number], Number]] = {
    "maximum": functions.maximum,
    "minimum": functions.minimum,
    "lt": functions.less_than,
    "gt": lambda a, b: functions.less_than(b, a),
    "le": lambda a, b: 1 - functions.less_than(b, a),
    "ge": lambda a, b: 1 - functions.less_than(a, b),
    "eq": functions.equal,
    "ne": lambda a, b: 1 - functions.equal(a, b),
    "logical_and": functions.both,
    "logical_or": functions.either,
    "logical_xor": lambda a, b: functions.truth(a) + functions.truth(b) - 2 * functions.truth(a) * functions.truth(b),
}
# Truth of a relation between a real number and plus infinity, and minus infinity.
INFINITE = {"lt": (1, 0), "le": (1, 0), "gt": (0, 1), "ge": (0, 1), "eq": (0, 0), "ne": (1, 1)}


def _binary(name: str, function: Callable[[Number, Number], Number]) -> None:
    def apply(call: Call, a: Any, b: Any) -> Array:
        if isinstance(b, float) and b in (float("inf"), float("-inf")) and name in INFINITE:
            return call.full(INFINITE[name][b < 0])
        return elementwise(function, call.array(a), call.array(b))

    MEANINGS[f"aten.{name}"] = apply


for _name, _relation in BINARY.items():
    _binary(_name, _relation)


def _bitwise(name: str) -> None:
    def apply(call: Call, a: Any, b: Any) -> Array:
        _require_bool(call)
        return elementwise(BINARY[f"logical_{name}"], call.array(a), call.array(b))

    MEANINGS[f"aten.bitwise_{name}"] = apply


for _name in ("and", "or", "xor"):
    _bitwise(_name)


def _require_bool(call: Call) -> None:
    if call.dtype != torch.bool:
        raise NotExactError(f"{call.name} of integers")


@meaning("clamp")
def _clamp(call: Call, x: Array, low: Any = None, high: Any = None) -> Array:
    if low is not None:
        x = elementwise(functions.maximum, x, call.array(low))
    return x if high is None else elementwise(functions.minimum, x, call.array(high))


@meaning("clamp_min")
def _clamp_min(call: Call, x: Array, low: Any) -> Array:
    return _clamp(call, x, low)


@meaning("clamp_max")
def _clamp_max(call: Call, x: Array, high: Any) -> Array:
    return _clamp(call, x, None, high)


@meaning("where")
def _where(call: Call, condition: Array, a: Any, b: Any) -> Array:
    def choose(m: Number, x: Number, y: Number) -> Number:
        return y + m * (x - y)

    return elementwise(choose, condition, call.array(a), call.array(b))


@meaning("masked_fill")
def _masked_fill(call: Call, x: Array, condition: Array, value: Any) -> Array:
    return _where(call, condition, call.array(value), x)


# ---------------------------------------------------------------- reductions


@meaning("sum")
def reduce_sum(call: Call, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    """Sum over some dimensions, or over all."""
    axes = tuple(range(x.ndim)) if dim in (None, []) else tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    axes = tuple(axis % x.ndim for axis in axes) if x.ndim else ()
    kept = [n for axis, n in enumerate(x.shape) if axis not in axes]
    moved = np.moveaxis(x, axes, range(-len(axes), 0)) if axes else x[..., None]
    out = np.empty(kept, dtype=object)
    for index in np.ndindex(*kept):
        out[index] = _sum(moved[index].reshape(-1), call.ring.constant(0)).named()
    return out.reshape([1 if axis in axes else n for axis, n in enumerate(x.shape)]) if keepdim else out


@meaning("mean")
def _mean(call: Call, x: Array, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Array:
    total = reduce_sum(call, x, dim, keepdim)
    return _result(call, total * Fraction(total.size, x.size))


@meaning("linalg_vector_norm")
def _vector_norm(
    call: Call, x: Array, order: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Array:
    if order != 2:
        raise NotExactError(f"a norm of order {order}")
    return elementwise(lambda square: square**HALF, reduce_sum(call, x * x, dim, keepdim))


@meaning("all")
def _all(call: Call, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    return _result(call, 1 - _any(call, _result(call, 1 - elementwise(functions.truth, x)), dim, keepdim))


@meaning("any")
def _any(call: Call, x: Array, dim: Any = None, keepdim: bool = False) -> Array:
    none = elementwise(lambda number: 1 - functions.truth(number), x)
    axes = tuple(range(x.ndim)) if dim is None else tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    reduce: Any = np.multiply.reduce
    return _result(call, 1 - (reduce(none, axis=axes, keepdims=keepdim) if x.ndim else none))


@meaning("mm", "mv", "dot", "bmm")
def _matmul(call: Call, a: Array, b: Array) -> Array:
    # numpy multiplies matrices of objects as it does numbers, stacks of them too.
    return _result(call, np.matmul(a, b))


@meaning("addmm")
def _addmm(call: Call, c: Array, a: Array, b: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    return _result(call, c * call.number(beta) + np.matmul(a, b) * call.number(alpha))


@meaning("mse_loss")
def _mse_loss(call: Call, a: Array, b: Array, reduction: int = 1) -> Array:
    error = _square(call, _result(call, a - b))
    return error if reduction == 0 else (_mean if reduction == 1 else reduce_sum)(call, error)


# ---------------------------------------------------------------- derivatives that have names of their own


@meaning("mse_loss_backward")
def _mse_loss_backward(call: Call, g: Array, a: Array, b: Array, reduction: int) -> Array:
    return _result(call, g * (a - b) * (Fraction(2, a.size) if reduction == 1 else 2))


@meaning("sigmoid_backward")
def _sigmoid_backward(call: Call, g: Array, out: Array) -> Array:
    return _result(call, g * out * (1 - out))


@meaning("tanh_backward")
def _tanh_backward(call: Call, g: Array, out: Array) -> Array:
    return _result(call, g * (1 - out * out))


@meaning("threshold_backward")
def _threshold_backward(call: Call, g: Array, x: Array, threshold: Any) -> Array:
    return elementwise(lambda a, b, c: a * functions.less_than(c, b), g, x, call.array(threshold))


def require_real(call: Call) -> None:
    """Raise if an operation's result is kept in fewer digits than float32 has, overflows early or is not real."""
    lossy = call.dtype.is_floating_point and call.dtype not in FLOATS
    if lossy or call.dtype.is_complex or call.dtype in (torch.uint8, torch.int8, torch.int16):
        raise NotExactError(f"{call.name} computes in {call.dtype}, which loses more than rounding")
