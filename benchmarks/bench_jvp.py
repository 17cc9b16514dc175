"""Cost of du/dt by method, network and share of rows with r != t.

pytest-benchmark's own table times each method by itself, which on a busy machine says little about ratios. The table
at the end of the session, and ``extra_info`` in the JSON, hold the ratios to read: paired and interleaved
(:mod:`meanflow_ref.bench`).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from meanflow_ref.bench.command import methods_for
from meanflow_ref.bench.measure import Prepared, Row
from meanflow_ref.bench.methods import BASELINE, YARDSTICK
from meanflow_ref.bench.own import own_scenario
from meanflow_ref.bench.scenarios import SCENARIOS, Scenario
from meanflow_ref.errors import ParameterError

# The short form: all eager methods on all rows, those that know of rows on a quarter, and one network compiled.
SHORT_SHARE = 0.25
BY_ROWS = (YARDSTICK, BASELINE, "func", "stopgrad", "stopgrad_rows", "stopgrad_traced_rows")
SHORT_COMPILED = "mlp"
LONG_SHARES = (1.0, 0.75, 0.25)


def groups(scenarios: dict[str, Scenario], *, long: bool) -> list[tuple[Scenario, float, tuple[str, ...]]]:
    """What is measured together: scenario, share and methods."""
    if long:
        return [
            (s, share, tuple(methods_for(share, compiled=True))) for s in scenarios.values() for share in LONG_SHARES
        ]
    found = []
    for scenario in scenarios.values():
        found.append((scenario, 1.0, tuple(methods_for(1.0, compiled=scenario.name == SHORT_COMPILED))))
        found.append((scenario, SHORT_SHARE, BY_ROWS))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a method, so that ``-k unet`` or ``-k func`` picks."""
    option = metafunc.config.getoption
    scenarios = SCENARIOS
    if option("model"):
        try:
            own = own_scenario(option("model"), option("shape"), option("batch"))
        except ParameterError as error:
            raise pytest.UsageError(f"--model: {error}") from error
        scenarios = {own.name: own}
    cases = [
        pytest.param(scenario, share, method, together, id=f"{scenario.name}-{100 * share:.0f}%-{method}")
        for scenario, share, together in groups(scenarios, long=option("bench_long"))
        for method in together
    ]
    metafunc.parametrize(("scenario", "share", "method", "together"), cases)


# The first of a group measures all of it, and in the long form compiles four times.
@pytest.mark.timeout(3600)
def test_step(
    benchmark: BenchmarkFixture,
    measured: Callable[[Scenario, tuple[str, ...], float], tuple[Prepared, dict[str, Row]]],
    device: torch.device,
    scenario: Scenario,
    share: float,
    method: str,
    together: tuple[str, ...],
) -> None:
    """One training step, without its optimiser."""
    prepared, rows = measured(scenario, together, share)
    if method in prepared.refusals:
        pytest.skip(f"refused: {prepared.refusals[method].reason}")
    benchmark.group = f"training step, r != t on {100 * share:.0f} %, {scenario.about}"
    benchmark.extra_info.update(rows[method].to_dict())
    step = prepared.steps[method]

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.pedantic(run, rounds=2, warmup_rounds=1)  # type: ignore[no-untyped-call]
