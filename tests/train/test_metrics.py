"""Metrics, where the answer is known."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import Gaussian, GaussianMixture, Product
from meanflow_ref.objectives.meanflow import meanflow_loss
from meanflow_ref.objectives.times import UniformPair
from meanflow_ref.train.data.fields import line, ring
from meanflow_ref.train.distances import GaussianKernel, discrepancy, energy_distance, median_kernel, perfect_floor
from meanflow_ref.train.metrics import (
    estimate,
    euler,
    loss_floor,
    one_step_points,
    random_points,
    velocity_error,
    wasserstein_1d,
)

FIELD = Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), torch.eye(2, dtype=torch.float64) / 4)


def exact(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    return FIELD.average_velocity(z.double(), r.double(), t.double())


def test_the_exact_network_has_no_error_and_a_shifted_one_has_its_shift(generator: torch.Generator) -> None:
    points = random_points(FIELD, 200, generator)

    def shifted(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return exact(z, r, t) + torch.tensor([0.3, 0.4])

    # The points reach the network in float32: errors of 1e-7 times |u|, squared.
    assert velocity_error(exact, points) < 1e-11
    assert velocity_error(shifted, points) == pytest.approx(0.25, rel=1e-4)


def test_points_are_where_they_say(generator: torch.Generator) -> None:
    anywhere = random_points(FIELD, 2000, generator)
    assert bool((anywhere.r <= anywhere.t).all())
    # z_t of the field is normal with known moments: standardised, 2000 of them pass a KS test at 1e-6 false alarms.
    t = anywhere.t[:, None]
    scores = (anywhere.z - (1 - t) * FIELD.mean) / ((1 - t) ** 2 / 4 + t**2).sqrt()
    for column in scores.T:
        assert scipy.stats.kstest(column.numpy(), "norm").pvalue > 1e-6
    one_step = one_step_points(FIELD, 50, generator)
    assert float(one_step.t.min()) == 1
    assert float(one_step.r.max()) == 0
    # One exact step from noise lands on the Gaussian's own optimal map, m + s z.
    torch.testing.assert_close(one_step.z - one_step.u, FIELD.mean + one_step.z / 2, rtol=0, atol=1e-12)


def test_the_floor_is_the_loss_of_the_exact_network(generator: torch.Generator) -> None:
    """The covariance formula against the reference loss itself, at the exact u, by Monte Carlo."""
    r, t = UniformPair(equal=0.4).sample(20_000, generator, torch.float64)
    x, eps = FIELD.sample_pair(20_000, generator)
    losses = meanflow_loss(exact, x, eps, r, t, weight_power=0.0, jvp="func").per_sample.detach()
    floors = loss_floor(FIELD, r, t, FIELD.sample(t, generator))
    # Two means of independent draws: six standard errors, a false alarm in 5e8.
    error = math.sqrt(float(losses.var() + floors.var()) / 20_000)
    assert abs(float(losses.mean() - floors.mean())) < 6 * error
    assert float(floors.mean()) > 50 * error


def test_the_floor_by_ode_is_the_floor_by_closed_form(generator: torch.Generator) -> None:
    weights, means, stds = torch.tensor([[0.5, 0.5], [-1.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    axis = GaussianMixture(weights, means, stds)
    same = Product((axis, axis))
    corners = torch.tensor([(a, b) for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64)
    quarter = torch.full((4,), 0.25, dtype=torch.float64)
    field = GaussianMixture(quarter, corners, 2 * quarter)
    r, t = UniformPair(equal=0.4).sample(16, generator, torch.float64)
    z = field.sample(t, generator)
    assert same.exact_flow
    assert not field.exact_flow
    torch.testing.assert_close(loss_floor(field, r, t, z), loss_floor(same, r, t, z), rtol=1e-4, atol=1e-6)


def test_euler_of_the_exact_velocity_converges(generator: torch.Generator) -> None:
    noise = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    target = FIELD.mean + noise / 2
    errors = [float((euler(exact, noise, n) - target).abs().max()) for n in (50, 100)]
    # Order one: half the step, half the error.
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_the_interval_covers(generator: torch.Generator) -> None:
    draws = torch.rand(400, 100, generator=generator, dtype=torch.float64)
    inside = sum(e.low <= 0.5 <= e.high for e in map(estimate, draws))
    # 95 % of 400 is 380, give or take 4.4; six of those are passed once in 5e8 seeds.
    assert 353 <= inside <= 400


def test_wasserstein_on_the_line(generator: torch.Generator) -> None:
    a = torch.randn(500, 1, generator=generator, dtype=torch.float64)
    assert wasserstein_1d(a, a[torch.randperm(500, generator=generator)] + 0.3) == pytest.approx(0.3, rel=1e-12)
    samples = line().sample_data(500, generator)
    quantiles = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    spread = torch.quantile(samples[:, 0], quantiles)[:, None]
    assert wasserstein_1d(samples, spread) < 0.05
    with pytest.raises(ParameterError, match="shape"):
        wasserstein_1d(a, a[:5])


def test_energy_distance_of_points_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    b = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    # Between: 0, 1, 5, sqrt(18); within: 5 and 1.
    expected = 2 * (0 + 1 + 5 + math.sqrt(18)) / 4 - 5 - 1
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_agrees_with_scipy_in_one_dimension(generator: torch.Generator) -> None:
    a = torch.randn(300, 1, generator=generator, dtype=torch.float64)
    b = torch.randn(200, 1, generator=generator, dtype=torch.float64) + 1
    # scipy gives the root of the biased statistic, which counts each point's zero distance to itself.
    biased = scipy.stats.energy_distance(a[:, 0], b[:, 0]) ** 2
    bias = torch.cdist(a, a).mean() / 299 + torch.cdist(b, b).mean() / 199
    assert energy_distance(a, b) == pytest.approx(float(biased - bias), rel=1e-10)


def test_mmd_of_two_normal_laws_is_closed(generator: torch.Generator) -> None:
    """For N(0, 1) and N(m, 1) with a Gaussian kernel of width w: sqrt(w^2/(w^2+2)) (2 - 2 exp(-m^2/(2 w^2 + 4)))."""
    m, w, n = 1.5, 0.8, 4000
    a = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    b = torch.randn(n, 1, generator=generator, dtype=torch.float64) + m
    expected = math.sqrt(w**2 / (w**2 + 2)) * (2 - 2 * math.exp(-(m**2) / (2 * w**2 + 4)))
    found = discrepancy(a, b, GaussianKernel(w))
    # The interval is four standard errors wide: six are passed once in 5e8 seeds.
    assert abs(found.value - expected) < 1.5 * (found.high - found.low)
    assert found.high - found.low < 0.2 * expected


@pytest.mark.parametrize("mmd", [False, True])
def test_perfect_samples_exceed_the_floor_as_rarely_as_it_says(mmd: bool, generator: torch.Generator) -> None:
    field, n = ring(8, 2.0, 0.3), 60
    perfect = field.sample_data(1000, generator)
    kernel = {"kernel": median_kernel(perfect)} if mmd else {}
    floor = perfect_floor(perfect, n, generator, quantile=0.9, **kernel)
    kernels = (median_kernel(perfect),) if mmd else ()
    repeats = (
        discrepancy(field.sample_data(n, generator), field.sample_data(n, generator), *kernels) for _ in range(400)
    )
    above = sum(found.value > floor for found in repeats)
    # 10 % of 400 is 40, give or take 6; five of those, and the spectrum's own error.
    assert 10 <= above <= 75


def test_energy_distance_sees_a_missing_mode_above_the_floor(generator: torch.Generator) -> None:
    field = ring(8, 2.0, 0.2)
    fresh = field.sample_data(500, generator)
    floor = perfect_floor(field.sample_data(1000, generator), 500, generator)
    samples = field.sample_data(600, generator)
    # The first mode is at (2, 0).
    missing = samples[(samples - torch.tensor([2.0, 0.0], dtype=torch.float64)).norm(dim=-1) > 0.8][:500]
    assert 0 < floor < 0.05
    assert energy_distance(missing, fresh) > floor
    assert energy_distance(samples[:500], fresh) < floor


def test_one_point_is_too_few() -> None:
    with pytest.raises(ParameterError, match="at least 2"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))
