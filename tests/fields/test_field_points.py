"""Point masses against exact finite sums, narrow mixtures, and their quantile cells."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from meanflow_ref import formulas
from meanflow_ref.errors import NoClosedFormError, ParameterError, ShapeError
from meanflow_ref.fields import GaussianMixture, PointMasses
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def line(path: AbstractPath = LINEAR) -> PointMasses:
    return PointMasses(tensor(0.5, 2.0, -1.0)[:, None], tensor(0.5, 0.3, 0.2), path)


@pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING])
def test_expectation_matching_is_an_exact_sum(path: AbstractPath) -> None:
    """E[u_target(v_t) | z] = u_target(E[v_t | z]): the target is affine in v, here with an arbitrary u."""
    field = PointMasses(
        torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        tensor(0.1, 0.2, 0.3, 0.25, 0.15),
        path,
    )
    generator = torch.Generator().manual_seed(1)
    t = 0.2 + 0.8 * torch.rand(30, dtype=torch.float64, generator=generator)
    r, z = t / 3, field.sample(t, generator)
    weights, velocities = field.responsibilities(z, t), field.conditional_velocities(z, t)
    assert weights.shape == (30, 5)
    assert velocities.shape == (30, 5, 3)

    def target(v: Tensor) -> Tensor:
        def u(z: Tensor, t: Tensor) -> Tensor:
            return torch.sin(z @ torch.ones(3, 3, dtype=torch.float64)) * t[:, None] ** 2

        du_dt = jvp(u, (z, t), (v, torch.ones_like(t)))[1]
        result: Tensor = formulas.meanflow_target(v, du_dt, r[:, None], t[:, None])
        return result

    mean = sum(weights[:, i, None] * target(velocities[:, i]) for i in range(5))
    scale = 1 + velocities.abs().amax((1, 2))[:, None]
    assert float(((mean - target(field.velocity(z, t))).abs() / scale).max()) < 1e-14


def test_conditional_velocity_is_that_of_the_path_through_the_point() -> None:
    """z = a x + b eps fixes eps, and v_t = a' x + b' eps."""
    field, t = line(TRIGONOMETRIC), tensor(0.4)
    z = tensor(0.7)[None]
    for i, x in enumerate(field.points[:, 0].tolist()):
        eps = (0.7 - float(TRIGONOMETRIC.alpha(t)) * x) / float(TRIGONOMETRIC.sigma(t))
        expected = float(TRIGONOMETRIC.alpha_dot(t)) * x + float(TRIGONOMETRIC.sigma_dot(t)) * eps
        assert abs(float(field.conditional_velocities(z, t)[0, i, 0]) - expected) < 1e-14


def test_responsibilities_against_exact_arithmetic() -> None:
    """At a state halfway between two points the weights decide; elsewhere the ratio is exp of a rational number."""
    field = line()
    t = Fraction(1, 2)
    state = Fraction(3, 4) * (1 - t) + Fraction(1, 2) * (1 - t)  # z = (1 - t) 5/4: halfway between 1/2 and 2
    weights = field.responsibilities(tensor(float(state))[None], 0.5)[0]
    assert abs(float(weights[0] / weights[1]) - 5 / 3) < 1e-14
    exponent = ((state - (1 - t) * 2) ** 2 - (state + (1 - t)) ** 2) / (2 * t**2)
    ratio = torch.exp(tensor(float(exponent))) * 0.2 / 0.3
    assert abs(float(weights[2] / weights[1] / ratio) - 1) < 1e-14


@pytest.mark.parametrize("path", [LINEAR, VARIANCE_PRESERVING])
def test_one_step_lands_on_the_quantile_cell(path: AbstractPath) -> None:
    """At t = 1 the cells' borders are normal quantiles of 0.2 and 0.7: -0.8416 and 0.5244."""
    field = line(path)
    z = tensor(-30.0, -1.0, -0.85, -0.83, 0.0, 0.51, 0.54, 2.0, 30.0)[:, None]
    if path == VARIANCE_PRESERVING:  # alpha(1) is 6.6e-3, not 0: scale to the same quantiles
        z = z + float(path.alpha(tensor(1.0))) * float((field.points[:, 0] * field.weights).sum())
    expected = tensor(-1, -1, -1, 0.5, 0.5, 0.5, 2, 2, 2)[:, None]
    assert torch.equal(field.flow_map(z, 1.0, 0.0), expected)
    assert torch.equal(field.average_velocity(z, 0.0, 1.0), z - expected)
    assert float(field.jacobian(z, 0.0, 1.0).abs().max()) == 0.0
    # At r the trajectory is at alpha x + sigma q, where q is not farther out than z by more than the cell's share.
    inner = torch.tensor([0, 1, 4, 7, 8])
    for r in (1e-2, 1e-4):
        gap = field.average_velocity(z[inner], r, 1.0) - field.average_velocity(z[inner], 0.0, 1.0)
        alpha, sigma = float(path.alpha(tensor(r))), float(path.sigma(tensor(r)))
        assert bool((gap.abs() < sigma * (3 + z[inner].abs()) + 2 * (1 - alpha)).all())


def test_narrow_mixture_tends_to_points() -> None:
    field = line()
    z = torch.linspace(-2, 3, 21, dtype=torch.float64)[:, None]
    for std, bound in ((1e-4, 1e-6), (1e-7, 1e-12)):
        mixture = GaussianMixture(field.weights, field.points, torch.full((3,), std, dtype=torch.float64))
        # The difference is of order (std/t)^2, times slopes up to t^-3.
        assert float((mixture.velocity(z, 0.3) - field.velocity(z, 0.3)).abs().max()) < bound
        gap = (mixture.average_velocity(z, 0.2, 0.9) - field.average_velocity(z, 0.2, 0.9)).abs()
        assert float((gap / (1 + field.jacobian(z, 0.2, 0.9)[:, 0])).max()) < bound


def test_covariance_is_the_sum_over_points() -> None:
    field = PointMasses(
        torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), tensor(*[0.25] * 4)
    )
    z = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights, velocities = field.responsibilities(z, 0.5), field.conditional_velocities(z, 0.5)
    second = torch.zeros(6, 2, 2, dtype=torch.float64)
    for i, j in itertools.product(range(4), repeat=2):  # the covariance by pairs: half the mean squared difference
        gap = velocities[:, i] - velocities[:, j]
        second += 0.5 * (weights[:, i] * weights[:, j])[:, None, None] * gap[:, :, None] * gap[:, None, :]
    assert float((field.velocity_covariance(z, 0.5) - second).abs().max()) < 1e-13


def test_parameters_are_checked() -> None:
    with pytest.raises(ShapeError, match="points"):
        PointMasses(tensor(1.0, 2.0), tensor(0.5, 0.5))
    with pytest.raises(ParameterError, match="sum to"):
        PointMasses(tensor(1.0, 2.0)[:, None], tensor(0.5, 0.4))
    plane = PointMasses(torch.zeros(1, 2, dtype=torch.float64), tensor(1.0))
    origin = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(NoClosedFormError):
        plane.flow_map(origin, 1.0, 0.0)
    with pytest.raises(NoClosedFormError):
        plane.average_velocity(origin, 0.0, 1.0)
