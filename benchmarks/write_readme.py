"""Writes the figures of ``benchmarks/README.md`` from a committed run: ``python benchmarks/write_readme.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from meanflow_ref.bench.bounds import aim_of

HERE = Path(__file__).parent
RUN = HERE / "results" / "cpu-2core" / "jvp.json"
BEGIN, END = "<!-- figures: begin, written by write_readme.py -->", "<!-- figures: end -->"
EAGER = ("func", "double_backward", "functional_jvp", "two_pass", "one_sided_difference", "stopgrad", "stopgrad_traced")
BY_ROWS = ("func", "stopgrad", "stopgrad_rows", "stopgrad_traced", "stopgrad_traced_rows")
COMPILED = ("func_compiled", "stopgrad_compiled", "stopgrad_rows_compiled")

Rows = dict[tuple[str, float, str], dict[str, Any]]


def block(run: dict[str, Any]) -> str:
    """All tables, and the sentences they support, in Markdown."""
    rows: Rows = {(row["scenario"], row["share"], row["method"]): row for row in run["rows"]}
    models = list(dict.fromkeys(row["scenario"] for row in run["rows"]))
    shares = sorted({row["share"] for row in run["rows"]})
    parts = [_whole(rows, models), _by_share(rows, models, [share for share in shares if share < 1])]
    compiled = _compiled(rows, models, shares)
    if compiled:
        parts += ["Compiled, over the *compiled* flow-matching step (memory by the allocator):", compiled]
    for refusal in run.get("refused", []):
        parts.append(f"Refused: {refusal['scenario']}, `{refusal['method']}`: {refusal['reason']}")
    setting = ", ".join(f"{key} {value}" for key, value in run["environment"].items())
    parts.append(f"Over the flow-matching step; time with its 95 % interval. {setting}.")
    parts.append(_sentences(rows, models))
    return "\n\n".join(part for part in parts if part)


def _whole(rows: Rows, models: list[str]) -> str:
    lines = [f"| r != t everywhere | {' | '.join(f'{model}: time, memory, kernels, FLOPs' for model in models)} |"]
    lines.append("|---" * (1 + len(models)) + "|")
    for method in EAGER:
        found = [rows.get((model, 1.0, method)) for model in models]
        if any(found):
            cells = [_cell(row, "peak_bytes", "kernels", "flops") for row in found]
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
    lines.append("| limit | " + " | ".join("1.33, 1.00, , 1.33" for _ in models) + " |")
    return "\n".join([*lines, _aims(models, "stopgrad", 1.0), _aims(models, "stopgrad_traced", 1.0)])


def _by_share(rows: Rows, models: list[str], shares: list[float]) -> str:
    if not shares:
        return ""
    lines = [f"| r != t on, method | {' | '.join(f'{model}: time, limit' for model in models)} |"]
    lines.append("|---" * (1 + len(models)) + "|")
    for share in shares:
        for method in BY_ROWS:
            found = [rows.get((model, share, method)) for model in models]
            cells = ["" if row is None else f"{_time(row)}, {row['limit']:.2f}" for row in found]
            lines.append(f"| {100 * share:.0f} %, `{method}` | {' | '.join(cells)} |")
    return "\n".join([*lines, _aims(models, "stopgrad_rows", 0.25)])


def _compiled(rows: Rows, models: list[str], shares: list[float]) -> str:
    models = [model for model in models if any((model, share, m) in rows for share in shares for m in COMPILED)]
    if not models:
        return ""
    lines = [f"| r != t on, method | {' | '.join(f'{model}: time, memory, FLOPs' for model in models)} |"]
    lines.append("|---" * (1 + len(models)) + "|")
    for share in reversed(shares):
        for method in COMPILED:
            found = [rows.get((model, share, method)) for model in models]
            if any(found):
                cells = [_cell(row, "peak_bytes", "flops") for row in found]
                lines.append(f"| {100 * share:.0f} %, `{method}` | {' | '.join(cells)} |")
    return "\n".join([*lines, _aims(models, "stopgrad_compiled", 1.0)])


def _aims(models: list[str], method: str, share: float) -> str:
    aims = [str(aim_of(model, method, share) or "") for model in models]
    return f"| aim of `{method}`, {100 * share:.0f} % | {' | '.join(aims)} |"


def _time(row: dict[str, Any]) -> str:
    time = row["time"]
    return f"{time['median']:.2f} [{time['low']:.2f}, {time['high']:.2f}]"


def _cell(row: dict[str, Any] | None, *counts: str) -> str:
    return "" if row is None else ", ".join([_time(row), *(f"{row[count]:.2f}" for count in counts)])


def _sentences(rows: Rows, models: list[str]) -> str:
    """What the text below the tables says in words, in numbers."""

    def of(method: str, share: float, number: str) -> str:
        found = [(model, rows.get((model, share, method))) for model in models]
        return ", ".join(f"{model} {row[number]['median']:.2f}" for model, row in found if row and row[number])

    lines: Iterable[tuple[str, str]] = (
        ("`func` over `double_backward`, the naive way", of("func", 1.0, "time_to_baseline")),
        ("`stopgrad` over `double_backward`", of("stopgrad", 1.0, "time_to_baseline")),
        ("`stopgrad` beside four units of work", _beside(rows, models, "stopgrad", "one_sided_difference")),
        ("`stopgrad_traced` beside them", _beside(rows, models, "stopgrad_traced", "one_sided_difference")),
    )
    return "\n".join(f"- Time of {what}: {numbers}." for what, numbers in lines if numbers)


def _beside(rows: Rows, models: list[str], method: str, other: str) -> str:
    found = [(model, rows.get((model, 1.0, method)), rows.get((model, 1.0, other))) for model in models]
    return ", ".join(
        f"{model} {a['time']['median']:.2f} and {b['time']['median']:.2f}" for model, a, b in found if a and b
    )


def main() -> int:
    """Replace what stands between the marks."""
    readme = HERE / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{block(json.loads(RUN.read_text()))}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
