"""Laws of the flow map: consistency, both ends, determinant, Jacobian, the way back, change of schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from law_strategies import (
    PATHS,
    PLAIN,
    Problem,
    amplification,
    closed_problems,
    few,
    fewer,
    gaussian,
    mixture,
    norm,
    open_problems,
    pairs,
    problem,
    quick_closed_problems,
    seeds,
    unit_interval,
    worst,
)
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import AverageVelocity
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.residuals import consistency_residual, lagrangian_residual

# Closed forms: some hundred roundings, relative to 1 + |v| + |z| and carried by the flow, (1 + J).
ROUNDING = 1e-13


def through(p: Problem, s: Tensor) -> Tensor:
    """``1 + |J|`` of every leg of the way by ``s``: t to r, t to s, s to r. ``(n,)``."""
    z_s = p.field.flow_map(p.z, p.t, s)
    legs = p.field.jacobian(*p.args), p.field.jacobian(p.z, s, p.t), p.field.jacobian(z_s, p.r, s)
    return (1 + norm(legs[0])) * (1 + norm(legs[1])) * (1 + norm(legs[2]))


@given(closed_problems, unit_interval)
def test_consistency_by_any_time(p: Problem, middle: float) -> None:
    """Two steps by ``s`` land where one does, wherever ``s`` lies in [0, 1]: between, before r, or after t."""
    u = p.field.average_velocity
    for s in (torch.full_like(p.t, middle), p.r, p.t, 0.5 * (p.r + p.t)):
        scale = through(p, s) * p.size
        assert worst(consistency_residual(u, p.z, p.r, s, p.t), scale) < ROUNDING
        landed = p.field.flow_map(p.field.flow_map(p.z, p.t, s), s, p.r)
        assert worst(landed - p.field.flow_map(p.z, p.t, p.r), scale) < ROUNDING


@given(open_problems, unit_interval)
@fewer
def test_consistency_of_the_ode(p: Problem, share: float) -> None:
    """The same by three solves, ``s`` between r and t."""
    tol = 1e-8
    s = p.r + share * (p.t - p.r)
    whole = average_velocity(p.field, *p.args, tol=tol, derivatives=True)
    first = average_velocity(p.field, p.z, s, p.t, tol=tol, derivatives=True)
    assert whole.jacobian is not None
    assert first.jacobian is not None
    r_, s_, t_ = p.r[:, None], s[:, None], p.t[:, None]
    second = average_velocity(p.field, formulas.step(p.z, first.value, s_, t_), p.r, s, tol=tol)
    # Each solve is within tol (1 + J); the leg from s carries the error of z_s by J_rs = J_rt / J_ts.
    scale = (1 + norm(whole.jacobian)) * (1 + norm(torch.linalg.inv(first.jacobian))) * (1 + norm(first.jacobian))
    residual = formulas.consistency_residual(whole.value, second.value, first.value, r_, s_, t_)
    assert worst(residual, scale * p.size) < tol


@given(closed_problems)
def test_lagrangian_form(p: Problem) -> None:
    z_r = p.field.flow_map(p.z, p.t, p.r)
    # v at z_r is as sharp as dv/dz there, which the residual multiplies with an error of z_r.
    slope = 1 + torch.func.jvp(lambda y: p.field.velocity(y, p.r), (z_r,), (torch.ones_like(z_r),))[1].abs().amax(1)
    scale = amplification(p) * slope * p.size
    assert worst(lagrangian_residual(p.field.average_velocity, p.field.velocity, *p.args), scale) < ROUNDING


@given(closed_problems)
def test_jacobian_is_one_minus_gap_times_the_derivative_of_u(p: Problem) -> None:
    truth = average_velocity(p.field, *p.args, method="closed", derivatives=True)
    assert truth.dz_u is not None
    unit = torch.eye(p.field.dim, dtype=torch.float64)
    jacobian = p.field.jacobian(*p.args)
    # J is a ratio of densities, each the exponential of a number up to |z|^2/std^2 ~ 1e3.
    scale = amplification(p) * (1 + p.z.abs().amax(1)) ** 2
    assert worst(jacobian - (unit - p.h[:, None] * truth.dz_u), scale) < 1e-12
    columns = torch.func.vmap(
        lambda dz: torch.func.jvp(lambda y: p.field.flow_map(y, p.t, p.r), (p.z,), (dz.expand_as(p.z),))[1]
    )(unit)
    assert worst(jacobian - columns.permute(1, 2, 0), scale) < 1e-12


@given(st.one_of(quick_closed_problems, open_problems))
@few
def test_log_determinant_is_the_ratio_of_densities(p: Problem) -> None:
    """The ODE's own Jacobian against densities that no solver has seen. Source: ref:logdet."""
    tol = 1e-9
    truth = average_velocity(p.field, *p.args, method="ode", tol=tol, derivatives=True)
    assert truth.jacobian is not None
    z_r = formulas.step(p.z, truth.value, p.r[:, None], p.t[:, None])
    densities = p.field.log_density(p.z, p.t) - p.field.log_density(z_r, p.r)
    own = torch.linalg.slogdet(truth.jacobian).logabsdet
    # The determinant's relative error is that of J, tol (1 + J)^2, times |J^-1|; the density's is the error of
    # z_r, tol (1 + J), times the score there.
    inverse = norm(torch.linalg.inv(truth.jacobian))
    score = torch.func.jacrev(lambda y: p.field.log_density(y, p.r).sum())(z_r).abs().amax(1)
    j = 1 + norm(truth.jacobian)
    scale = j * (j * (1 + inverse) + score) * p.size
    assert worst((own - densities)[:, None], scale) < tol
    # The mutant, its sign, is told apart wherever the flow changes volume at all.
    if worst(own[:, None]) > 1e-3:
        assert worst((own + densities)[:, None]) > 1e-3


@given(closed_problems)
def test_the_way_back(p: Problem) -> None:
    """Fields take r > t: the average velocity is symmetric in its ends along a trajectory, and J is inverted."""
    z_r = p.field.flow_map(p.z, p.t, p.r)
    there, back = p.field.jacobian(*p.args), p.field.jacobian(z_r, p.t, p.r)
    scale = (1 + norm(there)) * (1 + norm(back)) * p.size
    assert worst(p.field.flow_map(z_r, p.r, p.t) - p.z, scale) < ROUNDING
    assert worst(p.h * (p.field.average_velocity(z_r, p.t, p.r) - p.field.average_velocity(*p.args)), scale) < ROUNDING
    assert worst(there @ back - torch.eye(p.field.dim, dtype=torch.float64), scale * (1 + p.z.abs().amax(1))) < 1e-12


# ---------------------------------------------------------------- change of schedule


def transferred(linear: AverageVelocity, path: AbstractPath, clock: AbstractPath) -> AverageVelocity:
    """The average velocity on ``path`` from the linear one's, with the times of ``clock``. Source: ref:transfer."""

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        c_r, c_t = path.transfer_scale(r)[:, None], path.transfer_scale(t)[:, None]
        y = z / c_t
        inner = linear(y, clock.transfer_time(r), clock.transfer_time(t))
        slopes = path.transfer_scale_dd(r, t)[:, None], clock.transfer_time_dd(r, t)[:, None]
        value: Tensor = formulas.transfer_average_velocity(y, inner, c_r, *slopes)
        return value

    return u


@given(st.sampled_from(PATHS[1:]), st.integers(1, 3), pairs, seeds)
def test_one_linear_truth_serves_every_schedule(
    path: AbstractPath, dim: int, pair: tuple[float, float], seed: int
) -> None:
    makers: tuple[Callable[[AbstractPath], Problem], ...] = (
        lambda path: problem(gaussian(dim, path, seed), pair, seed=seed),
        lambda path: problem(mixture(1, 3, path, seed), pair, seed=seed),
    )
    for make in makers:
        p = make(path)
        u = transferred(make(LINEAR).field.average_velocity, path, path)
        # The steepest clock is that of the variance-preserving path at 0, where S' is infinite: its slope counts.
        slope = 1 + path.transfer_time_dd(p.r, p.t).nan_to_num(posinf=0).abs()
        finite = torch.isfinite(path.transfer_time_dd(p.r, p.t))
        q = Problem(p.field, p.z[finite], p.r[finite], p.t[finite])
        assert (
            worst(u(*q.args) - q.field.average_velocity(*q.args), (amplification(p) * slope)[finite] * q.size) < 1e-12
        )


def test_mutants_of_the_flow_laws_are_far_off() -> None:
    p = PLAIN["mixture"]()
    u, v = p.field.average_velocity, p.field.velocity
    s = 0.5 * (p.r + p.t)

    def swapped(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return u(z, r, t) if bool((r == s).all()) else v(z, t)

    assert worst(consistency_residual(swapped, p.z, p.r, s, p.t)) > 1e-2
    # A step taken from the wrong end: u at t used to go from s.
    stale = (
        (p.t - p.r)[:, None] * u(*p.args) - (s - p.r)[:, None] * u(p.z, p.r, s) - (p.t - s)[:, None] * u(p.z, s, p.t)
    )
    assert worst(stale) > 1e-2
    assert worst(lagrangian_residual(u, lambda z, r: v(p.z, p.t), *p.args)) > 1e-2
    truth = average_velocity(p.field, *p.args, derivatives=True)
    assert truth.dz_u is not None
    assert worst(p.field.jacobian(*p.args) - (1 + p.h[:, None] * truth.dz_u)) > 1e-2
    linear = mixture(1, 3, LINEAR, 2).average_velocity
    assert worst(transferred(linear, p.field.path, LINEAR)(*p.args) - u(*p.args)) > 1e-2


@pytest.mark.parametrize("plain", PLAIN)
def test_a_field_that_is_no_flow_breaks_the_determinant(plain: str) -> None:
    p = PLAIN[plain]()
    other = gaussian(p.field.dim, p.field.path, seed=9)
    own = torch.linalg.slogdet(p.field.jacobian(*p.args)).logabsdet
    assert worst((own - other.log_det_jacobian(*p.args))[:, None]) > 1e-2
