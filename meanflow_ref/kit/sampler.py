"""Is a sampler right? It is given the exact average velocity as its network and must return the exact data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from meanflow_ref.convention import Convention
from meanflow_ref.errors import DtypeError, NetworkError, NonFiniteError, ParameterError, ShapeError
from meanflow_ref.kit.calling import blame, describe, require_callable, seeded, uncompiled
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report
from meanflow_ref.kit.exact import ExactNetwork, OnEvents, oracle_fields
from meanflow_ref.kit.finding import conclude, finding
from meanflow_ref.kit.sampler_steps import Name, Step, name_steps, read_steps
from meanflow_ref.kit.sampler_variants import OUTPUT_MAPS, excuse, relative

# Largest error of z_0 over its standard deviation by the precision of the states; wrong samplers are above 1e-2.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
NEAREST_BUG = 1e-2


@dataclass(frozen=True)
class _Run:
    """One run of the sampler on one field."""

    field: str
    steps: int
    error: float
    tolerance: float
    taken: list[Step]
    noise_kept: bool
    excuse: str

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def check_sampler(
    sample: Callable[..., Any],
    call: str = "z, r, t",
    steps: Sequence[int] = (1, 2, 4),
    *,
    returns: str = "u",
    time_direction: Literal["noise_at_one", "data_at_one"] = "noise_at_one",
    shape: Sequence[int] = (4,),
    dtype: torch.dtype = torch.float64,
    attributes: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Report:
    """Check a sampler with exact networks, for several numbers of steps.

    Args:
        sample: ``sample(model, noise, steps)``, which returns data of the noise's shape, or a list of states or a
            tuple whose last or first entry is that.
        call: How the sampler calls the network, as in :class:`meanflow_ref.convention.Convention`.
        steps: Numbers of steps to try. With 4 a wrong end still looks plausible, with 1 it does not.
        returns: What the network returns, ``"u"``, ``"u, v"``, ...
        time_direction: ``"data_at_one"`` if their noise is at time 0.
        shape: Shape of one event.
        dtype: Of the noise.
        attributes: What the sampler asks the network for besides calling it.
        seed: Of the noise and of the global generators.

    Returns:
        A report of kind ``"sampler"``; ``measured`` holds the steps taken and the errors of z_0 relative to its size.

    Raises:
        ParameterError: If an option is out of range or the sampler raised.
        NetworkError: If the network is called in another way than ``call`` says, or never.
        ShapeError: If what the sampler returns has not the noise's shape.
        NonFiniteError: If it returns NaN.

    """
    start = time.perf_counter()
    require_callable(sample, "the sampler", "sample(model, noise, steps)")
    counts = _require_steps(steps)
    convention = Convention(call, returns=returns, time=time_direction)
    if dtype not in TOLERANCE:
        raise ParameterError(f"dtype={dtype}.", f"one of {', '.join(map(str, TOLERANCE))}", "")
    dim = int(torch.Size(shape).numel())
    if not shape or not 1 <= dim <= 4096:
        raise ParameterError(f"shape={tuple(shape)}.", "the shape of one event, 1 to 4096 numbers", "shape=(4,)")
    fields = oracle_fields(dim, autonomous=not {"r", "t"} & set(convention.call.letters))
    # Not the seed of the global generators: a sampler that draws noise of its own must not meet ours again.
    noise = torch.randn(6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(20250513 + seed)).to(
        dtype
    )
    runs = [
        _run(sample, name, field, ExactNetwork(field, convention, attributes or {}), noise, count, seed)
        for count in counts
        for name, field in fields.items()
    ]
    return _report(describe(sample), _one_output_map(runs), call, time.perf_counter() - start)


def _require_steps(steps: Sequence[int]) -> list[int]:
    counts = list(steps) if isinstance(steps, Sequence) else [steps]
    if not counts or any(not isinstance(count, int) or isinstance(count, bool) or count < 1 for count in counts):
        raise ParameterError(f"steps={steps!r}.", "positive integers", "steps=(1, 2, 4)")
    return counts


def _run(
    sample: Callable[..., Any], name: str, field: OnEvents, net: ExactNetwork, noise: Tensor, count: int, seed: int
) -> _Run:
    what = f"the sampler, called as sample(model, noise, {count}),"
    remedy = "wrap it in a function sample(model, noise, steps) that calls yours"
    with seeded(seed), blame(what, remedy), uncompiled():
        returned = sample(net, noise.clone(), count)
    if not net.calls:
        raise NetworkError(
            f"the sampler never called the network (steps={count}).", "sample(model, noise, steps) -> data", ""
        )
    final = _state(returned, noise).detach().double()
    if not bool(torch.isfinite(final).all()):
        raise NonFiniteError(f"the sampler returned NaN or infinity (steps={count}, {name}).", "finite data", "")
    z, net_calls = net.calls[0].z[: noise.shape[0]], net.calls
    kept = z.shape == noise.shape and bool((z - noise.double()).abs().max() <= 1e-2)
    ends = (1.0 - torch.zeros(z.shape[0], dtype=torch.float64), torch.zeros(z.shape[0], dtype=torch.float64))
    exact = field.flow_map(z, *ends)
    tolerance = TOLERANCE[max((call.dtype for call in net_calls), key=lambda kind: TOLERANCE.get(kind, 0.0))]
    taken = read_steps(net_calls, final)
    error = relative(final, exact)
    legal = "" if error <= tolerance else excuse(field, net_calls, final, exact, tolerance, taken)
    return _Run(name, count, error, tolerance, taken, kept, legal)


def _one_output_map(runs: Sequence[_Run]) -> list[_Run]:
    """An output map excuses only if it is the same in every run: a wrong step can look like one in one of them."""
    maps = {run.excuse for run in runs if run.excuse.startswith(OUTPUT_MAPS)}
    rescaled = any(run.excuse.startswith(OUTPUT_MAPS[1]) for run in runs)
    if len(maps) <= 1 and not (rescaled and any(run.ok for run in runs)):
        return list(runs)
    return [replace(run, excuse="") if run.excuse in maps else run for run in runs]


def _state(returned: Any, noise: Tensor) -> Tensor:
    """The data among what a sampler returned."""
    candidates = [returned]
    if isinstance(returned, dict):
        candidates = list(returned.values())
    elif isinstance(returned, tuple):
        candidates = list(returned)
    elif isinstance(returned, list):
        candidates = returned[::-1]
    elif isinstance(returned, Tensor) and returned.dim() == noise.dim() + 1 and returned.shape[1:] == noise.shape:
        candidates = [returned[-1]]
    for candidate in candidates:
        if isinstance(candidate, Tensor) and candidate.shape == noise.shape:
            if not candidate.is_floating_point():
                raise DtypeError(
                    f"the sampler returned {candidate.dtype}.",
                    "floating-point data",
                    "check it before they are rounded",
                )
            return candidate
    seen = tuple(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
    raise ShapeError(f"the sampler returned {seen}.", f"data of the noise's shape {tuple(noise.shape)}", "")


def _report(target: str, runs: Sequence[_Run], call: str, seconds: float) -> Report:
    checks = [
        CheckResult(
            f"exact data in {run.steps} step{'s' * (run.steps > 1)}, {run.field}",
            "passed" if run.ok else "noted" if run.excuse else "failed",
            run.excuse or f"error of z_0 {run.error:.1e}, tolerance {run.tolerance:.0e}",
            NEAREST_BUG / run.error if run.ok and run.error else None,
        )
        for run in runs
    ]
    kept = all(run.noise_kept for run in runs)
    checks.append(
        CheckResult(
            "starts at the noise it is given",
            "passed" if kept else "noted",
            "" if kept else "the first call is at another state; it was taken as the noise",
        )
    )
    other = sorted({(run.steps, len(run.taken)) for run in runs if len(run.taken) != run.steps})
    checks.append(
        CheckResult(
            "takes as many steps as asked",
            "noted" if other else "passed",
            ", ".join(f"{taken} when asked for {asked}" for asked, taken in other),
        )
    )
    measured = {
        "call": call,
        "errors": {f"{run.field}, {run.steps}": run.error for run in runs},
        "steps": {str(run.steps): [str(step) for step in run.taken] for run in runs if run.field == runs[0].field},
        "noise_kept": kept,
        "variants": sorted({run.excuse for run in runs if run.excuse}),
    }
    excused = any(run.excuse for run in runs) or not kept or bool(other)
    diagnoses = _diagnoses([run for run in runs if not run.ok and not run.excuse])
    return conclude(target, "sampler", checks, diagnoses, variant=excused, measured=measured, seconds=seconds)


def _diagnoses(bad: Sequence[_Run]) -> list[Diagnosis]:
    """One name, from the run with the most steps: there the rules differ most."""
    for run in sorted(bad, key=lambda one: -one.steps):
        name = name_steps(run.taken)
        if name is None:
            continue
        return [_found(name, run)]
    if bad:
        worst = max(bad, key=lambda one: one.error)
        seen = "; ".join(map(str, worst.taken[:4]))
        name = Name("UNKNOWN_FORMULA", f"the steps {seen}", "the exact data", worst.taken[0].where)
        return [_found(name, worst)]
    return []


def _found(name: Name, run: _Run) -> Diagnosis:
    observed = f"{run.steps} step{'s' * (run.steps > 1)}: {name.observed}; z_0 is off by {run.error:.2g} of its size"
    if name.name == "TIMES_OUT_OF_RANGE":
        # The page speaks of laws of times; here the sampler's own grid is meant.
        cause = "Times scaled outside the network, or r and t computed from another time than the state's."
        remedy = "t, r = 1 - i / n, 1 - (i + 1) / n          # in step i of n"
        return finding(name.name, observed, name.expected, where=name.where, cause=cause, remedy=remedy)
    return finding(name.name, observed, name.expected, where=name.where)
