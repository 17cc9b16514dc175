"""A recording in which only the first rows move: the value of all rows, the tangent of some.

The network is recorded twice in one graph, with the whole batch and with its first rows alone. Both halves are the same
operations in the same order. What ``u`` needs is taken from the first half. All else, the tangent pass, is taken from
the second, and reads the values in the first rows of the first half's: sizes are right, since they were recorded with
those rows, and nothing has to be known of any operation.

That is the derivative of a network that treats its rows alike and keeps them, the moving ones first, along one
dimension of each tensor. A graph does not tell whether it does: :mod:`meanflow_ref.jvp.stopgrad.traced` compares the
result with the dispatch form, which knows that operation by operation.
"""

from __future__ import annotations

import operator
from typing import Any

import sympy as sp
import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx

from meanflow_ref.jvp.stopgrad.reuse import GRAD_MODE, writes

# Arguments of the recorded function: of the whole batch, and of its first rows.
_PRIMALS, _TANGENTS, _SOME, _ALONG = (f"L['{name}']" for name in ("primals", "tangents", "some", "along"))
# torch.func.jvp of one operation. Its switches belong to the tangent pass, though they take nothing from it.
_LEVELS = {"_jvp_increment_nesting": 1, "_jvp_decrement_nesting": -1}
_SWITCHES = {*_LEVELS, "_enter_dual_level", "_exit_dual_level", "_set_fwd_grad_enabled", "_maybe_load_decompositions"}
_OF_FORWARD_MODE = _SWITCHES | {"_make_dual", "_unpack_dual", "_unwrap_for_grad", "_wrap_for_grad"}
_NUMBERS = (int, float, bool, SymInt, SymFloat, SymBool, torch.Size)
_RANDOM = ("rand", "dropout", "bernoulli", "normal", "poisson", "multinomial", "exponential", "cauchy", "geometric")


class NotAlike(Exception):
    """Why two halves of a graph cannot be made one."""


def merge_first_rows(graph: fx.Graph, *, grad_enabled: bool) -> None:
    """Make one of two halves, in place: ``u`` of the whole batch, ``du/dt`` of the first rows.

    Args:
        graph: A graph of torch functions as Dynamo records it, of a function of ``primals``, ``tangents``, ``some`` and
            ``along`` that returns ``u, du_dt`` of the first two and then those of the last two. Afterwards ``u`` stands
            in place of both values, the first rows' ``du_dt`` in place of both derivatives.
        grad_enabled: Whether autograd is on where the graph begins.

    Raises:
        NotAlike: If the halves are not the same operations, or it cannot be told what the first rows of a value are.

    """
    halves = _Halves(graph)
    output = next(node for node in graph.nodes if node.op == "output")
    results = output.args[0]
    if len(results) != 4 or [halves.twin.get(node) for node in results[2:]] != list(results[:2]):
        raise NotAlike("u or du/dt is no result of its operations.")
    u, _, _, du_dt = results
    kept = halves.of_value(u)
    taken = halves.of_tangent(du_dt, kept)
    halves.merge(kept, taken)
    output.args = ((u, du_dt, u, du_dt),)
    _end_grad_modes(graph, halves.whole[-1], output, grad_enabled)
    gone = {*halves.whole, *halves.part} - kept - taken
    for node in reversed(list(graph.nodes)):
        if node in gone or (node in halves.numbers and not node.users):
            graph.erase_node(node)
    graph.lint()


class _Halves:
    """The two halves of a graph.

    Attributes:
        whole: Operations on the whole batch, in order.
        part: The same on its first rows.
        given: Arguments, by name.
        twin: For each node of the second half, arguments included, the one of the first.
        numbers: Sizes, and what is made of them. They are in neither half: Dynamo makes one once for both.

    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.given = {_source(node): node for node in graph.nodes if node.op == "placeholder"}
        self.twin: dict[fx.Node, fx.Node] = {}
        for name, node in self.given.items():
            whole = name.replace(_SOME, _PRIMALS).replace(_ALONG, _TANGENTS)
            if whole != name and whole in self.given:
                self.twin[node] = self.given[whole]
        # But for the number of rows, sizes that are not fixed are the same in both halves.
        self.same = {
            _expression(n): _expression(m)
            for b, a in self.twin.items()
            if isinstance(_value(b), Tensor)
            for m, n in zip(_value(a).shape[1:], _value(b).shape[1:], strict=True)
            if isinstance(n, SymInt)
        }
        first = next(node for node in graph.nodes if node.op != "placeholder")
        for node in [node for node in graph.nodes if node.op == "get_attr"]:
            if node is not first:
                first.prepend(node)  # constants are there from the beginning
        calls = [node for node in graph.nodes if node.op.startswith("call") and node.target is not GRAD_MODE]
        self.numbers = {node for node in calls if isinstance(_value(node), _NUMBERS)}
        calls = [node for node in calls if node not in self.numbers]
        middle = len(calls) // 2
        self.whole, self.part = calls[:middle], calls[middle:]
        if len(self.whole) != len(self.part) or not self.part:
            raise NotAlike("it does other things with fewer rows.")
        for a, b in zip(self.whole, self.part, strict=True):
            if a.op != b.op or a.target != b.target or not self._alike((a.args, a.kwargs), (b.args, b.kwargs)):
                raise NotAlike("it does other things with fewer rows.")
            self.twin[b] = a
        for node in self.whole:
            module = getattr(node.target, "__module__", None) or ""
            if "_functorch" in module and _name(node) not in _OF_FORWARD_MODE:
                raise NotAlike("it has transforms of torch.func in it.")

    def _alike(self, a: Any, b: Any) -> bool:
        """Whether arguments are the other half's. Whole numbers may differ: sizes do."""
        if self._is_number(b):
            return self._is_number(a)
        if type(a) is not type(b):
            return False
        if isinstance(b, fx.Node):
            same_constant = b.op == a.op == "get_attr" and a.target == b.target
            return a is self.twin.get(b, b) or same_constant
        if isinstance(b, dict):
            a, b = list(a.items()), list(b.items())
        elif isinstance(b, slice):
            a, b = [a.start, a.stop, a.step], [b.start, b.stop, b.step]
        if isinstance(b, tuple | list):
            return len(a) == len(b) and all(map(self._alike, a, b))
        return bool(a == b)

    def _is_number(self, x: Any) -> bool:
        return type(x) is int or (isinstance(x, fx.Node) and isinstance(_value(x), _NUMBERS))

    def of_value(self, u: fx.Node) -> set[fx.Node]:
        """What is kept of the first half: all but what depends on a tangent, or is there for such alone."""
        moving = {n for name, n in self.given.items() if name.startswith(_TANGENTS) and isinstance(_value(n), Tensor)}
        for node in self.graph.nodes:
            if not moving.isdisjoint(node.all_input_nodes):
                moving.add(node)
        if u in moving:
            raise NotAlike("its value depends on a tangent.")
        kept: set[fx.Node] = set()
        read = {memory for node in (u, *self.graph.nodes) if node is u or _is_given(node) for memory in _memory(node)}
        candidates = {*self.whole, *self.numbers}
        for node in reversed(self.graph.nodes):
            if node not in candidates or node in moving or _name(node) in _SWITCHES:
                continue
            written = writes(node)
            if (
                node is u
                or not kept.isdisjoint(node.users)
                or any(word in _name(node) for word in _RANDOM)
                or (written and not read.isdisjoint(_memory(written)))
                or not (node.users or written or node in self.numbers or _may_be_left(node))
            ):
                kept.add(node)
                read.update(memory for x in node.all_input_nodes for memory in _memory(x))
        return kept

    def of_tangent(self, du_dt: fx.Node, kept: set[fx.Node]) -> set[fx.Node]:
        """What is taken of the second half; results of several tensors are ``kept`` with the parts that it reads."""
        whole, part, taken = set(self.whole), set(self.part), set[fx.Node]()
        needed, read = {du_dt}, set(_memory(du_dt))
        for b in reversed(self.part):
            written = writes(b)
            if not (
                b in needed
                or _name(b) in _SWITCHES
                or (written and self.twin[b] not in kept and not read.isdisjoint(_memory(written)))
            ):
                continue
            taken.add(b)
            inputs = list(b.all_input_nodes)
            for x in inputs:
                if x in whole and x not in kept:
                    raise NotAlike("it takes sizes from what it does with all rows.")
                if x in self.numbers:
                    inputs += x.all_input_nodes
                elif x in part and not self._is_value(x, kept):
                    needed.add(x)
                    read.update(_memory(x))
        return taken

    def _is_value(self, x: fx.Node, kept: set[fx.Node]) -> bool:
        """Whether a node of the second half is the first rows of a tensor that the first half has."""
        a = self.twin[x]
        if not isinstance(_value(a), Tensor):
            return False  # a size, which is the second half's own
        if a.target is operator.getitem and a.args[0] in kept:
            kept.add(a)
        return a in kept

    def merge(self, kept: set[fx.Node], taken: set[fx.Node]) -> None:
        """Put the tangent's operations beside those that they stood beside, on the first half's values."""
        mine, narrowed, level = set(self.part), dict[fx.Node, fx.Node](), 0
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        late = {node for node in self.numbers if order[node] > order[self.whole[-1]]}

        def connect(node: fx.Node, b: fx.Node) -> None:
            """Give a node of the second half its arguments, before ``b``."""
            for x in node.all_input_nodes:
                if x in late:
                    late.remove(x)
                    connect(x, b)
                    b.prepend(x)
                if x not in mine or x in taken:
                    continue
                value = self.twin[x]
                if value not in narrowed:
                    if level:
                        raise NotAlike("it computes values in a derivative of its own.")
                    with self.graph.inserting_before(b):
                        narrowed[value] = self._first_rows(value, x)
                node.replace_input_with(x, narrowed[value])

        for a, b in zip(self.whole, self.part, strict=True):
            level += _LEVELS.get(_name(a), 0)
            if level and a in kept:
                raise NotAlike("it computes values in a derivative of its own.")
            if b in taken:
                a.append(b)
                connect(b, b)

    def _first_rows(self, whole: fx.Node, part: fx.Node) -> fx.Node:
        """The first rows of a value, as many as the second half has there; all of what has none."""
        x, y = _value(whole), _value(part)
        sizes = [_expression(n) for n in x.shape], [_expression(n).subs(self.same) for n in y.shape]
        differ = [i for i, (m, n) in enumerate(zip(*sizes, strict=False)) if m != n]
        if x.dim() == y.dim() and not differ:
            return whole
        all_rows, rows = self._rows()
        batch, some = _expression(_value(all_rows).shape[0]), _expression(_value(rows).shape[0])
        if x.dim() != y.dim() or len(differ) != 1:
            raise NotAlike("its rows do not lie along one dimension.")
        (dim,) = differ
        if sp.expand(sizes[0][dim] * some - sizes[1][dim] * batch) != 0:
            raise NotAlike("it makes other numbers of rows.")
        size: Any = y.shape[dim]
        if isinstance(size, SymInt):
            places, of, wanted = (
                self.graph.call_method("size", (n, d)) for n, d in ((whole, dim), (all_rows, 0), (rows, 0))
            )
            product = self.graph.call_function(operator.mul, (places, wanted))
            size = self.graph.call_function(operator.floordiv, (product, of))
        return self.graph.call_method("narrow", (whole, dim, 0, size))

    def _rows(self) -> tuple[fx.Node, fx.Node]:
        """An argument of the whole batch, and its first rows."""
        for b, a in self.twin.items():
            if b.op == "placeholder" and isinstance(_value(b), Tensor):
                return a, b
        raise NotAlike("it has no argument with rows.")


def _end_grad_modes(graph: fx.Graph, last: fx.Node, output: fx.Node, at_first: bool) -> None:
    """Leave out the switches of the second half, and end in the mode of the beginning."""
    mode, over = at_first, False
    for node in list(graph.nodes):
        if node.target is GRAD_MODE:
            if over:
                graph.erase_node(node)
            else:
                mode = node.args[0]
        over = over or node is last
    if mode != at_first:
        with graph.inserting_before(output):
            graph.call_function(GRAD_MODE, (at_first,))


def _may_be_left(node: fx.Node) -> bool:
    """Whether an operation whose result nobody reads may go: one that is known to do nothing else."""
    return node.target == "detach" or getattr(node.target, "__module__", None) == "_operator"


def _is_given(node: fx.Node) -> bool:
    return node.op in ("placeholder", "get_attr")


def _memory(node: fx.Node) -> list[int]:
    """Which memory the tensors of a node lie in."""
    value = _value(node)
    values = value if isinstance(value, tuple | list) else (value,)
    return [_unwrapped(x).untyped_storage()._cdata for x in values if isinstance(x, Tensor)]


def _unwrapped(x: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return _unwrapped(torch._C._functorch.get_unwrapped(x)) if wrapped else x


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _value(node: fx.Node) -> Any:
    return node.meta.get("example_value")


def _source(node: fx.Node) -> str:
    """What Python calls an argument, as ``L['primals'][0]``."""
    argument = node.meta.get("grapharg")
    if argument is None:
        raise NotAlike("Dynamo does not say what its arguments are.")
    name: Any = argument.source.name
    return str(name() if callable(name) else name)


def _expression(size: int | SymInt) -> sp.Expr:
    return size.node.expr if isinstance(size, SymInt) else sp.Integer(size)
