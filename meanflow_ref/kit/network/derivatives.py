r"""Is the derivative that the engines give the derivative? Against difference quotients and the change itself.

Automatic differentiation of a network that holds ``detach``, ``no_grad``, an integer table or a ``.data`` is wrong
without a word. A difference quotient sees what is cut smoothly; steps are seen by the fundamental theorem,
:math:`u(t+\delta)-u(t)=\int_t^{t+\delta}\partial_t u`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from meanflow_ref.errors import SecondDerivativeError
from meanflow_ref.jvp.double_backward import double_backward_jvp
from meanflow_ref.jvp.func import func_jvp
from meanflow_ref.kit.diagnosis import Diagnosis
from meanflow_ref.kit.finding import finding
from meanflow_ref.kit.network.forward_mode import split
from meanflow_ref.kit.network.subject import ModuleCall, Subject, innermost, module_calls, tensors
from meanflow_ref.quadrature import gauss_legendre

# Disagreement, relative to the derivative, that is called one. Engines agree to 1e-6 and better in float64.
DISAGREE = 1e-3
_DELTA = 0.01


def rms(x: Tensor) -> float:
    """Root of the mean square."""
    return float(x.detach().double().square().mean().sqrt())


def quotient(fn: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, float]:
    """Derivative by the best of several central difference quotients, with the distance of the best two."""
    values = []
    with torch.no_grad():
        for step in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            ahead, behind = (fn(*(x + sign * step * d for x, d in zip(at, along, strict=True))) for sign in (1.0, -1.0))
            values.append((ahead - behind) / (2 * step))
    gaps = [rms(b - a) for a, b in pairwise(values)]
    best = min(range(len(gaps)), key=gaps.__getitem__)
    return values[best + 1], gaps[best]


def time_derivative(subject: Subject) -> tuple[list[Diagnosis], dict[str, float]]:
    """Whether the derivative in t is that of what u does in t, and whether u depends on r at all.

    Args:
        subject: In float64 and evaluation mode.

    """
    shrunk = 0.9 * subject.t, 0.9 * subject.r
    t, r = shrunk
    one = torch.ones_like(t)
    with subject.prepared(), torch.no_grad():
        now, later = subject.u(subject.z, r, t), subject.u(subject.z, r, t + _DELTA)
        further = subject.u(subject.z, r, t + 10 * _DELTA)
        other = subject.u(subject.z, 0.5 * r, t)
        nodes, weights = gauss_legendre(12, dtype=t.dtype, device=t.device)
        mean = torch.zeros_like(now)
        for node, weight in zip(nodes, weights, strict=True):
            at = subject.z, r, t + _DELTA * node
            mean = mean + weight * func_jvp(subject.u, at, (None, None, one))[1]
    change = (later - now) / _DELTA
    found = _dead(rms(now), rms(mean), rms(change), rms(mean - change), rms(further - now))
    if rms(other - now) < 1e-12 * max(rms(now), 1e-12) and bool((r > 0).any()):
        found.append(finding("TIME_DERIVATIVE_DEAD", "u does not change with r: r never reaches u", "u(z, r, t)"))
    return found, {"time_part": rms(mean), "time_secant": rms(change)}


def _dead(size: float, derivative: float, change: float, gap: float, far: float) -> list[Diagnosis]:
    """Judge the time derivative.

    Args:
        size: Of u.
        derivative: Mean of d_t u over a short interval.
        change: Change of u over that interval, divided by its length.
        gap: Size of the difference of the two.
        far: Change of u over ten times the interval, for tables with coarse steps.

    """
    # Rounding of networks that keep their times in float32 stays below.
    small = 1e-6 * max(size, 1e-12)
    if max(derivative, change) * _DELTA < small and far < small:
        return [finding("TIME_DERIVATIVE_DEAD", "u does not change with t", "an average velocity depends on t")]
    steps = derivative * _DELTA < small < far
    if steps or (gap > 0.05 * change and gap * _DELTA > small):
        seen = (
            f"u changes with t at a rate of {max(change, far / (10 * _DELTA)):.3g}; its derivative is {derivative:.3g}"
        )
        return [finding("TIME_DERIVATIVE_DEAD", seen, "the derivative of what u does")]
    return []


@dataclass(frozen=True)
class Engines:
    """The same derivative three ways."""

    forward: Tensor
    double_backward: Tensor | None
    quotient: Tensor
    uncertainty: float

    @property
    def worst(self) -> float:
        """Largest disagreement with the quotient, relative, beyond what the quotient does not know itself."""
        size = max(rms(self.quotient), rms(self.forward), 1e-300)
        others = [self.forward] + ([self.double_backward] if self.double_backward is not None else [])
        gap = max(rms(one - self.quotient) for one in others)
        return max(0.0, gap - 100 * self.uncertainty) / size


def _engines(fn: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Engines:
    difference, uncertainty = quotient(fn, at, along)
    forward = func_jvp(fn, at, along)[1].detach()
    try:
        double = double_backward_jvp(fn, at, along)[1].detach()
    except (SecondDerivativeError, RuntimeError):
        double = None
    return Engines(forward, double, difference, uncertainty)


def cut_derivatives(subject: Subject, *, with_time: bool) -> tuple[list[Diagnosis], dict[str, float]]:
    """Where forward mode, reverse mode and difference quotients disagree, by innermost module.

    Args:
        subject: In float64 and evaluation mode.
        with_time: Whether along (v, 0, 1), or along (v, 0, 0).

    """

    def u(z: Tensor, t: Tensor) -> Tensor:
        return subject.u(z, subject.r, t)

    along = subject.v, torch.ones_like(subject.t) if with_time else torch.zeros_like(subject.t)
    with subject.prepared():
        whole = _engines(u, (subject.z, subject.t), along)
    measured = {"engines_disagree": whole.worst}
    if whole.worst <= DISAGREE:
        return [], measured
    with subject.prepared():
        calls = module_calls(subject)
        guilty = innermost(calls, lambda call: _cut(call, subject))
    titles = [call.title for call in guilty] or ["the network"]
    seen = f"{', '.join(titles)}: {_described(whole)}"
    expected = "forward mode, reverse mode and difference quotients agree"
    return [finding("NO_GRAD_IN_FORWARD", seen, expected)], measured


def _cut(call: ModuleCall, subject: Subject) -> bool:
    inputs, rebuilt = split(call)
    if not inputs or not tensors(call.output):
        return False
    generator = torch.Generator().manual_seed(subject.seed)
    along = tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in inputs)
    try:
        return _engines(rebuilt, tuple(inputs), along).worst > DISAGREE
    except Exception:
        return False


def _described(engines: Engines) -> str:
    parts = [f"forward mode {rms(engines.forward):.4g}"]
    if engines.double_backward is not None:
        parts.append(f"reverse mode {rms(engines.double_backward):.4g}")
    gap = f"off by {100 * engines.worst:.3g} %"
    return f"{', '.join(parts)}, difference quotient {rms(engines.quotient):.4g} ({gap})"
