"""Decimal enclosures hold their balls, and precision is set where it must be."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import pytest
from flint import arb, ctx
from hypothesis import given
from hypothesis import strategies as st

from meanflow_ref.truth.certified import Enclosure, balls, working_precision
from meanflow_ref.truth.certified.balls import exact


@st.composite
def exact_balls(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Midpoint ``m 2^e`` and radius ``k 2^f`` as integers."""
    return (
        draw(st.integers(-(2**220), 2**220)),
        draw(st.integers(-400, 40)),
        draw(st.integers(0, 2**29)),
        draw(st.integers(-400, 10)),
    )


def ends(numbers: tuple[int, int, int, int]) -> tuple[arb, Fraction, Fraction]:
    """A ball and its ends; the radius is read back, since 30 bits are kept of it."""
    m, e, k, f = numbers
    with working_precision(600):
        ball = arb((m, e)) + arb(0, arb((k, f)))
        mid, rad = (
            Fraction(int(x[0])) * Fraction(2) ** int(x[1]) for x in (ball.mid().man_exp(), ball.rad().man_exp())
        )
        return ball, mid - rad, mid + rad


@given(exact_balls(), st.integers(1, 60))
def test_both_ends_are_inside_and_the_radius_is_not_much_too_wide(
    numbers: tuple[int, int, int, int], printed: int
) -> None:
    ball, low, high = ends(numbers)
    found = Enclosure.from_ball(ball, printed)
    assert found.lower <= low
    assert high <= found.upper
    # At most 1 % too wide for its three digits, and by half a unit of the midpoint's last digit: 5 parts in 10^digits.
    shown = len(Decimal(found.mid).as_tuple().digits)
    last_digit = 5 * abs(low + high) / 2 / Fraction(10) ** shown
    assert found.upper - found.lower <= Fraction(101, 100) * (high - low + 2 * last_digit)


@given(exact_balls())
def test_an_independent_reader_finds_the_same_nearest_float(numbers: tuple[int, int, int, int]) -> None:
    found = Enclosure.from_ball(ends(numbers)[0])
    # Python's own parser of decimals rounds correctly.
    assert found.to_float == float(found.mid)
    assert found.contains(found.mid)
    assert found.contains(Decimal(found.mid))


def test_a_radius_rounded_to_nearest_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(x: Fraction) -> Decimal:
        return Decimal(f"{float(x):.2e}")

    monkeypatch.setattr(balls, "_rounded_up", nearest)
    numbers = [(3**k, -k, 7**3 + k, -60) for k in range(1, 40)]
    escaped = [n for n in numbers if not Enclosure.from_ball(ends(n)[0]).upper >= ends(n)[2]]
    assert escaped


def test_nearest_float_is_claimed_only_where_it_is_proved() -> None:
    # Half way between two float64, the nearest depends on the side.
    with working_precision(200):
        half_way = arb(1) + arb(2) ** -53
        assert not Enclosure.from_ball(half_way + arb(0, arb(2) ** -100)).correctly_rounded
        assert Enclosure.from_ball(half_way + arb(2) ** -80 + arb(0, arb(2) ** -100), 60).correctly_rounded
        assert not Enclosure.from_ball(arb("nan")).correctly_rounded


def test_digits_are_those_of_the_radius() -> None:
    assert Enclosure("1.000", "0.00099").digits == 3
    assert Enclosure("-123.4", "1").digits == 2
    assert Enclosure("0.5", "0.6").digits == 0
    assert Enclosure("0", "0").digits > 1000
    assert Enclosure("0", "Infinity").digits == 0


def test_overlap_and_membership_are_exact() -> None:
    one, two = Enclosure("1", "0.1"), Enclosure("1.2", "0.1")
    assert one.overlaps(two)
    assert not one.overlaps(Enclosure("1.2000001", "0.1"))
    assert one.contains(Fraction(11, 10))
    # The float 1.1 lies above 11/10 by 9e-17.
    assert not one.contains(1.1)


def test_precision_is_restored_after_an_error() -> None:
    before = ctx.prec, ctx.cap

    def fails() -> None:
        with working_precision(777, length=33):
            assert (ctx.prec, ctx.cap) == (777, 33)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (ctx.prec, ctx.cap) == before


def test_floats_are_exact_at_any_precision_and_fractions_are_enclosed() -> None:
    with working_precision(20):
        assert exact(0.1).is_exact()
        assert float(exact(0.1)) == 0.1
        assert exact(2**100 + 1).is_exact()
        third = exact(Fraction(1, 3))
    with working_precision(400):
        # Made at 20 bits, wide for ever after: the reason why precision comes first.
        assert third.rad() > 1e-8
        assert third.contains(exact(Fraction(1, 3)))


def test_without_flint_the_extra_is_named() -> None:
    code = "import sys; sys.modules['flint'] = None; import meanflow_ref.truth.certified"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "MissingExtraError" in done.stderr
    assert "python-flint" in done.stderr
    assert 'pip install "meanflow-ref[truth]"' in done.stderr
