"""The table of rules: how one is written, stored, found and registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from meanflow_ref.errors import ParameterError

# An overload of an operation, such as torch.ops.aten.mul.Tensor.
Op: TypeAlias = Any
# Gives an argument's tangent, None for zero and for what is no tensor.
TangentOf: TypeAlias = Callable[[Any], Any]
# rule(d, op, out, *args, **kwargs) -> tangent of out (a tuple for several), None for zero, or NotImplemented.
Rule: TypeAlias = Callable[..., Any]

RULES: dict[Op, Rule] = {}


def overloads(name: str) -> list[Op]:
    """Overloads of an operation that write nothing, by name: ``aten::silu`` (all), ``aten::mul.Tensor`` (one).

    Raises:
        ParameterError: If there is no such operation.

    """
    # "aten.mul.Tensor" is how torch prints an overload.
    parts = name.replace("::", ".").split(".")
    namespace, operation, *wanted = parts if len(parts) > 1 else ("aten", *parts)
    packet = getattr(getattr(torch.ops, namespace), operation, None)
    found = [] if packet is None else [getattr(packet, o) for o in packet.overloads() if not wanted or o == wanted[0]]
    if not found:
        raise ParameterError(
            f"there is no operation {name!r}.",
            'an operation of torch or of a library that is loaded: "aten::silu", "mylib::scan"',
            "import the library first",
        )
    return [op for op in found if not op._schema.is_mutable]


def define(names: str, rule: Rule) -> None:
    """Give every overload of the aten operations in ``names`` (spaces between) this rule."""
    for name in names.split():
        # Names that this version of torch does not have are left out.
        if hasattr(torch.ops.aten, name):
            for op in overloads(f"aten::{name}"):
                RULES[op] = rule


def register_rule(op: str | Op, rule: Rule) -> Rule:
    """Give an operation a rule of one's own, before or instead of the shipped one.

    Source: mf:8 (the derivative that rules make up).

    Args:
        op: Name, ``"mylib::scan"`` or ``"aten::silu"``, or an overload ``torch.ops.mylib.scan.default``.
        rule: ``rule(d, op, out, *args, **kwargs)``: ``d(x)`` is the tangent of an argument, None for zero, and ``out``
            what the operation returned. It returns the tangent of ``out`` (a tuple where out is one), None for zero,
            or ``NotImplemented`` to leave the case to PyTorch's forward mode. It runs without autograd, and must not
            write into what it is given.

    Returns:
        ``rule``.

    Raises:
        ParameterError: If there is no such operation, or it writes into its arguments.

    Example:
        A scaled product, ``y = c x w``: ``register_rule("mylib::scale", lambda d, op, out, x, w, c: op(d(x), w, c))``

    """
    found = overloads(op) if isinstance(op, str) else [op]
    if not found or any(overload._schema.is_mutable for overload in found):
        raise ParameterError(f"{op} writes into its arguments.", "an operation that returns new tensors", "")
    for overload in found:
        RULES[overload] = rule
    return rule
