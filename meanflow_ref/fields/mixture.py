r"""Mixtures of normal laws: exact velocity in any dimension, exact flow in one.

Component k of the state is normal with mean :math:`\alpha m_k` and variance :math:`\lambda_k = \alpha^2 s_k^2 +
\sigma^2` along each axis; the velocity is the mean of the components' velocities under the responsibilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref.fields import quantile
from meanflow_ref.fields._parameters import (
    draw_labels,
    log_weights,
    require_positive,
    require_shape,
    require_weights,
    set_derived,
    set_parameters,
)
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields._special import log_ndtr
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.paths import LINEAR, AbstractPath


@dataclass(frozen=True, eq=False)
class NormalComponents:
    """A mixture's components in float64: what mixtures and point masses (variance 0) have in common."""

    log_weights: Tensor  # (K,)
    means: Tensor  # (K, d)
    variances: Tensor  # (K, d), of the data
    path: AbstractPath

    def variance(self, t: Times) -> Tensor:
        """Variances of the state, ``(*batch, K, d)``."""
        alpha, sigma_squared = self.path.alpha(t)[..., None, None], self.path.sigma_squared(t)[..., None, None]
        return alpha**2 * self.variances + sigma_squared

    def offset(self, z: State, t: Times) -> Tensor:
        """``z - alpha m_k``, ``(*batch, K, d)``."""
        return z[..., None, :] - self.path.alpha(t)[..., None, None] * self.means

    def log_joint(self, z: State, t: Times) -> Tensor:
        """Log-density of the state jointly with its component, ``(*batch, K)``."""
        variance = self.variance(t)
        exponent = self.offset(z, t) ** 2 / variance + torch.log(2 * math.pi * variance)
        return self.log_weights - 0.5 * exponent.sum(-1)

    def velocities(self, z: State, t: Times) -> Tensor:
        """Velocity of each component, ``(*batch, K, d)``."""
        alpha_dot = self.path.alpha_dot(t)[..., None, None]
        drift = self.path.alpha(t)[..., None, None] * alpha_dot * self.variances
        drift = drift + self.path.sigma_sigma_dot(t)[..., None, None]
        return alpha_dot * self.means + drift / self.variance(t) * self.offset(z, t)

    def velocity(self, z: State, t: Times) -> State:
        """Velocity of the mixture. Source: mf:1.

        The formulas of :meth:`log_joint` and :meth:`velocities` with components and coordinates first and the batch
        last in memory: sums over them then run along whole batches, on a CPU four times as fast. An ODE solver calls
        nothing else.
        """
        ones = (1,) * t.dim()
        log_weights = self.log_weights.reshape(-1, *ones)
        means, variances = (part.reshape(*part.shape, *ones) for part in (self.means, self.variances))
        alpha, alpha_dot = self.path.alpha(t), self.path.alpha_dot(t)
        variance = alpha**2 * variances + self.path.sigma_squared(t)
        offset = z.movedim(-1, 0).contiguous() - alpha * means
        score = offset / variance
        share = torch.softmax(log_weights - 0.5 * (offset * score + torch.log(variance)).sum(1), 0)
        gain = alpha * alpha_dot * variances + self.path.sigma_sigma_dot(t)
        return (share[:, None] * (alpha_dot * means + gain * score)).sum(0).movedim(0, -1)

    def velocity_covariance(self, z: State, t: Times) -> Matrices:
        """Covariance of the conditional velocity: its law is itself a mixture, by the law of total covariance."""
        share = torch.softmax(self.log_joint(z, t), -1)
        path = self.path
        wronskian = path.alpha_dot(t) * path.sigma(t) - path.alpha(t) * path.sigma_dot(t)
        within = (wronskian**2)[..., None, None] * self.variances / self.variance(t)
        velocities = self.velocities(z, t)
        around = velocities - (share[..., None] * velocities).sum(-2, keepdim=True)
        between = torch.einsum("...k,...ki,...kj->...ij", share, around, around)
        return between + torch.diag_embed((share[..., None] * within).sum(-2))


@dataclass(frozen=True, eq=False)
class MixtureMarginals(quantile.AbstractMarginals):
    """The marginals of a one-dimensional mixture, for quantile transport."""

    components: NormalComponents

    def _scores(self, y: Tensor, t: Tensor) -> Tensor:
        """Standard scores of ``y`` under each component, ``(*shape, K)``."""
        return (self.components.offset(y[..., None], t) / self.components.variance(t).sqrt())[..., 0]

    def log_tail(self, y: Tensor, t: Tensor, side: Tensor) -> Tensor:
        """Logarithm of the mass below (side 1) or above (side -1) ``y``."""
        return torch.logsumexp(self.component_log_tails(y, t, side[..., None]), -1)

    def component_log_tails(self, y: Tensor, t: Tensor, sides: Tensor) -> Tensor:
        """The same of each component, with its own side."""
        return self.components.log_weights + log_ndtr(sides * self._scores(y, t))

    def log_density(self, y: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density."""
        return torch.logsumexp(self.component_log_densities(y, t), -1)

    def component_log_densities(self, y: Tensor, t: Tensor) -> Tensor:
        """The same of each component."""
        return self.components.log_joint(y[..., None], t)

    def velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """Marginal velocity."""
        return self.components.velocity(y[..., None], t)[..., 0]

    def bracket(self, z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds without any inverse: the quantile lies between those of the least and the greatest score."""
        scores = self._scores(z, t)
        margin = 1e-13 * (1 + scores.abs().amax(-1))
        centre = self.components.path.alpha(r)[..., None] * self.components.means[:, 0]
        std = self.components.variance(r).sqrt()[..., 0]
        low = (centre + std * (scores.amin(-1) - margin)[..., None]).amin(-1)
        high = (centre + std * (scores.amax(-1) + margin)[..., None]).amax(-1)
        return low, high


@dataclass(frozen=True, eq=False)
class GaussianMixture(AbstractDataField):
    """A mixture of normal laws with diagonal covariances.

    The velocity is exact in any dimension; the flow is exact for one component, and in one dimension by quantile
    transport. Source: mf:1, ref:quantile.

    Args:
        weights: Weights, ``(K,)``, non-negative with sum 1.
        means: Means, ``(K, d)``, or ``(K,)`` for d = 1.
        stds: Standard deviations, ``(K,)`` for isotropic components or ``(K, d)``; positive.
        path: Conditional path.

    Raises:
        ParameterError: If the weights do not sum to 1, a deviation is not positive, or a parameter is not finite.
        ShapeError: If the shapes do not fit.

    Precision:
        ``u`` in one dimension: a few ``eps (1 + J)`` with ``J`` the Jacobian, at every pair (r, t), r = t included.

    """

    weights: Tensor
    means: Tensor
    stds: Tensor
    path: AbstractPath = LINEAR
    _components: NormalComponents = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_parameters(self, weights=self.weights, means=self.means, stds=self.stds)
        require_shape(self.weights, [("K",)], "weights")
        k = self.weights.shape[0]
        require_weights(self.weights)
        require_shape(self.means, [(k,), (k, "d")], "means")
        means = self.means.reshape(k, -1).double()
        require_shape(self.stds, [(k,), (k, means.shape[1])], "stds")
        require_positive(self.stds, "stds")
        variances = (self.stds.double() ** 2).reshape(k, -1).expand_as(means)
        set_derived(self, _components=NormalComponents(log_weights(self.weights), means, variances, self.path))

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self._components.means.shape[1]

    @property
    def anchor(self) -> Tensor:
        """The means."""
        return self.means

    @property
    def exact_flow(self) -> bool:
        """For one component, and for any number in one dimension."""
        return self.dim == 1 or self.weights.shape[0] == 1

    @property
    def _marginals(self) -> MixtureMarginals:
        return MixtureMarginals(self._components)

    def responsibilities(self, z: State, t: Times) -> Tensor:
        """Posterior probability of each component given ``z_t = z``, ``(*batch, K)``."""
        z = self._state(z)
        return torch.softmax(self._components.log_joint(z.double(), t.double()), -1).to(z.dtype)

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return self._components.velocity(z, t)

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        if self.weights.shape[0] == 1:
            ratio = (self._components.variance(r) / self._components.variance(t)).sqrt()[..., 0, :]
            mean = self._components.means[0]
            return column(self.path.alpha(r)) * mean + ratio * self._components.offset(z, t)[..., 0, :]
        self._require_exact_flow("flow map")
        return quantile.transport(self._marginals, z[..., 0], t, r)[..., None]

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        if self.weights.shape[0] == 1:
            return self._single_average(z, r, t)
        self._require_exact_flow("average velocity")
        return quantile.average_velocity(self._marginals, z[..., 0], r, t)[..., None]

    def _single_average(self, z: State, r: Times, t: Times) -> State:
        """Average velocity of one component, free of cancellation. Source: ref:gaussian."""
        parts, path = self._components, self.path
        dd_alpha = column(path.alpha_dd(r, t))
        alpha_r, alpha_t, dd_square = map(column, (path.alpha(r), path.alpha(t), path.sigma_squared_dd(r, t)))
        dd_variance = formulas.gaussian_variance_dd(parts.variances[0], alpha_r, alpha_t, dd_alpha, dd_square)
        std_r, std_t = (parts.variance(time).sqrt()[..., 0, :] for time in (r, t))
        gain = formulas.contraction_rate(dd_variance, std_r, std_t)
        u: Tensor = dd_alpha * parts.means[0] + gain * parts.offset(z, t)[..., 0, :]
        return u

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        if self.weights.shape[0] == 1:
            ratio = (self._components.variance(r) / self._components.variance(t)).sqrt()[..., 0, :]
            return torch.diag_embed(ratio)
        phi = self._flow_map(z, t, r)
        return torch.exp(quantile.log_jacobian(self._marginals, z[..., 0], phi[..., 0], r, t))[..., None, None]

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        return torch.logsumexp(self._components.log_joint(z, t), -1)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        return self._components.velocity_covariance(z, t)

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        k = draw_labels(self.weights, n, generator)
        means, stds = self._components.means.to(self.anchor), self._components.variances.sqrt().to(self.anchor)
        noise = torch.randn(n, self.dim, dtype=means.dtype, device=means.device, generator=generator)
        return means[k] + stds[k] * noise

    def _require_exact_flow(self, what: str) -> None:
        if not self.exact_flow:
            raise self._no_closed_form(what)
