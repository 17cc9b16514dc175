"""Losses by many hands: wrong ones that ``check_loss`` must name, right ones and variants that it must leave alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.kit.mutants.composer import _GUIDED, BUGS, ENGINES, METRICS, PATHS, Recipe

# torch types its result as two tensors or three.
jvp: Any = torch.func.jvp

# ---------------------------------------------------------------- by hand, in the styles of public code


def _draw(x: Tensor, equal: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """(r, t, noise), times as (B,)."""
    pair = torch.rand(2, len(x), dtype=x.dtype)
    t, r = pair.amax(0), pair.amin(0)
    return torch.where(torch.rand(len(x)) < equal, t, r), t, torch.randn_like(x)


def _b(time: Tensor) -> Tensor:
    return time.view(-1, 1, 1, 1)


class Trainer:
    """A loss that is a method, with its network's wrapper taken off, returning a dict."""

    def __init__(self, p: float = 1.0) -> None:
        self.p = p

    def sample_times(self, n: int, rng: Any = np.random) -> Any:
        """Sorted log-normal pairs by numpy."""
        s = 1 / (1 + np.exp(-rng.normal(-0.4, 1.0, size=(n, 2)).astype(np.float32)))
        t, r = s.max(1), s.min(1)
        some = rng.permutation(n)[: n // 2]
        r[some] = t[some]
        return torch.from_numpy(t), torch.from_numpy(r)

    def training_step(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
        """One step's losses."""
        net = model.module
        net.train()
        t, r = (time.to(batch) for time in self.sample_times(len(batch)))
        eps = torch.randn_like(batch)
        z = (1 - _b(t)) * batch + _b(t) * eps
        v = eps - batch
        u, dudt = jvp(lambda z, t, r: net(z, t, r), (z, t, r), (v, torch.ones_like(t), torch.zeros_like(r)))
        target = (v - _b(t - r).clamp(0, 1) * dudt).detach()
        error = ((u - target) ** 2).sum(dim=(1, 2, 3))
        weight = 1.0 / (error.detach() + 0.01) ** self.p
        return {"loss": (weight * error).mean(), "mse": error.mean().detach()}


def heads(model: Any, x: Tensor) -> Tensor:
    """A network with a velocity head: improved MeanFlow."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    with torch.no_grad():
        _, v_head = model(z, t, t)
    (u, head), (du, _) = jvp(model, (z, r, t), (v_head, torch.zeros_like(r), torch.ones_like(t)))
    big = u + _b(t - r) * du.detach()
    return ((big - v) ** 2).flatten(1).sum(1).mean() + ((head - v) ** 2).flatten(1).sum(1).mean()


def improved(model: Any, x: Tensor) -> Tensor:
    """The velocity that u implies against the sample's, the derivative alone behind a stop-gradient."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    own = model(z, t, t).detach()
    u, du = jvp(model, (z, r, t), (own, torch.zeros_like(r), torch.ones_like(t)))
    return F.mse_loss(u + _b(t - r) * du.detach(), v)


def split_rows(model: Any, x: Tensor) -> Tensor:
    """Rows with r = t by plain flow matching, the others with a derivative: two calls on parts of the batch."""
    pair, _ = torch.sort(torch.rand(len(x), 2, dtype=x.dtype), dim=1)
    r, t = pair[:, 0], pair[:, 1]
    e = torch.randn_like(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    n = len(x) // 2
    flow = ((model(z[:n], t[:n], t[:n]) - v[:n]) ** 2).flatten(1).sum(1)
    one, zero = torch.ones_like(t[n:]), torch.zeros_like(t[n:])
    u, du = jvp(model, (z[n:], r[n:], t[n:]), (v[n:], zero, one))
    mean = ((u - (v[n:] - _b(t[n:] - r[n:]) * du).detach()) ** 2).flatten(1).sum(1)
    return torch.cat([flow, mean]).mean()


def duration_only(model: Any, x: Tensor) -> Tensor:
    """A network that is given h = t - r alone."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(lambda z, h: model(z, h), (z, t - r), (v, torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def alpha_half(model: Any, x: Tensor) -> Tensor:
    """Alpha-flow with alpha = 1/2: no derivative."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    a = 0.5
    s = t - a * (t - r)
    with torch.no_grad():
        later = model(z - _b(t - s) * v, r, s)
        target = a * v + (1 - a) * later
        target = torch.where(_b(t == r), v, target)
    return ((model(z, r, t) - target) ** 2).flatten(1).sum(1).mean()


def alpha_wrong(model: Any, x: Tensor) -> Tensor:
    """Alpha-flow whose two weights are the wrong way round."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    a = 0.25
    s = t - a * (t - r)
    with torch.no_grad():
        target = (1 - a) * v + a * model(z - _b(t - s) * v, r, s)
        target = torch.where(_b(t == r), v, target)
    return ((model(z, r, t) - target) ** 2).flatten(1).sum(1).mean()


def splitting(model: Any, x: Tensor) -> Tensor:
    """Interval splitting: the mean of the two halves."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    s = r + 0.3 * (t - r)
    with torch.no_grad():
        first = model(z, s, t)
        second = model(z - _b(t - s) * first, r, s)
        target = torch.where(_b(t == r), v, 0.7 * first + 0.3 * second)
    return ((model(z, r, t) - target) ** 2).flatten(1).sum(1).mean()


def lagrangian(model: Any, x: Tensor) -> Tensor:
    """The identity in the other end: u = v + (t - r) du/dr along the path's end."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(lambda r: model(z, r, t), (r,), (torch.ones_like(r),))
    return ((u - (v + _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def predicts_data(model: Any, x: Tensor) -> Tensor:
    """The network's output is the data: u = (z - x)/t."""
    r, t, e = _draw(x)
    t = 0.1 + 0.9 * t
    r = torch.minimum(r, t)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x

    def u_of(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (z - model(z, r, t)) / _b(t)

    u, du = jvp(u_of, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def flow_matching(model: Any, x: Tensor) -> Tensor:
    """Plain flow matching: the network is not told r."""
    t, e = torch.rand(len(x), dtype=x.dtype), torch.randn_like(x)
    return ((model((1 - _b(t)) * x + _b(t) * e, t) - (e - x)) ** 2).mean()


def thousand(model: Any, x: Tensor) -> Tensor:
    """Times in thousands, as the embedding of a diffusion model wants them."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(lambda z, r, t: model(z, 1000 * r, 1000 * t), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def single(model: Any, x: Tensor) -> Tensor:
    """Everything in float32, whatever comes in."""
    x = x.float()
    pair = torch.rand(2, len(x), dtype=torch.float32)
    t, r = pair.amax(0), pair.amin(0)
    r = torch.where(torch.rand(len(x)) < 0.5, t, r)
    e = torch.randn(x.shape, dtype=torch.float32)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def huber(model: Any, x: Tensor) -> Tensor:
    """A Huber metric, element by element."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return F.smooth_l1_loss(u, (v - _b(t - r) * du).detach())


def per_sample(model: Any, x: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Returns one loss a row, and a log."""
    r, t, e = _draw(x)
    z, v = torch.lerp(x, e, _b(t)), e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    loss = (u - (v - _b(t - r) * du).detach()).flatten(1).pow(2).sum(1)
    return loss, {"loss": float(loss.mean())}


def vectors(model: Any, x: Tensor) -> Tensor:
    """Data without channels, times as columns."""
    t, e = torch.rand(len(x), 1, dtype=x.dtype), torch.randn(x.shape[0], x.shape[-1], dtype=x.dtype)
    r = t * (torch.rand(len(x), 1, dtype=x.dtype) > 0.3) * torch.rand(len(x), 1, dtype=x.dtype)
    r = torch.where(torch.rand(len(x), 1) < 0.4, t, r)
    z = x + t * (e - x)
    u, du = jvp(model, (z, t, t - r), (e - x, torch.ones_like(t), torch.ones_like(t)))
    return (u - (e - x - (t - r) * du).detach()).square().sum(-1).mean()


def vectors_moving(model: Any, x: Tensor) -> Tensor:
    """The same with h held fixed: r moves."""
    t, e = torch.rand(len(x), 1, dtype=x.dtype), torch.randn(x.shape[0], x.shape[-1], dtype=x.dtype)
    r = torch.where(torch.rand(len(x), 1) < 0.4, t, t * torch.rand(len(x), 1, dtype=x.dtype))
    z = x + t * (e - x)
    u, du = jvp(model, (z, t, t - r), (e - x, torch.ones_like(t), torch.zeros_like(t)))
    return (u - (e - x - (t - r) * du).detach()).square().sum(-1).mean()


def summed_gradient(model: Any, x: Tensor) -> Tensor:
    """grad(u.sum(), z) * v: sums over outputs where a JVP must not."""
    r, t, e = _draw(x)
    z, v = ((1 - _b(t)) * x + _b(t) * e).requires_grad_(), e - x
    t_leaf = t.clone().requires_grad_()
    u = model(z, r, t_leaf)
    du_z, du_t = torch.autograd.grad(u.sum(), (z, t_leaf), retain_graph=True)
    return ((u - (v - _b(t - r) * (du_z * v + _b(du_t))).detach()) ** 2).flatten(1).sum(1).mean()


def transposed(model: Any, x: Tensor) -> Tensor:
    """grad(u, z, v) for the spatial part: the transposed Jacobian."""
    r, t, e = _draw(x)
    z, v = ((1 - _b(t)) * x + _b(t) * e).requires_grad_(), e - x
    (spatial,) = torch.autograd.grad(model(z, r, t), z, v)
    u, temporal = jvp(lambda t: model(z.detach(), r, t), (t,), (torch.ones_like(t),))
    return ((u - (v - _b(t - r) * (spatial + temporal)).detach()) ** 2).flatten(1).sum(1).mean()


def coarse(model: Any, x: Tensor) -> Tensor:
    """A one-sided difference with a step of 0.02."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, h = model(z, r, t), 0.02
    du = (model(z + h * v, r, t + h) - u) / h
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def elsewhere(model: Any, x: Tensor) -> Tensor:
    """The derivative is taken at r = t, the prediction is not."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    with torch.no_grad():
        _, du = jvp(model, (z, t, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((model(z, r, t) - (v - _b(t - r) * du)) ** 2).flatten(1).sum(1).mean()


def half_precision(model: Any, x: Tensor) -> Tensor:
    """The derivative in bfloat16."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x

    def low(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return model(z.bfloat16(), r.bfloat16(), t.bfloat16()).to(x.dtype)

    with torch.no_grad():
        _, du = jvp(low, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((model(z, r, t) - (v - _b(t - r) * du)) ** 2).flatten(1).sum(1).mean()


def autocast(model: Any, x: Tensor) -> Tensor:
    """The whole step under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        r, t, e = _draw(x)
        z, v = (1 - _b(t)) * x + _b(t) * e, e - x
        u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def two_masks(model: Any, x: Tensor) -> Tensor:
    """Two passes, each with dropout of its own."""
    model.train()
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    with torch.no_grad():
        _, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((model(z, r, t) - (v - _b(t - r) * du)) ** 2).flatten(1).sum(1).mean()


def one_mask(model: Any, x: Tensor) -> Tensor:
    """Two passes with the generator's state put back in between."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    state = torch.get_rng_state()
    with torch.no_grad():
        _, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    torch.set_rng_state(state)
    return ((model(z, r, t) - (v - _b(t - r) * du)) ** 2).flatten(1).sum(1).mean()


def normal_times(model: Any, x: Tensor) -> Tensor:
    """randn where rand was meant."""
    _, _, e = _draw(x)
    pair = torch.randn(2, len(x), dtype=x.dtype)
    t, r = pair.amax(0), pair.amin(0)
    r = torch.where(torch.rand(len(x)) < 0.5, t, r)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def no_equal_rows(model: Any, x: Tensor) -> Tensor:
    """Never r = t: a legal choice (the paper's 100 % column), worth knowing."""
    r, t, e = _draw(x, equal=0.0)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def by_index(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The first rows have r = t, and the first rows lose their labels."""
    pair = torch.rand(2, len(x), dtype=x.dtype)
    t, r = pair.amax(0), pair.amin(0)
    index = torch.arange(len(x))
    r = torch.where(index < 0.75 * len(x), t, r)
    y = torch.where(index < 0.25 * len(x), torch.full_like(y, model.num_classes), y)
    e = torch.randn_like(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(lambda z, r, t: model(z, r, t, y), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def _guided(model: Any, x: Tensor, y: Tensor, lost: bool, null_rows: bool) -> Tensor:
    r, t, e = _draw(x)
    y = torch.where(torch.rand(len(y)) < 0.3, torch.full_like(y, 10), y) if null_rows else y
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    with torch.no_grad():
        both = model(torch.cat([z, z]), torch.cat([t, t]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, 10)]))
        conditional, null = both.chunk(2)
        guided = 1.0 * v + 0.5 * conditional - 0.5 * null
    guided = torch.where(_b(r == t), v, guided) if lost else guided
    u, du = jvp(lambda z, r, t: model(z, r, t, y), (z, r, t), (guided, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (guided - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1).mean()


def guided_stacked(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Both branches in one call of twice the batch."""
    return _guided(model, x, y, lost=False, null_rows=False)


def guided_lost(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Rows with r = t fall back to v."""
    return _guided(model, x, y, lost=True, null_rows=False)


def guided_null_rows(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """Rows without a label are guided too."""
    return _guided(model, x, y, lost=False, null_rows=True)


def clamped_derivative(model: Any, x: Tensor) -> Tensor:
    """du/dt clamped to +-10."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du.clamp(-10, 10)).detach()) ** 2).flatten(1).sum(1).mean()


def clamped_target(model: Any, x: Tensor) -> Tensor:
    """The target clamped to the range of normalised data."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) * du).detach().clamp(-1, 1)) ** 2).flatten(1).sum(1).mean()


def squared_interval(model: Any, x: Tensor) -> Tensor:
    """(t - r)^2 where t - r belongs."""
    r, t, e = _draw(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - _b(t - r) ** 2 * du).detach()) ** 2).flatten(1).sum(1).mean()


def log_variance(model: Any, x: Tensor) -> Tensor:
    """Cauchy metric, random by the standard library."""
    t = torch.tensor([random.random() for _ in range(len(x))], dtype=x.dtype)
    r = torch.tensor([float(s) * (random.random() if random.random() < 0.5 else 1.0) for s in t], dtype=x.dtype)
    e = torch.randn_like(x)
    z, v = (1 - _b(t)) * x + _b(t) * e, e - x
    u, du = jvp(model, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return torch.log1p(((u - (v - _b(t - r) * du).detach()) ** 2).flatten(1).sum(1)).mean()


compiled = torch.compile(no_equal_rows)

HAND_MUTANTS = (
    Case("h held fixed in a (z, t, h) network", vectors_moving, "R_MOVES", {"call": "z, t, h"}),
    Case("grad(u.sum(), z) * v", summed_gradient, "TRANSPOSED_JACOBIAN"),
    Case("grad(u, z, v) for the spatial part", transposed, "TRANSPOSED_JACOBIAN"),
    Case("one-sided difference, step 0.02", coarse, "FINITE_DIFFERENCE_COARSE"),
    Case("derivative at r = t", elsewhere, "R_DERIVATIVE_AT_WRONG_POINT"),
    Case("derivative in bfloat16", half_precision, "TARGET_LOW_PRECISION"),
    Case("whole step under autocast", autocast, "TARGET_LOW_PRECISION"),
    Case("two passes, two dropout masks", two_masks, "DROPOUT_MISMATCH", {"dropout": True}),
    Case("times from randn", normal_times, "TIMES_OUT_OF_RANGE"),
    Case("flow matching alone", flow_matching, "NEVER_R_NEQ_T"),
    Case("r = t and dropped labels by index", by_index, "MASKS_CORRELATED"),
    Case("guidance lost where r = t", guided_lost, "GUIDANCE_LOST_ON_R_EQ_T"),
    Case("alpha-flow with its weights exchanged", alpha_wrong, "COEFFICIENT"),
    Case("du/dt clamped", clamped_derivative, "TARGET_CLIPPED"),
    Case("target clamped to +-1", clamped_target, "TARGET_CLIPPED"),
    Case("(t - r) squared", squared_interval, "INTERVAL_NOT_T_MINUS_R"),
    Case("weight power other than asked for", Trainer(0.5).training_step, "WEIGHT_POWER", {"weight_power": 1.0}),
    Case("share of r = t other than meant", per_sample, "RATIO_MISMATCH", {"equal_share": 0.9}),
    Case("share of r = t inverted", lambda m, x: no_equal_rows(m, x), "RATIO_INVERTED", {"equal_share": 1.0}),
)  # fmt: skip

HAND_NEIGHBOURS = (
    Case("a method with numpy times that returns a dict", Trainer().training_step),
    Case("velocity head, improved MeanFlow", heads, None, {"returns": "u, v"}),
    Case("improved MeanFlow, V against v", improved),
    Case("rows with r = t in a call of their own", split_rows),
    Case("network of h alone", duration_only),
    Case("alpha-flow, alpha = 1/2", alpha_half),
    Case("interval splitting", splitting),
    Case("Lagrangian identity", lagrangian),
    Case("network predicts the data", predicts_data),
    Case("times in thousands", thousand, None, {"call": "z, r, t"}),
    Case("everything in float32", single),
    Case("Huber metric", huber),
    Case("one loss a row, and a log", per_sample),
    Case("vectors, columns of times, (z, t, h)", vectors),
    Case("two passes, one dropout mask", one_mask, None, {"dropout": True}),
    Case("two passes without dropout", two_masks),
    Case("guided, both branches stacked", guided_stacked),
    Case("guided on rows without a label", guided_null_rows),
    Case("never r = t", no_equal_rows),
    Case("compiled", compiled),
    Case("Cauchy metric, times by the standard library", log_variance),
)


# ---------------------------------------------------------------- by the composer


def _case(title: str, recipe: Recipe) -> Case:
    options: dict[str, Any] = {"call": recipe.spec, "shape": (2, 3, 5), "labels": recipe.guided}
    return Case(title, recipe.build(), recipe.diagnosis or None, options)


def _composed_mutants() -> list[Case]:
    cases = []
    for bug in BUGS:
        base = Recipe(bug=bug, omega=2.0 if bug in _GUIDED else 1.0, kappa=0.5 if bug == "kappa missing" else 0.0)
        cases.append(_case(bug, base))
        other = replace(
            base, engine="reverse_twice", call="z, t, h", time_shape="broadcast", reduction="mean", power=0.75
        )
        cases.append(_case(f"{bug}; two VJPs, (z, t, h), mean", other))
    return cases


def _composed_neighbours() -> list[Case]:
    recipes = [Recipe(engine=engine) for engine in ENGINES]
    recipes += [Recipe(path=path, call="z, t, r") for path in PATHS]
    recipes += [Recipe(metric=metric, reduction="mean", power=0.5) for metric in METRICS]
    recipes += [Recipe(call=call, time_shape="(B, 1)") for call in ("z, (t, h)", "z, t, -h", "x=z, start=r, end=t")]
    recipes += [Recipe(omega=2.0, kappa=0.5), Recipe(improved=True, engine="two_pass")]
    return [_case(str(recipe).removeprefix("Recipe"), recipe) for recipe in recipes]


MUTANTS: tuple[Case, ...] = (*HAND_MUTANTS, *_composed_mutants())
CORRECT: tuple[Case, ...] = (*HAND_NEIGHBOURS, *_composed_neighbours())
