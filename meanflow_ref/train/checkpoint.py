"""Checkpoints: whole or not there at all, readable without running anybody's code.

A checkpoint is a folder ``step-00001000`` with ``weights``, ``ema`` and ``optimizer`` as safetensors and
``state.json``: the step, the data position, the recent gradient norms, the random state, and the SHA-256 of each file.
It is written under a name that begins with a dot, flushed to the disk, and then renamed: a process that dies at any
moment leaves the last checkpoint and a dotted folder that the next start sweeps away. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from meanflow_ref.errors import MissingExtraError, ParameterError
from meanflow_ref.train.config import FORMAT

TENSOR_FILES = ("weights", "ema", "optimizer", "random")
_PREFIX, _PARTIAL = "step-", ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """What is in a checkpoint: tensors by file and name, and numbers."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint under ``folder``, and then remove all but the newest ``keep``.

    Raises:
        OSError: If the disk is full or cannot be written; the earlier checkpoints are all still there.

    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{_PREFIX}{checkpoint.step:08d}"
    partial = folder / f"{_PARTIAL}{name}-{os.getpid()}"
    try:
        partial.mkdir()
        hashes = {}
        for part, tensors in checkpoint.tensors.items():
            data = dump_tensors(tensors)
            _write(partial / f"{part}.safetensors", data)
            hashes[part] = hashlib.sha256(data).hexdigest()
        state = {"format": FORMAT, "step": checkpoint.step, "sha256": hashes, **checkpoint.numbers}
        _write(partial / "state.json", json.dumps(state, indent=1).encode())
        _flush_folder(partial)
        if (folder / name).exists():
            shutil.rmtree(folder / name)
        partial.rename(folder / name)
        _flush_folder(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in list_steps(folder)[:-keep]:
        shutil.rmtree(_path(folder, old), ignore_errors=True)
    return folder / name


def load(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        ParameterError: If it is of another version, or a file is missing or not as it was written.

    """
    try:
        state = json.loads((path / "state.json").read_text())
        hashes = state.pop("sha256")
        found = state.pop("format")
        step = state.pop("step")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, f"state.json: {error}") from error
    if found != FORMAT:
        raise ParameterError(
            f"{path} has format {found}.", f"format {FORMAT}", "train with the version of meanflow-ref that wrote it"
        )
    tensors = {}
    for part, expected in hashes.items():
        file = path / f"{part}.safetensors"
        try:
            data = file.read_bytes()
        except OSError as error:
            raise _corrupt(path, f"{file.name}: {error}") from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise _corrupt(path, f"{file.name} is not what was written")
        tensors[part] = parse_tensors(data, file)
    return Checkpoint(step, tensors, state)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint under ``folder``, and what was wrong with newer ones.

    Raises:
        ParameterError: If there are checkpoints and none is sound.

    """
    complaints: list[str] = []
    for step in reversed(list_steps(folder)):
        try:
            return load(_path(folder, step)), complaints
        except ParameterError as error:
            if "format" in error.seen:
                raise
            complaints.append(error.seen)
    if complaints:
        raise ParameterError(
            f"no sound checkpoint in {folder}: {' '.join(complaints)}",
            "one whole checkpoint",
            "start again: --overwrite",
        )
    return None, complaints


def list_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints under ``folder``, oldest first; partial ones have another name."""
    names = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())


def sweep(folder: Path) -> None:
    """Remove what a process that died in the middle of a write left behind."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def dump_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    save_bytes, _ = _safetensors()
    # Tied or strided tensors have no place in the format: each gets memory of its own.
    data: bytes = save_bytes({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()})
    return data


def parse_tensors(data: bytes, file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file's bytes.

    Raises:
        ParameterError: If they are not such a file.

    """
    _, load_bytes = _safetensors()
    from safetensors import SafetensorError

    try:
        tensors: dict[str, Tensor] = load_bytes(data)
    except SafetensorError as error:
        raise ParameterError(
            f"{file} is no whole safetensors file: {error}.", "a file as it was written", ""
        ) from error
    return tensors


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file."""
    return parse_tensors(file.read_bytes(), file)


def _safetensors() -> tuple[Any, Any]:
    try:
        from safetensors.torch import load, save
    except ImportError as missing:
        raise MissingExtraError("safetensors", "train", "Checkpoints") from missing
    return save, load


def _path(folder: Path, step: int) -> Path:
    return folder / f"{_PREFIX}{step:08d}"


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Make names in a folder survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _corrupt(path: Path, why: str) -> ParameterError:
    return ParameterError(f"{path} is not whole: {why}.", "a checkpoint as it was written", "resume from an older one")
