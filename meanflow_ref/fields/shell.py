r"""Data uniform on a sphere: rotation leaves one radial coordinate, and quantile transport solves it.

With :math:`\kappa = \alpha R|z|/\sigma^2` the direction of x given z follows a von Mises-Fisher law of concentration
:math:`\kappa`, whose mean length is :math:`A(\kappa) = I_{d/2}(\kappa)/I_{d/2-1}(\kappa)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import quantile
from meanflow_ref.fields._parameters import as_parameter, require_path, require_positive, require_shape, set_derived
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields._special import log_sphere_mean, sphere_mean_ratio
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.quadrature import leading_gauss_legendre

# The power series of 0F1 overflows from about d = 26.
MAX_DIMENSION = 24
_NODES = 64


@dataclass(frozen=True, eq=False)
class RadialMarginals(quantile.AbstractMarginals):
    """The marginals of the radius ``|z_t|``."""

    radius: float
    dimension: int
    path: AbstractPath

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha R`` and ``sigma``."""
        return self.path.alpha(t) * self.radius, self.path.sigma_squared(t).sqrt()

    def log_density_in_space(self, y: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density of the state, at any point of radius ``y``."""
        m, sigma = self._scales(t)
        normal = -0.5 * ((y - m) / sigma) ** 2 - self.dimension * torch.log(math.sqrt(2 * math.pi) * sigma)
        return normal + log_sphere_mean(m * y / sigma**2, self.dimension)

    def log_density(self, y: Tensor, t: Tensor) -> Tensor:
        """Logarithm of the density of the radius."""
        d = self.dimension
        area = math.log(2) + 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d)
        return area + (d - 1) * torch.log(y) + self.log_density_in_space(y, t)

    def gain(self, y: Tensor, t: Tensor) -> Tensor:
        """Factor of ``v`` on ``z``: ``sigma'/sigma + (alpha' - alpha sigma'/sigma) E[x|z]/z``. Source: ref:shell."""
        path = self.path
        m, sigma = self._scales(t)
        shrink = path.sigma_sigma_dot(t) / sigma**2
        mean = self.radius * m / sigma**2 * sphere_mean_ratio((m * y / sigma**2) ** 2, self.dimension)
        return shrink + (path.alpha_dot(t) - path.alpha(t) * shrink) * mean

    def velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """Radial velocity."""
        return self.gain(y, t) * y

    def log_tail(self, y: Tensor, t: Tensor, side: Tensor) -> Tensor:
        """Logarithm of the mass below (side 1) or above (side -1), by quadrature of the density.

        The integral runs from ``y``, or from where the bulk ends if ``y`` is beyond it, as far as the density counts:
        the radius is a 1-Lipschitz function of the noise's sigma multiples, so it strays from its mean by 9 sigma
        with a probability below 1e-17.
        """
        m, sigma = self._scales(t)
        d = self.dimension
        greatest = torch.sqrt(m**2 + d * sigma**2) + 9 * sigma
        least = torch.sqrt(m**2 + (d - 1) * sigma**2) - 9 * sigma
        start = torch.where(side > 0, torch.minimum(y, greatest), torch.maximum(y, least.clamp(min=0)))
        with torch.no_grad():
            floor = start.clamp(min=1e-300)
            tilt = m / sigma**2 * (m * floor / sigma**2) * sphere_mean_ratio((m * floor / sigma**2) ** 2, d)
            slope = side * ((d - 1) / floor - floor / sigma**2 + tilt)
            reach = 1 / (1 / (20 * sigma) + slope.clamp(min=0) / 50)
        length = torch.where(side > 0, torch.minimum(start, reach), reach)
        theta, weight = leading_gauss_legendre(_NODES, y)
        terms = self.log_density(start - side * length * theta, t) + torch.log(weight)
        return torch.logsumexp(terms, 0) + torch.log(length)

    def bracket(self, z: Tensor, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds by ``|m - sigma n| <= |z| <= m + sigma n``, with n the norm of the noise, at both times."""
        (m_t, sigma_t), (m_r, sigma_r) = self._scales(t), self._scales(r)
        low = sigma_r * (z - m_t) / sigma_t - m_r
        return low.clamp(min=0), (m_r + sigma_r * (z + m_t) / sigma_t) * (1 + 1e-13)


@dataclass(frozen=True, eq=False)
class Shell(AbstractDataField):
    """Data uniform on the sphere ``|x| = radius``. Source: ref:shell.

    At t = 0 the state has no density and off the sphere no velocity: all methods want t > 0, and take any r >= 0.

    Args:
        radius: Radius of the sphere.
        dimension: Dimension of the space, 1 (two points) to 24.
        path: Conditional path.

    Raises:
        ParameterError: If the radius is not positive, or the dimension is out of range.

    Precision:
        Bessel functions by series and expansions in torch, on any device; the radial distribution function by
        64-node quadrature. ``u`` to about 1e-13 (1 + J).

    """

    radius: float | Tensor
    dimension: int
    path: AbstractPath = LINEAR
    _anchor: Tensor = field(init=False, repr=False)
    _marginals: RadialMarginals = field(init=False, repr=False)

    def __post_init__(self) -> None:
        radius = as_parameter(self.radius, "radius")
        require_shape(radius, [()], "radius")
        require_positive(radius, "radius")
        require_path(self.path)
        if not isinstance(self.dimension, int) or not 1 <= self.dimension <= MAX_DIMENSION:
            raise ParameterError(f"`dimension` is {self.dimension}.", f"a whole number, 1 to {MAX_DIMENSION}", "")
        object.__setattr__(self, "radius", radius)
        set_derived(self, _anchor=radius, _marginals=RadialMarginals(float(radius), self.dimension, self.path))

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.dimension

    @property
    def anchor(self) -> Tensor:
        """The radius."""
        return self._anchor

    @property
    def exact_flow(self) -> bool:
        """Always."""
        return True

    def _norm(self, z: State, t: Times) -> Tensor:
        """Norm of ``z``, rounded up by less than 1e-18 sigma^2/|z|: what depends on it is even, and smooth at 0."""
        return torch.sqrt((z * z).sum(-1) + 1e-18 * self.path.sigma_squared(t))

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return column(self._marginals.gain(self._norm(z, t), t)) * z

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        rho = self._norm(z, t)
        return column(self._radial_flow(rho, t, r) / rho) * z

    def _radial_flow(self, rho: Tensor, t: Times, r: Times) -> Tensor:
        """Radius at ``r``; at r = 0 all mass lies on the sphere."""
        inner = quantile.transport(self._marginals, rho, t, quantile.away_from_zero(r))
        return torch.where(r == 0, torch.full_like(rho, self._marginals.radius), inner)

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        rho = self._norm(z, t)
        inner = quantile.average_velocity(self._marginals, rho, quantile.away_from_zero(r), t)
        radial = torch.where(r == 0, (rho - self._marginals.radius) / t, inner)
        return column(radial / rho) * z

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        rho = self._norm(z, t)
        phi = self._radial_flow(rho, t, r)
        log_slope = quantile.log_jacobian(self._marginals, rho, phi, quantile.away_from_zero(r), t)
        along = torch.where(r == 0, torch.zeros_like(rho), torch.exp(log_slope))
        across = phi / rho
        direction = z / column(rho)
        radial = direction[..., :, None] * direction[..., None, :]
        identity = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        jacobian: Tensor = across[..., None, None] * (identity - radial) + along[..., None, None] * radial
        return jacobian

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        return self._marginals.log_density_in_space(self._norm(z, t), t)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        path, d, radius = self.path, self.dimension, self._marginals.radius
        alpha, variance = path.alpha(t), path.sigma_squared(t)
        pull = alpha * radius / variance
        x = pull**2 * (z * z).sum(-1)
        here, above = sphere_mean_ratio(x, d), sphere_mean_ratio(x, d + 2)
        # Of the direction: A/k across, A' along z, and A' = A/k + k^2 (A/k) [(A/k)_{d+2} - (A/k)_d].
        identity = torch.eye(d, dtype=z.dtype, device=z.device)
        along = (pull**2 * here * (above - here))[..., None, None] * z[..., :, None] * z[..., None, :]
        wronskian = path.alpha_dot(t) * path.sigma(t) - alpha * path.sigma_dot(t)
        covariance: Tensor = here[..., None, None] * identity + along
        return (radius**2 * wronskian**2 / variance)[..., None, None] * covariance

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` points of the sphere, ``(n, d)``."""
        anchor = self._anchor
        noise = torch.randn(n, self.dim, dtype=anchor.dtype, device=anchor.device, generator=generator)
        direction: Tensor = noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
        return anchor * direction
