"""The table as bars: what a step costs by method, beside the limit, and the aim as a mark where one is set."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from meanflow_ref.bench.bounds import aim_of
from meanflow_ref.bench.measure import Row
from meanflow_ref.bench.methods import YARDSTICK
from meanflow_ref.errors import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as missing:
    raise MissingExtraError("matplotlib", "report", "drawing the cost of a step") from missing

_COLOURS = {"time": "#4c78a8", "peak memory": "#f58518"}


def draw(rows: Sequence[Row]) -> Figure:
    """Time with its interval, and peak memory, over the flow-matching step's.

    A line of panels a model, and one more for its compiled steps, whose yardstick is another; a column a share.
    """
    shares = sorted({row.share for row in rows}, reverse=True)
    lines = list(dict.fromkeys((row.scenario, row.yardstick) for row in rows))
    panels = {
        (line, share): [row for row in rows if (row.scenario, row.yardstick) == line and row.share == share]
        for line in lines
        for share in shares
    }
    heights = [0.9 + 0.34 * max(len(panels[line, share]) for share in shares) for line in lines]
    figure = Figure(figsize=(5.2 * max(1, len(shares)), max(1.0, sum(heights))), layout="constrained")
    if not rows:
        return figure
    grid = figure.subplots(len(lines), len(shares), squeeze=False, gridspec_kw={"height_ratios": heights})
    for across, line in zip(grid, lines, strict=True):
        for axes, share in zip(across, shares, strict=True):
            if panels[line, share]:
                _panel(axes, panels[line, share])
            else:
                axes.set_axis_off()
    return figure


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    times = [row.time.median for row in rows]
    errors = [[row.time.median - row.time.low for row in rows], [row.time.high - row.time.median for row in rows]]
    bars = axes.barh([p - 0.2 for p in places], times, 0.38, xerr=errors, color=_COLOURS["time"], label="time")
    memory = axes.barh(
        [p + 0.2 for p in places],
        [row.peak_bytes for row in rows],
        0.38,
        color=_COLOURS["peak memory"],
        label="peak memory",
    )
    for container in (bars, memory):
        axes.bar_label(container, fmt=" %.2f", fontsize=7, label_type="center", color="white")
    limit = max(row.limit for row in rows)
    axes.axvline(limit, color="#555555", ls="--", lw=1, label=f"limit of time {limit:.2f}")
    for place, row in zip(places, rows, strict=True):
        if (aim := aim_of(row.scenario, row.method, row.share)) is not None:
            axes.plot([aim.time] * 2, [place - 0.4, place], color="black", lw=1.5)
    axes.set_yticks(places, [row.method for row in rows], fontsize=8)
    axes.invert_yaxis()
    first = rows[0]
    compiled = first.yardstick != YARDSTICK
    axes.set_title(f"{first.scenario}{', compiled' * compiled}, r != t on {100 * first.share:.0f} %", fontsize=9)
    axes.set_xlabel(f"over a {'compiled ' * compiled}flow-matching step", fontsize=8)
    # Room for the legend beside the bars.
    axes.set_xlim(0, 1.4 * axes.get_xlim()[1])
    axes.legend(fontsize=7, loc="lower right")


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, the same on every run."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "meanflow-ref", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
