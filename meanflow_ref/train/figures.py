"""The figures of a run, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from torch import Tensor

from meanflow_ref.errors import MissingExtraError

try:
    from matplotlib.figure import Figure
except ImportError as missing:
    raise MissingExtraError("matplotlib", "train", "drawing the figures of a run") from missing

_BLUE, _ORANGE, _GREY = "#4c78a8", "#f58518", "#bbbbbb"


def samples_figure(panels: Mapping[str, Tensor]) -> Figure:
    """Point clouds in the plane side by side, on the axes of the first."""
    figure = Figure(figsize=(4 * len(panels), 4.2), layout="constrained")
    limit = 1.15 * max(float(next(iter(panels.values())).abs().max()), 1e-3)
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.scatter(points[:, 0], points[:, 1], s=3, color=_BLUE, linewidths=0)
        axes.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return figure


def curves_figure(losses: Sequence[float], errors: Mapping[int, float]) -> Figure:
    """Loss of every step, and the error of ``u`` at the steps where it was measured, each on a logarithmic axis."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(losses) + 1)
    left.plot(steps, losses, color=_GREY, lw=0.6, label="each step")
    window = max(1, len(losses) // 50)
    smooth = [sum(losses[max(0, i - window) : i]) / min(window, i) for i in steps]
    left.plot(steps, smooth, color=_ORANGE, label=f"mean of {window}")
    left.set(xlabel="step", title="Loss: most of it is noise of the conditional v")
    right.plot(list(errors), list(errors.values()), color=_BLUE, marker="o", ms=3)
    right.set(xlabel="step", title="E|u_theta - u|^2, against the exact u")
    if losses:
        left.legend()
        left.set_yscale("log")
        right.set_yscale("log")
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
