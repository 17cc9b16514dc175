"""Whether an exact number vanishes."""

from __future__ import annotations

from fractions import Fraction

from meanflow_ref.kit.prove.calculus import rebuilt
from meanflow_ref.kit.prove.monomial import order, quotient
from meanflow_ref.kit.prove.ring import Number


def is_zero(number: Number, given: tuple[Number, ...] = ()) -> bool:
    """Whether the number vanishes for all values of the symbols at which it is defined.

    Args:
        given: Numbers that are zero where the question is asked.

    """
    if not number.terms:
        return True
    for index in number.atoms():
        if number.ring.atoms[index].head == "zero":
            return _zero_in_both_cases(number, index, given)
    bases = [index for index in number.atoms() if number.ring.atoms[index].kind == "base"]
    if bases:
        # The last made can be inside no other's expression.
        return all(is_zero(part, given) for part in number.without(max(bases)))
    for equation in given:
        number = remainder(number, equation)
    return not number.terms


def _zero_in_both_cases(number: Number, mask: int, given: tuple[Number, ...]) -> bool:
    """Whether the number vanishes where the equation behind ``mask`` holds, and where it does not."""
    zero, one = number.ring.constant(0), number.ring.constant(1)
    (equation,) = number.ring.atoms[mask].arguments
    fails = rebuilt(number, lambda i: zero if i == mask else None)
    holds = rebuilt(number, lambda i: one if i == mask else None)
    return is_zero(fails, given) and is_zero(holds, (*given, equation))


def remainder(number: Number, divisor: Number) -> Number:
    """What is left of a polynomial on division by another; 0 if and only if that divides it."""
    leading = max(divisor.terms, key=order)
    if any(not isinstance(e, int) or e < 0 for m in (*number.terms, *divisor.terms) for _, e in m):
        return number
    rest, left = number, number.ring.constant(0)
    while rest.terms:
        monomial = max(rest.terms, key=order)
        term = Number(number.ring, {monomial: rest.terms[monomial]})
        ratio = quotient(monomial, leading)
        if ratio is None:
            rest, left = rest - term, left + term
        else:
            factor = Fraction(rest.terms[monomial]) / Fraction(divisor.terms[leading])
            rest = rest - Number(number.ring, {ratio: factor}) * divisor
    return left
