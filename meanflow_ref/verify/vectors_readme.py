"""The README's table of errors against the golden vectors, written from a run over all of them.

``python -m meanflow_ref.verify.vectors_readme README.md`` (part of ``make readme``) takes a few minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from meanflow_ref.errors import MeanFlowError, ParameterError
from meanflow_ref.files import require_writable, write_atomic
from meanflow_ref.truth.golden import Oracle, load
from meanflow_ref.verify.vectors import Held, field_table
from meanflow_ref.verify.vectors_loss import loss_table

BEGIN, END = "<!-- vectors: begin, written by `make readme` -->", "<!-- vectors: end -->"
PRECISIONS = ("float64", "float32", "bfloat16")
# The names of quantities in prose.
QUANTITIES = {
    "v": "v",
    "u": "u",
    "end": "z_r",
    "log_det_jacobian": "log det J",
    "du_dt": "du/dt",
    "dr_u": "∂u/∂r",
    "dz_u": "∂u/∂z",
    "jacobian": "J",
    "squared_error": "squared error",
    "dloss_du": "dL/du",
    "gradient": "parameter gradient",
}


def table(lines: Sequence[Held], oracle: Oracle) -> str:
    """Markdown: one row a quantity of an evaluator, one column a precision."""
    rows: dict[str, dict[str, Held]] = {}
    for line in lines:
        rows.setdefault(line.what, {})[line.precision] = line
    text = ["| evaluator | quantity | float64 | float32 | bfloat16 |", "|---|---|---:|---:|---:|"]
    for what, found in rows.items():
        evaluator, quantity = what.split(": ")
        cells = [_cell(found.get(precision)) for precision in PRECISIONS]
        text.append(f"| {evaluator} | {QUANTITIES.get(quantity, quantity)} | {' | '.join(cells)} |")
    text += ["", f"Oracle {oracle.number}, SHA-256 `{oracle.digest}`. In brackets: vectors held."]
    return "\n".join(text)


def _cell(line: Held | None) -> str:
    return "" if line is None else f"{line.worst:.2g} ({line.count})"


def update(path: Path, text: str) -> None:
    """Replace what is between the markers.

    Raises:
        ParameterError: The file lacks the markers.

    """
    document = path.read_text()
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ParameterError(f"{path} lacks the markers.", f"one line {BEGIN} and, below it, one line {END}", "")
    head, rest = document.split(BEGIN)
    write_atomic(path, f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def main(argv: Sequence[str]) -> int:
    """Measure everything, and print the table or write it into a file."""
    for name in argv:
        require_writable(Path(name))
    oracle = load()
    text = table(field_table(oracle) + loss_table(oracle), oracle)
    for name in argv:
        update(Path(name), text)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except MeanFlowError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
