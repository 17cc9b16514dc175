"""Results that are not the exact data and legal all the same; a check must not fail them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from meanflow_ref.kit.exact import NetCall, OnEvents
from meanflow_ref.kit.sampler_steps import Step

# How the excuses begin that speak of a map applied to the data.
OUTPUT_MAPS = ("the data are clamped", "the data are returned")
# Times may be trimmed at either end by this much.
TRIM = 0.02


def relative(a: Tensor, exact: Tensor) -> float:
    """Largest error over the spread of the exact data."""
    return float((a - exact).abs().max() / exact.std())


def excuse(
    field: OnEvents, calls: Sequence[NetCall], final: Tensor, exact: Tensor, tolerance: float, taken: Sequence[Step]
) -> str:
    """Why a result that is not z_0 is legal, or nothing."""
    n = len(final)
    first, last = calls[0], calls[-1]
    cut = max(float((1 - first.t).abs().max()), float(last.r.abs().max()))
    if cut <= TRIM and relative(final, field.flow_map(first.z[:n], first.t[:n], last.r[:n])) <= tolerance:
        return f"the times run over [{float(last.r[0]):g}, {float(first.t[0]):g}], not [0, 1]"
    if _noised_again(field, calls, taken, n):
        jump = field.flow_map(last.z[:n], last.t[:n], torch.zeros_like(last.t[:n]))
        if relative(final, jump) <= tolerance:
            return "every step goes to the data and the state is noised again"
    return _output_map(final, exact, tolerance)


def _noised_again(field: OnEvents, calls: Sequence[NetCall], taken: Sequence[Step], n: int) -> bool:
    """Whether each state is its predecessor's data with new noise: (z - (1 - s) x)/s looks standard normal."""
    if len(calls) < 2 or len(calls) != len(taken) or any(step.length is not None for step in taken[:-1]):
        return False
    for before, after in pairwise(calls):
        if float(before.r.abs().max()) > TRIM or not 0.01 < float(after.t[0]) < 0.99:
            return False
        data = field.flow_map(before.z[:n], before.t[:n], torch.zeros_like(before.t[:n]))
        s = float(after.t[0])
        noise = (after.z[:n] - (1 - s) * data) / s
        # 24 numbers and more: a standard deviation outside these bounds has probability below 1e-3.
        if not 0.5 < float(noise.std()) < 1.6 or abs(float(noise.mean())) > 1:
            return False
    return True


def _output_map(final: Tensor, exact: Tensor, tolerance: float) -> str:
    low, high = float(final.min()), float(final.max())
    clamped = high > low and float(((final == low) | (final == high)).double().mean()) > 0.1
    if clamped and relative(final, exact.clamp(low, high)) <= tolerance:
        return f"the data are clamped to [{low:g}, {high:g}]"
    columns = torch.stack([exact.flatten(), torch.ones_like(exact.flatten())], 1)
    gain, shift = (float(x) for x in torch.linalg.lstsq(columns, final.flatten()[:, None]).solution[:, 0])
    if gain > 0 and relative((final - shift) / gain, exact) <= tolerance:
        return f"the data are returned as {gain:.4g} x {shift:+.4g}"
    return ""
