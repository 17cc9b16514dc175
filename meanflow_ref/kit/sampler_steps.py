"""What a sampler did, read off its calls: the step that it took after each call, and the name of what is wrong.

A right sampler calls ``u(z_k, r_k, t_k)`` with ``z_k`` the state at ``t_k``, moves to ``z_k - (t_k - r_k) u`` and goes
on from ``t_{k+1} = r_k``. The network is exact, so that every departure is the sampler's. ``c_k`` below is measured:
the multiple of ``-u`` by which the state really moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from meanflow_ref.kit.exact import NetCall

# A measured step and its wanted length agree within this; wrong ones differ by a share of the step.
SAME = 1e-3


@dataclass(frozen=True)
class Step:
    """One step: the times of the call that moved the state, in the paper's direction, and by how much.

    ``length`` is None where the movement is a multiple of no output of the network, and ``replaced`` where the new
    state itself is: the old one was forgotten.
    """

    r: float
    t: float
    length: float | None
    head: str
    where: str
    replaced: bool = False

    def __str__(self) -> str:
        if self.replaced:
            return f"u(z, r={self.r:.4g}, t={self.t:.4g}) became the state"
        length = "?" if self.length is None else f"{self.length:.4g}"
        return f"u(z, r={self.r:.4g}, t={self.t:.4g}) stepped by {length}"


@dataclass(frozen=True)
class Name:
    """A diagnosis before it has its page: the name, what was seen, what is wanted, and the line."""

    name: str
    observed: str
    expected: str
    where: str = ""


def _first_half(z: Tensor) -> Tensor:
    """The first half of a batch that is one batch twice, as guided samplers make it; otherwise the batch."""
    half = z.shape[0] // 2
    return z[:half] if z.shape[0] % 2 == 0 and torch.equal(z[:half], z[half:]) else z


def _grouped(calls: Sequence[NetCall]) -> list[list[NetCall]]:
    """Calls at one state together."""
    groups: list[list[NetCall]] = []
    for call in calls:
        if groups and groups[-1][0].z.shape == call.z.shape and torch.equal(groups[-1][0].z, call.z):
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def read_steps(calls: Sequence[NetCall], final: Tensor) -> list[Step]:
    """The steps between the states that the network was called at, and the final one."""
    groups = _grouped(calls)
    states = [_first_half(group[0].z) for group in groups] + [final]
    return [_step(group, before, after) for group, before, after in zip(groups, states[:-1], states[1:], strict=True)]


def _step(group: list[NetCall], before: Tensor, after: Tensor) -> Step:
    last = group[-1]
    blank = Step(float(last.r.mean()), float(last.t.mean()), None, "u", last.where)
    if before.shape != after.shape:
        return blank
    moved = (before - after).flatten()
    scale = float(moved.norm())
    best, best_error = blank, 1e-3
    for call in group:
        for head, output in call.outputs.items():
            u = output[: before.shape[0]].flatten()
            length = float(moved @ u / (u @ u))
            error = float((moved - length * u).norm()) / max(scale, 1e-300)
            # The first that explains the movement wins: u and v are one where r = t.
            if error < best_error * (1 - 1e-6):
                best = Step(float(call.r.mean()), float(call.t.mean()), length, head, call.where)
                best_error = error
            new = after.flatten()
            alone = float((new - (new @ u / (u @ u)) * u).norm()) / max(float(new.norm()), 1e-300)
            if best.length is None and alone < 1e-3:
                best = replace(blank, r=float(call.r.mean()), t=float(call.t.mean()), where=call.where, replaced=True)
    return best


def name_steps(steps: Sequence[Step]) -> Name | None:
    """What is wrong with the steps of one run, or None if they follow the rule."""
    shown = "; ".join(map(str, steps[:4])) + ("; ..." if len(steps) > 4 else "")
    for rule in (_scale, _head, _direction, _sign, _euler, _end, _next_time, _range, _size):
        found = rule(steps)
        if found is not None:
            name, expected, index = found
            return Name(name, shown, expected, steps[index].where)
    return None


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= SAME


def _next_times(steps: Sequence[Step]) -> list[float]:
    """Where each step ought to end: the next call's time, or the data."""
    return [step.t for step in steps[1:]] + [0.0]


def _lengths(steps: Sequence[Step]) -> list[float]:
    return [step.length if step.length is not None else float("nan") for step in steps]


def _scale(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    """Times far outside; those a step outside may come from a wrong end, which the later rules name."""
    far = [i for i, step in enumerate(steps) if max(step.t, step.r) > 2.5 or min(step.t, step.r) < -1.5]
    return ("TIMES_OUT_OF_RANGE", "times in [0, 1]; scaled times belong inside the network", far[0]) if far else None


def _range(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    for i, step in enumerate(steps):
        if not (-SAME <= step.t <= 1 + SAME and -SAME <= step.r <= 1 + SAME):
            return "TIMES_OUT_OF_RANGE", "times in [0, 1]; scaled times belong inside the network", i
    return None


def _head(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    wrong = [i for i, step in enumerate(steps) if step.head != "u" and step.t - step.r > SAME]
    return ("WRONG_HEAD", "the state moves along u, the average velocity", wrong[0]) if wrong else None


def _direction(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    upward = len(steps) > 1 and all(b.t > a.t + SAME for a, b in pairwise(steps))
    away = all(step.t < step.r - SAME and _near(length, step.t - step.r) for step, length in _with_length(steps))
    if upward or (away and steps[0].t < 0.5):
        return "DIRECTION_REVERSED", "the first call at t = 1, where the noise is; times fall to 0", 0
    return None


def _with_length(steps: Sequence[Step]) -> list[tuple[Step, float]]:
    return list(zip(steps, _lengths(steps), strict=True))


def _sign(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    if any(step.replaced for step in steps):
        return "STEP_SIGN", "z_r = z_t - (t - r) u(z_t, r, t), not a multiple of u alone", 0
    if all(length < 0 and step.t >= step.r - SAME for step, length in _with_length(steps)):
        return "STEP_SIGN", "z_r = z_t - (t - r) u(z_t, r, t)", 0
    return None


def _euler(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    state = 1.0
    for i, (step, length) in enumerate(_with_length(steps)):
        if _near(step.r, step.t) and _near(step.t, state) and abs(length) > SAME:
            return "MULTISTEP_IS_EULER", "each call spans its step: u(z, r=next time, t=this time)", i
        state -= length
    return None


def _end(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    expected = "t is the time of the state that is handed over, r the end of the step"
    for i, step in enumerate(steps):
        if step.r > step.t + SAME:
            return "WRONG_END", expected, i
    state, late = 1.0, True
    for step, length in _with_length(steps):
        state -= length
        late = late and _near(step.t, state) and length > SAME
    return ("WRONG_END", expected, 0) if late else None


def _next_time(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    for i, (step, following) in enumerate(zip(steps, _next_times(steps), strict=True)):
        ends = step.length is not None and (
            _near(step.length, step.t - following) or _near(step.length, step.t - step.r)
        )
        if not _near(step.r, following) and ends and i + 1 < len(steps):
            return "R_NOT_NEXT_TIME", "r is the time at which the next call is made, 0 in the last step", i
    return None


def _size(steps: Sequence[Step]) -> tuple[str, str, int] | None:
    for i, (step, length) in enumerate(_with_length(steps)):
        # NaN: not a multiple of u at all, which this rule cannot name.
        if abs(length - (step.t - step.r)) > SAME:
            return "STEP_SIZE", "each step is (t - r) u for the r and t of its call", i
    if not _near(steps[0].t, 1.0) or not _near(steps[-1].r, 0.0):
        return "STEP_SIZE", "the steps together cover [0, 1]", len(steps) - 1
    return None
