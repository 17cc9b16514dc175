"""``meanflow-ref prove``: what it prints, and its exit codes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

import meanflow_ref
from meanflow_ref.cli import main
from meanflow_ref.errors import MeanFlowError, ParameterError
from meanflow_ref.kit.prove.command import add_options, prove
from meanflow_ref.kit.prove.prove import prove_loss
from meanflow_ref.kit.target import load_target

LOSSES = """
import torch
from torch.func import jvp

def loss(net, x, sign=1.0, item=False):
    eps, t = torch.randn_like(x), torch.rand(x.shape[0])
    r = t * torch.rand(x.shape[0])
    column = lambda time: time[:, None]
    z, v = (1 - column(t)) * x + column(t) * eps, eps - x
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    factor = t.mean().item() if item else 1.0
    return factor * ((u - (v - sign * column(t - r) * du).detach()) ** 2).sum(1).mean()

def wrong(net, x):
    return loss(net, x, sign=-1.0)

def leaky(net, x):
    return loss(net, x, item=True)

def none(net, x):
    return x.mean()

class Trainer:
    def loss(net, x):
        return loss(net, x)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_losses.py").write_text(LOSSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return prove(parser.parse_args([*arguments, "--shape", "2,3"]))


def test_the_options_are_declared_without_torch() -> None:
    code = "import sys, meanflow_ref.kit.prove.command; print(sorted({'torch', 'numpy', 'mpmath'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_right_loss_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("their_losses:loss") == 0
    out = capsys.readouterr().out
    assert out.startswith("PROVED  MeanFlow; path z = (1 - t) x + t eps; weight power 0")
    assert "row-wise network" in out


def test_a_wrong_loss_exits_with_1_and_names_the_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("their_losses:wrong") == 1
    assert "INTERVAL_SIGN" in capsys.readouterr().out


def test_a_loss_that_cannot_be_settled_exits_with_2_and_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("their_losses:leaky") == 2
    line = 1 + LOSSES.splitlines().index("    factor = t.mean().item() if item else 1.0")
    assert f"their_losses.py:{line}" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("their_losses:Trainer.loss", "--format", "json", "--out", str(tmp_path / "report.json")) == 0
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == json.loads(capsys.readouterr().out)
    assert document["verdict"] == "PROVED"
    assert document["value"]["verdict"] == document["gradient"]["verdict"] == "PROVED"


def test_what_cannot_run_is_one_error() -> None:
    with pytest.raises(MeanFlowError, match="never calls the network"):
        run("their_losses:none")
    with pytest.raises(ParameterError, match="--shape a,b"):
        run("their_losses:loss", "--shape", "a,b")
    with pytest.raises(OSError, match="no folder"):
        run("their_losses:loss", "--out", "nowhere/report.txt")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("their_losses", "is no address"),
        ("their_loses:loss", "cannot be imported"),
        ("their_losses:los", "their_losses:loss"),
        ("their_losses:Trainer.lss", "has no `Trainer.lss`"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        load_target(address)


def test_a_file_is_an_address_too() -> None:
    assert load_target("their_losses.py:Trainer.loss").__name__ == "loss"


def test_a_file_elsewhere_is_an_address_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "beside_their_loss.py").write_text("WEIGHT = 2.0\n")
    (tmp_path / "a_loss_elsewhere.py").write_text("from beside_their_loss import WEIGHT\n")
    assert load_target(f"{tmp_path}/a_loss_elsewhere.py:WEIGHT") == 2.0


def test_the_command_line_knows_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", "their_losses:wrong", "--shape", "2,3"]) == 1
    assert "INTERVAL_SIGN" in capsys.readouterr().out
    assert main(["prove", "their_losses:none"]) == 2
    assert "never calls the network" in capsys.readouterr().err
    assert meanflow_ref.prove_loss is prove_loss
