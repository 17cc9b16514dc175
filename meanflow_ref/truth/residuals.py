"""Residuals of the laws that an average velocity obeys, for any ``u(z, r, t)``: an exact field or a network.

Derivatives are by :func:`torch.func.jvp`. States are ``(B, *event)``, times ``(B,)`` or numbers; a residual has the
shape of ``z`` and carries gradient to whatever ``u`` closes over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import AverageVelocity, TensorFunction, VelocityField
from meanflow_ref._validate import as_times, require_state


def total_derivative(
    u: AverageVelocity, v: Tensor, z: Tensor, r: Tensor | float, t: Tensor | float
) -> tuple[Tensor, Tensor]:
    """``u`` and du/dt, its JVP along ``(v, 0, 1)``. Source: mf:8.

    Args:
        u: An average velocity.
        v: Velocity at ``(z, t)``, of ``z``'s shape.
        z: States.
        r: End times.
        t: Times of the states.

    """
    r, t = _times(z, r, t)
    return _jvp(u, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))


def identity_residual(
    u: AverageVelocity, velocity: VelocityField, z: Tensor, r: Tensor | float, t: Tensor | float
) -> Tensor:
    """``u - [v - (t - r) du/dt]``, zero for the average velocity of ``velocity`` and for nothing else. Source: mf:6.

    Args:
        u: An average velocity.
        velocity: The marginal velocity ``v(z, t)``.
        z: States.
        r: End times.
        t: Times of the states.

    """
    r, t = _times(z, r, t)
    v = velocity(z, t)
    value, du_dt = total_derivative(u, v, z, r, t)
    residual: Tensor = formulas.identity_residual(value, v, du_dt, _column(r, z), _column(t, z))
    return residual


def lagrangian_residual(
    u: AverageVelocity, velocity: VelocityField, z: Tensor, r: Tensor | float, t: Tensor | float
) -> Tensor:
    """``u - [v(z_r, r) + (t - r) d_r u]``, the identity in the other end. Source: fmm:lagrangian.

    Args:
        u: An average velocity; ``z_r`` is reached by its own step.
        velocity: The marginal velocity ``v(z, t)``.
        z: States.
        r: End times.
        t: Times of the states.

    """
    r, t = _times(z, r, t)
    value, dr_u = _jvp(lambda end: u(z, end, t), (r,), (torch.ones_like(r),))
    z_r = formulas.step(z, value, _column(r, z), _column(t, z))
    residual: Tensor = formulas.lagrangian_residual(value, velocity(z_r, r), dr_u, _column(r, z), _column(t, z))
    return residual


def consistency_residual(
    u: AverageVelocity, z: Tensor, r: Tensor | float, s: Tensor | float, t: Tensor | float
) -> Tensor:
    """``(t-r) u(z_t,r,t) - (s-r) u(z_s,r,s) - (t-s) u(z_t,s,t)``, zero for every ``s``. Source: mf:consistency.

    Two steps must land where one does. It holds for ``s`` outside ``[r, t]`` too, if ``u`` takes such times.

    Args:
        u: An average velocity; ``z_s`` is reached by its own step.
        z: States.
        r: End times.
        s: Times between.
        t: Times of the states.

    """
    (r, t), s = _times(z, r, t), as_times(s, z, "s", z.dim() - 1)
    u_st = u(z, s, t)
    z_s = formulas.step(z, u_st, _column(s, z), _column(t, z))
    columns = (_column(r, z), _column(s, z), _column(t, z))
    residual: Tensor = formulas.consistency_residual(u(z, r, t), u(z_s, r, s), u_st, *columns)
    return residual


def boundary_residual(u: AverageVelocity, velocity: VelocityField, z: Tensor, t: Tensor | float) -> Tensor:
    """``u(z, t, t) - v(z, t)``. Source: mf:limit.

    Args:
        u: An average velocity.
        velocity: The marginal velocity ``v(z, t)``.
        z: States.
        t: Times.

    """
    _, t = _times(z, t, t)
    return u(z, t, t) - velocity(z, t)


def _jvp(fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Value and derivative along ``tangents``."""
    value, derivative = torch.func.jvp(fn, primals, tangents)  # type: ignore[misc]  # three only with has_aux
    return value, derivative


def _times(z: Tensor, r: Tensor | float, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """Times as tensors of shape ``(B,)``."""
    require_state(z)
    return as_times(r, z, "r", z.dim() - 1), as_times(t, z, "t", z.dim() - 1)


def _column(t: Tensor, z: Tensor) -> Tensor:
    """A time that broadcasts over the event."""
    return t.reshape(t.shape + (1,) * (z.dim() - t.dim()))
