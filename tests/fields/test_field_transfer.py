"""A field carried over to a path, against the same data built on that path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meanflow_ref.fields import AbstractDataField, Gaussian, GaussianMixture, Transferred
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath, CallablePath

SQUARE = CallablePath(lambda t: 1 - t**2, lambda t: t * (1 + t) / 2)
PATHS = {"linear": LINEAR, "trig": TRIGONOMETRIC, "vp": VARIANCE_PRESERVING, "callable": SQUARE}


def build(path: AbstractPath, kind: str) -> AbstractDataField:
    if kind == "gaussian":
        covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
        return Gaussian(torch.tensor([0.3, -1.0], dtype=torch.float64), covariance, path)
    weights, means, stds = (torch.tensor(x, dtype=torch.float64) for x in ([0.4, 0.6], [-1.0, 1.5], [0.3, 0.5]))
    return GaussianMixture(weights, means, stds, path)


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
@pytest.mark.parametrize("target", PATHS)
@pytest.mark.parametrize("source", PATHS)
def test_transferred_equals_native(source: str, target: str, kind: str) -> None:
    native = build(PATHS[target], kind)
    carried = Transferred(build(PATHS[source], kind), PATHS[target])
    generator = torch.Generator().manual_seed(0)
    n = 60
    t = 0.01 + 0.99 * torch.rand(n, dtype=torch.float64, generator=generator)
    r = t * (0.01 + 0.99 * torch.rand(n, dtype=torch.float64, generator=generator))
    r[:10], r[10:20], t[0], r[20:25] = t[:10] - 1e-9, t[10:20], 1.0, 0.0
    z = native.sample(t, generator)
    jacobian = native.jacobian(z, r, t)

    def gap(one: Tensor, other: Tensor) -> float:
        scale = (1 + other.abs()) * (1 + jacobian.abs().amax((1, 2)).reshape(n, *[1] * (other.dim() - 1)))
        return float(((one - other).abs() / scale).max())

    # Source times by a root or an inverse function: relative error 1e-15 in tau, against slopes up to sigma'/sigma.
    assert gap(carried.average_velocity(z, r, t), native.average_velocity(z, r, t)) < 2e-13
    assert gap(carried.velocity(z, t), native.velocity(z, t)) < 2e-13
    assert gap(carried.flow_map(z, t, r), native.flow_map(z, t, r)) < 2e-13
    assert gap(carried.jacobian(z, r, t), native.jacobian(z, r, t)) < 2e-13
    assert gap(carried.log_density(z, t), native.log_density(z, t)) < 2e-13
    assert gap(carried.velocity_covariance(z, t), native.velocity_covariance(z, t)) < 1e-12


def test_there_and_back() -> None:
    field = build(LINEAR, "mixture")
    back = Transferred(Transferred(field, TRIGONOMETRIC), LINEAR)
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert float((back.average_velocity(z, 0.2, 0.9) - field.average_velocity(z, 0.2, 0.9)).abs().max()) < 1e-13
    assert back.path == LINEAR
    x = back.sample_data(3, torch.Generator().manual_seed(1))
    assert torch.equal(x, field.sample_data(3, torch.Generator().manual_seed(1)))
