"""Samplers, right and wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.sampling import sample, trajectory

Net = Callable[..., Any]


def _rows(z: Tensor, time: float) -> Tensor:
    return torch.full((z.shape[0],), time, dtype=z.dtype)


def _loop(step: Callable[[Net, Tensor, Tensor, Tensor], Tensor]) -> Callable[[Net, Tensor, int], Tensor]:
    """A loop over equal steps from 1 to 0 with the given step."""

    def sampler(net: Net, z: Tensor, n: int) -> Tensor:
        for i in range(n):
            z = step(net, z, _rows(z, 1 - (i + 1) / n), _rows(z, 1 - i / n))
        return z

    return sampler


def _h(r: Tensor, t: Tensor) -> Tensor:
    return (t - r)[:, None]


# ------------------------------------------------------------ wrong


def euler_on_v(net: Net, noise: Tensor, steps: int) -> Tensor:
    """The multi-step sampler of flow matching, kept beside a right one-step branch."""
    if steps == 1:
        data: Tensor = noise - net(noise, _rows(noise, 0.0), _rows(noise, 1.0))
        return data
    z = noise
    for i in range(steps):
        t = _rows(z, 1 - i / steps)
        z = z - net(z, t, t) / steps
    return z


def euler_by_h(net: Net, noise: Tensor, steps: int) -> Tensor:
    """A (z, t, h) network that is given h = 0."""
    z = noise
    for t in torch.linspace(1, 0, steps + 1)[:-1]:
        z = z - net(z, t, torch.zeros(())) / steps
    return z


def reversed_loop(net: Net, noise: Tensor, steps: int) -> Tensor:
    """From t = 0 to t = 1, adding."""
    z, grid = noise, torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    for r, t in pairwise(grid):
        z = z + (t - r) * net(z, r.expand(len(z)), t.expand(len(z)))
    return z


def reversed_grid(net: Net, noise: Tensor, steps: int) -> Tensor:
    """The grid runs upward though the step subtracts."""
    z = noise
    for i in range(steps):
        r, t = i / steps, (i + 1) / steps
        z = z - (t - r) * net(z, _rows(z, r), _rows(z, t))
    return z


def last_step_missing(net: Net, noise: Tensor, steps: int) -> Tensor:
    """An off-by-one in the range: n + 1 intervals, n steps."""
    z = noise
    for i in range(steps):
        t, r = 1 - i / (steps + 1), 1 - (i + 1) / (steps + 1)
        z = z - (t - r) * net(z, _rows(z, r), _rows(z, t))
    return z


def scaled_times(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Times in [0, 1000] handed to a network that wants [0, 1]."""
    z = noise
    for i in range(steps):
        t, r = 1 - i / steps, 1 - (i + 1) / steps
        z = z - (t - r) * net(z, _rows(z, 1000 * r), _rows(z, 1000 * t))
    return z


def jumps_kept(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Every step jumps to the data, and the next takes them for a state at t."""
    z = noise
    for i in range(steps):
        t = 1 - i / steps
        z = z - t * net(z, _rows(z, 0.0), _rows(z, t))
    return z


def half_step(net: Net, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Half of the step."""
    u: Tensor = net(z, r, t)
    return z - 0.5 * _h(r, t) * u


MUTANTS = (
    Case(
        "u(z, t, r): r and t swapped in the call", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, t, r)), "WRONG_END"
    ),
    Case("u(z, r, r): evaluated at the end", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, r, r)), "WRONG_END"),
    Case(
        "(z, t, h) network that is given the next time",
        _loop(lambda net, z, r, t: z - _h(r, t) * net(z, r, t - r)),
        "WRONG_END",
        {"call": "z, t, h"},
    ),
    Case(
        "noise at t = 0, state handed over as data: z + u(z, 0, 1)",
        _loop(lambda net, z, r, t: z + _h(r, t) * net(z, 1 - t, 1 - r)),
        "WRONG_END",
        {"time_direction": "data_at_one", "call": "z, r, t"},
    ),
    Case("z + (t - r) u", _loop(lambda net, z, r, t: z + _h(r, t) * net(z, r, t)), "STEP_SIGN"),
    Case("(t - r) u alone", _loop(lambda net, z, r, t: _h(r, t) * net(z, r, t)), "STEP_SIGN"),
    Case("upward loop that adds", reversed_loop, "DIRECTION_REVERSED"),
    Case("upward loop that subtracts", reversed_grid, "DIRECTION_REVERSED"),
    Case("Euler on u(z, t, t) beside a right single step", euler_on_v, "MULTISTEP_IS_EULER"),
    Case("(z, t, h) network with h = 0", euler_by_h, "MULTISTEP_IS_EULER", {"call": "z, t, h"}),
    Case("z - u, whatever the step", _loop(lambda net, z, r, t: z - net(z, r, t)), "STEP_SIZE"),
    Case("half the step", _loop(half_step), "STEP_SIZE"),
    Case("the last step is missing", last_step_missing, "STEP_SIZE"),
    Case("r = 0 in every step", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, 0 * r, t)), "R_NOT_NEXT_TIME"),
    Case("jumps to the data, taken for states at t", jumps_kept, "R_NOT_NEXT_TIME"),
    Case(
        "the v head of (u, v)",
        _loop(lambda net, z, r, t: z - _h(r, t) * net(z, r, t)[1]),
        "WRONG_HEAD",
        {"returns": "u, v"},
    ),
    Case(
        "the v head of (v, u)",
        _loop(lambda net, z, r, t: z - _h(r, t) * net(z, t, t - r)[0]),
        "WRONG_HEAD",
        {"returns": "v, u", "call": "z, t, h"},
    ),
    Case("times in [0, 1000]", scaled_times, "TIMES_OUT_OF_RANGE"),
)


# ------------------------------------------------------------ right, or legal


def keywords(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Keyword arguments, in-place arithmetic, times of shape (B, 1)."""
    z = noise.clone()
    for i in reversed(range(steps)):
        end, start = torch.full((len(z), 1), (i + 1) / steps), torch.full((len(z), 1), i / steps)
        z.sub_(net(x=z, start=start, end=end) / steps)
    return z


def uneven(net: Net, noise: Tensor, steps: int) -> Tensor:
    """A grid that is denser near the data."""
    z, grid = noise, torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2
    for t, r in pairwise(grid):
        z = z - (t - r) * net(z, r, t)
    return z


def guided_batch(net: Net, noise: Tensor, steps: int) -> Tensor:
    """The batch twice, with and without label, mixed at scale 1.5: one field for both, so the mixture is that field."""
    z, label = noise, torch.zeros(len(noise), dtype=torch.long)
    for i in range(steps):
        t, r = _rows(z, 1 - i / steps).repeat(2), _rows(z, 1 - (i + 1) / steps).repeat(2)
        with_label, without = net(torch.cat([z, z]), r, t, torch.cat([label, label + 10])).chunk(2)
        z = z - (without + 1.5 * (with_label - without)) / steps
    return z


def data_at_one(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Noise at t = 0; r is the later end, and the state stands at t."""
    z = noise
    for i in range(steps):
        t, r = i / steps, (i + 1) / steps
        z = z + (r - t) * net(z, _rows(z, r), _rows(z, t))
    return z


def trimmed(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Stops at t = 0.001."""
    return sample(net, noise, times=torch.linspace(1, 1e-3, steps + 1).tolist())


def noised_again(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Jumps to the data and adds new noise, as consistency models sample."""
    z = noise
    for i in range(steps):
        t = 1 - i / steps
        z = z - t * net(z, _rows(z, 0.0), _rows(z, t))
        s = 1 - (i + 1) / steps
        if s > 0:
            z = (1 - s) * z + s * torch.randn_like(z)
    return z


def clamped(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Data clamped to [-1, 1] at the end."""
    return sample(net, noise, steps).clamp(-1, 1)


def pixels(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Data mapped from [-1, 1] to [0, 1]."""
    return (sample(net, noise, steps) + 1) / 2


def own_noise(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Draws its own noise."""
    return sample(net, torch.randn_like(noise), steps)


def history(net: Net, noise: Tensor, steps: int) -> list[Tensor]:
    """All states, noise first."""
    return list(trajectory(net, noise, steps))


def one_step_always(net: Net, noise: Tensor, steps: int) -> Tensor:
    """Ignores the number of steps."""
    return sample(net, noise, 1)


def v_head_unused(net: Net, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Takes u of (u, v)."""
    u, _ = net(z, r, t)
    data: Tensor = z - _h(r, t) * u
    return data


def image_step(net: Net, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """A step of images (B, C, H, W)."""
    data: Tensor = z - _h(r, t)[..., None, None] * net(z, r, t)
    return data


CORRECT = (
    Case("the library's own", sample),
    Case("(z, r, t)", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, r, t))),
    Case("(z, t, r)", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, t, r)), options={"call": "z, t, r"}),
    Case("(z, t, h)", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, t, t - r)), options={"call": "z, t, h"}),
    Case("(z, (t, h))", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, (t, t - r))), options={"call": "z, (t, h)"}),
    Case("h alone", _loop(lambda net, z, r, t: z - _h(r, t) * net(z, t - r)), options={"call": "z, h"}),
    Case("keywords, (B, 1) times", keywords, options={"call": "x=z, start=r, end=t"}),
    Case("uneven steps, scalar times", uneven),
    Case("doubled batch with labels", guided_batch, options={"call": "z, r, t, y"}),
    Case("noise at t = 0", data_at_one, options={"time_direction": "data_at_one"}),
    Case("u of (u, v)", _loop(v_head_unused), options={"returns": "u, v"}),
    Case("images", _loop(image_step), options={"shape": (3, 4, 4)}),
    Case("float32", sample, options={"dtype": torch.float32}),
    Case("all states", history),
    Case("stops at 0.001", trimmed),
    Case("noised again", noised_again),
    Case("clamped", clamped),
    Case("mapped to [0, 1]", pixels),
    Case("own noise", own_noise),
    Case("one step always", one_step_always),
)  # fmt: skip
