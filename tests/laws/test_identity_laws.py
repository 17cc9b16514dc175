"""The MeanFlow identity as a property: targets built from the exact v are the average velocity of the ODE."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from law_strategies import (
    PLAIN,
    Problem,
    amplification,
    closed_problems,
    few,
    norm,
    open_problems,
    quick_closed_problems,
    worst,
)
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.objectives.meanflow import meanflow_loss_at
from meanflow_ref.truth import Truth, average_velocity
from meanflow_ref.truth.residuals import total_derivative

# The ODE's steps are held below a tolerance relative to 1 + |u|, and the flow carries what is made on the way by J:
# tol (1 + J)(1 + |v| + |z|). A derivative of u depends on the error of the state too, which costs a second factor
# (1 + J). The closed forms' rounding is far below either.
TOL = U_BOUND = 1e-9
DERIVATIVE_BOUND = 3e-9

Tangent = tuple[Tensor, Tensor, Tensor]


def solve(p: Problem) -> Truth:
    """The independent side: v alone, by torchdiffeq."""
    return average_velocity(p.field, *p.args, method="ode", tol=TOL, derivatives=True)


def right_tangent(v: Tensor, zero: Tensor, one: Tensor) -> Tangent:
    return v, zero, one


def jvp_target(
    p: Problem, tangent: Callable[[Tensor, Tensor, Tensor], Tangent] = right_tangent, sign: float = 1, gap: bool = True
) -> tuple[Tensor, Tensor]:
    """The target ``v - (t - r) du/dt`` and du/dt, by forward mode of the closed form."""
    r, t = p.r[:, None], p.t[:, None]
    tangents = tangent(p.v, torch.zeros_like(p.r), torch.ones_like(p.t))
    du_dt: Tensor = torch.func.jvp(p.field.average_velocity, p.args, tangents)[1]
    target: Tensor = formulas.meanflow_target(p.v, sign * du_dt, r if gap else torch.zeros_like(r), t if gap else 1)
    return target, du_dt


@given(quick_closed_problems)
@few
def test_the_target_from_exact_v_is_the_u_of_the_ode(p: Problem) -> None:
    truth, scale = solve(p), amplification(p)
    target, du_dt = jvp_target(p)
    assert truth.du_dt is not None
    assert worst(target - truth.value, scale * p.size) < U_BOUND
    assert worst(p.field.average_velocity(*p.args) - truth.value, scale * p.size) < U_BOUND
    assert worst(du_dt - truth.du_dt, scale**2 * p.size) < DERIVATIVE_BOUND

    # The shipped loss, handed the exact u as its network: the same target, and nothing left to learn.
    terms = meanflow_loss_at(p.field.average_velocity, p.z, p.v, p.r, p.t, weight_power=0.0)
    assert worst(terms.target - truth.value, scale * p.size) < U_BOUND
    assert worst(terms.du_dt - truth.du_dt, scale**2 * p.size) < DERIVATIVE_BOUND
    assert worst(terms.squared_error[:, None].sqrt(), scale * p.size) < U_BOUND


@given(open_problems)
@few
def test_identity_and_its_kin_hold_where_there_is_no_closed_form(p: Problem) -> None:
    truth = solve(p)
    assert truth.du_dt is not None
    assert truth.dr_u is not None
    assert truth.dz_u is not None
    assert truth.jacobian is not None
    scale = (1 + norm(truth.jacobian)) ** 2 * p.size
    u, v, r, t = truth.value, p.v, p.r[:, None], p.t[:, None]
    z_r = formulas.step(p.z, u, r, t)
    v_r = p.field.velocity(z_r, p.r)
    # dv/dz at r, up to 1/std^2 = 25 and more on a path that is steep at 0, multiplies the error of z_r.
    slope = 1 + (p.h * torch.func.jvp(lambda y: p.field.velocity(y, p.r), (z_r,), (torch.ones_like(z_r),))[1]).abs()
    assert worst(formulas.identity_residual(u, v, truth.du_dt, r, t), scale) < DERIVATIVE_BOUND
    assert worst(formulas.lagrangian_residual(u, v_r, truth.dr_u, r, t) / slope, scale) < DERIVATIVE_BOUND
    # The whole of the chain rule: moving both ends moves the displacement by the velocities at the ends.
    assert worst((p.h * (truth.du_dt + truth.dr_u) - (v - v_r)) / slope, scale) < DERIVATIVE_BOUND


@given(closed_problems)
@few
def test_the_limit_at_equal_times(p: Problem) -> None:
    """``u -> v`` and ``du/dt -> a/2``, with the next terms of both expansions. Source: mf:limit, ref:acceleration."""

    def acceleration(z: Tensor, t: Tensor) -> Tensor:
        a: Tensor = torch.func.jvp(p.field.velocity, (z, t), (p.field.velocity(z, t), torch.ones_like(t)))[1]
        return a

    v, one = p.v, torch.ones_like(p.t)
    t = p.t.clamp(0.05, 1)
    a, jerk = torch.func.jvp(acceleration, (p.z, t), (p.field.velocity(p.z, t), one))[:2]
    at_t, du_dt = total_derivative(p.field.average_velocity, p.field.velocity(p.z, t), p.z, t, t)
    scale = 1 + p.field.velocity(p.z, t).abs().amax(1) + a.abs().amax(1) + p.z.abs().amax(1)
    # At r = t itself: rounding of v, and of a derivative whose terms are of size |v|^2 or so: 1e3 units.
    assert worst(at_t - p.field.velocity(p.z, t), scale) < 1e-13
    assert worst(du_dt - a / 2, scale * (1 + v.abs().amax(1))) < 2e-12
    # Near it: u = v - h a/2 + h^2 j/6 - ..., du/dt = a/2 - h j/6 + ...; at h = 1e-6 the next terms are below 1e-12
    # times a fourth derivative of the path, which grows like the jerk's own ratio to the acceleration.
    h = 1e-6
    u, du_dt = total_derivative(p.field.average_velocity, p.field.velocity(p.z, t), p.z, t - h, t)
    growth = 1 + jerk.abs().amax(1) + (jerk.abs().amax(1) / scale) ** 2 * scale
    assert worst(u - (p.field.velocity(p.z, t) - h * a / 2), scale + growth) < 1e-11
    assert worst(du_dt - (a / 2 - h * jerk / 6), (scale + growth) * (1 + v.abs().amax(1))) < 1e-10


# ---------------------------------------------------------------- mutants

TANGENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tangent]] = {
    "(v, 1, 0)": lambda v, zero, one: (v, one, zero),
    "(v, 1, 1)": lambda v, zero, one: (v, one, one),
    "(v, 0, 0)": lambda v, zero, one: (v, zero, zero),
    "(0, 0, 1)": lambda v, zero, one: (torch.zeros_like(v), zero, one),
    "(-v, 0, 1)": lambda v, zero, one: (-v, zero, one),
    "(v, 0, -1)": lambda v, zero, one: (v, zero, -one),
}


@pytest.mark.parametrize("plain", PLAIN)
def test_mutants_of_the_target_are_far_off(plain: str) -> None:
    p = PLAIN[plain]()
    truth = solve(p)
    assert truth.du_dt is not None
    assert worst(jvp_target(p)[0] - truth.value, amplification(p) * p.size) < U_BOUND
    for tangent in TANGENTS.values():
        target, du_dt = jvp_target(p, tangent)
        assert worst(target - truth.value) > 1e-2
        assert worst(du_dt - truth.du_dt) > 1e-2
    assert worst(jvp_target(p, sign=-1)[0] - truth.value) > 1e-2
    assert worst(jvp_target(p, gap=False)[0] - truth.value) > 1e-2
    wrong_v = meanflow_loss_at(p.field.average_velocity, p.z, -p.v, p.r, p.t)
    assert worst(wrong_v.target - truth.value) > 1e-2
    swapped = meanflow_loss_at(lambda z, r, t: p.field.average_velocity(z, t, r), p.z, p.v, p.r, p.t)
    assert worst(swapped.target - truth.value) > 1e-2


def test_half_the_acceleration_is_not_the_acceleration() -> None:
    p = PLAIN["gaussian"]()
    v = p.v
    _, du_dt = total_derivative(p.field.average_velocity, v, p.z, p.t, p.t)
    a = torch.func.jvp(p.field.velocity, (p.z, p.t), (v, torch.ones_like(p.t)))[1]
    assert worst(du_dt - a) > 1e-2
