"""The table as bars: what a step costs by method, beside the limit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from meanflow_ref.bench.measure import Row
from meanflow_ref.errors import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as missing:
    raise MissingExtraError("matplotlib", "report", "drawing the cost of a step") from missing

_COLOURS = {"time": "#4c78a8", "peak memory": "#f58518"}


def draw(rows: Sequence[Row]) -> Figure:
    """Time with its interval, and peak memory, over the flow-matching step's; one panel a model and share."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(f"{row.scenario}, r != t on {100 * row.share:.0f} %", []).append(row)
    height = 0.9 + 0.34 * max(map(len, panels.values()))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, height * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (title, members) in zip(grid, panels.items(), strict=False):
        _panel(axes, title, members)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Any, title: str, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    times = [row.time.median for row in rows]
    errors = [[row.time.median - row.time.low for row in rows], [row.time.high - row.time.median for row in rows]]
    bars = axes.barh([p - 0.2 for p in places], times, 0.38, xerr=errors, color=_COLOURS["time"], label="time")
    axes.bar_label(bars, fmt=" %.2f", fontsize=7, label_type="center", color="white")
    memory = axes.barh(
        [p + 0.2 for p in places],
        [row.peak_bytes for row in rows],
        0.38,
        color=_COLOURS["peak memory"],
        label="peak memory",
    )
    axes.bar_label(memory, fmt=" %.2f", fontsize=7, label_type="center", color="white")
    limit = max(row.limit for row in rows)
    axes.axvline(limit, color="#555555", ls="--", lw=1, label=f"limit {limit:.2f}")
    axes.set_yticks(places, [row.method for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("over a flow-matching step", fontsize=8)
    axes.legend(fontsize=7, loc="lower right")


def to_svg(figure: Figure) -> str:
    """The figure as SVG text, the same on every run."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "meanflow-ref", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
