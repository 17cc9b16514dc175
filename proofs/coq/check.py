"""The check of ``MeanFlow.v``: compile it, and hold what it assumes to ``ASSUMPTIONS.txt``.

Usage, from the repository root::

    python proofs/coq/check.py           compile; no theorem may rest on more than is recorded (a few seconds)
    python proofs/coq/check.py --each    the same, asking Coq about one theorem after the other (half a minute)
    python proofs/coq/check.py --write   record afresh what each theorem rests on

Exit code: 0 it holds, 1 it does not, 2 Coq or Coquelicot is not installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE, RECORD = "MeanFlow.v", "ASSUMPTIONS.txt"
INSTALL = "apt-get install --no-install-recommends coq libcoq-coquelicot"

# All of them belong to classical mathematics; a theorem that rests on any other axiom is refused.
ALLOWED = {
    "classic": "excluded middle: P or not P",
    "functional_extensionality_dep": "functions with equal values are equal",
    "sig_forall_dec": "of the real numbers: whether a decidable property holds for all n can be decided",
    "sig_not_dec": "of the real numbers: whether not P holds can be decided",
}

# Each would make a theorem out of nothing, or switch off part of the kernel.
FORBIDDEN = re.compile(
    r"\b(?:Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?|Abort|bypass_check|Guard Checking"
    r"|Positivity Checking|Universe Checking|type-in-type)\b"
)

_TIMEOUT = 600.0
_HEADER = "Require Import MeanFlow.\n"


@dataclass(frozen=True)
class CoqResult:
    """What came of a check: ``axioms`` is the union over ``theorems``; ``message`` is one paragraph for a reader."""

    available: bool
    ok: bool
    seconds: float
    theorems: tuple[str, ...]
    axioms: tuple[str, ...]
    message: str

    @property
    def exit_code(self) -> int:
        """0 holds, 1 does not, 2 could not be run."""
        return (0 if self.ok else 1) if self.available else 2


class _Failure(Exception):
    """A check that does not hold."""


class _Unavailable(Exception):
    """Coq or Coquelicot is not there."""


# ---------------------------------------------------------------- reading


def without_comments(source: str) -> str:
    """Coq source with its comments, which nest, replaced by blanks; line numbers and columns stay."""
    depth, end, out = 0, 0, []
    for mark in re.finditer(r"\(\*|\*\)", source):
        if mark.start() < end:  # the star of "(*)" belongs to one mark alone
            continue
        text = source[end : mark.start()]
        opening = mark.group() == "(*"
        out.append(text if depth == 0 else re.sub(r"[^\n]", " ", text))
        depth = depth + 1 if opening else max(depth - 1, 0)
        out.append("  ")
        end = mark.end()
    return "".join(out) + source[end:]


def theorem_names(source: str) -> tuple[str, ...]:
    """Names of what the file calls ``Theorem``, in order; a ``Lemma`` is a means to an end."""
    return tuple(re.findall(r"^Theorem\s+(\w+)", without_comments(source), re.M))


def forbidden_words(source: str) -> list[str]:
    """Words of the source, outside comments, that would make a theorem out of nothing."""
    return [f"{m.group()} (line {source.count(chr(10), 0, m.start()) + 1})" for m in _forbidden(source)]


def _forbidden(source: str) -> Iterable[re.Match[str]]:
    return FORBIDDEN.finditer(without_comments(source))


def read_record(text: str) -> dict[str, frozenset[str]]:
    """The record: for each theorem, the names of its axioms."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {
        name.strip(): frozenset(axioms.split()) for name, _, axioms in (line.partition(":") for line in lines if line)
    }


def write_record(assumptions: Mapping[str, frozenset[str]], version: str) -> str:
    """The record as text."""
    width = max(len(name) for name in ALLOWED)
    head = [
        "Axioms that each theorem of MeanFlow.v rests on, as Coq's `Print Assumptions` reports them.",
        f"Written by `python proofs/coq/check.py --write` with {version}.",
        "",
        *(f"{name:{width}}  {meaning}" for name, meaning in ALLOWED.items()),
    ]
    body = [f"{name}: {' '.join(sorted(axioms))}".rstrip() for name, axioms in assumptions.items()]
    return "\n".join([*(f"# {line}".rstrip() for line in head), "", *body, ""])


# ---------------------------------------------------------------- asking Coq


def coqc(file: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile one file of a folder; nothing outside the folder is written."""
    program = shutil.which("coqc")
    if program is None:
        raise _Unavailable("`coqc` is not on the PATH.")
    return subprocess.run(
        [program, "-q", file], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )


def coq_version() -> str:
    """Coq's name for itself, such as ``The Coq Proof Assistant, version 8.16.1``."""
    return coqc("--version", HERE).stdout.splitlines()[0]


def _compile(folder: Path) -> None:
    done = coqc(SOURCE, folder)
    if done.returncode == 0:
        return
    if "logical path Coquelicot" in " ".join(done.stderr.split()):
        raise _Unavailable("`coqc` is there, its library Coquelicot is not.")
    raise _Failure(f"{SOURCE} does not compile:\n{done.stderr.strip()}")


def _assumptions(groups: Mapping[str, Iterable[str]], folder: Path) -> dict[str, frozenset[str]]:
    """The axioms that each group of theorems rests on together; the folder holds the compiled ``MeanFlow.v``."""
    lines = [f"Definition group_{i} := ({', '.join(f'@{t}' for t in g)}, tt)." for i, g in enumerate(groups.values())]
    lines += [f"Print Assumptions group_{i}." for i in range(len(groups))]
    (folder / "Assumptions.v").write_text(_HEADER + "\n".join(lines), encoding="utf-8")
    done = coqc("Assumptions.v", folder)
    if done.returncode:
        raise _Failure(f"Print Assumptions failed:\n{done.stderr.strip()}")
    answers = re.split(r"^(?=Axioms:|Closed under the global context)", done.stdout, flags=re.M)[1:]
    if len(answers) != len(groups):
        raise _Failure(f"{len(answers)} answers to {len(groups)} questions:\n{done.stdout}")
    # An axiom's name starts a line; its type follows after a colon, perhaps on further, indented lines.
    found = (re.findall(r"^([\w.]+)\s*(?::|$)", answer, re.M) for answer in answers)
    return {
        name: frozenset(axiom.split(".")[-1] for axiom in axioms if axiom != "Axioms")
        for name, axioms in zip(groups, found, strict=True)
    }


# ---------------------------------------------------------------- the check


def _groups(record: Mapping[str, frozenset[str]], each: bool) -> dict[str, list[str]]:
    """Theorems by what the record says of them: three questions to Coq in the place of thirty."""
    groups: dict[str, list[str]] = {}
    for name, axioms in record.items():
        groups.setdefault(name if each else " ".join(sorted(axioms)), []).append(name)
    return groups


def _refuse_foreign(found: Mapping[str, frozenset[str]]) -> None:
    foreign = sorted({axiom for axioms in found.values() for axiom in axioms} - ALLOWED.keys())
    if foreign:
        raise _Failure(f"Theorems rest on {', '.join(foreign)}; only {', '.join(ALLOWED)} are allowed.")


def _compare(record: Mapping[str, frozenset[str]], groups: Mapping[str, list[str]], folder: Path) -> frozenset[str]:
    """Fail if any group rests on more than each of its members is recorded to rest on; return all axioms found."""
    found = _assumptions(groups, folder)
    _refuse_foreign(found)
    for label, members in groups.items():
        extra = found[label] - record[members[0]]
        if extra:
            raise _Failure(
                f"{', '.join(sorted(extra))} is used and not recorded in {RECORD}, by one of: {', '.join(members)}.\n"
                "If that is meant: python proofs/coq/check.py --write"
            )
    return frozenset().union(*found.values())


def _hold(folder: Path, each: bool, say: Callable[[str], None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    source = (folder / SOURCE).read_text(encoding="utf-8")
    names = theorem_names(source)
    if words := forbidden_words(source):
        raise _Failure(f"{SOURCE} says {', '.join(words)}.")
    record = read_record((folder / RECORD).read_text(encoding="utf-8"))
    if odd := set(names) ^ set(record):
        raise _Failure(f"{SOURCE} and {RECORD} do not list the same theorems: {', '.join(sorted(odd))}.")
    with tempfile.TemporaryDirectory(prefix="meanflow-coq-") as name:
        work = Path(name)
        shutil.copy(folder / SOURCE, work)
        say(f"compiling {SOURCE}: {len(names)} theorems")
        _compile(work)
        say("asking Coq what they rest on")
        axioms = _compare(record, _groups(record, each), work)
    return names, tuple(sorted(axioms))


def check(progress: Callable[[str], None] | None = None, *, folder: Path = HERE, each: bool = False) -> CoqResult:
    """Verdict of Coq's kernel on ``MeanFlow.v`` and on what its theorems rest on.

    Args:
        progress: Called with a line of text before each stage.
        folder: Where ``MeanFlow.v`` and ``ASSUMPTIONS.txt`` are. Compilation happens in a temporary folder.
        each: Ask about every theorem by itself; otherwise about all those with the same recorded axioms together,
            which finds any axiom too many, in a tenth of the time.

    Returns:
        The result; it never raises for a proof that fails or a Coq that is not there.

    """
    start = time.perf_counter()
    theorems: tuple[str, ...] = ()
    axioms: tuple[str, ...] = ()
    available, ok = True, False
    try:
        theorems, axioms = _hold(folder, each, progress or (lambda _: None))
        ok = True
        message = f"{len(theorems)} theorems hold, resting on {', '.join(axioms)} and nothing else."
    except _Unavailable as why:
        available = False
        message = f"Not checked: {why} To get it on Debian or Ubuntu: {INSTALL}"
    except _Failure as why:
        message = str(why)
    except subprocess.TimeoutExpired:
        message = f"coqc did not finish within {_TIMEOUT:.0f} s."
    return CoqResult(available, ok, time.perf_counter() - start, theorems, axioms, message)


def record(folder: Path = HERE) -> str:
    """Text of ``ASSUMPTIONS.txt`` as it ought to be, from one question to Coq for each theorem."""
    names = theorem_names((folder / SOURCE).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="meanflow-coq-") as name:
        work = Path(name)
        shutil.copy(folder / SOURCE, work)
        _compile(work)
        found = _assumptions({theorem: [theorem] for theorem in names}, work)
    _refuse_foreign(found)
    return write_record(found, coq_version())


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check MeanFlow.v with Coq.")
    parser.add_argument("--each", action="store_true", help="ask about each theorem by itself (half a minute)")
    parser.add_argument("--write", action="store_true", help=f"write {RECORD} afresh")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        try:
            (HERE / RECORD).write_text(record(), encoding="utf-8")
        except _Unavailable as why:
            print(f"Not written: {why} To get it on Debian or Ubuntu: {INSTALL}", file=sys.stderr)
            return 2
        except _Failure as why:
            print(why, file=sys.stderr)
            return 1
    result = check(lambda line: print(f"coq: {line} ...", flush=True), each=chosen.each)
    print(f"coq: {result.message} ({result.seconds:.1f} s)")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
