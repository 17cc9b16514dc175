"""The ledger: every claim of five public documents on MeanFlow, its verdict, and the function that settles it.

``python -m proofs --claims`` runs it. The rows are in :mod:`proofs.ledger`, one file a document. Nothing here imports
torch until a row that computes with it is run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches

from .language import ProofError
from .ledger import document_000, document_001, document_002, document_003, document_004  # noqa: F401  # their rows
from .ledger.claim import CLAIMS, VERDICTS, Claim, Finding, Settled, Verdict, shortcomings

__all__ = [
    "CLAIMS",
    "DOCUMENTS",
    "ROWS",
    "VERDICTS",
    "Claim",
    "Finding",
    "Settled",
    "claims",
    "counts",
    "run",
    "settle",
]

# What each document is, and how many of its statements the ledger holds.
DOCUMENTS: dict[str, str] = {
    "000": "a one-page note with pseudo-code, in Chinese",
    "001": "a long explainer in questions and answers, in Chinese",
    "002": "notes that follow the paper closely, in Chinese",
    "003": "a technical specification with full listings, in Chinese; its time runs from noise (0) to data (1)",
    "004": "an introduction by school mathematics, in English, with a linked notebook",
}
ROWS: dict[str, int] = {"000": 11, "001": 28, "002": 27, "003": 22, "004": 11}


def claims(names: Sequence[str] = ()) -> list[Claim]:
    """Rows in order.

    Args:
        names: Ids of rows (``"003.12"``) or of documents (``"003"``); all of them if empty.

    Raises:
        ProofError: for a name that is neither.
    """
    ordered = sorted(CLAIMS.values(), key=lambda row: (row.document, int(row.id.split(".")[1])))
    known = {*CLAIMS, *DOCUMENTS}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ProofError(
                f"no row or document called {name!r}",
                "an id such as 003.12, or 000 to 004",
                f"type {near[0]!r}" if near else "",
            )
    return [row for row in ordered if not names or row.id in names or row.document in names]


def settle(row: Claim) -> Settled:
    """Run a row's function and judge what it found; an exception is a failure."""
    start = time.perf_counter()
    try:
        findings = tuple(row.settle())
        result = Settled(row, findings, tuple(shortcomings(row, findings)))
    except Exception as error:
        result = Settled(row, (), (f"stopped: {type(error).__name__}: {error}",))
    return replace(result, seconds=time.perf_counter() - start)


def run(progress: Callable[[Settled, int, int], None] | None = None, names: Sequence[str] = ()) -> list[Settled]:
    """Settle rows; ``progress`` is called after each with its number from 1 and the number of rows."""
    chosen, results = claims(names), []
    for number, row in enumerate(chosen, 1):
        results.append(settle(row))
        if progress:
            progress(results[-1], number, len(chosen))
    return results


def counts(rows: Sequence[Claim]) -> dict[Verdict, int]:
    """Number of rows by verdict, in the order of ``VERDICTS``."""
    seen = Counter(row.verdict for row in rows)
    return {verdict: seen[verdict] for verdict in VERDICTS}
