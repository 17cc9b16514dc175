r"""Schedules in balls, and the transfer of the linear path to every other one.

A schedule is four functions of time, each elementary and evaluated by the inclusion property: ``alpha``, ``alpha'``,
``sigma^2`` and ``sigma sigma' = (sigma^2)'/2``. The last two and not ``sigma'``, which is infinite at t = 0 on the
variance-preserving path. Constants are those of :mod:`meanflow_ref.paths` as real numbers: pi is pi, and the betas
are the rationals that their float64 are.

*Transfer* (theorem, proved symbolically in this repository; here is the whole of it). Let ``c = alpha + sigma > 0``,
``S = sigma/c``. Then ``alpha x + sigma eps = c [(1 - S) x + S eps]``: at each time the state is the linear path's
state of time ``S``, times ``c``. Conditional expectation commutes with that scaling, so a trajectory of the linear
field, run at time ``S_t`` and scaled by ``c_t``, is a trajectory of this path's field, and

.. math:: \phi_{t\to r}(z) = c_r\,\phi^{lin}_{S_t\to S_r}(z/c_t), \qquad J = (c_r/c_t)\,J^{lin}.

It needs no derivative of the schedule, only ``c > 0`` (checked) and ``S`` increasing, so that ``S_r <= S_t``. It
holds for any linear combination of fields whose coefficients sum to 1, guided fields among them: for each term
``v = (c'/c) z + c S' v^{lin}(z/c, S)``, and the first summand comes with the sum of the coefficients.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, arb_series

from meanflow_ref import formulas
from meanflow_ref.errors import CertificationError
from meanflow_ref.paths import AbstractPath, LinearPath, TrigonometricPath, VariancePreservingPath
from meanflow_ref.truth.certified.balls import Ball, exact


@dataclass(frozen=True)
class SchedulePoint:
    """A schedule at one time, or its power series about one."""

    alpha: Ball
    alpha_dot: Ball
    sigma_squared: Ball
    sigma_sigma_dot: Ball


class AbstractSchedule(abc.ABC):
    """A path's schedule in balls."""

    @abc.abstractmethod
    def at(self, t: Ball) -> SchedulePoint:
        """The schedule at a ball or along a power series of times. Source: fm:path."""

    @abc.abstractmethod
    def sigma(self, t: arb) -> arb:
        """Coefficient of the noise."""

    def transfer(self, t: arb) -> tuple[arb, arb]:
        """Scale ``c`` and linear time ``S``. Source: ref:transfer."""
        alpha, sigma = self.at(t).alpha, self.sigma(t)
        scale = formulas.transfer_scale(alpha, sigma)
        if not scale > 0:
            raise CertificationError(
                f"alpha + sigma = {scale.str(5)} is not proved positive at t = {t.str(5)}.",
                "a path with alpha + sigma > 0, the hypothesis of the schedule transfer",
            )
        return scale, formulas.transfer_time(alpha, sigma)


@dataclass(frozen=True)
class LinearSchedule(AbstractSchedule):
    """``alpha = 1 - t``, ``sigma = t``."""

    def at(self, t: Ball) -> SchedulePoint:
        """The schedule."""
        return SchedulePoint(1 - t, -1 + 0 * t, t * t, t)

    def sigma(self, t: arb) -> arb:
        """``t``."""
        return t

    def transfer(self, t: arb) -> tuple[arb, arb]:
        """The identity, without the radii that dividing by ``alpha + sigma = 1`` would add."""
        return arb(1), t


@dataclass(frozen=True)
class TrigonometricSchedule(AbstractSchedule):
    """``alpha = cos(pi t/2)``, ``sigma = sin(pi t/2)``; exact at both ends."""

    def at(self, t: Ball) -> SchedulePoint:
        """The schedule."""
        alpha, sigma, rate = (t / 2).cos_pi(), (t / 2).sin_pi(), arb.pi() / 2
        return SchedulePoint(alpha, -rate * sigma, sigma * sigma, rate * sigma * alpha)

    def sigma(self, t: arb) -> arb:
        """``sin(pi t/2)``."""
        return (t / 2).sin_pi()


@dataclass(frozen=True)
class VariancePreservingSchedule(AbstractSchedule):
    """``log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2``, ``sigma^2 = 1 - alpha^2``."""

    beta_min: float
    beta_max: float

    def at(self, t: Ball) -> SchedulePoint:
        """The schedule."""
        low, slope = exact(self.beta_min), exact(Fraction(self.beta_max) - Fraction(self.beta_min))
        log_alpha = -(slope / 4) * (t * t) - (low / 2) * t
        rate = -(slope / 2) * t - low / 2
        alpha = log_alpha.exp()
        return SchedulePoint(alpha, rate * alpha, -_expm1(2 * log_alpha), -rate * (alpha * alpha))

    def sigma(self, t: arb) -> arb:
        """``sqrt(1 - alpha^2)``."""
        square: arb = self.at(t).sigma_squared
        return square.nonnegative_part().sqrt()


def schedule_of(path: AbstractPath) -> AbstractSchedule:
    """The schedule of one of the library's paths.

    Raises:
        CertificationError: If the path is given by code, which has no ball extension.

    """
    if isinstance(path, LinearPath):
        return LinearSchedule()
    if isinstance(path, TrigonometricPath):
        return TrigonometricSchedule()
    if isinstance(path, VariancePreservingPath):
        return VariancePreservingSchedule(path.beta_min, path.beta_max)
    raise CertificationError(
        f"the schedule of {type(path).__name__} cannot be evaluated in ball arithmetic.",
        "the hypothesis that alpha and sigma are formulas: a linear, trigonometric or variance-preserving path",
        "add a subclass of AbstractSchedule",
    )


def _expm1(x: Ball) -> Ball:
    """``e^x - 1``; the constant term without cancellation for a power series too."""
    if isinstance(x, arb):
        return x.expm1()
    series = x.exp() - 1
    return arb_series([x[0].expm1(), *(series[k] for k in range(1, series.prec))], series.prec)
