"""One call of the network in which only the first rows of the batch move.

A tangent may be that of a leading part of one dimension, along which the rows lie (:class:`.tangents.Rows`). An
operation that treats the rows alike is then given only that part of its arguments, and the usual rule makes the same
part of the tangent of its result: the tangent pass costs what those rows cost. For everything that this table does not
know, or that mixes rows, the tangent is made whole with zeros, and the usual rule sees all rows, so that a missing line
here costs time and no digit.

Rows lie along one dimension of ``batch * m`` places, those that move first: true of the arguments, and kept by every
line below. (A view that merges the rows with what varies faster keeps the first rows first.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from meanflow_ref.jvp.stopgrad.attention import FUSED
from meanflow_ref.jvp.stopgrad.rules import DIAGONAL
from meanflow_ref.jvp.stopgrad.table import RULES, Op
from meanflow_ref.jvp.stopgrad.tangents import Rows, Tangents

aten = torch.ops.aten

# A part of a tangent and the dimension along which it is one; a list of them for several results; None for zero.
Part: TypeAlias = Any
# line(call) -> Part, or NotImplemented: make the tangent whole.
Line: TypeAlias = Callable[["Call"], Any]

ROWWISE: dict[Op, Line] = {}


class Call:
    """One call of an operation, some of whose arguments move in their first rows alone."""

    def __init__(self, tangents: Tangents, op: Op, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.op, self.out, self.args, self.kwargs = op, out, args, kwargs
        self.tangents = tangents
        assert tangents.rows is not None
        self.rows: Rows = tangents.rows

    def dim(self, x: Any) -> int | None:
        """Dimension along which ``x`` moves in part; None for what does not move, or moves whole."""
        entry = self.tangents.entries.get(id(x))
        return None if entry is None else entry.dim

    def still(self, *values: Any) -> bool:
        """Whether none of these has a tangent."""
        entries = self.tangents.entries
        return all((entry := entries.get(id(x))) is None or entry.tangent is None for x in values)

    def tangent(self, x: Tensor) -> Tensor:
        """The part of the tangent that is known."""
        tangent = self.tangents.entries[id(x)].tangent
        assert tangent is not None
        return tangent

    def cut(self, x: Any, dim: int) -> Any:
        """The first rows of a value."""
        return x.narrow(dim, 0, self.rows.part(x.shape[dim])) if isinstance(x, Tensor) else x

    def by_rule(self, cuts: list[tuple[int, int]], out: Any, args: tuple[Any, ...] | None = None) -> Any:
        """What the operation's own rule says of the first rows.

        Args:
            cuts: Position and dimension of each argument to be cut.
            out: What the operation returned, cut.
            args: The arguments, where some differ from those of the call.

        """
        given = list(self.args if args is None else args)
        moved: dict[int, Tensor | None] = {}
        for position, dim in cuts:
            x = given[position]
            given[position] = part = self.cut(x, dim)
            entry = self.tangents.entries.get(id(x))
            if entry is not None and entry.tangent is not None:
                moved[id(part)] = entry.tangent
        return RULES[self.op](lambda x: moved.get(id(x)), self.op, out, *given, **self.kwargs)


def part_of_tangent(tangents: Tangents, op: Op, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part:
    """Tangent of ``out`` in its first rows with its dimension, a list of pairs for a tuple, or NotImplemented."""
    line = ROWWISE.get(op)
    return NotImplemented if line is None or op not in RULES else line(Call(tangents, op, out, args, kwargs))


# ================================================================ place by place, lined up from the right


def placewise(call: Call) -> Part:
    """Rows of all arguments meet at one distance from the last dimension."""
    found = {x.dim() - d for x in call.args if isinstance(x, Tensor) and (d := call.dim(x)) is not None}
    if len(found) != 1:
        return NotImplemented
    (back,) = found
    outs = call.out if isinstance(call.out, tuple | list) else (call.out,)
    size, dim = outs[0].shape[-back], outs[0].dim() - back
    cuts = []
    for i, x in enumerate(call.args):
        if not isinstance(x, Tensor):
            continue
        if x.dim() >= back and x.shape[-back] == size:
            if call.dim(x) is None and not call.still(x):
                return NotImplemented
            cuts.append((i, x.dim() - back))
        elif not call.still(x):
            return NotImplemented
    first = tuple(call.cut(x, dim) for x in outs)
    tangent = call.by_rule(cuts, first if isinstance(call.out, tuple | list) else first[0])
    if tangent is NotImplemented or tangent is None:
        return tangent
    return [(x, dim) for x in tangent] if isinstance(tangent, tuple) else (tangent, dim)


# ================================================================ rows first: products, convolutions, attention


def product(call: Call) -> Part:
    """``x y`` and ``c + x y`` with the rows first in x; what contracts over rows is left alone."""
    *c, x, y = call.args[: 3 if call.op is aten.addmm.default else 2]
    if call.dim(x) != 0 or not call.still(y):
        return NotImplemented
    cuts = [(len(c), 0)]
    if c and (c[0].dim() < 2 or c[0].shape[0] != x.shape[0]):
        if not call.still(c[0]):
            return NotImplemented
    elif c:
        if call.dim(c[0]) != 0 and not call.still(c[0]):
            return NotImplemented
        cuts.append((0, 0))
    tangent = call.by_rule(cuts, call.cut(call.out, 0))
    return tangent if tangent is NotImplemented else (tangent, 0)


def batched(call: Call) -> Part:
    """A batch of products, or attention: the rows first in all arguments."""
    tensors = [(i, x) for i, x in enumerate(call.args) if isinstance(x, Tensor)]
    several = isinstance(call.out, tuple | list)
    size = (call.out[0] if several else call.out).shape[0]
    for _, x in tensors:
        if x.dim() == 0 or x.shape[0] != size or (call.dim(x) != 0 and not call.still(x)):
            return NotImplemented
    for x in call.kwargs.values():
        # An attention mask.
        if isinstance(x, Tensor) and ((x.dim() == 4 and x.shape[0] != 1) or not call.still(x)):
            return NotImplemented
    outs = call.out if several else (call.out,)
    first = [call.cut(x, 0) if isinstance(x, Tensor) and x.dim() and x.shape[0] == size else x for x in outs]
    tangent = call.by_rule([(i, 0) for i, _ in tensors], tuple(first) if several else first[0])
    if tangent is NotImplemented:
        return tangent
    return [None if x is None else (x, 0) for x in tangent] if several else (tangent, 0)


def leading(call: Call) -> Part:
    """What acts on each entry of the first dimension by itself: convolutions, resampling, padding of images."""
    x = call.args[0]
    if call.dim(x) != 0 or x.dim() < 3 or not call.still(*(a for a in call.args[1:] if isinstance(a, Tensor))):
        return NotImplemented
    tangent = call.by_rule([(0, 0)], call.cut(call.out, 0))
    return tangent if tangent is NotImplemented else (tangent, 0)


def padded(call: Call) -> Part:
    """Padding that leaves the first dimension alone."""
    return leading(call) if len(call.args[1]) // 2 < call.args[0].dim() else NotImplemented


def shuffled(call: Call) -> Part:
    """Pixels and channels change places; the rows are a dimension of their own."""
    return leading(call) if call.args[0].dim() == 4 else NotImplemented


# ================================================================ within a row: norms, softmax, sums


def layer_norm(call: Call) -> Part:
    """Rows come before the dimensions that are normalised."""
    x, shape = call.args[:2]
    if call.dim(x) != 0 or x.dim() <= len(shape) or not call.still(*call.args[2:4]):
        return NotImplemented
    tangent = call.by_rule([(0, 0)], tuple(call.cut(y, 0) for y in call.out))
    return tangent if tangent is NotImplemented else [(tangent[0], 0), None, None]


def group_norm(call: Call) -> Part:
    """The rows are a dimension of their own, whose size is an argument."""
    x, w, b, n, *rest = call.args
    if call.dim(x) != 0 or not call.still(w, b):
        return NotImplemented
    args = (x, w, b, call.rows.part(n), *rest)
    tangent = call.by_rule([(0, 0)], tuple(call.cut(y, 0) for y in call.out), args)
    return tangent if tangent is NotImplemented else [(tangent[0], 0), None, None]


def softmax(call: Call) -> Part:
    """Along another dimension than the rows."""
    x, along = call.args[:2]
    dim = call.dim(x)
    if dim is None or along % x.dim() == dim:
        return NotImplemented
    tangent = call.by_rule([(0, dim)], call.cut(call.out, dim))
    return tangent if tangent is NotImplemented else (tangent, dim)


def summed(call: Call) -> Part:
    """Sums and means over other dimensions than the rows."""
    x, over = call.args[0], call.args[1] if len(call.args) > 1 else None
    dim, keep = call.dim(x), len(call.args) > 2 and call.args[2]
    if dim is None or not over or (gone := {d % x.dim() for d in over}) & {dim}:
        return NotImplemented
    tangent = call.op(call.tangent(x), *call.args[1:], **call.kwargs)
    return tangent, dim if keep else dim - sum(d < dim for d in gone)


# ================================================================ shape


def viewed(call: Call) -> Part:
    """Another shape of the same numbers in the same order, in which the rows still begin a dimension."""
    x, dim = call.args[0], call.dim(call.args[0])
    if dim is None:
        return NotImplemented
    outer, before, shape = math.prod(x.shape[:dim]), 1, list(call.out.shape)
    for j, size in enumerate(shape):
        if before == outer and size and size % call.rows.batch == 0:
            shape[j] = call.rows.part(size)
            return call.tangent(x).reshape(shape), j
        before *= size
    return NotImplemented


def expanded(call: Call) -> Part:
    """New dimensions come before the old ones."""
    x, dim = call.args[0], call.dim(call.args[0])
    if dim is None:
        return NotImplemented
    there, shape = dim + call.out.dim() - x.dim(), list(call.out.shape)
    shape[there] = call.rows.part(shape[there])
    return call.tangent(x).expand(shape), there


def permuted(call: Call) -> Part:
    """The rows go where their dimension goes."""
    x, dim = call.args[0], call.dim(call.args[0])
    if dim is None:
        return NotImplemented
    order = list(range(x.dim()))
    if call.op is aten.permute.default:
        order = [d % x.dim() for d in call.args[1]]
    elif x.dim() > 1:
        a, b = (d % x.dim() for d in (call.args[1:3] if call.op is aten.transpose.int else (0, 1)))
        order[a], order[b] = order[b], order[a]
    return call.tangent(x).permute(order), order.index(dim)


def _along(call: Call, position: int) -> tuple[Tensor, int, int] | None:
    """Tangent, dimension of the rows, and the other dimension that the operation names at ``position`` (or 0)."""
    x, dim = call.args[0], call.dim(call.args[0])
    named = call.args[position] if len(call.args) > position else call.kwargs.get("dim", 0)
    if dim is None or named % x.dim() == dim:
        return None
    return call.tangent(x), dim, named % x.dim()


def selected(call: Call) -> Part:
    """One place of another dimension."""
    found = _along(call, 1)
    if found is None:
        return NotImplemented
    tangent, dim, named = found
    return call.op(tangent, *call.args[1:], **call.kwargs), dim - (named < dim)


def sliced(call: Call) -> Part:
    """Some places of another dimension."""
    found = _along(call, 1)
    return NotImplemented if found is None else (call.op(found[0], *call.args[1:], **call.kwargs), found[1])


def split(call: Call) -> Part:
    """Pieces of another dimension."""
    found = _along(call, 2)
    if found is None:
        return NotImplemented
    return [(piece, found[1]) for piece in call.op(found[0], *call.args[1:], **call.kwargs)]


def unbound(call: Call) -> Part:
    """All places of another dimension, each by itself."""
    found = _along(call, 1)
    if found is None:
        return NotImplemented
    tangent, dim, named = found
    return [(piece, dim - (named < dim)) for piece in tangent.unbind(named)]


def joined(call: Call) -> Part:
    """``cat`` and ``stack`` along another dimension; a part that does not move adds zeros."""
    parts, named = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    named %= call.out.dim()
    found = {(call.dim(x), x.dim()) for x in parts if not call.still(x)}
    if len(found) != 1:
        return NotImplemented
    ((dim, dims),) = found
    stacks = call.op is aten.stack.default
    if dim is None or any(x.dim() != dims for x in parts) or (named == dim and not stacks):
        return NotImplemented
    pieces = [torch.zeros_like(call.cut(x, dim)) if call.still(x) else call.tangent(x) for x in parts]
    return call.op(pieces, named), dim + (stacks and named <= dim)


# ================================================================ the table itself


def _define(names: str, line: Line) -> None:
    for name in names.split():
        packet, _, overload = name.partition(".")
        if hasattr(aten, packet):
            found = getattr(aten, packet)
            for o in [overload] if overload else found.overloads():
                if hasattr(found, o):
                    ROWWISE[getattr(found, o)] = line


_define("alias clone contiguous neg _to_copy add sub rsub mul div where masked_fill native_dropout pow", placewise)
_define(" ".join(name for name in DIAGONAL if name not in ("_softmax", "log_sigmoid_forward")), placewise)
_define("mm.default addmm.default", product)
_define("bmm.default baddbmm.default", batched)
_define(FUSED, batched)
_define(
    "convolution avg_pool2d _adaptive_avg_pool2d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d "
    "reflection_pad2d replication_pad2d",
    leading,
)
_define("constant_pad_nd", padded)
_define("pixel_shuffle pixel_unshuffle", shuffled)
_define("native_layer_norm", layer_norm)
_define("native_group_norm", group_norm)
_define("_softmax _log_softmax", softmax)
_define("sum.dim_IntList mean.dim", summed)
_define("view.default _unsafe_view reshape squeeze unsqueeze", viewed)
_define("expand.default", expanded)
_define("permute.default transpose.int t.default", permuted)
_define("select.int", selected)
_define("slice.Tensor", sliced)
_define("split.Tensor split_with_sizes", split)
_define("unbind.int", unbound)
_define("cat.default stack.default", joined)
