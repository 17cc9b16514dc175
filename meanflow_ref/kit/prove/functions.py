r"""Elementary functions and relations of exact numbers.

Little is assumed of them: equal arguments give equal values, their derivatives where a path needs them, and for sine
and cosine the shifts by multiples of :math:`\pi/2`, so that ``sin(pi/2 (1 - t))`` and ``cos(pi/2 t)`` are one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

from meanflow_ref.kit.prove.calculus import DERIVATIVES, REBUILDERS
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.monomial import DIGITS, as_mpf
from meanflow_ref.kit.prove.ring import Number, Ring

# To 40 digits: enough to tell whether a double is a multiple of it.
PI = Fraction("3.141592653589793238462643383279502884197")
UNIT = (Fraction(0), Fraction(1))


def _precisely(function: Callable[..., Any]) -> Callable[..., Any]:
    def evaluate(*values: Any) -> Any:
        with mpmath.workdps(DIGITS):
            return function(*(as_mpf(value) for value in values))

    return evaluate


def pi(ring: Ring) -> Number:
    """The number pi."""
    return ring.function("pi", (), _precisely(lambda: +mpmath.pi))


def _function(name: str, evaluate: Callable[..., Any], **more: Any) -> Callable[..., Number]:
    """The function ``name``, of which only congruence is known."""
    precise = _precisely(evaluate)

    def apply(*arguments: Number, **known: Any) -> Number:
        number: Number = arguments[0].ring.function(
            name, tuple(a.expanded() for a in arguments), precise, **{**more, **known}
        )
        return number

    REBUILDERS[name] = apply
    return apply


_sin = _function("sin", mpmath.sin)
_cos = _function("cos", mpmath.cos)
_exp = _function("exp", mpmath.exp)
log = _function("log", mpmath.log)
sigmoid = _function("sigmoid", lambda x: 1 / (1 + mpmath.exp(-x)), bounds=UNIT)
tanh = _function("tanh", mpmath.tanh)
erf = _function("erf", mpmath.erf)
_abs = _function("abs", abs)
_max = _function("max", max)
_min = _function("min", min)


def exp(x: Number) -> Number:
    """Exponential."""
    return x.ring.constant(1) if not x.terms else _exp(x)


def sin(x: Number) -> Number:
    """Sine."""
    return _circular(x, 0)


def cos(x: Number) -> Number:
    """Cosine."""
    return _circular(x, 1)


REBUILDERS.update(sin=sin, cos=cos, exp=exp)
DERIVATIVES.update(
    sin=cos,
    cos=lambda x: -sin(x),
    exp=exp,
    log=lambda x: x**-1,
    sigmoid=lambda x: sigmoid(x) * (1 - sigmoid(x)),
    tanh=lambda x: 1 - tanh(x) ** 2,
)


def _circular(x: Number, quarters: int) -> Number:
    """``sin(x + quarters pi/2)`` with multiples of pi/2 taken out of x and its sign made positive."""
    ring = x.ring
    period = pi(ring)
    monomial = ((period.only_atom(), 1),)
    turns = Fraction(x.terms.get(monomial, 0)) * 2
    whole = turns.numerator // turns.denominator
    rest = x - period * Fraction(whole, 2)
    quarters = (quarters + whole) % 4
    sign = -1 if quarters >= 2 else 1
    # The first term in a fixed order gets a positive coefficient: sin is odd, cos is even.
    if rest.terms and rest.terms[min(rest.terms)] < 0:
        rest = -rest
        sign = -sign if quarters % 2 == 0 else sign
    if not rest.terms:
        return ring.constant(sign * (quarters % 2))
    return (_sin(rest) if quarters % 2 == 0 else _cos(rest)) * sign


def absolute(x: Number) -> Number:
    """Absolute value."""
    constant = x.as_constant()
    return _abs(x) if constant is None else x.ring.constant(abs(constant))


def maximum(a: Number, b: Number) -> Number:
    """The larger; of numbers known to be ordered, that number itself."""
    return _extreme(a, b, _max, larger=True)


def minimum(a: Number, b: Number) -> Number:
    """The smaller."""
    return _extreme(a, b, _min, larger=False)


def _extreme(a: Number, b: Number, function: Callable[..., Number], larger: bool) -> Number:
    if a.key() == b.key():
        return a
    less = less_than(a, b).as_constant()
    if less is not None:
        return b if (less == 1) == larger else a
    first, second = sorted((a, b), key=str)
    return function(first, second, bounds=_common_bounds(a, b))


def _common_bounds(a: Number, b: Number) -> tuple[Fraction, Fraction] | None:
    """Interval that both numbers are known to lie in."""
    ends = [*bounds_of(a), *bounds_of(b)]
    known = [end for end in ends if end is not None]
    return (min(known), max(known)) if len(known) == 4 else None


# ---------------------------------------------------------------- relations


def less_than(a: Number, b: Number) -> Number:
    """Truth value of ``a < b``."""
    difference = (a - b).expanded()
    ring = a.ring
    constant = difference.as_constant()
    if constant is not None:
        return ring.constant(int(constant < 0))
    low, high = bounds_of(difference)
    if low is not None and low >= 0:
        return ring.constant(0)
    if high is not None and high < 0:
        return ring.constant(1)
    return ring.mask("negative", difference, lambda value: value < 0, relation_text(difference, "<"))


def equal(a: Number, b: Number) -> Number:
    """Truth value of ``a == b``."""
    difference = (a - b).expanded()
    constant = difference.as_constant()
    if constant is not None:
        return a.ring.constant(int(constant == 0))
    if difference.terms[min(difference.terms)] < 0:
        difference = -difference
    return a.ring.mask("zero", difference, lambda value: value == 0, relation_text(difference, "="))


def bounds_of(x: Number) -> tuple[Fraction | None, Fraction | None]:
    """Interval that a number ``a s + c`` is known to lie in."""
    affine = x.affine()
    bounds = x.ring.atoms[affine[1]].bounds if affine else None
    if affine is None or bounds is None:
        return None, None
    ends = sorted((affine[0] * bounds[0] + affine[2], affine[0] * bounds[1] + affine[2]))
    return ends[0], ends[1]


def truth(x: Number) -> Number:
    """A number as a truth value, ``x != 0``; a truth value itself unchanged."""
    return x if is_truth_value(x) else 1 - equal(x, x.ring.constant(0))


def is_truth_value(x: Number) -> bool:
    """Whether a number is 0 or 1 by construction: a polynomial in masks with ``x x = x``."""
    return all(x.ring.atoms[i].kind == "mask" for i in x.atoms()) and (x * x).key() == x.key()


def both(a: Number, b: Number) -> Number:
    """Truth value of "a and b"; a new one where the product would have many terms."""
    product = truth(a) * truth(b)
    if len(product.terms) <= 2:
        return product
    text = f"({truth_text(a)} and {truth_text(b)})"
    return a.ring.function("and", (a, b), lambda x, y: int(x * y != 0), kind="mask", text=text)


def either(a: Number, b: Number) -> Number:
    """Truth value of "a or b"."""
    return 1 - both(1 - truth(a), 1 - truth(b))


REBUILDERS.update(negative=lambda x: less_than(x, x.ring.constant(0)), zero=lambda x: equal(x, x.ring.constant(0)))
REBUILDERS["and"] = both


def truth_text(x: Number) -> str:
    """A truth value in words."""
    if len(x.terms) == 1:
        return str(x)
    if len(x.terms) == 2 and () not in x.terms:
        # a - a m
        a, both_hold = sorted(x.terms, key=len)
        m = tuple(pair for pair in both_hold if pair not in a)
        return f"{Number(x.ring, {a: 1})} and {truth_text(1 - Number(x.ring, {m: 1}))}"
    rest = 1 - x
    if len(rest.terms) != 1:
        return str(x)
    atom = x.ring.atoms[rest.only_atom()] if len(next(iter(rest.terms))) == 1 else None
    opposite = {"negative": {"<": ">=", ">": "<="}, "zero": {"=": "!="}}.get(atom.head if atom else "", {})
    for relation, negated in opposite.items():
        if atom is not None and f" {relation} " in atom.name:
            return atom.name.replace(f" {relation} ", f" {negated} ")
    return f"not {rest}"


def relation_text(x: Number, relation: str) -> str:
    """``x < 0`` or ``x = 0``, solved for its symbol if it has one alone."""
    affine = x.affine()
    if affine is None:
        return f"[{x} {relation} 0]"
    slope, symbol, constant = affine
    turned = ">" if relation == "<" and slope < 0 else relation
    return f"[{x.ring.atoms[symbol].name} {turned} {-constant / slope}]"


# ---------------------------------------------------------------- constants


def read_constant(ring: Ring, value: float, precise: bool = True) -> Number:
    """A floating-point constant as the number that was meant.

    That is the simplest fraction which rounds to it (0.001 is 1/1000, 0.3333333333333333 is 1/3), a simple multiple
    of pi, or else its exact binary value.
    """
    fraction = simplest(value, precise)
    if fraction is not None:
        return ring.constant(fraction)
    ratio = Fraction(value) / PI
    multiple = ratio.limit_denominator(1000)
    if multiple and abs(ratio - multiple) < abs(multiple) * Fraction(1, 2**51 if precise else 2**22):
        return pi(ring) * multiple
    return ring.constant(Fraction(value))


def simplest(value: float, precise: bool = True) -> Fraction | None:
    """The fraction with the smallest denominator, up to 10^6, that rounds to ``value``; ``None`` if there is none."""
    if not math.isfinite(value):
        raise NotExactError(f"the constant {value} is not a number")
    exact = Fraction(value)
    if exact.denominator == 1:
        return exact
    # Half a unit in the last place of a double or of a float32; a few units for the simplest fractions, which are
    # often the result of arithmetic: 1 - 1.4 - 0.3 is meant to be -7/10.
    unit = abs(exact) / 2 ** (52 if precise else 23)
    for bound in (10, 100, 1000, 10**4, 10**5, 10**6) if precise else (10, 100, 1000):
        near = exact.limit_denominator(bound)
        if abs(near - exact) <= (4 * unit if bound <= 1000 else unit / 2):
            return near
    return exact if exact.denominator <= 2**20 else None
