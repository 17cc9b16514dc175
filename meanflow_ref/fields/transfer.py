r"""A data field carried over to another path.

Two paths with the same signal-to-noise ratio pass through the same states up to a scale: with
:math:`\tau(t)` the source's time at the target's ratio and :math:`k = (\alpha+\sigma)/(\alpha_s+\sigma_s)(\tau)`,
:math:`z_t = k_t y_{\tau(t)}`. Hence
:math:`u(z,r,t) = \mathrm{DD}(k)\,y + k_r\,\mathrm{DD}(\tau)\,u_s(y,\tau_r,\tau_t)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.paths import LINEAR, AbstractPath

# A variance-preserving source reaches a linear time of 1 only at infinity; this is the greatest float64 below it.
_LAST_LINEAR_TIME = 1 - 2.0**-53


@dataclass(frozen=True, eq=False)
class Transferred(AbstractDataField):
    """The data of another field, on another path. Source: ref:transfer.

    Leaves take any path themselves, with fewer roundings; this field is for those at hand on one path only, and for
    checking one against the other.

    Args:
        field: The field to carry over.
        path: The path to carry it to.

    Precision:
        About 1e-13 for u. With ``sigma'`` infinite at 0 on either path (variance-preserving), derivatives at r = 0
        are NaN; on the target path, so is the velocity at t = 0. The leaves themselves have neither gap.

    """

    field: AbstractDataField
    path: AbstractPath = LINEAR

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.field.dim

    @property
    def anchor(self) -> Tensor:
        """A parameter of the inner field."""
        return self.field.anchor

    @property
    def exact_flow(self) -> bool:
        """If the inner field has one."""
        return self.field.exact_flow

    # ------------------------------------------------------------ time and scale

    def _source_time(self, t: Times) -> Times:
        """Time of the source path at the same signal-to-noise ratio."""
        linear = self.path.transfer_time(t)
        clamped = linear.detach().clamp(max=_LAST_LINEAR_TIME)  # in value alone: derivatives pass
        return self.field.path.time_from_linear(clamped + (linear - linear.detach()))

    def _scale(self, t: Times, tau: Times) -> Tensor:
        """The factor k between the target's state and the source's."""
        return self.path.transfer_scale(t) / self.field.path.transfer_scale(tau)

    def _slopes(self, r: Times, t: Times, tau_r: Times, tau_t: Times) -> tuple[Tensor, Tensor]:
        """Divided differences of k and of the source time.

        That of ``k`` follows from ``alpha = k alpha_s`` where the state is mostly data, and from ``alpha + sigma =
        k (alpha_s + sigma_s)`` elsewhere: the first is singular at t = 1, the second where ``sigma'`` is infinite.
        """
        target, source = self.path, self.field.path
        dd_tau = target.transfer_time_dd(r, t) / source.transfer_time_dd(tau_r, tau_t)
        k_t = self._scale(t, tau_t)
        mostly_data = target.transfer_time(r) < 0.5
        alpha = torch.where(mostly_data, source.alpha(tau_r), torch.ones_like(r))
        by_alpha = (target.alpha_dd(r, t) - k_t * source.alpha_dd(tau_r, tau_t) * dd_tau) / alpha
        by_scale = target.transfer_scale_dd(r, t) - k_t * source.transfer_scale_dd(tau_r, tau_t) * dd_tau
        return torch.where(mostly_data, by_alpha, by_scale / source.transfer_scale(tau_r)), dd_tau

    # ------------------------------------------------------------ the field

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        tau = self._source_time(t)
        k, (k_dot, tau_dot) = self._scale(t, tau), self._slopes(t, t, tau, tau)
        y = z / column(k)
        v: Tensor = formulas.transfer_average_velocity(
            y, self.field._velocity(y, tau), column(k), column(k_dot), column(tau_dot)
        )
        return v

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        tau_t, tau_r = self._source_time(t), self._source_time(r)
        y = z / column(self._scale(t, tau_t))
        return column(self._scale(r, tau_r)) * self.field._flow_map(y, tau_t, tau_r)

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        tau_t, tau_r = self._source_time(t), self._source_time(r)
        dd_k, dd_tau = self._slopes(r, t, tau_r, tau_t)
        y = z / column(self._scale(t, tau_t))
        u: Tensor = formulas.transfer_average_velocity(
            y,
            self.field._average_velocity(y, tau_r, tau_t),
            column(self._scale(r, tau_r)),
            column(dd_k),
            column(dd_tau),
        )
        return u

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        tau_t, tau_r = self._source_time(t), self._source_time(r)
        k_t = self._scale(t, tau_t)
        ratio = (self._scale(r, tau_r) / k_t)[..., None, None]
        return ratio * self.field._jacobian(z / column(k_t), tau_r, tau_t)

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        tau = self._source_time(t)
        k = self._scale(t, tau)
        return self.field._log_density(z / column(k), tau) - self.dim * torch.log(k)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        tau = self._source_time(t)
        k, (_, tau_dot) = self._scale(t, tau), self._slopes(t, t, tau, tau)
        return ((k * tau_dot) ** 2)[..., None, None] * self.field._velocity_covariance(z / column(k), tau)

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        return self.field.sample_data(n, generator)
