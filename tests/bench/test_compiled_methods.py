"""Compiled methods: the eager ones' gradient, measured against the compiled yardstick, refused without dying."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.bench import methods
from meanflow_ref.bench.measure import Outcome, measure, prepare
from meanflow_ref.bench.methods import BASELINE, COMPILED, METHODS, YARDSTICK
from meanflow_ref.bench.scenarios import SMALL_SCENARIOS, Scenario
from meanflow_ref.bench.table import record, to_markdown
from meanflow_ref.errors import NetworkError


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same graphs, run and not lowered: seconds less a method."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def gradient(scenario: Scenario, method: methods.Method, share: float) -> Tensor:
    net, batch = scenario.network(dtype=torch.float64), scenario.data(dtype=torch.float64, share=share)
    method.step(net, batch)()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("name", "share"), [*((name, 0.5) for name in COMPILED), ("stopgrad_rows_compiled", 1.0)])
def test_gradient_is_that_of_the_eager_method(name: str, share: float) -> None:
    scenario = SMALL_SCENARIOS["mlp"]
    expected = gradient(scenario, METHODS[YARDSTICK if name.startswith(YARDSTICK) else BASELINE], share)
    difference = (gradient(scenario, COMPILED[name], share) - expected).norm() / expected.norm()
    assert float(difference) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_gradient_is_that_of_the_eager_method_after_lowering(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    expected = gradient(small, METHODS[BASELINE], 0.67)
    # Both halves are in it: the rows with a tangent, and those without.
    difference = (gradient(small, COMPILED["stopgrad_rows_compiled"], 0.67) - expected).norm() / expected.norm()
    assert float(difference) < 1e-12


def test_rows_of_compiled_methods() -> None:
    together = METHODS | COMPILED
    names = (YARDSTICK, "stopgrad", f"{YARDSTICK}_compiled", "stopgrad_compiled")
    rows = {
        row.method: row
        for row in measure(SMALL_SCENARIOS["mlp"].resized(64), {n: together[n] for n in names}, rounds=6)
    }
    unit, row = rows[f"{YARDSTICK}_compiled"], rows["stopgrad_compiled"]
    assert unit.time.median == unit.flops == unit.peak_bytes == unit.kept_bytes == 1
    assert row.yardstick == unit.method
    # One forward, one tangent, one backward pass, compiled or not; memory by the allocator, both of them.
    assert row.flops == pytest.approx(rows["stopgrad"].flops, rel=0.02)
    assert row.cost.flops == rows["stopgrad"].cost.flops
    assert row.peak_bytes * unit.cost.peak_bytes == pytest.approx(row.cost.peak_bytes)
    assert unit.cost.peak_bytes > (unit.cost.kept_bytes or 0) > 0
    assert row.error is not None
    assert row.error < 1e-4
    assert row.kernels is None
    assert row.time_to_baseline is None
    table = to_markdown(list(rows.values()))
    assert table.index("Compiled, where FM is the *compiled* flow-matching step") < table.index("stopgrad_compiled")


class Breaking(nn.Module):
    """A network that no compiler takes as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        out: Tensor = self.layer(z)
        return out


def test_what_cannot_be_compiled_is_refused_by_a_row() -> None:
    scenario = Scenario("breaking", Breaking, (3,), 4, "")
    prepared = prepare(scenario, METHODS | COMPILED)
    traced = {name for name in METHODS if METHODS[name].traced}
    assert set(prepared.refusals) == set(COMPILED) | traced
    assert "cannot be traced" in prepared.refusals["stopgrad_traced_rows"].reason
    assert "graph_break" in prepared.refusals[f"{YARDSTICK}_compiled"].reason
    assert "yardstick" in prepared.refusals["stopgrad_compiled"].reason
    outcomes: list[Outcome] = [*measure(prepared, rounds=1), *prepared.refusals.values()]
    table = to_markdown(outcomes)
    assert "- breaking, `func_compiled`, 100 %: refused: " in table
    content = record(outcomes)
    assert {refusal["method"] for refusal in content["refused"]} == set(COMPILED) | traced
    assert {row["method"] for row in content["rows"]} == set(METHODS) - traced


class Grouped(nn.Module):
    """A network with torch's own GroupNorm, on which tracing ``torch.func.jvp`` breaks off (torch 2.13)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(self.layer(z)) * (1 + t - r)[:, None, None, None])
        return out


@pytest.mark.usefixtures("quick")
def test_a_trace_that_breaks_off_spoils_nothing_after_it() -> None:
    """It leaves contexts open; closed by a later garbage collection, they would turn autograd off for the rest."""
    scenario = Scenario("grouped", Grouped, (2, 4, 4), 4, "")
    names = (YARDSTICK, f"{YARDSTICK}_compiled", "func_compiled", "stopgrad_compiled")
    prepared = prepare(scenario, {name: (METHODS | COMPILED)[name] for name in names})
    gc.collect()
    outcomes = measure(prepared, rounds=1)
    # A later torch may trace it; then it is a row like the others.
    assert {row.method for row in outcomes} | set(prepared.refusals) == set(names)
    assert "stopgrad_compiled" in {row.method for row in outcomes}
    assert torch.zeros(1, requires_grad=True).exp().requires_grad


def test_a_network_that_takes_no_step_at_all_is_an_error() -> None:
    wrong: Callable[[], Any] = lambda: nn.Linear(3, 3)  # noqa: E731
    with pytest.raises(NetworkError, match="cannot be called or trained"):
        prepare(Scenario("wrong", wrong, (3,), 4, ""))
