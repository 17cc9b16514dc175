r"""Point masses: a finite data set. Every conditional expectation is a finite sum."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref._validate import as_times
from meanflow_ref.fields import quantile
from meanflow_ref.fields._parameters import (
    draw_labels,
    log_weights,
    require_shape,
    require_weights,
    set_derived,
    set_parameters,
)
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields.base import AbstractDataField, column
from meanflow_ref.fields.mixture import MixtureMarginals, NormalComponents
from meanflow_ref.paths import LINEAR, AbstractPath


@dataclass(frozen=True, eq=False)
class PointMasses(AbstractDataField):
    """Data on finitely many points. Source: ref:points.

    At t = 0 the state has no density and off the points no velocity: all methods want t > 0. In one dimension the
    flow is exact for every r >= 0; at r = 0 it maps a state to the point whose quantile cell it lies in.

    Args:
        points: Points, ``(N, d)``.
        weights: Weights, ``(N,)``, non-negative with sum 1.
        path: Conditional path.

    Raises:
        ParameterError: If the weights do not sum to 1 or a parameter is not finite.
        ShapeError: If the shapes do not fit.

    Precision:
        At the border of two points' regions ``v`` has the slope ``(1 - t)/t^3`` (linear path), and the rounding of
        ``z`` is magnified by it.

    """

    points: Tensor
    weights: Tensor
    path: AbstractPath = LINEAR
    _components: NormalComponents = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_parameters(self, points=self.points, weights=self.weights)
        require_shape(self.points, [("N", "d")], "points")
        require_shape(self.weights, [(self.points.shape[0],)], "weights")
        require_weights(self.weights)
        points = self.points.double()
        components = NormalComponents(log_weights(self.weights), points, torch.zeros_like(points), self.path)
        set_derived(self, _components=components)

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.points.shape[1]

    @property
    def anchor(self) -> Tensor:
        """The points."""
        return self.points

    @property
    def exact_flow(self) -> bool:
        """In one dimension."""
        return self.dim == 1

    @property
    def _marginals(self) -> MixtureMarginals:
        return MixtureMarginals(self._components)

    # ------------------------------------------------------------ the conditional law

    def responsibilities(self, z: State, t: Times | float) -> Tensor:
        """Posterior probability of each point given ``z_t = z``, ``(*batch, N)``. Source: ref:points."""
        z = self._state(z)
        return self._responsibilities(z, as_times(t, z, "t"))

    def conditional_velocities(self, z: State, t: Times | float) -> Tensor:
        """Conditional velocity ``v_t`` given ``z_t = z`` and each point, ``(*batch, N, d)``.

        With :meth:`responsibilities` as weights its mean is :meth:`velocity`. Source: fm:conditional-velocity.
        """
        z = self._state(z)
        return self._conditional_velocities(z, as_times(t, z, "t"))

    @in_float64
    def _responsibilities(self, z: State, t: Times) -> Tensor:
        return torch.softmax(self._components.log_joint(z, t), -1)

    @in_float64
    def _conditional_velocities(self, z: State, t: Times) -> Tensor:
        return self._components.velocities(z, t)

    # ------------------------------------------------------------ the field

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return self._components.velocity(z, t)

    @in_float64
    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        if not self.exact_flow:
            raise self._no_closed_form("flow map")
        at_zero = (r == 0)[..., None]
        inner = quantile.transport(self._marginals, z[..., 0], t, quantile.away_from_zero(r))[..., None]
        return torch.where(at_zero, self._cell(z, t), inner)

    @in_float64
    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        if not self.exact_flow:
            raise self._no_closed_form("average velocity")
        at_zero = (r == 0)[..., None]
        inner = quantile.average_velocity(self._marginals, z[..., 0], quantile.away_from_zero(r), t)[..., None]
        return torch.where(at_zero, (z - self._cell(z, t)) / column(t), inner)

    @in_float64
    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        phi = self._flow_map(z, t, r)
        inner = quantile.log_jacobian(self._marginals, z[..., 0], phi[..., 0], quantile.away_from_zero(r), t)
        return torch.where(r == 0, torch.zeros_like(r), torch.exp(inner))[..., None, None]

    def _cell(self, z: State, t: Times) -> State:
        """The point in whose quantile cell ``z`` lies at ``t``; d = 1."""
        # z lies beyond the gap after the i-th point if F_t(z) > w_1 + ... + w_i, that is, if those after the gap have
        # more mass below z than those before it have above z: two small numbers where z is between two points.
        order, y = torch.argsort(self._components.means[:, 0]), z[..., 0]
        one = torch.ones_like(y)[..., None].expand(*y.shape, len(order))
        lower, upper = (self._marginals.component_log_tails(y, t, side)[..., order] for side in (one, -one))
        passed = lower.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:] > upper.logcumsumexp(-1)[..., :-1]
        never = torch.zeros_like(passed[..., :1])
        chosen = torch.cat([~never, passed], -1) & ~torch.cat([passed, never], -1)
        return (chosen * self._components.means[order, 0]).sum(-1, keepdim=True)

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        return torch.logsumexp(self._components.log_joint(z, t), -1)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        return self._components.velocity_covariance(z, t)

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` of the points, ``(n, d)``."""
        return self.points[draw_labels(self.weights, n, generator)]
