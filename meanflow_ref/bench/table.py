"""Rows as a table to read, a record to keep, and the one sentence they support."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from meanflow_ref.bench.allocator import keeps_freed_memory
from meanflow_ref.bench.bounds import aim_of
from meanflow_ref.bench.measure import Outcome, Refusal, Row
from meanflow_ref.bench.methods import BASELINE, COMPILED, METHODS
from meanflow_ref.errors import MissingExtraError
from meanflow_ref.files import write_atomic

# Raised when a reader of the JSON has to change.
FORMAT = 2

_HEADINGS = (
    "model", "method", "r != t", "time / FM", "95 % interval", "limit", "aim: time, peak", "time / double backward",
    "FLOPs / FM", "peak / FM", "kept / FM", "kernels / FM", "passes", "error of du/dt",
)  # fmt: skip
_NUMERIC_FROM = 2


def cells(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """One line of text cells a row."""
    return [_refused(outcome) if isinstance(outcome, Refusal) else _measured(outcome) for outcome in outcomes]


def _measured(row: Row) -> tuple[str, ...]:
    return (
        row.scenario,
        row.method,
        f"{100 * row.share:.0f} %",
        f"{row.time.median:.2f}",
        f"{row.time.low:.2f} to {row.time.high:.2f}",
        f"{row.limit:.2f}",
        str(aim_of(row.scenario, row.method, row.share) or ""),
        "" if row.time_to_baseline is None else f"{row.time_to_baseline.median:.2f}",
        f"{row.flops:.2f}",
        f"{row.peak_bytes:.2f}",
        "" if row.kept_bytes is None else f"{row.kept_bytes:.2f}",
        "" if row.kernels is None else f"{row.kernels:.2f}",
        "" if row.passes is None else str(row.passes),
        "" if row.error is None else f"{row.error:.0e}",
    )


def _refused(refusal: Refusal) -> tuple[str, ...]:
    start = (refusal.scenario, refusal.method, f"{100 * refusal.share:.0f} %", "refused")
    return start + ("",) * (len(_HEADINGS) - len(start))


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """The table in Markdown, aligned so that it reads as plain text too; compiled steps in a table of their own."""
    eager = [outcome for outcome in outcomes if outcome.method not in COMPILED]
    compiled = [outcome for outcome in outcomes if outcome.method in COMPILED]
    parts = [_table(eager)] if eager or not compiled else []
    if compiled:
        parts += ["Compiled, where FM is the *compiled* flow-matching step:", _table(compiled)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refusals:
        parts.append(
            "\n".join(f"- {r.scenario}, `{r.method}`, {100 * r.share:.0f} %: refused: {r.reason}" for r in refusals)
        )
    return "\n\n".join(parts)


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [_HEADINGS, *cells(outcomes)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]

    def render(line: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if i >= _NUMERIC_FROM else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (w - 1) + ":") if i >= _NUMERIC_FROM else "-" * w for i, w in enumerate(widths)]
    return "\n".join([render(_HEADINGS), render(rule), *map(render, lines[1:])])


def legend(outcomes: Sequence[Outcome] = ()) -> str:
    """What the columns mean, and the methods: those of ``outcomes``, or all."""
    known = METHODS | COMPILED
    names = dict.fromkeys(outcome.method for outcome in outcomes) or known
    methods = "\n".join(f"- `{name}`: {known[name].about}" for name in names if name in known)
    return (
        "FM is the flow-matching step of the same network. Times are medians of ratios paired by round, with an\n"
        "order-statistic interval; the limit is a forward, a backward, and a tangent pass on the rows with r != t;\n"
        "the aim is what the engine should reach. Peak is tensor memory made inside the step; kept is what of it is\n"
        "alive when u and du/dt are there, saved for a backward pass. Both are counted by the tensors alive; of a\n"
        "compiled step, which hides its tensors, and of its yardstick by the allocator, kept at the end of the loss.\n"
        "Kernels of a compiled step are fused and not counted. Passes are primal + tangent + backward, as autograd\n"
        "sees them: the tangent pass of `stopgrad` runs below it. The error is relative, float32 against float64.\n\n"
        f"{methods}"
    )


def finding(outcomes: Sequence[Outcome], method: str = "func") -> str:
    """Whether ``method`` beats the double-backward baseline, by the intervals of these rows alone."""
    verdicts: dict[str, list[str]] = {"faster": [], "slower": [], "not told apart": []}
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    whole = max((row.share for row in rows), default=1.0)
    for row in rows:
        if row.method == method and row.share == whole and row.time_to_baseline is not None:
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
        "freed memory": "kept" if keeps_freed_memory() else "returned",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def record(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All numbers, for JSON: ``format``, ``environment``, ``rows`` and ``refused``."""
    return {
        "format": FORMAT,
        "environment": environment(),
        "rows": [outcome.to_dict() for outcome in outcomes if isinstance(outcome, Row)],
        "refused": [outcome.to_dict() for outcome in outcomes if isinstance(outcome, Refusal)],
    }


def save(outcomes: Sequence[Outcome], folder: Path) -> tuple[Path, ...]:
    """Write ``jvp.json``, ``jvp.md`` and, where matplotlib is installed, ``jvp.svg`` into ``folder``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, table = folder / "jvp.json", folder / "jvp.md"
    write_atomic(numbers, json.dumps(record(outcomes), indent=1, allow_nan=False) + "\n")
    setting = ", ".join(f"{key} {value}" for key, value in environment().items())
    text = (to_markdown(outcomes), finding(outcomes), legend(outcomes))
    write_atomic(table, "\n\n".join(["# Cost of du/dt", setting, *text]) + "\n")
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    try:
        from meanflow_ref.bench.plot import draw, to_svg
    except MissingExtraError:
        return numbers, table
    plot = folder / "jvp.svg"
    write_atomic(plot, to_svg(draw(rows)))
    return numbers, table, plot
