r"""Approximate Taylor polynomials of a trajectory, in fixed-point integers.

Nothing here is certified and nothing need be: the defect bound takes whatever polynomial it is handed and measures by
how much it fails the differential equation. A wrong coefficient makes that defect large, never an enclosure wrong.

Backwards along the linear path, ``x = t0 - t``, a trajectory obeys ``dz/dx = -v(z, t0 - x)`` with v as in
:mod:`~meanflow_ref.truth.certified.linear`. Coefficient n of each product, exponential and quotient in it follows from
coefficients up to n, so that one sweep yields the series (recurrences of automatic differentiation, Moore 1966). A
coefficient is an integer, a multiple of ``2^-bits``, of a series in ``x / 2^shift``; each recurrence is a sum of
products of integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import TypeAlias

from flint import arb

from meanflow_ref.truth.certified.linear import LinearField, LinearTerm

Series: TypeAlias = list[int]


def taylor_polynomial(
    field: LinearField, z: Sequence[arb], t: arb, order: int, bits: int, shift: int
) -> list[list[arb]]:
    """Coefficients of ``x^0 .. x^order`` of each coordinate, exact dyadic numbers near those of the trajectory.

    Args:
        field: The field.
        z: State at ``x = 0``; its midpoint is taken.
        t: Time there; its midpoint is taken.
        order: Degree of the polynomials.
        bits: Bits after the point.
        shift: ``2^shift`` is about the radius of convergence.

    """
    engine = _Sweep(field, [_fixed(z_i, bits) for z_i in z], _fixed(t, bits), order, bits, shift)
    for n in range(order):
        engine.advance(n)
    return [[arb((c, -bits - n * shift)) for n, c in enumerate(series)] for series in engine.z]


def convergence_radius(polynomial: Sequence[Sequence[arb]]) -> float:
    """Estimate of the radius of convergence, by the roots of the last coefficients; at most 1000."""
    rates = [1e-3]
    for coefficients in polynomial:
        size = 1 + max((abs(float(c)) for c in coefficients[:2]), default=0.0)
        rates += [_root(coefficients[n], size, n) for n in range(max(1, len(coefficients) - 8), len(coefficients))]
    return 1 / max(rates)


def _root(coefficient: arb, size: float, n: int) -> float:
    """``|coefficient / size|^(1/n)``, for coefficients of any exponent."""
    mantissa, exponent = (int(part) for part in coefficient.mid().man_exp())
    if not mantissa:
        return 0.0
    length = abs(mantissa).bit_length()
    scaled = abs(mantissa) / (1 << length) / size
    return math.exp((math.log(scaled) + (length + exponent) * math.log(2)) / n)


@dataclass(frozen=True)
class _Times:
    """Series of the quantities that belong to one data variance."""

    inverse: Series
    log: Series
    gain: Series
    pull: Series


class _Sweep:
    """The series of one trajectory, one coefficient further at each call."""

    def __init__(self, field: LinearField, z: list[int], t: int, order: int, bits: int, shift: int) -> None:
        self.field, self.bits, self.order = field, bits, order
        self.one = 1 << bits
        self.unit = _scaled(self.one, shift)  # the series of x is (0, unit)
        self.alpha, self.t = self.one - t, t
        self.z: list[Series] = [[z_i] for z_i in z]
        self.squares: list[Series] = [[] for _ in z]
        self.times = [self._times(_fixed(variance, bits)) for variance in field.variances]
        self.components = [[_Component(self, term, k) for k in range(len(term.means))] for term in field.terms]
        self.velocities: list[list[Series]] = [[[] for _ in z] for _ in field.terms]
        self.gained: list[list[Series]] = [[[] for _ in z] for _ in field.terms]
        self.totals: list[Series] = [[] for _ in field.terms]

    def product(self, a: Series, b: Series, n: int) -> int:
        """Coefficient n of the product of two series."""
        total: int = sum(map(mul, a[: n + 1], b[n::-1]))
        return total >> self.bits

    def _times(self, variance: int) -> _Times:
        """``lambda`` is a quadratic in x, so that its inverse and logarithm obey recurrences of three terms."""
        bits, unit, a, t = self.bits, self.unit, self.alpha, self.t
        low = (((a * a >> bits) * variance) + t * t) >> bits
        middle = (2 * unit * ((a * variance >> bits) - t)) >> bits
        high = ((unit * unit >> bits) * (variance + self.one)) >> bits
        first = (1 << 2 * bits) // low
        inverse, log = [first], [_fixed(arb((low, -bits)).log(), bits)]
        for n in range(1, self.order + 1):
            tail = middle * inverse[n - 1] + (high * inverse[n - 2] if n > 1 else 0)
            inverse.append(-(tail >> bits) * first >> bits)
            slope = (n - 1) * log[n - 1] * middle + ((n - 2) * log[n - 2] * high if n > 1 else 0)
            own = {1: middle, 2: high}.get(n, 0)
            log.append((own - (slope >> bits) // n) * first >> bits)
        before = [0, *inverse]
        gain_0, gain_1 = t - (a * variance >> bits), -(unit * (variance + self.one) >> bits)
        gain = [(gain_0 * now + gain_1 * last) >> bits for now, last in zip(inverse, before, strict=False)]
        pull = [(t * now - unit * last) >> bits for now, last in zip(inverse, before, strict=False)]
        return _Times(inverse, log, gain, pull)

    def advance(self, n: int) -> None:
        """Coefficient n of the velocity, and with it coefficient n + 1 of the trajectory."""
        for square, z_i in zip(self.squares, self.z, strict=True):
            square.append(self.product(z_i, z_i, n))
        slopes = [0] * len(self.z)
        for m, term in enumerate(self.field.terms):
            coefficient = _fixed(term.coefficient, self.bits)
            for i, value in enumerate(self._velocity(m, n)):
                slopes[i] += coefficient * value >> self.bits
        for z_i, slope in zip(self.z, slopes, strict=True):
            z_i.append(-(self.unit * slope >> self.bits) // (n + 1))

    def _velocity(self, m: int, n: int) -> list[int]:
        """Coefficient n of the velocity of mixture m."""
        parts, total = self.components[m], self.totals[m]
        levels = [part.level(n) for part in parts]
        if n == 0:
            top = max(levels)
            levels = [level - top for level in levels]
        for part, level in zip(parts, levels, strict=True):
            part.extend(level, n)
        total.append(sum(part.power[n] for part in parts))
        values = []
        for i, (z_i, gained, series) in enumerate(zip(self.z, self.gained[m], self.velocities[m], strict=True)):
            gained.append(sum(part.gain[part.scale[i]][n] for part in parts))
            pulled = sum(part.means[i] * part.pull[part.scale[i]][n] for part in parts) >> self.bits
            rest = sum(map(mul, total[1 : n + 1], series[n - 1 :: -1])) >> self.bits if n else 0
            series.append(((self.product(z_i, gained, n) - pulled - rest) << self.bits) // total[0])
            values.append(series[n])
        return values


class _Component:
    """The series of one component of one mixture."""

    def __init__(self, sweep: _Sweep, term: LinearTerm, k: int) -> None:
        self.sweep, bits = sweep, sweep.bits
        self.log_weight = _fixed(term.log_weights[k], bits)
        self.means = [_fixed(mean, bits) for mean in term.means[k]]
        self.scale, self.groups = term.scales[k], term.groups(k)
        self.power: Series = []
        self.slope: Series = []  # n times coefficient n of the log-joint
        self.distance: dict[int, Series] = {scale: [] for scale in self.groups}
        self.gain: dict[int, Series] = {scale: [] for scale in self.groups}
        self.pull: dict[int, Series] = {scale: [] for scale in self.groups}
        a, unit = sweep.alpha, sweep.unit
        self.alpha_squared = [a * a >> bits, 2 * a * unit >> bits, unit * unit >> bits]

    def level(self, n: int) -> int:
        """Coefficient n of the log-joint, once the trajectory's is known."""
        sweep, bits = self.sweep, self.sweep.bits
        level = self.log_weight if n == 0 else 0
        for scale, members in self.groups.items():
            now = sum(self.means[i] * sweep.z[i][n] for i in members) >> bits
            before = sum(self.means[i] * sweep.z[i][n - 1] for i in members) >> bits if n else 0
            cross = (sweep.alpha * now + sweep.unit * before) >> bits
            size = sum(self.means[i] * self.means[i] for i in members) >> bits
            constant = self.alpha_squared[n] * size >> bits if n < 3 else 0
            self.distance[scale].append(sum(sweep.squares[i][n] for i in members) - 2 * cross + constant)
            times = sweep.times[scale]
            level -= (sweep.product(self.distance[scale], times.inverse, n) + len(members) * times.log[n]) >> 1
        return level

    def extend(self, level: int, n: int) -> None:
        """The exponential ``n e_n = sum_j j L_j e_{n-j}`` and its products with gain and pull."""
        sweep = self.sweep
        self.slope.append(n * level)
        if n == 0:
            self.power.append(_fixed(arb((level, -sweep.bits)).exp(), sweep.bits))
        else:
            self.power.append((sum(map(mul, self.slope[1:], self.power[::-1])) >> sweep.bits) // n)
        for scale in self.groups:
            self.gain[scale].append(sweep.product(self.power, sweep.times[scale].gain, n))
            self.pull[scale].append(sweep.product(self.power, sweep.times[scale].pull, n))


def _fixed(x: arb, bits: int) -> int:
    """The midpoint of ``x`` as a multiple of ``2^-bits``."""
    mantissa, exponent = (int(part) for part in x.mid().man_exp())
    return _scaled(mantissa, exponent + bits)


def _scaled(x: int, shift: int) -> int:
    """``x 2^shift``, rounded down."""
    return x << shift if shift >= 0 else x >> -shift
