"""Where the gradient goes: through the target, or not to the prediction; and whether two passes see one dropout mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.kit.loss.measure import Measured
from meanflow_ref.kit.loss.probe import Setting
from meanflow_ref.kit.loss.run import Run, run


@dataclass(frozen=True)
class Leak:
    """Gradient that reaches the network past the prediction, relative to the prediction's own, and how."""

    size: float
    way: str


def leak_of(measured: Measured) -> Leak:
    """Gradient through the target: by the derivative, by a finite difference's neighbours, or by another call it reads."""
    by_derivative = derivative_leak(measured.trace)
    beside, read = 0.0, 0.0
    calls = measured.trace.calls
    for k, main in measured.layout.near.items():
        grad = calls[k].grad
        if grad is None or k in measured.layout.mains:
            continue
        if main is not None and not torch.equal(calls[k].z, calls[main].z):
            beside = max(beside, _relative(grad, calls[main].grad))
    for (k, _), weight in measured.reads.items():
        grad = calls[k].grad
        if grad is not None and float(weight.abs().max()) > 1e-3 and _moves_with_the_error(measured, k):
            read = max(read, _relative(grad, measured.main.grad))
    return max(
        Leak(by_derivative, "through the derivative"),
        Leak(beside, "through the calls of the finite difference"),
        Leak(read, "through another call of the network that the target reads"),
        key=lambda leak: leak.size,
    )


def derivative_leak(done: Run) -> float:
    """Gradient on the leak beyond what the calls' own outputs explain, relative.

    The leak's factor ``phi`` enters every output, so that value paths give exactly the sum of ``grad . phi``.
    """
    total, scale = 0.0, 1e-300
    for call in done.calls:
        t = call.t.reshape(-1, *[1] * (call.z.dim() - 1)).double()
        phi = done.probe.phi(call.z.double(), t).expand_as(call.z)
        start = phi
        for grad, factor in ((call.grad, phi), (call.head_grad, start)):
            if grad is not None:
                total += float((grad * factor).sum())
                scale += float((grad * factor).abs().sum())
    actual = done.probe.leak.grad
    return abs((0.0 if actual is None else float(actual)) - total) / scale


def _relative(one: Tensor, two: Tensor | None) -> float:
    return 0.0 if two is None else float(one.abs().sum() / two.abs().sum().clamp_min(1e-300))


def _moves_with_the_error(measured: Measured, k: int) -> bool:
    """Whether the gradient at another call depends on the prediction's error: it then belongs to the same residual."""
    biased = measured.base.run.calls[k].grad
    before = measured.trace.calls[k].grad
    if biased is None or before is None:
        return False
    return _relative(biased - before, before) > 1e-6


@dataclass(frozen=True)
class Masks:
    """Random layers in the two passes: whether there are two, whether they drew alike, whether one ran in eval mode."""

    two_passes: bool
    differ: bool
    eval_mode: bool


def masks_of(measured: Measured) -> Masks:
    """Draw a mask in every call of the probe and compare prediction and derivative."""
    done = run(measured.target, Setting(random=True))
    calls = done.calls
    two_passes = differ = evaluated = False
    for k, main in measured.layout.near.items():
        if k >= len(calls) or main is None or main >= len(calls) or k in measured.layout.mains:
            continue
        if measured.layout.calls == len(calls) and calls[k].rows == calls[main].rows:
            two_passes = True
            one, two = calls[k].mask, calls[main].mask
            evaluated = evaluated or not calls[k].training
            differ = differ or (one is not None and two is not None and not torch.equal(one, two))
    return Masks(two_passes, differ, evaluated)
