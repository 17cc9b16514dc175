"""A short run whole, from the command line: what it learns, what it writes, how it is stopped, what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from meanflow_ref import cli
from meanflow_ref.errors import ParameterError
from meanflow_ref.train import __main__ as command
from meanflow_ref.train.checkpoint import load_tensors
from meanflow_ref.train.compare import WINDOWS, compare, make_band
from meanflow_ref.train.presets import preset
from meanflow_ref.train.run import FILES, Run, run
from meanflow_ref.train.watch import read_log

SMALL = ["--steps", "200", "--batch", "256", "--width", "48", "--points", "200", "--samples", "300", "--warmup", "20"]
PNG = b"\x89PNG\r\n\x1a\n"
QUIET = Console(quiet=True)
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "training"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "deep" / "toy"
    assert command.main(["toy", "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    small = ["--steps", "60", "--width", "64", "--depth", "2", "--samples", "100", "--warmup", "10"]
    assert command.main(["digits", "--out", str(out), *small, "--ema", "0.9"]) == 0
    return out


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_it_learns_and_says_how_well(toy: Path) -> None:
    summary = summary_of(toy)
    # 200 steps leave shares of 0.3 to 0.5 and 0.5 to 0.8; an untrained network has about 1.
    for name, share in (("anywhere", 0.6), ("one_step", 0.9)):
        row = summary["u"][name]
        assert 0 < row["error"]["low"] < row["error"]["value"] < row["error"]["high"]
        assert row["error"]["value"] < share * row["size"]
    assert summary["u"]["identity"]["square"]["value"] > 0
    assert summary["u"]["semigroup"]["square"]["value"] > 0
    assert (summary["status"], summary["steps"], summary["ranks"]) == ("done", 200, 1)
    samples = summary["samples"]
    assert set(samples["ways"]) == {"1", "2", "4", "euler-100"}
    assert set(samples["floor"]) == {"energy", "mmd"}
    # The raw loss at the end is above the floor, by what is left to learn.
    last = read_log(toy / "log.jsonl")[-20:]
    raw = sum(line["raw_loss"] for line in last) / 20
    assert summary["loss_floor"]["low"] - 0.5 < raw < 2 * summary["loss_floor"]["high"]


def test_it_writes_everything_whole(toy: Path) -> None:
    assert {path.name for path in toy.iterdir()} == set(FILES) - {"trouble"}
    lines = read_log(toy / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 201))
    expected = {
        "loss",
        "raw_loss",
        "equal_loss",
        "tangent_ratio",
        "gradient_norm",
        "learning_rate",
        "skipped",
        "seconds",
    }
    assert expected <= set(lines[0])
    assert set(lines[0]["seconds"]) == {"data", "forward", "backward", "update"}
    measured = [line for line in lines if "u_error" in line]
    assert len(measured) == 20
    assert measured[-1]["u_error"] == summary_of(toy)["u"]["anywhere"]["error"]["value"]
    assert set(measured[0]["split"]) == {"forward", "jvp", "backward"}
    assert measured[0]["peak_bytes"] > 1e6
    assert measured[0]["rounding_du_dt"] < 1e-3
    for name in ("samples.png", "curves.png", "trajectories.png"):
        assert (toy / name).read_bytes().startswith(PNG)
    resolved = json.loads((toy / "config.json").read_text())
    assert resolved["config"]["steps"] == 200
    assert resolved["device"] in ("cpu", "cuda")  # resolved, never "auto"
    assert resolved["torch"] == torch.__version__


def test_measuring_does_not_change_the_run(tmp_path: Path) -> None:
    weights = []
    for every in (1, 100):
        out = tmp_path / str(every)
        options = {"steps": 4, "batch": 8, "width": 8, "points": 4, "samples": 4, "warmup": 1, "measure_every": every}
        run(preset("toy", data="gaussian", out=out, **options), QUIET)
        weights.append((out / "checkpoints" / "step-00000004" / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_run_is_not_overwritten_unless_told(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    assert command.main(["toy", "--out", str(toy), "--steps", "1"]) == 2
    assert "--resume to go on, --overwrite to replace" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in toy.rglob("*")}


def test_an_interrupt_ends_the_run_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Run.reports

    def interrupted(self: Run) -> object:
        for report in reports(self):
            if report.step == 7:
                os.kill(os.getpid(), signal.SIGINT)
            yield report

    monkeypatch.setattr(Run, "reports", interrupted)
    out = tmp_path / "toy"
    assert command.main(["toy", "--out", str(out), *SMALL, "--data", "line"]) == 130
    summary = summary_of(out)
    assert (summary["steps"], summary["status"]) == (7, "interrupted")
    assert len(read_log(out / "log.jsonl")) == 7
    # On the line Wasserstein-2 is exact, and seven steps are not enough.
    assert summary["samples"]["ways"]["1"]["wasserstein2"] > summary["samples"]["floor"]["wasserstein2"] > 0


def test_divergence_is_said_and_what_was_logged_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy"
    wild = ["--learning-rate", "1e30", "--warmup", "0", "--data", "gaussian"]
    assert command.main(["toy", "--out", str(out), *SMALL, *wild]) == 1
    said = capsys.readouterr().err
    assert "diverged: step" in said
    assert "The weights are those of the step before." in said
    assert list((out / "trouble").iterdir())
    assert read_log(out / "log.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--equal", "2"], "--equal is 2.0"),
        (["--steps", "many"], "steps"),
        (["--no-such-option", "1"], "no-such-option"),
        (["--learning-rat", "1"], "--learning-rate"),
        (["--jvp", "magic"], "magic"),
        (["--data", "rnig"], "--data ring"),
        (["--precision", "fp16"], "65504"),
        (["--model", "dit"], "--model mlp"),
        (["--init", "nowhere.safetensors"], "no such file"),
        (["--accumulate", "3"], "--batch 512"),
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


def test_a_file_in_the_way_and_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy").write_text("mine")
    with pytest.raises(ParameterError, match="is a file"):
        run(preset("toy", out=tmp_path / "toy"), QUIET)
    with pytest.raises(ParameterError, match="no permission"):
        run(preset("toy", out=tmp_path / "toy" / "below"), QUIET)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ParameterError, match="no permission to write"):
        run(preset("toy", out=tmp_path / "new"), QUIET)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["tyo"], 2)])
def test_commands_are_listed(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == code
    printed = capsys.readouterr()
    assert "toy" in printed.out + printed.err
    assert ("`toy`" in printed.err) == (arguments == ["tyo"])


def test_the_command_line_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["imagenet-b4", "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--learning-rate", "--weight-power", "--label-dropout", "--on-trouble"):
        assert option in text


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert command.main(["toy"]) == 2
    assert "meanflow-ref[train]" in capsys.readouterr().err


def test_pretraining_and_fine_tuning(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": "gaussian", "steps": 60, "batch": 512, "width": 16, "points": 16, "samples": 32}
    options |= {"warmup": 1, "learning_rate": 0.01, "measure_every": 60}
    run(preset("toy", out=tmp_path / "flow", objective="flow-matching", **options), QUIET)
    weights = tmp_path / "flow" / "checkpoints" / "step-00000060" / "weights.safetensors"
    run(preset("toy", out=tmp_path / "tuned", init=weights, **(options | {"steps": 1})), QUIET)
    run(preset("toy", out=tmp_path / "fresh", **(options | {"steps": 1})), QUIET)
    # The last weights, not the average, so that the loss itself can be followed across.
    end = read_log(tmp_path / "flow" / "log.jsonl")[-1]["equal_loss"]
    first = {name: read_log(tmp_path / name / "log.jsonl")[0]["equal_loss"] for name in ("tuned", "fresh")}
    # It begins where flow matching ended (on another batch) and not where a fresh network begins.
    assert abs(first["tuned"] - end) < 0.5 * abs(first["fresh"] - end)


def test_images_in_bf16_with_guidance_and_dropout(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3)).astype("u1")
    np.savez(tmp_path / "data.npz", x=images, label=np.arange(12) % 2)
    options: dict[str, Any] = {"data": "array", "data_path": tmp_path / "data.npz", "steps": 3, "batch": 4, "depth": 1}
    options |= {
        "width": 8,
        "multipliers": (1, 2),
        "samples": 8,
        "warmup": 1,
        "dropout": 0.1,
        "omega": 1.0,
        "kappa": 0.5,
    }
    summary = run(preset("images", out=tmp_path / "run", **options), QUIET)
    assert summary["samples"]["n"] == 8
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(PNG)
    line = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert 1e-4 < line["rounding_u"] < 0.1
    assert line["rounding_du_dt"] < 1e-4


def test_compiled_is_eager(tmp_path: Path) -> None:
    losses = []
    compile_ = torch.nn.Module.compile
    for compiled in (False, True):
        torch._dynamo.reset()
        options: dict[str, Any] = {
            "steps": 2,
            "batch": 8,
            "width": 8,
            "depth": 1,
            "points": 4,
            "samples": 4,
            "warmup": 1,
        }
        config = preset("toy", data="gaussian", jvp="func", compile=compiled, out=tmp_path / str(compiled), **options)
        with pytest.MonkeyPatch.context() as patch:
            # Without the C++ compiler of the default backend: what is traced is the same.
            patch.setattr(torch.nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
            run(config, QUIET)
        losses.append([line["loss"] for line in read_log(tmp_path / str(compiled) / "log.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_tensorboard(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 2, "batch": 8, "width": 8, "points": 4, "samples": 4, "warmup": 1}
    run(preset("toy", data="gaussian", tensorboard=True, out=tmp_path / "run", **options), QUIET)
    assert [path for path in (tmp_path / "run" / "tensorboard").iterdir() if path.stat().st_size > 100]


# ---------------------------------------------------------------- meanflow-ref sample


def test_samples_of_a_class_on_a_grid_and_as_data(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summary_of(digits)["classes"]["classifier_on_held_out_data"] > 0.95
    grid, data = tmp_path / "grid.png", tmp_path / "x.safetensors"
    options = ["sample", str(digits), "--n", "16", "--label", "3"]
    assert cli.main([*options, "--out", str(grid)]) == 0
    assert "16 samples of step 60, 1 evaluation each" in capsys.readouterr().out
    assert grid.read_bytes().startswith(PNG)
    assert cli.main([*options, "--out", str(data)]) == 0
    x = load_tensors(data)["x"]
    assert x.shape == (16, 64)
    assert cli.main([*options, "--steps", "2", "--out", str(tmp_path / "x.npy")]) == 0
    assert not np.allclose(np.load(tmp_path / "x.npy"), x.numpy())
    assert cli.main(["sample", str(digits), "--n", "16", "--label", "4", "--out", str(data)]) == 0
    assert not torch.equal(load_tensors(data)["x"], x)


def test_a_step_is_one_evaluation(digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from meanflow_ref.models import MLP

    calls = []
    forward = MLP.forward

    def counted(self: MLP, *args: Any) -> Any:
        calls.append(args)
        return forward(self, *args)

    monkeypatch.setattr(MLP, "forward", counted)
    for steps in (1, 3):
        calls.clear()
        assert (
            cli.main(["sample", str(digits), "--n", "4", "--steps", str(steps), "--out", str(tmp_path / "x.png")]) == 0
        )
        assert len(calls) == steps, "a guided run needs no null pass"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "10"], "a class from 0 to 9"),
        (["--n", "0"], "--n is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--out", "x.gif"], ".png, .npy or .safetensors"),
        (["--out", "missing/x.png"], "mkdir -p"),
        (["--device", "nowhere"], "--device nowhere"),
    ],
)
def test_sampling_refuses_what_it_cannot(
    options: list[str], message: str, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", str(digits), *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sampling_from_what_is_no_run(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert cli.main(["sample", str(toy), "--label", "1", "--out", str(tmp_path / "x.png")]) == 2
    assert "without classes" in capsys.readouterr().err


# ---------------------------------------------------------------- train --compare


def synthetic(seed: int, factor: float = 1.0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(600, generator=generator).tolist()
    return [
        {"step": i + 1, "raw_loss": factor * (3 + 2 * math.exp(-i / 100)) * math.exp(0.3 * x)}
        for i, x in enumerate(noise)
    ]


def test_a_run_like_the_references_is_inside_and_another_is_not() -> None:
    band = make_band([synthetic(seed) for seed in range(6)], 600, {})
    assert band["quantities"].keys() == {"raw_loss"}
    # 1 % of right runs are outside: among 40 more than four are once in 1e4 sets of seeds.
    outside = sum(not all(row[5] for row in compare(synthetic(100 + k), band)) for k in range(40))
    assert outside <= 4
    rows = compare(synthetic(7, factor=2.0), band)
    assert len(rows) == WINDOWS
    assert not any(row[5] for row in rows)
    # A log of half a run is compared as far as it goes.
    assert len(compare(synthetic(8)[:300], band)) == WINDOWS // 2


def test_the_committed_band_knows_its_own(tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The toy of this file has another width and batch: it is told so, line by line.
    code = command.main(["--compare", str(toy / "log.jsonl"), "--band", "toy"])
    printed = capsys.readouterr().out
    assert "raw_loss" in printed
    assert ("INSIDE" in printed) == (code == 0)
    (tmp_path / "theirs.jsonl").write_text('{"iteration": 1, "loss": 2}\nnot json\n')
    assert command.main(["--compare", str(tmp_path / "theirs.jsonl")]) == 2
    assert "nothing in common" in capsys.readouterr().err
    assert command.main(["--compare", str(tmp_path / "no.jsonl")]) == 2
    assert command.main(["--compare", str(tmp_path / "theirs.jsonl"), "--band", "tyo"]) == 2
    assert "no band" in capsys.readouterr().err


def test_bands_are_made_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meanflow_ref.train import presets

    tiny = preset("toy", data="gaussian", batch=16, width=8, depth=1, points=8, samples=8, warmup=2)
    monkeypatch.setitem(presets.PRESETS, "tiny", (tiny, ""))
    arguments = ["bands", "tiny", "--seeds", "3", "--steps", "24", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    band = json.loads((tmp_path / "tiny.json").read_text())
    assert (band["seeds"], band["steps"]) == (3, 24)
    assert (
        command.main(["--compare", str(tmp_path / "tiny-1" / "log.jsonl"), "--band", str(tmp_path / "tiny.json")]) == 0
    )


# ---------------------------------------------------------------- the wrong recipe


def test_the_published_derivative_is_right_in_one_dimension_alone() -> None:
    from meanflow_ref.models import MLP
    from meanflow_ref.train.recipes import summed_gradient

    for dim, right in ((1, True), (2, False)):
        torch.manual_seed(0)
        net = MLP(dim, 16, 2).double()
        z, v = torch.randn(2, 8, dim, dtype=torch.float64)
        r, t = torch.rand(2, 8, dtype=torch.float64)
        _, theirs = summed_gradient(net, z, r, t, v)
        _, exact = torch.func.jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))  # type: ignore[misc]
        assert torch.allclose(theirs, exact, atol=1e-10) == right


def test_the_committed_comparison_shows_what_the_mistakes_cost() -> None:
    """Written by ``train recipes``; trained again with the same seeds it is the same."""
    numbers = json.loads((RESULTS / "recipes.json").read_text())
    energy = {name: row["value"] for name, row in numbers["energy"].items()}
    assert energy.pop("right") < numbers["floor"]
    assert min(energy.values()) > 5 * numbers["floor"]


def test_the_committed_digits_are_recognised() -> None:
    one_step = json.loads((RESULTS / "digits.json").read_text())["classes"]["ways"]["1"]
    assert one_step["accuracy"] > 0.9
    assert one_step["least_class_nearest_accuracy"] > 0.9


@pytest.mark.slow
def test_the_digits_run_again_is_recognised(tmp_path: Path) -> None:
    """A third of the run suffices: the bound is 90 %."""
    summary = run(preset("digits", out=tmp_path / "digits", steps=500, samples=500), QUIET)
    assert summary["classes"]["ways"]["1"]["accuracy"] > 0.9


def test_recipes_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps", "3", "--batch", "16", "--samples", "50", "--out", str(tmp_path / "r")]
    assert command.main(["recipes", *small]) == 0
    numbers = json.loads((tmp_path / "r" / "recipes.json").read_text())
    energy = {name: row["value"] for name, row in numbers["energy"].items()}
    assert set(energy) == {"right", "wrong derivative", "wrong anchor", "as published"}
    assert command.main(["recipes", "--steps", "0"]) == 2
