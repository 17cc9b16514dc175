"""The guidance check: every mutant named, no lawful neighbour flagged, the weights measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError
from meanflow_ref.kit.catalogue import guidance as part
from meanflow_ref.kit.guidance.check import check_guidance
from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.kit.mutants.guidance import CORRECT, MUTANTS, Settings, guided
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import meanflow_loss


@pytest.mark.parametrize("case", MUTANTS, ids=lambda case: case.title)
def test_wrong_guidance_is_named(case: Case) -> None:
    report = check_guidance(case.target, **case.options)
    assert report.verdict == "wrong"
    assert [one.name for one in report.diagnoses if one.severity == "wrong"] == [case.name]
    assert "mutants/guidance.py:" in report.diagnoses[0].where


@pytest.mark.parametrize("case", CORRECT, ids=lambda case: case.title)
def test_right_guidance_is_not_flagged(case: Case) -> None:
    report = check_guidance(case.target, **case.options)
    assert report.ok, report.diagnoses
    assert [one.name for one in report.diagnoses] == ([case.name] if case.note else [])


def test_every_name_of_the_part_has_a_case() -> None:
    assert {page.name for page in part.PAGES} <= {case.name for case in (*MUTANTS, *CORRECT)}


def test_the_librarys_own_loss() -> None:
    """Its guidance is tested against the fixed point elsewhere: an independent witness for this check."""

    def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
        pair = torch.rand(len(x), 2, dtype=x.dtype).sort(1).values
        r = torch.where(torch.rand(len(x)) < 0.4, pair[:, 1], pair[:, 0])
        guidance = Guidance(2.5, 0.25, null_label=10, interval=(0.1, 0.9))
        y = torch.where(torch.rand(len(x)) < 0.3, torch.full_like(y, 10), y)
        return meanflow_loss(net, x, torch.randn_like(x), r, pair[:, 1], label=y, guidance=guidance).loss

    report = check_guidance(loss, omega=2.5, kappa=0.25, interval=(0.1, 0.9))
    assert report.verdict == "correct", report.diagnoses
    assert report.measured["guided rows"] == pytest.approx(
        {"v": 2.5, "conditional": 0.25, "null": -1.75, "other": 0.0}, abs=1e-6
    )
    assert report.measured["null rows"]["v"] == pytest.approx(1, abs=1e-6)


def no_label(net: Any, x: Tensor) -> Any:
    return (net(x, torch.zeros(len(x)), torch.ones(len(x)), None) ** 2).mean()


@pytest.mark.parametrize(
    ("loss", "options", "error", "text"),
    [
        (guided(Settings()), {"omega": 2.0, "kappa": 1.0}, ParameterError, "kappa"),
        (guided(Settings()), {"omega": 2.0, "interval": (0.8, 0.2)}, ParameterError, "interval"),
        (guided(Settings()), {"omega": 2.0, "call": "z, r, t"}, ParameterError, "label"),
        (guided(Settings()), {"omega": 2.0, "call": "z, (t, h), y"}, NetworkError, "call"),
        (no_label, {"omega": 2.0}, ParameterError, "TypeError"),
        (3, {"omega": 2.0}, ParameterError, "int"),
    ],
)
def test_bad_input_is_one_clear_error(
    loss: Any, options: dict[str, Any], error: type[MeanFlowError], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_guidance(loss, **options)
