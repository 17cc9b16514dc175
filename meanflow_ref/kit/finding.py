"""From a name of the catalogue and a measurement to a :class:`Diagnosis`; from diagnoses to a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from meanflow_ref.kit.catalogue import PARTS, Page
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report, Severity, Verdict


@cache
def pages() -> dict[str, Page]:
    """All pages of the catalogue by name."""
    modules = (import_module(f"meanflow_ref.kit.catalogue.{part}") for part in PARTS)
    return {page.name: page for module in modules for page in module.PAGES}


def finding(
    name: str,
    observed: str,
    expected: str,
    *,
    where: str = "",
    cause: str = "",
    remedy: str = "",
    severity: Severity | None = None,
) -> Diagnosis:
    """A diagnosis whose cause, remedy and effect are those of its page, where none are given."""
    page = pages().get(name)
    return Diagnosis(
        name,
        observed,
        expected,
        where,
        cause or (page.cause if page else ""),
        remedy or (page.remedy if page else ""),
        page.effect if page else "",
        severity or (page.severity if page else "wrong"),
    )


def conclude(
    target: str,
    kind: str,
    checks: Sequence[CheckResult],
    diagnoses: Sequence[Diagnosis],
    *,
    variant: bool = False,
    inconclusive: bool = False,
    formula: str | None = None,
    measured: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> Report:
    """The report: wrong if any finding is, then inconclusive, then variant (asked for, or by a note), then correct."""
    ordered = sorted(diagnoses, key=lambda one: one.severity != "wrong")
    verdict: Verdict = "variant" if variant or ordered else "correct"
    if inconclusive or not any(check.status != "skipped" for check in checks):
        verdict = "inconclusive"
    if any(one.severity == "wrong" for one in ordered) or any(check.status == "failed" for check in checks):
        verdict = "wrong"
    return Report(target, kind, verdict, tuple(checks), tuple(ordered), formula, dict(measured or {}), seconds)
