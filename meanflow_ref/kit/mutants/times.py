"""Laws of times, right and wrong; the law that is stated is the paper's, with r = t in 75 % of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.objectives.times import LogitNormalPair, UniformPair

PAPER = LogitNormalPair(-0.4, 1.0, equal=0.75)
UNIFORM = UniformPair(equal=0.5)
Pair = tuple[Tensor, Tensor]


def _case(title: str, target: Callable[..., Any], name: str | None = None, note: bool = False, **options: Any) -> Case:
    """A case against the paper's law, unless another is given."""
    return Case(title, target, name, {"law": PAPER, **options}, note)


def _sorted_pair(n: int, mean: float = -0.4, std: float = 1.0) -> Pair:
    draws = torch.sigmoid(mean + std * torch.randn(n, 2))
    return draws.amin(1), draws.amax(1)


def _logit_normal(equal: float, mean: float = -0.4, std: float = 1.0) -> Callable[[int], Pair]:
    def sample(n: int) -> Pair:
        r, t = _sorted_pair(n, mean, std)
        return torch.where(torch.rand(n) < equal, t, r), t

    return sample


# ------------------------------------------------------------ wrong


def mask_before_sorting(n: int) -> Pair:
    """The mask is applied, then another pair is clipped against it: some equal rows are lost."""
    r, t = _logit_normal(0.75)(n)
    return torch.minimum(r, _sorted_pair(n)[1]), t


def normal_times(n: int) -> Pair:
    """Standard normal numbers as times."""
    t, r = torch.randn(n), torch.randn(n)
    return torch.where(torch.rand(n) < 0.75, t, r), t


def unsorted(n: int) -> Pair:
    """Two draws, not sorted."""
    r, t = torch.sigmoid(-0.4 + torch.randn(n)), torch.sigmoid(-0.4 + torch.randn(n))
    return torch.where(torch.rand(n) < 0.75, t, r), t


def below_t(n: int) -> Pair:
    """r uniform below t."""
    _, t = _sorted_pair(n)
    return torch.where(torch.rand(n) < 0.75, t, t * torch.rand(n)), t


def uniform_times(n: int) -> Pair:
    """The uniform law instead."""
    draws = torch.rand(n, 2)
    return torch.where(torch.rand(n) < 0.75, draws.amax(1), draws.amin(1)), draws.amax(1)


def coin_per_batch(n: int) -> Pair:
    """One coin for all rows."""
    r, t = _sorted_pair(n)
    return (t, t) if float(torch.rand(())) < 0.75 else (r, t)


def time_per_batch(n: int) -> Pair:
    """One pair for all rows."""
    r, t = _logit_normal(0.75)(1)
    return r.expand(n), t.expand(n)


def frozen_batch(n: int) -> Pair:
    """A generator made anew in every call."""
    return PAPER.sample(n, torch.Generator().manual_seed(0))


def masks_by_index(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """r = t in the first 75 % of the rows, labels dropped in the first 10 %."""
    r, t = _sorted_pair(n)
    row = torch.arange(n)
    label = torch.randint(10, (n,))
    return torch.where(row < 0.75 * n, t, r), t, torch.where(row < 0.1 * n, torch.full_like(label, 10), label)


def scaled(n: int) -> Pair:
    """Times in [0, 1000]."""
    r, t = _logit_normal(0.75)(n)
    return 1000 * r, 1000 * t


def rejected(n: int) -> Pair:
    """Small intervals are thrown out: r = 0 where t - r < 0.05."""
    r, t = _logit_normal(0.75)(n)
    near = (t - r < 0.2) & (r != t)
    return torch.where(near, torch.zeros_like(r), r), t


MUTANTS = (
    _case("share inverted", _logit_normal(0.25), "RATIO_INVERTED"),
    _case("share 0.7 for 0.75", _logit_normal(0.70), "RATIO_MISMATCH"),
    _case("mask applied before sorting", mask_before_sorting, "RATIO_MISMATCH"),
    _case("always r = t", _logit_normal(1.0), "NEVER_R_NEQ_T"),
    _case("unsorted", unsorted, "R_GREATER_THAN_T"),
    _case("returned as (t, r)", lambda n: _logit_normal(0.75)(n)[::-1], "R_GREATER_THAN_T"),
    _case("randn", normal_times, "TIMES_OUT_OF_RANGE"),
    _case("times in [0, 1000]", scaled, "TIMES_OUT_OF_RANGE"),
    _case("a coin a batch", coin_per_batch, "PER_BATCH_COIN"),
    _case("a time a batch", time_per_batch, "PER_BATCH_COIN"),
    _case("both masks by index", masks_by_index, "MASKS_CORRELATED", returns="r, t, y", null_label=10),
    _case("r uniform below t", below_t, "LAW_MISMATCH"),
    _case("sign of the mean", _logit_normal(0.75, mean=0.4), "LAW_MISMATCH"),
    _case("deviation 1.2 for 1", _logit_normal(0.75, std=1.2), "LAW_MISMATCH"),
    _case("uniform for logit-normal", uniform_times, "LAW_MISMATCH"),
    _case("the same batch always", frozen_batch, "LAW_MISMATCH"),
    _case("short intervals thrown out", rejected, "LAW_MISMATCH"),
)


# ------------------------------------------------------------ right, or legal


def exact_share(n: int) -> Pair:
    """Exactly 192 of 256 rows, at random."""
    r, t = _sorted_pair(n)
    equal = torch.randperm(n) < round(0.75 * n)
    return torch.where(equal, t, r), t


def first_rows(n: int) -> Pair:
    """r = t in the first rows."""
    r, t = _sorted_pair(n)
    return torch.where(torch.arange(n) < 0.75 * n, t, r), t


def numpy_pair(n: int) -> tuple[Any, Any]:
    """In numpy."""
    draws = np.sort(1 / (1 + np.exp(0.4 - np.random.randn(n, 2))), axis=1)  # noqa: NPY002
    equal = np.random.rand(n) < 0.75  # noqa: NPY002
    return np.where(equal, draws[:, 1], draws[:, 0]), draws[:, 1]


def column_pair(n: int) -> Pair:
    """Shape (n, 1)."""
    r, t = _logit_normal(0.75)(n)
    return r[:, None], t[:, None]


def duration(n: int) -> Pair:
    """(t, h)."""
    r, t = _logit_normal(0.75)(n)
    return t, torch.where(r == t, torch.zeros_like(t), t - r)


def backward(n: int) -> Pair:
    """Noise at t = 0: r >= t."""
    r, t = (x.double() for x in _logit_normal(0.75)(n))
    return 1 - r, 1 - t


def stratified(n: int) -> Pair:
    """One uniform stratified over the batch and a free one."""
    a = (torch.randperm(n) + torch.rand(n)) / n
    draws = torch.stack([a, torch.rand(n)])
    t = draws.amax(0)
    return torch.where(torch.rand(n) < 0.5, t, draws.amin(0)), t


def single_for_equal(n: int) -> Pair:
    """Rows with r = t draw one time, not the larger of two."""
    r, t = _sorted_pair(n)
    one = torch.sigmoid(-0.4 + torch.randn(n))
    equal = torch.rand(n) < 0.75
    return torch.where(equal, one, r), torch.where(equal, one, t)


def independent_masks(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two random masks."""
    r, t = _logit_normal(0.75)(n)
    label = torch.randint(10, (n,))
    return r, t, torch.where(torch.rand(n) < 0.1, torch.full_like(label, 10), label)


def sharp_beta(n: int) -> Pair:
    """Beta(2, 3) pairs, a law of the user's own."""
    draws = torch.distributions.Beta(2.0, 3.0).sample((n, 2))
    return draws.amin(1), draws.amax(1)


def beta_cdf(x: Any) -> Any:
    """Its distribution function."""
    return stats.beta.cdf(x, 2, 3)


CORRECT = (
    _case("a coin a row", _logit_normal(0.75)),
    _case("exact share", exact_share),
    _case("the library's own", lambda n: PAPER.sample(n, torch.default_generator)),
    _case("numpy", numpy_pair),
    _case("(n, 1)", column_pair),
    _case("bfloat16", lambda n: tuple(x.bfloat16() for x in _logit_normal(0.75)(n))),
    _case("(t, r)", lambda n: _logit_normal(0.75)(n)[::-1], returns="t, r"),
    _case("(t, h)", duration, returns="t, h"),
    _case("noise at t = 0", backward, data_at_one=True),
    _case("stratified uniform", stratified, law=UNIFORM),
    _case("independent masks", independent_masks, returns="r, t, y", null_label=10),
    _case("a law of one's own", sharp_beta, law=(beta_cdf, 0.0)),
    _case("r = t by index", first_rows, "MASKS_CORRELATED", note=True),
    _case("one draw where r = t", single_for_equal, "LAW_MISMATCH", note=True),
    _case("never r = t, no law stated", _sorted_pair, "NEVER_R_EQ_T", note=True, law=None),
)
