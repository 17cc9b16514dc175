"""Second opinion on every step: concrete functions, rational points, exact or interval arithmetic.

Undefined functions become small polynomials with integer coefficients (their partial derivatives, integrals and
compositions follow by exact calculus on polynomials); symbols become rationals. What is left is evaluated without
sympy's rewriting: in ``fractions.Fraction`` while possible, else in intervals, so that "different" is certain.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import sympy as sp
from mpmath.ctx_iv import MPIntervalContext
from mpmath.libmp import to_rational
from sympy.core.function import AppliedUndef

from .language import Opaque

# A context of our own: mpmath.iv is shared by the whole process.
iv = MPIntervalContext()
iv.prec = 260
_AGREE = Fraction(1, 10**40)


class NotEvaluable(Exception):
    """The expression has no value here: a pole, a root of a negative number, an integral that is not polynomial."""


@dataclass
class Instance:
    """One concrete choice for every undefined function, made from a seed and the function's name."""

    seed: int
    functions: dict[str, tuple[tuple[Any, ...], Any]] = field(default_factory=dict)
    _memo: dict[Any, Any] = field(default_factory=dict)

    def concrete(self, e: Any) -> Any:
        """Return ``e`` with functions chosen, and derivatives and integrals carried out on polynomials."""
        if e not in self._memo:
            self._memo[e] = self._concrete(e)
        return self._memo[e]

    def _concrete(self, e: Any) -> Any:
        if isinstance(e, AppliedUndef | Opaque):
            return self._apply(e)
        if isinstance(e, sp.Derivative):
            if not all(isinstance(v, sp.Symbol) for v, _ in e.variable_count):
                raise NotEvaluable(f"derivative in {e.variable_count}")
            return sp.diff(self.concrete(e.expr), *e.variable_count)
        if isinstance(e, sp.Subs):
            points = [self.concrete(p) for p in e.point]
            return self.concrete(e.expr).subs(list(zip(e.variables, points, strict=True)), simultaneous=True)
        if isinstance(e, sp.Integral):
            return self._integrate(e)
        return e.func(*(self.concrete(a) for a in e.args)) if e.args else e

    def _apply(self, e: Any) -> Any:
        opaque = isinstance(e, Opaque)
        name = e.base if opaque else e.func.__name__
        positive = e.is_positive is True
        variables, p = self._polynomial(f"{name}/{len(e.args)}", len(e.args), positive)
        for i in e.partials if opaque else ():
            p = sp.diff(p, variables[i - 1])
        return p.xreplace(dict(zip(variables, (self.concrete(a) for a in e.args), strict=True)))

    def _polynomial(self, name: str, arity: int, positive: bool) -> tuple[tuple[Any, ...], Any]:
        if name not in self.functions:
            rng = random.Random(f"{self.seed} {name}")
            variables = tuple(sp.Dummy(f"x{i}") for i in range(arity))
            monomials = sorted(sp.itermonomials(variables, 3 if arity == 1 else 2), key=sp.default_sort_key)
            p = sum(rng.choice((-2, -1, 1, 2, 3)) * m for m in monomials)
            self.functions[name] = (variables, p**2 + sp.Rational(1, 7) if positive else p)
        return self.functions[name]

    def _integrate(self, e: Any) -> Any:
        body = self.concrete(e.function)
        for variable, low, high in e.limits:
            try:
                terms = sp.Poly(body, variable).terms()
            except sp.PolynomialError as error:
                raise NotEvaluable(f"integral of {body}") from error
            a, b = self.concrete(low), self.concrete(high)
            if any(variable in c.free_symbols for _, c in terms):
                raise NotEvaluable(f"integral of {body}")
            body = sum((c * (b ** (n + 1) - a ** (n + 1)) / (n + 1) for (n,), c in terms), sp.Integer(0))
        return body


def value(e: Any, point: Mapping[Any, Fraction]) -> Any:
    """Value of a function-free ``e`` at ``point``: a Fraction, or an interval that contains it.

    Raises:
        NotEvaluable: at a pole, outside the real domain of a root or logarithm, or for a node without a rule.
    """
    if e.is_Rational:
        return Fraction(int(e.p), int(e.q))
    if e.is_Symbol:
        return point[e]
    if e is sp.pi or e is sp.E:
        return iv.pi if e is sp.pi else iv.exp(iv.mpf(1))
    arguments = [value(a, point) for a in e.args]
    if e.is_Add or e.is_Mul:
        total = arguments[0]
        for a in arguments[1:]:
            total = _both(total, a, e.is_Mul)
        return total
    if e.is_Pow:
        return _power(*arguments)
    if isinstance(e, sp.exp | sp.sin | sp.cos | sp.log):
        return _elementary(type(e), arguments[0])
    raise NotEvaluable(f"{type(e).__name__} has no interval rule")


def _interval(a: Any) -> Any:
    return iv.mpf(a.numerator) / iv.mpf(a.denominator) if isinstance(a, Fraction) else a


def _both(a: Any, b: Any, multiply: bool) -> Any:
    if isinstance(a, Fraction) != isinstance(b, Fraction):
        a, b = _interval(a), _interval(b)
    return a * b if multiply else a + b


def _elementary(kind: Any, a: Any) -> Any:
    if isinstance(a, Fraction) and a == (1 if kind is sp.log else 0):
        return Fraction(1 if kind in (sp.exp, sp.cos) else 0)
    if kind is sp.log and not is_positive(a):
        raise NotEvaluable("log of a number that is not positive")
    return {sp.exp: iv.exp, sp.log: iv.log, sp.sin: iv.sin, sp.cos: iv.cos}[kind](_interval(a))


def _power(base: Any, exponent: Any) -> Any:
    integral = isinstance(exponent, Fraction) and exponent.denominator == 1
    if not is_nonzero(base) and not (integral and exponent >= 0):
        raise NotEvaluable("zero to a power that is not a natural number")
    if integral:
        return base ** int(exponent)
    if not is_positive(base):
        raise NotEvaluable("root of a number that is not positive")
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        q = exponent.denominator
        roots = [sp.integer_nthroot(n, q) for n in (base.numerator, base.denominator)]
        if all(exact for _, exact in roots):
            return Fraction(int(roots[0][0]), int(roots[1][0])) ** exponent.numerator
    return iv.exp(iv.log(_interval(base)) * _interval(exponent))


def is_positive(a: Any) -> bool:
    """Whether a value is certainly positive."""
    return bool(a > 0) if isinstance(a, Fraction) else bool(a.a > 0)


def is_nonzero(a: Any) -> bool:
    """Whether a value is certainly nonzero."""
    return a != 0 if isinstance(a, Fraction) else bool(a.a > 0 or a.b < 0)


def compare(a: Any, b: Any) -> bool | None:
    """Whether two values are equal: False is certain; True is exact for Fractions, else to 40 digits; None unknown."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    difference = _interval(a) - _interval(b)
    if is_nonzero(difference):
        return False
    size = 1 + max(abs(_fraction(end)) for x in (a, b) for end in (_interval(x).a, _interval(x).b))
    width = _fraction(difference.b) - _fraction(difference.a)
    return True if width < _AGREE * size else None


def _fraction(a: Any) -> Fraction:
    """Exact value of an end point (itself an interval of width 0)."""
    try:
        p, q = to_rational(a._mpi_[0])
    except (ValueError, AttributeError) as error:
        raise NotEvaluable("an unbounded interval") from error
    return Fraction(int(p), int(q))


def text(a: Any) -> str:
    """A value as the document prints it: a fraction, or 12 digits of an interval's midpoint."""
    return str(a) if isinstance(a, Fraction) else str(sp.Float(str(a.mid.a).strip("[]").split(",")[0], 12))


def draw(symbols: Iterable[Any], bounds: Mapping[Any, tuple[Any, Any]], rng: random.Random) -> dict[Any, Fraction]:
    """Small random rationals for ``symbols``, inside ``bounds`` (None: unbounded) and of each symbol's kind."""
    point: dict[Any, Fraction] = {}
    for s in sorted(symbols, key=str):
        low, high = bounds.get(s, (None, None))
        if s.is_integer:
            q = Fraction(rng.randint(1, 5))
        elif low is not None and high is not None:
            n = rng.randint(3, 12)
            q = low + (high - low) * Fraction(rng.randint(1, n - 1), n)
        else:
            q = Fraction(rng.randint(1, 9), rng.randint(1, 4))
            q = q if s.is_nonnegative or low is not None or rng.random() < 0.6 else -q
            q = q if low is None else low + q
            q = -abs(q) if s.is_negative else q
        point[s] = q
    return point
