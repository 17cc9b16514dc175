"""Time of ``import meanflow_ref`` in a fresh interpreter, beside an empty one's, and whether it brought torch along."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

PROGRAMS = {
    "an empty interpreter": "import sys",
    "import meanflow_ref": "import sys, meanflow_ref",
    "import meanflow_ref, torch": "import sys, meanflow_ref, torch",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_import(benchmark: BenchmarkFixture, note: Callable[[str], None], name: str) -> None:
    """Start of an interpreter; the test suite, not this measurement, asserts that torch stays out."""
    program = f"{PROGRAMS[name]}; print('torch' in sys.modules)"
    benchmark.group = "start of an interpreter"
    done = benchmark.pedantic(  # type: ignore[no-untyped-call]
        subprocess.run,
        ([sys.executable, "-c", program],),
        {"check": True, "capture_output": True, "text": True, "timeout": 120},
        rounds=3,
        warmup_rounds=1,
    )
    brought = done.stdout.strip() == "True"
    benchmark.extra_info["torch_imported"] = brought
    if benchmark.stats is not None:  # None under --benchmark-disable
        note(f"{name:26s} {1e3 * benchmark.stats.stats.median:10.1f} ms, {'with' if brought else 'without'} torch")
