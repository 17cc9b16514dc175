"""Cost of du/dt by method and network.

pytest-benchmark's own table times each method by itself, which on a busy machine says little about ratios. The table
at the end of the session, and ``extra_info`` in the JSON, hold the ratios to read: paired and interleaved
(:mod:`meanflow_ref.bench`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from meanflow_ref.bench.measure import Row
from meanflow_ref.bench.methods import METHODS
from meanflow_ref.bench.scenarios import SCENARIOS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_step(
    benchmark: BenchmarkFixture,
    measured: Callable[[str], dict[str, Row]],
    device: torch.device,
    scenario: str,
    method: str,
) -> None:
    """One training step, without its optimiser."""
    row = measured(scenario)[method]
    benchmark.group = f"training step, {SCENARIOS[scenario].about}"
    benchmark.extra_info.update(row.to_dict())

    step = METHODS[method].step(SCENARIOS[scenario].network(device=device), SCENARIOS[scenario].data(device=device))

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.pedantic(run, rounds=3, warmup_rounds=1)  # type: ignore[no-untyped-call]
