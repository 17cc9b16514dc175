"""Guidance against fields whose guided average velocity has a closed form, and label dropout.

Two centred normal laws, of variance ``s_c`` for the class and ``s_0`` without one. Either velocity is
``v = z (log lambda)'/2`` with ``lambda = (1 - t)^2 s + t^2``, so that the guided field of scale w is the same with
``lambda_c^w lambda_0^(1 - w)`` for lambda, its flow scales z by the root of a ratio of these, and ``u`` is the scaled
displacement. Nothing here is built from the guidance formulas themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from meanflow_ref.errors import DtypeError, ParameterError
from meanflow_ref.objectives.guidance import Guidance, drop_labels
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss_at
from meanflow_ref.objectives.times import UniformPair

NULL = 9
S_CLASS, S_NULL = 0.3, 2.0


def variance(s: float, t: Tensor) -> Tensor:
    return (1 - t) ** 2 * s + t**2


@dataclass(frozen=True)
class ExactGuided:
    """Exact u of the field guided with ``scale`` for labelled rows, of the unguided one for the null label."""

    scale: float

    def __call__(self, z: Tensor, r: Tensor, t: Tensor, label: Tensor) -> Tensor:
        power = self.scale * (label != NULL).double()

        def spread(time: Tensor) -> Tensor:
            return variance(S_CLASS, time) ** (power / 2) * variance(S_NULL, time) ** ((1 - power) / 2)

        h = torch.where(r == t, torch.ones_like(t), t - r)
        average = (1 - spread(r) / spread(t)) / h
        log_slope = power * self.slope(S_CLASS, t) + (1 - power) * self.slope(S_NULL, t)
        return z * torch.where(r == t, log_slope, average)[:, None]

    @staticmethod
    def slope(s: float, t: Tensor) -> Tensor:
        return (t - (1 - t) * s) / variance(s, t)


@dataclass
class Case:
    """States with r < t (by 0.05 at least, for the quotient's digits) or r = t, labelled or not, and their own v."""

    z: Tensor
    v: Tensor
    r: Tensor
    t: Tensor
    label: Tensor

    def terms(self, net: Callable[..., Any], guidance: Guidance | None, **options: Any) -> MeanFlowTerms:
        return meanflow_loss_at(
            net, self.z, self.v, self.r, self.t, label=self.label, guidance=guidance, weight_power=0.0, **options
        )


@pytest.fixture
def case(generator: torch.Generator) -> Case:
    z = torch.randn(64, 3, dtype=torch.float64, generator=generator)
    t = 0.05 + 0.95 * torch.rand(64, dtype=torch.float64, generator=generator)
    r = (t - 0.05) * torch.rand(64, dtype=torch.float64, generator=generator)
    r[::4] = t[::4]
    label = torch.randint(0, 5, (64,), generator=generator)
    label[:24] = NULL
    slope = torch.where(label == NULL, ExactGuided.slope(S_NULL, t), ExactGuided.slope(S_CLASS, t))
    return Case(z, z * slope[:, None], r, t, label)


GUIDED = Guidance(1.6, 0.4, null_label=NULL)
# u is a quotient with h >= 0.05: 20 roundings of numbers of size 10, and du/dt once more so.
EXACT = 1e-12


@pytest.mark.parametrize(("omega", "kappa"), [(1.0, 0.0), (2.0, 0.0), (1.6, 0.4), (0.5, 0.8), (1.2, -0.5)])
@pytest.mark.parametrize("jvp", ["func", "double_backward"])
def test_the_guided_average_velocity_is_the_fixed_point(omega: float, kappa: float, jvp: str, case: Case) -> None:
    terms = case.terms(ExactGuided(omega / (1 - kappa)), Guidance(omega, kappa, null_label=NULL), jvp=jvp)
    assert float((terms.u - terms.target).detach().abs().max()) < EXACT


def test_wrong_guidance_is_noticed(case: Case) -> None:
    net = ExactGuided(GUIDED.effective_scale)
    for wrong in (
        None,  # no guidance at all
        replace(GUIDED, kappa=0.0),  # kappa's term missing
        replace(GUIDED, omega=GUIDED.effective_scale),  # the effective scale taken for omega
        replace(GUIDED, null_label=8),  # another null branch, and null rows guided
        replace(GUIDED, interval=(0.0, 0.5)),
    ):
        terms = case.terms(net, wrong)
        assert float((terms.u - terms.target).detach().abs().max()) > 0.1
    # A tangent that is not guided beside a target that is.
    guided = case.terms(net, GUIDED).v

    def unguided_tangent(fn: Any, primals: Any, tangents: Any, /) -> tuple[Tensor, Tensor]:
        assert torch.equal(tangents[0], guided)
        pair: tuple[Tensor, Tensor] = torch.func.jvp(fn, primals, (case.v, torch.zeros_like(case.r), tangents[2]))  # type: ignore[assignment]
        return pair

    terms = case.terms(net, GUIDED, jvp=unguided_tangent)
    assert float((terms.u - terms.target).detach().abs().max()) > 0.1


def test_rows_without_a_class_and_times_outside_the_interval_keep_their_velocity(case: Case) -> None:
    guidance = Guidance(3.0, 0.2, null_label=NULL, interval=(0.3, 0.7))
    v = case.terms(ExactGuided(1.0), guidance).v
    kept = (case.label == NULL) | (case.t < 0.3) | (case.t > 0.7)
    assert bool(kept.any())
    assert not bool(kept.all())
    assert torch.equal(v[kept], case.v[kept])
    assert bool((v[~kept] != case.v[~kept]).any(1).all())


def test_the_ends_of_the_interval_belong_to_it() -> None:
    t = torch.tensor([0.25, 0.5, 0.24, 0.51])
    guidance = Guidance(2.0, null_label=NULL, interval=(0.25, 0.5))
    assert guidance.active(t, torch.zeros(4, dtype=torch.long)).tolist() == [True, True, False, False]


def test_no_guidance_is_omega_one(case: Case) -> None:
    net = ExactGuided(1.3)
    plain, neutral = case.terms(net, None), case.terms(net, Guidance(1.0, null_label=NULL))
    # omega v + 0 u is v, to the sign of zero.
    assert torch.equal(plain.target, neutral.target)


def test_the_guided_velocity_carries_no_gradient(case: Case) -> None:
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def net(z: Tensor, r: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return scale * z

    terms = case.terms(net, GUIDED)
    assert not terms.v.requires_grad
    assert not terms.target.requires_grad
    # The gradient is that of the regression alone: d|scale z - target|^2 = 2 (scale z - target) z.
    (slope,) = torch.autograd.grad(terms.loss, scale)
    expected = (2 * (scale.detach() * case.z - terms.target) * case.z).sum(1).mean()
    torch.testing.assert_close(slope, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"omega": 2.0, "kappa": 1.0},
        {"omega": float("nan")},
        {"omega": 2.0, "kappa": float("nan")},
        {"omega": 2.0, "interval": (0.6, 0.5)},
        {"omega": 2.0, "interval": (0.0, 1.5)},
    ],
)
def test_scales_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="Wanted"):
        Guidance(**options, null_label=NULL)


def test_guidance_wants_integer_labels(case: Case) -> None:
    net = ExactGuided(1.0)
    with pytest.raises(ParameterError, match="without `label`"):
        meanflow_loss_at(lambda z, r, t: z, case.z, case.v, case.r, case.t, guidance=GUIDED)
    with pytest.raises(DtypeError, match=r"`label` is torch\.float64"):
        meanflow_loss_at(net, case.z, case.v, case.r, case.t, label=case.label.double(), guidance=GUIDED)


# ---------------------------------------------------------------- label dropout

ALARM = 1e-6  # probability that a correct dropout fails one of the tests below


def dependence(dropped: Tensor, equal: Tensor) -> float:
    """p-value of independence in the table of (dropped, r = t)."""
    table = [[int(((dropped == a) & (equal == b)).sum()) for b in (False, True)] for a in (False, True)]
    return float(scipy.stats.chi2_contingency(table, correction=False).pvalue)


def test_labels_are_dropped_independently_of_equal_times_and_of_the_row(generator: torch.Generator) -> None:
    law = UniformPair(equal=0.75)
    labels = torch.zeros(32, dtype=torch.long)
    dropped, equal = [], []
    for _ in range(1000):
        r, t = law.sample(32, generator, torch.float64)
        dropped.append(drop_labels(labels, 0.1, NULL, generator) == NULL)
        equal.append(r == t)
    drops = torch.stack(dropped)
    assert scipy.stats.binomtest(int(drops.sum()), drops.numel(), 0.1).pvalue > ALARM
    assert dependence(drops.flatten(), torch.stack(equal).flatten()) > ALARM
    # 32 positions share the alarm.
    assert min(scipy.stats.binomtest(int(c), 1000, 0.1).pvalue for c in drops.sum(0)) > ALARM / 32
    # What the test is able to see: both masks taken from the front of the batch.
    front = torch.arange(32).expand(1000, 32).flatten()
    assert dependence(front < 3, front < 24) < ALARM


def test_dropping_keeps_the_other_labels_and_repeats() -> None:
    labels = torch.arange(1000) % 7
    out = [drop_labels(labels, 0.3, NULL, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(out[0], out[1])
    kept = out[0] != NULL
    assert torch.equal(out[0][kept], labels[kept])
    assert torch.equal(labels, torch.arange(1000) % 7)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(drop_labels(labels, 0.0, NULL, generator), labels)
    assert bool((drop_labels(labels, 1.0, NULL, generator) == NULL).all())


def test_a_dropout_that_makes_no_sense(generator: torch.Generator) -> None:
    with pytest.raises(ParameterError, match="probability"):
        drop_labels(torch.zeros(3, dtype=torch.long), 1.5, NULL, generator)
    with pytest.raises(DtypeError, match="integer labels"):
        drop_labels(torch.zeros(3), 0.5, NULL, generator)
