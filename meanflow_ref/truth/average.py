"""The front door to the truth: one call, the best route, an error estimate."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import State, Times, VelocityField
from meanflow_ref._validate import as_times, require_finite, require_state, require_times
from meanflow_ref.errors import DtypeError, NoClosedFormError, ParameterError, ShapeError
from meanflow_ref.fields.base import AbstractField
from meanflow_ref.truth.closed import average_velocity_closed
from meanflow_ref.truth.ode import average_velocity_ode
from meanflow_ref.truth.quadrature import average_velocity_quadrature
from meanflow_ref.truth.result import Truth
from meanflow_ref.truth.scipy_ode import average_velocity_scipy

Method: TypeAlias = Literal["auto", "closed", "ode", "quadrature", "scipy"]
METHODS: tuple[Method, ...] = ("auto", "closed", "ode", "quadrature", "scipy")


def average_velocity(
    field: AbstractField | VelocityField,
    z: State,
    r: Times | float,
    t: Times | float,
    *,
    method: Method = "auto",
    tol: float = 1e-12,
    derivatives: bool = False,
) -> Truth:
    r"""True average velocity over ``[r, t]`` of the trajectory through ``z`` at ``t``, with an error estimate.

    .. math:: u(z_t, r, t) = \frac{1}{t - r} \int_r^t v(z_\tau, \tau)\, d\tau, \qquad u(z_t, t, t) = v(z_t, t).

    Source: mf:3, mf:limit, ref:u-ode.

    Args:
        field: An exact field, or any velocity ``v(z, t)`` of ``(B, d)`` and ``(B,)`` whose rows are independent.
        z: States at ``t``, ``(*batch, d)``, float64 or float32. A field is evaluated in float64 either way; another
            velocity is called in ``z``'s dtype.
        r: End times in [0, 1], ``r <= t``: a number, or a tensor that broadcasts to ``batch``.
        t: Times of the states in [0, 1].
        method: ``"closed"`` (fields with ``exact_flow``), ``"ode"`` (torchdiffeq in u-space), ``"quadrature"`` (along
            the closed flow), ``"scipy"`` (another solver, row by row), or ``"auto"``: closed if there is one, else ODE.
        tol: What the route controls; the answer's own estimate is ``error``. The closed route has no use for it.
        derivatives: Also du/dt, d_r u, d_z u and the flow map's Jacobian: those of the closed form on the closed
            route, otherwise of the variational equation beside the ODE.

    Returns:
        A :class:`Truth` of ``z``'s dtype, without gradient.

    Raises:
        TimeError: ``r > t``, a time outside [0, 1], NaN, or of an integer type.
        ShapeError, DtypeError, NonFiniteError: The arguments do not fit together.
        NoClosedFormError: ``"closed"`` or ``"quadrature"`` of something without a closed flow.
        TruthError: The route failed; the message says where and what to try.
        MissingExtraError: The route needs a package that is not installed.

    Precision: closed about 1e-14, ODE about ``tol/10``, either times ``1 + |J|`` with J the Jacobian of the flow map,
    because every error made on the way is carried to ``r`` by the flow.

    """
    if method not in METHODS:
        raise ParameterError(f"method={method!r}.", f"one of {', '.join(METHODS)}", "leave it out for the best route")
    if not isinstance(tol, float | int) or not 0 < tol < 1:
        raise ParameterError(f"tol={tol!r}.", "a number between 0 and 1", "leave it out for 1e-12")
    z, r, t = _checked(field, z, r, t)
    truth = _route(field, *_flat(z, r, t), method, tol, derivatives)
    return _shaped(truth, z)


def flow_map(
    field: AbstractField | VelocityField,
    z: State,
    t: Times | float,
    r: Times | float,
    *,
    method: Method = "auto",
    tol: float = 1e-12,
) -> State:
    """State at ``r`` of the trajectory through ``z`` at ``t``, for fields without a closed one too. Source: mf:12.

    Args:
        field: As for :func:`average_velocity`.
        z: States at ``t``, ``(*batch, d)``.
        t: Times of the states; note the order, from t to r.
        r: Times to go to, ``r <= t``.
        method: As for :func:`average_velocity`.
        tol: As for :func:`average_velocity`.

    Returns:
        ``z - (t - r) u``, of ``z``'s shape and dtype, without gradient.

    """
    u = average_velocity(field, z, r, t, method=method, tol=tol).value
    state: Tensor = formulas.step(z.detach(), u, as_times(r, z, "r")[..., None], as_times(t, z, "t")[..., None])
    return state


def _checked(field: AbstractField | VelocityField, z: object, r: object, t: object) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments as tensors, or one clear error."""
    state = require_state(z)
    if state.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"`z` has dtype {state.dtype}.", "float64 or float32", "z.double()")
    if state.dim() < 2:
        raise ShapeError(
            f"`z` has shape {tuple(state.shape)}.", "(*batch, d)", "z[:, None] if its entries are states, else z[None]"
        )
    r, t = as_times(r, state, "r"), as_times(t, state, "t")
    if isinstance(field, AbstractField):
        field._state(state)  # the field's own checks of dimension, dtype and device
    elif not callable(field):
        raise DtypeError(
            f"`field` is a {type(field).__name__}.", "a field, or a function v(z, t)", "meanflow_ref.Gaussian(...)"
        )
    require_finite(state, "z")
    require_times(r, t)
    return state.detach(), r.detach(), t.detach()


def _flat(z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One batch dimension."""
    return z.reshape(-1, z.shape[-1]), r.reshape(-1), t.reshape(-1)


def _route(
    field: AbstractField | VelocityField,
    z: Tensor,
    r: Tensor,
    t: Tensor,
    method: Method,
    tol: float,
    derivatives: bool,
) -> Truth:
    """The answer by the route that ``method`` means for this field."""
    if not isinstance(field, AbstractField):
        if method in ("closed", "quadrature"):
            raise NoClosedFormError(
                f"method={method!r} of a plain velocity function.", "a field with exact_flow", "method='ode'"
            )
        return _solved(field, z, r, t, method, tol, derivatives)

    exact = field.to(dtype=torch.float64)
    z, r, t = z.double(), r.double(), t.double()
    if method == "auto":
        method = "closed" if field.exact_flow else "ode"
    if method == "closed":
        return average_velocity_closed(exact, z, r, t, derivatives=derivatives)
    if method == "quadrature":
        truth = average_velocity_quadrature(exact, z, r, t, tol=tol)
        return _with_derivatives(truth, exact.velocity, z, r, t, tol) if derivatives else truth
    return _solved(exact.velocity, z, r, t, method, tol, derivatives)


def _solved(
    velocity: VelocityField, z: Tensor, r: Tensor, t: Tensor, method: Method, tol: float, derivatives: bool
) -> Truth:
    """The answer by one of the two solvers."""
    if method != "scipy":
        return average_velocity_ode(velocity, z, r, t, tol=tol, derivatives=derivatives)
    truth = average_velocity_scipy(velocity, z, r, t, tol=tol)
    return _with_derivatives(truth, velocity, z, r, t, tol) if derivatives else truth


def _with_derivatives(truth: Truth, velocity: VelocityField, z: Tensor, r: Tensor, t: Tensor, tol: float) -> Truth:
    """``truth`` with the derivatives of the variational equation; a closed Jacobian stays."""
    extra = average_velocity_ode(velocity, z, r, t, tol=tol, derivatives=True)
    return replace(
        truth,
        du_dt=extra.du_dt,
        dr_u=extra.dr_u,
        dz_u=extra.dz_u,
        jacobian=extra.jacobian if truth.jacobian is None else truth.jacobian,
        evaluations=truth.evaluations + extra.evaluations,
    )


def _shaped(truth: Truth, z: Tensor) -> Truth:
    """``truth`` with ``z``'s batch shape and dtype; rounding to a shorter dtype joins the error."""
    error = truth.error
    if truth.value.dtype != z.dtype:
        error = error + torch.finfo(z.dtype).eps * truth.value.abs().amax(-1)
    changed = {"error": error.to(z.dtype).reshape(z.shape[:-1])}
    for item in fields(truth):
        value = getattr(truth, item.name)
        if isinstance(value, Tensor) and item.name != "error":
            changed[item.name] = value.to(z.dtype).reshape(*z.shape[:-1], *value.shape[1:])
    return replace(truth, **changed)  # type: ignore[arg-type]
