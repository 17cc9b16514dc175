r"""Data uniform on boxes: exact velocity in any dimension, exact flow in one dimension and for a single box.

Given z, the noise along an axis is a standard normal variable truncated to :math:`[(z-\alpha u)/\sigma,
(z-\alpha l)/\sigma]`. All of its moments come from one Gauss-Legendre rule on the part of the interval that counts,
measured from the mode: no difference of distribution functions, hence no cancellation in the tails or for a narrow
interval (t near 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import quantile
from meanflow_ref.fields._parameters import (
    as_parameter,
    draw_labels,
    log_weights,
    require_shape,
    require_weights,
    set_derived,
    set_parameters,
)
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields._special import log_ndtr
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.quadrature import leading_gauss_legendre

_NODES = 64
_LEAST_SIGMA = 1e-100  # stands for 0, so that the formulas hold at t = 0 as they are


class _Conditional(NamedTuple):
    """The law of the data and the noise given the state, along each axis of each box."""

    log_density: Tensor  # of the state
    data: Tensor  # mean of x
    noise: Tensor  # mean of eps
    data_variance: Tensor  # of x


@dataclass(frozen=True, eq=False)
class BoxMarginals(quantile.AbstractMarginals):
    """Mixture of uniform laws on one axis, or elementwise on many: parameters ``(..., K)``, states ``(...)``."""

    log_weights: Tensor
    lower: Tensor
    upper: Tensor
    path: AbstractPath

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha`` and ``sigma``, to multiply the parameters."""
        sigma = self.path.sigma_squared(t).clamp(min=_LEAST_SIGMA**2).sqrt()
        return self.path.alpha(t)[..., None], sigma[..., None]

    def noise_range(self, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest noise that lead from a box to ``y``."""
        alpha, sigma = self._scales(t)
        return (y[..., None] - alpha * self.upper) / sigma, (y[..., None] - alpha * self.lower) / sigma

    def conditional(self, y: Tensor, t: Tensor) -> _Conditional:
        """Moments given the state, one for each box."""
        alpha, sigma = self._scales(t)
        low, high = self.noise_range(y, t)
        half = 0.5 * (self.upper - self.lower)
        delta = alpha * half / sigma  # half the width of the noise's interval
        # The box is x = middle + half s with s in [-1, 1]; the mode of s, and of the noise, given the state:
        inside = (low < 0) & (high > 0)
        edge = torch.where(low + high >= 0, torch.ones_like(low), -torch.ones_like(low))
        middle_noise = 0.5 * (low + high)
        mode = torch.where(inside, middle_noise / torch.where(inside, delta, torch.ones_like(delta)), edge)
        noise_mode = torch.where(inside, torch.zeros_like(low), torch.where(edge > 0, low, high))
        # Where the density has fallen by exp(-45) or more, whether edge or curvature governs. Detached, since no_grad
        # does not stop forward mode and the reach is infinite at alpha = 0.
        reach = 1 / (delta.detach() * (noise_mode.detach().abs() / 60 + 1 / 11))
        first, last = torch.maximum(-1 - mode, -reach), torch.minimum(1 - mode, reach)
        theta, weight = leading_gauss_legendre(_NODES, low)
        offset = first + (last - first) * theta  # s - mode
        exponent = delta * offset * (noise_mode - 0.5 * delta * offset)
        terms = torch.exp(exponent) * weight
        mass = terms.sum(0)
        mean = (terms * offset).sum(0) / mass
        variance = (terms * (offset - mean) ** 2).sum(0) / mass
        log_density = (
            torch.log(0.5 * (last - first) * mass) - 0.5 * noise_mode**2 - torch.log(math.sqrt(2 * math.pi) * sigma)
        )
        data = 0.5 * (self.lower + self.upper) + half * (mode + mean)
        return _Conditional(log_density, data, noise_mode - delta * mean, half**2 * variance)

    def velocities(self, conditional: _Conditional, t: Tensor) -> Tensor:
        """Velocity along each axis of each box, ``alpha' E[x|z] + sigma' E[eps|z]``."""
        sigma_dot = self.path.sigma_dot(t)
        # At t = 0 the noise has mean 0 inside a box, which settles an infinite sigma'.
        sigma_dot = torch.where(torch.isinf(sigma_dot), torch.zeros_like(sigma_dot), sigma_dot)
        return self.path.alpha_dot(t)[..., None] * conditional.data + sigma_dot[..., None] * conditional.noise

    def nearest_data(self, y: Tensor) -> Tensor:
        """``y``, or the nearest edge if it lies outside the boxes: by rounding alone, where it was carried to t = 0."""
        nearest = torch.minimum(torch.maximum(y[..., None], self.lower), self.upper)
        chosen = (nearest - y[..., None]).abs().argmin(-1, keepdim=True)
        return nearest.gather(-1, chosen)[..., 0]

    def log_density(self, y: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density."""
        return torch.logsumexp(self.component_log_densities(y, t), -1)

    def component_log_densities(self, y: Tensor, t: Tensor) -> Tensor:
        """The same of each box."""
        return self.log_weights + self.conditional(y, t).log_density

    def velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """Marginal velocity."""
        conditional = self.conditional(y, t)
        share = torch.softmax(self.log_weights + conditional.log_density, -1)
        return (share * self.velocities(conditional, t)).sum(-1)

    def log_tail(self, y: Tensor, t: Tensor, side: Tensor) -> Tensor:
        """Logarithm of the mass below (side 1) or above (side -1)."""
        return torch.logsumexp(self.component_log_tails(y, t, side[..., None]), -1)

    def component_log_tails(self, y: Tensor, t: Tensor, sides: Tensor) -> Tensor:
        """The same of each box, with its own side."""
        low, high = self.noise_range(y, t)
        flip = (sides < 0).expand_as(low)
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        return self.log_weights + _log_mean_ndtr(low, high)

    def bracket(self, z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds by the least and the greatest noise that lead to ``z``, carried to the outermost corners."""
        low, high = self.noise_range(z, t)
        alpha, sigma = (x[..., 0] for x in self._scales(r))
        bottom = alpha * self.lower.amin(-1) + sigma * low.amin(-1)
        top = alpha * self.upper.amax(-1) + sigma * high.amax(-1)
        margin = (
            1e-13 * sigma * (low.abs() + high.abs()).amax(-1)
        )  # of rounding; none at r = 0, where it is the support
        return bottom - margin, top + margin


def _log_mean_ndtr(low: Tensor, high: Tensor) -> Tensor:
    """Logarithm of the mean of the normal distribution function over ``[low, high]``.

    Above 9 the function is 1; from ``min(high, 9)`` down it is integrated as far as it counts.
    """
    width = high - low
    # 0 at alpha = 0, where the mean is a value; only the divisor is changed, so that the derivative in t is kept.
    divisor = torch.where(width > _LEAST_SIGMA, width, torch.full_like(width, _LEAST_SIGMA))
    ones = ((high - 9) / divisor).clamp(0, 1)
    start = high.clamp(max=9)
    reach = 1 / (1 / 20 + (-start.detach()).clamp(min=0) / 50)
    share = torch.minimum(1 - ones, reach / divisor)
    theta, weight = leading_gauss_legendre(_NODES, low)
    top = log_ndtr(start)
    rest = (torch.exp(log_ndtr(start - share * width * theta) - top) * weight).sum(0)
    return top + torch.log(ones + share * rest)


@dataclass(frozen=True, eq=False)
class UniformBoxes(AbstractDataField):
    """Data uniform on each of several axis-aligned boxes.

    The velocity is exact in any dimension; the flow is exact in one dimension and for a single box (a product), by
    quantile transport. Source: mf:1, ref:quantile.

    Args:
        lower: Least corners, ``(K, d)``.
        upper: Greatest corners, ``(K, d)``, above ``lower`` in every coordinate.
        weights: Weights, ``(K,)``, non-negative with sum 1.
        path: Conditional path.

    Raises:
        ParameterError: If a box is empty, the weights do not sum to 1, or a parameter is not finite.
        ShapeError: If the shapes do not fit.

    Precision:
        ``v`` and ``u`` to about 1e-14 (1 + J); within a few sigma of an edge ``v`` has the slope 1/sigma, and the
        rounding of ``z`` is magnified by it. With an infinite ``sigma'`` at t = 0, ``v`` there is right inside the
        boxes only.

    """

    lower: Tensor
    upper: Tensor
    weights: Tensor
    path: AbstractPath = LINEAR
    _marginals: BoxMarginals = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_parameters(self, lower=self.lower, upper=self.upper, weights=self.weights)
        require_shape(self.weights, [("K",)], "weights")
        require_weights(self.weights)
        require_shape(self.lower, [(self.weights.shape[0], "d")], "lower")
        require_shape(self.upper, [tuple(self.lower.shape)], "upper")
        if bool((self.upper <= self.lower).any()):
            narrowest = float((self.upper - self.lower).min())
            raise ParameterError(f"a box has the side {narrowest:g}.", "lower < upper in every coordinate", "")
        lower, upper = self.lower.double().mT, self.upper.double().mT
        set_derived(self, _marginals=BoxMarginals(log_weights(self.weights), lower, upper, self.path))

    @classmethod
    def checkerboard(
        cls,
        cells: int = 4,
        extent: float = 2.0,
        *,
        dtype: torch.dtype = torch.float64,
        path: AbstractPath = LINEAR,
    ) -> UniformBoxes:
        """Every other cell of a square board over ``[-extent, extent]^2``, ``cells`` to a side."""
        if cells < 2 or extent <= 0:
            raise ParameterError(f"cells={cells}, extent={extent:g}.", "cells >= 2 and extent > 0", "")
        side = 2 * extent / cells
        corners = [(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0]
        lower = torch.tensor(corners, dtype=dtype) * side - extent
        weights = torch.full((len(corners),), 1 / len(corners), dtype=dtype)
        return cls(lower, lower + side, weights, path)

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.lower.shape[1]

    @property
    def anchor(self) -> Tensor:
        """The least corners."""
        return self.lower

    @property
    def exact_flow(self) -> bool:
        """In one dimension, and for a single box."""
        return self.dim == 1 or self.weights.shape[0] == 1

    def _log_joint(self, conditional: _Conditional) -> Tensor:
        """Log-density of the state jointly with its box, ``(*batch, K)``."""
        return self._marginals.log_weights + conditional.log_density.sum(-2)

    def _conditional(self, z: State, t: Times) -> _Conditional:
        """Conditional laws, ``(*batch, d, K)``."""
        return self._marginals.conditional(z, t[..., None].expand_as(z))

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        conditional = self._conditional(z, t)
        share = torch.softmax(self._log_joint(conditional), -1)
        return (share[..., None, :] * self._marginals.velocities(conditional, column(t))).sum(-1)

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        if not self.exact_flow:
            raise self._no_closed_form("flow map")
        return quantile.transport(self._marginals, z, column(t), column(r))

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        if not self.exact_flow:
            raise self._no_closed_form("average velocity")
        return quantile.average_velocity(self._marginals, z, column(r), column(t))

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        phi = self._flow_map(z, t, r)
        r, t = column(r).expand_as(z), column(t).expand_as(z)
        phi = torch.where(self.path.sigma_squared(r) == 0, self._marginals.nearest_data(phi), phi)
        return torch.diag_embed(torch.exp(quantile.log_jacobian(self._marginals, z, phi, r, t)))

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        return torch.logsumexp(self._log_joint(self._conditional(z, t)), -1)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        conditional, path = self._conditional(z, t), self.path
        share = torch.softmax(self._log_joint(conditional), -1)
        velocities = self._marginals.velocities(conditional, column(t))
        around = velocities - (share[..., None, :] * velocities).sum(-1, keepdim=True)
        wronskian = path.alpha_dot(t) * path.sigma(t) - path.alpha(t) * path.sigma_dot(t)
        within = (wronskian**2 / path.sigma_squared(t))[..., None, None] * conditional.data_variance
        between = torch.einsum("...k,...ik,...jk->...ij", share, around, around)
        return between + torch.diag_embed((share[..., None, :] * within).sum(-1))

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        k = draw_labels(self.weights, n, generator)
        place = torch.rand(n, self.dim, dtype=self.lower.dtype, device=self.lower.device, generator=generator)
        return self.lower[k] + (self.upper - self.lower)[k] * place


def Uniform(lower: Tensor, upper: Tensor, path: AbstractPath = LINEAR) -> UniformBoxes:
    """Data uniform on one box, from its corners ``(d,)``: the flow is exact in any dimension."""
    low, high = as_parameter(lower, "lower"), as_parameter(upper, "upper")
    require_shape(low, [("d",)], "lower")
    return UniformBoxes(low[None], high[None], torch.ones(1, dtype=low.dtype, device=low.device), path)
