"""Memory as the allocator sees it, for steps whose operations cannot be watched: compiled ones.

What a compiler generates allocates below torch's dispatcher, where :func:`meanflow_ref.bench.counters.count_cost` sees
nothing of it. On the CPU the profiler's memory events tell every allocation and release, on CUDA the allocator does.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

# Options of glibc's mallopt: bytes freed at the top of the heap that are kept, and blocks that are mapped one by one.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_kept: list[bool] = []


def keep_freed_memory() -> bool:
    """Have the C library keep what a step frees for the next one, as CUDA's caching allocator does.

    By default glibc gives large blocks back to the system. The next step then takes a page fault for every 4 KiB of
    them, and how many those are depends on which step ran before: in an interleaved run a method pays for the others.

    Returns:
        Whether it could be told; only glibc can.

    """
    if not _kept:
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            _kept.append(bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1)))
        except (OSError, AttributeError):
            _kept.append(False)
    return _kept[0]


def keeps_freed_memory() -> bool:
    """Whether :func:`keep_freed_memory` was called here, and could do so."""
    return _kept == [True]


@dataclass(frozen=True)
class Allocation:
    """Bytes allocated by a run.

    Attributes:
        peak: Most that was allocated at once, of what the run allocated; scratch memory inside kernels included.
        kept: What is still allocated at the end, with the run's result alive.

    """

    peak: int
    kept: int


def allocation(run: Callable[[], object], device: torch.device | str = "cpu") -> Allocation:
    """Memory of one run of ``run``, which should have run before: a first call compiles and fills caches."""
    gc.collect()
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        found = Allocation(
            torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
        )
        del result
        return found
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        return _replay(json.loads(trace.read_text())["traceEvents"])


def _replay(events: list[dict[str, object]]) -> Allocation:
    """Follow the memory events of a trace.

    What was allocated before the profile and dies in it (gradients of the step before, garbage of another program) is
    told by its address and left out: it would lower the level under the peak.
    """
    alive: dict[object, int] = {}
    now = peak = 0
    memory = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(memory, key=lambda event: float(str(event["ts"]))):
        arguments = event["args"]
        assert isinstance(arguments, dict)
        address, size = arguments["Addr"], int(arguments["Bytes"])
        if size > 0:
            now += size - alive.get(address, 0)
            alive[address] = size
        else:
            now -= alive.pop(address, 0)
        peak = max(peak, now)
    return Allocation(peak, now)
