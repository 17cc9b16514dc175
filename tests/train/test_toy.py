"""A short run whole: what it learns, what it writes, how it is stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console

from meanflow_ref.errors import ParameterError
from meanflow_ref.train import __main__ as command
from meanflow_ref.train.config import ToyConfig
from meanflow_ref.train.metrics import random_points, velocity_error
from meanflow_ref.train.toy import FILES, Toy, ring

SMALL = ["--steps", "200", "--batch", "256", "--width", "48", "--points", "200", "--samples", "300", "--warmup", "20"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "deep" / "toy"
    assert command.main(["toy", "--out", str(out), *SMALL]) == 0
    return out


def test_it_learns(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    # Seeds 0 to 3 leave shares of 0.31 to 0.42 and 0.56 to 0.73 after 200 steps; an untrained network has about 1.
    assert summary["u_error"] < 0.5 * summary["u_size"]
    assert summary["one_step_error"] < 0.85 * summary["one_step_size"]
    assert summary["steps"] == 200
    assert summary["interrupted"] is False


def test_it_writes_everything_whole(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == set(FILES)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 201))
    measured = [line for line in lines if "u_error" in line]
    assert len(measured) == 20
    assert measured[-1]["u_error"] == json.loads((run / "summary.json").read_text())["u_error"]
    for name in ("samples.png", "curves.png"):
        assert (run / name).read_bytes().startswith(PNG)
    config = json.loads((run / "config.json").read_text())
    assert config["steps"] == 200
    assert config["device"] in ("cpu", "cuda")  # resolved, never "auto"
    assert config["torch"] == torch.__version__


def test_a_run_is_not_overwritten_unless_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert command.main(["toy", "--out", str(run), "--steps", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in run.iterdir()}


def test_the_same_seed_is_the_same_run(tmp_path: Path) -> None:
    def losses(seed: int) -> list[float]:
        toy = Toy(ToyConfig(out=tmp_path / "none", steps=5, batch=32, width=16, seed=seed))
        return [report.loss for report in toy.reports()]

    state = torch.random.get_rng_state()
    assert losses(3) == losses(3)
    assert losses(3) != losses(4)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    assert not (tmp_path / "none").exists(), "nothing is written before run()"


def test_an_interrupt_ends_the_run_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Toy.reports

    def interrupted(self: Toy) -> object:
        for report in reports(self):
            if report.step == 7:
                os.kill(os.getpid(), signal.SIGINT)
            yield report

    monkeypatch.setattr(Toy, "reports", interrupted)
    out = tmp_path / "toy"
    assert command.main(["toy", "--out", str(out), *SMALL]) == 130
    assert {path.name for path in out.iterdir()} == set(FILES)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["interrupted"]) == (7, True)
    assert len((out / "log.jsonl").read_text().splitlines()) == 7


def test_divergence_is_said_and_what_was_logged_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Toy, "loss", lambda self, net, batch: next(net.parameters()).sum() * float("inf"))
    out = tmp_path / "toy"
    assert command.main(["toy", "--out", str(out), *SMALL]) == 1
    assert "diverged: step 1" in capsys.readouterr().err
    assert (out / "log.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--equal", "2"], "--equal is 2.0"),
        (["--steps", "many"], "steps"),
        (["--no-such-option", "1"], "no-such-option"),
        (["--jvp", "magic"], "magic"),
    ],
)
def test_a_bad_option_is_named_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "toy"
    try:
        code: object = command.main(["toy", "--out", str(out), *arguments])
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err + printed.out
    assert not out.exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "toy").write_text("mine")
    with pytest.raises(ParameterError, match="is a file"):
        Toy(ToyConfig(out=tmp_path / "toy"))
    with pytest.raises(ParameterError, match="no permission"):
        Toy(ToyConfig(out=tmp_path / "toy" / "below"))


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["tyo"], 2)])
def test_commands_are_listed(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == code
    printed = capsys.readouterr()
    assert "toy" in printed.out + printed.err
    if arguments == ["tyo"]:
        assert "Did you mean `toy`" in printed.err


def test_without_tyro_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert command.main(["toy"]) == 2
    assert "meanflow-ref[train]" in capsys.readouterr().err


def test_the_marginal_velocity_is_the_mean_of_the_conditional_one(tmp_path: Path) -> None:
    """At r = t the losses of one batch and network differ by the trace of Cov(v_t | z), in the mean."""

    def first_loss(velocity: Literal["conditional", "marginal"]) -> float:
        toy = Toy(ToyConfig(out=tmp_path / "none", batch=16384, width=16, equal=1.0, velocity=velocity))
        return next(toy.reports()).loss

    conditional, marginal = first_loss("conditional"), first_loss("marginal")
    toy = Toy(ToyConfig(out=tmp_path / "none", batch=16384, equal=1.0))
    x, eps, _, t = (part.double() for part in toy.draw())
    variance = toy.field.velocity_covariance((1 - t)[:, None] * x + t[:, None] * eps, t).diagonal(dim1=-2, dim2=-1)
    # The difference of a row has a standard deviation of about its mean: 1 % for 16384 rows, five of them.
    assert conditional - marginal == pytest.approx(float(variance.sum(-1).mean()), rel=0.05)


def test_the_ring_has_its_modes_where_they_belong() -> None:
    field = ring(4, 2.0, 0.1)
    torch.testing.assert_close(
        field.means,
        torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]], dtype=torch.float64),
        rtol=0,
        atol=1e-15,
    )


@pytest.mark.slow
def test_the_default_run_comes_near_the_truth(tmp_path: Path) -> None:
    """About a minute. The bounds are twice what the default reaches; samples hide in the noise of perfect ones."""
    toy = Toy(ToyConfig(out=tmp_path / "toy"))
    summary = toy.run(Console(quiet=True))
    assert summary.u_error < 0.04
    assert summary.one_step_error < 0.035
    assert summary.energy < summary.energy_floor


def test_an_untrained_network_has_the_error_that_training_removes(generator: torch.Generator, tmp_path: Path) -> None:
    toy = Toy(ToyConfig(out=tmp_path / "toy", width=48))
    points = random_points(toy.field, 200, generator)
    assert velocity_error(toy.average, points) > 0.8 * float(points.u.square().sum(-1).mean())
