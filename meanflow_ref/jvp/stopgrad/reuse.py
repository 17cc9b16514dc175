"""A recorded graph in less memory: tangents that nobody will read again are written over.

The rules return new tensors, since a rule cannot know who else holds its arguments. In a graph that is known: where
autograd is off, what an operation has just made and one other operation reads, that one may overwrite.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

aten: Any = torch.ops.aten

# An operation, and the method that leaves its result in the first operand.
_IN_PLACE: dict[Any, str] = {
    operator.mul: "mul_",
    operator.add: "add_",
    operator.sub: "sub_",
    operator.truediv: "div_",
    operator.neg: "neg_",
    torch.add: "add_",
    torch.sub: "sub_",
}
# Operations whose result is new memory, which no other tensor shares.
_NEW_MEMORY = frozenset(_IN_PLACE) | {
    torch.matmul,
    F.linear,
    aten.silu_backward,
    aten.gelu_backward,
    aten.sigmoid_backward,
    aten.tanh_backward,
    aten.threshold_backward,
    aten._softmax_backward_data,
}
# The same, of several results.
_SEVERAL = frozenset({aten.native_layer_norm_backward, aten.native_group_norm_backward})
_WRITE = frozenset({"setitem", "iadd", "isub", "imul", "itruediv"})
GRAD_MODE = torch._C._set_grad_enabled


def reuse_memory(graph: fx.Graph, *, grad_enabled: bool) -> int:
    """Rewrite ``a + b`` and the like to ``a.add_(b)``, where ``a`` is new memory that has no other reader.

    Args:
        graph: A graph of torch functions as Dynamo records it, changed in place.
        grad_enabled: Whether autograd is on where the graph begins.

    Returns:
        How many operations were rewritten.

    """
    rewritten = 0
    # What autograd has not seen: it neither records a write nor keeps what is written over.
    unseen: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is GRAD_MODE:
            grad_enabled = node.args[0]
        if grad_enabled:
            continue
        unseen.add(node)
        method = _IN_PLACE.get(node.target) if node.op == "call_function" else None
        if method is None or not _may_overwrite(node, unseen):
            continue
        node.op, node.target = "call_method", method
        rewritten += 1
    return rewritten


def _may_overwrite(node: fx.Node, unseen: set[fx.Node]) -> bool:
    """Whether the first operand is new memory, read here alone, and as large as the result."""
    first = node.args[0] if node.args and "out" not in node.kwargs else None
    return isinstance(first, fx.Node) and len(first.users) == 1 and _is_new(first, unseen) and _alike(first, node)


def name_of(node: fx.Node) -> str:
    """What an operation of a graph is called."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def writes(node: fx.Node) -> fx.Node | None:
    """What an operation writes into, by its name or its ``out``; None for most."""
    name = name_of(node)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in _WRITE
    written = node.args[0] if in_place and node.args else node.kwargs.get("out")
    return written if isinstance(written, fx.Node) else None


def _is_new(node: fx.Node, unseen: set[fx.Node]) -> bool:
    if node not in unseen:
        return False
    source = node.args[0] if node.args else None
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        # What writes into new memory returns it.
        return isinstance(source, fx.Node) and len(source.users) == 1 and _is_new(source, unseen)
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return source in unseen and isinstance(source, fx.Node) and source.target in _SEVERAL
    return node.target in _NEW_MEMORY


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes are tensors of one shape and dtype, as far as that is known without a new guard."""
    x, y = a.meta.get("example_value"), b.meta.get("example_value")
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return False
    return bool(x.dtype == y.dtype) and [str(n) for n in x.shape] == [str(n) for n in y.shape]
