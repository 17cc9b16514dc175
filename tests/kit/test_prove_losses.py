"""Right losses: this library's own, on every exact backend, and others' in varied styles. All must be proved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from meanflow_ref.convention import Convention
from meanflow_ref.jvp import BACKENDS
from meanflow_ref.kit.prove import prove_loss
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at
from meanflow_ref.objectives.times import AbstractTimePair, LogitNormalPair, UniformPair
from meanflow_ref.paths import TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath

Net = Callable[..., Tensor]
# torch's type also allows for three results.
jvp = cast(Callable[..., tuple[Tensor, Tensor]], torch.func.jvp)
GIVEN = "x, eps, r, t"
ONE_SHAPE: dict[str, Any] = {"inputs": GIVEN, "shapes": [(2, 3)]}
LABELLED: dict[str, Any] = {"call": "z, r, t, y", "shapes": [(2, 3)]}
EXACT = [name for name in BACKENDS if name != "finite_difference"]


def shipped(**options: Any) -> Callable[..., Tensor]:
    return lambda net, *inputs: meanflow_loss(net, *inputs, **options).loss


# ---------------------------------------------------------------- this library's


@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize("backend", EXACT)
def test_every_exact_backend(backend: str, two_pass: bool) -> None:
    report = prove_loss(shipped(jvp=backend, two_pass=two_pass), inputs=GIVEN)
    assert report.verdict == "PROVED", str(report)
    assert report.formula.startswith("MeanFlow; path z = (1 - t) x + t eps; weight power 1, eps 1/1000, of the sum")
    assert report.formula.endswith("sum over the event, mean over the batch")


@pytest.mark.parametrize("power", [0, 0.5, 0.75, 1, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.25, 2))])
@pytest.mark.parametrize("norm", ["sum", pytest.param("mean", marks=pytest.mark.slow)])
def test_every_weight(power: float, norm: str) -> None:
    report = prove_loss(shipped(weight_power=power, weight_eps=0.01, norm=norm), **ONE_SHAPE)
    assert report.verdict == "PROVED", str(report)
    named = {0: "0", 0.25: "1/4", 0.5: "1/2", 0.75: "3/4", 1: "1", 2: "2"}[power]
    assert f"weight power {named}" in report.formula
    assert not power or f"eps 1/100, of the {norm} over the event" in report.formula
    assert f"{norm} over the event, mean over the batch" in report.formula


@pytest.mark.parametrize(
    ("path", "words"), [(TRIGONOMETRIC, "cos(1/2 t pi)"), (VARIANCE_PRESERVING, "exp(-199/40 t^2 - 1/20 t)")]
)
def test_every_path(path: AbstractPath, words: str) -> None:
    report = prove_loss(shipped(path=path), **ONE_SHAPE)
    assert report.verdict == "PROVED", str(report)
    assert words in report.formula


@pytest.mark.parametrize("backend", EXACT)
def test_guidance_with_symbolic_scales(backend: str) -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor, omega: Any, kappa: Any) -> Tensor:
        guidance = Guidance(omega, kappa, null_label=9)
        return meanflow_loss(net, x, eps, r, t, label=y, guidance=guidance, jvp=backend, weight_power=0.0).loss

    report = prove_loss(loss, inputs="x, eps, r, t, y, omega, kappa", **LABELLED)
    assert report.verdict == "PROVED", str(report)
    assert "guided MeanFlow" in report.formula
    assert "omega omega, kappa kappa, null label 9, guided: rows with [y[0] != 9]" in report.formula
    assert "kappa < 1" in report.hypotheses


@pytest.mark.parametrize(("omega", "kappa"), [(2.0, 0.0), (1.4, 0.3)])
def test_guidance_with_numbers_in_an_interval(omega: float, kappa: float) -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        guidance = Guidance(omega, kappa, null_label=9, interval=(0.25, 0.75))
        return meanflow_loss(net, x, eps, r, t, label=y, guidance=guidance).loss

    report = prove_loss(loss, inputs="x, eps, r, t, y", **LABELLED)
    assert report.verdict == "PROVED", str(report)
    scales = {2.0: "omega 2, kappa 0", 1.4: "omega 7/5, kappa 3/10"}[omega]
    assert scales in report.formula
    assert "([y[0] != 9] and [t[0] >= 1/4]) and [t[0] <= 3/4]" in report.formula


@pytest.mark.parametrize(
    "law",
    [UniformPair(), LogitNormalPair(), UniformPair(equal=0.5, share="bernoulli")],
    ids=lambda law: f"{type(law).__name__}-{law.share}",
)
def test_times_and_noise_drawn_inside(law: AbstractTimePair) -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        r, t = law.sample(x.shape[0], torch.default_generator)
        return meanflow_loss(net, x, torch.randn_like(x), r, t).loss

    report = prove_loss(loss, shapes=[(2, 3)])
    assert report.verdict == "PROVED", str(report)


@pytest.mark.parametrize(
    "convention", [Convention("z, (t, h)"), Convention("z, t, h"), Convention("x=z, end=t, start=r")], ids=str
)
def test_every_convention(convention: Convention) -> None:
    report = prove_loss(shipped(convention=convention), call=convention.arguments, **ONE_SHAPE)
    assert report.verdict == "PROVED", str(report)


def test_reversed_times() -> None:
    convention = Convention("z, t, r", time="data_at_one")
    report = prove_loss(shipped(convention=convention), call="z, t, r", **ONE_SHAPE)
    assert report.verdict == "PROVED", str(report)
    assert "data at t = 1" in report.formula


def test_given_states_and_velocities() -> None:
    report = prove_loss(lambda net, *inputs: meanflow_loss_at(net, *inputs).loss, inputs="z, v, r, t")
    assert report.verdict == "PROVED", str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images(dtype: torch.dtype) -> None:
    report = prove_loss(shipped(), inputs=GIVEN, shapes=[(2, 2, 1, 2)], dtype=dtype)
    assert report.verdict == "PROVED", str(report)


# ---------------------------------------------------------------- others'

OTHERS: list[tuple[Callable[..., Tensor], dict[str, Any], str]] = []


def other(words: str = "MeanFlow; path z = (1 - t) x + t eps", **options: Any) -> Callable[..., None]:
    def enter(loss: Callable[..., Tensor]) -> None:
        OTHERS.append((loss, options, words))

    return enter


def column(time: Tensor) -> Tensor:
    return time[:, None]


def draws(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Times, state and velocity."""
    t = torch.rand(x.shape[0])
    r, eps = t * torch.rand(x.shape[0]), torch.randn_like(x)
    return r, t, (1 - column(t)) * x + column(t) * eps, eps - x


def along(net: Net, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return u, du


@other()
def _logit_normal_times_and_a_random_mask(net: Net, x: Tensor) -> Tensor:
    pair = torch.sigmoid(torch.randn(x.shape[0], 2) - 0.4)
    t, r = pair.max(dim=1).values, pair.min(dim=1).values
    r = torch.where(torch.rand(x.shape[0]) < 0.75, t, r)
    eps = torch.randn_like(x)
    u, du = along(net, torch.lerp(x, eps, column(t)), r, t, eps - x)
    error = ((u - (eps - x - column(t - r) * du).detach()) ** 2).sum(1)
    return (error / (error.detach() + 1e-3)).mean()


@other()
def _sorted_times_and_some_rows_made_equal(net: Net, x: Tensor) -> Tensor:
    pair = torch.rand(x.shape[0], 2).sort(dim=1).values
    r, t = pair[:, 0].clone(), pair[:, 1]
    chosen = torch.randperm(x.shape[0])[:1]
    r[chosen] = t[chosen]
    z, eps = x.clone(), torch.randn_like(x)
    z.mul_(1 - column(t)).add_(column(t) * eps)
    u, du = along(net, z, r, t, eps - x)
    return torch.nn.functional.mse_loss(u, (eps - x - column(t - r) * du).detach())


@other()
def _times_of_shape_b_1(net: Net, x: Tensor) -> Tensor:
    a, b = torch.rand(2, x.shape[0], 1)
    t, r, eps = torch.maximum(a, b), torch.minimum(a, b), torch.randn_like(x)
    u, du = along(net, (1 - t) * x + t * eps, r, t, eps - x)
    return ((u - (eps - x - (t - r) * du).detach()) ** 2).flatten(1).sum(-1).mean()


@other(call="z, t, h")
def _a_network_of_the_duration(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    u, du = jvp(net, (z, t, t - r), (v, torch.ones_like(t), torch.ones_like(t)))
    return ((u - (v - column(t - r) * du).detach()) ** 2).sum(-1).mean()


@other()
def _written_as_a_velocity(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    u, du = along(net, z, r, t, v)
    return ((u + column(t - r) * du.detach() - v) ** 2).sum(-1).mean()


@other("improved MeanFlow (tangent u(z, t, t))")
def _improved(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    with torch.no_grad():
        own = net(z, t, t)
    u, du = along(net, z, r, t, own)
    return ((u + column(t - r) * du.detach() - v) ** 2).sum(-1).mean()


@other()
def _equal_times_by_where(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    u, du = along(net, z, r, t, v)
    target = torch.where(column(r == t), v, v - column(t - r) * du)
    return ((u - target.detach()) ** 2).sum(-1).mean()


@other()
def _autograd_functional(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    tangents = (v, torch.zeros_like(r), torch.ones_like(t))
    _, du = torch.autograd.functional.jvp(net, (z, r, t), tangents)  # type: ignore[no-untyped-call]
    target: Tensor = (v - column(t - r) * du).detach()
    return ((net(z, r, t) - target) ** 2).sum(-1).mean()


@other("log(S + 1/1000) of the sum")
def _logarithm(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    u, du = along(net, z, r, t, v)
    return torch.log(((u - (v - column(t - r) * du).detach()) ** 2).sum(-1) + 1e-3).mean()


@other("(S + 1/1000)^(1/2) of the sum")
def _pseudo_huber(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    u, du = along(net, z, r, t, v)
    return (((u - (v - column(t - r) * du).detach()) ** 2).sum(-1) + 1e-3).sqrt().mean()


@other("weight power 1, eps 1/1000, of the mean over the event")
def _weight_of_the_mean(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    u, du = along(net, z, r, t, v)
    error = (u - (v - column(t - r) * du).detach()).square().mean(dim=1)
    return (error * (1.0 / (error + 1e-3).pow(1.0)).detach()).mean()


@other("z = x cos(1/2 t pi) + (sin(1/2 t pi)) eps")
def _a_circle(net: Net, x: Tensor) -> Tensor:
    r, t, _, _ = draws(x)
    eps, quarter = torch.randn_like(x), math.pi / 2
    a, b = torch.cos(quarter * column(t)), torch.sin(quarter * column(t))
    v = quarter * (a * eps - b * x)
    u, du = along(net, a * x + b * eps, r, t, v)
    return ((u - (v - column(t - r) * du).detach()) ** 2).sum(-1).mean()


@other("data at t = 1")
def _data_at_one(net: Net, x: Tensor) -> Tensor:
    r, t, _, _ = draws(x)
    eps = torch.randn_like(x)
    u, du = along(net, column(t) * x + (1 - column(t)) * eps, r, t, x - eps)
    return ((u - (x - eps - column(t - r) * du).detach()) ** 2).sum(-1).mean()


@other()
def _a_loop_over_rows(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    total = x.new_zeros(())
    for b in range(x.shape[0]):
        row = slice(b, b + 1)
        u, du = along(net, z[row], r[row], t[row], v[row])
        total = total + ((u - (v[row] - column(t - r)[row] * du).detach()) ** 2).sum()
    return total / x.shape[0]


@other()
def _equal_times_in_a_call_of_their_own(net: Net, x: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    k = x.shape[0] // 2
    u, du = along(net, z[k:], r[k:], t[k:], v[k:])
    apart = u - (v[k:] - column(t - r)[k:] * du).detach()
    equal = net(z[:k], t[:k], t[:k]) - v[:k]
    error = torch.cat([equal, apart]).square().sum(1)
    return (error * (error + 1e-3).pow(-0.5).detach()).mean()


@other("guided MeanFlow", call="z, r, t, y", inputs="x, y")
def _both_branches_in_one_batch(net: Net, x: Tensor, y: Tensor) -> Tensor:
    r, t, z, v = draws(x)
    null = torch.full_like(y, 9)
    y = torch.where(torch.rand(x.shape[0]) < 0.1, null, y)
    with torch.no_grad():
        own, none = net(torch.cat([z, z]), torch.cat([t, t]), torch.cat([t, t]), torch.cat([y, null])).chunk(2)
    guided = 1.5 * v + 0.25 * own + (1 - 1.5 - 0.25) * none
    u, du = along(lambda z, r, t: net(z, r, t, y), z, r, t, guided)
    return ((u - (guided - column(t - r) * du).detach()) ** 2).sum(-1).mean()


@pytest.mark.parametrize(("loss", "options", "words"), OTHERS, ids=lambda case: getattr(case, "__name__", ""))
def test_a_right_loss_is_proved(loss: Callable[..., Tensor], options: dict[str, Any], words: str) -> None:
    report = prove_loss(loss, shapes=[(2, 3)], **options)
    assert report.verdict == "PROVED", str(report)
    assert words in report.formula


def test_a_division_is_a_condition() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z = (1 - column(t)) * x + column(t) * eps
        v = (z - x) / column(t)
        u, du = along(net, z, r, t, v)
        return ((u - (v - column(t - r) * du).detach()) ** 2).sum(-1).mean()

    report = prove_loss(loss, **ONE_SHAPE)
    assert report.verdict == "PROVED", str(report)
    assert "t[0] = 0" in report.conditions


def test_the_report_counts_network_passes_and_lists_constants() -> None:
    one, two = (prove_loss(shipped(two_pass=flag), **ONE_SHAPE) for flag in (False, True))
    assert dict(one.network_calls) == {"u": 1, "du": 1, "vu": 1}
    assert dict(two.network_calls) == {"u": 2, "du": 1, "vu": 1}
    assert [constant.text for constant in one.constants] == ["1/1000"]
    assert "holds for every differentiable, deterministic, row-wise network" in str(one)
