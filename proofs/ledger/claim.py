"""What a row of the ledger is, and what counts as settling it.

A row's function returns :class:`Finding` objects: numbers with the bound that each must keep. A lone small error proves
little, since a measure that always says 0 would pass as well. So a row that is verified or refuted by numbers must show
the same yardstick on both sides: something right within a bound, and something wrong beyond one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ..conditions import Hypotheses
from ..engine import decide
from ..language import ProofError
from ..theorem import REGISTRY, Theorem

Verdict = Literal["proved", "verified numerically", "refuted", "factual", "out of reach"]
VERDICTS: tuple[Verdict, ...] = ("proved", "verified numerically", "refuted", "factual", "out of reach")
Kind = Literal["theorem", "step", "measured", "quoted"]


@dataclass(frozen=True)
class Finding:
    """A number that a row found, and the bound that it must keep.

    ``kind`` says where it comes from: a theorem of this package (the number of its failures), a single step of the
    engine, a computation, or a publication.
    """

    kind: Kind
    text: str
    value: float
    sense: Literal["<=", ">="]
    bound: float
    theorem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bound holds; NaN is a failure."""
        return self.value <= self.bound if self.sense == "<=" else self.value >= self.bound


@dataclass(frozen=True)
class Claim:
    """One row: ``text`` is the claim in our own words, ``remark`` what is to be added to it."""

    id: str
    verdict: Verdict
    text: str
    remark: str
    settle: Callable[[], Sequence[Finding]]

    @property
    def document(self) -> str:
        """Number of the document, ``"000"`` to ``"004"``."""
        return self.id.split(".")[0]

    @property
    def where(self) -> str:
        """Module and name of the function that settles the row."""
        return f"{self.settle.__module__.rsplit('.', 1)[-1]}.{self.settle.__name__}"


@dataclass(frozen=True)
class Settled:
    """A row with what its function found."""

    claim: Claim
    findings: tuple[Finding, ...]
    failures: tuple[str, ...]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the verdict stands."""
        return not self.failures


CLAIMS: dict[str, Claim] = {}


def claim(
    id: str, verdict: Verdict, text: str, remark: str = ""
) -> Callable[[Callable[[], Sequence[Finding]]], Callable[[], Sequence[Finding]]]:
    """Register the decorated function as what settles the row ``id``."""

    def register(settle: Callable[[], Sequence[Finding]]) -> Callable[[], Sequence[Finding]]:
        if id in CLAIMS:
            raise ProofError(f"two rows are called {id}", "one id, one row", "rename one")
        if verdict not in VERDICTS:
            raise ProofError(f"the verdict {verdict!r}", f"one of {', '.join(VERDICTS)}", "")
        CLAIMS[id] = Claim(id, verdict, text, remark, settle)
        return settle

    return register


# ---------------------------------------------------------------- findings


@cache
def _failures_of(id: str) -> tuple[str, ...]:
    """Failures of a theorem, run once whichever rows name it."""
    return Theorem(REGISTRY[id]).run().failures


def theorem(id: str) -> Finding:
    """The theorem ``id``, steps and controls alike, as a finding."""
    if id not in REGISTRY:
        raise ProofError(f"no theorem {id!r}", "an id of `python -m proofs --list`", "")
    return Finding("theorem", REGISTRY[id].title, float(len(_failures_of(id))), "<=", 0.0, theorem=id)


def theorems(*ids: str) -> list[Finding]:
    """Several theorems."""
    return [theorem(id) for id in ids]


def step(text: str, lhs: Any, rhs: Any, hypotheses: Hypotheses | None = None) -> Finding:
    """An equation that the engine must prove."""
    return _decided(text, lhs, rhs, "PROVED", hypotheses)


def false_step(text: str, lhs: Any, rhs: Any, hypotheses: Hypotheses | None = None) -> Finding:
    """An equation that the engine must refute by a witness."""
    return _decided(text, lhs, rhs, "REFUTED", hypotheses)


def _decided(text: str, lhs: Any, rhs: Any, wanted: str, hypotheses: Hypotheses | None) -> Finding:
    verdict = decide(lhs, rhs, hypotheses or Hypotheses()).verdict
    # A refutation is what shows the wrong side, hence the other sense.
    if wanted == "REFUTED":
        return Finding("step", text, float(verdict == wanted), ">=", 1.0)
    return Finding("step", text, float(verdict != wanted), "<=", 0.0)


def within(text: str, value: float, bound: float) -> Finding:
    """An error that must not exceed ``bound``."""
    return Finding("measured", text, float(value), "<=", bound)


def beyond(text: str, value: float, bound: float) -> Finding:
    """A discrepancy that must be ``bound`` at least."""
    return Finding("measured", text, float(value), ">=", bound)


def quoted(text: str, value: float, bound: float, sense: Literal["<=", ">="] = ">=") -> Finding:
    """A number taken or computed from a publication, with what it must keep for the verdict to stand."""
    return Finding("quoted", text, float(value), sense, bound)


# ---------------------------------------------------------------- rules


def shortcomings(claim: Claim, findings: Sequence[Finding]) -> list[str]:
    """Why ``findings`` do not settle ``claim`` with its verdict; empty if they do."""
    wrong = [f"{f.text}: {f.value:.3g}, wanted {f.sense} {f.bound:g}" for f in findings if not f.ok]
    wrong += [f"{f.text}: {f.value}" for f in findings if not math.isfinite(f.value)]
    wrong += [f"{f.text}: a bound that everything keeps" for f in findings if _vacuous(f)]
    kinds = {f.kind for f in findings}
    # A theorem has refuted controls of its own.
    both = "theorem" in kinds or {f.sense for f in findings} == {"<=", ">="}
    if not findings:
        wrong.append("nothing was found")
    if claim.verdict == "proved" and not kinds & {"theorem", "step"}:
        wrong.append("proved, by no theorem and no step")
    if claim.verdict in ("proved", "verified numerically") and not both:
        wrong.append("no wrong neighbour was tried by the same yardstick")
    if claim.verdict == "verified numerically" and not any(f.kind == "measured" and f.sense == "<=" for f in findings):
        wrong.append("no error was measured")
    if claim.verdict == "refuted":
        if not any(f.sense == ">=" and f.kind in ("measured", "quoted") for f in findings):
            wrong.append("no counter-example was computed")
        if not both:
            wrong.append("nothing right was measured by the yardstick of the counter-example")
    if claim.verdict == "out of reach" and not claim.remark:
        wrong.append("it is not said what would settle it")
    return wrong


def _vacuous(f: Finding) -> bool:
    return f.bound == math.inf if f.sense == "<=" else f.bound <= 0
