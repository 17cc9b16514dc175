r"""Average velocity by an ODE in u-space.

With :math:`h = t - r` and :math:`w(s)` the average velocity over :math:`[t - hs, t]` times :math:`s`,

.. math:: \dot w = v(z - h w,\; t - h s), \qquad w(0) = 0, \qquad u = w(1).

The tolerance acts on ``u`` itself, every row has its own ``(r, t)``, nothing is divided by ``h``, and at ``r = t`` the
answer is ``v``. Differentiating the equation gives the derivatives as further states: along a tangent
:math:`(\delta z, \delta r, \delta t)`,

.. math:: \frac{d}{ds}\delta w = \partial_z v\,(\delta z - \delta h\, w - h\, \delta w)
    + \partial_t v\,(\delta t - \delta h\, s), \qquad \delta w(0) = 0,

at :math:`(z - hw,\; t - hs)`, with :math:`\delta h = \delta t - \delta r`. The tangent :math:`(v, 0, 1)` gives du/dt,
the unit vectors of ``z`` give :math:`\partial_z u`, hence the flow map's Jacobian :math:`J = I - h\,\partial_z u`.
Source: ref:u-ode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import VelocityField
from meanflow_ref.errors import DtypeError, MissingExtraError, ShapeError, TruthError
from meanflow_ref.truth.result import Truth
from meanflow_ref.truth.tangents import Derivatives, Tangents, partial_derivatives

# A tolerance below this many units of rounding asks the step controller to resolve noise.
TOLERANCE_FLOOR_IN_EPS = 32.0
# The error estimate compares with a second solve at this many times the tolerance.
LOOSER = 10.0
# Rounding accumulated over some hundred stages.
ROUNDING_UNITS = 32.0
MAX_STEPS = 5_000


@torch.no_grad()
def average_velocity_ode(
    velocity: VelocityField,
    z: Tensor,
    r: Tensor,
    t: Tensor,
    *,
    tol: float = 1e-12,
    derivatives: bool = False,
    solver: str = "dopri8",
    max_steps: int = MAX_STEPS,
) -> Truth:
    """Average velocity of any velocity field by torchdiffeq. Source: ref:u-ode, mf:3.

    Args:
        velocity: ``v(z, t)`` with independent rows; called in ``z``'s dtype, never outside ``[r, t]``.
        z: States, ``(B, d)``, float64 or float32 (the solver's own state is float64 in either case).
        r: End times, ``(B,)``.
        t: Times of the states, ``(B,)``, ``r <= t``.
        tol: Absolute and relative tolerance of one step, on ``u`` and on every derivative; raised to 32 units of
            rounding of ``z``'s dtype if smaller (7e-15 in float64, 4e-6 in float32).
        derivatives: Also integrate du/dt, d_r u and d_z u; needs a velocity that ``backward`` can differentiate.
        solver: An adaptive torchdiffeq method.
        max_steps: Steps after which the solver gives up.

    Returns:
        A :class:`Truth` in ``z``'s dtype.

    Raises:
        TruthError: The solver failed, or the velocity is not finite somewhere on the way.
        MissingExtraError: torchdiffeq is not installed.

    Precision: the true error is about ``tol (1 + |u|)`` and usually far below, times the largest ``1 + |J|`` from any
    point on the way, since an error made there is amplified by the rest of the flow map. Between modes that can be some
    times the ``|J|`` of the whole way, which the golden vectors of separatrices show.
    ``error`` is one tolerance, for an error made at the end of the way, and the difference from a second solve at ten
    times the tolerance that *starts* one tolerance away from 0: that displacement arrives multiplied by J, so that
    the estimate knows the conditioning even where the two solves happen to agree. It exceeds the true error, usually
    ten- to a thousandfold.

    """
    rhs = _RightHandSide(velocity, z, r, t)
    tol = max(tol, TOLERANCE_FLOOR_IN_EPS * torch.finfo(z.dtype).eps)
    if z.shape[0] == 0:
        return _empty(z, derivatives)
    start = rhs.displacement()
    rough = _solve(rhs, tol * start, tol=LOOSER * tol, solver=solver, max_steps=max_steps)
    if not derivatives:
        u = _solve(rhs, torch.zeros_like(start), tol=tol, solver=solver, max_steps=max_steps)
        return Truth(u.to(z.dtype), rhs.error(u, rough, tol), "ode", rhs.evaluations)

    variational = _Variational(rhs)
    states = _solve(variational, variational.start(), tol=tol, solver=solver, max_steps=max_steps)
    u, found = states[:, 0], Derivatives.from_rows(states[:, 1:])
    return Truth(
        u.to(z.dtype),
        rhs.error(u, rough, tol),
        "ode",
        rhs.evaluations,
        du_dt=found.du_dt.to(z.dtype),
        dr_u=found.dr_u.to(z.dtype),
        dz_u=found.dz_u.to(z.dtype),
        jacobian=found.jacobian(rhs.h).to(z.dtype),
    )


class _RightHandSide:
    """``dw/ds = v(z - h w, t - h s)``, which counts its calls and refuses what is not finite."""

    def __init__(self, velocity: VelocityField, z: Tensor, r: Tensor, t: Tensor) -> None:
        self._velocity, self._dtype = velocity, z.dtype
        self.z, self.r, self.t = z.double(), r.double(), t.double()
        self.h = self.t - self.r
        self.evaluations = 0

    def displacement(self) -> Tensor:
        """A fixed start of size 1, in no special direction."""
        b, d = self.z.shape
        return torch.cos(torch.arange(d, dtype=self.z.dtype, device=self.z.device)).expand(b, d).clone()

    def point(self, s: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """State and time at ``s``; rounding may not carry the time beyond ``r``."""
        y: Tensor = formulas.step(self.z, w, self.r[:, None], self.t[:, None])
        return y, torch.maximum(self.t - self.h * s, self.r)

    def velocity(self, y: Tensor, tau: Tensor) -> Tensor:
        """``v`` in the caller's dtype, checked, as float64."""
        self.evaluations += 1
        v = self._velocity(y.to(self._dtype), tau.to(self._dtype))
        check_velocity(v, y, tau, self._dtype, rows=self.z.shape[0])
        return v.double()

    def __call__(self, s: Tensor, w: Tensor) -> Tensor:
        return self.velocity(*self.point(s, w))

    def error(self, u: Tensor, rough: Tensor, tol: float) -> Tensor:
        """Estimated error of ``u``: its distance from the rough solve, and one tolerance at the end of the way."""
        eps = torch.finfo(self._dtype).eps
        size = u.abs().amax(-1)
        return ((u - rough).abs().amax(-1) + (tol + ROUNDING_UNITS * eps) * (1 + size)).to(self._dtype)


class _Variational:
    """The ODE of ``w`` and of its derivatives along the table of tangents, as one state ``(B, 1 + n, d)``."""

    def __init__(self, rhs: _RightHandSide) -> None:
        self._rhs = rhs
        self._tangents = Tangents.along(rhs.velocity(rhs.z, rhs.t))

    def start(self) -> Tensor:
        dz = self._tangents.dz
        return dz.new_zeros(dz.shape[0], 1 + dz.shape[1], dz.shape[2])

    def __call__(self, s: Tensor, states: Tensor) -> Tensor:
        rhs, tangents = self._rhs, self._tangents
        w, dw = states[:, 0], states[:, 1:]
        dh = tangents.dh[:, None]
        dy = tangents.dz - dh * w[:, None] - rhs.h[:, None, None] * dw
        dtau = tangents.dt - tangents.dh * s
        v, dz_v, (dt_v,) = partial_derivatives(rhs.velocity, *rhs.point(s, w))
        dv = dy @ dz_v.mT + dtau[:, None] * dt_v[:, None]
        return torch.cat([v[:, None], dv], dim=1)


def _solve(rhs: Any, start: Tensor, *, tol: float, solver: str, max_steps: int) -> Tensor:
    """State at ``s = 1``.

    The maximum norm, because a mean over the batch lets one hard row hide among easy ones; ``step_t`` at the end,
    because the solver otherwise steps past it, calls ``v`` outside ``[r, t]``, and hands back a fourth-degree
    interpolant that is far less accurate than the step itself.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as missing:
        raise MissingExtraError("torchdiffeq", "truth", "The ODE route to the average velocity") from missing

    times = torch.tensor([0.0, 1.0], dtype=start.dtype, device=start.device)
    options = {"norm": _max_norm, "step_t": times[1:], "max_num_steps": max_steps}
    try:
        states: Tensor = odeint(rhs, start, times, method=solver, rtol=tol, atol=tol, options=options)
    except AssertionError as failure:
        raise _explained(str(failure), tol, max_steps) from failure
    return states[-1]


def _max_norm(x: Tensor) -> Tensor:
    return x.abs().max()


def _explained(failure: str, tol: float, max_steps: int) -> TruthError:
    """The solver's complaint, with its cause."""
    if "max_num_steps" in failure:
        return TruthError(
            f"The ODE was not solved to {tol:.1g} in {max_steps} steps.",
            "a velocity that is smooth on the scale of the steps",
            "raise tol; stay away from r = 0 where the data are points or nearly so; or raise max_steps",
        )
    return TruthError(
        f"The ODE solver stopped at a tolerance of {tol:.1g}: {failure.splitlines()[0]}.",
        "a velocity that is smooth and finite on [r, t]",
        "raise tol; if v jumps or is infinite at some time, split the interval there",
    )


def check_velocity(v: object, y: Tensor, tau: Tensor, dtype: torch.dtype, rows: int) -> None:
    """Raise unless ``v`` looks like a velocity at ``y``: a finite tensor of its shape and of the dtype called with.

    ``y`` holds each of ``rows`` states once or several times in succession.
    """
    if not isinstance(v, Tensor) or v.shape != y.shape:
        seen = f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else f"a {type(v).__name__}"
        raise ShapeError(f"velocity(z, t) returned {seen} for z of shape {tuple(y.shape)}.", "a tensor of z's shape")
    if v.dtype != dtype:
        raise DtypeError(f"velocity(z, t) returned {v.dtype} for {dtype}.", "z's dtype", "return v.to(z)")
    bad = ~torch.isfinite(v).all(-1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        row, time, size = first // (y.shape[0] // rows), float(tau[first].detach()), float(y[first].detach().norm())
        raise TruthError(
            f"The velocity is not finite in row {row} at time {time:.6g}, |z| = {size:.3g}.",
            "a velocity that is finite on [r, t]",
            "where the data are points, v has no limit at t = 0: stop at r > 0, or take method='quadrature'",
        )


def _empty(z: Tensor, derivatives: bool) -> Truth:
    """The answer for no states."""
    d = z.shape[-1]
    matrix = z.new_zeros(0, d, d)
    extra: dict[str, Tensor] = {"du_dt": z, "dr_u": z, "dz_u": matrix, "jacobian": matrix} if derivatives else {}
    return Truth(z, z.new_zeros(0), "ode", 0, **extra)
