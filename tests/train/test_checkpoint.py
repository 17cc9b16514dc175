"""Checkpoints: whole or absent, on a full disk, a read-only disk and a broken one; and never a pickle."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from meanflow_ref.errors import ParameterError
from meanflow_ref.train import checkpoint
from meanflow_ref.train.checkpoint import Checkpoint, list_steps, load, load_newest, save, sweep

TENSORS = {"weights": {"a": torch.arange(6.0).reshape(2, 3)}, "random": {"cpu": torch.arange(5, dtype=torch.uint8)}}


def of_step(step: int) -> Checkpoint:
    return Checkpoint(step, TENSORS, {"position": 10 * step, "norms": [0.1 + 0.2, 1e-300]})


def test_what_goes_in_comes_out_bit_for_bit(tmp_path: Path) -> None:
    found = load(save(tmp_path, of_step(3), keep=2))
    assert (found.step, found.numbers) == (3, {"position": 30, "norms": [0.1 + 0.2, 1e-300]})
    for part, tensors in TENSORS.items():
        for name, x in tensors.items():
            assert torch.equal(found.tensors[part][name], x)
            assert found.tensors[part][name].dtype == x.dtype


def test_tied_and_strided_tensors_are_stored(tmp_path: Path) -> None:
    a = torch.arange(6.0).reshape(2, 3)
    found = load(save(tmp_path, Checkpoint(1, {"weights": {"a": a, "same": a, "turned": a.T}}, {}), keep=1))
    assert torch.equal(found.tensors["weights"]["turned"], a.T)


def test_the_last_k_stay(tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        save(tmp_path, of_step(step), keep=2)
    assert list_steps(tmp_path) == [10, 11]


@pytest.mark.parametrize("call", range(5))
def test_a_full_disk_at_any_write_leaves_the_last_checkpoint_and_nothing_else(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, of_step(1), keep=1)
    calls = 0
    real = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > call:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            save(tmp_path, of_step(2), keep=1)
    # Only the last of the calls comes after the rename: by then the new checkpoint is whole.
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == (["step-00000001"] if call < 4 else ["step-00000001", "step-00000002"])
    found, complaints = load_newest(tmp_path)
    assert found is not None
    assert complaints == []


def test_a_read_only_disk_is_an_error_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, of_step(1), keep=1)

    def read_only(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        with pytest.raises(OSError, match="Read-only"):
            save(tmp_path, of_step(2), keep=1)
    assert list_steps(tmp_path) == [1]


def test_half_a_checkpoint_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = save(tmp_path, of_step(1), keep=1)
    partial = tmp_path / ".partial-step-00000002-1"
    path.rename(partial)
    assert load_newest(tmp_path) == (None, [])
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


BREAKAGES = {
    "cut": lambda path: (path / "weights.safetensors").write_bytes((path / "weights.safetensors").read_bytes()[:-1]),
    "flipped": lambda path: (path / "weights.safetensors").write_bytes(
        (path / "weights.safetensors").read_bytes()[:-1] + b"\x7f"
    ),
    "lost": lambda path: (path / "random.safetensors").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "half a state": lambda path: (path / "state.json").write_text((path / "state.json").read_text()[:40]),
    "a list": lambda path: (path / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_checkpoint_is_refused_and_an_older_one_found(breakage: str, tmp_path: Path) -> None:
    save(tmp_path, of_step(1), keep=9)
    path = save(tmp_path, of_step(2), keep=9)
    BREAKAGES[breakage](path)
    with pytest.raises(ParameterError, match="not whole"):
        load(path)
    found, complaints = load_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert len(complaints) == 1
    BREAKAGES[breakage](tmp_path / "step-00000001")
    with pytest.raises(ParameterError, match="no sound checkpoint"):
        load_newest(tmp_path)


def test_another_version_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, of_step(1), keep=1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(ParameterError, match="format 99"):
        load_newest(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = save(tmp_path, of_step(1), keep=1)
    (path / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    # Even with the right hash it is not a safetensors file.
    import hashlib

    state = json.loads((path / "state.json").read_text())
    state["sha256"]["weights"] = hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest()
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ParameterError, match="safetensors"):
        load(path)
    assert not (tmp_path / "exploded").exists()
    monkeypatch.setattr("torch.load", lambda *args, **kwargs: pytest.fail("torch.load unpickles"))
    with pytest.raises(ParameterError):
        checkpoint.load_newest(tmp_path)
