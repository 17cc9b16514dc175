"""One scenario measured: every method's cost, and its time interleaved with all the others'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from meanflow_ref.bench.counters import Cost, Passes, count_cost, count_passes
from meanflow_ref.bench.interleaved import Ratio, clock_for, interleave
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK, Method
from meanflow_ref.bench.scenarios import Scenario


@dataclass(frozen=True)
class Row:
    """What a method costs on a scenario.

    Attributes:
        scenario: Name of the scenario.
        method: Name of the method.
        time: Time over the flow-matching step's, paired.
        time_to_baseline: Time over the double-backward step's, paired.
        milliseconds: Median time of a step; bound to the machine.
        flops: FLOPs over the flow-matching step's.
        peak_bytes: Peak memory over the flow-matching step's.
        kernels: Kernels over the flow-matching step's.
        passes: Passes of the network.
        cost: The counts themselves.

    """

    scenario: str
    method: str
    time: Ratio
    time_to_baseline: Ratio
    milliseconds: float
    flops: float
    peak_bytes: float
    kernels: float
    passes: Passes
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers, for JSON."""
        return asdict(self)


def measure(
    scenario: Scenario,
    methods: Mapping[str, Method] = METHODS,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 15,
    budget: float = math.inf,
) -> list[Row]:
    """Rows of a scenario, in the order of ``methods``, which must hold the yardstick and the baseline.

    Args:
        scenario: What to run.
        methods: Name -> method.
        device: Where to run.
        rounds: Timed rounds at most.
        budget: Wall-clock seconds for the timing; see :func:`meanflow_ref.bench.interleaved.interleave`.

    """
    net, batch = scenario.network(device=device), scenario.data(device=device)
    steps = {name: method.step(net, batch) for name, method in methods.items()}
    costs = {name: count_cost(step) for name, step in steps.items()}
    passes = {
        name: count_passes(lambda tapped, method=method: method.step(tapped, batch), net, scenario.batch)  # type: ignore[misc]
        for name, method in methods.items()
    }
    timings = interleave(steps, clock=clock_for(torch.device(device)), rounds=rounds, budget=budget)
    unit = costs[YARDSTICK]
    return [
        Row(
            scenario=scenario.name,
            method=name,
            time=timings.ratio(name, YARDSTICK),
            time_to_baseline=timings.ratio(name, BASELINE),
            milliseconds=1e3 * timings.median(name),
            flops=costs[name].flops / unit.flops,
            peak_bytes=costs[name].peak_bytes / unit.peak_bytes,
            kernels=costs[name].kernels / unit.kernels,
            passes=passes[name],
            cost=costs[name],
        )
        for name in methods
    ]
