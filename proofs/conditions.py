"""Side conditions: what a theorem assumes, what it divides by, and the watch that sees divisors sympy cancels.

``(t - r) * ((F(t) - F(r)) / (t - r))`` is ``F(t) - F(r)`` by the time sympy hands it over: the condition ``t != r`` is
gone. :func:`watch` therefore listens to every division that a theorem (or a function of ``formulas``) performs with
``/`` or ``**``. Spelt ``sympy.Pow(x, -1)`` a division is seen only where it is still visible: write it with operators.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import sympy as sp

from .evaluate import Instance, NotEvaluable, draw, is_nonzero, is_positive, value
from .language import ProofError, bound_symbols, entries


@dataclass(frozen=True)
class Hypotheses:
    """What a theorem assumes of its symbols, and where its witnesses are to be.

    ``nonzero`` and ``positive`` license divisions, roots and logarithms. ``where`` (strict inequalities) does not: it
    only narrows the search for counter-examples, so that these are of interest and not merely formal.
    """

    nonzero: tuple[Any, ...] = ()
    positive: tuple[Any, ...] = ()
    where: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for e in (*self.nonzero, *self.positive):
            if sp.sympify(e).is_number:
                raise ProofError(f"the hypothesis that {e} is not zero", "an expression with a symbol", "remove it")
        for relation in self.where:
            if not isinstance(relation, sp.StrictLessThan | sp.StrictGreaterThan):
                raise ProofError(f"the hypothesis {relation}", "strict inequalities", "write a < b")

    def bounds(self) -> dict[Any, tuple[Any, Any]]:
        """Numeric bounds of single symbols that follow from chains like ``0 < r < s < 1``, to aim the search."""
        low: dict[Any, Fraction] = {}
        high: dict[Any, Fraction] = {}
        for _ in self.where:
            for relation in self.where:
                a, b = relation.lts, relation.gts
                for end, kept, other, tighter in ((b, low, a, max), (a, high, b, min)):
                    bound = Fraction(int(other.p), int(other.q)) if other.is_Rational else kept.get(other)
                    if end.is_Symbol and bound is not None:
                        kept[end] = tighter(kept.get(end, bound), bound)
        return {s: (low.get(s), high.get(s)) for s in {*low, *high}}

    def hold(self, instance: Instance, point: dict[Any, Fraction]) -> bool:
        """Whether every hypothesis certainly holds at a point."""
        try:
            return (
                all(is_positive(value(instance.concrete(e.gts - e.lts), point)) for e in self.where)
                and all(is_positive(value(instance.concrete(e), point)) for e in self.positive)
                and all(is_nonzero(value(instance.concrete(e), point)) for e in self.nonzero)
            )
        except NotEvaluable:
            return False

    def points(self, symbols: set[Any], seed: int, tries: int) -> Iterator[tuple[Instance, dict[Any, Fraction]]]:
        """Up to ``tries`` random points (with functions) that satisfy the hypotheses and cover ``symbols``."""
        symbols = symbols.union(*(e.free_symbols for e in (*self.nonzero, *self.positive, *self.where)))
        bounds = self.bounds()
        for k in range(tries):
            instance, rng = Instance(seed + k), random.Random(f"point {seed + k}")
            for _ in range(200):
                point = draw(symbols, bounds, rng)
                if self.hold(instance, point):
                    yield instance, point
                    break


# ---------------------------------------------------------------- divisors


def divisors(e: Any) -> Iterator[Any]:
    """Bases of negative powers and arguments of logarithms anywhere inside a scalar expression: none may be 0."""
    for node in sp.preorder_traversal(e):
        if node.is_Pow and not _is_plain(node.base) and not _is_natural(node.exp):
            yield node.base
        elif isinstance(node, sp.log):
            yield node.args[0]


def _is_natural(exponent: Any) -> bool:
    """Whether the exponent is certainly not negative, so that the power is defined at a zero of the base."""
    return exponent.is_nonnegative is True


def roots(e: Any) -> Iterator[Any]:
    """Expressions that must be positive (or not negative) for ``e`` to be real: bases of roots, arguments of logs."""
    for node in sp.preorder_traversal(e):
        if node.is_Pow and node.exp.is_integer is not True and not node.base.is_number:
            yield node.base
        elif isinstance(node, sp.log) and not node.args[0].is_number:
            yield node.args[0]


def factors(e: Any) -> list[Any]:
    """Irreducible factors over Q of the numerator and denominator of ``e``, roots reduced to their bases."""
    return [f for part in sp.fraction(sp.together(e)) for f in _split(part)]


def _split(e: Any) -> Iterator[Any]:
    """Factors of one part; products and powers are taken apart first, since ``factor_list`` stumbles over sqrt(2)."""
    if e.is_Mul:
        for a in e.args:
            yield from _split(a)
    elif e.is_Pow and e.exp.is_number:
        yield from _split(e.base)
    elif e.is_Add and not sp.expand(e).is_number:
        for base, _ in sp.factor_list(e)[1]:
            yield from [base] if base.is_Add else _split(base)
    elif not _is_plain(e):
        # Numbers too: 1/(sin(1)^2 + cos(1)^2 - 1) divides by 0 although no symbol is in it.
        yield e


def _is_plain(e: Any) -> bool:
    """Whether ``e`` is a rational number other than 0, or pi: no condition on anything."""
    return bool((e.is_Rational and e != 0) or e is sp.pi or e is sp.E)


def _nonzero_number(e: Any) -> bool:
    try:
        return is_nonzero(value(e, {}))
    except NotEvaluable:
        return False


@dataclass
class Ledger:
    """The declared divisors of one theorem, and the question whether others follow from them."""

    hypotheses: Hypotheses
    _declared: list[Any] = field(default_factory=list)
    _known: dict[Any, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for e in (*self.hypotheses.nonzero, *self.hypotheses.positive):
            self._declared += factors(sp.sympify(e))

    def missing(self, e: Any) -> list[Any]:
        """Factors of a divisor ``e`` that are not known to be nonzero."""
        return [f for f in factors(e) if not self._covered(f)]

    def _covered(self, f: Any) -> bool:
        if f not in self._known:
            same = any(sp.expand(f - g) == 0 or sp.expand(f + g) == 0 for g in self._declared)
            self._known[f] = same or (_nonzero_number(f) if f.is_number else f.is_zero is False)
        return self._known[f]

    def unproven_roots(self, e: Any) -> list[Any]:
        """Bases of roots in ``e`` that are not known to be positive or, for plain roots, not negative."""
        positive = self.hypotheses.positive
        return [
            b for b in roots(e) if b.is_nonnegative is not True and not any(sp.expand(b - g) == 0 for g in positive)
        ]


# ---------------------------------------------------------------- the watch


@contextmanager
def watch(record: Callable[[Any], None]) -> Iterator[None]:
    """Call ``record(divisor)`` for every division outside sympy, and refuse substitutions that capture.

    sympy's operators are wrapped while the block runs, and restored after it. Only calls that come from code outside
    sympy count: what its algorithms divide by on the way is their own affair.
    """
    saved = [(c, n, vars(c)[n]) for c, n in _operators()]
    for cls, name, method in saved:
        setattr(cls, name, _wrap(name, method, record))
    try:
        yield
    finally:
        for cls, name, method in saved:
            setattr(cls, name, method)


def _operators() -> list[tuple[Any, str]]:
    number = sp.Rational.__mro__[1]
    classes = (sp.Basic, sp.Expr, number, sp.Rational, sp.MatrixBase)
    names = ("__truediv__", "__rtruediv__", "__pow__", "subs", "xreplace")
    return [(c, n) for c in classes for n in names if n in vars(c)]


def _wrap(name: str, method: Any, record: Callable[[Any], None]) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(sys._getframe(1).f_globals.get("__name__", "")).startswith("sympy."):
            if name == "__truediv__":
                _record(args[0], record)
            elif name == "__rtruediv__" or (name == "__pow__" and not _is_natural(sp.sympify(args[0]))):
                _record(self, record)
            elif name in ("subs", "xreplace"):
                _refuse_capture(self, args)
        return method(self, *args, **kwargs)

    return call


def _record(divisor: Any, record: Callable[[Any], None]) -> None:
    for e in entries(divisor):
        if not _is_plain(e):
            record(e)


def _refuse_capture(e: Any, args: tuple[Any, ...]) -> None:
    """sympy turns ``Integral(x*tau, (tau, 0, 1)).subs(x, tau)`` into ``Integral(tau**2, ...)``: another statement."""
    bound = bound_symbols(e)
    if bound:
        pairs = args[0].items() if isinstance(args[0], dict) else [args] if len(args) == 2 else args[0]
        for old, new in pairs:
            caught = bound & sp.sympify(new).free_symbols
            if caught and sp.sympify(old) not in bound:
                raise ProofError(
                    f"substituting {old} -> {new} under an integral over {sorted(map(str, caught))}",
                    "a substitution that captures no bound variable",
                    "rename the variable of integration",
                )
