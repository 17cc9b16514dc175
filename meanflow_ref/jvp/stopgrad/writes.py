"""In-place operations and ``out=``: the tangent of what is written, by the rule of the operation that returns it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad.table import Op
from meanflow_ref.jvp.stopgrad.tangents import Tangents

aten = torch.ops.aten

# What they write does not depend on a tensor that could move.
_WRITES_CONSTANTS = frozenset(
    getattr(packet, overload)
    for packet in (aten.zero_, aten.fill_, aten.normal_, aten.uniform_, aten.exponential_, aten.random_, aten.cauchy_,
                   aten.log_normal_, aten.geometric_, aten.bernoulli_)
    for overload in packet.overloads()
    if overload not in ("Tensor", "Tensor_out")
)  # fmt: skip
# They change a tensor's shape, and not what it holds ...
_CHANGES_SHAPE = ("t_", "transpose_", "squeeze_", "unsqueeze_", "swapdims_", "swapaxes_", "as_strided_")
# ... or the memory that it stands for.
_CHANGES_MEMORY = ("set_", "resize_", "resize_as_", "_resize_output_", "detach_", "set_data")


def apply_write(tangents: Tangents, func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation that writes into its arguments, and carry the tangents along.

    Raises:
        TangentError: If it is not one of the two forms that torch has for a single result, ``op_`` and ``out=``.

    """
    from meanflow_ref.jvp.stopgrad.mode import _any_moves, tangent_of_operation

    written = written_tensors(func, args, kwargs)
    for x in written:
        tangents.require_writable(x, func)
    touched = [x for x in written if x.layout == torch.strided and tangents.shares_memory(x)]
    moves = _any_moves(tangents, args) or _any_moves(tangents, kwargs.values())
    name = func._schema.name.split("::")[1]
    if name in _CHANGES_MEMORY and not touched:
        touched = [x for x in args if isinstance(x, torch.UntypedStorage) and tangents.shares_memory(x)]
    if not (moves or touched):
        out = func(*args, **kwargs)
        if name not in _CHANGES_MEMORY and name not in _CHANGES_SHAPE:
            for x in written:
                tangents.write(x, None)
        return out
    if name in _CHANGES_SHAPE:
        if name == "as_strided_":
            tangents.share(args[0])
        out = func(*args, **kwargs)
        tangents.reshape_in_place(args[0], getattr(aten, name[:-1]), args[1:])
        return out
    if name in _CHANGES_MEMORY:
        raise _refusal(func, "it changes the shape or the memory of a tensor that has a tangent")
    if func in _WRITES_CONSTANTS:
        out = func(*args, **kwargs)
        tangents.write(args[0], None)
        return out
    if func is aten.copy_.default:
        tangent = tangents.get(args[1])
        out = func(*args, **kwargs)
        target = args[0]
        if tangent is not None and (target.is_floating_point() or target.is_complex()):
            tangents.write(target, tangent.real if tangent.is_complex() and not target.is_complex() else tangent)
        else:
            tangents.write(target, None)
        return out
    functional = functional_form(func)
    if functional is None or len(written) != 1:
        raise _refusal(func, "it writes into its arguments in a way that has no rule")
    if func._schema.name.endswith("_"):
        given = _in_order(functional, func, args)
        value = functional(*given, **kwargs)
        tangent = tangent_of_operation(tangents, functional, value, given, kwargs)
        # The arguments may overlap what is written, so that all of the tangent comes before any of the value. The
        # operation itself writes, with its own complaints; random numbers are drawn once.
        args[0].copy_(value) if torch.Tag.nondeterministic_seeded in func.tags else func(*args, **kwargs)
        tangents.write(args[0], tangent if args[0].is_floating_point() or args[0].is_complex() else None)
        return args[0]
    (out_name,) = (a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    given = {key: value for key, value in kwargs.items() if key != out_name}
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise _refusal(func, "it draws random numbers into out=")
    value = functional(*args, **given)
    tangent = tangent_of_operation(tangents, functional, value, args, given)
    target = kwargs[out_name]
    if target.shape != value.shape:
        raise _refusal(func, f"out= has shape {tuple(target.shape)} and would be resized to {tuple(value.shape)}")
    target.copy_(value)
    tangents.write(target, tangent if target.is_floating_point() or target.is_complex() else None)
    return target


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
    """Positional arguments of ``func`` in the order of its functional form (``polygamma`` begins with the other one)."""
    names = [a.name for a in func._schema.arguments][: len(args)]
    theirs = [a.name for a in functional._schema.arguments][: len(args)]
    return tuple(args[names.index(name)] for name in theirs) if set(names) == set(theirs) else args


def _refusal(func: Op, why: str) -> TangentError:
    return TangentError(
        f"the network writes in place by {func} where a tangent is involved: {why}.",
        "operations that return new tensors, or in-place forms of operations that have one",
        "write it out of place (x = x + y, torch.cat, torch.where)",
    )
