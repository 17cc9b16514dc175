"""Benchmarks run only when asked for, measure each scenario once, and print one table at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from meanflow_ref.bench.measure import Row, measure
from meanflow_ref.bench.methods import METHODS
from meanflow_ref.bench.scenarios import SCENARIOS
from meanflow_ref.bench.table import finding, legend, save, to_markdown

HERE = Path(__file__).parent
# Seconds for the interleaved rounds of one scenario; three scenarios and their counters stay under two minutes.
BUDGET = 20.0
ROUNDS = 15

_ROWS = pytest.StashKey[dict[str, list[Row]]]()
_NOTES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-results", metavar="DIR", help="write the table of JVP costs to DIR/jvp.json and jvp.md")
    parser.addoption("--bench-long", action="store_true", help="five times the rounds")
    parser.addoption("--bench-device", metavar="DEVICE", default="cpu", help="where to measure: cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = {}
    config.stash[_NOTES] = []


def _asked_for(config: pytest.Config) -> bool:
    """Whether the command line names benchmarks: an option of theirs, or a path in this folder."""
    options = ("benchmark_only", "benchmark_json", "bench_results")
    if any(config.getoption(name, None) for name in options):
        return True
    paths = (Path(config.invocation_params.dir, str(arg).split("::")[0]) for arg in config.invocation_params.args)
    return any(path.exists() and path.resolve().is_relative_to(HERE) for path in paths)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take benchmarks out of a plain ``pytest``."""
    if _asked_for(config):
        return
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    if ours:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in set(ours)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """One thread, so that CPU time tells what a step costs whatever else the machine does."""
    torch.set_num_threads(1)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where to measure."""
    return torch.device(request.config.getoption("bench_device", "cpu"))


@pytest.fixture
def measured(
    request: pytest.FixtureRequest, device: torch.device
) -> Callable[[str, tuple[str, ...], float], dict[str, Row]]:
    """Rows of a scenario by method; methods are measured together, at the first call of a session."""
    known = request.config.stash[_ROWS]
    long = 5.0 if request.config.getoption("bench_long", False) else 1.0

    def rows(scenario: str, methods: tuple[str, ...], share: float) -> dict[str, Row]:
        key = f"{scenario} {share}"
        if key not in known:
            together = {name: METHODS[name] for name in methods}
            # The shares have half as many methods.
            budget = long * (BUDGET if share == 1 else BUDGET / 3)
            rounds = int(ROUNDS * long)
            known[key] = measure(
                SCENARIOS[scenario], together, device=device, rounds=rounds, budget=budget, share=share
            )
        return {row.method: row for row in known[key]}

    return rows


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a line for the end of the session."""
    return request.config.stash[_NOTES].append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the notes and the table of JVP costs, and save the table where asked."""
    if config.stash[_NOTES]:
        terminalreporter.section("truth and import")
        for line in config.stash[_NOTES]:
            terminalreporter.write_line(line)
    rows = [row for scenario in config.stash[_ROWS].values() for row in scenario]
    if not rows:
        return
    terminalreporter.section("cost of du/dt")
    for text in (to_markdown(rows), finding(rows), finding(rows, "stopgrad"), legend()):
        terminalreporter.write_line(f"{text}\n")
    folder = config.getoption("bench_results", None)
    if folder:
        terminalreporter.write_line(f"written: {', '.join(map(str, save(rows, Path(folder))))}")
