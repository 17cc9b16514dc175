"""Verdicts on random equations whose truth is known by construction, and the evaluator against independent oracles."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import sympy as sp

from proofs.conditions import Hypotheses
from proofs.engine import algebraic_form, decide, normal_form
from proofs.evaluate import Instance, NotEvaluable, compare, value
from proofs.language import opaque

x, y, z = sp.symbols("x y z", real=True)
F, G = opaque("F", ("a", "b")), sp.Function("G")
LEAVES: tuple[Any, ...] = (
    x,
    y,
    z,
    sp.Integer(2),
    sp.Rational(-1, 3),
    F(x, y),
    F(x, y).fdiff(1),
    G(z),
    sp.exp(x),
    sp.sin(z),
)
LEAVES += (sp.sqrt(y**2 + 1), sp.Derivative(G(x * y), x))


def expression(rng: random.Random, depth: int) -> Any:
    """A random expression in three symbols, undefined functions, their derivatives, roots and exponentials."""
    if depth == 0:
        return rng.choice(LEAVES)
    a, b = expression(rng, depth - 1), expression(rng, depth - 1)
    return rng.choice((a + b, a * b, a - b, a / (b**2 + 1)))


def identity(seed: int) -> tuple[Any, Any]:
    """Two sides that are equal by a law of arithmetic, whatever the parts are."""
    rng = random.Random(f"identity {seed}")
    a, b, c = expression(rng, 2), expression(rng, 1), rng.choice(LEAVES)
    laws = (
        ((a + b) ** 2, a**2 + 2 * a * b + b**2),
        ((a + b) * (a - b), a**2 - b**2),
        (a * (b + c), a * b + a * c),
        ((a + b) / (1 + c**2), a / (1 + c**2) + b / (1 + c**2)),
        (sp.Derivative(b * c, x), sp.Derivative(b, x) * c + b * sp.Derivative(c, x)),
        (1 / (1 + b**2) - 1 / (2 + b**2), 1 / ((1 + b**2) * (2 + b**2))),
    )
    return laws[seed % len(laws)]


@pytest.mark.parametrize("seed", range(60))
def test_a_true_equation_is_proved_and_a_perturbed_one_refuted(seed: int) -> None:
    lhs, rhs = identity(seed)
    assert decide(lhs, rhs).verdict == "PROVED"
    rng = random.Random(f"perturb {seed}")
    tiny = sp.Rational(rng.choice((-1, 1)), 10 ** rng.randint(1, 12))
    for wrong in (rhs + tiny, rhs + tiny * (1 + x**2), rhs + tiny * (2 + sp.sin(z))):
        decision = decide(lhs, wrong)
        assert decision.verdict == "REFUTED", decision


@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (sp.sin(x) ** 2 + sp.cos(x) ** 2, sp.Integer(1)),
        (sp.sin(x * y) ** 4 - sp.cos(x * y) ** 4, 1 - 2 * sp.cos(x * y) ** 2),
        (1 / (sp.sqrt(1 + x**2) - x), sp.sqrt(1 + x**2) + x),
        ((1 + x**2) ** sp.Rational(3, 2), (1 + x**2) * sp.sqrt(1 + x**2)),
        (((1 + x**2) ** sp.Rational(1, 3) + 1) * ((1 + x**2) ** sp.Rational(2, 3) - sp.cbrt(1 + x**2) + 1), 2 + x**2),
        (sp.sqrt(1 + x**2) / sp.sqrt(2 + y**2), sp.sqrt(1 + x**2) * sp.sqrt(2 + y**2) / (2 + y**2)),
        (sp.exp(x + y) * sp.exp(-y), sp.exp(x)),
    ],
)
def test_roots_and_circles_are_proved_without_heuristics(lhs: Any, rhs: Any) -> None:
    decision = decide(lhs, rhs)
    assert decision.verdict == "PROVED"
    assert decision.method in ("NF", "ALG")
    assert decide(lhs, rhs + sp.Rational(1, 10**9)).verdict == "REFUTED"


def test_forms_of_something_nonzero_are_not_zero() -> None:
    for e in (sp.sqrt(1 + x**2) - x, sp.sin(x) - sp.cos(x), sp.sin(x) ** 2 - sp.cos(x) ** 2, sp.cbrt(1 + x**2) - 1):
        assert normal_form(e) != 0
        assert algebraic_form(e) != 0


def test_a_heuristic_proof_says_so() -> None:
    """No theorem needs one; should one ever come, the verdict shows it."""
    decision = decide(sp.sin(2 * x), 2 * sp.sin(x) * sp.cos(x))
    assert (decision.verdict, decision.method) == ("PROVED", "SIMP")
    assert decision.points >= 5


@pytest.mark.parametrize("seed", range(20))
def test_the_evaluator_against_mpmath(seed: int) -> None:
    """Same expression, same point, other code: sympy's lambdify on mpmath with 120 digits, far beyond the intervals."""
    rng = random.Random(f"evaluate {seed}")
    e = Instance(seed).concrete(expression(rng, 3))
    point = {s: Fraction(rng.randint(-9, 9), rng.randint(1, 7)) for s in (x, y, z)}
    with mpmath.workdps(120):
        wanted = sp.lambdify((x, y, z), e, "mpmath")(*(mpmath.mpf(q.numerator) / q.denominator for q in point.values()))
        got = value(e, point)
        if isinstance(got, Fraction):
            assert abs(mpmath.mpf(got.numerator) / got.denominator - wanted) < mpmath.mpf(10) ** -100 * (
                1 + abs(wanted)
            )
        else:
            assert mpmath.mpf(got.a) <= wanted <= mpmath.mpf(got.b)


@pytest.mark.parametrize("seed", range(5))
def test_integrals_of_instances_against_simpson(seed: int) -> None:
    """Instances of one-variable functions are cubics, and Simpson's rule is exact for them."""
    instance = Instance(seed)
    a, b = sp.Rational(-2, 3), sp.Rational(5, 4)
    exact = instance.concrete(sp.Integral(G(z), (z, a, b)))
    ends = [instance.concrete(G(q)) for q in (a, (a + b) / 2, b)]
    assert exact == (b - a) / 6 * (ends[0] + 4 * ends[1] + ends[2])
    assert sp.degree(instance.concrete(G(x)), x) == 3


@pytest.mark.parametrize("seed", range(5))
def test_derivatives_of_instances_against_an_exact_difference(seed: int) -> None:
    """(g(x+1) - g(x-1))/2 - g'''/6 is the derivative of a cubic; for a quadratic in each variable, no remainder."""
    g, f = (Instance(seed).concrete(e) for e in (G(x), F(x, y)))
    slope = Instance(seed).concrete(sp.Derivative(G(x), x))
    assert sp.expand((g.subs(x, x + 1) - g.subs(x, x - 1)) / 2 - sp.diff(g, x, 3) / 6 - slope) == 0
    partial = Instance(seed).concrete(F(x, y).fdiff(2))
    assert sp.expand((f.subs(y, y + 1) - f.subs(y, y - 1)) / 2 - partial) == 0


@pytest.mark.parametrize(
    "e", [1 / x, sp.sqrt(x - 1), sp.log(x), x**-3, sp.log(x - 1), (x - 1) ** sp.Rational(1, 3), sp.exp(1 / x)]
)
def test_no_value_at_a_pole_or_off_the_real_domain(e: Any) -> None:
    with pytest.raises(NotEvaluable):
        value(e, {x: Fraction(0)})


def test_exact_values_stay_exact() -> None:
    point = {x: Fraction(9, 4), y: Fraction(0)}
    for e, wanted in {
        sp.sqrt(x): Fraction(3, 2),
        x ** sp.Rational(-3, 2): Fraction(8, 27),
        sp.exp(y) + sp.cos(y) + sp.sin(y): Fraction(2),
        sp.log(x - sp.Rational(5, 4)): Fraction(0),
    }.items():
        assert value(e, point) == wanted
        assert isinstance(value(e, point), Fraction)


def test_comparison_claims_only_what_it_knows() -> None:
    third, root = Fraction(1, 3), value(sp.sqrt(x), {x: Fraction(2)})
    assert compare(third, third) is True
    assert compare(third, third + Fraction(1, 10**90)) is False
    assert compare(root, Fraction(14142135623730951, 10**16)) is False
    assert compare(root * root, Fraction(2)) is True
    wide = root * Fraction(10**80).numerator - root * Fraction(10**80).numerator
    assert compare(wide, Fraction(0)) is None


def test_points_satisfy_hypotheses_and_vary() -> None:
    hypotheses = Hypotheses(nonzero=(x - y,), where=(x > 0, x < y, y < z, z < 1))
    points = [tuple(p[s] for s in (x, y, z)) for _, p in hypotheses.points({x, y, z}, seed=1, tries=12)]
    assert len(points) == 12
    assert all(0 < a < b < c < 1 for a, b, c in points)
    assert len(set(points)) > 8
