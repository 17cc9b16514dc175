"""Nothing is lost: a run killed at any moment goes on bit for bit; SIGTERM checkpoints; what cannot resume says why."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console
from train_programs import KILLS, run_program, weights_file

from meanflow_ref.errors import ParameterError
from meanflow_ref.train import checkpoint
from meanflow_ref.train.config import Config
from meanflow_ref.train.presets import preset
from meanflow_ref.train.run import Run, run

QUIET = Console(quiet=True)
PARTS = ("weights", "ema", "optimizer")


def small(out: Path, **changes: object) -> Config:
    options: dict[str, object] = {"data": "gaussian", "steps": 12, "batch": 16, "width": 8, "depth": 1, "warmup": 2}
    options |= {"points": 8, "samples": 8, "measure_every": 100, "checkpoint_every": 4}
    return preset("toy", out=out, **(options | changes))


def same_weights(a: Path, b: Path, step: int) -> bool:
    return all(weights_file(a, step, part).read_bytes() == weights_file(b, step, part).read_bytes() for part in PARTS)


@pytest.mark.parametrize(("kills", "steps"), [(3, 250), pytest.param(25, 1500, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_equal(kills: int, steps: int, tmp_path: Path) -> None:
    done = run_program(KILLS, str(tmp_path), str(kills), str(steps), timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"killed {kills}" in done.stdout
    assert same_weights(tmp_path / "whole", tmp_path / "killed", steps)
    logged = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert logged == list(range(1, steps + 1)), "every step is in the log once"
    assert not list((tmp_path / "killed" / "checkpoints").glob(".partial*")), "what was half written is swept away"


@pytest.mark.parametrize("model", ["mlp", "unet"])
def test_resume_is_bit_equal_with_every_source_of_randomness(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, their dropout, an epoch's order, and dropout in the network."""
    import numpy as np

    images = np.random.default_rng(0).normal(size=(21, 1, 4, 4)).astype("f4")
    np.savez(tmp_path / "data.npz", x=images, label=np.arange(21) % 3)
    options: dict[str, object] = {"data": "array", "data_path": tmp_path / "data.npz", "model": model, "groups": 4}
    options |= {"label_dropout": 0.3, "kappa": 0.5, "dropout": 0.2 if model == "unet" else 0.0, "jvp": "func"}
    options |= {"multipliers": (1,), "two_pass": True, "steps": 6, "checkpoint_every": 3}
    run(small(tmp_path / "whole", **options), QUIET)

    class Killed(Exception):
        pass

    def die(self: Run) -> object:
        for report in reports(self):
            yield report
            if report.step == 4:
                raise Killed

    reports = Run.reports
    with monkeypatch.context() as patch:
        patch.setattr(Run, "reports", die)
        with pytest.raises(Killed):
            run(small(tmp_path / "resumed", **options), QUIET)
    summary = run(small(tmp_path / "resumed", resume=True, **options), QUIET)
    assert summary["resumed_at"] == 3
    assert same_weights(tmp_path / "whole", tmp_path / "resumed", 6)


def test_sigterm_checkpoints_and_exits_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meanflow_ref.train import __main__ as command

    reports = Run.reports

    def terminated(self: Run) -> object:
        for report in reports(self):
            if report.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield report

    out = tmp_path / "run"
    options = [
        "--steps",
        "12",
        "--batch",
        "16",
        "--width",
        "8",
        "--points",
        "8",
        "--samples",
        "8",
        "--data",
        "gaussian",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "reports", terminated)
        assert command.main(["toy", "--out", str(out), *options]) == 0
    assert checkpoint.list_steps(out / "checkpoints") == [5]
    assert not (out / "summary.json").exists(), "nothing is judged when the machine is wanted back"
    assert command.main(["toy", "--out", str(out), "--resume", *options]) == 0
    assert command.main(["toy", "--out", str(tmp_path / "whole"), *options]) == 0
    assert same_weights(tmp_path / "whole", out, 12)


def test_a_checkpoint_of_another_config_is_refused_with_nothing_lost(tmp_path: Path) -> None:
    run(small(tmp_path / "run"), QUIET)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ParameterError, match=r"--learning-rate 0.5 \(it has 0.002\)"):
        run(small(tmp_path / "run", resume=True, learning_rate=0.5), QUIET)
    with pytest.raises(ParameterError, match="--width 16"):
        run(small(tmp_path / "run", resume=True, width=16), QUIET)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_a_run_can_be_resumed_after_its_end_and_for_longer_watching(tmp_path: Path) -> None:
    run(small(tmp_path / "run"), QUIET)
    summary = run(small(tmp_path / "run", resume=True, samples=16), QUIET)
    assert (summary["status"], summary["resumed_at"], summary["steps"]) == ("done", 12, 12)
    assert summary["samples"]["n"] == 16


def test_a_corrupt_newest_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path) -> None:
    run(small(tmp_path / "whole"), QUIET)
    run(small(tmp_path / "run"), QUIET)
    path = weights_file(tmp_path / "run", 12)
    path.write_bytes(path.read_bytes()[:-1])
    console = Console(record=True, width=300, file=open(os.devnull, "w"))  # noqa: SIM115
    summary = run(small(tmp_path / "run", resume=True), console)
    console.file.close()
    assert "weights.safetensors is not what was written" in console.export_text()
    assert summary["resumed_at"] == 8
    assert same_weights(tmp_path / "whole", tmp_path / "run", 12)
