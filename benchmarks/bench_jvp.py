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
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK
from meanflow_ref.bench.scenarios import SCENARIOS

# The shares of rows with r != t beside all of them, for the methods that know of rows.
SHARES = (0.25, 0.75)
BY_ROWS = (YARDSTICK, BASELINE, "func", "stopgrad", "stopgrad_rows")
CASES = [(scenario, method, 1.0) for scenario in SCENARIOS for method in METHODS if method != "stopgrad_rows"]
CASES += [(scenario, method, share) for scenario in SCENARIOS for share in SHARES for method in BY_ROWS]


@pytest.mark.parametrize(("scenario", "method", "share"), CASES)
def test_step(
    benchmark: BenchmarkFixture,
    measured: Callable[[str, tuple[str, ...], float], dict[str, Row]],
    device: torch.device,
    scenario: str,
    method: str,
    share: float,
) -> None:
    """One training step, without its optimiser."""
    together = tuple(m for s, m, part in CASES if (s, part) == (scenario, share))
    row = measured(scenario, together, share)[method]
    benchmark.group = f"training step, r != t on {100 * share:.0f} %, {SCENARIOS[scenario].about}"
    benchmark.extra_info.update(row.to_dict())

    batch = SCENARIOS[scenario].data(device=device, share=share)
    step = METHODS[method].step(SCENARIOS[scenario].network(device=device), batch)

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.pedantic(run, rounds=2, warmup_rounds=1)  # type: ignore[no-untyped-call]
