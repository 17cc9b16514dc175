"""In which dtype the products of tangents run: a switch, set by :mod:`backend`, that the bilinear rules read."""

from __future__ import annotations

import threading
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.jvp.stopgrad.table import Op, Rule, TangentOf

_WIDE = (torch.float32, torch.float64)


class _Switch(threading.local):
    def __init__(self) -> None:
        # In each thread, and not of the class: Dynamo guards on what an instance holds.
        self.dtype: torch.dtype | None = None


# Each thread's own; None is the dtype of the primal.
SWITCH = _Switch()


def product_dtype(wide: torch.dtype) -> torch.dtype | None:
    """Dtype that operands are to be rounded to in a product of dtype ``wide``, None for as they are."""
    return SWITCH.dtype if wide in _WIDE else None


def bilinear(rule: Rule, first: int, second: int) -> Rule:
    """The rule of a bilinear operation, whose operands are rounded where the switch asks for it.

    Args:
        rule: The rule, in the dtype of its arguments.
        first: Place of one operand among the arguments.
        second: Place of the other.

    """

    @wraps(rule)
    def rounded(d: TangentOf, op: Op, out: Any, *args: Any, **kwargs: Any) -> Any:
        if SWITCH.dtype is None or (dtype := product_dtype(out.dtype)) is None:
            return rule(d, op, out, *args, **kwargs)
        x, y = args[first], args[second]
        dx, dy = d(x), d(y)
        # An operand meets the other's tangent alone: what meets none is not copied.
        low = list(args)
        low[first], low[second] = x if dy is None else x.to(dtype), y if dx is None else y.to(dtype)
        tangents = {
            id(low[first]): None if dx is None else dx.to(dtype),
            id(low[second]): None if dy is None else dy.to(dtype),
        }
        tangent = rule(lambda a: tangents[id(a)] if id(a) in tangents else d(a), op, out, *low, **kwargs)
        return tangent.to(out.dtype) if isinstance(tangent, Tensor) else tangent

    return rounded
