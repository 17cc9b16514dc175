"""Average velocity by a field's closed form, with an error estimate from its conditioning."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import TruthError
from meanflow_ref.fields.base import AbstractField
from meanflow_ref.truth.result import Truth
from meanflow_ref.truth.tangents import partial_derivatives

# Units of rounding in the estimate; measured against 40-digit arithmetic and rounded up.
ROUNDING_UNITS = 32.0


def average_velocity_closed(
    field: AbstractField, z: Tensor, r: Tensor, t: Tensor, *, derivatives: bool = False
) -> Truth:
    """Average velocity by ``field.average_velocity``. Source: mf:3.

    Args:
        field: A field with ``exact_flow``, in ``z``'s dtype.
        z: States, ``(B, d)``.
        r: End times, ``(B,)``.
        t: Times of the states, ``(B,)``.
        derivatives: Also differentiate the closed form, by reverse mode.

    Returns:
        A :class:`Truth`; its ``jacobian`` is the field's own closed form.

    Raises:
        TruthError: The closed form is not finite, as that of point data at t = 0.

    Precision: ``error`` is :func:`rounding_error`, a model of rounding and not a comparison. Derivatives divide it by
    ``max(t - r, 2^-5)``, since a flow map's are divided by ``t - r`` where it is not short.

    """
    with torch.no_grad():
        u, jacobian = field.average_velocity(z, r, t), field.jacobian(z, r, t)
        _require_value(u, z, r, t)
        truth = Truth(u, rounding_error(z, u, jacobian), "closed", jacobian=jacobian)
        if not derivatives:
            return truth
        v = field.velocity(z, t)
        _, dz_u, (dr_u, dt_u) = partial_derivatives(field.average_velocity, z, r, t)
        du_dt = formulas.total_derivative((dz_u @ v[..., None])[..., 0], dr_u, dt_u, 1, 0, 1)
        return replace(truth, du_dt=du_dt, dr_u=dr_u, dz_u=dz_u, evaluations=1)


def _require_value(u: Tensor, z: Tensor, r: Tensor, t: Tensor) -> None:
    """Raise if the closed form has no finite value somewhere."""
    bad = ~torch.isfinite(u).all(-1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise TruthError(
            f"The average velocity is not finite in row {row}, at r = {float(r[row]):g}, t = {float(t[row]):g}, "
            f"|z| = {float(z[row].norm()):.3g}.",
            "a state and a pair of times at which the field has one",
            "where the data are points or a sphere, there is no velocity at t = 0 off the data: take t > 0",
        )


def rounding_error(z: Tensor, u: Tensor, jacobian: Tensor) -> Tensor:
    """Model of the rounding in a quantity carried along the flow, ``32 eps [1 + |u| + |J| (1 + |z|)]``.

    A relative perturbation of ``z`` by one rounding moves the flow map by ``eps |J| |z|``, and a quantile transport
    does not do better than that. Norms are maximum norms over the event.
    """
    size = 1 + u.abs().amax(-1) + operator_norm(jacobian) * (1 + z.abs().amax(-1))
    return ROUNDING_UNITS * torch.finfo(z.dtype).eps * size


def operator_norm(matrices: Tensor) -> Tensor:
    """Operator norm belonging to the maximum norm: the largest row sum."""
    return matrices.abs().sum(-1).amax(-1)
