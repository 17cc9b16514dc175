"""Programs that tests run in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SMALL = ["--steps", "6", "--batch", "64", "--width", "16", "--points", "16", "--samples", "32", "--warmup", "2"]
SMALL += ["--data", "gaussian"]

# Kills a run at random moments, by fork: torch is imported once.
KILLS = r"""
import os, random, signal, sys, time
from pathlib import Path
import torch
from rich.console import Console
from meanflow_ref.train.presets import preset
from meanflow_ref.train.run import run
from meanflow_ref.train import checkpoint
import meanflow_ref.train.judge  # matplotlib too, before the forks

torch.set_num_threads(1)
folder, kills, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def child(**changes):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        config = preset("toy", data="gaussian", steps=steps, batch=8, width=4, depth=1, warmup=2, points=2, samples=2,
                        measure_every=10**6, **changes)
        run(config, Console(file=open(os.devnull, "w")))
        code = 0
    finally:
        os._exit(code)

assert os.waitpid(child(out=folder / "whole", checkpoint_every=0), 0)[1] == 0
random.seed(7)
killed, moments = 0, []
out = folder / "killed"
while killed < kills:
    start = child(out=out, checkpoint_every=1, resume=True)
    before = checkpoint.list_steps(out / "checkpoints")
    # Wait until it writes, so that kills fall into training and writing and not into the start.
    while checkpoint.list_steps(out / "checkpoints") == before and os.waitpid(start, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))
    os.kill(start, signal.SIGKILL)
    os.waitpid(start, 0)
    killed += 1
    found, complaints = checkpoint.load_newest(out / "checkpoints")
    assert found is not None and not complaints, complaints
    moments.append(found.step)
    assert found.step < steps, "the run ended before it was killed often enough"
assert moments == sorted(moments), moments
print("killed", killed, "partial", len(list((out / "checkpoints").glob(".partial*"))))
assert os.waitpid(child(out=out, checkpoint_every=0, resume=True), 0)[1] == 0
"""


def run_program(program: str, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """A program of this file, run by this Python."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


def weights_file(out: Path, step: int, part: str = "weights") -> Path:
    """A tensor file of a run's checkpoint."""
    return out / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors"
