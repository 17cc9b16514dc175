"""Rows as a table to read, a record to keep, and the one sentence they support."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from meanflow_ref.bench.measure import Row
from meanflow_ref.bench.methods import BASELINE, METHODS
from meanflow_ref.errors import MissingExtraError

_HEADINGS = (
    "model", "method", "r != t", "time / FM", "95 % interval", "limit", "time / double backward", "FLOPs / FM",
    "peak / FM", "kernels / FM", "passes", "error of du/dt",
)  # fmt: skip
_NUMERIC_FROM = 2


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """One line of text cells a row."""
    return [
        (
            row.scenario,
            row.method,
            f"{100 * row.share:.0f} %",
            f"{row.time.median:.2f}",
            f"{row.time.low:.2f} to {row.time.high:.2f}",
            f"{row.limit:.2f}",
            f"{row.time_to_baseline.median:.2f}",
            f"{row.flops:.2f}",
            f"{row.peak_bytes:.2f}",
            f"{row.kernels:.2f}",
            str(row.passes),
            "" if row.error is None else f"{row.error:.0e}",
        )
        for row in rows
    ]


def to_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown, aligned so that it reads as plain text too."""
    lines = [_HEADINGS, *cells(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]

    def render(line: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if i >= _NUMERIC_FROM else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if i >= _NUMERIC_FROM else "-" * w for i, w in enumerate(widths)]
    return "\n".join([render(_HEADINGS), render(rule), *map(render, lines[1:])])


def legend() -> str:
    """What the columns and the methods mean."""
    methods = "\n".join(f"- `{method.name}`: {method.about}" for method in METHODS.values())
    return (
        "FM is the flow-matching step of the same network. Times are medians of ratios paired by round, with an\n"
        "order-statistic interval; the limit is a forward, a backward, and a tangent pass on the rows with r != t.\n"
        "Peak is tensor memory made inside the step. Passes are primal + tangent + backward, as autograd sees them:\n"
        "the tangent pass of `stopgrad` runs below it. The error is relative, float32 against float64.\n\n"
        f"{methods}"
    )


def finding(rows: Sequence[Row], method: str = "func") -> str:
    """Whether ``method`` beats the double-backward baseline, by the intervals of these rows alone."""
    verdicts: dict[str, list[str]] = {"faster": [], "slower": [], "not told apart": []}
    for row in rows:
        if row.method == method:
            ratio = row.time_to_baseline
            verdict = "faster" if ratio.high < 1 else "slower" if ratio.low > 1 else "not told apart"
            verdicts[verdict].append(f"{row.scenario} {ratio}")
    parts = [f"{verdict} on {', '.join(where)}" for verdict, where in verdicts.items() if where]
    return f"Time of `{method}` over `{BASELINE}`: {'; '.join(parts)}." if parts else ""


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def save(rows: Sequence[Row], folder: Path) -> tuple[Path, ...]:
    """Write ``jvp.json``, ``jvp.md`` and, where matplotlib is installed, ``jvp.svg`` into ``folder``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    record, table = folder / "jvp.json", folder / "jvp.md"
    content = {"environment": environment(), "rows": [row.to_dict() for row in rows]}
    record.write_text(json.dumps(content, indent=1) + "\n")
    setting = ", ".join(f"{key} {value}" for key, value in environment().items())
    table.write_text(f"# Cost of du/dt\n\n{setting}\n\n{to_markdown(rows)}\n\n{finding(rows)}\n\n{legend()}\n")
    try:
        from meanflow_ref.bench.plot import draw, to_svg
    except MissingExtraError:
        return record, table
    plot = folder / "jvp.svg"
    plot.write_text(to_svg(draw(rows)))
    return record, table, plot
