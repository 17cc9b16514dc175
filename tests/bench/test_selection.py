"""Benchmarks stay out of a plain ``pytest`` and come when asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "collected"),
    [
        ([], False),
        (["--benchmark-only"], True),
        (["benchmarks/bench_import.py::test_import"], True),
    ],
)
def test_benchmarks_are_collected_only_when_asked_for(arguments: list[str], collected: bool) -> None:
    # The folder stands in for all of testpaths, so that collecting is quick.
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "testpaths=benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ("bench_import.py::test_import" in done.stdout) is collected, done.stdout + done.stderr
    # 5: nothing was left to run.
    assert done.returncode == (0 if collected else 5), done.stdout + done.stderr
