"""Published decimals: the true value correctly rounded, whatever ball proves it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanflow_ref.errors import VectorError
from meanflow_ref.truth.golden.number import Number, published


@dataclass(frozen=True)
class Interval:
    lower: Fraction
    upper: Fraction


def around(x: Fraction, below: Fraction, above: Fraction) -> Interval:
    return Interval(x - below, x + above)


numbers = st.builds(
    lambda n, e: Fraction(n) * Fraction(10) ** e,
    st.integers(-(10**25), 10**25),
    st.integers(-60, 20),
)
radii = st.integers(1, 10**6).map(lambda n: Fraction(n, 10**6))


@given(numbers, radii, radii)
def test_two_balls_of_one_number_publish_the_same(x: Fraction, below: Fraction, above: Fraction) -> None:
    tiny = Fraction(10) ** -50 * max(abs(x), Fraction(1, 10**6))
    one, two = published(around(x, below * tiny, above * tiny), 32), published(around(x, 0 * tiny, 0 * tiny), 32)
    assert two is not None
    assert one is None or one == two
    assert two.lower <= x <= two.upper
    assert two.digits >= 31
    assert float(two.middle) == two.float64


@pytest.mark.parametrize(
    "text", ["1", "-1", "0.1", "10", "1000", "1e-5", "0", "0.25", "-2", "1e-6", "1e-9", "123456.5"]
)
def test_a_ball_about_a_short_decimal_publishes_it(text: str) -> None:
    x, tiny = Fraction(text), Fraction(10) ** -60
    number = published(around(x, tiny, tiny), 32)
    assert number is not None
    assert number.middle == x
    assert number == published(around(x, tiny / 7, tiny / 3), 32)


def test_a_ball_on_a_border_is_not_published() -> None:
    x, tiny = Fraction("1.00000000000000000000000000000005"), Fraction(10) ** -60
    assert published(around(x, tiny, tiny), 32) is None
    assert published(around(x + 2 * tiny, tiny, tiny), 32) is not None
    assert published(Interval(Fraction(1), Fraction(2)), 32) is None


def test_a_float64_that_is_not_proved_nearest_is_flagged() -> None:
    middle = 1 + Fraction(1, 2**53)  # between two floats
    number = published(around(middle, Fraction(1, 10**60), Fraction(1, 10**60)), 32)
    assert number is not None
    assert not number.rounded
    clear = published(around(Fraction(1, 3), Fraction(1, 10**60), Fraction(1, 10**60)), 32)
    assert clear is not None
    assert clear.rounded
    assert clear.error(1 / 3) == pytest.approx(float(abs(Fraction(1 / 3) - Fraction(1, 3))), rel=1e-12)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "0.5",
        {"mid": "0.5", "rad": "5E-33", "f64": "0x1p-1"},
        {"mid": "0.5", "rad": "5E-33", "f64": "0x1p-2", "rounded": True},
        {"mid": "0.5", "rad": "0", "f64": "0x1p-1", "rounded": True},
        {"mid": "half", "rad": "5E-33", "f64": "0x1p-1", "rounded": True},
        {"mid": "0.5", "rad": "5E-33", "f64": 0.5, "rounded": True},
    ],
)
def test_a_wrong_entry_is_refused(entry: object) -> None:
    with pytest.raises(VectorError, match="case 7"):
        Number.from_json(entry, "case 7")
