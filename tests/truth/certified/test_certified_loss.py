"""Certified losses against torch's autograd in float64, which shares no code with them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import chain
from typing import Any

import pytest
import torch
from certified_cases import PATHS
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import CertificationError, MeanFlowError
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.truth.certified import CertifiedLoss, Enclosure, GuidanceScales, TanhNetwork, certified_loss

DIM, WIDTH, CLASSES = 2, 8, 3
# Values are of size 1 to 10 and a few hundred roundings enter: 1e-13 is some 50 to 500 of them.
TOLERANCE = 1e-13
TIMES = [(0.25, 0.75), (0.5, 0.5), (0.0, 1.0), (0.7 - 1e-9, 0.7)]


def layers(classes: int, seed: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(WIDTH, DIM + 2 + classes), (WIDTH, WIDTH), (DIM, WIDTH)]

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return [(0.5 * draw(n, m), 0.2 * draw(n)) for n, m in shapes]


def sample(seed: int = 5) -> tuple[list[float], list[float]]:
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, DIM, dtype=torch.float64, generator=generator).tolist()
    return x, eps


def network(parameters: list[Tensor], label: int | None, classes: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same perceptron in torch."""
    hot = torch.zeros(classes, dtype=torch.float64)
    if label is not None:
        hot[label] = 1

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        h = torch.cat([z, r[None], t[None], hot])
        for n in range(0, len(parameters), 2):
            h = parameters[n] @ h + parameters[n + 1]
            h = torch.tanh(h) if n + 2 < len(parameters) else h
        return h

    return u


def by_autograd(
    weights: list[tuple[Tensor, Tensor]],
    x: list[float],
    eps: list[float],
    r: float,
    t: float,
    *,
    path: AbstractPath = LINEAR,
    improved: bool = False,
    label: int | None = None,
    guidance: GuidanceScales | None = None,
    power: float = 1.0,
    mean: bool = False,
) -> dict[str, Any]:
    """Algorithm 1 for one sample, written out with torch's own JVP and backward pass."""
    classes = 0 if label is None else CLASSES
    parameters = [p.clone().requires_grad_() for p in chain.from_iterable(weights)]
    u_at = network(parameters, label, classes)
    r_, t_, x_, eps_ = (torch.tensor(value, dtype=torch.float64) for value in (r, t, x, eps))
    z = path.alpha(t_) * x_ + path.sigma(t_) * eps_
    v = path.alpha_dot(t_) * x_ + path.sigma_dot(t_) * eps_
    with torch.no_grad():
        if guidance is not None and label != guidance.null_label:
            null = network(parameters, guidance.null_label, classes)(z, t_, t_)
            own = u_at(z, t_, t_)
            v = guidance.omega * v + guidance.kappa * own + (1 - guidance.omega - guidance.kappa) * null
        tangent = u_at(z, t_, t_) if improved else v
        zero, one = torch.zeros_like(r_), torch.ones_like(t_)
        _, du_dt = torch.func.jvp(u_at, (z, r_, t_), (tangent, zero, one))  # type: ignore[misc]
    u = u_at(z, r_, t_)
    error = ((u + (t_ - r_) * du_dt - v) ** 2).mean() if mean else ((u + (t_ - r_) * du_dt - v) ** 2).sum()
    weight = (error.detach() + 1e-3) ** -power
    loss = weight * error
    gradients = torch.autograd.grad(loss, [u, *parameters])
    target = v - (t_ - r_) * du_dt
    scalars = {"squared_error": error.detach(), "weight": weight, "loss": loss.detach()}
    values = {"z": z, "v": v, "tangent": tangent, "u": u.detach(), "du_dt": du_dt, "target": target, **scalars}
    return {**values, "dloss_du": gradients[0], "gradient": gradients[1:]}


def worst(found: CertifiedLoss, wanted: dict[str, Any]) -> float:
    """Greatest distance of torch's values from the enclosures' midpoints, relative to each tensor's size."""
    distances: list[float] = []
    flat = [part for pair in found.gradient for part in pair]
    pairs = [(getattr(found, name), value) for name, value in wanted.items() if name != "gradient"]
    for enclosures, value in [*pairs, *zip(flat, wanted["gradient"], strict=True)]:
        numbers = list(flattened(enclosures))
        reference = value.reshape(-1).tolist()
        scale = 1 + max(abs(number) for number in reference)
        distances += [one.distance(number) / scale for one, number in zip(numbers, reference, strict=True)]
    return max(distances)


def flattened(value: Any) -> list[Enclosure]:
    return [value] if isinstance(value, Enclosure) else [one for part in value for one in flattened(part)]


@pytest.mark.parametrize("objective", ["meanflow", "improved"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_every_part_agrees_with_autograd(objective: str, power: float) -> None:
    x, eps = sample()
    weights = layers(0)
    for r, t in TIMES:
        found = certified_loss(TanhNetwork(weights), x, eps, r, t, objective=objective, weight_power=power)  # type: ignore[arg-type]
        wanted = by_autograd(weights, x, eps, r, t, improved=objective == "improved", power=power)
        assert worst(found, wanted) < TOLERANCE, (r, t)


@pytest.mark.parametrize("objective", ["meanflow", "improved"])
@pytest.mark.parametrize("label", [0, 2])
def test_guided_targets_agree_with_autograd(objective: str, label: int) -> None:
    """Label 2 is the null label, whose rows take the sample velocity."""
    x, eps = sample()
    weights, guidance = layers(CLASSES), GuidanceScales(1.5, 0.25, 2)
    for r, t in TIMES[:2]:
        options = {"label": label, "guidance": guidance}
        found = certified_loss(TanhNetwork(weights, CLASSES), x, eps, r, t, objective=objective, **options)  # type: ignore[arg-type]
        wanted = by_autograd(weights, x, eps, r, t, improved=objective == "improved", **options)  # type: ignore[arg-type]
        assert worst(found, wanted) < TOLERANCE, (r, t)


@pytest.mark.parametrize("path", PATHS)
def test_other_paths_and_the_mean_norm(path: str) -> None:
    x, eps = sample()
    weights = layers(0)
    found = certified_loss(TanhNetwork(weights), x, eps, 0.25, 0.75, path=PATHS[path], norm="mean")
    wanted = by_autograd(weights, x, eps, 0.25, 0.75, path=PATHS[path], mean=True)
    assert worst(found, wanted) < TOLERANCE


def test_34_digits_everywhere() -> None:
    x, eps = sample()
    found = certified_loss(TanhNetwork(layers(0)), x, eps, 0.25, 0.75)
    flat = flattened([getattr(found, name) for name in vars(found) if name != "bits"])
    assert all(one.digits >= 34 or Fraction(one.rad) < Fraction(1, 10**40) for one in flat)
    assert found.loss.correctly_rounded
    finer = certified_loss(TanhNetwork(layers(0)), x, eps, 0.25, 0.75, digits=100)
    assert finer.loss.digits >= 100
    assert found.loss.overlaps(finer.loss)


def test_the_parts_obey_exact_laws() -> None:
    """Conditional velocity in rational arithmetic; at p = 0 the weight is 1 and nothing else."""
    x, eps = sample()
    found = certified_loss(TanhNetwork(layers(0)), x, eps, 0.25, 0.75, weight_power=0.0)
    for one, a, b in zip(found.v, x, eps, strict=True):
        assert one.contains(Fraction(b) - Fraction(a))
    for one, a, b in zip(found.z, x, eps, strict=True):
        assert one.contains(Fraction(a) / 4 + Fraction(b) * 3 / 4)
    assert Fraction(found.weight.mid) == 1
    assert Fraction(found.weight.rad) == 0
    assert found.loss == found.squared_error


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("meanflow_target", lambda v, du_dt, r, t: v + (t - r) * du_dt),
        ("meanflow_target", lambda v, du_dt, r, t: v - du_dt),
        ("conditional_velocity", lambda x, eps, alpha_dot, sigma_dot: -(alpha_dot * x) - sigma_dot * eps),
        ("interpolant", lambda x, eps, alpha, sigma: sigma * x + alpha * eps),
        ("adaptive_weight", lambda squared_error, power, eps: (squared_error + eps) ** power),
    ],
)
def test_mutants_are_seen(name: str, mutant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, eps = sample()
    weights = layers(0)
    monkeypatch.setattr(formulas, name, mutant)
    found = certified_loss(TanhNetwork(weights), x, eps, 0.25, 0.75)
    assert worst(found, by_autograd(weights, x, eps, 0.25, 0.75)) > 1e-3


def test_bad_input_gives_one_clear_error() -> None:
    x, eps = sample()
    plain, labelled = TanhNetwork(layers(0)), TanhNetwork(layers(CLASSES), CLASSES)

    def refused(
        message: str, net: TanhNetwork = plain, times: tuple[float, float] = (0.25, 0.75), **options: Any
    ) -> None:
        data, noise = options.pop("x", x), options.pop("eps", eps)
        with pytest.raises(MeanFlowError, match=message):
            certified_loss(net, data, noise, *times, **options)

    refused("2, the network's outputs", x=[1.0])
    refused("NaN or infinite", eps=[1.0, float("nan")])
    refused("0 <= r <= t <= 1", times=(0.8, 0.2))
    refused("label=0 of a network with 0 classes", label=0)
    refused("label=None of a network with 3 classes", net=labelled)
    refused("null_label=7", net=labelled, label=0, guidance=GuidanceScales(2.0, 0.0, 7))
    refused("kappa < 1", net=labelled, label=0, guidance=GuidanceScales(2.0, 1.0, 2))
    refused("objective=", objective="flow")
    refused("norm=", norm="max")
    refused("p >= 0 and c > 0", weight_power=-1.0)
    with pytest.raises(MeanFlowError, match=r"layer 1: 8 rows of \[8\] numbers, b of 7"):
        TanhNetwork([(layers(0)[0]), (layers(0)[1][0], torch.zeros(7)), layers(0)[2]])
    with pytest.raises(MeanFlowError, match="no layers"):
        TanhNetwork([])
    with pytest.raises(MeanFlowError, match="NaN or infinite"):
        TanhNetwork([(torch.full((2, 4), float("inf")), torch.zeros(2))])


def test_an_infinite_schedule_derivative_is_refused() -> None:
    x, eps = sample()
    with pytest.raises(CertificationError, match="whose derivatives are finite at t"):
        certified_loss(TanhNetwork(layers(0)), x, eps, 0.0, 0.0, path=PATHS["variance preserving"])
