"""Time per point of the truth: closed forms, quadrature and the ODE, with the accuracy that the time buys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from meanflow_ref.fields import Gaussian, GaussianMixture
from meanflow_ref.fields.base import AbstractDataField
from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.average import Method

POINTS = 256


def _gaussian() -> AbstractDataField:
    return Gaussian(torch.tensor([1.0, -1.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64))


def _mixture(weights: list[float], means: list[list[float]], stds: list[float]) -> AbstractDataField:
    w, m, s = (torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds))
    return GaussianMixture(w, m, s)


def _line() -> AbstractDataField:
    """Two modes on a line: closed by quantile transport."""
    return _mixture([0.3, 0.7], [[-2.0], [1.0]], [0.3, 0.5])


def _plane() -> AbstractDataField:
    """Three modes in a plane: no closed form."""
    return _mixture([0.2, 0.3, 0.5], [[-2.0, 0.0], [1.0, 1.0], [0.0, -2.0]], [0.3, 0.5, 0.4])


ROUTES: dict[str, tuple[Callable[[], AbstractDataField], Method, float]] = {
    "gaussian, closed": (_gaussian, "closed", 1e-12),
    "line mixture, closed": (_line, "closed", 1e-12),
    "line mixture, quadrature": (_line, "quadrature", 1e-12),
    "line mixture, ode 1e-12": (_line, "ode", 1e-12),
    "plane mixture, ode 1e-6": (_plane, "ode", 1e-6),
    "plane mixture, ode 1e-12": (_plane, "ode", 1e-12),
}


def _points(field: AbstractDataField) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(POINTS, 2, generator=generator, dtype=torch.float64)
    r, t = times.amin(-1), times.amax(-1)
    return field.sample(t, generator), r, t


@pytest.mark.parametrize("route", ROUTES)
def test_average_velocity(benchmark: BenchmarkFixture, note: Callable[[str], None], route: str) -> None:
    """One batch of points; ``extra_info`` has the time of a point and the largest estimated error."""
    build, method, tol = ROUTES[route]
    field = build()
    z, r, t = _points(field)
    benchmark.group = f"true average velocity, {POINTS} points"

    truth = benchmark.pedantic(  # type: ignore[no-untyped-call]
        average_velocity, (field, z, r, t), {"method": method, "tol": tol}, rounds=3, warmup_rounds=1
    )
    error = float(truth.error.max())
    benchmark.extra_info.update(largest_estimated_error=error, evaluations=truth.evaluations)
    if benchmark.stats is not None:  # None under --benchmark-disable
        microseconds = 1e6 * benchmark.stats.stats.median / POINTS
        benchmark.extra_info["microseconds_per_point"] = microseconds
        note(f"{route:26s} {microseconds:10.1f} microseconds a point, largest estimated error {error:.0e}")
