"""Benchmarks run only when asked for, measure each scenario once, and print one table at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from meanflow_ref.bench.allocator import keep_freed_memory
from meanflow_ref.bench.measure import Outcome, Prepared, Row, measure, prepare
from meanflow_ref.bench.methods import COMPILED, METHODS
from meanflow_ref.bench.scenarios import Scenario
from meanflow_ref.bench.table import finding, legend, save, to_markdown

HERE = Path(__file__).parent
# Seconds for the interleaved rounds of one scenario with all rows r != t; see README.md for the whole.
BUDGET = 16.0
ROUNDS = 15


_MEASURED = pytest.StashKey[dict[str, tuple[Prepared, dict[str, Row]]]]()
_NOTES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("meanflow_ref benchmarks")
    group.addoption("--bench-results", metavar="DIR", help="write the costs to DIR/jvp.json, jvp.md and jvp.svg")
    group.addoption(
        "--bench-long",
        action="store_true",
        help="all methods at all shares, compiled too, in more rounds",
    )
    group.addoption("--bench-device", metavar="DEVICE", default="cpu", help="where to measure: cpu or cuda")
    group.addoption("--model", metavar="pkg.mod:net", help="measure your own network instead, called net(z, r, t)")
    group.addoption("--shape", metavar="C,H,W", default="", help="shape of one sample, for --model")
    group.addoption("--batch", metavar="N", type=int, default=8, help="samples of a step, for --model")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = {}
    config.stash[_NOTES] = []
    folder = config.getoption("bench_results", None)
    if folder:
        # Now, and not after half an hour of measuring.
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(f"--bench-results {folder}: {error}") from error


def _asked_for(config: pytest.Config) -> bool:
    """Whether the command line names benchmarks: an option of theirs, or a path in this folder."""
    options = ("benchmark_only", "benchmark_json", "bench_results", "model")
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
    keep_freed_memory()


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where to measure."""
    return torch.device(request.config.getoption("bench_device", "cpu"))


@pytest.fixture
def measured(
    request: pytest.FixtureRequest, device: torch.device
) -> Callable[[Scenario, tuple[str, ...], float], tuple[Prepared, dict[str, Row]]]:
    """A scenario's steps and rows; its methods are measured together, at the first call of a session."""
    known = request.config.stash[_MEASURED]
    long = 4.0 if request.config.getoption("bench_long", False) else 1.0

    def of(scenario: Scenario, methods: tuple[str, ...], share: float) -> tuple[Prepared, dict[str, Row]]:
        key = f"{scenario.name} {share}"
        if key not in known:
            together = {name: (METHODS | COMPILED)[name] for name in methods}
            prepared = prepare(scenario, together, device=device, share=share)
            # The short form's shares have half as many methods.
            budget = long * (BUDGET if share == 1 or long > 1 else BUDGET / 2)
            rows = measure(prepared, rounds=int(ROUNDS * long), budget=budget)
            known[key] = prepared, {row.method: row for row in rows}
        return known[key]

    return of


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
    outcomes: list[Outcome] = []
    for prepared, measured_rows in config.stash[_MEASURED].values():
        outcomes += [*measured_rows.values(), *prepared.refusals.values()]
    if not outcomes:
        return
    terminalreporter.section("cost of du/dt")
    for text in (to_markdown(outcomes), finding(outcomes), finding(outcomes, "stopgrad"), legend(outcomes)):
        terminalreporter.write_line(f"{text}\n")
    folder = config.getoption("bench_results", None)
    if folder:
        terminalreporter.write_line(f"written: {', '.join(map(str, save(outcomes, Path(folder))))}")
