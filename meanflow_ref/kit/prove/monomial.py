"""Coefficients, exponents and monomials of exact numbers, and their values."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeAlias

import mpmath

from meanflow_ref.kit.prove.errors import NotExactError

# Digits of a witness: far more than any cancellation between a loss and its formula can eat.
DIGITS = 50
# Products of terms in one multiplication beyond which an expansion is given up.
LARGEST_PRODUCT = 1_000_000

Exponent: TypeAlias = "int | Fraction"
Coefficient: TypeAlias = "int | Fraction"
# Pairs (atom, exponent), by increasing atom.
Monomial: TypeAlias = tuple[tuple[int, Exponent], ...]


def order(monomial: Monomial) -> tuple[tuple[int, Exponent], ...]:
    """Lexicographic order of monomials, the last atom first."""
    return tuple(reversed(monomial))


def quotient(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    """``monomial / divisor`` if that has no negative power."""
    powers = dict(monomial)
    for index, exponent in divisor:
        powers[index] = powers.get(index, 0) - exponent
        if powers[index] < 0:
            return None
    return tuple(sorted((i, e) for i, e in powers.items() if e))


def power_of_value(value: Any, exponent: Exponent) -> Any:
    """``value ** exponent``."""
    base = as_mpf(value)
    if base < 0 and not isinstance(exponent, int):
        raise NotExactError("a fractional power of a negative number")
    return base**exponent if isinstance(exponent, int) else base ** as_mpf(exponent)


def as_mpf(value: Any) -> Any:
    """A value as a multi-precision float."""
    if isinstance(value, int | Fraction):
        with mpmath.workdps(DIGITS):
            return mpmath.mpf(value.numerator) / value.denominator
    return mpmath.mpf(value)


def simple(exponent: Exponent) -> Exponent:
    """An exponent as an integer, if it is one."""
    if isinstance(exponent, int):
        return exponent
    return int(exponent) if exponent == int(exponent) else exponent


def factor_text(name: str, exponent: Exponent) -> str:
    """A power as printed."""
    return name if exponent == 1 else f"{name}^{exponent if isinstance(exponent, int) else f'({exponent})'}"
