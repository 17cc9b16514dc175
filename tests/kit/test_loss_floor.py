"""The loss floor of docs/healthy_run.md: the reference loss at the exact u against the closed form."""

from __future__ import annotations

import torch

from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.objectives.meanflow import meanflow_loss


def test_the_floor_of_normal_data() -> None:
    n, s, r_value, t_value = 200_000, 1.3, 0.3, 0.8
    field = Gaussian(torch.zeros(1, dtype=torch.float64), torch.full((1, 1), s * s, dtype=torch.float64))
    generator = torch.Generator().manual_seed(5)
    x, eps = (torch.randn(n, 1, dtype=torch.float64, generator=generator) for _ in range(2))
    r, t = (torch.full((n,), value, dtype=torch.float64) for value in (r_value, t_value))
    terms = meanflow_loss(field.average_velocity, x * s, eps, r, t, weight_power=0.0)

    def variance(time: float) -> float:
        return (1 - time) ** 2 * s * s + time * time

    floor = variance(r_value) * s * s / variance(t_value) ** 2
    # The mean of n squares of a normal variable: relative standard deviation sqrt(2/n); six of them fail once in 5e8.
    assert abs(float(terms.squared_error.mean()) / floor - 1) < 6 * (2 / n) ** 0.5
