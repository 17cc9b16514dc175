"""Exact numbers with atoms replaced or given values, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mpmath

from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.monomial import DIGITS, Coefficient, as_mpf, power_of_value, simple
from meanflow_ref.kit.prove.ring import Number, Ring

# Elementary function -> itself on numbers, and its derivative; filled by `functions`.
REBUILDERS: dict[str, Callable[..., Number]] = {}
DERIVATIVES: dict[str, Callable[[Number], Number]] = {}


def rebuilt(number: Number, replace: Callable[[int], Number | None]) -> Number:
    """The number with atoms replaced, inside functions too; ``None`` keeps an atom."""
    done: dict[int, Number] = {}

    def atom(index: int) -> Number:
        if index not in done:
            done[index] = replace(index) or _rebuilt_atom(number.ring, index, replace)
        return done[index]

    return _sum_of(
        number.ring, (_product_of(number.ring, c, (atom(i) ** e for i, e in m)) for m, c in number.terms.items())
    )


def _rebuilt_atom(ring: Ring, index: int, replace: Callable[[int], Number | None]) -> Number:
    atom = ring.atoms[index]
    arguments = tuple(rebuilt(argument, replace) for argument in atom.arguments)
    if all(new.key() == old.key() for new, old in zip(arguments, atom.arguments, strict=True)):
        return ring.atom(index)
    if atom.kind == "base":
        return arguments[0]
    rebuild = REBUILDERS.get(atom.head)
    if rebuild is None:
        raise NotExactError(f"{atom.name} cannot be evaluated elsewhere")
    return rebuild(*arguments)


def evaluated(number: Number, values: dict[int, Any]) -> Any:
    """Value of a number where some atoms have other values than at the witness."""
    ring, known = number.ring, dict(values)

    def atom(index: int) -> Any:
        if index not in known:
            made = ring.atoms[index]
            known[index] = made.value(*map(total, made.arguments)) if made.arguments else ring.value(index)
        return known[index]

    def total(part: Number) -> Any:
        terms = (
            mpmath.fprod([as_mpf(c), *(power_of_value(atom(i), e) for i, e in monomial)])
            for monomial, c in part.terms.items()
        )
        return mpmath.fsum(terms)

    with mpmath.workdps(DIGITS):
        return total(number)


def derivative(number: Number, symbol: int) -> Number:
    """Partial derivative with respect to a symbol."""
    total = number.ring.constant(0)
    for monomial, coefficient in number.terms.items():
        for k, (index, exponent) in enumerate(monomial):
            inner = _atom_derivative(number.ring, index, symbol)
            if inner.terms:
                rest = monomial[:k] + monomial[k + 1 :]
                lowered = rest if exponent == 1 else tuple(sorted((*rest, (index, simple(exponent - 1)))))
                total = total + Number(number.ring, {lowered: coefficient * exponent}) * inner
    return total


def _atom_derivative(ring: Ring, index: int, symbol: int) -> Number:
    if index == symbol:
        return ring.constant(1)
    atom = ring.atoms[index]
    inner = [derivative(argument, symbol) for argument in atom.arguments]
    if all(not part.terms for part in inner):
        return ring.constant(0)
    if atom.kind == "base":
        return inner[0]
    rule = DERIVATIVES.get(atom.head)
    if rule is None:
        raise NotExactError(f"{atom.name} has no derivative here")
    return rule(atom.arguments[0]) * inner[0]


def _sum_of(ring: Ring, numbers: Iterable[Number]) -> Number:
    """Sum of numbers."""
    total = ring.constant(0)
    for number in numbers:
        total = total + number
    return total


def _product_of(ring: Ring, coefficient: Coefficient, numbers: Iterable[Number]) -> Number:
    """Product of numbers."""
    total = ring.constant(coefficient)
    for number in numbers:
        total = total * number
    return total
