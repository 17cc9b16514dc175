"""Losses put together at random: path, engine, call, reduction, weight, guidance, and one injected bug or none.

The pieces are written plainly and share nothing with :mod:`meanflow_ref.objectives`, so that the checker is not checked by
itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Loss = Callable[..., Tensor]

PATHS = ("linear", "trigonometric", "reversed", "scaled", "sigma_min")
ENGINES = ("func", "forward_ad", "double_backward", "difference", "two_pass", "reverse_twice")
CALLS = ("z, r, t", "z, t, r", "z, t, h", "z, (t, h)", "x=z, start=r, end=t", "z, t, -h")
REDUCTIONS = ("sum", "mean")
TIMES = ("(B,)", "(B, 1)", "broadcast")
METRICS = ("adaptive", "plain", "log", "pseudo-huber")

# Bug -> the diagnosis that must be named.
BUGS: dict[str, str] = {
    "velocity negated": "VELOCITY_SIGN",
    "velocity of another path": "PATH_TANGENT_MISMATCH",
    "tangents of r and t swapped": "R_AND_T_SWAPPED",
    "r moves with t": "R_MOVES",
    "no spatial tangent": "SPATIAL_TANGENT_MISSING",
    "no time tangent": "TIME_TANGENT_MISSING",
    "tangent is the state": "TANGENT_NOT_VELOCITY",
    "tangent is minus the velocity": "TANGENT_NOT_VELOCITY",
    "coefficient halved": "COEFFICIENT",
    "no derivative": "COEFFICIENT",
    "plus sign": "INTERVAL_SIGN",
    "no interval": "INTERVAL_NOT_T_MINUS_R",
    "t instead of t - r": "INTERVAL_NOT_T_MINUS_R",
    "target attached": "TARGET_NOT_DETACHED",
    "prediction detached": "PREDICTION_DETACHED",
    "squared twice": "WEIGHT_SQUARED_TWICE",
    "weight per element": "WEIGHT_PER_ELEMENT",
    "weight attached": "WEIGHT_NOT_DETACHED",
    "weight over the batch": "WEIGHT_BATCH_COUPLED",
    "weight's power negated": "WEIGHT_POWER",
    "target clamped": "TARGET_CLIPPED",
    "r above t": "R_GREATER_THAN_T",
    "times out of range": "TIMES_OUT_OF_RANGE",
    "never r < t": "NEVER_R_NEQ_T",
    "one coin a batch": "PER_BATCH_COIN",
    "unguided tangent": "GUIDED_TARGET_UNGUIDED_TANGENT",
    "null branch has the label": "NULL_BRANCH_CONDITIONAL",
    "kappa missing": "KAPPA_MISSING",
}  # fmt: skip
_GUIDED = {"unguided tangent", "null branch has the label", "kappa missing"}


@dataclass(frozen=True)
class Recipe:
    """The pieces of a loss."""

    path: str = "linear"
    engine: str = "func"
    call: str = "z, r, t"
    reduction: str = "sum"
    metric: str = "adaptive"
    power: float = 1.0
    eps: float = 1e-3
    omega: float = 1.0
    kappa: float = 0.0
    equal: float = 0.5
    time_shape: str = "(B,)"
    numpy_times: bool = False
    improved: bool = False
    bug: str = ""

    @property
    def spec(self) -> str:
        """The call as the check is told."""
        label = ", y=y" if "=" in self.call else ", y"
        return self.call + label if self.guided else self.call

    @property
    def guided(self) -> bool:
        """Whether the target is guided."""
        return self.omega != 1.0

    @property
    def diagnosis(self) -> str:
        """What must be named, or nothing."""
        return BUGS.get(self.bug, "")

    def build(self) -> Loss:
        """The loss, ``loss(net, x)`` or, if guided, ``loss(net, x, labels)``."""
        if self.guided:
            return lambda net, x, labels: _loss(self, net, x, labels)
        return lambda net, x: _loss(self, net, x, None)


def draw_recipe(seed: int) -> Recipe:
    """A random recipe; about one in four has no bug."""
    rng = random.Random(seed)
    bug = rng.choice(["", *BUGS]) if rng.random() < 0.8 else ""
    guided = bug in _GUIDED or (bug == "" and rng.random() < 0.25)
    metric = rng.choice(METRICS)
    if bug in {
        "squared twice",
        "weight per element",
        "weight attached",
        "weight over the batch",
        "weight's power negated",
    }:
        metric = "adaptive"
    path = rng.choice(PATHS)
    if bug in {"velocity of another path", "prediction detached"} or guided:
        path = "linear"
    engine = rng.choice(ENGINES)
    if bug == "target attached" and engine == "two_pass":
        # A derivative without a graph is detached, whatever stands behind it.
        engine = "func"
    return Recipe(
        path=path, engine=engine, call=rng.choice(CALLS), reduction=rng.choice(REDUCTIONS), metric=metric,
        power=rng.choice([0.5, 0.75, 1.0]), eps=rng.choice([1e-3, 1e-2]), omega=rng.choice([1.5, 2.0, 3.0]) if guided else 1.0,
        kappa=0.0 if bug == "null branch has the label" else 0.5 if bug == "kappa missing" else rng.choice([0.0, 0.5]),
        equal=rng.choice([0.25, 0.5, 0.75]), time_shape=rng.choice(TIMES), numpy_times=rng.random() < 0.3,
        improved=bug == "" and not guided and rng.random() < 0.15, bug=bug,
    )  # fmt: skip


# ---------------------------------------------------------------- pieces


def _times(recipe: Recipe, n: int) -> tuple[Tensor, Tensor]:
    if recipe.numpy_times:
        import numpy as np

        pair = torch.from_numpy(np.random.rand(2, n)).to(torch.get_default_dtype())  # noqa: NPY002
    else:
        pair = torch.rand(2, n)
    t, r = torch.maximum(pair[0], pair[1]), torch.minimum(pair[0], pair[1])
    if recipe.bug == "one coin a batch":
        r = t.clone() if random.random() < recipe.equal else r
    else:
        r = torch.where(torch.rand(n) < recipe.equal, t, r)
    if recipe.path == "reversed":
        t, r = 1 - t, 1 - r
    if recipe.bug == "r above t":
        r = torch.where(torch.rand(n) < 0.3, t - 0.3 * (t - 0) if recipe.path == "reversed" else t + 0.5 * (1 - t), r)
    if recipe.bug == "times out of range":
        late = torch.rand(n) < 0.15
        t = torch.where(late, -0.2 * torch.rand(n) if recipe.path == "reversed" else 1 + 0.2 * torch.rand(n), t)
    return (t.clone(), t) if recipe.bug == "never r < t" else (r, t)


def _path(recipe: Recipe, x: Tensor, e: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """State and velocity."""
    if recipe.path == "scaled":
        x = 2 * x - 1
    if recipe.path == "trigonometric":
        angle = math.pi / 2 * t
        z, v = angle.cos() * x + angle.sin() * e, math.pi / 2 * (angle.cos() * e - angle.sin() * x)
    elif recipe.path == "reversed":
        z, v = t * x + (1 - t) * e, x - e
    elif recipe.path == "sigma_min":
        z, v = (1 - t) * x + (0.01 + 0.99 * t) * e, 0.99 * e - x
    else:
        z, v = (1 - t) * x + t * e, e - x
    if recipe.bug == "velocity of another path":
        v = math.pi / 2 * ((math.pi / 2 * t).cos() * e - (math.pi / 2 * t).sin() * x)
    return z, (-v if recipe.bug == "velocity negated" else v)


def _network(recipe: Recipe, net: Any, event: int, labels: Tensor | None) -> Callable[..., Tensor]:
    """The network as a function of column times, called as the recipe says."""

    def shape(time: Tensor) -> Tensor:
        if recipe.time_shape == "(B,)":
            return time.reshape(-1)
        return time.reshape(-1, 1) if recipe.time_shape == "(B, 1)" else time.reshape(-1, *[1] * event)

    def u(z: Tensor, r: Tensor, t: Tensor, y: Tensor | None = labels) -> Tensor:
        r, t = shape(r), shape(t)
        extra = () if y is None else (y,)
        if recipe.call == "z, r, t":
            return net(z, r, t, *extra)
        if recipe.call == "z, t, r":
            return net(z, t, r, *extra)
        if recipe.call == "z, t, h":
            return net(z, t, t - r, *extra)
        if recipe.call == "z, t, -h":
            return net(z, t, r - t, *extra)
        if recipe.call == "z, (t, h)":
            return net(z, (t, t - r), *extra)
        return net(x=z, start=r, end=t, **({"y": y} if y is not None else {}))

    return u


def _derivative(engine: str, u: Callable[..., Tensor], primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    if engine == "func":
        return torch.func.jvp(u, primals, tangents)  # type: ignore[return-value]
    if engine == "two_pass":
        with torch.no_grad():
            d = torch.func.jvp(u, primals, tangents)[1]
        return u(*primals), d
    if engine == "double_backward":
        return torch.autograd.functional.jvp(u, primals, tangents, create_graph=True)  # type: ignore[no-untyped-call]
    if engine == "forward_ad":
        ad: Any = torch.autograd.forward_ad

        with ad.dual_level():
            out = ad.unpack_dual(u(*(ad.make_dual(p, d) for p, d in zip(primals, tangents, strict=True))))
            return out.primal, out.tangent if out.tangent is not None else torch.zeros_like(out.primal)
    if engine == "reverse_twice":
        inputs = tuple(p.detach().requires_grad_() for p in primals)
        out = u(*inputs)
        cotangent = torch.zeros_like(out, requires_grad=True)
        grads = torch.autograd.grad(out, inputs, cotangent, create_graph=True, allow_unused=True)
        total = sum((g * d).sum() for g, d in zip(grads, tangents, strict=True) if g is not None)
        (d,) = torch.autograd.grad(total, cotangent, create_graph=True)
        return out, d
    h = 1e-4
    plus, minus = ([p + s * h * d for p, d in zip(primals, tangents, strict=True)] for s in (1, -1))
    return u(*primals), (u(*plus) - u(*minus)) / (2 * h)


def _reduce(recipe: Recipe, u: Tensor, target: Tensor) -> Tensor:
    square = (u - target).flatten(1) ** 2
    if recipe.bug == "weight per element":
        return (square / (square.detach() + recipe.eps) ** recipe.power).sum(1).mean()
    s = square.sum(1) if recipe.reduction == "sum" else square.mean(1)
    if recipe.bug == "squared twice":
        return (s**2 / (s.detach() ** 2 + recipe.eps) ** recipe.power).mean()
    if recipe.bug == "weight attached":
        return (s / (s + recipe.eps)).mean()
    if recipe.bug == "weight over the batch":
        w = 1 / (s.detach() + recipe.eps) ** recipe.power
        return (w / w.mean() * s).mean()
    if recipe.bug == "weight's power negated":
        return ((s.detach() + recipe.eps) ** recipe.power * s).mean()
    if recipe.metric == "plain":
        return s.mean()
    if recipe.metric == "log":
        return torch.log(s + recipe.eps).mean()
    if recipe.metric == "pseudo-huber":
        return (torch.sqrt(s + recipe.eps) - math.sqrt(recipe.eps)).mean()
    return (s / (s.detach() + recipe.eps) ** recipe.power).mean()


def _tangents(recipe: Recipe, v: Tensor, z: Tensor, plain_v: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(dz, dr, dt)``."""
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    return {
        "tangents of r and t swapped": (v, one, zero), "r moves with t": (v, one, one), "no spatial tangent": (0 * v, zero, one),
        "no time tangent": (v, zero, zero), "tangent is the state": (z, zero, one),
        "tangent is minus the velocity": (-v, zero, one), "unguided tangent": (plain_v, zero, one),
    }.get(recipe.bug, (v, zero, one))  # fmt: skip


def _coefficient(recipe: Recipe, r: Tensor, t: Tensor) -> Tensor:
    h = t - r
    return {
        "coefficient halved": h / 2, "no derivative": 0 * h, "plus sign": -h, "no interval": torch.ones_like(h),
        "t instead of t - r": t,
    }.get(recipe.bug, h)  # fmt: skip


def _guide(recipe: Recipe, u: Callable[..., Tensor], z: Tensor, t: Tensor, v: Tensor, labels: Tensor) -> Tensor:
    null = labels if recipe.bug == "null branch has the label" else torch.full_like(labels, 10)
    w, k = recipe.omega, recipe.kappa
    with torch.no_grad():
        u_null = u(z, t, t, null)
        u_label = u(z, t, t, labels) if k else 0
        rest = 1 - w if recipe.bug == "kappa missing" else 1 - w - k
        return w * v + k * u_label + rest * u_null


def _loss(recipe: Recipe, net: Any, x: Tensor, labels: Tensor | None) -> Tensor:
    event = x.dim() - 1
    r, t = (time.to(x.dtype).reshape(-1, *[1] * event) for time in _times(recipe, len(x)))
    e = torch.randn_like(x)
    z, v = _path(recipe, x, e, t)
    u_of = _network(recipe, net, event, labels)
    guided = v if labels is None else _guide(recipe, u_of, z, t, v, labels)
    along = guided
    if recipe.improved:
        with torch.no_grad():
            along = u_of(z, t, t)
    u, du = _derivative(recipe.engine, u_of, (z, r, t), _tangents(recipe, along, z, v, t))
    target = guided - _coefficient(recipe, r, t) * du
    if recipe.bug == "target clamped":
        target = target.clamp(-5, 5)
    if recipe.bug != "target attached":
        target = target.detach()
    if recipe.bug == "prediction detached":
        u, target = target, u.detach()
    return _reduce(recipe, u, target)
