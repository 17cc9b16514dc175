"""The README's table of oracles, generated from a run so that no figure in it is typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meanflow_ref.errors import ParameterError
from meanflow_ref.files import write_atomic
from meanflow_ref.verify.check import Result
from meanflow_ref.verify.command import environment, number

BEGIN, END = "<!-- oracles: begin, written by `make readme` -->", "<!-- oracles: end -->"
# The groups whose rows are oracles; proofs and mutants are summed up in a line each.
TABULATED = ("Exact fields", "Truth", "Reference loss")


def oracle_table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    lines = ["| group | oracle | worst error | bound |", "|---|---|---:|---:|"]
    for result in results:
        if result.group in TABULATED:
            sense = {"<=": "≤", ">=": "≥"}[result.sense]
            name = result.name.replace("|", r"\|")  # a bare bar would end the cell
            lines.append(f"| {result.group} | {name} | {number(result.observed)} | {sense} {number(result.bound)} |")
    lines.append("")
    for group in dict.fromkeys(result.group for result in results if result.group not in TABULATED):
        rows = [result for result in results if result.group == group]
        lines.append(f"- {group}: {sum(result.ok for result in rows)} of {len(rows)} checks hold")
    machine = environment()
    lines += ["", f"Measured with torch {machine['torch']} on {machine['machine'].replace(', measured', ' and')}."]
    return "\n".join(lines)


def update_readme(path: Path, results: Sequence[Result]) -> None:
    """Replace the part of ``path`` between the markers by the table; the rest stays as it is."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ParameterError(f"{path} lacks the markers.", f"one line {BEGIN} and, below it, one line {END}", "")
    head, rest = text.split(BEGIN)
    write_atomic(path, f"{head}{BEGIN}\n{oracle_table(results)}\n{END}{rest.split(END)[1]}")
