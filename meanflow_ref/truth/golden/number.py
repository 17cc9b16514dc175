r"""A published number: a decimal that is the true value correctly rounded, and half a unit of its last place as radius.

A certified ball's own ends depend on the machine's float64 guesses and on the precision that happened to suffice. What
is published depends on the true value alone. Let ``q = 10^(e - n + 1)`` be the unit of the n-th significant digit, ``e
= floor(log10 |x|)`` (of x rounded to 20 digits), or of the same place of 1e-6 where ``|x|`` is smaller than that. If
both ends of a ball that is proved to hold x round to one multiple m of q, then x does too, so that ``|x - m| <= q/2``.
Hence any machine that certifies enough digits writes the same characters, and a file is regenerated bit for bit.

This module needs nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

from meanflow_ref.errors import VectorError

# Below this size digits are counted from here: zero has no significant digits.
SMALLEST_EXPONENT = -6


class Ball(Protocol):
    """Anything with rational ends that is proved to hold the number."""

    @property
    def lower(self) -> Fraction:
        """The lower end."""

    @property
    def upper(self) -> Fraction:
        """The upper end."""


@dataclass(frozen=True)
class Number:
    """The true value lies in ``[mid - rad, mid + rad]``.

    Attributes:
        mid: Decimal midpoint, to be read exactly.
        rad: Decimal radius.
        float64: The float64 nearest to ``mid``.
        rounded: Whether ``float64`` is proved the float64 nearest to the true value.

    """

    mid: str
    rad: str
    float64: float
    rounded: bool

    @property
    def middle(self) -> Fraction:
        """``mid`` as an exact number."""
        return Fraction(self.mid)

    @property
    def lower(self) -> Fraction:
        """The lower end."""
        return Fraction(self.mid) - Fraction(self.rad)

    @property
    def upper(self) -> Fraction:
        """The upper end."""
        return Fraction(self.mid) + Fraction(self.rad)

    @property
    def digits(self) -> int:
        """Certified decimal digits: ``floor(log10(max(|mid|, 1e-6) / rad))``."""
        ratio = max(abs(self.middle), Fraction(10) ** SMALLEST_EXPONENT) / Fraction(self.rad)
        return len(str(int(ratio))) - 1

    def error(self, value: float) -> float:
        """``|value - mid|``, from the exact difference: no digit is lost to the subtraction."""
        return float(abs(Fraction(value) - self.middle))

    def to_json(self) -> dict[str, str | bool]:
        """The number as it stands in a file."""
        return {"mid": self.mid, "rad": self.rad, "f64": self.float64.hex(), "rounded": self.rounded}

    @classmethod
    def from_json(cls, entry: object, where: str) -> Number:
        """The number of a file's entry.

        Raises:
            VectorError: If the entry is not one, or its parts contradict each other.

        """
        if not isinstance(entry, Mapping) or set(entry) != {"mid", "rad", "f64", "rounded"}:
            raise VectorError(f"{where} is {str(entry)[:60]!r}.", "an object with mid, rad, f64 and rounded")
        try:
            number = cls(str(entry["mid"]), str(entry["rad"]), float.fromhex(entry["f64"]), entry["rounded"] is True)
            consistent = float(number.middle) == number.float64 and Fraction(number.rad) > 0
        except (ValueError, TypeError, OverflowError) as error:
            raise VectorError(f"{where} has a part that is no number: {error}.", "decimals and a hex float") from error
        if not consistent:
            raise VectorError(f"{where}: f64 is not the float64 nearest to mid, or rad is not positive.", "both")
        return number


def published(ball: Ball, digits: int) -> Number | None:
    """The number that a ball proves, to ``digits`` places; None if it is too wide: its ends round differently."""
    low, high = ball.lower, ball.upper
    places = {_exponent(end) for end in (low, high)}
    if len(places) > 1:
        return None
    exponent = places.pop() - digits + 1
    unit = Fraction(10) ** exponent
    ends = {round(low / unit), round(high / unit)}
    if len(ends) > 1:
        return None
    mid, rad = _decimal(ends.pop(), exponent), _decimal(5, exponent - 1)
    middle, half = Fraction(mid), Fraction(rad)
    nearest = float(middle)
    return Number(mid, rad, nearest, float(middle - half) == float(middle + half) == nearest)


def _exponent(x: Fraction) -> int:
    """``floor(log10 |x|)`` of x rounded to 20 digits, so that a ball about a power of ten has one; at least that of
    the smallest scale.
    """
    x = abs(x)
    if x < Fraction(10) ** SMALLEST_EXPONENT / 2:
        return SMALLEST_EXPONENT
    guess = len(str(int(x))) - 1 if x >= 1 else -len(str(int(1 / x)))
    guess += x >= Fraction(10) ** (guess + 1)
    guess += round(x / Fraction(10) ** (guess - 19)) >= 10**20
    return max(guess, SMALLEST_EXPONENT)


def _decimal(integer: int, exponent: int) -> str:
    """``integer * 10^exponent`` in plain or scientific notation, every digit kept but those of zero."""
    return "0" if not integer else str(Decimal((int(integer < 0), tuple(map(int, str(abs(integer)))), exponent)))
