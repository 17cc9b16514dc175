"""A recording in which only the first rows move: the value of all rows, the tangent of some.

The network is recorded twice in one graph, with the whole batch and with its first rows alone. Both halves are the same
operations in the same order. What ``u`` needs is taken from the first half. All else, the tangent pass, is taken from
the second, and reads the values in the first rows of the first half's: sizes are right, since they were recorded with
those rows, and nothing has to be known of any operation.

That is the derivative of a network that treats its rows alike and keeps them, the moving ones first, along one
dimension of each tensor. So both halves are run once, the first with tangents that are 0 beyond the first rows. Each
value of the second half that moves, or that a tangent reads, must be the first rows of the first half's, relative to
its own size: a batch's mean is found out however small what is made of it. Each tangent must be too, and beyond those
rows the first half's must be 0: so is a sum over earlier rows. What is drawn or written is seen in the same run.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import sympy as sp
import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx
from torch.utils import _pytree as pytree

from meanflow_ref.jvp.stopgrad.rehearsal import NotRecorded, State, distance, same_numbers, tolerance
from meanflow_ref.jvp.stopgrad.reuse import GRAD_MODE, name_of, writes

# Arguments of the recorded function: of the whole batch, and of its first rows.
_PRIMALS, _TANGENTS, _SOME, _ALONG = (f"L['{name}']" for name in ("primals", "tangents", "some", "along"))
# torch.func.jvp of one operation. Its switches belong to the tangent pass, though they take nothing from it.
_LEVELS = {"_jvp_increment_nesting": 1, "_jvp_decrement_nesting": -1}
_SWITCHES = {*_LEVELS, "_enter_dual_level", "_exit_dual_level", "_set_fwd_grad_enabled", "_maybe_load_decompositions"}
_OF_FORWARD_MODE = _SWITCHES | {"_make_dual", "_unpack_dual", "_unwrap_for_grad", "_wrap_for_grad"}
_NUMBERS = (int, float, bool, SymInt, SymFloat, SymBool, torch.Size)
# Operations that take sizes and places, which differ with the rows. In others a number of the batch would count.
_OF_SHAPE = """view reshape view_as reshape_as expand expand_as broadcast_to repeat repeat_interleave tile flatten
unflatten unfold fold narrow select getitem __getitem__ setitem split split_with_sizes chunk tensor_split unbind
index_select roll pad interpolate upsample arange zeros ones empty rand randn new_zeros new_ones new_empty
native_group_norm native_group_norm_backward group_norm as_strided permute transpose movedim size""".split()  # noqa: SIM905
_FILLED = ("full", "new_full", "randint")  # of a shape, with a number
_OTHER = "it does other things with fewer rows."


class FirstRows:
    """A graph of both halves.

    Args:
        module: Torch functions as Dynamo records them, of a function of ``primals``, ``tangents``, ``some`` and
            ``along`` that returns ``u, du_dt`` of the first two and then those of the last two.

    Attributes:
        whole: Operations on the whole batch, in order.
        part: The same on its first rows.
        given: Arguments, by name.
        twin: For each node of the second half, arguments included, the one of the first.
        numbers: Sizes, and what is made of them. They are in neither half: Dynamo makes one once for both.

    Raises:
        NotRecorded: If the halves are not the same operations.

    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        # Dynamo takes them away when it is done.
        self.values = {node: node.meta.get("example_value") for node in self.graph.nodes}
        self.given = {_source(node): node for node in self.graph.nodes if node.op == "placeholder"}
        self.twin: dict[fx.Node, fx.Node] = {}
        for name, node in self.given.items():
            whole = name.replace(_SOME, _PRIMALS).replace(_ALONG, _TANGENTS)
            if whole != name and whole in self.given:
                self.twin[node] = self.given[whole]
        # But for the number of rows, sizes that are not fixed are the same in both halves.
        self.same = {
            _expression(n): _expression(m)
            for b, a in self.twin.items()
            if isinstance(self.values[b], Tensor)
            for m, n in zip(self.values[a].shape[1:], self.values[b].shape[1:], strict=True)
            if isinstance(n, SymInt)
        }
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        for node in [node for node in self.graph.nodes if node.op == "get_attr"]:
            if node is not first:
                first.prepend(node)  # constants are there from the beginning
        calls = [node for node in self.graph.nodes if node.op.startswith("call") and node.target is not GRAD_MODE]
        self.numbers = {node for node in calls if isinstance(self.values[node], _NUMBERS)}
        calls = [node for node in calls if node not in self.numbers]
        middle = len(calls) // 2
        self.whole, self.part = calls[:middle], calls[middle:]
        self._pair_off()
        output = next(node for node in self.graph.nodes if node.op == "output")
        results = output.args[0]
        if len(results) != 4 or [self.twin.get(node) for node in results[2:]] != list(results[:2]):
            raise NotRecorded("u or du/dt is no result of its operations.")
        self.output, self.u, self.du_dt = output, results[0], results[3]

    def _pair_off(self) -> None:
        if len(self.whole) != len(self.part) or not self.part:
            raise NotRecorded(_OTHER)
        for a, b in zip(self.whole, self.part, strict=True):
            sized = "tuples" if name_of(a) in _FILLED else name_of(a) in _OF_SHAPE
            if a.op != b.op or a.target != b.target or not self._alike((a.args, a.kwargs), (b.args, b.kwargs), sized):
                raise NotRecorded(_OTHER)
            self.twin[b] = a
        for node in self.whole:
            module = getattr(node.target, "__module__", None) or ""
            if "_functorch" in module and name_of(node) not in _OF_FORWARD_MODE:
                raise NotRecorded("it has transforms of torch.func in it.")

    def _alike(self, a: Any, b: Any, sized: bool | str) -> bool:
        """Whether arguments are the other half's; numbers may differ where they are sizes."""
        if self._is_number(a) and self._is_number(b):
            return sized is True or self._expressions(a) == [x.subs(self.same) for x in self._expressions(b)]
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
            sized = True if sized == "tuples" and all(map(self._is_number, b)) else sized
            return len(a) == len(b) and all(self._alike(x, y, sized) for x, y in zip(a, b, strict=True))
        return bool(a == b)

    def _is_number(self, x: Any) -> bool:
        return type(x) is int or (isinstance(x, fx.Node) and isinstance(self.values.get(x), _NUMBERS))

    def _expressions(self, x: Any) -> list[sp.Basic]:
        value = self.values[x] if isinstance(x, fx.Node) else x
        return [_expression(n) for n in (value if isinstance(value, torch.Size) else (value,))]

    def merge(self, arguments: Sequence[Any], *, grad_enabled: bool) -> None:
        """Run both halves, and make the graph one: ``u`` of the whole batch, ``du/dt`` of the first rows.

        ``u`` then stands in place of both values, the first rows' ``du_dt`` in place of both derivatives.

        Args:
            arguments: What the graph is given. Afterwards they are as before, random generators too.
            grad_enabled: Whether autograd is on where the graph begins.

        Raises:
            NotRecorded: If a value of some rows is not the first rows of the batch's.

        """
        state = State(None, [x for x in arguments if isinstance(x, Tensor)])
        arguments = self._with_still_rows(arguments)
        self.seen = _Seen(self, state)  # where it ran well it goes, with all values
        try:
            self.seen.run(*arguments)
        finally:
            state.put_back()
        kept = self._of_value()
        taken = self._of_tangent(kept)
        self._compare(kept, taken)
        self._put_together(kept, taken)
        self.output.args = ((self.u, self.du_dt, self.u, self.du_dt),)
        _end_grad_modes(self.graph, self.whole[-1], self.output, grad_enabled)
        gone = {*self.whole, *self.part} - kept - taken
        for node in reversed(list(self.graph.nodes)):
            if node in gone or (node in self.numbers and not node.users):
                self.graph.erase_node(node)
            else:
                node.meta["example_value"] = self.values.get(node)
        self.graph.lint()
        del self.seen

    def _with_still_rows(self, arguments: Sequence[Any]) -> list[Any]:
        """Arguments in which the whole batch's tangents are 0 beyond the first rows."""
        given = dict(zip(self.given, arguments, strict=True))
        for name, x in list(given.items()):
            if name.startswith(_ALONG) and isinstance(x, Tensor):
                whole = name.replace(_ALONG, _TANGENTS)
                given[whole] = given[whole].detach().clone()
                given[whole][len(x) :] = 0
        return list(given.values())

    def _reached(self, names: Sequence[str], past: frozenset[Any] = frozenset()) -> set[fx.Node]:
        """What depends on tensors given by such names, not by way of operations of ``past``."""
        reached = {
            node
            for name, node in self.given.items()
            if name.startswith(tuple(names)) and isinstance(self.values[node], Tensor)
        }
        for node in self.graph.nodes:
            if node.target not in past and not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return reached

    def _of_value(self) -> set[fx.Node]:
        """What is kept of the first half: all but what depends on a tangent, or is there for such alone."""
        moving = self._reached([_TANGENTS])
        if self.u in moving:
            raise NotRecorded("its value depends on a tangent.")
        kept: set[fx.Node] = set()
        given = [node for node in self.graph.nodes if node.op in ("placeholder", "get_attr")]
        read = {memory for node in (self.u, *given) for memory in self.memory(node)}
        candidates = {*self.whole, *self.numbers}
        for node in reversed(self.graph.nodes):
            if node not in candidates or node in moving or name_of(node) in _SWITCHES:
                continue
            written = self.seen.written.get(node, set())
            if (
                node is self.u
                or not kept.isdisjoint(node.users)
                or node in self.seen.drawn
                or not read.isdisjoint(written)
                or not (node.users or written or node in self.numbers or _may_be_left(node))
            ):
                kept.add(node)
                read.update(memory for x in node.all_input_nodes for memory in self.memory(x))
        return kept

    def _of_tangent(self, kept: set[fx.Node]) -> set[fx.Node]:
        """What is taken of the second half; results of several tensors are ``kept`` with the parts that it reads."""
        whole, part, taken = set(self.whole), set(self.part), set[fx.Node]()
        needed, read = {self.du_dt}, set(self.memory(self.du_dt))
        for b in reversed(self.part):
            written = self.seen.written.get(b, set())
            if not (
                b in needed or name_of(b) in _SWITCHES or (self.twin[b] not in kept and not read.isdisjoint(written))
            ):
                continue
            taken.add(b)
            inputs = list(b.all_input_nodes)
            for x in inputs:
                if x in whole and x not in kept:
                    raise NotRecorded("it takes sizes from what it does with all rows.")
                if x in self.numbers:
                    inputs += x.all_input_nodes
                elif x in part and not self._is_value(x, kept):
                    needed.add(x)
                    read.update(self.memory(x))
        return taken

    def _is_value(self, x: fx.Node, kept: set[fx.Node]) -> bool:
        """Whether a node of the second half is the first rows of a tensor that the first half has."""
        a = self.twin[x]
        if not isinstance(self.values[a], Tensor):
            return False  # several tensors
        if a.target is operator.getitem and a.args[0] in kept:
            kept.add(a)
        return a in kept

    def _compare(self, kept: set[fx.Node], taken: set[fx.Node]) -> None:
        """Hold values that move, and those that a tangent reads, against the first rows of the batch's."""
        moved = [name for name in self.given if name.replace(_PRIMALS, _TANGENTS) in self.given]
        mobile = self._reached([name for name in moved if name.startswith(_PRIMALS)], frozenset({"detach"}))
        read = {x for b in taken for x in b.all_input_nodes if x in self.twin}
        tangents = self._reached([_ALONG])
        read_as_value = {b for b in taken if b not in tangents}
        for b in self.part:
            a = self.twin[b]
            if a not in kept or not (a in mobile or b in read):
                continue
            for x, y in zip(self.seen.tensors(a), self.seen.tensors(b), strict=True):
                rows = self.seen.first_rows(x, y)
                if rows is None:
                    raise NotRecorded("it makes other numbers of rows.")
                if not y.is_floating_point() and not y.is_complex():
                    alike = b not in read or same_numbers(rows, y)
                else:
                    alike = distance(rows, y.detach()) <= tolerance(y)
                if not alike:
                    raise NotRecorded("rows of the batch are not treated alike, or do not come first.")
        for b in taken - read_as_value:
            for x, y in zip(self.seen.tensors(self.twin[b]), self.seen.tensors(b), strict=True):
                rows = self.seen.first_rows(x, y)
                # A tangent of the first rows, and none of the others.
                if rows is None or not distance(rows, y.detach()) <= tolerance(y) or _count(x) != _count(rows):
                    raise NotRecorded("tangents of some rows reach others.")

    def _put_together(self, kept: set[fx.Node], taken: set[fx.Node]) -> None:
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
                        raise NotRecorded("it computes values in a derivative of its own.")
                    with self.graph.inserting_before(b):
                        narrowed[value] = self._first_rows(value, x)
                node.replace_input_with(x, narrowed[value])

        for a, b in zip(self.whole, self.part, strict=True):
            level += _LEVELS.get(name_of(a), 0)
            if level and a in kept:
                raise NotRecorded("it computes values in a derivative of its own.")
            if b in taken:
                a.append(b)
                connect(b, b)

    def _first_rows(self, whole: fx.Node, part: fx.Node) -> fx.Node:
        """The first rows of a value, as many as the second half has there; all of what has none."""
        x, y = self.values[whole], self.values[part]
        sizes = [_expression(n) for n in x.shape], [_expression(n).subs(self.same) for n in y.shape]
        differ = [i for i, (m, n) in enumerate(zip(*sizes, strict=False)) if m != n]
        if x.dim() == y.dim() and not differ:
            return whole
        all_rows, rows = self._rows()
        batch, some = _expression(self.values[all_rows].shape[0]), _expression(self.values[rows].shape[0])
        if x.dim() != y.dim() or len(differ) != 1:
            raise NotRecorded("its rows do not lie along one dimension.")
        (dim,) = differ
        if sp.expand(sizes[0][dim] * some - sizes[1][dim] * batch) != 0:
            raise NotRecorded("it makes other numbers of rows.")
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
            if b.op == "placeholder" and isinstance(self.values[b], Tensor):
                return a, b
        raise NotRecorded("it has no argument with rows.")

    def memory(self, node: fx.Node) -> list[int]:
        """Which memory the tensors of a node lie in."""
        value = self.values.get(node)
        values = value if isinstance(value, tuple | list) else (value,)
        return [_unwrapped(x).untyped_storage()._cdata for x in values if isinstance(x, Tensor)]


class _Seen(fx.Interpreter):
    """One run of both halves.

    Attributes:
        drawn: Operations of the first half that draw random numbers, with what they drew.
        written: Memory that an operation writes into.

    """

    def __init__(self, halves: FirstRows, state: State) -> None:
        super().__init__(halves.module, garbage_collect_values=False)
        self.halves, self.state = halves, state
        self.whole, self.second = set(halves.whole), halves.part[0]
        self.drawn: dict[fx.Node, list[Tensor]] = {}
        self.written: dict[fx.Node, set[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node, with an eye on generators and on what it was given."""
        if n is self.second:
            self.state.put_back()  # the first rows find what the batch found
        if not n.op.startswith("call") or n in self.halves.numbers:
            return super().run_node(n)
        inputs = [(x, tensor, self._mark(x, tensor)) for x in n.all_input_nodes for tensor in self.tensors(x)]
        before = self.state.generators()
        out = super().run_node(n)
        self.env[n] = out
        changed = [x for x, tensor, mark in inputs if self._changed(tensor, mark)]
        named = [x] if (x := writes(n)) is not None else []
        self.written[n] = {memory for x in (*changed, *named) for memory in self.halves.memory(x)}
        if n in self.whole and not all(map(torch.equal, before, self.state.generators())):
            self.drawn[n] = [x.detach().clone() for x in self.tensors(n)]
        twin = self.halves.twin.get(n)
        if twin is not None and twin in self.drawn:
            with torch.no_grad():
                for all_rows, y in zip(self.drawn[twin], self.tensors(n), strict=True):
                    rows = self.first_rows(all_rows, y)
                    if rows is not None:
                        y.copy_(rows)
        return out

    def tensors(self, node: fx.Node) -> list[Tensor]:
        """The tensors that a node made."""
        return [x for x in pytree.tree_leaves(self.env.get(node)) if isinstance(x, Tensor) and not _wrapped(x)]

    def first_rows(self, x: Tensor, y: Tensor) -> Tensor | None:
        """As much of ``x`` as ``y`` has; None where that is not rows of it."""
        differ = [i for i, (m, n) in enumerate(zip(x.shape, y.shape, strict=False)) if m != n]
        if x.dim() != y.dim() or len(differ) > 1 or any(x.shape[i] < y.shape[i] for i in differ):
            return None
        return x.detach().narrow(differ[0], 0, y.shape[differ[0]]) if differ else x.detach()

    def _mark(self, node: fx.Node, x: Tensor) -> Any:
        """What tells whether a tensor was written into: kernels of norms do not say that they write statistics."""
        parameter = isinstance(x, torch.nn.Parameter)
        return x._version, x.detach().clone() if node.op == "placeholder" and not parameter else None

    def _changed(self, x: Tensor, mark: Any) -> bool:
        version, value = mark
        return x._version != version or (value is not None and not same_numbers(x.detach(), value))


def _count(x: Tensor) -> int:
    return int(x.detach().count_nonzero())


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


def _wrapped(x: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def _unwrapped(x: Tensor) -> Tensor:
    """The tensor inside the wrappers of torch.func."""
    return _unwrapped(torch._C._functorch.get_unwrapped(x)) if _wrapped(x) else x


def _source(node: fx.Node) -> str:
    """What Python calls an argument, as ``L['primals'][0]``."""
    argument = node.meta.get("grapharg")
    if argument is None:
        raise NotRecorded("Dynamo does not say what its arguments are.")
    name: Any = argument.source.name
    return str(name() if callable(name) else name)


def _expression(size: Any) -> sp.Basic:
    return size.node.expr if isinstance(size, SymInt | SymFloat | SymBool) else sp.sympify(size)
