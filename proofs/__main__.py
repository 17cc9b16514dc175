"""``python -m proofs``: check theorems and shipped losses, or the ledger of claims, and print a table meanwhile."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from . import ProofError, TheoremResult, claims, run_all, theorems, traced
from .claims import Settled
from .document import PATH, document
from .ledger.page import PATH as CLAIMS_PATH
from .ledger.page import page
from .theorem import Step
from .traced import TracedResult

_WIDTHS = (9, 22, 6, 9, 8, 8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if every theorem holds, 1 if one fails, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description=main.__doc__)
    names = "ids of theorems, or families such as `gaussian`; with --claims rows or documents (default: all)"
    parser.add_argument("names", nargs="*", help=names)
    parser.add_argument("--claims", action="store_true", help="settle the ledger of claims instead (needs torch)")
    parser.add_argument("--losses", action="store_true", help="trace and prove the shipped losses alone (needs torch)")
    parser.add_argument("--verbose", action="store_true", help="print every step and control with its verdict")
    parser.add_argument(
        "--write", action="store_true", help=f"write {PATH.name} and {CLAIMS_PATH.name} (all must hold)"
    )
    parser.add_argument("--list", action="store_true", help="print ids and titles, and stop")
    options = parser.parse_args(arguments)
    try:
        lines = _listing(options)
    except ProofError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(lines))
        return 0
    if options.claims:
        return _check_claims(options)
    if options.losses:
        return _check_losses(options)
    # Writing renews both pages: the ledger's rows name theorems.
    after = [] if options.names else [_check_losses]
    after += [_check_claims] if options.write else []
    return next((code for check in (_check, *after) if (code := check(options))), 0)


def _listing(options: argparse.Namespace) -> list[str]:
    """What the names choose, a line each."""
    if options.claims:
        return [f"{row.id:8} {row.verdict:21} {row.text}" for row in claims.claims(options.names)]
    if options.losses:
        return [f"{row.id:26} {row.verdict:9} {row.title}" for row in traced.shipped(tuple(options.names))]
    return [f"{spec.family:18} {spec.id:24} {spec.title}" for spec in theorems(options.names)]


def _check(options: argparse.Namespace) -> int:
    say = _printer()
    start = time.perf_counter()
    say(_row("verdict", "theorem", "steps", "(restate)", "refuted", "seconds") + "  title", "bold")

    def progress(result: TheoremResult, number: int, total: int) -> None:
        counts = (str(result.n_steps), str(result.n_restates), str(result.n_controls), f"{result.seconds:.2f}")
        verdict = "holds" if result.ok else "FAILS"
        say(_row(verdict, result.id, *counts) + f"  [{number}/{total}] {result.title}", "" if result.ok else "red")
        for line in (*result.steps, *result.controls) if options.verbose else ():
            say("          " + _line(line), "dim")
        for failure in result.failures:
            say(f"          {failure}", "red")

    results = run_all(progress, options.names)
    failed = [result.id for result in results if not result.ok]
    steps = sum(result.n_steps for result in results)
    restates, controls = sum(r.n_restates for r in results), sum(r.n_controls for r in results)
    say(
        f"{len(results) - len(failed)} of {len(results)} theorems hold: {steps} steps ({restates} restate a rule), "
        f"{controls} false statements refuted, {time.perf_counter() - start:.1f} s"
        + (f". Failing: {', '.join(failed)}" if failed else ""),
        "bold red" if failed else "bold green",
    )
    if options.write and not failed and not options.names:
        PATH.write_text(document(results), encoding="utf-8")
        say(f"wrote {PATH}", "")
    elif options.write:
        say(f"{PATH.name} not written: it holds all theorems, and all must hold", "red")
        return 1
    return 1 if failed else 0


def _check_losses(options: argparse.Namespace) -> int:
    say = _printer()
    if find_spec("torch") is None:
        say("shipped losses: not traced, since torch is not installed", "yellow")
        return 0
    start = time.perf_counter()

    def progress(result: TracedResult, number: int, total: int) -> None:
        row = result.shipped
        head = f"{result.verdict if result.ok else 'FAILS':10}{row.id:26}{result.seconds:6.2f} s"
        say(f"{head}  [{number}/{total}] {row.title}", "" if result.ok else "red")
        if options.verbose or not result.ok:
            say(result.report, "dim" if result.ok else "red")

    results = traced.run(progress, options.names)
    failed = [result.shipped.id for result in results if not result.ok]
    proved = sum(result.ok and result.verdict == "PROVED" for result in results)
    refuted = sum(result.ok and result.verdict == "REFUTED" for result in results)
    say(
        f"{proved} shipped losses proved, value and gradient; {refuted} by finite differences refuted, "
        f"{time.perf_counter() - start:.1f} s" + (f". Failing: {', '.join(failed)}" if failed else ""),
        "bold red" if failed else "bold green",
    )
    return 1 if failed else 0


def _check_claims(options: argparse.Namespace) -> int:
    say = _printer()
    start = time.perf_counter()

    def progress(result: Settled, number: int, total: int) -> None:
        row = result.claim
        head = f"{'settled' if result.ok else 'UNSETTLED':10}{row.id:8}{row.verdict:22}{result.seconds:6.2f} s"
        say(f"{head}  [{number}/{total}] {row.text}", "" if result.ok else "red")
        for f in result.findings if options.verbose else ():
            say(f"          {f.kind:9}{f.value:.3g} {f.sense} {f.bound:g}  {f.text}", "dim")
        for failure in result.failures:
            say(f"          {failure}", "red")

    results = claims.run(progress, options.names)
    failed = [result.claim.id for result in results if not result.ok]
    by_verdict = ", ".join(f"{n} {verdict}" for verdict, n in claims.counts([r.claim for r in results]).items())
    settled = f"{len(results) - len(failed)} of {len(results)} claims settled"
    say(
        f"{settled}: {by_verdict}, {time.perf_counter() - start:.1f} s"
        + (f". Unsettled: {', '.join(failed)}" if failed else ""),
        "bold red" if failed else "bold green",
    )
    if options.write and not failed and not options.names:
        CLAIMS_PATH.write_text(page(results, claims.DOCUMENTS), encoding="utf-8")
        say(f"wrote {CLAIMS_PATH}", "")
    elif options.write:
        say(f"{CLAIMS_PATH.name} not written: it holds all rows, and all must be settled", "red")
        return 1
    return 1 if failed else 0


def _row(*cells: str) -> str:
    return "".join(
        cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, _WIDTHS, strict=True))
    )


def _line(line: Step) -> str:
    d = line.decision
    tag = "restates" if d.restates else d.method
    where = f", {d.witness.left} against {d.witness.right}" if d.witness else f", {d.points} points agree"
    return f"{d.verdict.lower():8} {tag:8} {line.text}{where}"


def _printer() -> Callable[[str, str], None]:
    """Print with colours where rich is installed and the output is a terminal, plainly elsewhere."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return lambda text, style: print(text, flush=True)
    console = Console(highlight=False, soft_wrap=True)
    return lambda text, style: console.print(Text(text, style=style))


if __name__ == "__main__":
    sys.exit(main())
