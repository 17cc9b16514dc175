"""The referee of a run: knows the truth, draws the figures, gives the verdict."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from meanflow_ref.files import write_atomic
from meanflow_ref.sampling import trajectory
from meanflow_ref.train import evaluate, figures
from meanflow_ref.train.config import Config
from meanflow_ref.train.data import AbstractSource
from meanflow_ref.train.metrics import Points, one_step_points, random_points
from meanflow_ref.train.random import generator
from meanflow_ref.train.watch import LOG, read_log


class Referee:
    """Judges one run; the truth is computed once, when it is made.

    Args:
        source: The data.
        config: The options.

    """

    def __init__(self, source: AbstractSource, config: Config) -> None:
        self.source, self.config = source, config
        self.points: dict[str, Points] = {}
        self.floor = None
        if source.field is not None:
            fresh = generator(config.seed, "judge", "points")
            self.points["anywhere"] = random_points(source.field, config.points, fresh)
            self.points["one_step"] = one_step_points(source.field, config.points, fresh)
            self.floor = evaluate.floor_numbers(source.field, config)

    def verdict(self, net: nn.Module, device: torch.device) -> dict[str, Any]:
        """Every number about the averaged network, and the figures beside the log."""
        c, source = self.config, self.source
        judged = evaluate.judge_samples(net, source, c, device)
        verdict: dict[str, Any] = {"samples": evaluate.sample_numbers(judged, c), "loss_floor": self.floor}
        if source.field is not None:
            verdict["u"] = evaluate.truth_numbers(net, self.points, source.field, c)
            if source.field.dim == 1:
                verdict["samples"]["floor"]["wasserstein2"] = evaluate.wasserstein_floor(source.field, c)
        if c.data == "digits":
            verdict["classes"] = evaluate.class_numbers(judged, source)
        self._draw(judged, net, device)
        return verdict

    def _draw(self, judged: evaluate.Judged, net: nn.Module, device: torch.device) -> None:
        out, shape = self.config.out, self.source.shape
        log = read_log(out / LOG)
        floor = self.floor["value"] if self.floor else None
        write_atomic(out / "curves.png", figures.to_png(figures.curves_figure(log, floor)))
        panels = {"data": judged.data, "1 step": judged.samples["1"], "4 steps": judged.samples["4"]}
        if shape == (1,):
            figure = figures.histogram_figure(panels)
        elif len(shape) == 1 and self.source.classes is None:
            figure = figures.samples_figure({name: x[:, :2] for name, x in panels.items()})
        else:
            figure = figures.images_figure(as_images(judged.samples["1"][:100]), title="one step")
        write_atomic(out / "samples.png", figures.to_png(figure))
        if shape == (2,):
            noise = torch.randn(200, 2, generator=generator(self.config.seed, "judge", "trajectories")).to(device)

            def velocity(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                v: torch.Tensor = net(z, t, t)
                return v

            with torch.no_grad():
                states = trajectory(velocity, noise, evaluate.EULER_STEPS).cpu()
            write_atomic(out / "trajectories.png", figures.to_png(figures.trajectories_figure(states)))


def as_images(x: torch.Tensor) -> torch.Tensor:
    """Samples as images ``(n, channels, height, width)``: square vectors are one channel; three channels are shown."""
    if x.dim() == 2:
        side = round(x.shape[1] ** 0.5)
        return x.reshape(-1, 1, side, side)
    return x if x.shape[1] in (1, 3) else x[:, :3]
