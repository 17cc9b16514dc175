"""Closed forms are evaluated in float64 and rounded once, to the dtype of the state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

_Method = TypeVar("_Method", bound=Callable[..., Tensor])


def in_float64(method: _Method) -> _Method:
    """A field's method that sees float64 tensors and whose result has the dtype of the first of them.

    A float32 truth is then the float64 truth at the float32 inputs, correctly rounded up to one float64 rounding;
    softmax weights evaluated in float32 would lose 1e-6 to 1e-4 near mode boundaries.
    """

    @functools.wraps(method)
    def promoted(self: Any, *tensors: Tensor) -> Tensor:
        dtype = tensors[0].dtype
        if dtype == torch.float64:
            return method(self, *tensors)
        return method(self, *(tensor.double() for tensor in tensors)).to(dtype)

    return cast(_Method, promoted)
