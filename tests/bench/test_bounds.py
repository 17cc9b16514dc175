"""The engine's costs, held: what a change of it makes dearer fails here, by counts that are the same on every run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meanflow_ref.bench.bounds import BOUNDS, Bound, aim_of
from meanflow_ref.bench.counters import Cost, count_cost, count_kept
from meanflow_ref.bench.methods import METHODS, YARDSTICK, Method
from meanflow_ref.bench.scenarios import SCENARIOS
from meanflow_ref.jvp.stopgrad import front


def cost_of(scenario: str, method: Method) -> Cost:
    net, batch = SCENARIOS[scenario].network(), SCENARIOS[scenario].data()
    kept = count_kept(lambda mark: method.marked(mark).prepare(net, batch))
    return replace(count_cost(method.step(net, batch)), kept_bytes=kept)


def over(scenario: str, method: Method) -> Bound:
    """A step's counts over the flow-matching step's."""
    cost, unit = cost_of(scenario, method), cost_of(scenario, METHODS[YARDSTICK])
    assert cost.kept_bytes is not None
    assert unit.kept_bytes is not None
    return Bound(
        cost.flops / unit.flops,
        cost.kernels / unit.kernels,
        cost.peak_bytes / unit.peak_bytes,
        cost.kept_bytes / unit.kept_bytes,
    )


def broken(found: Bound, bound: Bound) -> set[str]:
    return {name for name in ("flops", "kernels", "peak", "kept") if getattr(found, name) > getattr(bound, name)}


@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stopgrad_stays_within_its_bounds(scenario: str, method: str) -> None:
    found, bound = over(scenario, METHODS[method]), BOUNDS[method][scenario]
    assert not broken(found, bound), f"{found} exceeds {bound}"


# Engines that record the tangent, or run the network twice: the bounds must see it.
TOO_DEAR = [(METHODS["func"], {"flops", "kernels", "peak", "kept"}), (METHODS["two_pass"], {"flops", "kernels"})]


@pytest.mark.parametrize(("method", "counts"), TOO_DEAR, ids=[method.name for method, _ in TOO_DEAR])
@pytest.mark.parametrize("scenario", ["mlp", "unet", "tiny"])
def test_bounds_are_broken_by_a_dearer_engine(scenario: str, method: Method, counts: set[str]) -> None:
    assert broken(over(scenario, method), BOUNDS["stopgrad"][scenario]) >= counts


@pytest.mark.parametrize("scenario", ["mlp", "dit", "unet"])
def test_bounds_are_broken_by_tangents_that_live_too_long(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens when autograd keeps the tensors themselves, and not aliases of them."""
    monkeypatch.setattr(front, "recorded", lambda: True)
    assert broken(over(scenario, METHODS["stopgrad"]), BOUNDS["stopgrad"][scenario]) >= {"peak"}


def test_rows_alone_save_a_tangent_on_the_others() -> None:
    """A quarter of the rows: 3.25 units of work and not 4."""
    scenario = SCENARIOS["mlp"]
    net, batch = scenario.network(), scenario.data(share=0.25)
    flops = {name: count_cost(METHODS[name].step(net, batch)).flops for name in (YARDSTICK, "stopgrad_rows")}
    assert flops["stopgrad_rows"] / flops[YARDSTICK] == pytest.approx(3.25 / 3, rel=0.01)


def test_aims_are_of_rows_that_are_measured() -> None:
    assert aim_of("dit", "stopgrad", 1.0) is not None
    assert aim_of("dit", "stopgrad", 0.25) is None
    assert aim_of("somebody's", "stopgrad", 1.0) is None
