"""How much errors grow along a trajectory, in float64: a guess that only sets how sharply each step is asked for."""

from __future__ import annotations

import numpy as np
from flint import arb
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from meanflow_ref.truth.certified.linear import LinearField, LinearTerm

Array = NDArray[np.float64]


def growth_exponent(field: LinearField, z: list[arb], t: arb, span: arb) -> float:
    """Largest of ``int_x^X mu`` over x, where mu is the logarithmic norm along the trajectory; at least 0."""
    variances = np.array([float(variance) for variance in field.variances])
    terms = [_FloatTerm(term, variances) for term in field.terms]
    start = float(t)

    def slope(x: float, state: Array) -> Array:
        total, matrix = np.zeros(field.dim), np.zeros((field.dim, field.dim))
        for term in terms:
            velocity, jacobian = term(state[:-1], start - x)
            total, matrix = total + velocity, matrix + jacobian
        return np.append(-total, -np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])

    first = np.array([*(float(z_i) for z_i in z), 0.0])
    solution = solve_ivp(slope, (0.0, float(span)), first, method="DOP853", rtol=1e-6, atol=1e-8)
    integral: Array = solution.y[-1]
    return float(max(0.0, np.max(integral[-1] - integral)))


class _FloatTerm:
    """One mixture in float64."""

    def __init__(self, term: LinearTerm, variances: Array) -> None:
        self.coefficient = float(term.coefficient)
        self.log_weights = np.array([float(weight) for weight in term.log_weights])
        self.means = np.array([[float(mean) for mean in row] for row in term.means])
        self.variances = variances[np.array(term.scales)]

    def __call__(self, z: Array, t: float) -> tuple[Array, Array]:
        """Velocity and its matrix, times the coefficient."""
        a = 1 - t
        spread = a * a * self.variances + t * t
        offset, gain = z - a * self.means, (t - a * self.variances) / spread
        log_joint = self.log_weights - 0.5 * (offset**2 / spread + np.log(spread)).sum(1)
        share = np.exp(log_joint - log_joint.max())
        share /= share.sum()
        own = gain * offset - self.means
        velocity = share @ own
        jacobian = np.diag(share @ gain) - np.einsum("k,ki,kj->ij", share, own - velocity, offset / spread)
        return self.coefficient * velocity, self.coefficient * jacobian
