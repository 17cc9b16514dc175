"""The methods compute one and the same gradient, on scenarios where it could differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK
from meanflow_ref.bench.scenarios import SCENARIOS, SMALL_SCENARIOS


def gradient(scenario: str, method: str) -> Tensor:
    small = SMALL_SCENARIOS[scenario]
    net, batch = small.network(dtype=torch.float64), small.data(dtype=torch.float64)
    METHODS[method].step(net, batch)()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (YARDSTICK, BASELINE)])
@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_gradient_is_that_of_the_baseline(scenario: str, method: str) -> None:
    expected = gradient(scenario, BASELINE)
    # Exact methods differ by float64 rounding; differences by their truncation, 1e-8 (one-sided) at best, times
    # derivatives of the order of TIME_SCALE; products in bfloat16 leave a few of its units, 2^-8, in the target.
    tolerance = 1e-12 if METHODS[method].exact else 2e-2 if method == "stopgrad_bf16" else 1e-5
    difference = (gradient(scenario, method) - expected).norm() / expected.norm()
    assert float(difference) < tolerance


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_flow_matching_is_another_problem(scenario: str) -> None:
    """What the test above would see if a method left du/dt out."""
    expected = gradient(scenario, BASELINE)
    assert float((gradient(scenario, YARDSTICK) - expected).norm() / expected.norm()) > 0.1


def test_a_step_starts_from_scratch() -> None:
    small = SMALL_SCENARIOS["mlp"]
    net = small.network()
    step = METHODS["func"].step(net, small.data())
    first = step()
    once = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    assert torch.equal(step(), first)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), once, strict=True) if p.grad is not None)


@pytest.mark.parametrize("scenario", [*SCENARIOS.values(), *SMALL_SCENARIOS.values()], ids=lambda s: s.about)
def test_scenarios_are_seeded_and_have_no_zero_layer(scenario: object) -> None:
    from meanflow_ref.bench.scenarios import Scenario

    assert isinstance(scenario, Scenario)
    state = torch.random.get_rng_state()
    a, b, c = scenario.network(), scenario.network(), scenario.network(seed=3)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    for p, q, other in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, other)
        assert float(p.detach().abs().max()) > 0
    batch = scenario.data()
    assert torch.equal(batch.x, scenario.data().x)
    assert bool((batch.r < batch.t).all())
    assert bool((batch.t <= 1).all())
    assert batch.x.shape == (scenario.batch, *scenario.event)


def test_times_stay_in_float32_beside_a_bfloat16_state() -> None:
    batch = SMALL_SCENARIOS["mlp"].data(dtype=torch.bfloat16)
    assert (batch.x.dtype, batch.t.dtype) == (torch.bfloat16, torch.float32)
