"""Random edits of a right loss: no verdict may contradict what torch computes with a real network."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.kit.prove import LossError, prove_loss

jvp = cast(Callable[..., tuple[Tensor, Tensor]], torch.func.jvp)

SOURCE = """
def loss(net, x, eps, r, t):
    def c(a): return a[:, None]
    z = (1 - c(t)) * x + c(t) * eps
    v = eps - x
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    target = (v - c(t - r) * du).detach()
    S = ((u - target) ** 2).sum(1)
    w = (1 / (S + 0.01)).detach()
    return (w * S).mean()
"""
# A token and what an edit may put in its place.
EDITS = {
    "+": "- *", "-": "+ *", "*": "+ -", "/": "*", "x": "eps z v", "eps": "x z", "r": "t", "t": "r", "v": "z u.detach()",
    "u": "du v", "du": "u v", "target": "v", "zeros_like": "ones_like", "ones_like": "zeros_like", "1": "2", "2": "1 3",
    "sum": "mean", "mean": "sum", "detach": "clone", "z": "x eps", "w": "S 1", "0.01": "0.1 t",
}  # fmt: skip
TOKEN = re.compile(r"[A-Za-z_]+|\d+\.?\d*|\S")


def edited(rng: random.Random) -> str:
    """The source with none to two of its tokens exchanged."""
    lines = SOURCE.strip().splitlines()
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        k = rng.randrange(2, len(lines))
        start = lines[k].find(" = ")
        places = [m for m in TOKEN.finditer(lines[k]) if m.group() in EDITS and m.start() > start]
        if places:
            place = rng.choice(places)
            lines[k] = lines[k][: place.start()] + rng.choice(EDITS[place.group()].split()) + lines[k][place.end() :]
    return "\n".join(lines)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(torch.randn(5, 6, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(torch.cat([z, r[:, None], t[:, None]], 1) @ self.a) @ self.b


def reference(net: nn.Module, inputs: list[Tensor], power: float, eps: float, mean: bool) -> Tensor:
    x, noise, r, t = inputs
    z, v, h = (1 - t[:, None]) * x + t[:, None] * noise, noise - x, (t - r)[:, None]
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    square = (u - (v - h * du).detach()).square()
    error = square.mean(1) if mean else square.sum(1)
    return ((error + eps).pow(-power).detach() * error).mean()


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    slopes = (
        torch.autograd.grad(loss, list(net.parameters()), allow_unused=True) if loss.requires_grad else (None, None)
    )
    return torch.cat([torch.zeros(1) if slope is None else slope.flatten() for slope in slopes])


def is_meanflow(loss: Callable[..., Tensor], seed: int) -> bool:
    """Whether torch finds value and gradient to be those of one of the weights within reach of an edit."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator)
    t = torch.rand(2, dtype=torch.float64, generator=generator)
    inputs = [x, noise, t * torch.rand(2, dtype=torch.float64, generator=generator), t]
    net = Small()
    value = loss(net, *inputs)
    slope = gradient(value, net)
    for power, eps in ((0.0, 0.0), (1.0, 0.01), (1.0, 0.1)):
        for mean in (False, True):
            wanted = reference(net, inputs, power, eps, mean)
            factor = (value / wanted).detach()
            scaled = factor * gradient(wanted, net)
            if len(slope) == len(scaled) and bool((slope - scaled).abs().max() < 1e-9 * scaled.abs().max()):
                return True
    return False


def check(seed: int) -> str:
    """The verdict on one edit, held against torch."""
    names: dict[str, Any] = {"torch": torch, "jvp": jvp}
    source = edited(random.Random(seed))
    try:
        exec(source, names)
        report = prove_loss(names["loss"], shapes=[(2, 3)])
        truth = is_meanflow(names["loss"], seed)
    except (SyntaxError, NameError, LossError, RuntimeError, IndexError, TypeError):
        return "no loss"
    if report.verdict == "PROVED":
        assert truth, f"{source}\n{report}"
    if report.verdict == "REFUTED":
        assert not truth, f"{source}\n{report}"
    return report.verdict


@pytest.mark.parametrize("block", range(2))
def test_no_verdict_contradicts_torch(block: int) -> None:
    verdicts = [check(seed) for seed in range(10 * block, 10 * block + 10)]
    # The edits are of all kinds, or this tests nothing.
    assert {"PROVED", "REFUTED"} <= set(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_no_verdict_contradicts_torch_in_a_long_run(block: int) -> None:
    for seed in range(1000 + 10 * block, 1010 + 10 * block):
        check(seed)
