"""One scenario measured: every method's cost, and its time interleaved with all the others'."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from meanflow_ref.bench.counters import Cost, Passes, count_cost, count_passes
from meanflow_ref.bench.interleaved import Ratio, clock_for, interleave
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK, Method
from meanflow_ref.bench.scenarios import Batch, Scenario
from meanflow_ref.errors import MeanFlowError


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
        limit: Least work over the flow-matching step's: forward, backward, and a tangent on the rows that need one.
        error: Relative error of du/dt against float64; None where there is none to compare.
        share: Share of rows with r != t.

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
    limit: float = 4 / 3
    error: float | None = None
    share: float = 1.0

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
    share: float = 1.0,
) -> list[Row]:
    """Rows of a scenario, in the order of ``methods``, which must hold the yardstick and the baseline.

    Args:
        scenario: What to run.
        methods: Name -> method.
        device: Where to run.
        rounds: Timed rounds at most.
        budget: Wall-clock seconds for the timing; see :func:`meanflow_ref.bench.interleaved.interleave`.
        share: Share of rows with r != t.

    """
    net, batch = scenario.network(device=device), scenario.data(device=device, share=share)
    errors = derivative_errors(net, batch, methods)
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
            limit=1.0 if name == YARDSTICK else (3 + share) / 3,
            error=errors.get(name),
            share=share,
        )
        for name in methods
    ]


def derivative_errors(net: nn.Module, batch: Batch, methods: Mapping[str, Method]) -> dict[str, float]:
    """Relative error of each method's du/dt in the network's precision, against float64 by ``torch.func.jvp``.

    Only rows with r != t count, where du/dt enters the target. Nothing where ``torch.func.jvp`` refuses the network.
    """
    moving = batch.r != batch.t
    with attention_written_out():
        try:
            wide = copy.deepcopy(net).double()
            exact = METHODS["func"].derivative(wide, Batch(*(x.double() for x in batch)))[moving]
        except (MeanFlowError, RuntimeError):
            return {}
    found = {
        name: method.derivative(net, batch)[moving] for name, method in methods.items() if method.options is not None
    }
    return {name: float((d.double() - exact).norm() / exact.norm()) for name, d in found.items()}


def attention_written_out() -> AbstractContextManager[object]:
    """Context in which attention runs as two products and a softmax, which forward mode can go through."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
    return context
