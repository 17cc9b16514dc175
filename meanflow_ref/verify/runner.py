"""Running the checks on the machine's cores, with progress."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from meanflow_ref.verify.check import Check, Result, run_check


def _start_worker() -> None:
    """One torch thread a worker: the tensors are small and the workers are the parallelism."""
    import torch

    torch.set_num_threads(1)


def default_jobs() -> int:
    """Worker processes to use: the cores that this process may use, 4 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores))


def run_all(checks: Sequence[Check], jobs: int, on_result: Callable[[Result], None]) -> list[Result]:
    """Run ``checks`` in ``jobs`` processes (in this one for 1) and return their results in the order of ``checks``.

    Workers are spawned, not forked, since forking a process that has torch's threads can hang.
    """
    if jobs == 1:
        results: list[Result] = []
        for check in checks:
            results.append(run_check(check))
            on_result(results[-1])
        return results
    done: dict[int, Result] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker) as pool:
        try:
            futures = {pool.submit(run_check, check): index for index, check in enumerate(checks)}
            for future in as_completed(futures):
                done[futures[future]] = future.result()
                on_result(done[futures[future]])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [done[index] for index in range(len(checks))]
