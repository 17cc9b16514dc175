"""``meanflow-ref bench``: a network of one's own, and what is said when it cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meanflow_ref.cli import main

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, z, r, t):
        x = self.layer(z)[None, None]
        return nn.functional.scaled_dot_product_attention(x, x, x)[0, 0] * (t - r)[:, None]

def build():
    return Net()

net = Net()
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "bench_networks_of_a_test.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    return "bench_networks_of_a_test"


def test_a_network_of_ones_own(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "6", "--batch", "4", "--share", "0.5", "--rounds", "6", "--budget", "1", "--out", "out"]
    assert main(["bench", f"{module}:build", *options]) == 0
    printed = capsys.readouterr()
    assert "stopgrad_rows" in printed.out
    # Fused attention has no forward mode: the method is left out, and it is said why.
    assert "without func: module" in printed.err or "without func: the network itself (Net)" in printed.err
    content = json.loads((tmp_path / "out" / "jvp.json").read_text())
    rows = {row["method"]: row for row in content["rows"]}
    assert {"func", "double_backward"} <= {refusal["method"] for refusal in content["refused"]}
    assert f"- {module}:build, `func`, 50 %: refused: " in printed.out
    assert rows["stopgrad"]["limit"] == pytest.approx(3.5 / 3)
    assert rows["stopgrad"]["error"] < 1e-5
    assert (tmp_path / "out" / "jvp.svg").read_text().startswith("<?xml")
    assert "func" not in rows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "is no address"),
        (["no_such_module:net", "--shape", "6"], "cannot be imported"),
        (["{module}:number", "--shape", "6"], "is int"),
        (["{module}:net"], "--shape"),
        (["{module}:net", "--shape", "0"], "--shape"),
        (["{module}:net", "--shape", "6", "--batch", "0"], "--batch 0"),
        (["{module}:net", "--shape", "7"], "cannot be called or trained"),
        (["{module}:net", "--shape", "6", "--share", "2"], "--share 2.0"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str], says: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *(a.format(module=module) for a in arguments)]) == 2
    assert says in capsys.readouterr().err
