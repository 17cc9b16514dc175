"""JSON, JUnit, Markdown, GitHub annotations and the badge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from meanflow_ref import __version__
from meanflow_ref.kit.diagnosis import CheckResult, Diagnosis, Report

SCHEMA = "meanflow-ref/report/1"


def _safe(value: Any) -> Any:
    """A value that JSON has: NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def counts(reports: Sequence[Report]) -> dict[str, int]:
    """Checks run, passed, failed, noted and skipped."""
    statuses = [check.status for report in reports for check in report.checks]
    result = {name: statuses.count(name) for name in ("passed", "failed", "noted", "skipped")}
    return {"run": len(statuses) - result["skipped"], **result}


def as_dict(report: Report) -> dict[str, Any]:
    """One report, of JSON types."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "oracle": report.oracle,
        "target": report.target,
        "kind": report.kind,
        "verdict": report.verdict,
        "ok": report.ok,
        "formula": report.formula,
        "counts": counts([report]),
        "checks": [
            {"name": c.name, "status": c.status, "detail": c.detail, "margin": _safe(c.margin)} for c in report.checks
        ],
        "diagnoses": [
            {
                "name": d.name, "severity": d.severity, "observed": d.observed, "expected": d.expected, "where": d.where,
                "cause": d.cause, "remedy": d.remedy, "effect": d.effect,
            }
            for d in report.diagnoses
        ],
        "measured": _safe(report.measured),
        "seconds": round(report.seconds, 3),
    }  # fmt: skip


def to_json(reports: Sequence[Report]) -> str:
    """A list of reports, or the one report itself."""
    documents = [as_dict(report) for report in reports]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=1, allow_nan=False) + "\n"


def explained(diagnosis: Diagnosis) -> str:
    """A diagnosis as a paragraph."""
    lines = [f"{diagnosis.name}: {diagnosis.observed}", f"Expected: {diagnosis.expected}"]
    for title, text in (
        ("Where", diagnosis.where), ("Cause", diagnosis.cause), ("Remedy", diagnosis.remedy), ("Effect", diagnosis.effect),
    ):  # fmt: skip
        if text:
            lines.append(f"{title}: {text}")
    return "\n".join(lines)


def to_junit(reports: Sequence[Report]) -> str:
    """JUnit XML: a suite a report, a case a check; what is wrong but in no check is a case of its own."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        number = counts([report])
        suite = ElementTree.SubElement(
            root, "testsuite", name=f"meanflow-ref {report.kind} {report.target}", tests=str(len(report.checks)),
            failures=str(number["failed"]), skipped=str(number["skipped"]), errors=str(int(report.verdict == "inconclusive")),
            time=f"{report.seconds:.3f}",
        )  # fmt: skip
        properties = ElementTree.SubElement(suite, "properties")
        for key, value in {"oracle": report.oracle, "verdict": report.verdict, "formula": report.formula}.items():
            ElementTree.SubElement(properties, "property", name=key, value=str(value))
        for check in report.checks:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{report.kind}.{report.target}", name=check.name
            )
            _junit_status(case, check, report)
        if report.verdict == "inconclusive":
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{report.kind}.{report.target}", name="conclusive"
            )
            ElementTree.SubElement(case, "error", message="INCONCLUSIVE").text = "\n".join(
                map(explained, report.diagnoses)
            )
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _junit_status(case: ElementTree.Element, check: CheckResult, report: Report) -> None:
    if check.status == "failed":
        said = [explained(d) for d in report.diagnoses if d.observed == check.detail and d.severity == "wrong"]
        ElementTree.SubElement(case, "failure", message=check.detail).text = "\n\n".join(said) or check.detail
    elif check.status == "skipped":
        ElementTree.SubElement(case, "skipped", message=check.detail)
    elif check.detail:
        ElementTree.SubElement(case, "system-out").text = check.detail


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def to_markdown(reports: Sequence[Report]) -> str:
    """A summary for a pull request or a job."""
    lines: list[str] = []
    for report in reports:
        number = counts([report])
        lines += [
            f"### {report.verdict.upper()}: `{report.target}`", "",
            f"meanflow-ref {__version__}, oracle {report.oracle}: {number['run']} checks run, {number['failed']} failed, "
            f"{number['skipped']} skipped. Formula: {report.formula or 'not recognised'}.", "",
            "| check | status | what was seen |", "|---|---|---|",
            *(f"| {c.name} | {c.status} | {_cell(c.detail)} |" for c in report.checks), "",
        ]  # fmt: skip
        for d in report.diagnoses:
            lines += [
                f"**{d.name}** ({d.severity}){f' at `{d.where}`' if d.where else ''}: {d.observed}; expected {d.expected}.",
                "",
            ]
            lines += [
                line
                for title, text in (("Cause", d.cause), ("Effect", d.effect))
                if text
                for line in (f"*{title}.* {text}", "")
            ]
            lines += ["```python", d.remedy, "```", ""] if d.remedy else []
        if report.measured:
            lines += ["<details><summary>measured</summary>", "", "| quantity | value |", "|---|---|"]
            lines += [f"| {_cell(str(key))} | {_cell(str(value))} |" for key, value in report.measured.items()]
            lines += ["", "</details>", ""]
    return "\n".join(lines)


def _escape(text: str, of_property: bool = False) -> str:
    """GitHub's escapes of a workflow command."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if of_property else text


def to_github(reports: Sequence[Report]) -> str:
    """Workflow commands: an annotation on the line of each finding."""
    lines = []
    for report in reports:
        for d in report.diagnoses:
            level = "error" if d.severity == "wrong" or d.name == "INCONCLUSIVE" else "notice"
            file, _, line = d.where.rpartition(":")
            place = f"file={_escape(file, True)},line={line}," if file and line.isdigit() else ""
            lines.append(f"::{level} {place}title={_escape('meanflow-ref ' + d.name, True)}::{_escape(explained(d))}")
        lines += [
            f"::error title={_escape('meanflow-ref ' + check.name, True)}::{_escape(check.detail)}"
            for check in report.checks
            if check.status == "failed" and not any(d.observed == check.detail for d in report.diagnoses)
        ]
        lines.append(f"meanflow-ref: {report.target} is {report.verdict}")
    return "\n".join(lines) + "\n"


def badge(reports: Sequence[Report]) -> str:
    """JSON of a shields.io endpoint."""
    ok = bool(reports) and all(report.ok for report in reports)
    unknown = not ok and all(report.ok or report.verdict == "inconclusive" for report in reports)
    number, oracle = counts(reports), max((report.oracle for report in reports), default=0)
    message = f"{'passed' if ok else 'inconclusive' if unknown else 'failed'}, {number['run']} checks, oracle {oracle}"
    color = "brightgreen" if ok else "lightgrey" if unknown else "red"
    return json.dumps({"schemaVersion": 1, "label": "meanflow-ref", "message": message, "color": color}) + "\n"


FORMATS: dict[str, Callable[[Sequence[Report]], str]] = {
    "json": to_json,
    "junit": to_junit,
    "markdown": to_markdown,
    "github": to_github,
}


def render(reports: Sequence[Report], name: str) -> str:
    """The reports in one of :data:`FORMATS`."""
    return FORMATS[name](reports)
