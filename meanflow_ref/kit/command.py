"""``meanflow-ref check``, ``explain`` and ``list``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.config import Settings, parse_xfail, read_config
from meanflow_ref.kit.diagnosis import ORACLE, Report


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Options of ``check``."""
    parser.add_argument("target", nargs="?", metavar="PKG.MOD:LOSS",
                        help="loss(model, x) or loss(model, x, labels); without it, the targets of [tool.meanflow-ref]")  # fmt: skip
    parser.add_argument(
        "--call", metavar="TEXT", help='how it calls its network, e.g. "z, (t, h)"; guessed if not given'
    )
    parser.add_argument("--returns", metavar="TEXT", help='what the network returns: "u" or "u, v"')
    parser.add_argument("--shape", metavar="N,N,...", help="shape of one datum, e.g. 3,32,32")
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, help="whether the loss takes labels")
    parser.add_argument("--mask", metavar="N,N,...", help="shape of one datum's mask, for loss(model, x, mask)")
    parser.add_argument("--dropout", action="store_true", help="the network that you train has random layers")
    parser.add_argument("--equal-share", type=float, metavar="P", help="P(r = t) as it is meant to be")
    parser.add_argument(
        "--weight-power", type=float, metavar="P", help="power of the adaptive weight as it is meant to be"
    )
    parser.add_argument("--sampler", metavar="PKG.MOD:SAMPLE", help="check sample(model, noise, steps) as well")
    parser.add_argument("--times", metavar="PKG.MOD:TIMES", help="check sample_times(n) -> (r, t) as well")
    parser.add_argument(
        "--law", metavar="PKG.MOD:LAW", help="law that the times should follow: a time law, or (cdf, equal)"
    )
    parser.add_argument(
        "--guided", metavar="OMEGA[,KAPPA]", help="check that the loss is guided with these scales as well"
    )
    parser.add_argument("--format", choices=("table", "json", "junit", "markdown", "github"), default="table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the chosen format there")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="append the Markdown there, as a job summary")
    parser.add_argument("--badge", type=Path, metavar="FILE", help="write the JSON of a shields.io endpoint")
    parser.add_argument(
        "--xfail", action="append", default=[], metavar='NAME="reason"', help="a diagnosis that is expected"
    )
    parser.add_argument(
        "--oracle", type=int, default=ORACLE, metavar="N", help="frozen set of checks (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)


def check(arguments: argparse.Namespace) -> int:
    """Run the checks as the command line asks; 0 holds, 1 a check failed, 2 could not decide."""
    from meanflow_ref.files import require_writable, write_atomic

    for path in (arguments.out, arguments.badge, arguments.summary):
        if path is not None:
            require_writable(path)
    reports = [report for settings in _settings(arguments) for report in run_settings(settings)]
    if not reports:
        raise ParameterError(
            "nothing to check.", "a target, or [tool.meanflow-ref] in pyproject.toml", "meanflow-ref check pkg.mod:loss"
        )
    _emit(arguments, reports)
    if arguments.summary is not None:
        from meanflow_ref.kit.output import render

        with arguments.summary.open("a") as file:
            file.write(render(reports, "markdown"))
    if arguments.badge is not None:
        from meanflow_ref.kit.output import badge

        write_atomic(arguments.badge, badge(reports))
    return exit_code(reports)


def exit_code(reports: list[Report]) -> int:
    """0 if all hold, 1 if any is wrong, 2 if any could not be decided."""
    if any(report.verdict == "wrong" for report in reports):
        return 1
    return 0 if all(report.ok for report in reports) else 2


def _settings(arguments: argparse.Namespace) -> list[Settings]:
    if arguments.target is None and not (arguments.sampler or arguments.times):
        return read_config(Path.cwd())
    shape = arguments.shape
    try:
        event = tuple(int(n) for n in shape.split(",")) if shape else None
        mask = tuple(int(n) for n in arguments.mask.split(",")) if arguments.mask else None
        scales = tuple(float(n) for n in arguments.guided.split(",")) if arguments.guided else None
    except ValueError as error:
        raise ParameterError(
            f"--shape {shape!r} --mask {arguments.mask!r} --guided {arguments.guided!r}: {error}.",
            "numbers",
            "--shape 3,32,32",
        ) from None
    return [
        Settings(
            target=arguments.target, call=arguments.call, returns=arguments.returns, shape=event, labels=arguments.labels,
            mask=mask,
            dropout=arguments.dropout, equal_share=arguments.equal_share, weight_power=arguments.weight_power,
            sampler=arguments.sampler, times=arguments.times, law=arguments.law, guided=scales, xfail=parse_xfail(arguments.xfail),
            oracle=arguments.oracle, seed=arguments.seed,
        )
    ]  # fmt: skip


def run_settings(settings: Settings) -> list[Report]:
    """Every check that the settings name."""
    from dataclasses import replace

    from meanflow_ref.kit.target import load_target

    reports: list[Report] = []

    def add(address: str, kind: Callable[[Any], Report]) -> None:
        reports.append(replace(kind(load_target(address)), target=address))

    if settings.target:
        from meanflow_ref.kit.loss.check import check_loss

        add(settings.target, lambda loss: check_loss(loss, **settings.loss_options()))
        if settings.guided:
            from meanflow_ref.kit.guidance.check import check_guidance

            omega, kappa = (*settings.guided, 0.0)[:2]
            call: Mapping[str, Any] = {"call": settings.call} if settings.call else {}
            add(settings.target, lambda loss: check_guidance(loss, omega=omega, kappa=kappa, **call))
    if settings.sampler:
        from meanflow_ref.kit.sampler import check_sampler

        options: Mapping[str, Any] = {"call": settings.call} if settings.call else {}
        add(settings.sampler, lambda sample: check_sampler(sample, **options))
    if settings.times:
        from meanflow_ref.kit.times import check_times

        law = load_target(settings.law) if settings.law else None
        add(settings.times, lambda times: check_times(times, law))
    return reports


def _emit(arguments: argparse.Namespace, reports: list[Report]) -> None:
    from rich.console import Console

    from meanflow_ref.files import write_atomic
    from meanflow_ref.kit.output import render
    from meanflow_ref.kit.output.table import print_reports

    if arguments.format == "table":
        if arguments.out is not None:
            with arguments.out.open("w") as file:
                print_reports(reports, Console(file=file, width=132))
        print_reports(reports, Console(width=None if sys.stdout.isatty() else 132))
        return
    text = render(reports, arguments.format)
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        write_atomic(arguments.out, text)
        print(f"{arguments.out}: " + ", ".join(f"{report.target} is {report.verdict}" for report in reports))


# ---------------------------------------------------------------- explain and list


def explain(arguments: argparse.Namespace) -> int:
    """Print a page of the catalogue."""
    from meanflow_ref.kit.finding import pages

    book, name = pages(), arguments.name.upper().replace("-", "_")
    if name not in book:
        near = get_close_matches(name, book, n=3, cutoff=0.4)
        raise ParameterError(
            f"no page {arguments.name!r}.",
            "a diagnosis; `meanflow-ref list` prints them",
            "meanflow-ref explain " + near[0] if near else "",
        )
    print(page_text(book[name]))
    return 0


def page_text(page: Any) -> str:
    """A page as plain text."""
    parts = [f"{page.name}  ({page.part}, {page.severity})", page.title, ""]
    for title, text, code in (
        ("What you see", page.symptom, False), ("Wrong", page.wrong, True), ("Right", page.right, True), ("Cause", page.cause, False),
        ("Remedy", page.remedy, True), ("Effect", page.effect, False),
    ):  # fmt: skip
        if text:
            parts += [title, textwrap.indent(text if code else textwrap.fill(text, 100), "    "), ""]
    return "\n".join(parts)


def list_checks(arguments: argparse.Namespace) -> int:
    """Print every diagnosis of the oracle by part."""
    from itertools import groupby

    from meanflow_ref.kit.finding import pages

    book = pages()
    if arguments.markdown is not None:
        from meanflow_ref.files import require_writable, write_atomic

        require_writable(arguments.markdown)
        write_atomic(arguments.markdown, book_text(list(book.values())))
        return 0
    for part, group in groupby(book.values(), key=lambda page: page.part):
        print(part)
        for page in group:
            print(f"  {page.name:34} {'note  ' if page.severity == 'note' else ''}{page.title}")
    print(f"oracle {ORACLE}: {len(book)} diagnoses")
    return 0


def book_text(book: list[Any]) -> str:
    """All pages as one Markdown document."""
    lines = [
        "# Diagnoses", "",
        f"Generated by `meanflow-ref list --markdown docs/diagnoses.md`: the {len(book)} names of oracle {ORACLE}. One page on a "
        "terminal: `meanflow-ref explain NAME`. Effects are measured by `python -m meanflow_ref.kit.loss_effects` and "
        "`python -m meanflow_ref.kit.sister_effects`.", "",
        "| part | names |", "|---|---|",
    ]  # fmt: skip
    parts = list(dict.fromkeys(page.part for page in book))
    for part in parts:
        links = (f"[{page.name}](#{page.name.lower()})" for page in book if page.part == part)
        lines.append(f"| {part} | {' · '.join(links)} |")
    for page in (page for part in parts for page in book if page.part == part):
        note = " A note, not a failure." if page.severity == "note" else ""
        lines += ["", f"## {page.name}", "", f"*{page.title}.*{note}", ""]
        lines += [f"**What you see.** {page.symptom}", ""] if page.symptom else []
        for title, code in (("Wrong", page.wrong), ("Right", page.right)):
            lines += [f"{title}:", "", "```python", code, "```", ""] if code else []
        lines += [f"**Cause.** {page.cause}", ""] if page.cause else []
        lines += (
            ["**Remedy.**", "", "```python", page.remedy, "```", ""]
            if page.remedy and page.remedy != page.right
            else []
        )
        lines += [f"**Effect.** {page.effect}"] if page.effect else []
    return "\n".join(lines).rstrip() + "\n"


__all__ = ["add_check_options", "check", "exit_code", "explain", "list_checks", "page_text", "run_settings"]
