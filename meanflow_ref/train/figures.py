"""The figures of a run, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import MissingExtraError

try:
    from matplotlib.figure import Figure
except ImportError as missing:
    raise MissingExtraError("matplotlib", "train", "drawing the figures of a run") from missing

_BLUE, _ORANGE, _GREEN, _GREY = "#4c78a8", "#f58518", "#54a24b", "#bbbbbb"


def samples_figure(panels: Mapping[str, Tensor]) -> Figure:
    """Point clouds in the plane side by side, on the axes of the first."""
    figure = Figure(figsize=(4 * len(panels), 4.2), layout="constrained")
    limit = 1.15 * max(float(next(iter(panels.values())).abs().max()), 1e-3)
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.scatter(points[:4000, 0], points[:4000, 1], s=3, color=_BLUE, linewidths=0)
        axes.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return figure


def trajectories_figure(states: Tensor) -> Figure:
    """Paths in the plane, ``(times, n, 2)``: noise in grey, data in blue."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    for path in states.unbind(1):
        axes.plot(path[:, 0], path[:, 1], color=_GREY, lw=0.7)
    axes.scatter(states[0, :, 0], states[0, :, 1], s=6, color=_GREY, label="noise")
    axes.scatter(states[-1, :, 0], states[-1, :, 1], s=6, color=_BLUE, label="data")
    axes.set(aspect="equal", title="From noise to data with the learned v")
    axes.legend()
    return figure


def histogram_figure(panels: Mapping[str, Tensor]) -> Figure:
    """Samples on the line."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    ends = next(iter(panels.values())).aminmax()
    bins = torch.linspace(float(ends.min), float(ends.max), 80).tolist()
    for title, points in panels.items():
        axes.hist(points.flatten().tolist(), bins=bins, histtype="step", density=True, label=title)
    axes.legend()
    return figure


def images_figure(images: Tensor, *, columns: int = 10, title: str = "") -> Figure:
    """Images ``(n, channels, height, width)`` in [-1, 1] on a grid."""
    n = images.shape[0]
    rows = -(-n // columns)
    figure = Figure(figsize=(0.7 * columns, 0.72 * rows + (0.4 if title else 0.1)), layout="constrained")
    for axes, image in zip(figure.subplots(rows, columns, squeeze=False).flat, images, strict=False):
        pixels = ((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy()
        axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    for axes in figure.axes:
        axes.axis("off")
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def curves_figure(log: Sequence[Mapping[str, Any]], floor: float | None = None) -> Figure:
    """Losses of every step, and what was measured now and then, on logarithmic axes."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [line["step"] for line in log]
    window = max(1, len(log) // 50)
    for name, colour in (("raw_loss", _ORANGE), ("equal_loss", _BLUE)):
        pairs = [(line["step"], line[name]) for line in log if line.get(name) is not None]
        if not pairs:
            continue
        at, values = zip(*pairs, strict=True)
        left.plot(at, _smooth(list(values), window), color=colour, label=f"{name}, mean of {window}")
    if floor:
        left.axhline(floor, color=_GREEN, ls="--", label="raw loss of the exact u")
    left.set(xlabel="step", title="Loss: most of it is noise of the conditional v", yscale="log")
    for name, colour in (("tangent_ratio", _ORANGE), ("gradient_norm", _BLUE)):
        middle.plot(steps, _smooth([line[name] for line in log], window), color=colour, label=name)
    middle.set(xlabel="step", title="Size of (t - r) du/dt over v, and of the gradient", yscale="log")
    measured = [line for line in log if "u_error" in line]
    if measured:
        right.plot(
            [line["step"] for line in measured],
            [line["u_error"] for line in measured],
            color=_BLUE,
            marker="o",
            ms=3,
            label="E|u_theta - u|^2",
        )
        right.set(yscale="log")
    rounding = [line for line in log if "rounding_target" in line]
    if rounding and not measured:
        rounded = [line["rounding_target"] for line in rounding]
        right.plot([line["step"] for line in rounding], rounded, color=_GREY, label="rounding of the target")
        right.set(yscale="log")
    right.set(xlabel="step", title="Against the truth")
    for axes in (left, middle, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    return figure


def _smooth(values: list[float], window: int) -> list[float]:
    """Mean of the last ``window`` values at each."""
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
