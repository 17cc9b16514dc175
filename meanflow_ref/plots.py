"""The figures of the report and the README. Every point in them is computed, none is drawn by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import MissingExtraError
from meanflow_ref.fields import Gaussian, GaussianMixture

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "report", "drawing figures") from error

_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#4c78a8", "#f58518", "#54a24b", "#e45756", "#9d9d9d"


def _mixture() -> GaussianMixture:
    """Three unequal modes: the marginal paths bend, and not symmetrically."""
    return GaussianMixture(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64),
        torch.tensor([0.25, 0.3, 0.2], dtype=torch.float64),
    )


def _trajectories(field: GaussianMixture, noise: Tensor, times: Tensor) -> Tensor:
    """States ``(len(noise), len(times))`` of the exact flow from noise at t = 1."""
    start = noise[:, None, None].expand(-1, len(times), 1)
    return field.flow_map(start, 1.0, times.expand(len(noise), -1))[..., 0]


def paths_figure() -> Figure:
    """Curved marginal paths against straight conditional ones, and u against v on one of them."""
    field, generator = _mixture(), torch.Generator().manual_seed(0)
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    times = torch.linspace(0, 1, 201, dtype=torch.float64)
    x, eps = field.sample_pair(60, generator)
    for i in range(60):
        left.plot(
            [0, 1],
            [float(x[i]), float(eps[i])],
            color=_GREY,
            lw=0.5,
            alpha=0.6,
            label="conditional" if i == 0 else None,
        )
    noise = torch.special.ndtri(torch.linspace(0.02, 0.98, 25, dtype=torch.float64))
    for i, path in enumerate(_trajectories(field, noise, times)):
        left.plot(times, path, color=_BLUE, lw=1.2, label="marginal, exact" if i == 0 else None)
    left.set(xlabel="t (0 is data, 1 is noise)", ylabel="z", title="Straight conditional paths, curved marginal paths")
    left.legend(loc="upper right")

    path = _trajectories(field, noise[18:19], times)[0]
    right.plot(times, path, color=_BLUE, lw=2, label="trajectory")
    t, r = 0.75, 0.0
    z = path[150].reshape(1, 1)
    v, u = float(field.velocity(z, t)), float(field.average_velocity(z, r, t))
    ends = torch.tensor([0.0, 0.9], dtype=torch.float64)
    right.plot(ends, float(z) + (ends - t) * v, color=_ORANGE, ls="--", label=f"v(z, t) = {v:+.3f}, the tangent")
    right.plot(
        [r, t], [float(z) - (t - r) * u, float(z)], color=_GREEN, lw=2, label=f"u(z, 0, t) = {u:+.3f}, the secant"
    )
    right.plot([t], [float(z)], "o", color="black")
    right.plot([r], [float(z) - (t - r) * u], "s", color=_GREEN, label="one step with u: on the trajectory")
    right.plot([r], [float(z) - (t - r) * v], "X", color=_ORANGE, label="one step with v: off it")
    right.set(xlabel="t", title="u is the secant, v the tangent")
    right.legend(loc="best", fontsize=8)
    return figure


def _gap_errors() -> dict[str, list[tuple[float, float]]]:
    """Error of three ways to evaluate a Gaussian u as the gap h = t - r closes, against 50 digits."""
    import mpmath

    from meanflow_ref.truth import average_velocity

    mean, variance, state, t = 0.7, 0.3, 1.1, 0.6
    field = Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64))
    z, time = torch.tensor([[state]], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)

    def spread(tau: Any) -> Any:
        return mpmath.sqrt((1 - tau) ** 2 * mpmath.mpf(variance) + tau**2)

    errors: dict[str, list[tuple[float, float]]] = {"(z - z_r) / h": [], "closed form": [], "u-space ODE": []}
    for k in range(1, 17):
        r = time - 10.0**-k
        gap = float(time - r)
        if gap == 0:
            continue
        with mpmath.workdps(50):
            low, high = mpmath.mpf(float(r)), mpmath.mpf(t)
            flow = (1 - low) * mpmath.mpf(mean) + spread(low) / spread(high) * (state - (1 - high) * mpmath.mpf(mean))
            exact = (mpmath.mpf(state) - flow) / (high - low)
            values = {
                "(z - z_r) / h": float(((z - field.flow_map(z, time, r)) / (time - r)[:, None])[0, 0]),
                "closed form": float(field.average_velocity(z, r, time)[0, 0]),
                "u-space ODE": float(average_velocity(field, z, r, time, method="ode").value[0, 0]),
            }
            for name, value in values.items():
                errors[name].append((gap, float(abs(mpmath.mpf(value) - exact))))
    return errors


def gap_figure() -> Figure:
    """Error of u against h near r = t."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles = {"(z - z_r) / h": (_RED, "o"), "closed form": (_BLUE, "s"), "u-space ODE": (_GREEN, "^")}
    for name, points in _gap_errors().items():
        gaps, errors = zip(*points, strict=True)
        # An error of 0 has no place on a logarithmic axis: it is drawn at a hundredth of the rounding unit.
        axes.loglog(gaps, [max(e, 2e-18) for e in errors], styles[name][1] + "-", color=styles[name][0], label=name)
    axes.axhline(2.2e-16, color=_GREY, lw=0.8, ls=":")
    axes.set(xlabel="h = t - r", ylabel="absolute error of u (float64)", title="Near r = t")
    axes.legend()
    return figure


def cost_figure() -> Figure:
    """Time, FLOPs and peak memory of a MeanFlow training step by JVP backend, over a flow-matching step's."""
    from meanflow_ref.bench.measure import measure
    from meanflow_ref.bench.scenarios import SCENARIOS

    scenario = next(iter(SCENARIOS.values()))
    # One thread: times of tiny steps are steadier, and the ratios are what counts.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = measure(scenario, rounds=9, budget=6.0)
    finally:
        torch.set_num_threads(threads)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    height = 0.27
    for i, (name, colour) in enumerate((("time", _BLUE), ("FLOPs", _ORANGE), ("peak bytes", _GREEN))):
        values = {"time": [r.time.median for r in rows], "FLOPs": [r.flops for r in rows]}.get(
            name, [r.peak_bytes for r in rows]
        )
        positions = [k + (i - 1) * height for k in range(len(rows))]
        bars = axes.barh(positions, values, height, color=colour, label=name)
        axes.bar_label(bars, fmt=" %.2f", fontsize=7)
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    axes.invert_yaxis()
    axes.axvline(4 / 3, color=_GREY, ls="--", lw=1, label="4/3: forward, tangent, backward")
    axes.set(xlabel=f"over the flow-matching step ({scenario.about}, CPU, float32)", title="What a MeanFlow step costs")
    axes.legend(loc="lower right", fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {"paths": paths_figure, "gap": gap_figure, "cost": cost_figure}

CAPTIONS = {
    "paths": "Left: conditional paths are straight and cross; the exact marginal trajectories of that mixture bend. "
    "Right: the average velocity is the secant of a trajectory, the instantaneous velocity its tangent.",
    "gap": "Error of u against a 50-digit reference as r approaches t: dividing a displacement by h loses every digit, "
    "the cancellation-free closed form and the u-space ODE lose none.",
    "cost": "One training step by derivative engine, relative to flow matching: time (interleaved, median of pairs), "
    "floating-point operations and peak memory (both counted).",
}


def all_figures() -> dict[str, Figure]:
    """Every figure by name."""
    return {name: draw() for name, draw in FIGURES.items()}


def png(figure: Figure) -> bytes:
    """A figure as PNG bytes, the same on every run."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
