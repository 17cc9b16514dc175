"""Metrics, where the answer is known."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import Gaussian
from meanflow_ref.train.metrics import energy_distance, energy_floor, one_step_points, random_points, velocity_error
from meanflow_ref.train.toy import ring

FIELD = Gaussian(torch.tensor([1.0, -0.5], dtype=torch.float64), torch.eye(2, dtype=torch.float64) / 4)


def test_the_exact_network_has_no_error_and_a_shifted_one_has_its_shift(generator: torch.Generator) -> None:
    points = random_points(FIELD, 200, generator)

    def exact(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return FIELD.average_velocity(z.double(), r.double(), t.double())

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


def test_energy_distance_sees_a_missing_mode_above_the_floor(generator: torch.Generator) -> None:
    full, missing = ring(8, 2.0, 0.2), ring(8, 2.0, 0.2)
    floor = energy_floor(full, 500, generator)
    fresh = full.sample_data(500, generator)
    samples = missing.sample_data(600, generator)
    # The first mode is at (2, 0).
    samples = samples[(samples - torch.tensor([2.0, 0.0], dtype=torch.float64)).norm(dim=-1) > 0.8][:500]
    assert abs(floor) < 0.05
    assert energy_distance(samples, fresh) > floor


def test_one_point_is_too_few() -> None:
    with pytest.raises(ParameterError, match="at least 2"):
        energy_distance(torch.zeros(1, 2), torch.zeros(5, 2))
