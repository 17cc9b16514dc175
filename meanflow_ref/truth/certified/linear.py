r"""The velocity of a mixture on the linear path, in the form that the ODE route evaluates many times.

With ``a = 1 - t``, ``lambda = a^2 s + t^2``, ``c = (t - a s)/lambda`` and ``tau = t/lambda`` for a data variance s, a
component's velocity is ``v_ki = c_ki z_i - tau_ki m_ki`` (from ``-m + c (z - a m)``, since ``1 + a c = tau`` if
``a + t = 1``), and the gradient of its log-joint is ``g_ki = -(z_i - a m_ki)/lambda_ki``. The mixture's is

.. math:: v = \sum_k \gamma_k v_k, \qquad \gamma_k = e^{L_k} \big/ \textstyle\sum_j e^{L_j}.

Three evaluations, each by the inclusion property: along a power series (:meth:`LinearField.velocity_series`), over a
box of states and times, real or complex (:meth:`LinearField.velocity_box`), and the matrix dv/dz over a real box
(:meth:`LinearField.jacobian_box`). Differences of log-joints are taken coordinate by coordinate, and where two
components have the same variance as ``a (m_j - m_k)(2 z - a (m_j + m_k)) / (2 lambda)``: over a box each variable
then appears about once, and the enclosure is not much wider than the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, arb_mat, arb_series

from meanflow_ref.truth.certified.balls import Ball, exact
from meanflow_ref.truth.certified.fields import Combination, Mixture


@dataclass(frozen=True)
class Scale:
    """What belongs to one data variance s at one time, box of times, or series of times."""

    inverse: Ball  # 1/lambda
    log: Ball  # log lambda
    gain: Ball  # c
    pull: Ball  # tau


@dataclass(frozen=True)
class LinearTerm:
    """One mixture and its coefficient; ``scales[k][i]`` numbers the variance of coordinate i of component k."""

    coefficient: arb
    log_weights: list[arb]
    means: list[list[arb]]
    scales: list[list[int]]

    def groups(self, k: int) -> dict[int, list[int]]:
        """The coordinates of component k by the number of their variance."""
        found: dict[int, list[int]] = {}
        for i, scale in enumerate(self.scales[k]):
            found.setdefault(scale, []).append(i)
        return found


@dataclass(frozen=True)
class LinearField:
    """A combination of mixtures at the working precision that was set when it was built."""

    variances: list[arb]
    terms: list[LinearTerm]
    dim: int

    @classmethod
    def build(cls, data: Mixture | Combination) -> LinearField:
        """Round the exact parameters outward to the working precision, and number the distinct variances."""
        pairs = data.terms if isinstance(data, Combination) else ((Fraction(1), data),)
        distinct = sorted({variance for _, mixture in pairs for row in mixture.variances for variance in row})
        number = {variance: n for n, variance in enumerate(distinct)}
        terms = [
            LinearTerm(
                exact(a),
                [exact(weight).log() for weight in mixture.weights],
                [[exact(mean) for mean in row] for row in mixture.means],
                [[number[variance] for variance in row] for row in mixture.variances],
            )
            for a, mixture in pairs
        ]
        return cls([exact(variance) for variance in distinct], terms, data.dim)

    def scales_at(self, t: Ball) -> list[Scale]:
        """Everything that depends on time alone."""
        found, a = [], 1 - t
        for variance in self.variances:
            spread = variance * (a * a) + t * t
            inverse = 1 / spread
            found.append(Scale(inverse, spread.log(), (t - variance * a) * inverse, t * inverse))
        return found

    # ------------------------------------------------------------ along a power series

    def velocity_series(self, z: Sequence[arb_series], t: arb_series) -> list[arb_series]:
        """Velocity along the curve ``(z(x), t(x))``: coefficient n encloses the n-th Taylor coefficient."""
        scales, a = self.scales_at(t), 1 - t
        squares, total = [z_i * z_i for z_i in z], [arb_series([0])] * self.dim
        for term in self.terms:
            powers = _powers([self._log_joint_series(term, k, z, squares, a, scales) for k in range(len(term.means))])
            pulled = [arb_series([0])] * self.dim
            gained = [arb_series([0])] * self.dim
            for k, power in enumerate(powers):
                for scale, members in term.groups(k).items():
                    gain, pull = power * scales[scale].gain, power * scales[scale].pull
                    for i in members:
                        gained[i] = gained[i] + gain
                        pulled[i] = pulled[i] + pull * term.means[k][i]
            share = term.coefficient / sum(powers[1:], powers[0])
            total = [total[i] + (z[i] * gained[i] - pulled[i]) * share for i in range(self.dim)]
        return total

    def jacobian_series(self, z: Sequence[arb_series], t: arb_series) -> list[list[arb_series]]:
        """``dv/dz`` along the curve, row by row: ``sum_k gamma_k [diag(c_k) + (v_k - v) g_k^T]`` for each mixture.

        The pair form's equal, by ``sum_k gamma_k g_k v^T = sum_k gamma_k v g_k^T``; cheaper, and over a point nothing
        is lost to it.
        """
        scales, a = self.scales_at(t), 1 - t
        squares = [z_i * z_i for z_i in z]
        total = [[arb_series([0])] * self.dim for _ in z]
        for term in self.terms:
            powers = _powers([self._log_joint_series(term, k, z, squares, a, scales) for k in range(len(term.means))])
            norm = 1 / sum(powers[1:], powers[0])
            shares = [power * norm for power in powers]
            own = [[scales[s].gain * z[i] - scales[s].pull * m for i, (s, m) in enumerate(zip(*row, strict=True))]
                   for row in zip(term.scales, term.means, strict=True)]  # fmt: skip
            mean = [
                sum((share * v_k[i] for share, v_k in zip(shares, own, strict=True)), arb_series([0]))
                for i in range(self.dim)
            ]
            for k, share in enumerate(shares):
                weight = share * term.coefficient
                slopes = [
                    (a * m - z_i) * scales[s].inverse
                    for z_i, m, s in zip(z, term.means[k], term.scales[k], strict=True)
                ]
                for i in range(self.dim):
                    around = weight * (own[k][i] - mean[i])
                    total[i][i] = total[i][i] + weight * scales[term.scales[k][i]].gain
                    for j, slope in enumerate(slopes):
                        total[i][j] = total[i][j] + around * slope
        return total

    def _log_joint_series(
        self,
        term: LinearTerm,
        k: int,
        z: Sequence[arb_series],
        squares: Sequence[arb_series],
        a: arb_series,
        scales: Sequence[Scale],
    ) -> arb_series:
        """``L_k`` along the curve, up to a constant common to all components."""
        level = arb_series([term.log_weights[k]])
        for scale, members in term.groups(k).items():
            means = [(i, term.means[k][i]) for i in members]
            cross = sum((z[i] * mean for i, mean in means), arb_series([0]))
            size = sum((mean * mean for _, mean in means), arb(0))
            distance = sum((squares[i] for i in members), arb_series([0])) - a * (2 * cross - a * size)
            level = level - (distance * scales[scale].inverse + len(members) * scales[scale].log) / 2
        return level

    # ------------------------------------------------------------ over a box

    def dominant(self, z: Sequence[Ball], t: Ball) -> list[int]:
        """The component of each mixture that weighs most at a point: a good one to compare with; any is valid."""
        scales = self.scales_at(t)
        return [max(range(len(term.means)), key=lambda k: self._height(term, k, z, t, scales)) for term in self.terms]

    def velocity_box(self, z: Sequence[Ball], t: Ball, tops: Sequence[int]) -> tuple[list[Ball], list[Ball]]:
        """Velocity over a box, real or complex, and each mixture's denominator ``sum_k exp(L_k - L_top)``.

        Not finite where a denominator's enclosure holds zero.
        """
        scales, total, denominators = self.scales_at(t), [0 * t] * self.dim, []
        for term, top in zip(self.terms, tops, strict=True):
            powers = [
                arb(1) if k == top else self._log_ratio(term, k, top, z, t, scales).exp()
                for k in range(len(term.means))
            ]
            denominators.append(sum(powers[1:], powers[0]))
            share = term.coefficient / denominators[-1]
            for k, power in enumerate(powers):
                weight = power * share
                for i, mean in enumerate(term.means[k]):
                    scale = scales[term.scales[k][i]]
                    total[i] = total[i] + weight * (scale.gain * z[i] - scale.pull * mean)
        return total, denominators

    def jacobian_box(self, z: Sequence[arb], t: arb) -> arb_mat:
        r"""``dv/dz`` over a real box: ``sum_k gamma_k diag(c_k) + sum_{p<q} gamma_p gamma_q (v_p-v_q)(g_p-g_q)^T``.

        The pair form of a covariance, which has no cancellation: ``dv/dz = sum_k gamma_k [diag(c_k) + v_k g_k^T] -
        v (sum_k gamma_k g_k)^T``, and the covariance of the pairs ``(v_k, g_k)`` is half the mean over independent
        pairs of indices of ``(v_p - v_q)(g_p - g_q)^T``.
        """
        scales, total = self.scales_at(t), arb_mat(self.dim, self.dim)
        for term in self.terms:
            total = total + self._term_jacobian(term, z, t, scales) * term.coefficient
        return total

    def _term_jacobian(self, term: LinearTerm, z: Sequence[arb], t: arb, scales: Sequence[Scale]) -> arb_mat:
        """``dv/dz`` of one mixture."""
        count, a = len(term.means), 1 - t
        unit = arb(0.5, 0.5)
        shares = []
        for k in range(count):
            odds = (self._log_ratio(term, j, k, z, t, scales).exp() for j in range(count) if j != k)
            shares.append((1 / sum(odds, arb(1))).intersection(unit))
        diagonal = [
            sum((shares[k] * scales[term.scales[k][i]].gain for k in range(count)), arb(0)) for i in range(self.dim)
        ]
        left, right = [], []
        for p in range(count):
            for q in range(p):
                both = shares[p] * shares[q]
                steps, slopes = [], []
                for i in range(self.dim):
                    one, two = scales[term.scales[p][i]], scales[term.scales[q][i]]
                    m_p, m_q = term.means[p][i], term.means[q][i]
                    if one is two:
                        steps.append(both * one.pull * (m_q - m_p))
                        slopes.append(a * one.inverse * (m_p - m_q))
                    else:
                        steps.append(both * ((one.gain - two.gain) * z[i] - (one.pull * m_p - two.pull * m_q)))
                        slopes.append(a * (one.inverse * m_p - two.inverse * m_q) - (one.inverse - two.inverse) * z[i])
                left.append(steps)
                right.append(slopes)
        matrix = arb_mat([[diagonal[i] if i == j else arb(0) for j in range(self.dim)] for i in range(self.dim)])
        return matrix + arb_mat(left).transpose() * arb_mat(right) if left else matrix

    def _log_ratio(self, term: LinearTerm, j: int, k: int, z: Sequence[Ball], t: Ball, scales: Sequence[Scale]) -> Ball:
        """``L_j - L_k`` over a box, coordinate by coordinate."""
        total, a = term.log_weights[j] - term.log_weights[k], 1 - t
        for i, (m_j, m_k) in enumerate(zip(term.means[j], term.means[k], strict=True)):
            one, two = scales[term.scales[j][i]], scales[term.scales[k][i]]
            if one is two:
                total = total + a * (m_j - m_k) * (2 * z[i] - a * (m_j + m_k)) * one.inverse / 2
            else:
                far, near = z[i] - a * m_j, z[i] - a * m_k
                total = total - (far * far * one.inverse - near * near * two.inverse + one.log - two.log) / 2
        return total

    def _height(self, term: LinearTerm, k: int, z: Sequence[Ball], t: Ball, scales: Sequence[Scale]) -> float:
        """``L_k`` at the middle, to choose a component to compare with; any choice is valid."""
        height = float(term.log_weights[k].mid())
        for i, mean in enumerate(term.means[k]):
            offset = complex((z[i] - (1 - t) * mean).mid())
            scale = scales[term.scales[k][i]]
            height -= 0.5 * (offset * offset * complex(scale.inverse.mid()) + complex(scale.log.mid())).real
        return height


def _powers(levels: list[arb_series]) -> list[arb_series]:
    """Exponentials, scaled so that the greatest begins with about 1: the common factor is exact and cancels."""
    top = max((level[0] for level in levels), key=lambda level: float(level.mid())).mid()
    return [(level - top).exp() for level in levels]
