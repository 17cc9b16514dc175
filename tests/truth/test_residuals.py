"""Residuals vanish for exact fields, do not for mutants, and serve networks of any event shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from truth_cases import PATHS, Cases, amplification, draw, gaussian, line_mixture, worst

from meanflow_ref.truth import residuals

FAMILIES = {"gaussian": gaussian, "mixture": line_mixture}
every = pytest.mark.parametrize(("family", "path"), [(f, p) for f in FAMILIES for p in PATHS])


@every
def test_vanish_for_the_exact_average_velocity(family: str, path: str) -> None:
    field = FAMILIES[family](PATHS[path])
    c = draw(field)
    u, v = field.average_velocity, field.velocity
    # Rounding of a quantity that the flow has amplified: 1e2 units times (1 + J)(1 + |v|). The mixture's (z - phi)/h
    # is used from h = 2^-5 on, whose derivative multiplied by h has the same rounding again.
    scale = amplification(field, c) * (1 + v(c.z, c.t).abs().amax(1))
    assert worst(residuals.identity_residual(u, v, *c.all), scale) < 3e-14
    assert worst(residuals.lagrangian_residual(u, v, *c.all), scale) < 3e-14
    assert worst(residuals.boundary_residual(u, v, c.z, c.t), scale) < 3e-14
    for share in (0.0, 0.3, 1.0, 1.2):
        # Also beyond t, as long as the time exists.
        s = (c.r + share * (c.t - c.r)).clamp(max=1)
        beyond = Cases(c.z, s, c.t)
        through = scale * (amplification(field, beyond) if share <= 1 else 4)
        assert worst(residuals.consistency_residual(u, c.z, c.r, s, c.t), through) < 3e-14


def _mutants() -> dict[str, Callable[[Callable[..., Tensor]], Callable[..., Tensor]]]:
    return {
        "negated": lambda u: lambda z, r, t: -u(z, r, t),
        "times swapped in the network": lambda u: lambda z, r, t: u(z, r, r),
        "one per cent too large": lambda u: lambda z, r, t: 1.01 * u(z, r, t),
        "constant added": lambda u: lambda z, r, t: u(z, r, t) + 0.01,
    }


@pytest.mark.parametrize("mutant", _mutants())
def test_are_not_small_for_a_wrong_average_velocity(mutant: str) -> None:
    field = gaussian()
    c = draw(field)
    v, wrong = field.velocity, _mutants()[mutant](field.average_velocity)
    assert worst(residuals.identity_residual(wrong, v, *c.all)) > 1e-3
    assert worst(residuals.lagrangian_residual(wrong, v, *c.all)) > 1e-3
    assert worst(residuals.consistency_residual(wrong, c.z, c.r, 0.5 * (c.r + c.t), c.t)) > 1e-4


def test_any_instantaneous_field_is_consistent_only_at_equal_times() -> None:
    """``u = v`` passes the boundary and nothing else: each residual asks its own question."""
    field = gaussian()
    c = draw(field)

    def instant(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return field.velocity(z, t)

    assert worst(residuals.boundary_residual(instant, field.velocity, c.z, c.t)) == 0
    assert worst(residuals.identity_residual(instant, field.velocity, *c.all)) > 1e-2
    assert worst(residuals.consistency_residual(instant, c.z, c.r, 0.5 * (c.r + c.t), c.t)) > 1e-2


def test_serve_networks_of_any_event_shape_and_carry_gradient() -> None:
    layer = torch.nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=generator)

    def network(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output: Tensor = layer(z) * (1 + r * t)[:, None, None, None]
        return output

    residual = residuals.identity_residual(network, lambda z, t: z, z, 0.25, 0.75)
    assert residual.shape == z.shape
    # u = L(z)(1 + rt), v = z: u - v + h (L_0 z (1 + rt) + r L(z)) with L_0 the linear part.
    bias = layer.bias
    assert bias is not None
    linear = layer(z) - bias[:, None, None]
    by_hand = layer(z) * 1.1875 - z + 0.5 * (linear * 1.1875 + 0.25 * layer(z))
    assert float((residual - by_hand).detach().abs().max()) < 1e-14
    residual.square().sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None
    assert residuals.consistency_residual(network, z, 0.1, 0.4, 0.9).shape == z.shape
    assert residuals.lagrangian_residual(network, lambda z, t: z, z, 0.1, 0.9).shape == z.shape
