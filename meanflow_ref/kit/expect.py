"""Expected failures: each has a reason, and one that does not show is itself a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.diagnosis import CheckResult, Report
from meanflow_ref.kit.finding import conclude, pages


def apply_xfail(report: Report, xfail: Mapping[str, str]) -> Report:
    """The report with expected findings turned into notes.

    Raises:
        ParameterError: If a name is none of the catalogue's, or has no reason.

    """
    if not xfail:
        return report
    for name, reason in xfail.items():
        if name not in pages():
            near = get_close_matches(name, pages(), n=1)
            raise ParameterError(f"xfail names {name!r}.", "a diagnosis of the catalogue", near[0] if near else "")
        if not str(reason).strip():
            raise ParameterError(f"xfail {name} has no reason.", f'{name}="why it is meant to be so"', "")
    seen = {one.name for one in report.diagnoses}
    diagnoses = [
        replace(one, severity="note", cause=f"Expected: {xfail[one.name]}") if one.name in xfail else one
        for one in report.diagnoses
    ]
    excused = {one.observed for one in report.diagnoses if one.name in xfail}
    checks = [
        replace(check, status="noted", detail=f"expected failure: {check.detail}")
        if check.status == "failed" and check.detail in excused
        else check
        for check in report.checks
    ]
    checks += [
        CheckResult(f"xfail {name}", "failed", f"{name} was expected ({reason}) and did not show: remove the xfail")
        for name, reason in xfail.items()
        if name not in seen
    ]
    return conclude(
        report.target, report.kind, checks, diagnoses, variant=report.verdict in {"variant", "wrong"},
        inconclusive=report.verdict == "inconclusive", formula=report.formula, measured=report.measured,
        seconds=report.seconds,
    )  # fmt: skip
