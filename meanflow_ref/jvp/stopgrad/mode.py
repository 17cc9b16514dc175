"""The dispatch form: every operation is seen after autograd has recorded it, and its tangent is computed beside it.

Above, the network runs as ever: autograd's graph is that of a plain forward pass, bit for bit. Below, where autograd is
off, the rules compute tangents, which therefore never enter the graph and die as soon as the network drops the tensor
they belong to. What runs through torch's dispatcher is seen, composite functions, custom ``autograd.Function``,
checkpointing and distributed wrappers included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad.fallback import forward_mode
from meanflow_ref.jvp.stopgrad.rules import constant
from meanflow_ref.jvp.stopgrad.table import RULES, Op
from meanflow_ref.jvp.stopgrad.tangents import Tangents
from meanflow_ref.jvp.stopgrad.writes import apply_write

aten = torch.ops.aten
_ALLOCATIONS = frozenset(
    op
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
    for op in (getattr(getattr(aten, name), o) for o in getattr(aten, name).overloads())
    if not op._schema.is_mutable
)
_TAKES_NUMBER = frozenset({aten._local_scalar_dense.default, aten.item.default})


class StopGradMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries tangents through what runs inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tangents = Tangents()

    def result(self, u: Tensor) -> Tensor | None:
        """Tangent of what the network returned."""
        self.tangents.require_filled(u)
        return self.tangents.get(u)

    def __torch_dispatch__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tangents = self.tangents
        if func._schema.is_mutable:
            return apply_write(tangents, func, args, kwargs)
        if func in _ALLOCATIONS:
            out = func(*args, **kwargs)
            tangents.allocated(out)
            return out
        if tangents.blank and not func.is_view and RULES.get(func) is not constant:
            _require_filled(tangents, (args, kwargs))
        live = _any_moves(tangents, args) or (bool(kwargs) and _any_moves(tangents, kwargs.values()))
        out = func(*args, **kwargs)
        if live:
            tangent = tangent_of_operation(tangents, func, out, args, kwargs)
            if tangent is not None:
                _put(tangents, out, tangent)
        if func is aten.detach.default or (func.is_view and args and tangents.is_frozen(args[0])):
            for part in pytree.tree_leaves(out):
                tangents.freeze(part)
        return out


def tangent_of_operation(
    tangents: Tangents, func: Op, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Tangent of what ``func`` returned, by its rule or by forward mode; None for zero."""
    rule = RULES.get(func)
    if rule is constant:
        return None
    if func in _TAKES_NUMBER:
        raise TangentError(
            "the network takes a Python number (.item(), float(), int()) from a tensor that has a tangent; the "
            "derivative through that number would be lost.",
            "tensors all the way, or a number that is meant as a constant",
            "keep it a 0-dimensional tensor; for a constant write x.detach().item()",
        )
    if not _differentiable(out):
        return None
    if func is aten.as_strided.default:
        return tangents.view(out, args[0])
    tangent = NotImplemented
    if rule is not None:
        tangent = rule(tangents.get, func, out, *args, **kwargs)
    if tangent is NotImplemented:
        tangent = forward_mode(tangents.get, func, args, kwargs)
    return tangent


def _differentiable(out: Any) -> bool:
    parts = out if isinstance(out, tuple | list) else (out,)
    return any(isinstance(part, Tensor) and (part.is_floating_point() or part.is_complex()) for part in parts)


def _put(tangents: Tangents, out: Any, tangent: Any) -> None:
    if isinstance(out, Tensor):
        tangents.put(out, tangent)
        return
    for part, moved in zip(out, tangent, strict=True):
        if isinstance(part, tuple | list):
            _put(tangents, part, moved)
        elif moved is not None and isinstance(part, Tensor):
            tangents.put(part, moved)


def _any_moves(tangents: Tangents, values: Any) -> bool:
    """Whether a tensor among the arguments has a tangent. All are looked at: an alias of unknown origin must be found."""
    live = False
    for value in values:
        if isinstance(value, Tensor):
            if tangents.get(value) is not None:
                live = True
        elif isinstance(value, tuple | list) and _any_moves(tangents, value):
            live = True
    return live


def _require_filled(tangents: Tangents, values: Any) -> None:
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            tangents.require_filled(leaf)
