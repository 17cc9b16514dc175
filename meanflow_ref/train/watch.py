"""What a run shows while it runs: a line of JSON a step, a progress bar, TensorBoard if asked."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from meanflow_ref.errors import MissingExtraError
from meanflow_ref.files import write_atomic
from meanflow_ref.train.config import Config
from meanflow_ref.train.loop import Report

LOG = "log.jsonl"
Line = dict[str, Any]


class Watch:
    """Takes the reports of a run; rank 0 has one, the others have none."""

    def __init__(self, log: Any, progress: Progress, config: Config, done: int, board: Any) -> None:
        self._log, self._progress, self._board = log, progress, board
        self._task = progress.add_task("", total=config.steps, completed=done)
        self._start, self._done, self._batch = time.monotonic(), done, config.batch
        self._error = ""

    def show(self, report: Report, measured: Line) -> None:
        """Log one step, and move the bar."""
        line = without_nan(asdict(report) | measured)
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()
        rate = (report.step - self._done) / max(time.monotonic() - self._start, 1e-9)
        if "u_error" in measured:
            self._error = f"  E|u_theta - u|^2 {measured['u_error']:.4f}"
        skipped = "  SKIPPED" if report.skipped else ""
        text = (
            f"loss {report.raw_loss:8.4f}{self._error}  {rate:.1f} steps/s, {rate * self._batch:.0f} samples/s{skipped}"
        )
        self._progress.update(self._task, completed=report.step, description=text)
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, report.step)


@contextmanager
def watching(folder: Path, config: Config, console: Console, done: int) -> Iterator[Watch]:
    """Context of a watch whose log goes on behind step ``done``; later lines of an earlier attempt are dropped."""
    trim_log(folder / LOG, done)
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with ExitStack() as stack:
        board = stack.enter_context(_board(folder)) if config.tensorboard else None
        log = stack.enter_context((folder / LOG).open("a"))
        progress = stack.enter_context(Progress(*columns, console=console))
        yield Watch(log, progress, config, done, board)


@contextmanager
def _board(folder: Path) -> Iterator[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as missing:
        raise MissingExtraError("tensorboard", "train", "--tensorboard") from missing
    writer = SummaryWriter(str(folder / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()


def trim_log(path: Path, done: int) -> None:
    """Drop the lines after step ``done``, and a last line that a killed process left unfinished."""
    if not path.exists():
        return
    kept = [line for line in read_log(path) if line["step"] <= done]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: Path) -> list[Line]:
    """The whole lines of a log, in order."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def without_nan(value: Any) -> Any:
    """A value as JSON knows it: NaN and infinity are null."""
    if isinstance(value, dict):
        return {key: without_nan(x) for key, x in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def peak_memory(device: torch.device) -> int:
    """Bytes: most that tensors took on a GPU, or most that this process ever had of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
