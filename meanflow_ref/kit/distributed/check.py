"""The distributed check: launch, compare, report."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.calling import describe, require_callable
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report
from meanflow_ref.kit.distributed.worker import Job, run_rank, run_reference
from meanflow_ref.kit.finding import conclude, finding
from meanflow_ref.kit.target import load_target

Gradients = dict[str, Tensor]
# Relative difference of gradients that is called one, by the data's type.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Compared:
    """Relative differences of one step's gradients.

    Attributes:
        ranks: Between the ranks.
        shards: From the mean over the parts in one process.
        joined: From the joined batch in one process, with the same draws a row.
        scale: Least-squares factor of the ranks' gradient over that of one process.

    """

    ranks: float
    shards: float
    joined: float
    scale: float


class TooLongError(Exception):
    """The processes did not finish."""


def check_distributed(
    step: Callable[..., Any] | str,
    *,
    shape: Sequence[int] = (4,),
    rows: int = 13,
    dtype: torch.dtype = torch.float32,
    timeout: float = 180.0,
    seed: int = 0,
) -> Report:
    """Check that two ranks compute one gradient, that of one process.

    Starts two processes in a gloo group and a third alone. Each calls ``step(x)`` with its rows; in all of them a
    process group exists, so that DistributedDataParallel can be built. The global generators are seeded before.

    Args:
        step: ``step(x)`` builds the model, wraps it as in training, computes the loss and calls ``backward()``, and
            returns the module (or its parameters). A function of a module that can be imported, or its address. A
            script that calls this needs ``if __name__ == "__main__":``.
        shape: Shape of one event of x.
        rows: Rows a rank; a number that is no dimension of the model.
        dtype: Of x.
        timeout: Seconds after which the processes are ended.
        seed: Of data, models and draws.

    Returns:
        A report of kind ``"distributed"``; inconclusive if the processes did not finish in time.

    Raises:
        ParameterError: If the step raised, left no gradients or cannot be sent to a process.

    """
    start = time.perf_counter()
    target = step if isinstance(step, str) else describe(step)
    function = load_target(step) if isinstance(step, str) else require_callable(step, "the step", "step(x)")
    if rows < 1 or timeout <= 0 or dtype not in TOLERANCE:
        wanted = f"rows and timeout above 0, dtype one of {', '.join(map(str, TOLERANCE))}"
        raise ParameterError(f"rows={rows}, timeout={timeout}, dtype={dtype}.", wanted, "")
    try:
        (compared,) = compare([function], shape=shape, rows=rows, dtype=dtype, timeout=timeout, seed=seed)
    except TooLongError as error:
        checks = [CheckResult("both ranks finish", "skipped", str(error))]
        return conclude(target, "distributed", checks, [], seconds=time.perf_counter() - start)
    return _report(target, compared, TOLERANCE[dtype], time.perf_counter() - start)


def compare(
    steps: Sequence[Callable[..., Any]],
    *,
    shape: Sequence[int],
    rows: int,
    dtype: torch.dtype,
    timeout: float,
    seed: int,
) -> list[Compared]:
    """Run several steps in the same three processes, and compare each one's gradients."""
    _require_picklable(steps)
    with tempfile.TemporaryDirectory(prefix="meanflow-ref-") as name:
        job = Job(Path(name), 2, rows, tuple(shape), str(dtype).removeprefix("torch."), seed, timeout)
        _launch(steps, job)
        return [_compared(job.folder, number, job.world) for number in range(len(steps))]


def _require_picklable(steps: Sequence[Callable[..., Any]]) -> None:
    for step in steps:
        try:
            pickle.dumps(step)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ParameterError(
                f"the step cannot be sent to another process: {error}",
                "a function at the top level of a module",
                "move it out of the function or notebook cell that defines it",
            ) from None


def _launch(steps: Sequence[Callable[..., Any]], job: Job) -> None:
    """Start all processes and wait; whatever happens, none is left behind."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, steps, job), daemon=True) for rank in range(job.world)]
    processes.append(context.Process(target=run_reference, args=(steps, job), daemon=True))
    deadline = time.monotonic() + job.timeout
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode not in (None, 0) for process in processes):
                break
            time.sleep(0.05)
        _raise_first_error(processes, job)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()


def _raise_first_error(processes: Sequence[Any], job: Job) -> None:
    if any(process.exitcode not in (None, 0) for process in processes):
        # Another process may fail because of the first: let it write its reason too.
        time.sleep(0.2)
    files = sorted(job.folder.glob("*.error"), key=lambda file: file.stat().st_mtime)
    if files:
        where = {"single": "one process"}.get(files[0].stem, files[0].stem.replace("rank", "rank "))
        text = files[0].read_text().split("\n\n")[0]
        raise ParameterError(f"the step raised in {where}: {text}", "a step(x) that runs in a process group", "")
    failed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
    if failed:
        raise ParameterError(
            f"a process ended with code {failed[0]} before the step ran.",
            "a step that another process can import",
            'in a script, call check_distributed below `if __name__ == "__main__":`',
        )
    if any(process.is_alive() for process in processes):
        raise TooLongError(f"the processes did not finish in {job.timeout:g} s; give a longer timeout=")


# ------------------------------------------------------------ comparing


def _compared(folder: Path, number: int, world: int) -> Compared:
    ranks = [torch.load(folder / f"step{number}-rank{rank}.pt", weights_only=True) for rank in range(world)]
    single = torch.load(folder / f"step{number}-single.pt", weights_only=True)
    first = ranks[0]["plain"]
    means = [_mean(parts) for parts in (single["parts"], single["ranked"]) if all(parts)]
    shards = min(_difference(first, mean) for mean in means)
    nearest = min(means, key=lambda mean: _difference(first, mean))
    return Compared(
        max(_difference(first, rank["plain"]) for rank in ranks[1:]),
        shards,
        _difference(ranks[0]["joined"], single["joined"]),
        _scale(first, nearest),
    )


def _plain(name: str) -> str:
    """A parameter's name without the wrapper's prefix."""
    return name.removeprefix("module.")


def _mean(parts: Sequence[Gradients]) -> Gradients:
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def _flat(gradients: Gradients) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients, key=_plain)])


def _difference(a: Gradients, b: Gradients) -> float:
    """Largest difference over the largest entry; infinite if the parameters are not the same."""
    if sorted(map(_plain, a)) != sorted(map(_plain, b)):
        return float("inf")
    x, y = _flat(a), _flat(b)
    return float((x - y).abs().max() / torch.maximum(x.abs().max(), y.abs().max()).clamp_min(1e-300))


def _scale(a: Gradients, b: Gradients) -> float:
    if sorted(map(_plain, a)) != sorted(map(_plain, b)):
        return float("nan")
    x, y = _flat(a), _flat(b)
    return float(x @ y / (y @ y).clamp_min(1e-300))


# ------------------------------------------------------------ reporting


def _report(target: str, compared: Compared, tolerance: float, seconds: float) -> Report:
    checks, diagnoses = [], []

    def add(name: str, difference: float, found: Diagnosis | None) -> None:
        margin = tolerance / difference if 0 < difference <= tolerance else None
        status = "passed" if difference <= tolerance else "failed" if found else "noted"
        checks.append(CheckResult(name, status, f"relative difference {difference:.1e}", margin))  # type: ignore[arg-type]
        if found and difference > tolerance:
            diagnoses.append(found)

    seen = f"the gradients of the two ranks differ by {100 * compared.ranks:.3g} %"
    add("gradients equal on both ranks", compared.ranks, finding("GRADIENTS_NOT_SYNCED", seen, "equal gradients"))
    synced = compared.ranks <= tolerance
    seen = f"the ranks' gradient is {compared.scale:.4g} times that of one process, and off by {compared.shards:.2g}"
    expected = "the mean over the ranks' rows"
    found = finding("GRADIENTS_NOT_SYNCED", seen, expected) if synced else None
    add("equal to one process, mean over the parts", compared.shards, found)
    add("equal to one process on the joined batch", compared.joined, None)
    measured = {
        "ranks_differ": compared.ranks,
        "differs_from_parts": compared.shards,
        "differs_from_joined": compared.joined,
        "scale": compared.scale,
    }
    return conclude(target, "distributed", checks, diagnoses, measured=measured, seconds=seconds)
