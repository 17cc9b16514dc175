"""In-place operations and ``out=``: the tangent of what is written, by the rule of the operation that returns it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad.operation import any_moves, tangent_of_operation
from meanflow_ref.jvp.stopgrad.table import Op
from meanflow_ref.jvp.stopgrad.tangents import Tangents

aten = torch.ops.aten

# What they write does not depend on a tensor that could move.
_WRITES_CONSTANTS = frozenset(
    getattr(packet, overload)
    for packet in (aten.zero_, aten.fill_, aten.normal_, aten.uniform_, aten.exponential_, aten.random_, aten.cauchy_,
                   aten.log_normal_, aten.geometric_, aten.bernoulli_)
    for overload in packet.overloads()  # type: ignore[no-untyped-call]
    if overload not in ("Tensor", "Tensor_out")
)  # fmt: skip
# They change a tensor's shape, and not what it holds ...
_CHANGES_SHAPE = ("t_", "transpose_", "squeeze_", "unsqueeze_", "swapdims_", "swapaxes_", "as_strided_")
# ... or the memory that it stands for.
_CHANGES_MEMORY = ("set_", "resize_", "resize_as_", "_resize_output_", "detach_", "set_data")


def apply_write(tangents: Tangents, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that writes into its arguments, and carry the tangents along.

    Raises:
        TangentError: If a tangent is involved and the operation is not one of the two forms that torch has for a
            single result, ``op_`` and ``out=``.
        NetworkError: If it writes into an argument of the function.

    """
    name = func._schema.name.split("::")[1]
    written = written_tensors(func, args, kwargs)
    for x in written:
        tangents.require_writable(x, func)
    if not _involved(tangents, name, written, args, kwargs):
        out = func(*args, **kwargs)
        if name not in _CHANGES_MEMORY and name not in _CHANGES_SHAPE:
            for x in written:
                tangents.write(x, None)
        return out
    if any(map(tangents.is_frozen, written)):
        raise _refusal(func, "it writes through .detach() or .data into a tensor that has a tangent")
    if name in _CHANGES_MEMORY:
        raise _refusal(func, "it changes the shape or the memory of a tensor that has a tangent")
    if name in _CHANGES_SHAPE:
        if name == "as_strided_":
            tangents.share(args[0])
        tangents.get(args[0])  # whole, before its shape is another one
        out = func(*args, **kwargs)
        tangents.reshape_in_place(args[0], getattr(aten, name[:-1]), args[1:])
        return out
    if func in _WRITES_CONSTANTS:
        out = func(*args, **kwargs)
        tangents.write(args[0], None)
        return out
    if func is aten.copy_.default:
        tangent = tangents.get(args[1])
        out = func(*args, **kwargs)
        _record(tangents, args[0], tangent)
        return out
    functional = functional_form(func)
    if functional is None or len(written) != 1:
        raise _refusal(func, "it writes into its arguments in a way that has no rule")
    run = _in_place if name.endswith("_") else _into_out
    return run(tangents, func, functional, args, kwargs)


def _involved(tangents: Tangents, name: str, written: list[Tensor], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether what is read or what is written has a tangent, or shares memory with what has."""
    # All arguments are looked at, so that an alias of unknown origin is found.
    moves = any_moves(tangents, args) | any_moves(tangents, kwargs.values())
    storages = [x for x in args if isinstance(x, torch.UntypedStorage)] if name in _CHANGES_MEMORY else []
    return moves or any(tangents.shares_memory(x) for x in (*written, *storages))


def _in_place(tangents: Tangents, func: Op, functional: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # The arguments may overlap what is written, so that all of the tangent comes before any of the value.
    given = _in_order(functional, func, args)
    value = functional(*given, **kwargs)
    tangent = tangent_of_operation(tangents, functional, value, given, kwargs)
    if torch.Tag.nondeterministic_seeded in func.tags:
        args[0].copy_(value)  # random numbers are drawn once
    else:
        func(*args, **kwargs)  # with its own complaints, about overlapping memory for one
    _record(tangents, args[0], tangent)
    return args[0]


def _into_out(tangents: Tangents, func: Op, functional: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    (name,) = (a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    if name not in kwargs or torch.Tag.nondeterministic_seeded in func.tags:
        raise _refusal(func, "it writes into its arguments in a way that has no rule")
    target, given = kwargs[name], {key: value for key, value in kwargs.items() if key != name}
    value = functional(*args, **given)
    tangent = tangent_of_operation(tangents, functional, value, args, given)
    if target.shape != value.shape:
        raise _refusal(func, f"out= has shape {tuple(target.shape)} and would be resized to {tuple(value.shape)}")
    func(*args, **kwargs)
    _record(tangents, target, tangent)
    return target


def _record(tangents: Tangents, target: Tensor, tangent: Tensor | None) -> None:
    """The tangent of what was written, as the target's dtype holds it."""
    if tangent is not None and tangent.is_complex() and not target.is_complex():
        tangent = tangent.real
    tangents.write(target, tangent if target.is_floating_point() or target.is_complex() else None)


def written_tensors(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors that the operation writes into, by its schema."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def functional_form(func: Op) -> Op | None:
    """The operation that returns what ``func`` writes, with the same other arguments; None if there is none."""
    namespace, name = func._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    if packet is None:
        return None
    wanted = [
        (a.name, str(a.type))
        for a in func._schema.arguments
        if name.endswith("_") or a.alias_info is None or not a.alias_info.is_write
    ]
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        schema = candidate._schema
        if not schema.is_mutable and sorted((a.name, str(a.type)) for a in schema.arguments) == sorted(wanted):
            return candidate
    return None


def _in_order(functional: Op, func: Op, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional arguments of ``func`` in the order of its functional form; ``polygamma`` begins with another one."""
    names = [a.name for a in func._schema.arguments][: len(args)]
    theirs = [a.name for a in functional._schema.arguments][: len(args)]
    return tuple(args[names.index(name)] for name in theirs) if set(names) == set(theirs) else args


def _refusal(func: Op, why: str) -> TangentError:
    return TangentError(
        f"the network writes in place by {func} where a tangent is involved: {why}.",
        "operations that return new tensors, or in-place forms of operations that have one",
        "write it out of place (x = x + y, torch.cat, torch.where)",
    )
