"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from meanflow_ref import __version__
from meanflow_ref.kit.diagnosis import Report
from meanflow_ref.kit.output.formats import counts, explained

_STYLE = {"passed": "green", "failed": "bold red", "noted": "yellow", "skipped": "dim"}
_FACTS = (
    "call_guessed", "engine", "passes", "network_calls", "path", "time", "tangent_dtype", "weight_power", "weight_eps",
    "reduction", "weight_detached", "equal_share", "guidance_scale", "margin",
)  # fmt: skip


def print_reports(reports: Sequence[Report], console: Console) -> None:
    """Tables, findings and one line of verdict each."""
    for report in reports:
        title = f"{report.target}  (meanflow-ref {__version__}, oracle {report.oracle})"
        table = Table(title=Text(title), title_justify="left", expand=False)
        for heading in ("check", "status", "what was seen"):
            table.add_column(heading, overflow="fold")
        for check in report.checks:
            table.add_row(check.name, Text(check.status, style=_STYLE[check.status]), Text(check.detail))
        console.print(table)
        facts = {key: report.measured[key] for key in _FACTS if report.measured.get(key) is not None}
        if facts:
            console.print(Text("measured: " + ", ".join(f"{key} {value}" for key, value in facts.items())))
        for found in report.diagnoses:
            style = "red" if found.severity == "wrong" else "yellow"
            body = Text(explained(found).split(": ", 1)[1])
            console.print(Panel(body, title=Text(found.name), title_align="left", border_style=style))
        number = counts([report])
        console.print(
            Text(
                f"{report.verdict.upper()}{f' ({report.formula})' if report.formula else ''}: {number['run']} checks run, "
                f"{number['failed']} failed, {number['noted']} noted, {number['skipped']} skipped, in {report.seconds:.1f} s",
                style="bold green" if report.ok else "bold red",
            )
        )
