"""An oracle's files from its design: to freeze a new one, and to see that a frozen one comes out bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from meanflow_ref.errors import VectorError
from meanflow_ref.truth.golden import design_losses, design_points
from meanflow_ref.truth.golden.archive import HERE, MANIFEST, ORACLES, manifest_of, sha256, with_ids
from meanflow_ref.truth.golden.data import Case
from meanflow_ref.truth.golden.document import kind_of, text_of
from meanflow_ref.truth.golden.produce import produce

# Called with the number of finished cases and of all.
Progress = Callable[[int, int], None]


def _oracle_1() -> dict[str, list[Case]]:
    """File name -> its cases."""
    fields = ((name, design_points.field_cases(name)) for name in design_points.FILES)
    losses = ((name, design_losses.loss_cases(name)) for name in design_losses.FILES)
    return {f"{name}.json": list(cases) for name, cases in chain[tuple[str, Iterator[Case]]](fields, losses)}


# Oracle number -> its new cases, file by file.
DESIGNS: dict[int, Callable[[], dict[str, list[Case]]]] = {1: _oracle_1}


def designed(number: int) -> dict[str, list[Case]]:
    """The new cases of an oracle without outputs, with the ids that the tool gives: in order, after all older ones.

    Raises:
        VectorError: There is no design of that number.

    """
    if number not in DESIGNS:
        raise VectorError(f"oracle {number}.", f"one of {', '.join(map(str, DESIGNS))}", "write its design first")
    taken = {"fields": 0, "losses": 0}
    for n in range(1, number + 1):
        files, numbered = DESIGNS[n](), {}
        for name, cases in files.items():
            kind = kind_of(cases[0])
            named = with_ids(cases, taken[kind], kind[0].upper())
            numbered[name] = [replace(case, id=id) for id, case in named]
            taken[kind] += len(cases)
    return numbered


def regenerated(
    number: int, jobs: int = 1, cache: Path | None = None, report: Progress | None = None
) -> dict[str, bytes]:
    """Every file of the oracle's folder, the manifest last."""
    design = designed(number)
    total, before, files, counts = sum(map(len, design.values())), 0, {}, {}
    for name, cases in design.items():

        def tell(finished: int, before: int = before) -> None:
            if report is not None:
                report(before + finished, total)

        done = produce(cases, jobs, cache, tell)
        files[name], counts[name] = text_of(done, number).encode(), len(done)
        before += len(done)
    files[MANIFEST] = manifest_of(dict(files), number, counts, ORACLES.get(number - 1)).encode()
    return files


def compared(number: int, files: dict[str, bytes], folder: Path = HERE) -> list[str]:
    """Names of the files that did not come out as they are frozen, each with its first different line."""
    place, found = folder / f"oracle-{number}", []
    for name, data in files.items():
        path = place / name
        frozen = path.read_bytes() if path.is_file() else b""
        if frozen != data:
            pairs = zip(chain(frozen.split(b"\n"), [b""]), data.split(b"\n"), strict=False)
            line = next((n for n, (one, two) in enumerate(pairs, 1) if one != two), 0)
            found.append(f"{name}, line {line}")
    extra = {path.name for path in place.glob("*")} - set(files) if place.is_dir() else set()
    return found + [f"{name}, which the design does not have" for name in sorted(extra)]


def freeze(number: int, files: dict[str, bytes], folder: Path = HERE) -> str:
    """Write a new oracle's folder, whole or not at all; returns the digest to be added to ``archive.ORACLES``.

    Raises:
        VectorError: The folder exists: a frozen oracle is never written again.

    """
    place = folder / f"oracle-{number}"
    if place.exists() or (folder == HERE and number in ORACLES):
        raise VectorError(
            f"oracle {number} is frozen.",
            "a new number",
            "nothing in a frozen oracle changes: write a design for the next",
        )
    beginning = folder / f".oracle-{number}"
    beginning.mkdir()
    try:
        for name, data in files.items():
            (beginning / name).write_bytes(data)
        beginning.replace(place)
    except BaseException:
        for path in beginning.glob("*"):
            path.unlink()
        beginning.rmdir()
        raise
    return sha256(files[MANIFEST])
