r"""One dimension: the flow map by quantile transport, enclosed between two certified signs.

*Theorem* (ref:quantile). Let ``F_t`` be the distribution function of the state, ``p_t = F_t'`` and ``v`` the marginal
velocity. Then ``d/dt F_t(z) = -p_t(z) v(z, t)``, so that F is constant along trajectories and ``phi_{t->r}(z)`` is the
solution y of ``F_r(y) = F_t(z)``. For a normal mixture with positive weights and deviations ``p_r > 0`` everywhere, so
F_r is strictly increasing, and the solution exists and is unique.

*Certificate.* Any two points with ``F_r(y_lo) < F_t(z) < F_r(y_hi)`` enclose it: ``y_lo < phi < y_hi``. The points come
from an uncertified Newton iteration; what is proved is the two inequalities, in balls. No error estimate of the
iteration enters, and a wrong iteration can only fail to certify.

*Hypotheses and how each is checked.* Positive weights and deviations: by :class:`Mixture`. Both inequalities: by
comparison of balls, true only if it holds for all points of both. F itself: a finite sum of ``erfc``, by the
inclusion property.

*Far tails.* Where ``F_t(z) > 1/2`` the same is done with ``1 - F``, as a sum of complementary ``erfc``, never as a
difference from 1: its relative error is that of ``erfc`` however small it is. Whether ``F_t(z)`` is compared with 1/2
rightly does not matter to the proof: either form is valid everywhere.

``log J = log p_t(z) - log p_r(phi)`` by the derivative of the same equation (ref:logdet).
"""

from __future__ import annotations

from dataclasses import dataclass

from flint import arb

from meanflow_ref.errors import CertificationError
from meanflow_ref.truth.certified.balls import working_precision
from meanflow_ref.truth.certified.mixture import BallField, BallMixture
from meanflow_ref.truth.certified.result import Balls
from meanflow_ref.truth.certified.schedules import SchedulePoint

# Precision of the first iterations, which need none of the last digits.
START_BITS = 96
# Doublings of the bracket before giving up; from rounding noise upward this spans 2^-bits to 2^(2 * 60 - bits).
WIDENINGS = 60
# Newton steps; some ten usually do, and what has not converged is refused by the certificate.
ITERATIONS = 400


@dataclass(frozen=True)
class Marginal:
    """The law of the state at one time, a one-dimensional mixture in balls."""

    weights: list[arb]
    centres: list[arb]
    stds: list[arb]

    @classmethod
    def of(cls, mixture: BallMixture, at: SchedulePoint) -> Marginal:
        """The law of ``z_t``."""
        variances = [at.alpha * at.alpha * s[0] + at.sigma_squared for s in mixture.variances]
        return cls(
            [log_weight.exp() for log_weight in mixture.log_weights],
            [at.alpha * mean[0] for mean in mixture.means],
            [variance.sqrt() for variance in variances],
        )

    def tail(self, y: arb, side: int) -> arb:
        """Mass below (side 1) or above (side -1) ``y``, to full relative precision."""
        root = side * arb(2).sqrt()
        parts = (
            weight * ((centre - y) / (std * root)).erfc()
            for weight, centre, std in zip(self.weights, self.centres, self.stds, strict=True)
        )
        return sum(parts, arb(0)) / 2

    def density(self, y: arb) -> arb:
        """Density at ``y``."""
        root = (2 * arb.pi()).sqrt()
        parts = (
            weight * (-(((y - centre) / std) ** 2) / 2).exp() / (std * root)
            for weight, centre, std in zip(self.weights, self.centres, self.stds, strict=True)
        )
        return sum(parts, arb(0))

    def scores(self, y: arb) -> list[float]:
        """Standard scores of ``y`` under the components."""
        return [float(((y - centre) / std).mid()) for centre, std in zip(self.centres, self.stds, strict=True)]

    def at_score(self, score: float) -> list[arb]:
        """The points of one standard score."""
        return [(centre + std * score).mid() for centre, std in zip(self.centres, self.stds, strict=True)]


def quantile_balls(field: BallField, z: arb, r: arb, t: arb, bits: int) -> Balls:
    """Enclosures by quantile transport for one mixture and ``r < t``. Source: ref:quantile, ref:logdet.

    Raises:
        CertificationError: No bracket was certified at this precision.

    """
    mixture = field.terms[0][1]
    start, finish = (Marginal.of(mixture, field.schedule.at(time)) for time in (t, r))
    side = 1 if start.tail(z, 1) < arb(1) / 2 else -1
    mass = start.tail(z, side)
    guess = _approximate_quantile(start, finish, z, mass, side, bits)
    end = certified_quantile(finish, mass, side, guess, bits)
    v, v_end = field.velocity([z], t), field.velocity([end], r)
    jacobian = start.density(z) / finish.density(end)
    return Balls.from_end([z], t - r, [end], v, v_end, jacobian.log(), [[jacobian]])


def certified_quantile(marginal: Marginal, mass: arb, side: int, guess: arb, bits: int) -> arb:
    """An interval about ``guess`` that is proved to hold the point whose tail is ``mass``.

    Raises:
        CertificationError: If the signs are not certified on any interval tried.

    """
    # Where rounding leaves the sign open: its noise over the slope. Any positive start would do.
    noise = (marginal.tail(guess, side).rad() + mass.rad()) / marginal.density(guess)
    radius = (4 * noise + (1 + abs(guess)) * arb(2) ** -bits).upper()
    for _ in range(WIDENINGS):
        low, high = (guess - radius).lower(), (guess + radius).upper()
        if side * (marginal.tail(low, side) - mass) < 0 and side * (marginal.tail(high, side) - mass) > 0:
            return low.union(high)
        radius = 4 * radius
    raise CertificationError(
        f"the quantile near {guess.str(8, radius=False)} was not bracketed: the signs of F_r(y) - F_t(z) stay open.",
        "a precision at which the tails differ by more than their rounding",
        "a state at which log F is not so large, or more bits",
    )


def _approximate_quantile(start: Marginal, finish: Marginal, z: arb, mass: arb, side: int, bits: int) -> arb:
    """The quantile by safeguarded Newton steps on the logarithm of the tail; not certified, nor need it be.

    The bracket needs no inverse: each component's mass at its own score lies between the least and the greatest.
    """
    scores = start.scores(z)
    slack = 1e-6 * (1 + max(map(abs, scores)))
    low = min(finish.at_score(min(scores) - slack), key=float)
    high = max(finish.at_score(max(scores) + slack), key=float)
    guess = ((low + high) / 2).mid()
    with working_precision(START_BITS):
        guess = _newton(finish, mass, side, guess, (low, high), START_BITS)
    return _newton(finish, mass, side, guess, (low, high), bits)


def _newton(marginal: Marginal, mass: arb, side: int, guess: arb, bracket: tuple[arb, arb], bits: int) -> arb:
    """Newton's iteration for ``log tail(y) = log mass``, with bisection where it leaves the bracket or dawdles.

    On the plateau between narrow modes the tail is 1/2 and a difference of many orders below: Newton then creeps.
    """
    (low, high), moved = bracket, bracket[1] - bracket[0]
    wanted = mass.mid().log()
    for _ in range(ITERATIONS):
        tail = marginal.tail(guess, side)
        excess = (side * (tail.log() - wanted)).mid()
        if excess > 0:
            high = guess
        else:
            low = guess
        following = (guess - excess * tail / marginal.density(guess)).mid()
        if not (low <= following <= high and 2 * abs(following - guess) <= moved):  # NaN too
            following = ((low + high) / 2).mid()
        moved, guess = abs(following - guess), following
        if moved <= (1 + abs(guess)) * arb(2) ** (8 - bits):
            break
    return guess
