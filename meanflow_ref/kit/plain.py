"""A report as plain text: no colours, no torch, no rich."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from textwrap import indent

from meanflow_ref.files import write_atomic
from meanflow_ref.kit.diagnosis import Diagnosis, Report

MARKS = {"passed": "ok", "failed": "FAIL", "noted": "note", "skipped": "skip"}


def as_text(report: Report) -> str:
    """Verdict, checks and diagnoses, for a terminal or a log."""
    title = f"{report.target}: {report.verdict.upper()}"
    lines = [title + (f" ({report.formula})" if report.formula else "")]
    width = max((len(check.name) for check in report.checks), default=0)
    lines += [f"  {MARKS[check.status]:4}  {check.name:{width}}  {check.detail}".rstrip() for check in report.checks]
    for diagnosis in report.diagnoses:
        lines += ["", *_diagnosis(diagnosis)]
    skipped = sum(check.status == "skipped" for check in report.checks)
    ran = len(report.checks) - skipped
    lines += ["", f"{ran} checks run, {skipped} skipped; oracle {report.oracle}; {report.seconds:.2f} s"]
    return "\n".join(lines)


def _diagnosis(one: Diagnosis) -> list[str]:
    head = f"{one.name}{' (note)' if one.severity == 'note' else ''}{f'  at {one.where}' if one.where else ''}"
    lines = [head, f"  observed  {one.observed}", f"  expected  {one.expected}"]
    for label, text in (("cause", one.cause), ("effect", one.effect)):
        lines += [f"  {label:8}  {text}"] if text else []
    return lines + (["  remedy", indent(one.remedy, "    ")] if one.remedy else [])


def add_format_options(parser: ArgumentParser) -> None:
    """``--format`` and ``--out``, for commands with one report."""
    formats = ("text", "json", "junit", "markdown", "github")
    parser.add_argument("--format", choices=formats, default="text", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")


def emit(report: Report, arguments: Namespace, more: str = "") -> int:
    """Print or write the report as the command line asks; ``more`` follows plain text. Returns the exit code."""
    if arguments.format == "text":
        text = f"{as_text(report)}\n{more}"
    else:
        from meanflow_ref.kit.output import render

        text = render([report], arguments.format)
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        write_atomic(arguments.out, text)
        print(f"{arguments.out}: {report.target} is {report.verdict}")
    return exit_code(report)


def exit_code(report: Report) -> int:
    """0 holds, 1 a check failed, 2 could not tell."""
    return 0 if report.ok else 1 if report.verdict == "wrong" else 2
