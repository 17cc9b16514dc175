"""Exact arithmetic: identities are decided, and sympy agrees."""

from __future__ import annotations

import random
from fractions import Fraction

import mpmath
import pytest
import sympy

from meanflow_ref.kit.prove import functions
from meanflow_ref.kit.prove.calculus import derivative
from meanflow_ref.kit.prove.deciding import is_zero
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.ring import Number, Ring


@pytest.fixture
def ring() -> Ring:
    return Ring()


@pytest.fixture
def xyz(ring: Ring) -> tuple[Number, Number, Number]:
    # Positive, as the radicands of fractional powers must be.
    bounds = (Fraction(1, 10), Fraction(2))
    x, y, z = (ring.symbol(name, "input", bounds=bounds) for name in "xyz")
    return x, y, z


def random_pair(
    rng: random.Random, numbers: list[Number], symbols: list[sympy.Expr], depth: int
) -> tuple[Number, sympy.Expr]:
    """One random rational expression in both systems."""
    if depth == 0:
        k = rng.randrange(4)
        if k == 3:
            c = Fraction(rng.randint(-3, 3), rng.randint(1, 4))
            return numbers[0].ring.constant(c), sympy.Rational(c.numerator, c.denominator)
        return numbers[k], symbols[k]
    (a, p), (b, q) = (random_pair(rng, numbers, symbols, depth - 1) for _ in range(2))
    kind = rng.choice("++-**/^")
    if kind == "+":
        return a + b, p + q
    if kind == "-":
        return a - b, p - q
    if kind == "/":
        return a / (b * b + 1), p / (q**2 + 1)
    return (a * b, p * q) if kind == "*" else (a**2, p**2)


@pytest.mark.parametrize("seed", range(30))
def test_random_expressions_agree_with_sympy(seed: int, xyz: tuple[Number, ...]) -> None:
    rng = random.Random(seed)
    symbols = list(sympy.symbols("x y z"))
    number, expression = random_pair(rng, list(xyz), symbols, 3)
    other, _ = random_pair(rng, list(xyz), symbols, 2)
    values = {s: sympy.Rational(str(n.ring.atoms[n.only_atom()].value)) for s, n in zip(symbols, xyz, strict=True)}
    wanted = sympy.Rational(expression.subs(values))
    with mpmath.workdps(40):
        assert abs(number.value() - mpmath.mpf(int(wanted.p)) / int(wanted.q)) < mpmath.mpf(10) ** -35 * (
            1 + abs(number.value())
        )
    # A rearrangement is seen to be equal, and the slightest change to be different.
    assert is_zero((number + other) ** 2 - number**2 - 2 * number * other - other * other)
    assert not is_zero((number + other) ** 2 - number**2 - 2 * number * other - other * other + Fraction(1, 10**9))


def test_fractions_are_compared_on_their_common_denominator(xyz: tuple[Number, ...]) -> None:
    x, y, _ = xyz
    s = x * x + y
    assert is_zero(s / (s + 1) - (1 - 1 / (s + 1)))
    assert is_zero(2 / (2 * s + 2) - 1 / (s + 1))
    assert not is_zero(s / (s + 1) - (1 - 1 / (s + 2)))


def test_fractional_powers(xyz: tuple[Number, ...]) -> None:
    x, y, _ = xyz
    s = x * x + y * y + Fraction(1, 1000)
    half, quarter = Fraction(1, 2), Fraction(1, 4)
    assert is_zero(s**half * s**half - s)
    assert is_zero((s**half) ** half - s**quarter)
    assert is_zero(s ** Fraction(-3, 4) * s - s**quarter)
    assert not is_zero(s**half - s)


def test_the_root_of_a_square_is_not_the_number(ring: Ring) -> None:
    x = ring.symbol("x", "input", value=Fraction(-3))
    root = (x * x) ** Fraction(1, 2)
    assert not is_zero(root - x)
    assert float(root.value()) == 3


def test_named_sums_are_multiplied_out_where_they_must(xyz: tuple[Number, ...]) -> None:
    x, y, z = xyz
    long = (x + y + z + 1) ** 5
    named = long.named()
    assert len(named.terms) == 1
    assert is_zero(named - long)
    assert ((3 * long).named() - 3 * named).key() == frozenset()
    assert is_zero(named**2 - long * long)
    assert not is_zero(named - long - 1)


def test_truth_values(ring: Ring, xyz: tuple[Number, ...]) -> None:
    x, y, _ = xyz
    m = functions.less_than(x, y)
    assert is_zero(m * m - m)
    assert is_zero(m - (1 - functions.less_than(y, x) - functions.equal(x, y))) is False
    assert is_zero(m - functions.less_than(x - y, ring.constant(0)))
    assert (m * x + (1 - m) * y).value() == min(x.value(), y.value()) or m.value() == 0
    with pytest.raises(NotExactError, match="truth value"):
        1 / m


def test_where_an_equation_holds_it_may_be_used(ring: Ring, xyz: tuple[Number, ...]) -> None:
    x, y, z = xyz
    m = functions.equal(x * y, x)
    assert is_zero(m * (x * y - x) * z)
    assert is_zero(m * x * y**2 - m * x)
    assert not is_zero(m * (y - 1))  # x may be 0
    assert not is_zero((1 - m) * (x * y - x))


def test_bounds_decide_comparisons(ring: Ring) -> None:
    t = ring.symbol("t", "input", bounds=(Fraction(0), Fraction(1)))
    zero, one = ring.constant(0), ring.constant(1)
    assert functions.less_than(t, zero).as_constant() == 0
    assert functions.less_than(one, t).as_constant() == 0
    assert functions.less_than(t, one + one).as_constant() == 1
    assert functions.less_than(t, one).as_constant() is None  # t may be 1
    assert functions.maximum(t, zero).key() == t.key()


def test_derivatives_agree_with_sympy(xyz: tuple[Number, ...]) -> None:
    x, y, _ = xyz
    a, b = sympy.symbols("x y")
    number = functions.sin(x * y) * functions.exp(-x) + (x * x + y) ** Fraction(-3, 2) + functions.sigmoid(x)
    expression = sympy.sin(a * b) * sympy.exp(-a) + (a**2 + b) ** sympy.Rational(-3, 2) + 1 / (1 + sympy.exp(-a))
    values = {s: sympy.Rational(str(n.ring.atoms[n.only_atom()].value)) for s, n in ((a, x), (b, y))}
    wanted = str(sympy.diff(expression, a).subs(values).evalf(40))
    with mpmath.workdps(40):
        assert abs(derivative(number, x.only_atom()).value() - mpmath.mpf(wanted)) < 1e-30


@pytest.mark.parametrize("quarters", range(-5, 6))
def test_circular_functions_by_quarter_turns(ring: Ring, xyz: tuple[Number, ...], quarters: int) -> None:
    x = xyz[0]
    shift = functions.pi(ring) * Fraction(quarters, 2)
    for number, sign in ((x, 1), (-x, -1)):
        with mpmath.workdps(40):
            angle = sign * x.value() + quarters * mpmath.pi / 2
            assert abs(functions.sin(number + shift).value() - mpmath.sin(angle)) < 1e-35
            assert abs(functions.cos(number + shift).value() - mpmath.cos(angle)) < 1e-35
    assert is_zero(functions.sin(functions.pi(ring) / 2 - x) - functions.cos(x))


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (0.001, "1/1000"),
        (1 / 3, "1/3"),
        (1 - 1.4 - 0.3, "-7/10"),
        (2.0**-17, "1/131072"),
        (1.5707963267948966, "1/2 pi"),
        (3.0, "3"),
        (0.123456, "1929/15625"),
    ],
)
def test_constants_are_read_as_meant(ring: Ring, value: float, meant: str) -> None:
    assert str(functions.read_constant(ring, value)) == meant


def test_a_constant_that_means_nothing_simple_is_taken_exactly(ring: Ring) -> None:
    value = 0.7390851332151607
    assert functions.read_constant(ring, value).as_constant() == Fraction(value)


def test_divisors_are_remembered(ring: Ring, xyz: tuple[Number, ...]) -> None:
    x, y, _ = xyz
    assert is_zero((x - y) * x / (x - y) - x)
    assert [str(c) for c in ring.conditions.values()] == ["x - y"]
    with pytest.raises(NotExactError, match="division by zero"):
        x / (y - y)


def test_large_products_are_refused(xyz: tuple[Number, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, z = xyz
    monkeypatch.setattr("meanflow_ref.kit.prove.ring.LARGEST_PRODUCT", 100)
    with pytest.raises(NotExactError, match="too large"):
        (x + y + z + 1) ** 5
