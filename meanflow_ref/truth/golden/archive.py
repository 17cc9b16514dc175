"""The frozen oracles: folders of files, each with a manifest of SHA-256 digests, and the one way to read them.

An oracle's number is apart from the package's version. Oracle N is everything in the folders ``oracle-1`` to
``oracle-N``; a new one adds a folder, whose manifest names the digest of the manifest before, and nothing in an older
folder changes. The digest of each manifest is written down here: it is what a paper cites.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from meanflow_ref.errors import VectorError
from meanflow_ref.truth.golden.data import Case, FieldCase, LossCase
from meanflow_ref.truth.golden.document import cases_of

HERE = Path(__file__).parent
MANIFEST, MANIFEST_SCHEMA = "manifest.json", "meanflow-ref/golden-manifest/1"
# Oracle number -> SHA-256 of its manifest. An entry is added with its folder and never changed.
ORACLES: dict[int, str] = {1: "163780d1a2b7ce8eb588f9c9998d22757f63aa5894748db294ad85cce56f4e6b"}
_REINSTALL = "reinstall meanflow-ref, or restore the folder from version control; never edit a frozen file"


def latest() -> int:
    """The number of the newest oracle."""
    return max(ORACLES)


@dataclass(frozen=True)
class Oracle:
    """All cases of one oracle, in the order of their ids.

    Attributes:
        number: What a paper cites, with the digest.
        digest: SHA-256 of the newest manifest, which names all files and the manifest before.
        cases: Field cases, then loss cases, file by file.
        files: File name of each case's id.

    """

    number: int
    digest: str
    cases: tuple[Case, ...]
    files: dict[str, str]

    @property
    def fields(self) -> tuple[FieldCase, ...]:
        """Cases of average velocities."""
        return tuple(case for case in self.cases if isinstance(case, FieldCase))

    @property
    def losses(self) -> tuple[LossCase, ...]:
        """Cases of loss targets."""
        return tuple(case for case in self.cases if isinstance(case, LossCase))

    def __getitem__(self, id: str) -> Case:
        for case in self.cases:
            if case.id == id:
                return case
        raise KeyError(f"no case {id!r} in oracle {self.number}; ids run from {self.cases[0].id} on")


def load(oracle: int | None = None, folder: Path = HERE) -> Oracle:
    """The golden vectors of an oracle, every file checked against its digest before it is read.

    Args:
        oracle: Its number; by default the newest that this version knows.
        folder: Where the folders ``oracle-N`` lie; by default those of the installed package.

    Raises:
        VectorError: An unknown number, a missing or truncated file, a digest that does not match, an unknown schema.

    """
    number = latest() if oracle is None else oracle
    if number not in ORACLES:
        known = ", ".join(map(str, sorted(ORACLES)))
        raise VectorError(f"oracle {number!r}.", f"one of {known}", "update meanflow-ref for a newer oracle")
    return _load(number, folder)


@lru_cache(maxsize=4)
def _load(number: int, folder: Path) -> Oracle:
    cases: list[Case] = []
    files: dict[str, str] = {}
    for n in range(1, number + 1):
        for name, text in texts(n, folder).items():
            found = cases_of(text, f"oracle-{n}/{name}")
            cases += found
            files.update((case.id, name) for case in found)
    return Oracle(number, ORACLES[number], tuple(cases), files)


def texts(number: int, folder: Path = HERE, digest: str | None = None) -> dict[str, str]:
    """The files of one folder by name, checked against its manifest, and the manifest against its digest.

    Raises:
        VectorError: A file is missing, truncated, altered, or of another schema.

    """
    place = folder / f"oracle-{number}"
    raw = _read(place / MANIFEST)
    _compare(f"oracle-{number}/{MANIFEST}", raw, ORACLES[number] if digest is None else digest, None)
    manifest = _manifest(raw, f"oracle-{number}/{MANIFEST}")
    found = {}
    for name, entry in manifest["files"].items():
        data = _read(place / name)
        _compare(f"oracle-{number}/{name}", data, entry["sha256"], entry["bytes"])
        found[name] = data.decode()
    return found


def manifest_of(files: dict[str, bytes], number: int, cases: dict[str, int], previous: str | None) -> str:
    """The manifest of an oracle's files."""
    entries = {name: {"sha256": sha256(data), "bytes": len(data), "cases": cases[name]} for name, data in files.items()}
    document = {"schema": MANIFEST_SCHEMA, "oracle": number, "previous": previous, "files": entries}
    return json.dumps(document, indent=1) + "\n"


def sha256(data: bytes) -> str:
    """The digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def with_ids(cases: Sequence[Case], taken: int, letter: str) -> Iterator[tuple[str, Case]]:
    """Ids for new cases, from the first number that is not taken."""
    for n, case in enumerate(cases, taken + 1):
        yield f"{letter}{n:04d}", case


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VectorError(
            f"{path.parent.name}/{path.name} cannot be read ({error.strerror}).",
            "every file of the manifest",
            _REINSTALL,
        ) from error


def _compare(where: str, data: bytes, digest: str, size: int | None) -> None:
    """Raise unless the data are those of the digest."""
    if size is not None and len(data) < size:
        raise VectorError(f"{where} has {len(data)} bytes and is truncated.", f"{size} bytes", _REINSTALL)
    if sha256(data) != digest:
        raise VectorError(f"{where} has the SHA-256 {sha256(data)}.", digest, _REINSTALL)


def _manifest(raw: bytes, where: str) -> dict[str, Any]:
    """The manifest, if it is one that this version reads."""
    try:
        document: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise VectorError(f"{where} is not JSON: {error}.", "a whole file", _REINSTALL) from error
    if document.get("schema") != MANIFEST_SCHEMA:
        raise VectorError(
            f"{where} has the schema {document.get('schema')!r}.", MANIFEST_SCHEMA, "update meanflow-ref to read it"
        )
    return document
