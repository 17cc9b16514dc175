"""Laws of (r, t) against their closed distribution functions.

Every statistical test here rejects a correct law with probability at most 1e-6; seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.objectives.times import AbstractTimePair, LogitNormalPair, UniformPair

ALARM = 1e-6
N = 20_000

LAWS = [
    UniformPair(equal=0.75),
    UniformPair(equal=0.0),
    UniformPair(equal=0.4, share="bernoulli"),
    LogitNormalPair(-0.4, 1.0, equal=0.75),
    LogitNormalPair(0.3, 1.7, equal=0.25, share="bernoulli"),
]
every_law = pytest.mark.parametrize("law", LAWS, ids=str)


def ks(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """p-value of the Kolmogorov-Smirnov test. (Exactly n equal rows make r a little less spread: conservative.)"""

    def on_arrays(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return cdf(torch.from_numpy(x)).numpy()

    return float(scipy.stats.kstest(sample.numpy(), on_arrays).pvalue)


@every_law
def test_times_follow_their_distribution_functions(law: AbstractTimePair, generator: torch.Generator) -> None:
    r, t = law.sample(N, generator, torch.float64)
    assert ks(r, law.cdf_r) > ALARM
    assert ks(t, law.cdf_t) > ALARM


def test_the_law_of_one_draw_is_scipys() -> None:
    x = np.linspace(0.001, 0.999, 101)
    law = LogitNormalPair(-0.4, 1.3)
    expected = scipy.stats.norm(-0.4, 1.3).cdf(np.log(x / (1 - x)))
    # torch's normal distribution function is right to 1e-16 absolutely, not relatively, in its lower tail.
    np.testing.assert_allclose(law.cdf(torch.from_numpy(x)).numpy(), expected, rtol=1e-13, atol=1e-15)


@every_law
def test_distribution_functions_run_from_0_to_1(law: AbstractTimePair) -> None:
    ends = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    for cdf in (law.cdf, law.cdf_r, law.cdf_t):
        assert cdf(ends).tolist() == [0.0, 0.0, 1.0, 1.0]
        assert (cdf(torch.linspace(0, 1, 65, dtype=torch.float64)).diff() > 0).all()


def mutant_scaled(law: AbstractTimePair, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``r = rand * t`` instead of a sorted pair."""
    _, t = law.sample(N, generator, torch.float64)
    return torch.rand(N, dtype=torch.float64, generator=generator) * t, t


def mutant_keeps_r(law: AbstractTimePair, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows with r = t keep r, the smaller draw."""
    low, high = UniformPair(equal=0.0).sample(N, generator, torch.float64)
    equal = law.equal_rows(N, generator)
    return low, torch.where(equal, low, high)


def mutant_inverted(law: AbstractTimePair, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The share taken for that of r != t."""
    return UniformPair(equal=1 - law.equal).sample(N, generator, torch.float64)


@pytest.mark.parametrize("mutant", [mutant_scaled, mutant_keeps_r, mutant_inverted])
def test_wrong_laws_are_noticed(
    mutant: Callable[[AbstractTimePair, torch.Generator], tuple[Tensor, Tensor]], generator: torch.Generator
) -> None:
    law = UniformPair(equal=0.75)
    r, t = mutant(law, generator)
    assert min(ks(r, law.cdf_r), ks(t, law.cdf_t)) < ALARM


@every_law
def test_the_share_of_equal_rows(law: AbstractTimePair, generator: torch.Generator) -> None:
    r, t = law.sample(N, generator, torch.float64)
    equal = int((r == t).sum())
    if law.share == "exact":
        assert equal == round(law.equal_share * N)
    else:
        assert scipy.stats.binomtest(equal, N, law.equal_share).pvalue > ALARM


@pytest.mark.parametrize(("n", "equal", "rows"), [(1, 0.75, 1), (1, 0.25, 0), (2, 0.25, 1), (4, 0.75, 3), (7, 0.5, 4)])
def test_an_exact_share_rounds_to_the_nearest_row(n: int, equal: float, rows: int, generator: torch.Generator) -> None:
    r, t = UniformPair(equal=equal).sample(n, generator)
    assert int((r == t).sum()) == rows


def row_uniformity(rows: Tensor) -> float:
    """p-value of "every position is as likely", for batches with a fixed number of chosen rows.

    With k of n rows in each of m batches, the counts have variance m p (1 - p) and covariance -m p (1 - p)/(n - 1), so
    that their scaled sum of squares is chi-squared with n - 1 degrees of freedom.
    """
    m, n = rows.shape
    p = float(rows.double().mean())
    counts = rows.double().sum(0)
    statistic = float(((counts - m * p) ** 2).sum() / (m * p * (1 - p)) * (n - 1) / n)
    return float(scipy.stats.chi2(n - 1).sf(statistic))


@pytest.mark.parametrize("share", ["exact", "bernoulli"])
def test_equal_rows_stand_anywhere_in_the_batch(share: Any, generator: torch.Generator) -> None:
    law = UniformPair(equal=0.75, share=share)
    rows = torch.stack([law.equal_rows(16, generator) for _ in range(2000)])
    if share == "exact":
        assert row_uniformity(rows) > ALARM
    else:
        # Independent rows: each position's count is binomial; 16 positions share the alarm.
        counts = rows.sum(0).tolist()
        assert min(scipy.stats.binomtest(c, 2000, 0.75).pvalue for c in counts) > ALARM / 16
    first = torch.zeros_like(rows)
    first[:, :12] = True
    first[::2] = first[::2].roll(1, 1)
    assert row_uniformity(first) < ALARM


def test_equal_rows_do_not_depend_on_the_times(generator: torch.Generator) -> None:
    r, t = LogitNormalPair(equal=0.5).sample(N, generator, torch.float64)
    equal = r == t
    assert scipy.stats.ks_2samp(t[equal].numpy(), t[~equal].numpy()).pvalue > ALARM


@every_law
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_times_are_in_order_and_in_range_in_every_dtype(
    law: AbstractTimePair, dtype: torch.dtype, generator: torch.Generator
) -> None:
    r, t = law.sample(4096, generator, dtype)
    assert r.dtype == t.dtype == dtype
    assert r.shape == t.shape == (4096,)
    assert bool(((r >= 0) & (r <= t) & (t <= 1)).all())


def test_sampling_repeats_with_its_generator_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    draws = [LogitNormalPair().sample(16, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformPair(equal=1.1),
        lambda: UniformPair(equal=float("nan")),
        lambda: UniformPair(share="half"),  # type: ignore[arg-type]
        lambda: LogitNormalPair(std=0.0),
        lambda: LogitNormalPair(mean=float("inf")),
        lambda: UniformPair().sample(0, torch.Generator()),
    ],
)
def test_a_law_that_makes_no_sense(make: Callable[[], object]) -> None:
    with pytest.raises(ParameterError, match="Wanted"):
        make()
