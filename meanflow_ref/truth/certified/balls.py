r"""Balls: working precision, exact inputs, and the decimal enclosure that is handed out.

Every number below is an ``arb`` of python-flint: a midpoint and a radius. *Theorem used throughout* (inclusion
property, Moore 1966; Johansson, IEEE Trans. Comput. 66, 2017): if the inputs of an operation lie in their balls, its
exact result lies in the ball computed. Its hypotheses are that inputs are enclosed, which
:func:`exact` sees to, and that the library is right, which is taken on trust.

python-flint keeps one precision for the whole process. Parameters made under a low precision carry wide radii for
ever after (1/10 made at 53 bits is known to 17 digits, whatever follows), so that every entry point first sets its
own precision by :func:`working_precision` and only then builds its parameters. The setting is global: certify from
one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

from meanflow_ref.errors import MissingExtraError

try:
    from flint import arb, ctx, fmpq
except ImportError:
    raise MissingExtraError("python-flint", "truth", "A certified enclosure") from None

# A ball or a power series of balls: the formulas of this room run on both, and no static type is common to them.
Ball: TypeAlias = Any
# What counts as an exact input.
Exact: TypeAlias = int | float | Fraction

# Significant digits of the decimal midpoint where nobody asks for another number.
PRINTED_DIGITS = 40
# What `Enclosure.digits` says of an exact value.
ALL_DIGITS = 10_000


@contextmanager
def working_precision(bits: int, length: int = 2) -> Iterator[None]:
    """Set the precision of balls and the length of power series, and restore both."""
    before = ctx.prec, ctx.cap
    ctx.prec, ctx.cap = bits, length
    try:
        yield
    finally:
        ctx.prec, ctx.cap = before


def exact(value: Exact) -> arb:
    """``value`` as a ball: of radius 0 for a float or an integer at any precision, else rounded outward."""
    if isinstance(value, Fraction):
        return arb(fmpq(value.numerator, value.denominator))
    return arb(value)


def largest(values: Iterable[arb]) -> arb:
    """An upper bound of every ball, an exact number."""
    tops = [value.upper() for value in values]
    best = tops[0]
    for top in tops[1:]:
        if not top < best:
            best = top
    return best


def euclidean_norm(values: Iterable[arb]) -> arb:
    """An upper bound of the Euclidean norm, an exact number."""
    return sum((value.abs_upper() ** 2 for value in values), arb(0)).sqrt().upper()


def fraction_of(x: arb) -> Fraction:
    """The rational number that an exact ball is."""
    mantissa, exponent = (int(part) for part in x.man_exp())
    return Fraction(mantissa * 2**exponent) if exponent >= 0 else Fraction(mantissa, 2**-exponent)


@dataclass(frozen=True)
class Enclosure:
    """A decimal midpoint and a decimal radius: the true number lies in ``[mid - rad, mid + rad]``.

    Both are decimal strings, to be read exactly (``decimal.Decimal``, ``fractions.Fraction``); the radius includes the
    rounding of the midpoint and is itself rounded up. Everything below is rational arithmetic, without rounding.
    """

    mid: str
    rad: str

    @classmethod
    def from_ball(cls, x: arb, printed: int = PRINTED_DIGITS) -> Enclosure:
        """Enclosure of everything in ``x``, with at most ``printed`` significant digits of the midpoint."""
        if not x.is_finite():
            return cls("0", "Infinity")
        centre, radius = fraction_of(x.mid()), fraction_of(x.rad())
        # Digits beyond the radius say nothing: print two of them.
        useful = _exponent(centre) - _exponent(radius) + 2 if centre and radius else printed
        middle = _rounded(centre, max(1, min(printed, useful)))
        return cls(str(middle), str(_rounded_up(abs(centre - Fraction(middle)) + radius)))

    @property
    def lower(self) -> Fraction:
        """The lower end."""
        return Fraction(self.mid) - Fraction(self.rad)

    @property
    def upper(self) -> Fraction:
        """The upper end."""
        return Fraction(self.mid) + Fraction(self.rad)

    @property
    def to_float(self) -> float:
        """The float64 nearest to the midpoint."""
        return float(Fraction(self.mid))

    @property
    def correctly_rounded(self) -> bool:
        """Whether :attr:`to_float` is proved nearest to the true number: both ends round to it."""
        return self.rad != "Infinity" and float(self.lower) == float(self.upper) == self.to_float

    @property
    def digits(self) -> int:
        """Certified significant decimal digits, ``floor(log10(|mid|/rad))``; 0 if the ball holds zero."""
        if self.rad == "Infinity":
            return 0
        middle, radius = abs(Fraction(self.mid)), Fraction(self.rad)
        if radius == 0:
            return ALL_DIGITS
        return max(0, _exponent(middle / radius)) if middle > radius else 0

    def contains(self, x: Exact | str | Decimal) -> bool:
        """Whether the number ``x``, read exactly, lies in the enclosure."""
        return self.rad == "Infinity" or self.lower <= Fraction(x) <= self.upper

    def overlaps(self, other: Enclosure) -> bool:
        """Whether the two have a point in common, as two enclosures of one number must."""
        if "Infinity" in (self.rad, other.rad):
            return True
        return self.lower <= other.upper and other.lower <= self.upper

    def distance(self, x: Exact) -> float:
        """Distance of ``x`` from the midpoint, rounded to a float."""
        return float(abs(Fraction(x) - Fraction(self.mid)))


def _exponent(x: Fraction) -> int:
    """``floor(log10(|x|))`` of a non-zero number."""
    x = abs(x)
    # From the bit lengths, off by one at most; then put right.
    guess = math.floor((x.numerator.bit_length() - x.denominator.bit_length()) * math.log10(2))
    while Fraction(10) ** guess > x:
        guess -= 1
    while Fraction(10) ** (guess + 1) <= x:
        guess += 1
    return guess


def _rounded(x: Fraction, digits: int) -> Decimal:
    """``x`` to nearest with ``digits`` significant digits."""
    if not x:
        return Decimal(0)
    shift = digits - 1 - _exponent(x)
    return _decimal(round(x * Fraction(10) ** shift), -shift)


def _rounded_up(x: Fraction) -> Decimal:
    """``x >= 0`` rounded up, to three significant digits."""
    if not x:
        return Decimal(0)
    shift = 2 - _exponent(x)
    return _decimal(math.ceil(x * Fraction(10) ** shift), -shift)


def _decimal(integer: int, exponent: int) -> Decimal:
    """``integer * 10**exponent``, exactly: built from its digits, since arithmetic on decimals rounds."""
    return Decimal((int(integer < 0), tuple(map(int, str(abs(integer)))), exponent))
