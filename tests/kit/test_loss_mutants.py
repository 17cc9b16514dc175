"""check_loss on losses by many hands: wrong ones named first and on their own line, lawful ones left alone."""

from __future__ import annotations

import pytest

from meanflow_ref.kit.catalogue import losses as part
from meanflow_ref.kit.loss.check import check_loss
from meanflow_ref.kit.matrix import run_composed
from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.kit.mutants.losses import CORRECT, HAND_MUTANTS, MUTANTS

# The composer's second style of each bug is swept by the sample below too.
COMPOSED = MUTANTS[len(HAND_MUTANTS) :]

# Lawful losses of another formula or metric than the replay recomputes: they have no figure of their own.
NOT_REPLAYED = {
    "alpha-flow, alpha = 1/2", "interval splitting", "Lagrangian identity", "network predicts the data", "Huber metric",
}  # fmt: skip


@pytest.mark.parametrize("case", [*HAND_MUTANTS, *COMPOSED[::2]], ids=lambda case: case.title)
def test_a_wrong_loss_is_named(case: Case) -> None:
    report = check_loss(case.target, **case.options)
    assert report.verdict == "wrong"
    assert report.diagnoses[0].name == case.name
    assert "kit/mutants/" in report.diagnoses[0].where
    assert report.diagnoses[0].remedy


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPOSED[1::2], ids=lambda case: case.title)
def test_a_wrong_loss_is_named_in_another_style(case: Case) -> None:
    assert check_loss(case.target, **case.options).diagnoses[0].name == case.name


@pytest.mark.parametrize("case", CORRECT, ids=lambda case: case.title[:60])
def test_a_lawful_loss_is_not_flagged(case: Case) -> None:
    report = check_loss(case.target, **case.options)
    assert report.ok, [(one.name, one.observed) for one in report.diagnoses]
    assert not [one for one in report.diagnoses if one.severity == "wrong"]
    m = report.measured
    if case.title in NOT_REPLAYED:
        assert "replay_error" not in m
    if "replay_error" in m:
        # float64 by autodiff or a fine central difference, or float32; the nearest bug is that many times further off.
        assert m["replay_error"] < 1e-6
        assert m["margin"] > 1e3
    if case.title not in NOT_REPLAYED and m["tangent_dtype"] == "float64" and m["engine"] != "finite difference":
        # Every correct loss by automatic differentiation has the figure.
        assert m["replay_error"] < 1e-6
        assert m["nearest_bug_error"] > 1e-3


def test_enough_cases_of_every_name() -> None:
    assert len(MUTANTS) >= 60
    assert len(CORRECT) >= 25
    # Notes and the two names for what fits nothing have cases elsewhere in this room.
    others = {"TIME_REVERSED", "REDUCTION_MEAN", "UNKNOWN_FORMULA", "INCONCLUSIVE"}
    assert {page.name for page in part.PAGES} - others <= {case.name for case in MUTANTS}


def test_the_composer_without_false_alarms() -> None:
    outcomes = [run_composed(seed) for seed in range(100)]
    assert [one for one in outcomes if not one.ok] == []
    assert sum(not one.wanted for one in outcomes) >= 8


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_composer_at_length() -> None:
    assert [one for one in map(run_composed, range(2000)) if not one.ok] == []
