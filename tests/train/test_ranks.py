"""Two gloo ranks on this machine: gradients in sync, equal to one process, and an end when one of them dies.

gloo's start can hang on a shared machine, and its threads can abort a program that has ended: every program has a time
limit and one more try.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_programs import SMALL, weights_file

from meanflow_ref.errors import ParameterError
from meanflow_ref.train import __main__ as command
from meanflow_ref.train.checkpoint import load_tensors
from meanflow_ref.train.distributed import open_ranks
from meanflow_ref.train.presets import preset

# Gradients of two ranks, of one process on the joined batch, and of the classic mistake: a JVP of `ddp.module`.
GRADIENTS = r"""
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from meanflow_ref.train.batches import Batch, Batches
from meanflow_ref.train.data import open_source
from meanflow_ref.train.distributed import Ranks, open_ranks, replicate
from meanflow_ref.train.networks import make_network
from meanflow_ref.train.objective import Step
from meanflow_ref.train.presets import preset

torch.set_num_threads(1)
config = preset("toy", data="gaussian", batch=32, width=16, jvp=sys.argv[1])

def gradient(step, loss):
    step.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in step.parameters()])

def fresh(source):
    return Step(make_network(config, source.shape, None), config, None, source.field)

def spread(x):
    others = [torch.zeros_like(x) for _ in range(2)]
    torch.distributed.all_gather(others, x)
    return float((others[0] - others[1]).abs().max())

with open_ranks(config) as ranks:
    source = open_source(config)
    mine = Batches(source, config, ranks).draw(1, 0)
    step = fresh(source)
    # Kept by name: a wrapper that is gone before the backward pass reduces nothing.
    wrapper = replicate(step, ranks)
    synced = gradient(step, wrapper(*mine).loss)
    both = [Batches(source, config, Ranks(k, 2, ranks.device)).draw(1, 0) for k in range(2)]
    joined = Batch(*(None if a is None else torch.cat([a, b]) for a, b in zip(*both)))
    alone = fresh(source)
    whole = gradient(alone, alone(*joined).loss)
    wrong = fresh(source)
    wrapped = DistributedDataParallel(wrong.net)
    bypass = gradient(wrong, wrong.terms(wrapped.module, *mine).loss)
    spreads = spread(synced), spread(bypass)
    if ranks.first:
        print("RESULT", spreads[0], spreads[1], float((synced - whole).abs().max() / whole.abs().max()))
    # Reducers go before the ranks that they speak to.
    del wrapper, wrapped
"""

DIES = r"""
import os, sys
from meanflow_ref.train import run as room
reports = room.Run.reports
def dying(self):
    for report in reports(self):
        if report.step == 3 and self.ranks.rank == 1:
            raise RuntimeError("rank 1 is dead on purpose")
        yield report
room.Run.reports = dying
from meanflow_ref.train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def torchrun(program: Path | str, *arguments: str, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    """Two ranks; ``program`` is a file, or a module if it is a name."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    what = [str(program)] if isinstance(program, Path) else ["-m", program]
    for last in (False, True):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
        try:
            done = subprocess.run(
                [*start, *what, *arguments],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            if last:
                raise
            continue
        # What C++ says when a thread outlives its owner: no word of Python's, nor of ours.
        if last or "terminate called without an active exception" not in done.stderr:
            return done
    raise AssertionError


SLOW_BACKENDS = [pytest.param(jvp, marks=pytest.mark.slow) for jvp in ("double_backward", "stopgrad_traced")]


@pytest.mark.parametrize("jvp", ["stopgrad", *SLOW_BACKENDS])
def test_gradients_are_in_sync_and_those_of_the_joined_batch(jvp: str, tmp_path: Path) -> None:
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    done = torchrun(tmp_path / "gradients.py", jvp)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if "RESULT" in line)
    spread, bypass, difference = map(float, line.split("RESULT")[1].split())
    assert spread == 0
    # float32 sums in another order.
    assert difference < 1e-5
    assert bypass > 1e-3, "the check sees a step that skips the reduction"


@pytest.mark.parametrize(
    ("parallel", "jvp"),
    [
        ("ddp", "stopgrad"),
        ("fsdp", "stopgrad"),
        *(pytest.param("ddp", *p.values, marks=p.marks) for p in SLOW_BACKENDS),
    ],
)
def test_one_step_of_two_ranks_is_two_parts_of_one(parallel: str, jvp: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*SMALL, "--jvp", jvp]
    assert command.main(["toy", *options, "--out", str(one), "--accumulate", "2"]) == 0
    done = torchrun("meanflow_ref.train", "toy", *options, "--out", str(two), "--parallel", parallel)
    assert done.returncode == 0, done.stderr[-3000:]
    for part in ("weights", "ema"):
        ours, theirs = (load_tensors(weights_file(out, 6, part)) for out in (one, two))
        assert set(ours) == set(theirs)
        for name, x in ours.items():
            # Six steps of Adam at 2e-3: a gradient that was not reduced moves a weight by 1e-2.
            torch.testing.assert_close(theirs[name], x, rtol=0, atol=2e-5)
    # A checkpoint of two ranks is an ordinary one: one process goes on from it.
    assert command.main(["toy", *options, "--out", str(two), "--resume"]) == 0


def test_when_a_rank_dies_the_others_stop_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    # Far below the 300 s after which ranks that wait give up by themselves.
    done = torchrun(tmp_path / "dies.py", "toy", *SMALL, "--steps", "100000", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "rank 1 is dead on purpose" in done.stderr


def test_bad_combinations_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        pytest.raises(ParameterError, match="--parallel fsdp of one process"),
        open_ranks(preset("toy", parallel="fsdp")),
    ):
        pass
    with pytest.raises(ParameterError, match="--batch 7"), open_ranks(preset("toy", batch=7, accumulate=2)):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    config = preset("toy", parallel="fsdp", jvp="double_backward")
    with pytest.raises(ParameterError, match="--jvp stopgrad"), open_ranks(config):
        pass
