"""What ``meanflow-ref verify`` prints and writes."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from meanflow_ref import __version__
from meanflow_ref.errors import MissingExtraError, ParameterError
from meanflow_ref.files import require_writable, write_atomic
from meanflow_ref.verify import Check, Result, collect
from meanflow_ref.verify.runner import default_jobs, run_all

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    raise MissingExtraError("rich", "report", "`meanflow-ref verify`") from error


def environment() -> dict[str, str]:
    """Versions and machine that the measurements were made with."""
    import numpy
    import sympy
    import torch
    import torchdiffeq

    return {
        "meanflow-ref": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchdiffeq": torchdiffeq.__version__,
        "sympy": sympy.__version__,
        "numpy": numpy.__version__,
        "machine": f"{platform.system()} {platform.machine()}, measured on the CPU",
    }


def number(x: float) -> str:
    """A measurement as printed in tables: counts as integers, the rest to two digits."""
    if math.isinf(x) or math.isnan(x):
        return str(x)
    return f"{int(x)}" if x == int(x) and abs(x) < 1e4 else f"{x:.1e}"


def margin(result: Result) -> str:
    """The margin as printed: how many times better than the bound."""
    if not result.ok:
        return "FAILED"
    return "exact" if math.isinf(result.margin) else f"{result.margin:.3g}x"


def results_table(results: Sequence[Result], title: str) -> Table:
    """One group's rows."""
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for heading, justify in (
        ("check", "left"),
        ("observed", "right"),
        ("bound", "right"),
        ("margin", "right"),
        ("s", "right"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for result in results:
        style = "" if result.ok else "bold red"
        bound = f"{result.sense} {number(result.bound)}"
        # A name such as "E[target | z]" is no markup.
        name = escape(result.name)
        table.add_row(name, number(result.observed), bound, margin(result), f"{result.seconds:.1f}", style=style)
    return table


def as_json(results: Sequence[Result], seconds: float) -> str:
    """The results for machines; NaN and infinity, which JSON lacks, become null."""
    rows: list[dict[str, Any]] = [
        {
            "group": r.group,
            "name": r.name,
            "observed": r.observed if math.isfinite(r.observed) else None,
            "bound": r.bound,
            "sense": r.sense,
            "ok": r.ok,
            "seconds": round(r.seconds, 3),
            "note": r.note,
            "error": r.error,
        }
        for r in results
    ]
    document = {
        "environment": environment(),
        "seconds": round(seconds, 1),
        "checks": len(results),
        "failed": sum(not r.ok for r in results),
        "results": rows,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _list(checks: Sequence[Check], console: Console) -> int:
    for check in checks:
        console.print(
            f"{check.group}: {check.name}  [{check.sense} {number(check.bound)}]", markup=False, soft_wrap=True
        )
    console.print(f"{len(checks)} checks")
    return 0


def _run(checks: Sequence[Check], jobs: int, console: Console) -> list[Result]:
    """Run with a progress bar on a terminal, and a line a check elsewhere."""
    if not console.is_terminal:
        finished = 0

        def line(result: Result) -> None:
            nonlocal finished
            finished += 1
            mark = "ok  " if result.ok else "FAIL"
            print(f"[{finished:3}/{len(checks)}] {mark} {result.group}: {result.name}", flush=True)

        return run_all(checks, jobs, line)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(checks))

        def advance(result: Result) -> None:
            progress.update(task, advance=1, description=f"{result.group}: {result.name}"[:60])

        return run_all(checks, jobs, advance)


def verify(arguments: argparse.Namespace) -> int:
    """Run the main job as the command line asks; returns the exit code."""
    if arguments.kit:
        from meanflow_ref.kit.matrix import verify_kit

        return verify_kit(arguments)
    # A log file has no width of its own: 80 columns would fold every name.
    console = Console(width=None if sys.stdout.isatty() else 132)
    checks = collect(arguments.only)
    if not checks:
        raise ParameterError(f"no check's name contains {arguments.only!r}.", "", "meanflow-ref verify --list")
    if arguments.list:
        return _list(checks, console)
    jobs = default_jobs() if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise ParameterError(f"--jobs {jobs}", "at least 1 worker", "")
    report: Path | None = None if arguments.no_report else arguments.report
    for path in (report, arguments.json, arguments.readme):
        if path is not None:
            require_writable(path)

    start = time.perf_counter()
    console.print(f"meanflow-ref {__version__}: {len(checks)} checks on {jobs} workers", highlight=False)
    results = _run(checks, jobs, console)
    seconds = time.perf_counter() - start
    for group, rows in groupby(results, key=lambda result: result.group):
        console.print(results_table(list(rows), group))
    failed = [result for result in results if not result.ok]
    for result in failed:
        console.print(f"FAILED {result.group}: {result.name}", style="bold red", markup=False)
        print(result.error or f"observed {result.observed!r}, bound {result.sense} {result.bound!r}", file=sys.stderr)

    _write(arguments, report, results, seconds, console)
    verdict = f"{len(results)} checks run, {len(results) - len(failed)} hold, {len(failed)} failed, in {seconds:.0f} s"
    console.print(verdict, style="bold red" if failed else "bold green", highlight=False)
    return 1 if failed else 0


def _write(
    arguments: argparse.Namespace, report: Path | None, results: Sequence[Result], seconds: float, console: Console
) -> None:
    """Write what was asked for; each file whole or not at all."""
    if arguments.json is not None:
        write_atomic(arguments.json, as_json(results, seconds))
    if arguments.readme is not None:
        from meanflow_ref.verify.readme import update_readme

        update_readme(arguments.readme, results)
    if report is None and arguments.figures is None:
        return
    from meanflow_ref import plots

    with console.status("drawing figures"):
        figures = plots.all_figures()
    if arguments.figures is not None:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            write_atomic(arguments.figures / f"{name}.png", plots.png(figure))
    if report is not None:
        from meanflow_ref.verify.report import html_report

        write_atomic(report, html_report(results, seconds, environment(), figures))
        console.print(f"report: {report}", highlight=False)
