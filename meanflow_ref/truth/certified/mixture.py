r"""A normal mixture in balls: velocity, density and their derivatives, by the inclusion property alone.

With ``lambda_ki = alpha^2 s_ki + sigma^2`` and ``offset_ki = z_i - alpha m_ki``, component k of the state's law has
the log-joint ``L_k = log w_k - 1/2 sum_i [offset_ki^2/lambda_ki + log(2 pi lambda_ki)]`` and the velocity
``v_ki = alpha' m_ki + (alpha alpha' s_ki + sigma sigma')/lambda_ki offset_ki``; then ``v = sum_k e^{L_k} v_k / sum_k
e^{L_k}``. The functions run on balls and on power series of balls in one variable, where the n-th coefficient of the
result encloses the n-th Taylor coefficient of the function along the curve: power series arithmetic is a composition
of the same operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flint import arb, arb_series

from meanflow_ref import formulas
from meanflow_ref.truth.certified.balls import Ball, exact
from meanflow_ref.truth.certified.fields import Combination, Mixture
from meanflow_ref.truth.certified.schedules import AbstractSchedule, SchedulePoint


@dataclass(frozen=True)
class BallMixture:
    """A mixture's parameters at the working precision that was set when it was built."""

    log_weights: list[arb]
    means: list[list[arb]]
    variances: list[list[arb]]

    @classmethod
    def build(cls, data: Mixture) -> BallMixture:
        """Round the exact parameters outward to the working precision."""
        return cls(
            [exact(weight).log() for weight in data.weights],
            [[exact(number) for number in mean] for mean in data.means],
            [[exact(number) for number in variance] for variance in data.variances],
        )

    def log_joint(self, z: Sequence[Ball], at: SchedulePoint) -> list[Ball]:
        """Log-density of the state jointly with its component."""
        half_log_tau = len(z) * (2 * arb.pi()).log() / 2
        joint = []
        for log_weight, means, variances in zip(self.log_weights, self.means, self.variances, strict=True):
            total: Ball = arb(0)
            for z_i, mean, variance in zip(z, means, variances, strict=True):
                spread = formulas.gaussian_variance(variance, at.alpha, 0) + at.sigma_squared
                offset = z_i - at.alpha * mean
                total = total + offset * offset / spread + spread.log()
            joint.append(log_weight - half_log_tau - total / 2)
        return joint

    def velocity(self, z: Sequence[Ball], at: SchedulePoint) -> list[Ball]:
        """Velocity of the mixture. Source: mf:1."""
        shares = _shares(self.log_joint(z, at))
        result: list[Ball] = [arb(0)] * len(z)
        for share, means, variances in zip(shares, self.means, self.variances, strict=True):
            for i, (z_i, mean, variance) in enumerate(zip(z, means, variances, strict=True)):
                spread = formulas.gaussian_variance(variance, at.alpha, 0) + at.sigma_squared
                gain = (at.alpha * at.alpha_dot * variance + at.sigma_sigma_dot) / spread
                result[i] = result[i] + share * (at.alpha_dot * mean + gain * (z_i - at.alpha * mean))
        return result

    def log_density(self, z: Sequence[arb], at: SchedulePoint) -> arb:
        """Log-density of the state."""
        joint = self.log_joint(z, at)
        top = max(joint, key=lambda level: float(level.mid()))
        total: arb = top + sum(((level - top).exp() for level in joint), arb(0)).log()
        return total


@dataclass(frozen=True)
class BallField:
    """A combination of mixtures on one schedule, at the working precision that was set when it was built."""

    terms: list[tuple[arb, BallMixture]]
    schedule: AbstractSchedule

    @classmethod
    def build(cls, data: Mixture | Combination, schedule: AbstractSchedule) -> BallField:
        """Round the exact parameters outward to the working precision."""
        pairs = data.terms if isinstance(data, Combination) else ((1, data),)
        return cls([(exact(a), BallMixture.build(mixture)) for a, mixture in pairs], schedule)

    def velocity(self, z: Sequence[Ball], t: Ball) -> list[Ball]:
        """Velocity at a ball, or along a power series. Source: mf:1, mf:13."""
        at = self.schedule.at(t)
        result: list[Ball] = [arb(0)] * len(z)
        for a, mixture in self.terms:
            result = [total + a * part for total, part in zip(result, mixture.velocity(z, at), strict=True)]
        return result

    def derivative(self, z: Sequence[arb], t: arb, dz: Sequence[arb], dt: arb) -> list[arb]:
        """Derivative of the velocity along ``(dz, dt)``: coefficient 1 of the power series."""
        curve = [arb_series([z_i, dz_i], 2) for z_i, dz_i in zip(z, dz, strict=True)]
        return [series[1] for series in self.velocity(curve, arb_series([t, dt], 2))]

    def acceleration(self, z: Sequence[arb], t: arb) -> list[arb]:
        """Derivative of v along its own trajectory, ``d_t v + (dv/dz) v``. Source: ref:acceleration."""
        return self.derivative(z, t, self.velocity(z, t), arb(1))

    def jacobian(self, z: Sequence[arb], t: arb) -> list[list[arb]]:
        """``dv_i/dz_j``, row by row."""
        units = [[arb(int(i == j)) for i in range(len(z))] for j in range(len(z))]
        columns = [self.derivative(z, t, unit, arb(0)) for unit in units]
        return [list(row) for row in zip(*columns, strict=True)]


def _shares(joint: list[Ball]) -> list[Ball]:
    """Posterior probabilities of the components, scaled by the greatest so that no exponential is out of range."""
    constants = [level if isinstance(level, arb) else level[0] for level in joint]
    top = max(constants, key=lambda level: float(level.mid())).mid()
    powers = [(level - top).exp() for level in joint]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    return [power / total for power in powers]
