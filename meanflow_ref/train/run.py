"""A whole run: open, resume, train, watch, keep, judge, write."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from meanflow_ref import __version__
from meanflow_ref.errors import ParameterError
from meanflow_ref.files import write_atomic
from meanflow_ref.train import checkpoint, judge
from meanflow_ref.train.batches import Batches
from meanflow_ref.train.config import FORMAT, Config
from meanflow_ref.train.data import AbstractSource, open_source
from meanflow_ref.train.distributed import Ranks, open_ranks, whole
from meanflow_ref.train.interrupt import interruptible
from meanflow_ref.train.loop import Report, train
from meanflow_ref.train.measure import measure
from meanflow_ref.train.networks import make_network, parameters_of, read_weights, start_from_flow_matching
from meanflow_ref.train.objective import Step
from meanflow_ref.train.state import from_checkpoint, make_state, require_same, to_checkpoint
from meanflow_ref.train.watch import LOG, Watch, watching

CHECKPOINTS, TROUBLE = "checkpoints", "trouble"
FILES = ("config.json", LOG, "samples.png", "curves.png", "trajectories.png", "summary.json", CHECKPOINTS, TROUBLE)


class Run:
    """A run, set up but not begun; nothing is written before :meth:`train`.

    Args:
        config: Its options.
        ranks: Its processes.

    Raises:
        ParameterError: If the options, the data, the folder or the checkpoint do not fit together.

    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        if ranks.first:
            require_free_folder(config.out, overwrite=config.overwrite, resume=config.resume)
        self.source: AbstractSource = open_source(config)
        net = make_network(config, self.source.shape, self.source.classes)
        if config.init is not None:
            start_from_flow_matching(net, read_weights(config.init))
        self.parameters = parameters_of(net)
        step = Step(net, config, self.source.classes, self.source.field)
        # Read before anything is changed: a checkpoint of another config is refused with nothing lost.
        self.found, self.complaints = self._newest() if config.resume else (None, [])
        self.state = make_state(config, net, step, ranks)
        if self.found is not None:
            from_checkpoint(self.state, self.found)
        self.batches = Batches(self.source, config, ranks)
        self.referee: judge.Referee | None = None
        self.average: nn.Module | None = None

    def _newest(self) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        found, complaints = checkpoint.load_newest(self.config.out / CHECKPOINTS)
        if found is not None:
            require_same(self.config, found)
        return found, complaints

    def reports(self) -> Iterator[Report]:
        """Train, one report a step."""
        return train(self.state, self.batches.draw, self.config, self.ranks, evidence=self.config.out / TROUBLE)

    def train(self, console: Console) -> dict[str, Any]:
        """Train, and write everything but the verdict; every rank must call it.

        Stops cleanly, with a checkpoint, at the first SIGINT or SIGTERM.

        Returns:
            Steps, seconds, and ``status``: "done", "interrupted" (SIGINT) or "terminated" (SIGTERM).

        """
        self._prepare_folder(console)
        self.referee = judge.Referee(self.source, self.config) if self.ranks.first else None
        started, begun = time.monotonic(), self.state.step
        with ExitStack() as stack:
            asked = stack.enter_context(interruptible())
            watch = stack.enter_context(self._watching(console)) if self.ranks.first else None
            stopped_by = self._train(watch, self.referee, asked)
        seconds = time.monotonic() - started
        self.save()
        self.average = self._whole_average()
        status = {0: "done", int(signal.SIGINT): "interrupted"}.get(stopped_by, "terminated")
        head = {"status": status, "steps": self.state.step, "seconds": seconds, "resumed_at": begun}
        return head | {"parameters": self.parameters, "device": str(self.ranks.device), "ranks": self.ranks.world}

    def verdict(self, head: dict[str, Any]) -> dict[str, Any]:
        """The verdict on what :meth:`train` reached, written as the summary; the first rank's affair."""
        assert self.referee is not None
        assert self.average is not None
        summary = head | self.referee.verdict(self.average, self.ranks.device)
        write_atomic(self.config.out / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    def _train(self, watch: Watch | None, referee: judge.Referee | None, asked: Callable[[], int]) -> int:
        """Go through the steps; the number of the signal that ended them early, or 0."""
        c = self.config
        for report in self.reports():
            due = report.step % c.measure_steps == 0 or report.step == c.steps
            measured = self._measure(referee, report.step) if due else {}
            if watch is not None:
                watch.show(report, measured)
            if c.checkpoint_every and report.step % c.checkpoint_every == 0 and report.step < c.steps:
                self.save()
            # One rank that is asked to stop stops all, after the same step.
            if number := self._agreed(asked()):
                return number
        return 0

    def _agreed(self, number: int) -> int:
        if self.ranks.world == 1:
            return number
        seen = torch.tensor([float(number)], device=self.ranks.device)
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX)
        return int(seen.item())

    def _measure(self, referee: judge.Referee | None, step: int) -> dict[str, Any]:
        if referee is None or self._sharded:
            return {}
        batch = self.batches.draw(step, 0)
        points = referee.points.get("anywhere")
        s = self.state
        return measure(s.net, s.average.module, s.plain, batch, points, self.ranks.device)

    @property
    def _sharded(self) -> bool:
        return self.ranks.world > 1 and self.config.parallel == "fsdp"

    def save(self) -> None:
        """Write a checkpoint; every rank must call it."""
        whole_state = to_checkpoint(self.state, self.config)
        if self.ranks.first:
            checkpoint.save(self.config.out / CHECKPOINTS, whole_state, keep=self.config.keep)
        self.ranks.wait()

    def _whole_average(self) -> nn.Module | None:
        """The averaged network in one piece, on the first rank; every rank must call it."""
        average = self.state.average.module
        if not self._sharded:
            return average.eval() if self.ranks.first else None
        weights = {name: whole(x) for name, x in average.state_dict().items()}
        if not self.ranks.first:
            return None
        net = make_network(self.config, self.source.shape, self.source.classes)
        net.load_state_dict(weights)
        return net.to(self.ranks.device).eval()

    def _prepare_folder(self, console: Console) -> None:
        """Make the folder, clear what an earlier run left in it, and write down what this one was told."""
        if not self.ranks.first:
            return
        out = self.config.out
        out.mkdir(parents=True, exist_ok=True)
        for complaint in self.complaints:
            console.print(f"[bold]left out:[/bold] {complaint}", highlight=False)
        if self.found is None:
            clear(out)
        else:
            console.print(f"going on from step {self.state.step}", highlight=False)
        checkpoint.sweep(out / CHECKPOINTS)
        resolved = {
            "config": self.config.to_dict(),
            "shape": list(self.source.shape),
            "classes": self.source.classes,
            "format": FORMAT,
            "device": str(self.ranks.device),
            "ranks": self.ranks.world,
            "parameters": self.parameters,
            "meanflow_ref": __version__,
            "torch": torch.__version__,
        }
        write_atomic(out / "config.json", json.dumps(resolved, indent=1) + "\n")

    @contextmanager
    def _watching(self, console: Console) -> Iterator[Watch]:
        with watching(self.config.out, self.config, console, self.state.step) as watch:
            yield watch


def run(config: Config, console: Console) -> dict[str, Any]:
    """Train and judge with the ranks that there are; the summary, without a verdict after SIGTERM or on other ranks."""
    torch.set_num_threads(config.threads)
    with open_ranks(config) as ranks:
        work = Run(config, ranks)
        head = work.train(console)
    # The other ranks have gone by now: judging takes its time, and nobody waits for it.
    return work.verdict(head) if ranks.first and head["status"] != "terminated" else head


def clear(out: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in FILES:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def require_free_folder(out: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Raise unless a run can be written to ``out``; nothing is written."""
    if out.exists() and not out.is_dir():
        raise ParameterError(f"--out {out} is a file.", "a folder, or a name for a new one")
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise ParameterError(f"--out {out}: no permission to write in {existing}.", "a folder that can be written")
    found = [name for name in FILES if (out / name).exists()]
    if found and not (overwrite or resume):
        raise ParameterError(
            f"--out {out} holds a run already ({found[0]}).",
            "a new folder",
            "--resume to go on, --overwrite to replace",
        )
