"""A whole run in the plane: a ring of normal laws, a perceptron, and the exact average velocity to judge it by."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from meanflow_ref import __version__, formulas
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import GaussianMixture
from meanflow_ref.files import write_atomic
from meanflow_ref.models import MLP
from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at
from meanflow_ref.objectives.times import UniformPair
from meanflow_ref.sampling import sample
from meanflow_ref.train.config import ToyConfig
from meanflow_ref.train.figures import curves_figure, samples_figure, to_png
from meanflow_ref.train.interrupt import interruptible
from meanflow_ref.train.loop import Batch, Report, train
from meanflow_ref.train.metrics import (
    Points,
    energy_distance,
    energy_floor,
    one_step_points,
    random_points,
    velocity_error,
)

FILES = ("config.json", "log.jsonl", "samples.png", "curves.png", "summary.json")
# Times in a run at which the error of u is measured and logged.
_MEASUREMENTS = 20


@dataclass(frozen=True)
class Summary:
    """What a run reached, with the averaged weights.

    Attributes:
        steps: Steps taken.
        interrupted: Whether it was stopped before its last step.
        seconds: Wall-clock seconds of training, the truth and the figures aside.
        u_error: ``E|u_theta - u|^2`` over states of the field and uniform times.
        u_size: ``E|u|^2`` over the same.
        one_step_error: ``E|u_theta - u|^2`` at (z, r, t) = (noise, 0, 1); its square root bounds the Wasserstein-2
            distance of one-step samples to the data.
        one_step_size: ``E|u|^2`` over the same.
        energy: Energy distance of one-step samples to fresh data.
        energy_floor: Largest of 20 energy distances between perfect samples of the same size.

    """

    steps: int
    interrupted: bool
    seconds: float
    u_error: float
    u_size: float
    one_step_error: float
    one_step_size: float
    energy: float
    energy_floor: float


def ring(modes: int, radius: float, std: float) -> GaussianMixture:
    """Equal normal laws, evenly spaced on a circle; float64."""
    angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)
    weights = torch.full((modes,), 1 / modes, dtype=torch.float64)
    return GaussianMixture(weights, means, torch.full((modes,), std, dtype=torch.float64))


class Toy:
    """A run, set up but not begun; nothing is written before :meth:`run`.

    Args:
        config: Its options.

    Raises:
        ParameterError: If the device is not there or the folder cannot be used.

    """

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.device = find_device(config.device)
        require_free_folder(config.out, config.overwrite)
        self.field = ring(config.modes, config.radius, config.std)
        self.nearby = self.field.to(dtype=torch.float32, device=self.device)
        # Network, data and judgement draw from streams of their own, so that one can change without the others.
        seeds = torch.randint(2**62, (3,), generator=torch.Generator().manual_seed(config.seed)).tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            self.net: nn.Module = MLP(2, config.width, config.depth).to(self.device)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
        self.data, self.judge = (torch.Generator().manual_seed(seed) for seed in seeds[1:])
        self.times = UniformPair(equal=config.equal)

    def draw(self) -> Batch:
        """The next batch; drawn on the CPU, so that every device sees the same."""
        n = self.config.batch
        x, eps = self.field.sample_pair(n, self.data)
        r, t = self.times.sample(n, self.data)
        return (
            x.to(self.device, torch.float32),
            eps.to(self.device, torch.float32),
            r.to(self.device),
            t.to(self.device),
        )

    def loss(self, net: nn.Module, batch: Batch) -> Tensor:
        """Plain squared error; see :class:`~meanflow_ref.train.config.ToyConfig` for why. Source: mf:9 to mf:11."""
        jvp = self.config.jvp
        if self.config.velocity == "conditional":
            return meanflow_loss(net, *batch, weight_power=0.0, jvp=jvp).loss
        x, eps, r, t = batch
        path, t_ = self.nearby.path, t[:, None]
        z = formulas.interpolant(x, eps, path.alpha(t_), path.sigma(t_))
        return meanflow_loss_at(net, z, self.nearby.velocity(z, t), r, t, weight_power=0.0, jvp=jvp).loss

    def reports(self) -> Iterator[Report]:
        """Train, one report a step."""
        c = self.config
        return train(
            self.net,
            self.average,
            self.draw,
            self.loss,
            steps=c.steps,
            learning_rate=c.learning_rate,
            warmup=c.warmup,
        )

    def run(self, console: Console) -> Summary:
        """Train, judge, and write :data:`FILES`; stops early and cleanly at the first SIGINT."""
        c = self.config
        console.print(f"truth: {c.points} points and {c.points} of noise, by ODE")
        anywhere = random_points(self.field, c.points, self.judge)
        one_step = one_step_points(self.field, c.points, self.judge)
        self._prepare_folder()

        losses: list[float] = []
        errors: dict[int, float] = {}
        start = time.monotonic()
        with interruptible() as asked_to_stop, _progress(console, c.steps) as advance, self._log() as log:
            for report in self.reports():
                line: dict[str, Any] = asdict(report)
                if report.step % max(1, c.steps // _MEASUREMENTS) == 0 or report.step == c.steps:
                    line["u_error"] = errors[report.step] = velocity_error(self.average, anywhere, device=self.device)
                losses.append(report.loss)
                log(line)
                advance(report, errors)
                if asked_to_stop():
                    break
        seconds = time.monotonic() - start
        return self._judge(anywhere, one_step, losses, errors, seconds)

    def _judge(
        self, anywhere: Points, one_step: Points, losses: list[float], errors: dict[int, float], seconds: float
    ) -> Summary:
        """Measure the averaged weights, and write the figures and the summary."""
        c = self.config
        self.average.eval()
        noise = torch.randn(c.samples, 2, generator=self.judge, dtype=torch.float64)
        fresh = self.field.sample_data(c.samples, self.judge)
        with torch.no_grad():
            learned = sample(self.average, noise.to(self.device, torch.float32)).cpu()
        summary = Summary(
            steps=len(losses),
            interrupted=len(losses) < c.steps,
            seconds=seconds,
            u_error=velocity_error(self.average, anywhere, device=self.device),
            u_size=float(anywhere.u.square().sum(-1).mean()),
            one_step_error=velocity_error(self.average, one_step, device=self.device),
            one_step_size=float(one_step.u.square().sum(-1).mean()),
            energy=energy_distance(learned, fresh),
            energy_floor=energy_floor(self.field, c.samples, self.judge),
        )
        panels = {"data": fresh, "one step, learned": learned, "one step, exact": one_step.z - one_step.u}
        write_atomic(c.out / "samples.png", to_png(samples_figure(panels)))
        write_atomic(c.out / "curves.png", to_png(curves_figure(losses, errors)))
        write_atomic(c.out / "summary.json", json.dumps(asdict(summary), indent=1) + "\n")
        return summary

    def _prepare_folder(self) -> None:
        """Make the folder, clear what an earlier run left in it, and write down what this one was told."""
        out = self.config.out
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        resolved = self.config.to_dict() | {
            "command": "toy",
            "device": str(self.device),
            "meanflow_ref": __version__,
            "torch": torch.__version__,
        }
        write_atomic(out / "config.json", json.dumps(resolved, indent=1) + "\n")

    @contextmanager
    def _log(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Context that yields what appends a line to the log; each line is on disk before the next step."""
        with (self.config.out / "log.jsonl").open("a", buffering=1) as file:
            yield lambda line: print(json.dumps(line), file=file)


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Callable[[Report, dict[int, float]], None]]:
    """Context that yields what moves the progress bar."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps)

        def advance(report: Report, errors: dict[int, float]) -> None:
            error = f"{list(errors.values())[-1]:.3f}" if errors else "..."
            progress.update(task, advance=1, description=f"loss {report.loss:7.3f}  E|u_theta - u|^2 {error}")

        yield advance


def find_device(name: str) -> torch.device:
    """The device of that name, if it is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch says what is wrong in its first line; the rest is for its own developers.
        raise ParameterError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}", "a device of this machine", "--device cpu"
        ) from error
    return device


def require_free_folder(out: Path, overwrite: bool) -> None:
    """Raise unless a run can be written to ``out``; nothing is written."""
    if out.exists() and not out.is_dir():
        raise ParameterError(f"--out {out} is a file.", "a folder, or a name for a new one")
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not (existing.is_dir() and _writable(existing)):
        raise ParameterError(f"--out {out}: no permission to write in {existing}.", "a folder that can be written")
    found = [name for name in FILES if (out / name).exists()]
    if found and not overwrite:
        raise ParameterError(f"--out {out} holds a run already ({found[0]}).", "a new folder", "--overwrite")


def _writable(folder: Path) -> bool:
    import os

    return os.access(folder, os.W_OK | os.X_OK)
