r"""By how much a polynomial fails the differential equation: a rigorous bound.

Let ``p`` be any polynomials of degree N, and ``d(x) = p'(x) + v(p(x), t0 - x)`` their defect in ``dz/dx = -v``.

*Theorem* (Cauchy's estimate). If ``f(x) = v_i(p(x), t0 - x)`` is analytic on the closed disc ``|x| <= R`` and ``|f| <=
M_i`` on its boundary, then its Taylor coefficients obey ``|f_n| <= M_i R^-n``. Hence for ``0 <= x <= H < R``, with
``q = H/R`` and since p' has no power beyond N - 1,

.. math:: |d_i(x)| \le \sum_{n<N} |(n+1)\,p_{i,n+1} + f_n|\,H^n \;+\; M_i\,\frac{q^N}{1-q}.

The first sum is term by term the defect's known part: ``f_n`` is enclosed by power series arithmetic at x = 0
(:meth:`LinearField.velocity_series`). The second is everything else.

*Hypotheses and how each is checked*, on arcs that cover the upper half of the circle (the lower half follows by
conjugation: all parameters are real):

1. ``lambda != 0`` and ``log lambda`` analytic on the disc. ``Re lambda > 0`` on every arc; it is harmonic, so that
   its minimum over the disc is on the circle, and the principal logarithm is analytic where ``Re lambda > 0``.
2. Each mixture's denominator ``D = sum_k exp(L_k - L_top)`` has no zero in the disc (argument principle). By 1, D is
   analytic. On arc i its enclosure ``B_i``, with midpoint ``c_i``, lies in the quarter-plane ``|arg(w/c_i)| < pi/4``;
   so D has no zero on the circle, and its argument changes by less than pi/2 from ``c_i`` by way of the point that
   neighbouring arcs share to ``c_{i+1}``: by the principal value of ``arg(c_{i+1}/c_i)``, far from its jump. At both
   ends of the half circle x is real and D > 0. The sum of the changes is thus a multiple of 2 pi; twice it is 2 pi
   times the number of zeros, and it is checked to be 0.
3. ``|f| <= M_i`` on the circle: by the enclosure of v on every arc. A finite enclosure is part of the check.

Where an arc fails it is halved; where arcs become too short, the disc is too large, and the caller takes a smaller.

*Second use.* With ``margin`` eta > 0 the same is checked for ``v(p(x) + zeta, t0 - x)``, all ``|zeta_i| <= eta``: D has
no zero on the circle for any such zeta, and the number of zeros inside, an integer continuous in zeta, stays 0. Then
Cauchy's estimate in zeta bounds the derivatives of v in z near the polynomial (:class:`DiscBound`).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flint import acb, arb, arb_poly, arb_series

from meanflow_ref.errors import CertificationError
from meanflow_ref.truth.certified.balls import euclidean_norm, largest, working_precision
from meanflow_ref.truth.certified.linear import LinearField

# Bits for enclosures over arcs and boxes, whose radii are far above any rounding.
BOX_BITS = 64
# Shortest arc: the half circle halved this often.
ARC_DEPTH = 9
# An arc whose enclosure of v exceeds this many times its size at x = 0 is halved, since M enters the bound.
ARC_EXCESS = 30


@dataclass(frozen=True)
class DiscBound:
    """Bounds of the velocity along a polynomial over the disc ``|x| <= radius``.

    Attributes:
        radius: The disc's radius R.
        velocity: ``M_i >= |v_i(p(x) + zeta, t0 - x)|`` for ``|x| <= R`` and ``|zeta_j| <= margin``.
        margin: ``eta``; 0 if no derivative was asked for.

    """

    radius: arb
    velocity: list[arb]
    margin: arb

    def tail(self, size: arb, order: int, step: arb) -> arb:
        """``M q^N / (1 - q)``: powers from N on of a function that ``size`` bounds on the disc.

        Raises:
            CertificationError: If the step is not inside the disc.

        """
        q = step / self.radius
        if not q < 1:
            raise CertificationError(
                f"a step of {step.str(3)} in a disc of radius {self.radius.str(3)}.", "a step inside the disc"
            )
        return size * q**order / (1 - q)

    @property
    def jacobian(self) -> arb:
        """Bound of ``|dv_i/dz_j|`` at ``p(x)``, ``|x| <= R``, in the Frobenius norm: each entry ``M_i/eta``."""
        return euclidean_norm(self.velocity) * arb(len(self.velocity)).sqrt() / self.margin

    @property
    def curvature(self) -> arb:
        r"""Bound of ``|D^2 v(p(x) + e)[y, w]| / (|y| |w|)`` for real x, ``|e_i| <= eta/2``, in Euclidean norms.

        On the polydisc of radius ``eta/2`` about ``p + e`` Cauchy gives ``|d_j d_k v_i| <= 2 M_i/(eta/2)^2`` (the
        factor 2! for j = k); summed against ``|y_j| |w_k|``, each of 1-norm at most ``sqrt(d)`` times the 2-norm.
        """
        return 8 * len(self.velocity) * euclidean_norm(self.velocity) / self.margin**2


def bound_on_disc(
    field: LinearField, polynomial: Sequence[arb_poly], t: arb, radius: arb, margin: arb
) -> DiscBound | None:
    """Bounds over the disc, or None if its hypotheses are not verified there."""
    with working_precision(BOX_BITS):
        middle = [p(arb(0)) for p in polynomial]
        tops = field.dominant(middle, t)
        limit = ARC_EXCESS * (1 + largest(abs(v) for v in field.velocity_box(middle, t, tops)[0]))
        circle = _Circle(field, polynomial, t, radius, acb(arb(0, margin), arb(0, margin)), tops, limit)
        arcs = circle.cover(0, 1, 0)
        if arcs is None or not all(_no_zero([arc.centres[m] for arc in arcs]) for m in range(len(tops))):
            return None
        bounds = [largest(arc.velocity[i] for arc in arcs) for i in range(field.dim)]
        return DiscBound(radius, bounds, margin)


def defect_bound(field: LinearField, polynomial: Sequence[arb_poly], t: arb, step: arb, disc: DiscBound) -> arb:
    """Bound of ``|d(x)|_2`` on ``0 <= x <= step``.

    Power series must have been given the length N, the degree of the polynomials, by :func:`working_precision`.
    """
    series, length = [arb_series(p) for p in polynomial], step.upper()
    velocity = field.velocity_series(series, arb_series([t, -1]))
    return euclidean_norm(
        known_part(p.derivative(), f, length) + disc.tail(bound, f.prec, length)
        for p, f, bound in zip(polynomial, velocity, disc.velocity, strict=True)
    )


def known_part(derivative: arb_poly, velocity: arb_series, step: arb) -> arb:
    """``sum_{n<N} |p'_n + f_n| H^n``.

    Raises:
        CertificationError: If p' has powers beyond the series: they would be counted nowhere.

    """
    if len(derivative) > velocity.prec:
        raise CertificationError(
            f"a polynomial of degree {len(derivative)} beside a series of {velocity.prec} coefficients.",
            "a series as long as the polynomial's degree",
        )
    total = arb(0)
    for n in reversed(range(velocity.prec)):
        total = total * step + abs(derivative[n] + velocity[n])
    return total


@dataclass(frozen=True)
class _Arc:
    """What was verified on one arc."""

    centres: list[complex]
    velocity: list[arb]


@dataclass(frozen=True)
class _Circle:
    """The upper half of a circle, to be covered by arcs on which hypotheses 1 to 3 hold."""

    field: LinearField
    polynomial: Sequence[arb_poly]
    t: arb
    radius: arb
    margin: acb
    tops: list[int]
    limit: arb

    def cover(self, low: float, high: float, depth: int) -> list[_Arc] | None:
        """Arcs in order over ``pi low <= theta <= pi high``; None if some arc fails however short."""
        arc = self.arc(low, high)
        if arc is not None and (depth >= ARC_DEPTH or all(bound < self.limit for bound in arc.velocity)):
            return [arc]
        if depth >= ARC_DEPTH:
            return None
        middle = (low + high) / 2
        first = self.cover(low, middle, depth + 1)
        second = self.cover(middle, high, depth + 1) if first is not None else None
        return None if first is None or second is None else first + second

    def arc(self, low: float, high: float) -> _Arc | None:
        """The hypotheses on one arc."""
        sine, cosine = arb(low).union(arb(high)).sin_cos_pi()
        x = acb(self.radius * cosine, self.radius * sine)
        t = self.t - x
        a = 1 - t
        if not all((variance * (a * a) + t * t).real > 0 for variance in self.field.variances):  # hypothesis 1
            return None
        z = [p(x) + self.margin for p in self.polynomial]
        velocity, denominators = self.field.velocity_box(z, t, self.tops)
        if not all(v.is_finite() for v in velocity):  # hypothesis 3
            return None
        centres = []
        for denominator in denominators:
            box = acb(denominator)
            centre = box.mid()
            turned = box * centre.conjugate()
            if not turned.real > abs(turned.imag):  # hypothesis 2
                return None
            centres.append(_direction(centre))
        return _Arc(centres, [abs(v).upper() for v in velocity])


def _direction(centre: acb) -> complex:
    """A complex number of the same argument, in range for floats: its parts are divided by a power of two."""
    size = abs(centre).mid()
    return complex(float((centre.real / size).mid()), float((centre.imag / size).mid()))


def _no_zero(centres: Sequence[complex]) -> bool:
    """Whether the changes of argument, from the real axis along the arcs to the real axis, sum to zero."""
    angles = [cmath.phase(centres[0]), *(cmath.phase(b / a) for a, b in pairwise(centres))]
    # The last arc ends at a positive number.
    total = sum(angles) + cmath.phase(centres[-1].conjugate())
    # A multiple of 2 pi, computed to a few roundings.
    return abs(total) < math.pi
