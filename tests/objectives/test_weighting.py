"""The squared error of a sample and its adaptive weight."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from meanflow_ref.errors import ParameterError
from meanflow_ref.objectives.weighting import adaptive_weight, squared_norm


def test_squared_norms_are_numpy_norms(generator: torch.Generator) -> None:
    delta = torch.randn(5, 2, 3, 4, dtype=torch.float64, generator=generator)
    by_hand = torch.tensor([sum(x * x for x in row.flatten().tolist()) for row in delta], dtype=torch.float64)
    torch.testing.assert_close(squared_norm(delta), by_hand, rtol=1e-14, atol=0)
    torch.testing.assert_close(squared_norm(delta, "mean"), by_hand / 24, rtol=1e-14, atol=0)
    torch.testing.assert_close(squared_norm(delta[:, 0, 0, 0]), delta[:, 0, 0, 0] ** 2, rtol=0, atol=0)


@pytest.mark.parametrize("power", [0, 1, 2])
def test_weight_is_the_exact_rational(power: int) -> None:
    squared_error = torch.tensor([0.0, 0.5, 3.0, 1e6], dtype=torch.float64)
    eps = 2.0**-10
    exact = [1 / (Fraction(s) + Fraction(eps)) ** power for s in squared_error.tolist()]
    weight = adaptive_weight(squared_error, power, eps)
    # Two roundings: the sum and the power.
    torch.testing.assert_close(weight, torch.tensor([float(w) for w in exact], dtype=torch.float64), rtol=1e-15, atol=0)


def test_power_zero_weighs_one_even_at_no_error_at_all() -> None:
    assert torch.equal(adaptive_weight(torch.zeros(3), 0.0, 0.0), torch.ones(3))


def test_weight_is_detached() -> None:
    assert not adaptive_weight(torch.ones(3, requires_grad=True) * 2).requires_grad


@pytest.mark.parametrize(
    ("power", "eps"), [(-0.5, 1e-3), (float("nan"), 1e-3), (1.0, 0.0), (1.0, -1e-3), (0.0, -1e-3), (1.0, float("inf"))]
)
def test_a_weight_out_of_range(power: float, eps: float) -> None:
    with pytest.raises(ParameterError, match=r"weight_power|weight_eps"):
        adaptive_weight(torch.ones(2), power, eps)


def test_an_unknown_norm() -> None:
    with pytest.raises(ParameterError, match="norm='l2'"):
        squared_norm(torch.ones(2, 2), "l2")
