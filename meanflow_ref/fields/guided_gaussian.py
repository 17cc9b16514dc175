"""Guidance with a closed flow: normal data with a normal class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import Matrices, State, Times
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields._parameters import require_shape, set_derived, set_parameters
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields._special import expm1_ratio, log1p_ratio
from meanflow_ref.fields.base import AbstractField, column
from meanflow_ref.fields.guided import require_guidance
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.quadrature import leading_gauss_legendre

_NODES = 128


@dataclass(frozen=True, eq=False)
class LinearGaussianGuided(AbstractField):
    r"""The guided field of normal data with a normal class.

    The class is ``c ~ N(0, class_variance)`` and the data are ``x ~ N(c, data_variance)`` given it, along each axis.
    The field is affine in z, :math:`V = (\dot P/P) z + b c`, with
    :math:`P = \lambda_c^{\omega'/2} \lambda_0^{(1-\omega')/2}`, so

    .. math:: \phi_{t\to r}(z) = P_r \left[z/P_t - c \int_r^t (b/P)\, d\tau\right], \qquad
              b = \omega' \sigma(\dot\alpha\sigma - \alpha\dot\sigma)/\lambda_c.

    Source: mf:13, mf:20.

    Args:
        class_value: The class c, ``(d,)`` (a number: d = 1).
        class_variance: Variance of the class along each axis.
        data_variance: Variance of the data within a class.
        omega: Guidance scale.
        kappa: Share of the conditional model in the target, below 1.
        path: Conditional path.

    Raises:
        ParameterError: If a variance is not positive or kappa is not below 1.

    Precision:
        The smooth integral by 128-node Gauss-Legendre quadrature: rounding error for ``data_variance >= 1e-3``.

    """

    class_value: float | Tensor
    class_variance: float
    data_variance: float
    omega: float
    kappa: float = 0.0
    path: AbstractPath = LINEAR
    _anchor: Tensor = field(init=False, repr=False)
    _class_value: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_guidance(self.omega, self.kappa)
        for name in ("class_variance", "data_variance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ParameterError(f"`{name}` is {getattr(self, name)}.", "a positive number", "")
        set_parameters(self, class_value=self.class_value)
        value = self.class_value
        assert isinstance(value, Tensor)
        require_shape(value, [(), ("d",)], "class_value")
        set_derived(self, _anchor=value, _class_value=value.double().reshape(-1))

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self._class_value.shape[0]

    @property
    def anchor(self) -> Tensor:
        """The class."""
        return self._anchor

    @property
    def exact_flow(self) -> bool:
        """Always."""
        return True

    @property
    def effective_omega(self) -> float:
        """``omega' = omega/(1 - kappa)``. Source: mf:20."""
        return float(formulas.effective_guidance(self.omega, self.kappa))

    @property
    def _parts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Variance of the data and exponent, given the class and not."""
        w = self.effective_omega
        return (self.data_variance, w), (self.data_variance + self.class_variance, 1 - w)

    def _variance(self, s: float, t: Times) -> Tensor:
        return self.path.alpha(t) ** 2 * s + self.path.sigma_squared(t)

    def _log_scale(self, r: Times, t: Times) -> Tensor:
        """``log(P_t/P_r)`` from the divided differences of the variances, hence 0 at r = t without cancellation."""
        return (t - r) * self._log_scale_dd(r, t)

    def _log_scale_dd(self, r: Times, t: Times) -> Tensor:
        """Divided difference of ``log P``."""
        path, total = self.path, torch.zeros_like(t)
        for s, exponent in self._parts:
            dd = formulas.gaussian_variance_dd(
                s, path.alpha(r), path.alpha(t), path.alpha_dd(r, t), path.sigma_squared_dd(r, t)
            )
            relative = dd / self._variance(s, r)
            total = total + 0.5 * exponent * relative * log1p_ratio((t - r) * relative)
        return total

    def _forcing(self, t: Times) -> Tensor:
        """The coefficient b of c in V."""
        path = self.path
        wronskian = path.alpha_dot(t) * path.sigma_squared(t) - path.alpha(t) * path.sigma_sigma_dot(t)
        return self.effective_omega * wronskian / self._variance(self.data_variance, t)

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return column(self._log_scale_dd(t, t)) * z + column(self._forcing(t)) * self._class_value

    def _mean_forcing(self, r: Times, t: Times) -> Tensor:
        """``P_r`` times the mean of ``b/P`` over [r, t]."""
        theta, weight = leading_gauss_legendre(_NODES, t)
        tau = r + (t - r) * theta
        return (weight * self._forcing(tau) * torch.exp(-self._log_scale(r.expand_as(tau), tau))).sum(0)

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        shrunk = column(torch.exp(-self._log_scale(r, t))) * z
        return shrunk - column((t - r) * self._mean_forcing(r, t)) * self._class_value

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        rate = self._log_scale_dd(r, t) * expm1_ratio(-self._log_scale(r, t))
        return column(rate) * z + column(self._mean_forcing(r, t)) * self._class_value

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        identity = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        return torch.exp(-self._log_scale(r, t))[..., None, None] * identity
