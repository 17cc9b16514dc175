"""Writes the figures of ``benchmarks/README.md`` from a committed run: ``python benchmarks/write_readme.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUN = HERE / "results" / "cpu-2core" / "jvp.json"
BEGIN, END = "<!-- figures: begin, written by write_readme.py -->", "<!-- figures: end -->"
SHOWN = ("func", "double_backward", "two_pass", "one_sided_difference", "stopgrad")


def block(run: dict[str, Any]) -> str:
    """The table of time, memory, kernels and FLOPs, and that of the shares, in Markdown."""
    rows = {(row["scenario"], row["share"], row["method"]): row for row in run["rows"]}
    models = list(dict.fromkeys(row["scenario"] for row in run["rows"]))
    lines = [f"| method | {' | '.join(f'{model}: time, memory, kernels, FLOPs' for model in models)} |"]
    lines.append("|---" * (1 + len(models)) + "|")
    for method in SHOWN:
        cells = [_cell(rows.get((model, 1.0, method))) for model in models]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    lines.append("| limit | " + " | ".join("1.33, 1.00, , 1.33" for _ in models) + " |")
    shares = sorted({row["share"] for row in run["rows"]} - {1.0})
    if shares:
        lines += ["", f"| r != t on, method | {' | '.join(f'{model}: time, limit' for model in models)} |"]
        lines.append("|---" * (1 + len(models)) + "|")
        for share in shares:
            for method in ("func", "stopgrad", "stopgrad_rows"):
                found = [rows.get((model, share, method)) for model in models]
                cells = ["" if r is None else f"{_time(r)}, {r['limit']:.2f}" for r in found]
                lines.append(f"| {100 * share:.0f} %, `{method}` | {' | '.join(cells)} |")
    setting = ", ".join(f"{key} {value}" for key, value in run["environment"].items())
    return "\n".join([*lines, "", f"Over the flow-matching step; time with its 95 % interval. {setting}."])


def _time(row: dict[str, Any]) -> str:
    time = row["time"]
    return f"{time['median']:.2f} [{time['low']:.2f}, {time['high']:.2f}]"


def _cell(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{_time(row)}, {row['peak_bytes']:.2f}, {row['kernels']:.2f}, {row['flops']:.2f}"


def main() -> int:
    readme = HERE / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{block(json.loads(RUN.read_text()))}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
