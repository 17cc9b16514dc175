"""Wrong losses: each is refuted, and what is wrong with it is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from meanflow_ref.kit.prove import prove_loss
from meanflow_ref.objectives.meanflow import meanflow_loss

Net = Callable[..., Tensor]
# torch's type also allows for three results.
jvp = cast(Callable[..., tuple[Tensor, Tensor]], torch.func.jvp)
GUIDED: dict[str, Any] = {"call": "z, r, t, y", "inputs": "x, eps, r, t, y, omega, kappa"}
NULL = 7


def column(time: Tensor) -> Tensor:
    return time[:, None]


def linear(x: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return (1 - column(t)) * x + column(t) * eps, eps - x


def squares(delta: Tensor) -> Tensor:
    return (delta**2).sum(1).mean()


@dataclass(frozen=True)
class Mutant:
    name: str
    loss: Callable[..., Tensor]
    options: dict[str, Any]
    # The fault is in the gradient alone: the value is right.
    gradient_only: bool = False


MUTANTS: list[Mutant] = []


def mutant(name: str, gradient_only: bool = False, **options: Any) -> Callable[[Callable[..., Tensor]], None]:
    def enter(loss: Callable[..., Tensor]) -> None:
        MUTANTS.append(Mutant(name, loss, options, gradient_only))

    return enter


# ---------------------------------------------------------------- tangents


def with_tangents(dz: float, dr: float, dt: float) -> Callable[..., Tensor]:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = linear(x, eps, t)
        u, du = jvp(net, (z, r, t), (dz * v, dr * torch.ones_like(r), dt * torch.ones_like(t)))
        return squares(u - (v - column(t - r) * du).detach())

    return loss


mutant("R_AND_T_SWAPPED")(with_tangents(1, 1, 0))
mutant("R_MOVES")(with_tangents(1, 1, 1))
mutant("TIME_TANGENT_MISSING")(with_tangents(1, 0, 0))
mutant("TIME_TANGENT_SIGN")(with_tangents(1, 0, -1))
mutant("SPATIAL_TANGENT_MISSING")(with_tangents(0, 0, 1))
mutant("TANGENT_SIGN")(with_tangents(-1, 0, 1))


@mutant("R_MOVES", call="z, t, h")
def _h_has_no_tangent(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    # A network of (z, t, h) with h held fixed: r = t - h moves along.
    z, v = linear(x, eps, t)
    u, du = jvp(net, (z, t, t - r), (v, torch.ones_like(t), torch.zeros_like(t)))
    return squares(u - (v - column(t - r) * du).detach())


@mutant("TANGENT_NOT_VELOCITY")
def _tangent_is_noise(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    u, du = jvp(lambda z, t: net(z, r, t), (z, t), (eps, torch.ones_like(t)))
    return squares(u - (v - column(t - r) * du).detach())


@mutant("TRANSPOSED_JACOBIAN")
def _vjp_for_jvp(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    z = z.detach().requires_grad_()
    u = net(z, r, t)
    (spatial,) = torch.autograd.grad(u, z, v, create_graph=True)
    _, temporal = jvp(lambda t: net(z, r, t), (t,), (torch.ones_like(t),))
    return squares(u - (v - column(t - r) * (spatial + temporal)).detach())


@mutant("SUMMED_OUTPUTS")
def _sums_over_outputs(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    z, t_ = z.detach().requires_grad_(), t.detach().requires_grad_()
    u = net(z, r, t_)
    spatial, temporal = torch.autograd.grad(u.sum(), (z, t_), create_graph=True)
    return squares(net(z, r, t) - (v - column(t - r) * (spatial * v + column(temporal))).detach())


# ---------------------------------------------------------------- interval, sign, velocity


def with_target(target: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = linear(x, eps, t)
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        return squares(u - target(x, eps, v, du, column(r), column(t)).detach())

    return loss


mutant("INTERVAL_SIGN")(with_target(lambda x, eps, v, du, r, t: v + (t - r) * du))
mutant("INTERVAL_NOT_T_MINUS_R")(with_target(lambda x, eps, v, du, r, t: v - t * du))
mutant("INTERVAL_NOT_T_MINUS_R")(with_target(lambda x, eps, v, du, r, t: v - du))
mutant("INTERVAL_NOT_T_MINUS_R")(with_target(lambda x, eps, v, du, r, t: v - (1 - t) * du))
mutant("COEFFICIENT")(with_target(lambda x, eps, v, du, r, t: v - 0.5 * (t - r) * du))
mutant("FLOW_MATCHING_ONLY")(with_target(lambda x, eps, v, du, r, t: v))
mutant("VELOCITY_SIGN_IN_TARGET")(with_target(lambda x, eps, v, du, r, t: -v - (t - r) * du))
mutant("VELOCITY_MISSING")(with_target(lambda x, eps, v, du, r, t: -(t - r) * du))
mutant("UNKNOWN_DIFFERENCE")(with_target(lambda x, eps, v, du, r, t: (v - (t - r) * du).clamp(-1, 1)))
mutant("UNKNOWN_DIFFERENCE")(with_target(lambda x, eps, v, du, r, t: v - (t - r) * du + 0.25 * eps))


@mutant("VELOCITY_SIGN")
def _velocity_reversed(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    u, du = jvp(net, (z, r, t), (-v, torch.zeros_like(r), torch.ones_like(t)))
    return squares(u - (-v - column(t - r) * du).detach())


@mutant("VELOCITY_SIGN")
def _path_reversed_velocity_not(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = column(t) * x + (1 - column(t)) * eps, eps - x
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return squares(u - (v - column(t - r) * du).detach())


@mutant("R_AND_T_SWAPPED")
def _network_called_with_t_first(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    u, du = jvp(net, (z, t, r), (v, torch.ones_like(t), torch.zeros_like(r)))
    return squares(u - (v - column(t - r) * du).detach())


@mutant("R_AND_T_SWAPPED")
def _state_at_the_other_time(net: Net, x: Tensor) -> Tensor:
    eps, t = torch.randn_like(x), torch.rand(x.shape[0])
    r = t * torch.rand(x.shape[0])
    z, v = linear(x, eps, r)
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return squares(u - (v - column(t - r) * du).detach())


@mutant("FINITE_DIFFERENCE")
def _one_sided_difference(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    u = net(z, r, t)
    du = (net(z + 0.01 * v, r, t + 0.01) - u) / 0.01
    return squares(u - (v - column(t - r) * du).detach())


mutant("FINITE_DIFFERENCE", inputs="x, eps, r, t")(
    lambda net, *inputs: meanflow_loss(net, *inputs, jvp="finite_difference").loss
)


# ---------------------------------------------------------------- the stop-gradient


def detaching(
    target: bool = True, weight: bool = True, power: float = 1.0, only_v: bool = False
) -> Callable[..., Tensor]:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = linear(x, eps, t)
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        aim = v - column(t - r) * du
        error = ((u - (aim.detach() if target else aim)) ** 2).sum(1)
        factor = (error + 0.01) ** -power
        return ((factor.detach() if weight else factor) * error).mean()

    return loss


mutant("TARGET_NOT_DETACHED", gradient_only=True)(detaching(target=False, power=0.0))
mutant("TARGET_NOT_DETACHED", gradient_only=True)(detaching(target=False, power=0.5))
mutant("WEIGHT_NOT_DETACHED", gradient_only=True)(detaching(weight=False))
mutant("WEIGHT_NOT_DETACHED", gradient_only=True)(detaching(weight=False, power=0.75))
mutant("TARGET_AND_WEIGHT_NOT_DETACHED", gradient_only=True)(detaching(target=False, weight=False))


@mutant("PREDICTION_DETACHED", gradient_only=True)
def _u_without_graph(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, v = linear(x, eps, t)
    with torch.no_grad():
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return squares(u - (v - column(t - r) * du))


@mutant("TARGET_NOT_DETACHED", gradient_only=True)
def _no_grad_does_not_reach_back(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    # `no_grad` around the subtraction alone would detach; around a list of its parts it does not.
    z, v = linear(x, eps, t)
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    with torch.no_grad():
        h = column(t - r)
    return squares(u - (v - h * du))


# ---------------------------------------------------------------- weight and reduction


def weighing(weigh: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = linear(x, eps, t)
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        return weigh((u - (v - column(t - r) * du).detach()) ** 2)

    return loss


def batch_weight(parts: Tensor) -> Tensor:
    error = parts.sum(1).mean()
    return error / (error + 1e-3).detach()


def element_weight(parts: Tensor) -> Tensor:
    return (parts / (parts + 1e-3).detach()).sum(1).mean()


def twice_squared(parts: Tensor) -> Tensor:
    error = parts.sum(1)
    return (error / (error**2 + 1e-3).detach()).mean()


mutant("WEIGHT_BATCH_COUPLED")(weighing(batch_weight))
mutant("WEIGHT_PER_ELEMENT")(weighing(element_weight))
mutant("WEIGHT_SQUARED_TWICE")(weighing(twice_squared))
mutant("WEIGHT_EPS")(weighing(lambda parts: (parts.sum(1) / (parts.sum(1) - 1e-3).detach()).mean()))
mutant("UNKNOWN_DIFFERENCE")(weighing(lambda parts: parts[1:].sum(1).mean()))
mutant("UNKNOWN_DIFFERENCE")(weighing(lambda parts: parts[:, 0].mean()))


@mutant("UNKNOWN_DIFFERENCE")
def _rows_broadcast_against_columns(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    # (B,) * (B, 1) is (B, B): every error under every weight.
    z, v = linear(x, eps, t)
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    error = ((u - (v - column(t - r) * du).detach()) ** 2).sum(1, keepdim=True)
    return (error / (error[:, 0] + 1e-3).detach()).mean()


# ---------------------------------------------------------------- guidance


def guiding(
    mix: Callable[..., Tensor], tangent: str = "guided", target: str = "guided", detach: bool = True
) -> Callable[..., Tensor]:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor, omega: Any, kappa: Any) -> Tensor:
        z, v = linear(x, eps, t)
        null = torch.full_like(y, NULL)
        with torch.set_grad_enabled(not detach):
            guided = mix(net, z, v, r, t, y, null, omega, kappa)
        picked = {"guided": guided, "plain": v}
        _, du = jvp(
            lambda z, r, t: net(z, r, t, y), (z, r, t), (picked[tangent], torch.zeros_like(r), torch.ones_like(t))
        )
        aim = picked[target] - column(t - r) * (du.detach() if not detach else du)
        return squares(net(z, r, t, y) - (aim.detach() if detach else aim))

    return loss


def right_mix(net: Net, z: Tensor, v: Tensor, r: Tensor, t: Tensor, y: Tensor, null: Tensor, w: Any, k: Any) -> Tensor:
    mixed: Tensor = w * v + k * net(z, t, t, y) + (1 - w - k) * net(z, t, t, null)
    return mixed


def mix_at_r(net: Net, z: Tensor, v: Tensor, r: Tensor, t: Tensor, y: Tensor, null: Tensor, w: Any, k: Any) -> Tensor:
    mixed: Tensor = w * v + k * net(z, r, t, y) + (1 - w - k) * net(z, r, t, null)
    return mixed


def null_at_r(net: Net, z: Tensor, v: Tensor, r: Tensor, t: Tensor, y: Tensor, null: Tensor, w: Any, k: Any) -> Tensor:
    mixed: Tensor = w * v + k * net(z, t, t, y) + (1 - w - k) * net(z, r, t, null)
    return mixed


def no_kappa(net: Net, z: Tensor, v: Tensor, r: Tensor, t: Tensor, y: Tensor, null: Tensor, w: Any, k: Any) -> Tensor:
    mixed: Tensor = w * v + k * net(z, t, t, y) + (1 - w) * net(z, t, t, null)
    return mixed


mutant("GUIDED_TARGET_UNGUIDED_TANGENT", **GUIDED)(guiding(right_mix, tangent="plain"))
mutant("GUIDED_TANGENT_UNGUIDED_TARGET", **GUIDED)(guiding(right_mix, target="plain"))
mutant("GUIDANCE_AT_R", **GUIDED)(guiding(mix_at_r))
mutant("NULL_BRANCH_AT_R", **GUIDED)(guiding(null_at_r))
mutant("KAPPA_MISSING", **GUIDED)(guiding(no_kappa))


# ---------------------------------------------------------------- the laws of the draws


@mutant("NOISE_SHARED")
def _one_noise_for_all_rows(net: Net, x: Tensor) -> Tensor:
    eps, t = torch.randn(1, x.shape[1]).expand_as(x), torch.rand(x.shape[0])
    return with_tangents(1, 0, 1)(net, x, eps, t * torch.rand(x.shape[0]), t)


@mutant("NOISE_NOT_NORMAL")
def _uniform_noise(net: Net, x: Tensor) -> Tensor:
    t = torch.rand(x.shape[0])
    return with_tangents(1, 0, 1)(net, x, torch.rand_like(x), t * torch.rand(x.shape[0]), t)


@mutant("TIMES_OUT_OF_RANGE")
def _normal_times(net: Net, x: Tensor) -> Tensor:
    t = torch.randn(x.shape[0])
    return with_tangents(1, 0, 1)(net, x, torch.randn_like(x), t * torch.rand(x.shape[0]), t)


@mutant("NOISE_TIED_TO_TIMES")
def _time_from_the_noise(net: Net, x: Tensor) -> Tensor:
    eps = torch.randn_like(x)
    t = torch.sigmoid(eps[:, 0])
    return with_tangents(1, 0, 1)(net, x, eps, t * torch.rand(x.shape[0]), t)


@pytest.mark.parametrize("case", MUTANTS, ids=lambda case: f"{case.name}-{case.loss.__name__}")
def test_a_mutant_is_refuted_and_its_fault_is_named(case: Mutant) -> None:
    report = prove_loss(case.loss, shapes=[(2, 3)], **case.options)
    assert report.verdict == "REFUTED", str(report)
    assert report.faults[0] == case.name, str(report)
    if case.gradient_only:
        assert report.value.verdict == "PROVED", str(report)
        assert report.gradient.verdict == "REFUTED", str(report)
        assert report.gradient.witness


def test_there_are_enough_mutants_of_every_part() -> None:
    names = {case.name for case in MUTANTS}
    assert len(MUTANTS) >= 40
    assert len(names) >= 25
