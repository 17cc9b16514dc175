"""One scenario measured: every method's cost, and its time interleaved with all the others'."""

from __future__ import annotations

import copy
import gc
import math
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from meanflow_ref.bench.allocator import allocation
from meanflow_ref.bench.counters import Counts, Passes, count_cost, count_flops_compiled, count_kept, count_passes
from meanflow_ref.bench.interleaved import Ratio, Timings, clock_for, interleave
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK, Evaluation, Method, step_of
from meanflow_ref.bench.scenarios import Batch, Scenario
from meanflow_ref.errors import MeanFlowError, NetworkError
from meanflow_ref.jvp.stopgrad.traced import UntracedWarning, why_untraced


@dataclass(frozen=True)
class Row:
    """What a method costs on a scenario.

    Attributes:
        scenario: Name of the scenario.
        method: Name of the method.
        time: Time over the yardstick's, paired.
        time_to_baseline: Time over the double-backward step's, paired; None where the network cannot be trained by it.
        milliseconds: Median time of a step; bound to the machine.
        flops: FLOPs over the yardstick's.
        peak_bytes: Peak memory over the yardstick's.
        kernels: Kernels over the yardstick's; None where a compiler fused them.
        passes: Passes of the network; None where it is recorded or compiled.
        cost: The counts themselves.
        limit: Least work over the yardstick's: forward, backward, and a tangent on the rows that need one.
        error: Relative error of du/dt against float64; None where there is none to compare.
        share: Share of rows with r != t.
        yardstick: What it is divided by: the flow-matching step, or, for a compiled method, the compiled one.
        kept_bytes: Memory kept between forward and backward pass, over the yardstick's.

    """

    scenario: str
    method: str
    time: Ratio
    time_to_baseline: Ratio | None
    milliseconds: float
    flops: float
    peak_bytes: float
    kernels: float | None
    passes: Passes | None
    cost: Counts
    limit: float = 4 / 3
    error: float | None = None
    share: float = 1.0
    yardstick: str = YARDSTICK
    kept_bytes: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as plain numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Refusal:
    """A method that a network cannot be trained with.

    Attributes:
        scenario: Name of the scenario.
        method: Name of the method.
        reason: The first line of what it said.
        share: Share of rows with r != t.

    """

    scenario: str
    method: str
    reason: str
    share: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """The refusal for JSON."""
        return asdict(self)


Outcome: TypeAlias = Row | Refusal


@dataclass
class Prepared:
    """A scenario with its steps: compiled where that is asked for, run once, and those left out that cannot run."""

    scenario: Scenario
    device: torch.device
    share: float
    net: nn.Module
    batch: Batch
    methods: dict[str, Method] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    refusals: dict[str, Refusal] = field(default_factory=dict)

    @property
    def steps(self) -> dict[str, Callable[[], Tensor]]:
        """The training steps that can run."""
        return {name: step_of(self.net, evaluation) for name, evaluation in self.evaluations.items()}


def prepare(
    scenario: Scenario,
    methods: Mapping[str, Method] = METHODS,
    *,
    device: torch.device | str = "cpu",
    share: float = 1.0,
) -> Prepared:
    """Run each method once.

    Raises:
        NetworkError: If the network cannot take a flow-matching step.

    """
    net, batch = scenario.network(device=device), scenario.data(device=device, share=share)
    found = Prepared(scenario, torch.device(device), share, net, batch)
    for name, method in methods.items():
        if method.yardstick in found.refusals:
            reason: str | None = f"its yardstick {method.yardstick} was refused."
        else:
            evaluation = method.prepare(net, batch)
            step = step_of(net, evaluation)
            reason = _apart(step) if method.compiled else _complaint(step)
            if reason is None and method.traced and why_untraced(net):
                reason = f"it cannot be traced: {why_untraced(net)}"
        if reason is None:
            found.methods[name], found.evaluations[name] = method, evaluation
            continue
        if name == YARDSTICK:
            raise NetworkError(
                f"{scenario.name} cannot be called or trained: {reason}",
                f"a network called net(z, r, t), z of shape (batch, {', '.join(map(str, scenario.event))})",
                "give the shape of a sample by --shape, and a function that returns the network",
            )
        found.refusals[name] = Refusal(scenario.name, name, reason, share)
    return found


def _complaint(step: Callable[[], object]) -> str | None:
    """What a step says that cannot run, in a line."""
    try:
        with warnings.catch_warnings():
            # A row that says so is enough.
            warnings.simplefilter("ignore", UntracedWarning)
            step()
    except (MeanFlowError, RuntimeError, TypeError) as error:
        return _first_line(error)
    return None


def _apart(step: Callable[[], object]) -> str | None:
    """The same of a step that compiles, in a thread of its own.

    A trace that breaks off inside ``torch.func.jvp`` leaves contexts open, which close when garbage is collected, and
    then set the dispatcher's state of whatever thread that is (torch 2.13): autograd is off from there on.
    """
    said: list[str | None] = []
    threads = torch.get_num_threads()

    def run() -> None:
        # The compiler writes the number of threads, which is this thread's, into the code.
        torch.set_num_threads(threads)
        try:
            step()
        except Exception as error:  # a compiler's errors have no base class in common
            said.append(_first_line(error))
        else:
            said.append(None)
        gc.collect()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said[0] if said else "the thread that compiled it died"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and isinstance(error, MeanFlowError):
        return lines[0]
    # A compiler says what it did first, and what went wrong in its second line.
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:200] if lines else type(error).__name__


def measure(
    scenario: Scenario | Prepared,
    methods: Mapping[str, Method] = METHODS,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 15,
    budget: float = math.inf,
    share: float = 1.0,
) -> list[Row]:
    """Rows of a scenario, in the order of ``methods``, which must hold the yardstick of each.

    Args:
        scenario: What to run; prepared, the other arguments but the last two go without saying.
        methods: Name -> method; those that cannot run have no row (:class:`Prepared` says why).
        device: Where to run.
        rounds: Timed rounds at most.
        budget: Wall-clock seconds for the timing; see :func:`meanflow_ref.bench.interleaved.interleave`.
        share: Share of rows with r != t.

    """
    if isinstance(scenario, Scenario):
        scenario = prepare(scenario, methods, device=device, share=share)
    errors = derivative_errors(scenario)
    costs = {name: _cost(scenario, name) for name in scenario.methods}
    passes = {name: _passes(scenario, name) for name in scenario.methods}
    timings = interleave(scenario.steps, clock=clock_for(scenario.device), rounds=rounds, budget=budget)
    return [_row(scenario, name, costs, passes[name], timings, errors.get(name)) for name in scenario.methods]


def _row(
    scenario: Prepared,
    name: str,
    costs: Mapping[str, Counts],
    passes: Passes | None,
    timings: Timings,
    error: float | None,
) -> Row:
    method = scenario.methods[name]
    cost, unit = costs[name], costs[method.yardstick]
    return Row(
        scenario=scenario.scenario.name,
        method=name,
        time=timings.ratio(name, method.yardstick),
        time_to_baseline=timings.ratio(name, BASELINE) if BASELINE in scenario.methods else None,
        milliseconds=1e3 * timings.median(name),
        flops=cost.flops / unit.flops,
        peak_bytes=cost.peak_bytes / unit.peak_bytes,
        kernels=_over(cost.kernels, unit.kernels),
        passes=passes,
        cost=cost,
        limit=1.0 if name == method.yardstick else (3 + scenario.share) / 3,
        error=error,
        share=scenario.share,
        yardstick=method.yardstick,
        kept_bytes=_over(cost.kept_bytes, unit.kept_bytes),
    )


def _over(count: int | None, unit: int | None) -> float | None:
    return None if count is None or not unit else count / unit


def _cost(scenario: Prepared, name: str) -> Counts:
    net, batch, evaluation = scenario.net, scenario.batch, scenario.evaluations[name]
    step, method = step_of(net, evaluation), scenario.methods[name]
    if not method.compiled:
        kept = count_kept(lambda mark: method.marked(mark).prepare(net, batch))
        return replace(count_cost(step), kept_bytes=kept)
    step()
    flops = count_flops_compiled(step)
    net.zero_grad(set_to_none=True)
    peak = allocation(step, scenario.device).peak
    net.zero_grad(set_to_none=True)
    return Counts(flops, peak, None, allocation(evaluation, scenario.device).kept)


def _passes(scenario: Prepared, name: str) -> Passes | None:
    method = scenario.methods[name]
    if method.compiled or method.traced:
        return None
    batch = scenario.batch
    return count_passes(lambda tapped: method.step(tapped, batch), scenario.net, len(batch.x))


def derivative_errors(scenario: Prepared) -> dict[str, float]:
    """Relative error of each method's du/dt in the network's precision, against float64 by ``torch.func.jvp``.

    Only rows with r != t count, where du/dt enters the target. Nothing where ``torch.func.jvp`` refuses the network.
    """
    batch = scenario.batch
    moving = batch.r != batch.t
    with attention_written_out():
        try:
            wide = copy.deepcopy(scenario.net).double()
            exact = METHODS["func"].derivative(wide, Batch(*(x.double() for x in batch)))[moving]
        except (MeanFlowError, RuntimeError):
            return {}
    found: dict[str, float] = {}
    for name, evaluation in scenario.evaluations.items():
        du_dt = evaluation()[1]
        if du_dt is not None:
            of_moving = du_dt if len(du_dt) == len(exact) else du_dt[moving]
            found[name] = float((of_moving.double() - exact).norm() / exact.norm())
    return found


def attention_written_out() -> AbstractContextManager[object]:
    """Context in which attention runs as two products and a softmax, which forward mode can go through."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
    return context
