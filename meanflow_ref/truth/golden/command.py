"""What ``meanflow-ref vectors``, ``meanflow-ref cite`` and ``make golden`` do."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from meanflow_ref.errors import ParameterError
from meanflow_ref.truth.golden.archive import HERE, ORACLES, latest, load


def citation() -> str:
    """The oracle's number and digest, checked against the installed files."""
    oracle = load()
    count = f"{len(oracle.fields)} field values, {len(oracle.losses)} loss targets"
    return f"Oracle {oracle.number} ({count})\nSHA-256 {oracle.digest}"


def vectors(arguments: argparse.Namespace) -> int:
    """Export the golden vectors into a folder."""
    from meanflow_ref.truth.golden.export import export

    oracle = load(arguments.oracle)
    paths = export(oracle, arguments.folder)
    size = sum(path.stat().st_size for path in paths) / 1e6
    print(f"oracle {oracle.number}: {len(oracle.cases)} cases in {len(paths)} files, {size:.1f} MB: {arguments.folder}")
    print(f"SHA-256 {oracle.digest}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Regenerate an oracle and compare it with the frozen one, or freeze a new one."""
    parser = argparse.ArgumentParser(prog="python -m meanflow_ref.truth.golden", description=main.__doc__)
    parser.add_argument("--oracle", type=int, default=max(ORACLES, default=1), metavar="N",
                        help="the oracle's number (default: %(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=max(1, min(4, os.cpu_count() or 1)), metavar="N",
                        help="worker processes (default: the cores, 4 at most)")  # fmt: skip
    parser.add_argument("--cache", type=Path, metavar="DIR",
                        help="keep finished cases there, so that an interrupted run goes on")  # fmt: skip
    parser.add_argument("--freeze", action="store_true", help="write the folder of a new oracle; refuses a frozen one")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        raise ParameterError(f"--jobs {arguments.jobs}", "at least 1 worker", "")
    if arguments.cache is not None:
        arguments.cache.mkdir(parents=True, exist_ok=True)
    return _regenerate(arguments)


def _regenerate(arguments: argparse.Namespace) -> int:
    from meanflow_ref.truth.golden.regenerate import compared, freeze, regenerated

    number, start = arguments.oracle, time.perf_counter()
    if arguments.freeze and (HERE / f"oracle-{number}").exists():
        raise ParameterError(f"oracle {number} is frozen.", "a new number", "write a design for the next oracle")
    files = regenerated(number, arguments.jobs, arguments.cache, _progress)
    print(f"{len(files)} files regenerated in {time.perf_counter() - start:.0f} s")
    if arguments.freeze:
        print(f"frozen; add to archive.ORACLES:  {number}: {freeze(number, files)!r}")
        return 0
    wrong = compared(number, files)
    for line in wrong:
        print(f"differs from the frozen file: {line}", file=sys.stderr)
    if not wrong:
        print(f"oracle {number} came out bit for bit, SHA-256 {ORACLES[number]}")
    return 1 if wrong else 0


def _progress(finished: int, total: int) -> None:
    """One line that is written over on a terminal, a few lines elsewhere."""
    end, every = ("\r", 10) if sys.stdout.isatty() else ("\n", 200)
    if finished % every == 0 or finished == total:
        print(f"{finished}/{total} cases", end=end, flush=True)


__all__ = ["citation", "latest", "main", "vectors"]
