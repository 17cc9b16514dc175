"""The preflight: every obstacle named with its module, no healthy network flagged, nothing of the user's changed."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.cli import main
from meanflow_ref.errors import DtypeError, MeanFlowError, NetworkError, NonFiniteError, ParameterError, TimeError
from meanflow_ref.kit.catalogue import network as part
from meanflow_ref.kit.diagnosis import Report
from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.kit.mutants.networks import (
    COMPILED,
    CORRECT,
    MUTANTS,
    InnerAttention,
    Normalised,
    Small,
    TimeTable,
)
from meanflow_ref.kit.network.check import check_network
from meanflow_ref.models.dit import DiT
from meanflow_ref.models.unet import UNet


def inputs(dtype: torch.dtype = torch.float32, batch: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 4, generator=generator).to(dtype)
    times = torch.rand(2, batch, generator=generator).sort(0).values.to(dtype)
    return z, times[0], times[1]


def run(case: Case) -> Report:
    torch.manual_seed(0)
    options = dict(case.options)
    dtype = options.pop("dtype", torch.float32)
    return check_network(case.target().to(dtype), *inputs(dtype), **options)


@pytest.mark.parametrize("case", MUTANTS, ids=lambda case: case.title)
def test_an_obstacle_is_named(case: Case) -> None:
    report = run(case)
    assert report.verdict == "wrong"
    assert {one.name for one in report.diagnoses} == {case.name}
    assert report.diagnoses[0].remedy


@pytest.mark.parametrize("case", CORRECT, ids=lambda case: case.title)
def test_a_healthy_network_is_not_flagged(case: Case) -> None:
    report = run(case)
    assert report.ok, report.diagnoses
    assert [one.name for one in report.diagnoses] == ([case.name] if case.note else [])


def test_compiled_against_eager() -> None:
    """Dynamo without a code generator. The custom rule is dropped; without it nothing differs."""
    report = run(COMPILED)
    assert [one.name for one in report.diagnoses] == ["COMPILED_NEQ_EAGER"]
    torch.manual_seed(0)
    assert check_network(Small(), *inputs(), compiled=True).verdict == "correct"


def test_every_name_of_the_part_has_a_mutant() -> None:
    assert {page.name for page in part.PAGES} <= {case.name for case in (*MUTANTS, COMPILED)}


def test_all_obstacles_are_found_with_their_modules() -> None:
    torch.manual_seed(0)
    net = InnerAttention()
    net.blocks.append(InnerAttention.__mro__[1]().middle)
    net.blocks.append(copy.deepcopy(net.blocks[1]))
    observed = [one.observed for one in check_network(net, *inputs()).diagnoses]
    assert len(observed) == 2
    assert observed[0].startswith("module `blocks.1` (_Heads)")
    assert observed[1].startswith("module `blocks.4` (_Heads)")


class BothDetached(Small):
    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        return super().embed(r.detach(), t.detach())


@pytest.mark.parametrize(("kind", "module"), [(TimeTable, "table"), (BothDetached, "time")])
def test_a_dead_time_is_blamed_on_its_module(kind: type[Small], module: str) -> None:
    torch.manual_seed(0)
    (found,) = check_network(kind(), *inputs()).diagnoses
    assert f"module `{module}`" in found.observed


def test_the_network_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    net = Normalised()
    before = copy.deepcopy(net.state_dict())
    check_network(net, *inputs())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert not net._forward_hooks
    assert all(parameter.grad is None for parameter in net.parameters())


def test_parts_by_module_add_up() -> None:
    """At the network's output the two parts are the derivative, by finite differences in float64."""
    torch.manual_seed(0)
    net = Small().double()
    z, r, t = inputs(torch.float64)
    rows = {row["module"]: row for row in check_network(net, z, r, t).measured["modules"]}
    assert set(rows) == {"", "inlet", "middle", "outlet", "time"}
    assert rows["inlet"]["time"] == 0
    assert rows["time"]["spatial"] == 0
    with torch.no_grad():
        slope = (net(z, r, t + 1e-6) - net(z, r, t - 1e-6)) / 2e-6
    assert rows[""]["time"] == pytest.approx(float(slope.square().mean().sqrt()), rel=1e-6)


def test_the_librarys_own_networks_pass() -> None:
    torch.manual_seed(0)
    images = torch.randn(3, 1, 8, 8)
    times = torch.rand(2, 3).sort(0).values
    for net in (DiT(8, 1, patch=2, width=32, depth=1, heads=2), UNet(1, width=16)):
        report = check_network(net, images, times[0], times[1])
        assert report.ok, (type(net).__name__, report.diagnoses)


def test_a_plain_function_and_another_convention() -> None:
    report = check_network(lambda z, times: torch.tanh(z + times[0] * times[1] + times[1]), *inputs(),
                           call="z, (t, h)", time_shape="(B, 1)")  # fmt: skip
    assert report.verdict == "correct"


def test_one_row_says_nothing_of_rows() -> None:
    torch.manual_seed(0)
    report = check_network(Small(), *inputs(batch=1))
    assert report.verdict == "inconclusive"
    assert not report.ok


class Raises(nn.Module):
    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("out of coffee")


@pytest.mark.parametrize(
    ("net", "change", "error", "text"),
    [
        (Raises(), {}, ParameterError, "out of coffee"),
        (lambda z, r, t: z.sum(), {}, NetworkError, "shape"),
        (lambda z, r, t: (z, z), {}, NetworkError, "tuple"),
        (lambda z, r, t: z * float("nan"), {}, NonFiniteError, "`u`"),
        (Small(), {"t": torch.full((6,), 2.0)}, TimeError, "range"),
        (Small(), {"z": torch.ones(6, 4, dtype=torch.long)}, DtypeError, "floating"),
        (Small(), {"call": "z, q"}, ParameterError, "q"),
        (5, {}, NetworkError, "int"),
    ],
)
def test_bad_input_is_one_clear_error(net: Any, change: dict[str, Any], error: type[MeanFlowError], text: str) -> None:
    z, r, t = inputs()
    with pytest.raises(error, match=text):
        check_network(net, **{"z": z, "r": r, "t": t, **change})


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "preflight_subject.py").write_text(
        "from meanflow_ref.kit.mutants.networks import FusedAttention, Small\n"
        "class Sized(Small):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["preflight", "preflight_subject:Small"]) == 0
    assert "inlet" in capsys.readouterr().out
    assert main(["preflight", "preflight_subject:FusedAttention"]) == 1
    assert "ATTENTION_NO_FORWARD_AD" in capsys.readouterr().out
    assert main(["preflight", "preflight_subject:FusedAttention", "--format", "json", "--out", "report.json"]) == 1
    text = (tmp_path / "report.json").read_text()
    assert "ATTENTION_NO_FORWARD_AD" in text
    capsys.readouterr()
    assert main(["preflight", "preflight_subject:Sized"]) == 2
    assert "needs width" in capsys.readouterr().err
    assert main(["preflight", "preflight_subject:Smal"]) == 2
    assert "Small" in capsys.readouterr().err
    assert main(["preflight", "preflight_subject:Small", "--shape", "3,q"]) == 2


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys; from meanflow_ref.cli import build_parser; build_parser(); "
        "assert not {'torch', 'scipy', 'numpy', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
