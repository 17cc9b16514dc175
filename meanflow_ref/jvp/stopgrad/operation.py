"""The tangent of one operation: whether there is one, and by which rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad.fallback import forward_mode
from meanflow_ref.jvp.stopgrad.rules import constant
from meanflow_ref.jvp.stopgrad.table import RULES, Op
from meanflow_ref.jvp.stopgrad.tangents import Tangents

aten = torch.ops.aten
_TAKES_NUMBER = frozenset({aten._local_scalar_dense.default, aten.item.default})


def tangent_of_operation(tangents: Tangents, func: Op, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Tangent of what ``func`` returned, by its rule or by forward mode; None for zero."""
    rule = RULES.get(func)
    if rule is constant:
        return None
    if rule is None and func in _TAKES_NUMBER:
        raise TangentError(
            "the network takes a Python number (.item(), float(), int()) from a tensor that has a tangent; the "
            "derivative through that number would be lost.",
            "tensors all the way, or a number that is meant as a constant",
            "keep it a 0-dimensional tensor; for a constant write x.detach().item()",
        )
    if not differentiable(out):
        return None
    if func is aten.as_strided.default:
        return tangents.view(out, args[0])
    tangent: Any = NotImplemented
    if rule is not None:
        tangent = rule(tangents.known, func, out, *args, **kwargs)
    if tangent is NotImplemented:
        tangent = forward_mode(tangents.known, func, args, kwargs)
    return tangent


def differentiable(out: Any) -> bool:
    """Whether a tensor, or one of several, has numbers that can have a tangent."""
    if isinstance(out, Tensor):
        return out.is_floating_point() or out.is_complex()
    parts = out if isinstance(out, tuple | list) else ()
    return any(isinstance(part, Tensor) and (part.is_floating_point() or part.is_complex()) for part in parts)


def any_moves(tangents: Tangents, values: Any) -> bool:
    """Whether a tensor among the arguments has a tangent. All are looked at: an alias of unknown origin must show."""
    live, moves = False, tangents.moves
    for value in values:
        if isinstance(value, Tensor):
            live |= moves(value)
        elif isinstance(value, tuple | list):
            live |= any_moves(tangents, value)
    return live
