"""The ledger as a readable page, written from what its rows found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .claim import VERDICTS, Finding, Settled

PATH = Path(__file__).parents[1] / "CLAIMS.md"

_PREFACE = """# Claims

Written by `python -m proofs --claims --write` from the run that settled them. Do not edit.

Five public documents explain MeanFlow; each of their statements is a row here, in our words. A row is settled by a
function of `proofs/ledger/` (named last) that runs as a test and can fail: whatever is verified or refuted by numbers
shows the same yardstick on both sides, something right within a bound and something wrong beyond one, and a theorem has
false neighbours of its own that must be refuted. Letters are the paper's: data at t = 0, noise at t = 1, unless said
otherwise.

- **proved**: by theorems of [DERIVATIONS.md](DERIVATIONS.md), or by steps of the same engine;
- **verified numerically**: against exact fields, ODEs or quadrature; "≤" gives the bound that the error keeps;
- **refuted**: false as stated, or incomplete where the completion matters; the counter-example is measured;
- **factual**: a matter of notation, omission or publication, with what can be checked of it;
- **out of reach**: why, and what would settle it.

Figures marked *reported* are quoted from the paper, and not measured here.
"""


def page(results: Sequence[Settled], documents: Mapping[str, str]) -> str:
    """Markdown of the whole ledger, by document.

    Args:
        results: All rows as they were settled.
        documents: Number of each document, and what it is.
    """
    parts = [_PREFACE, _counts(results, documents)]
    for number, description in documents.items():
        rows = [_row(result) for result in results if result.claim.document == number]
        head = "| row | the claim, and what is to be said of it | verdict | what settles it |\n|---|---|---|---|\n"
        parts.append(f"## Document {number}\n\n{description[0].upper()}{description[1:]}.\n\n{head}" + "\n".join(rows))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _counts(results: Sequence[Settled], documents: Mapping[str, str]) -> str:
    lines = ["| document | rows | " + " | ".join(VERDICTS) + " | settled |", "|---" * (len(VERDICTS) + 3) + "|"]
    for number in (*documents, "all"):
        chosen = [result for result in results if number in ("all", result.claim.document)]
        by_verdict = [sum(result.claim.verdict == verdict for result in chosen) for verdict in VERDICTS]
        share = f"{sum(result.ok for result in chosen)} of {len(chosen)}"
        name = "**all**" if number == "all" else f"[{number}](#document-{number})"
        lines.append(f"| {name} | {len(chosen)} | {' | '.join(map(str, by_verdict))} | {share} |")
    return "\n".join(lines)


def _row(result: Settled) -> str:
    row = result.claim
    said = row.text + (f"<br><em>{row.remark}</em>" if row.remark else "")
    evidence = [_finding(f) for f in result.findings] + [f"**UNSETTLED** {failure}" for failure in result.failures]
    cells = (row.id, said, f"**{row.verdict}**", "<br>".join([*evidence, f"`{row.where}`"]))
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Text that does not end its cell."""
    return text.replace("|", r"\|").replace(" * ", r" \* ")


def _finding(f: Finding) -> str:
    if f.kind == "theorem":
        return f"[{f.text}](DERIVATIONS.md#{f.theorem})"
    if f.kind == "step":
        return f"{f.text}: {'proved' if f.sense == '<=' else 'refuted'}"
    if f.kind == "quoted":
        return f"{f.text}: {f.value:.4g} (*reported*)"
    # An error is rounding and differs between machines: its bound is what is asserted. A discrepancy is stable.
    return f"{f.text}: ≤ {f.bound:g}" if f.sense == "<=" else f"{f.text}: **{f.value:.3g}**"
