"""What making, copying, joining and indexing of tensors means. Views need no meaning: they share their storage."""

from __future__ import annotations

from typing import Any

import numpy as np

from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.table import Array, Call, cast, integers, meaning


@meaning("zeros", "zeros_like", "new_zeros", "_efficientzerotensor", "zero", "_new_zeros_with_same_feature_meta")
def _zeros(call: Call, *_: Any, **__: Any) -> Array:
    return call.full(0)


@meaning("ones", "ones_like", "new_ones")
def _ones(call: Call, *_: Any, **__: Any) -> Array:
    return call.full(1)


@meaning("empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted")
def _empty(call: Call, *_: Any, **__: Any) -> Array:
    # `None`: arithmetic with what was never written fails.
    return np.empty(call.shape, dtype=object)


@meaning("full", "full_like", "new_full", "fill")
def _full(call: Call, _: Any, value: Any, *__: Any, **___: Any) -> Array:
    return cast(call, call.full(value), call.dtype)


@meaning("scalar_tensor")
def _scalar_tensor(call: Call, value: Any, **_: Any) -> Array:
    return call.full(value)


@meaning("arange")
def _arange(call: Call, *bounds: Any, **_: Any) -> Array:
    if not all(isinstance(bound, int) for bound in bounds):
        raise NotExactError("arange of fractions")
    return np.array([call.number(int(i)) for i in range(*bounds)], dtype=object)


@meaning("clone", "lift_fresh_copy", "lift_fresh", "contiguous", "alias_copy", "detach_copy")
def _same(call: Call, x: Array, **_: Any) -> Array:
    return x


@meaning("_unsafe_view", "view_copy", "reshape", "_reshape_copy")
def _reshaped(call: Call, x: Array, *_: Any) -> Array:
    return x.reshape(call.shape)


@meaning("_to_copy")
def _to_copy(call: Call, x: Array, **_: Any) -> Array:
    return cast(call, x, call.dtype)


@meaning("copy")
def _copy(call: Call, x: Array, source: Array, *_: Any) -> Array:
    return cast(call, np.broadcast_to(source, x.shape), call.dtype)


@meaning("cat")
def _cat(call: Call, arrays: list[Array], dim: int = 0) -> Array:
    # An empty tensor of one dimension is neutral, whatever the others' shape.
    return np.concatenate([x for x in arrays if x.shape != (0,)], axis=dim)


@meaning("stack")
def _stack(call: Call, arrays: list[Array], dim: int = 0) -> Array:
    return np.stack(arrays, axis=dim)


@meaning("repeat")
def _repeat(call: Call, x: Array, counts: list[int]) -> Array:
    return np.tile(x, counts)


@meaning("flip")
def _flip(call: Call, x: Array, dims: list[int]) -> Array:
    return np.flip(x, tuple(dims))


@meaning("roll")
def _roll(call: Call, x: Array, shifts: Any, dims: Any = ()) -> Array:
    return np.roll(x, shifts, tuple(dims) or None)


@meaning("index")
def _index(call: Call, x: Array, indices: list[Any]) -> Array:
    if call.mask_index:
        raise NotExactError("entries picked by a mask")
    out = x[_numpy_index(indices)]
    return out if isinstance(out, np.ndarray) else call.full(out, ())


@meaning("index_select")
def _index_select(call: Call, x: Array, dim: int, index: Array) -> Array:
    places = integers(index)
    if places is None:
        raise NotExactError("an index that is no constant")
    return np.take(x, places, axis=dim)


@meaning("index_put", "_unsafe_index_put")
def _index_put(call: Call, x: Array, indices: list[Any], values: Array, accumulate: bool = False) -> Array:
    if accumulate:
        raise NotExactError("index_put with accumulation")
    if call.mask_index:
        return _put_where(call, x, indices, values)
    out = x.copy()
    out[_numpy_index(indices)] = values
    return out


def _numpy_index(indices: list[Any]) -> tuple[Any, ...]:
    places = [slice(None) if index is None else integers(index) for index in indices]
    if any(place is None for place in places):
        raise NotExactError("an index that is no constant")
    return tuple(places)


def _put_where(call: Call, x: Array, indices: list[Any], values: Array) -> Array:
    """``x[mask] = value`` with one mask over the first dimensions and one value."""
    if len(indices) != 1 or values.size != 1:
        raise NotExactError("entries picked by a mask")
    (mask,) = indices
    rows = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    out = x + rows * (values.reshape(()) - x)
    return out if isinstance(out, np.ndarray) else call.full(out, ())


@meaning("select_backward")
def _select_backward(call: Call, g: Array, sizes: list[int], dim: int, index: int) -> Array:
    out = call.full(0, sizes)
    out[(slice(None),) * (dim % len(sizes)) + (index,)] = g
    return out


@meaning("slice_backward")
def _slice_backward(call: Call, g: Array, sizes: list[int], dim: int, start: Any, end: Any, step: Any) -> Array:
    out = call.full(0, sizes)
    out[(slice(None),) * (dim % len(sizes)) + (slice(start, end, step),)] = g
    return out


@meaning("select_scatter")
def _select_scatter(call: Call, x: Array, source: Array, dim: int, index: int) -> Array:
    out = x.copy()
    out[(slice(None),) * (dim % x.ndim) + (index,)] = source
    return out


@meaning("slice_scatter")
def _slice_scatter(
    call: Call, x: Array, source: Array, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1
) -> Array:
    out = x.copy()
    out[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)] = source
    return out
