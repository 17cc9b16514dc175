"""Benchmarks stay out of a plain ``pytest`` and come when asked for."""

from __future__ import annotations

import json
import os
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


NETWORK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, z, r, t):
        return self.layer(z).tanh() * (t - r)[:, None]
"""


def run_on(model: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "network_of_a_benchmark.py").write_text(NETWORK)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks/bench_jvp.py",
        "--benchmark-only",
        "--model",
        model,
        *options,
    ]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_network_of_ones_own_under_pytest(tmp_path: Path) -> None:
    target = "network_of_a_benchmark:Net"
    done = run_on(target, tmp_path, "--shape", "6", "--batch", "8", "--bench-results", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "out" / "jvp.json").read_text())
    assert {row["scenario"] for row in content["rows"]} == {target}
    assert {row["share"] for row in content["rows"]} == {1.0, 0.25}
    assert "functional_jvp" in done.stdout
    assert "| mlp" not in done.stdout


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_on(
        "network_of_a_benchmark:Net", tmp_path, "--shape", "6", "--bench-results", str(tmp_path / "file" / "x")
    )
    assert done.returncode == 4
    assert "--bench-results" in done.stderr


def test_a_network_that_cannot_be_found_is_an_error_of_usage(tmp_path: Path) -> None:
    done = run_on("network_of_a_benchmark:Net", tmp_path)
    assert done.returncode == 2
    assert "--shape" in done.stdout + done.stderr
