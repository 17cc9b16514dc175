r"""What a field owes.

A field is a probability path with an exactly known velocity :math:`v(z,t)`. States are ``z`` of shape ``(*batch, d)``;
times are Python numbers or tensors that broadcast to ``batch``. Public methods check shapes and dtypes and hand on to
the underscored methods, which leaves implement for ``t`` of shape ``batch`` exactly, in ``z``'s dtype.

Fields never check the *range* of a time: as functions they are defined for any pair of times on the path, ``r > t``
included, where :math:`u(z,r,t) = (z - \phi_{t\to r}(z))/(t-r)` just runs backwards. Front doors such as
:func:`meanflow_ref.average_velocity` do.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref._validate import as_times, require_same_kind, require_state
from meanflow_ref.errors import NoClosedFormError, ShapeError
from meanflow_ref.paths import AbstractPath

# Not typing.Self: beartype, which checks shapes in the tests, takes that in decorated classes alone.
_Field = TypeVar("_Field", bound="AbstractField")


def column(x: Tensor) -> Tensor:
    """A per-state scalar, ready to multiply a state: ``(*batch,) -> (*batch, 1)``."""
    return x[..., None]


def _moved(value: Any, dtype: torch.dtype | None, device: torch.device | str | None) -> Any:
    """``value`` with every tensor in it moved."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, AbstractField):
        return value.to(dtype=dtype, device=device)
    if isinstance(value, tuple):
        return tuple(_moved(item, dtype, device) for item in value)
    return value


class AbstractField(abc.ABC):
    """A velocity field with an exact ``v``; leaves are frozen dataclasses with a field ``path``.

    Those with ``exact_flow`` also have a closed flow map, average velocity and Jacobian.
    """

    path: AbstractPath

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension d of a state."""

    @property
    @abc.abstractmethod
    def anchor(self) -> Tensor:
        """Any parameter tensor: it tells the field's dtype and device."""

    @property
    def exact_flow(self) -> bool:
        """Whether the flow map, the average velocity and the Jacobian have closed forms."""
        return False

    @abc.abstractmethod
    def _velocity(self, z: State, t: Times) -> State: ...

    def _flow_map(self, z: State, t: Times, r: Times) -> State:
        raise self._no_closed_form("flow map")

    def _average_velocity(self, z: State, r: Times, t: Times) -> State:
        raise self._no_closed_form("average velocity")

    def _jacobian(self, z: State, r: Times, t: Times) -> Matrices:
        raise self._no_closed_form("Jacobian")

    # ------------------------------------------------------------ public

    def velocity(self, z: State, t: Times | float) -> State:
        """Marginal velocity ``v(z, t) = E[v_t | z_t = z]``. Source: mf:1.

        Args:
            z: States, ``(*batch, d)``.
            t: Times in [0, 1].

        Returns:
            ``v``, of ``z``'s shape and dtype; differentiable in ``z`` and ``t``.

        """
        z = self._state(z)
        return self._velocity(z, as_times(t, z, "t"))

    def flow_map(self, z: State, t: Times | float, r: Times | float) -> State:
        """State at time ``r`` of the trajectory through ``z`` at ``t``. Source: mf:2.

        Raises:
            NoClosedFormError: If not ``exact_flow``; take :func:`meanflow_ref.average_velocity` and ``z - (t - r) u``.

        """
        z = self._state(z)
        return self._flow_map(z, as_times(t, z, "t"), as_times(r, z, "r"))

    def average_velocity(self, z: State, r: Times | float, t: Times | float) -> State:
        """Closed-form average velocity; equals ``v`` at r = t. Source: mf:3.

        Raises:
            NoClosedFormError: If not ``exact_flow``; :func:`meanflow_ref.average_velocity` then takes the ODE.

        """
        z = self._state(z)
        return self._average_velocity(z, as_times(r, z, "r"), as_times(t, z, "t"))

    def jacobian(self, z: State, r: Times | float, t: Times | float) -> Matrices:
        """Jacobian of the flow map from t to r, ``(*batch, d, d)``; closed."""
        z = self._state(z)
        return self._jacobian(z, as_times(r, z, "r"), as_times(t, z, "t"))

    def to(self: _Field, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> _Field:
        """Return this field with its parameters moved."""
        if not dataclasses.is_dataclass(self):
            raise TypeError(f"{type(self).__name__} is not a dataclass")
        changes = {
            item.name: _moved(getattr(self, item.name), dtype, device) for item in dataclasses.fields(self) if item.init
        }
        return dataclasses.replace(self, **changes)

    # ------------------------------------------------------------ helpers

    def _state(self, z: Tensor) -> Tensor:
        """Check a state against this field."""
        require_state(z)
        require_same_kind(self.anchor, z, f"{type(self).__name__}", "z")
        if z.shape[-1] != self.dim:
            raise ShapeError(
                f"`z` has shape {tuple(z.shape)}; {type(self).__name__} has dimension {self.dim}.",
                f"(*batch, {self.dim})",
                f"z.reshape(-1, {self.dim})" if z.numel() % self.dim == 0 else "",
            )
        return z

    def _no_closed_form(self, what: str) -> NoClosedFormError:
        return NoClosedFormError(
            f"{type(self).__name__} (d = {self.dim}) has no closed-form {what}.",
            "a field with exact_flow",
            "meanflow_ref.average_velocity(field, z, r, t) takes the ODE route by itself",
        )


class AbstractDataField(AbstractField):
    """A field that transports standard normal noise to a data distribution along ``path``."""

    @abc.abstractmethod
    def _log_density(self, z: State, t: Times) -> PerState: ...

    @abc.abstractmethod
    def _velocity_covariance(self, z: State, t: Times) -> Matrices: ...

    @abc.abstractmethod
    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` exact data samples, ``(n, d)``."""

    def log_density(self, z: State, t: Times | float) -> PerState:
        """Log-density of ``z_t`` at ``z``."""
        z = self._state(z)
        return self._log_density(z, as_times(t, z, "t"))

    def velocity_covariance(self, z: State, t: Times | float) -> Matrices:
        """Covariance of the conditional velocity ``v_t`` given ``z_t = z``, ``(*batch, d, d)``. Source: ref:covariance.

        Its mean is :meth:`velocity`.
        """
        z = self._state(z)
        return self._velocity_covariance(z, as_times(t, z, "t"))

    def log_det_jacobian(self, z: State, r: Times | float, t: Times | float) -> PerState:
        """Log-determinant of the flow map's Jacobian from t to r, from the densities alone. Source: ref:logdet."""
        z = self._state(z)
        r, t = as_times(r, z, "r"), as_times(t, z, "t")
        return self._log_density(z, t) - self._log_density(self._flow_map(z, t, r), r)

    def sample_pair(self, n: int, generator: torch.Generator | None = None) -> tuple[State, State]:
        """Draw ``n`` independent pairs of data and noise, ``(x, eps)``."""
        x = self.sample_data(n, generator)
        eps = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        return x, eps

    def sample(self, t: Times, generator: torch.Generator | None = None) -> State:
        """Draw one exact ``z_t`` for each entry of ``t``, ``(n,) -> (n, d)``."""
        x, eps = self.sample_pair(t.shape[0], generator)
        state: Tensor = formulas.interpolant(x, eps, column(self.path.alpha(t)), column(self.path.sigma(t)))
        return state
