r"""Normal data: every quantity in closed form, in any dimension, on any path.

Along an axis of data variance :math:`s` the state has variance :math:`\lambda_t = \alpha_t^2 s + \sigma_t^2`, and
the flow scales :math:`z - \alpha m` by :math:`\sqrt{\lambda_r/\lambda_t}`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields._parameters import require_shape, set_derived, set_parameters
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.paths import LINEAR, AbstractPath


@dataclass(frozen=True, eq=False)
class Gaussian(AbstractDataField):
    """Normal data ``N(mean, covariance)``. Source: ref:gaussian.

    Args:
        mean: Mean, ``(d,)``.
        covariance: Symmetric positive-definite matrix, ``(d, d)``.
        path: Conditional path.

    Raises:
        ParameterError: If the covariance is not symmetric positive definite, or a parameter is not finite.
        ShapeError: If the shapes do not fit.

    Precision:
        ``u`` has no division by t - r and is right to a few roundings at every pair (r, t), r = t included.

    """

    mean: Tensor
    covariance: Tensor
    path: AbstractPath = LINEAR
    _mean: Tensor = field(init=False, repr=False)
    _spectrum: Tensor = field(init=False, repr=False)  # variances along the axes, (d,)
    _axes: Tensor = field(init=False, repr=False)  # the axes as columns, (d, d)

    def __post_init__(self) -> None:
        set_parameters(self, mean=self.mean, covariance=self.covariance)
        require_shape(self.mean, [("d",)], "mean")
        require_shape(self.covariance, [(self.dim, self.dim)], "covariance")
        covariance = self.covariance.double()
        asymmetry = float((covariance - covariance.mT).abs().max())
        if asymmetry > 1e-6 * float(covariance.abs().max()):
            raise ParameterError(
                f"`covariance` differs from its transpose by {asymmetry:.3g}.",
                "a symmetric matrix",
                "(covariance + covariance.mT) / 2",
            )
        spectrum, axes = torch.linalg.eigh((covariance + covariance.mT) / 2)
        if not bool(spectrum[0] > 0):
            raise ParameterError(
                f"`covariance` has the smallest eigenvalue {float(spectrum[0]):.6g}.",
                "a positive-definite matrix",
                "PointMasses takes data without spread",
            )
        set_derived(self, _mean=self.mean.double(), _spectrum=spectrum, _axes=axes)

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.mean.shape[0]

    @property
    def anchor(self) -> Tensor:
        """The mean."""
        return self.mean

    @property
    def exact_flow(self) -> bool:
        """Always."""
        return True

    # ------------------------------------------------------------ along the axes

    def _coordinates(self, z: State, t: Times) -> State:
        """Coordinates of ``z - alpha m`` along the axes."""
        return (z - column(self.path.alpha(t)) * self._mean) @ self._axes

    def _variance(self, t: Times) -> Tensor:
        """Variances of the state along the axes, ``(*batch, d)``."""
        return column(self.path.alpha(t)) ** 2 * self._spectrum + column(self.path.sigma_squared(t))

    def _assemble(self, mean_factor: Tensor, coordinates: State) -> State:
        """``mean_factor m`` plus a vector given along the axes."""
        return column(mean_factor) * self._mean + coordinates @ self._axes.mT

    def _matrix(self, diagonal: Tensor) -> Matrices:
        """Symmetric matrix with the given eigenvalues, ``(*batch, d) -> (*batch, d, d)``."""
        return (self._axes * diagonal[..., None, :]) @ self._axes.mT

    # ------------------------------------------------------------ the field

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        path = self.path
        drift = column(path.alpha(t) * path.alpha_dot(t)) * self._spectrum + column(path.sigma_sigma_dot(t))
        gain = drift / self._variance(t)
        return self._assemble(path.alpha_dot(t), gain * self._coordinates(z, t))

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        gain = (self._variance(r) / self._variance(t)).sqrt()
        return self._assemble(self.path.alpha(r), gain * self._coordinates(z, t))

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        path = self.path
        dd_alpha = path.alpha_dd(r, t)
        dd_variance = formulas.gaussian_variance_dd(
            self._spectrum, *map(column, (path.alpha(r), path.alpha(t), dd_alpha, path.sigma_squared_dd(r, t)))
        )
        gain = formulas.contraction_rate(dd_variance, self._variance(r).sqrt(), self._variance(t).sqrt())
        return self._assemble(dd_alpha, gain * self._coordinates(z, t))

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        return self._matrix((self._variance(r) / self._variance(t)).sqrt())

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        variance = self._variance(t)
        return -0.5 * (self._coordinates(z, t) ** 2 / variance + torch.log(2 * math.pi * variance)).sum(-1)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        path = self.path
        wronskian = path.alpha_dot(t) * path.sigma(t) - path.alpha(t) * path.sigma_dot(t)
        return self._matrix(column(wronskian**2) * self._spectrum / self._variance(t))

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        mean = self.mean
        noise = torch.randn(n, self.dim, dtype=mean.dtype, device=mean.device, generator=generator)
        root = self._matrix(self._spectrum.sqrt()).to(mean.dtype)
        return mean + noise @ root
