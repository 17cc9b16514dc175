"""A traced loss, executed over exact numbers.

Tensors are views into storages, as in torch: a view shares its storage with what it was taken from, and an operation in
place writes into it. Which tensors share a storage, and with which strides, is read from the trace, so that no view
operation is imitated here. Every other operation is looked up in a table of meanings; one that has none is refused,
unless random draws alone feed it: then its results are new symbols, the same for the same arguments.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from meanflow_ref.kit.prove import draws, elementwise, shaping
from meanflow_ref.kit.prove.elementwise import require_real
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.functions import read_constant
from meanflow_ref.kit.prove.jets import Site, Sites
from meanflow_ref.kit.prove.network import NAMESPACE
from meanflow_ref.kit.prove.ring import Number, Ring
from meanflow_ref.kit.prove.table import FLOATS, MEANINGS, Array, Call, cast
from meanflow_ref.kit.prove.trace import VALUE_ASKED, WHERE, Traced

# Importing them fills the table.
FILLED_BY = (draws, elementwise, shaping)
# Checks that torch makes for itself; nothing depends on their answers.
BOOKKEEPING = {"aten.is_same_size", "aten._has_same_storage_numel", "aten._is_zerotensor", "aten.sym_size"}
INDEXING = {"aten.index", "aten.index_put", "aten._unsafe_index_put", "aten.index_put_"}
# Arithmetic by torch's own decompositions, of one dtype throughout.
PRIMITIVES = {f"prims.{name}": f"aten.{name}" for name in ("add", "sub", "mul", "neg", "where", "sin", "cos", "exp")}
# Share their input's storage although their schema does not say so.
ALIASING = {"aten._unsafe_view", "aten.lift_fresh"}


@dataclass(frozen=True)
class Constant:
    """A number that was baked into the trace, and where."""

    text: str
    where: str


@dataclass
class Outcome:
    """What the loss computes: exact value and gradient, and what they are made of."""

    ring: Ring
    inputs: dict[str, Array]
    theta: Number
    value: Number
    gradient: Number | None
    sites: Sites
    calls: list[list[Site]]
    operations: dict[str, int]
    constants: list[Constant]


@dataclass
class Executor:
    """One run of a traced graph."""

    ring: Ring
    sites: Sites
    module: fx.GraphModule
    storages: dict[int, Array] = field(default_factory=dict)
    dtypes: dict[int, torch.dtype] = field(default_factory=dict)
    calls: list[list[Site]] = field(default_factory=list)
    operations: dict[str, int] = field(default_factory=dict)
    constants: dict[Constant, None] = field(default_factory=dict)

    def run(self, inputs: Sequence[Array]) -> list[Number]:
        """The graph's outputs as exact numbers, for the placeholders' values."""
        waiting = list(inputs)
        for node in self.module.graph.nodes:
            try:
                if node.op == "placeholder":
                    self._store(node.meta["val"], waiting.pop(0))
                elif node.op == "get_attr":
                    self._bake(node)
                elif node.op == "call_function":
                    self._execute(node)
                elif node.op == "output":
                    return [self._scalar(out) for out in _flat(node.args[0])]
            except NotExactError as error:
                raise NotExactError(error.reason, error.where or node.meta.get(WHERE, "")) from error
        raise AssertionError("a graph without output")

    # ------------------------------------------------------------ storages

    def view(self, node: fx.Node) -> Array:
        """The current entries of a node's tensor."""
        return self._strided(node.meta["val"])

    def _strided(self, val: Tensor) -> Array:
        storage = self.storages[_storage(val)]
        if val.dtype != self.dtypes[_storage(val)]:
            raise NotExactError(f"the bits of {self.dtypes[_storage(val)]} are read as {val.dtype}")
        item = storage.itemsize
        return np.lib.stride_tricks.as_strided(
            storage[val.storage_offset() :], val.shape, [stride * item for stride in val.stride()]
        )

    def _store(self, val: Tensor, array: Array) -> None:
        """Give a tensor that is new its storage and entries."""
        if _storage(val) not in self.storages:
            size = max(val.untyped_storage().nbytes() // val.element_size(), 1)
            self.storages[_storage(val)] = np.empty(size, dtype=object)
            self.dtypes[_storage(val)] = val.dtype
        self._strided(val)[...] = array

    def _scalar(self, node: fx.Node) -> Number:
        (number,) = self.view(node).reshape(-1)
        if not isinstance(number, Number):
            raise NotExactError("memory is read that was never written")
        return number

    # ------------------------------------------------------------ operations

    def _bake(self, node: fx.Node) -> None:
        value = getattr(self.module, str(node.target))
        if isinstance(value, torch.Generator) or "Generator" in type(value).__name__:
            return
        if not isinstance(value, Tensor):
            raise NotExactError(f"a constant of type {type(value).__name__}")
        require_real(Call(self.ring, "a constant", tuple(value.shape), value.dtype))
        node.meta.setdefault("val", value)
        array = np.empty(tuple(value.shape), dtype=object)
        for index in np.ndindex(*array.shape):
            entry = value[index].item()
            precise = value.dtype != torch.float32
            array[index] = (
                read_constant(self.ring, entry, precise) if isinstance(entry, float) else self.ring.constant(int(entry))
            )
        self._note(", ".join(map(str, array.reshape(-1)[:8])) + (", ..." if array.size > 8 else ""), node)
        self._store(node.meta["val"], array)

    def _note(self, text: str, node: fx.Node) -> None:
        self.constants.setdefault(Constant(text, node.meta.get(WHERE, "")))

    def _execute(self, node: fx.Node) -> None:
        name = _name(node.target)
        if name in BOOKKEEPING or node.target is operator.getitem:
            return
        self.operations[name] = self.operations.get(name, 0) + 1
        if name.startswith(NAMESPACE):
            self._network(name.split(".")[1], node)
            return
        self._note_numbers(node)
        outputs = [val for val in _flat(node.meta.get("val")) if isinstance(val, Tensor)]
        if not outputs:
            what = (
                f"{VALUE_ASKED}: .item() or a Python branch on data" if "scalar" in name else f"`{name}` has no tensor"
            )
            raise NotExactError(what)
        schema = node.target._schema  # type: ignore[union-attr]
        if schema.is_mutable:
            self._write_in_place(name, node, outputs)
        elif _storage(outputs[0]) in self.storages:
            if name not in ALIASING and not any(value.alias_info is not None for value in schema.returns):
                raise NotExactError(f"`{name}` returns a tensor that it does not own")
        else:
            for val, array in zip(outputs, self._results(name, node, outputs), strict=True):
                self._store(val, array)

    def _write_in_place(self, name: str, node: fx.Node, outputs: list[Tensor]) -> None:
        target = node.args[0]
        if not name.endswith("_") or not isinstance(target, fx.Node) or len(outputs) != 1:
            raise NotExactError(f"`{name}` writes in place")
        (result,) = self._results(name, node, outputs)
        destination = self.view(target)
        broadcast = np.broadcast_to(
            cast(self._call(name, node, outputs[0]), result, outputs[0].dtype), destination.shape
        )
        if 0 in [s for s, n in zip(destination.strides, destination.shape, strict=True) if n > 1]:
            raise NotExactError(f"`{name}` writes into an expanded tensor")
        destination[...] = broadcast.copy()

    def _call(self, name: str, node: fx.Node, val: Tensor) -> Call:
        mask = name in INDEXING and any(
            isinstance(n, fx.Node) and n.meta["val"].dtype == torch.bool for n in _flat(node.args[1])
        )
        return Call(self.ring, name, tuple(val.shape), val.dtype, mask)

    def _results(self, name: str, node: fx.Node, outputs: list[Tensor]) -> list[Array]:
        call = self._call(name, node, outputs[0])
        for val in outputs:
            require_real(Call(self.ring, name, tuple(val.shape), val.dtype))
        args = _mapped(node.args, self._entries)
        kwargs = _mapped(node.kwargs, self._entries)
        found = MEANINGS.get(name) or MEANINGS.get(name.removesuffix("_")) or MEANINGS.get(PRIMITIVES.get(name, ""))
        try:
            if found is None:
                raise NotExactError(f"`{name}` has no exact meaning here")
            result = found(call, *args, **kwargs)
        except NotExactError:
            # An operation that draws would be frozen at one draw.
            if torch.Tag.nondeterministic_seeded in node.target.tags or not self._fed_by_draws_alone(node):  # type: ignore[union-attr]
                raise
            return self._new_symbols(name, node, outputs)
        except TypeError as error:
            raise NotExactError(f"`{name}` with these arguments has no exact meaning here ({error})") from error
        return [result] if isinstance(result, np.ndarray) else list(result)

    def _entries(self, node: fx.Node) -> Any:
        return self.view(node) if isinstance(node.meta.get("val"), Tensor) else None

    def _note_numbers(self, node: fx.Node) -> None:
        for value in _flat((node.args, node.kwargs)):
            # Exponents and signs say nothing that the formula does not.
            if isinstance(value, float) and math.isfinite(value) and value not in (-1.0, 0.0, 1.0, 2.0):
                self._note(str(read_constant(self.ring, value)), node)

    # ------------------------------------------------------------ what only random draws feed

    def _fed_by_draws_alone(self, node: fx.Node) -> bool:
        arrays = [self.view(n) for n in _flat((node.args, node.kwargs)) if _is_tensor_node(n)]
        numbers = [number for array in arrays for number in array.reshape(-1)]
        return all(isinstance(x, Number) and x.kinds() <= {"draw", "mask"} for x in numbers)

    def _new_symbols(self, name: str, node: fx.Node, outputs: list[Tensor]) -> list[Array]:
        """The results of an operation on random draws as symbols, or on constants as constants."""
        arrays = [self.view(n).copy() for n in _flat((node.args, node.kwargs)) if _is_tensor_node(n)]
        arguments = tuple(number for array in arrays for number in array.reshape(-1))
        concrete = node.target(  # type: ignore[operator]
            *_mapped(node.args, self._concrete), **_mapped(node.kwargs, self._concrete)
        )
        plain = _mapped((node.args, node.kwargs), lambda n: tuple(n.meta["val"].shape))
        text = f"{node.target}{plain}"
        symbols = []
        for k, (val, values) in enumerate(zip(outputs, _flat(concrete), strict=True)):
            array = np.empty(tuple(val.shape), dtype=object)
            for index in np.ndindex(*array.shape):
                array[index] = self._new_symbol(f"{text}[{k}]{index}", arguments, val.dtype, values[index].item())
            symbols.append(array)
        return symbols

    def _new_symbol(self, name: str, arguments: tuple[Number, ...], dtype: torch.dtype, value: float | int) -> Number:
        exact = read_constant(self.ring, value) if isinstance(value, float) else self.ring.constant(int(value))
        if all(number.as_constant() is not None for number in arguments):
            return exact
        if dtype == torch.bool:
            return self.ring.function(name, arguments, lambda *_: int(value), kind="mask")
        law = "" if dtype in FLOATS else "integer"
        return self.ring.function(name, arguments, lambda *_: exact.value(), kind="opaque", law=law)

    def _concrete(self, node: fx.Node) -> Tensor:
        return draws.evaluated(self.view(node), node.meta["val"].dtype)

    # ------------------------------------------------------------ the network

    def _network(self, operation: str, node: fx.Node) -> None:
        z, r, t, y, theta, *rest = (self.view(n) for n in node.args)  # type: ignore[arg-type]
        r, t = r.reshape(-1), t.reshape(-1)
        row_sites = []
        for b in range(z.shape[0]):
            label = tuple(y[b : b + 1].reshape(-1))
            row_sites.append(self.sites.at(tuple(z[b].reshape(-1)), r[b], t[b], label, theta[0]))
        if row_sites not in self.calls:
            self.calls.append(row_sites)
        result = NETWORK[operation](self.ring, row_sites, rest)
        outputs = _flat(node.meta["val"])
        arrays = [result] if len(outputs) == 1 else list(result)
        for val, array in zip(outputs, arrays, strict=True):
            self._store(val, array.reshape(tuple(val.shape)))


# ---------------------------------------------------------------- the five operations of the network


def _direction(row: int, parts: Sequence[Array]) -> list[Number]:
    """A row's vector in the space of inputs, from its parts in z, r, t and theta."""
    z, r, t, theta = parts
    return [*z[row].reshape(-1), r.reshape(-1)[row], t.reshape(-1)[row], theta[0]]


def _value(ring: Ring, rows: list[Site], rest: Sequence[Array]) -> Array:
    return np.array([[site.u(i) for i in range(site.dim)] for site in rows], dtype=object)


def _along(ring: Ring, rows: list[Site], rest: Sequence[Array]) -> Array:
    out = np.empty((len(rows), rows[0].dim), dtype=object)
    for b, site in enumerate(rows):
        a = [(k, x) for k, x in enumerate(_direction(b, rest)) if x.terms]
        for i in range(site.dim):
            out[b, i] = _total(ring, (site.du(i, k) * x for k, x in a))
    return out


def _along_twice(ring: Ring, rows: list[Site], rest: Sequence[Array]) -> Array:
    out = np.empty((len(rows), rows[0].dim), dtype=object)
    for b, site in enumerate(rows):
        first = [(k, x) for k, x in enumerate(_direction(b, rest[:4])) if x.terms]
        second = [(k, x) for k, x in enumerate(_direction(b, rest[4:])) if x.terms]
        for i in range(site.dim):
            out[b, i] = _total(ring, (site.d2u(i, k, m) * x * y for k, x in first for m, y in second))
    return out


def _against(ring: Ring, rows: list[Site], rest: Sequence[Array]) -> list[Array]:
    return _transposed(ring, rows, rest[0], lambda b, site, i, k: site.du(i, k))


def _along_against(ring: Ring, rows: list[Site], rest: Sequence[Array]) -> list[Array]:
    def derivative(b: int, site: Site, i: int, k: int) -> Number:
        a = enumerate(_direction(b, rest[:4]))
        return _total(ring, (site.d2u(i, k, m) * x for m, x in a if x.terms))

    return _transposed(ring, rows, rest[4], derivative)


def _transposed(
    ring: Ring, rows: list[Site], g: Array, derivative: Callable[[int, Site, int, int], Number]
) -> list[Array]:
    """``sum_i g_i derivative_{i,k}`` for every input k, gathered into z, r, t and the shared theta."""
    d, inputs = rows[0].dim, rows[0].inputs
    out = np.empty((len(rows), inputs), dtype=object)
    for b, site in enumerate(rows):
        weights = [(i, x) for i, x in enumerate(g[b].reshape(-1)) if x.terms]
        for k in range(inputs):
            out[b, k] = _total(ring, (derivative(b, site, i, k) * x for i, x in weights))
    theta = np.array([_total(ring, out[:, d + 2])], dtype=object)
    return [out[:, :d], out[:, d], out[:, d + 1], theta]


def _total(ring: Ring, numbers: Any) -> Number:
    total = ring.constant(0)
    for number in numbers:
        total = total + number
    return total


NETWORK: dict[str, Callable[[Ring, list[Site], Sequence[Array]], Any]] = {
    "u": _value,
    "du": _along,
    "vu": _against,
    "d2": _along_twice,
    "d2v": _along_against,
}


# ---------------------------------------------------------------- helpers


def _storage(val: Tensor) -> int:
    return int(val.untyped_storage()._cdata)


def _name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(packet) if packet is not None else getattr(target, "__name__", str(target))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flat(part)]
    return [item for part in value.values() for item in _flat(part)] if isinstance(value, dict) else [value]


def _is_tensor_node(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _mapped(arguments: Any, read: Callable[[fx.Node], Any]) -> Any:
    """Arguments with every node replaced, as plain lists, tuples and dictionaries."""
    if isinstance(arguments, fx.Node):
        return read(arguments)
    if isinstance(arguments, list | tuple):
        return (
            type(arguments)(_mapped(item, read) for item in arguments)
            if type(arguments) in (list, tuple)
            else [_mapped(item, read) for item in arguments]
        )
    if isinstance(arguments, dict):
        return {name: _mapped(item, read) for name, item in arguments.items()}
    return arguments


def execute(traced: Traced, inputs: dict[str, Array], ring: Ring) -> Outcome:
    """Execute a traced loss for given exact inputs (those of the network's parameter are made here)."""
    theta = np.array([ring.symbol("theta", "network")], dtype=object)
    executor = Executor(ring, Sites(ring), traced.module)
    value, *slopes = executor.run([theta, *inputs.values()])
    gradient = slopes[0] if slopes else None
    return Outcome(
        ring,
        inputs,
        theta.item(),
        value,
        gradient,
        executor.sites,
        executor.calls,
        executor.operations,
        list(executor.constants),
    )
