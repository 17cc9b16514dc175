"""What a check of the kit finds, and the report that gathers it. Every output format derives from this, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["wrong", "note"]
Status = Literal["passed", "failed", "noted", "skipped"]
Verdict = Literal["correct", "variant", "wrong", "inconclusive"]

# The frozen set of checks that a report speaks of; new checks enter under a new number.
ORACLE = 1


@dataclass(frozen=True)
class Diagnosis:
    """One named finding.

    Attributes:
        name: Fixed name, the key of its page in :mod:`meanflow_ref.kit.catalogue`.
        observed: What was measured, with the number.
        expected: What it would be in correct code.
        where: The user's own ``file:line``, or empty if no line can be blamed.
        cause: Likely cause.
        remedy: What to write instead, in code.
        effect: What the mistake does to the trained u.
        severity: ``"wrong"``, or ``"note"`` for a legal choice worth knowing.

    """

    name: str
    observed: str
    expected: str
    where: str = ""
    cause: str = ""
    remedy: str = ""
    effect: str = ""
    severity: Severity = "wrong"


@dataclass(frozen=True)
class CheckResult:
    """One check that ran, or did not.

    Attributes:
        name: The check.
        status: ``"skipped"`` always has a reason in ``detail``.
        detail: What was seen, in one line.
        margin: Nearest bug over measured error, where the check has one.

    """

    name: str
    status: Status
    detail: str = ""
    margin: float | None = None


@dataclass(frozen=True)
class Report:
    """The outcome of one target.

    Attributes:
        target: What was checked, as the user named it.
        kind: ``"loss"``, ``"sampler"``, ``"times"``, ``"guidance"``, ``"network"`` or ``"distributed"``.
        verdict: ``"inconclusive"`` is never a pass.
        checks: Every check of the oracle, run or skipped.
        diagnoses: Findings, the gravest first.
        formula: The objective that was recognised, or None.
        measured: Inferred facts by name, of JSON types.
        seconds: Time that the checks took.
        oracle: Number of the frozen set of checks.

    """

    target: str
    kind: str
    verdict: Verdict
    checks: Sequence[CheckResult]
    diagnoses: Sequence[Diagnosis] = ()
    formula: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    oracle: int = ORACLE

    @property
    def ok(self) -> bool:
        """Whether the target is correct or a legal variant."""
        return self.verdict in {"correct", "variant"}

    def to_json(self) -> str:
        """The report as JSON, of the schema ``docs/check_your_fork.md`` describes."""
        return self._as("json")

    def to_junit(self) -> str:
        """The report as JUnit XML."""
        return self._as("junit")

    def to_markdown(self) -> str:
        """The report as Markdown."""
        return self._as("markdown")

    def _as(self, name: str) -> str:
        from meanflow_ref.kit.output import render

        return render([self], name)
