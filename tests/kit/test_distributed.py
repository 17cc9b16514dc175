"""The distributed check, in processes of its own; time-outs are generous, and nothing is asserted of speed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.distributed.check import TOLERANCE, Compared, _report, check_distributed, compare
from meanflow_ref.kit.distributed.draws import JoinedDraws
from meanflow_ref.kit.mutants import steps
from meanflow_ref.kit.mutants.steps import CORRECT, MUTANTS

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
LIMIT = 400.0


@pytest.fixture(scope="module")
def compared() -> dict[str, Compared]:
    """All steps in one launch of three processes."""
    cases = (*MUTANTS, *CORRECT)
    results = compare([case.target for case in cases], shape=(4,), rows=13, dtype=torch.float32, timeout=LIMIT, seed=0)
    return dict(zip((case.title for case in cases), results, strict=True))


def test_a_wrong_step_is_named(compared: dict[str, Compared]) -> None:
    for case in MUTANTS:
        report = _report(case.title, compared[case.title], TOLERANCE[torch.float32], 0.0)
        assert report.verdict == "wrong", case.title
        assert [one.name for one in report.diagnoses] == [case.name]


def test_a_right_step_is_not_flagged(compared: dict[str, Compared]) -> None:
    for case in CORRECT:
        report = _report(case.title, compared[case.title], TOLERANCE[torch.float32], 0.0)
        assert report.ok, (case.title, report)
        assert report.diagnoses == ()


def test_the_wrong_scale_is_measured(compared: dict[str, Compared]) -> None:
    assert compared["sum for mean"].scale == pytest.approx(2, rel=1e-4)
    assert compared["averaged twice"].scale == pytest.approx(0.5, rel=1e-4)


def test_two_ranks_are_one_process_on_the_joined_batch(compared: dict[str, Compared]) -> None:
    for title in ("wrapped loss", "average by hand", "two passes"):
        assert compared[title].joined < 1e-5, title


@pytest.mark.slow
def test_the_whole_check_and_its_errors() -> None:
    report = check_distributed("meanflow_ref.kit.mutants.steps:module_unwrapped", timeout=LIMIT)
    assert report.verdict == "wrong"
    assert [one.name for one in report.diagnoses] == ["GRADIENTS_NOT_SYNCED"]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "text"), [(steps.raises, "no such layer"), (steps.no_gradients, "no gradients")])
def test_a_step_that_raises_is_one_clear_error(step: Any, text: str) -> None:
    with pytest.raises(ParameterError, match=text):
        check_distributed(step, timeout=LIMIT)


@pytest.mark.slow
def test_a_step_that_hangs_is_inconclusive() -> None:
    report = check_distributed(steps.hangs, timeout=60)
    assert report.verdict == "inconclusive"
    assert "60 s" in report.checks[0].detail


def test_what_cannot_be_sent_is_told() -> None:
    with pytest.raises(ParameterError, match="cannot be sent"):
        check_distributed(lambda x: x)
    with pytest.raises(ParameterError, match="rows"):
        check_distributed(steps.wrapped_loss, rows=0)


def test_draws_of_parts_are_rows_of_the_joined_draw() -> None:
    def draws(x: Tensor) -> list[Tensor]:
        torch.manual_seed(5)
        noise = torch.empty_like(x).normal_(1.0, 2.0)
        label = torch.randint(0, 10, (len(x),))
        return [torch.rand(len(x)), torch.randn_like(x), torch.rand((len(x), 2)), noise, label, torch.rand(3)]

    whole = draws(torch.zeros(26, 4))
    for rank in range(2):
        with JoinedDraws(rank, 2, 13):
            part = draws(torch.zeros(13, 4))
        for one, joined in zip(part[:-1], whole[:-1], strict=True):
            assert torch.equal(one, joined[13 * rank : 13 * (rank + 1)])
        assert torch.equal(part[-1], whole[-1])
