"""The check of time laws: every mutant named, no lawful neighbour flagged, and the bounds are what they claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from meanflow_ref.cli import main
from meanflow_ref.errors import MeanFlowError, NonFiniteError, ParameterError, ShapeError
from meanflow_ref.kit.catalogue import times as part
from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.kit.mutants.times import CORRECT, MUTANTS
from meanflow_ref.kit.times import check_times
from meanflow_ref.kit.times_tests import dependence, distance_bound, share_interval, uniform_distance


def run(case: Case, seed: int = 0) -> Any:
    return check_times(case.target, **{"seed": seed, **case.options})


@pytest.mark.parametrize("case", MUTANTS, ids=lambda case: case.title)
def test_a_wrong_law_is_named(case: Case) -> None:
    report = run(case)
    assert report.verdict == "wrong"
    assert report.diagnoses[0].name == case.name
    assert report.diagnoses[0].remedy


@pytest.mark.parametrize("case", CORRECT, ids=lambda case: case.title)
def test_a_lawful_neighbour_is_not_flagged(case: Case) -> None:
    # Each seed flags a right law with probability at most 1e-6.
    for seed in range(3):
        report = run(case, seed)
        assert report.ok, report.diagnoses
        assert [one.name for one in report.diagnoses] == ([case.name] if case.note else [])


def test_every_name_of_the_part_has_a_case() -> None:
    assert {page.name for page in part.PAGES} <= {case.name for case in (*MUTANTS, *CORRECT)}
    assert len(MUTANTS) >= 12
    assert len(CORRECT) >= 12


def test_the_law_is_recognised() -> None:
    report = check_times(lambda n: torch.rand(n, 2).sort(1).values.unbind(1))
    assert report.formula == "uniform, sorted pair"
    assert check_times(CORRECT[0].target).formula == "logit-normal(-0.4, 1), sorted pair"


def test_distance_is_that_of_scipy() -> None:
    x = np.random.default_rng(0).random(500)
    assert uniform_distance(x) == pytest.approx(stats.kstest(x, "uniform").statistic, abs=1e-15)


def test_the_distance_bound_is_above_the_exact_quantile() -> None:
    """Massart's bound against the exact law of the distance (scipy's), for sizes and alarms in use."""
    for n in (30, 300, 16384):
        for alarm in (1e-2, 1e-6):
            assert stats.kstwo.sf(distance_bound(n, alarm), n) <= alarm


def test_the_share_interval_covers_exactly() -> None:
    """The probability of a miss, summed exactly over the binomial law, is at most the alarm."""
    n, alarm = 60, 1e-2
    bounds = [share_interval(k, n, alarm) for k in range(n + 1)]
    for p in (0.03, 0.25, 0.5, 0.97):
        miss = sum(stats.binom.pmf(k, n, p) for k, (low, high) in enumerate(bounds) if not low <= p <= high)
        assert miss <= alarm


def test_dependence_of_equal_masks_is_seen() -> None:
    mask = np.arange(100) < 30
    assert dependence(mask, mask) < 1e-20
    assert dependence(mask, np.random.default_rng(1).permutation(mask)) > 1e-4


def bad_pair(n: int) -> Any:
    return torch.rand(n)


def not_a_number(n: int) -> Any:
    return torch.full((n,), float("nan")), torch.rand(n)


def short(n: int) -> Any:
    return torch.rand(n - 1), torch.rand(n - 1)


def needs_two(n: int, m: int) -> Any:
    return torch.rand(n), torch.rand(m)


@pytest.mark.parametrize(
    ("target", "options", "error", "text"),
    [
        (bad_pair, {}, ShapeError, "one Tensor"),
        (short, {}, ShapeError, "256 entries"),
        (not_a_number, {}, NonFiniteError, "NaN"),
        (needs_two, {}, ParameterError, "TypeError"),
        (CORRECT[0].target, {"returns": "t"}, ParameterError, "returns"),
        (CORRECT[0].target, {"returns": "r, t, y"}, ParameterError, "null"),
        (CORRECT[0].target, {"law": 0.75}, ParameterError, "distribution function"),
        (CORRECT[0].target, {"law": (lambda x: 1 - x, 0.5)}, ParameterError, "rising"),
        (CORRECT[0].target, {"law": (lambda x: x, 1.5)}, ParameterError, "share"),
        (3, {}, ParameterError, "int"),
    ],
)
def test_bad_input_is_one_clear_error(
    target: Any, options: dict[str, Any], error: type[MeanFlowError], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_times(target, **options)


def test_the_command_takes_a_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "times_of_a_fork.py").write_text(
        "import torch\n"
        "from meanflow_ref import UniformPair\n"
        "law, other = UniformPair(equal=0.25), UniformPair(equal=0.75)\n"
        "def times(n):\n"
        "    return law.sample(n, torch.default_generator)\n"
    )
    monkeypatch.chdir(tmp_path)
    address = ["check", "--times", "times_of_a_fork:times", "--law"]
    assert main([*address, "times_of_a_fork:law"]) == 0
    capsys.readouterr()
    assert main([*address, "times_of_a_fork:other"]) == 1
    assert "RATIO_INVERTED" in capsys.readouterr().out
    assert main([*address, "times_of_a_fork:times"]) == 2
