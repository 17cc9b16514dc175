"""The dispatch form: every operation is seen after autograd has recorded it, and its tangent is computed beside it.

Above, the network runs as ever: autograd's graph is that of a plain forward pass, bit for bit. Below, where autograd is
off, the rules compute tangents, which therefore never enter the graph and die as soon as the network drops the tensor
they belong to. What runs through torch's dispatcher is seen, composite functions, custom ``autograd.Function``,
checkpointing and distributed wrappers included.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad.operation import any_moves, tangent_of_operation
from meanflow_ref.jvp.stopgrad.rowwise import part_of_tangent
from meanflow_ref.jvp.stopgrad.rules import constant
from meanflow_ref.jvp.stopgrad.table import RULES, Op
from meanflow_ref.jvp.stopgrad.tangents import Rows, Tangents, storage_key
from meanflow_ref.jvp.stopgrad.writes import apply_write

aten = torch.ops.aten
_ALLOCATIONS = frozenset(
    op
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
    for op in (getattr(getattr(aten, name), o) for o in getattr(aten, name).overloads())
    if not op._schema.is_mutable
)


# What kind of operation this is. Keyed by the operation, which stays alive so: a number may come to be another one's.
_PLAIN, _VIEW, _ALLOCATES, _WRITES = range(4)
_KINDS: dict[Op, int] = {}


def _kind_of(func: Op) -> int:
    kind = _PLAIN
    if func._schema.is_mutable:
        kind = _WRITES
    elif func in _ALLOCATIONS:
        kind = _ALLOCATES
    elif func.is_view:
        kind = _VIEW
    return _KINDS.setdefault(func, kind)


class _Flags:
    """Torch's flags that say whether a dispatch mode is on: of the process, where modes are of a thread (torch 2.13).

    A mode sets them back to what it found. Modes of two threads that overlap leave them on for good, and from there on
    torch.compile refuses. They were off before the first of ours, so that they are off after the last.
    """

    names = (
        "_is_in_torch_dispatch_mode",
        "_is_in_non_infra_torch_dispatch_mode",
        "_is_in_any_mode_without_ignore_compile_internals",
    )

    def __init__(self) -> None:
        self.lock, self.inside, self.off = threading.Lock(), 0, False

    def enter(self) -> None:
        if self.inside == 0:
            self.off = not any(getattr(_python_dispatch, name, False) for name in self.names)
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
        if self.inside == 0 and self.off and getattr(_python_dispatch, self.names[0], False):
            for name in filter(_python_dispatch.__dict__.__contains__, self.names):
                setattr(_python_dispatch, name, False)
            tell = getattr(_python_dispatch, "set_is_in_mode_without_ignore_compile_internals", None)
            if tell is not None:
                tell(False)


_FLAGS = _Flags()


class StopGradMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries tangents through what runs inside it.

    Args:
        rows: Which part of the batch moves; all of it if None.

    """

    def __init__(self, rows: Rows | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tangents = Tangents(rows)

    def __enter__(self) -> StopGradMode:
        with _FLAGS.lock:
            _FLAGS.enter()
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        with _FLAGS.lock:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
            _FLAGS.leave()

    def result(self, u: Tensor) -> Tensor | None:
        """Tangent of what the network returned."""
        self.tangents.require_filled(u)
        return self.tangents.get(u)

    def __torch_dispatch__(
        self, func: Op, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tangents = self.tangents
        kind = _KINDS.get(func)
        if kind is None:
            kind = _kind_of(func)
        if kind == _WRITES:
            return apply_write(tangents, func, args, kwargs)
        if kind == _ALLOCATES:
            out = func(*args, **kwargs)
            tangents.allocated(out)
            return out
        if tangents.blank and kind != _VIEW and RULES.get(func) is not constant:
            _check_filled(tangents, func, (args, kwargs))
        live = any_moves(tangents, args) | (bool(kwargs) and any_moves(tangents, kwargs.values()))
        out = func(*args, **kwargs) if kwargs else func(*args)
        if live:
            _carry(tangents, func, out, args, kwargs)
        if func is aten.detach.default or (kind == _VIEW and args and tangents.is_frozen(args[0])):
            for part in pytree.tree_leaves(out):
                tangents.freeze(part)
        return out


class LeavingTorch(TorchFunctionMode):
    """Refuses to hand the contents of a tensor with a tangent to code that torch does not see."""

    doors = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__})

    def __init__(self, tangents: Tangents) -> None:
        super().__init__()
        self.tangents = tangents

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.doors and self.tangents.get(args[0]) is not None:
            raise TangentError(
                f"the network hands a tensor that has a tangent to code outside torch, by .{func.__name__}(); the "
                "derivative through it would be lost.",
                "torch operations all the way, or values that are meant as constants",
                f"for a constant write x.detach().{func.__name__}()",
            )
        return func(*args, **kwargs) if kwargs else func(*args)


def _carry(tangents: Tangents, func: Op, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Give what an operation returned its tangent."""
    if tangents.rows is not None:
        parts = part_of_tangent(tangents, func, out, args, kwargs)
        if parts is not NotImplemented:
            _put_parts(tangents, out, parts)
            return
    tangent = tangent_of_operation(tangents, func, out, args, kwargs)
    if tangent is not None:
        _put(tangents, out, tangent)


def _put(tangents: Tangents, out: Any, tangent: Any) -> None:
    if isinstance(out, Tensor):
        tangents.put(out, tangent)
        return
    for part, moved in zip(out, tangent, strict=True):
        if isinstance(part, tuple | list):
            _put(tangents, part, moved)
        elif moved is not None and isinstance(part, Tensor):
            tangents.put(part, moved)


def _put_parts(tangents: Tangents, out: Any, parts: Any) -> None:
    if isinstance(out, Tensor):
        if parts is not None:
            tangents.put(out, *parts)
        return
    for x, part in zip(out, parts, strict=False):
        if part is not None:
            tangents.put(x, *part)


def _check_filled(tangents: Tangents, func: Op, values: Any) -> None:
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, Tensor):
            if func.namespace in ("aten", "prims"):
                tangents.require_filled(leaf)
            else:
                # A collective, for one, fills buffers and does not say so in its schema. If what it spreads had a
                # tangent, it has no rule and is refused below.
                tangents.blank.pop(storage_key(leaf), None)
