"""The linear field: exact at every gap, against scipy's exponential and the laws; its Jacobian is not symmetric."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import torch

from meanflow_ref.errors import ShapeError
from meanflow_ref.fields.linear import LinearFlow

SPIRAL = LinearFlow(torch.tensor([[0.3, -2.0], [1.4, -0.5]], dtype=torch.float64))


def states(n: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    pair = torch.rand(2, n, dtype=torch.float64, generator=generator)
    return z, pair.amin(0), pair.amax(0)


def test_the_flow_map_is_scipys_exponential() -> None:
    z, r, t = states()
    for i in range(len(z)):
        exact = scipy.linalg.expm(-float(t[i] - r[i]) * SPIRAL.matrix.numpy()) @ z[i].numpy()
        # Pade approximants in both: a few roundings of numbers of size one.
        np.testing.assert_allclose(SPIRAL.flow_map(z, t, r)[i].numpy(), exact, rtol=1e-13, atol=1e-14)


def test_u_is_the_mean_velocity_along_scipys_trajectory() -> None:
    z, r, t = states(6)
    u = SPIRAL.average_velocity(z, r, t)
    for i in range(len(z)):
        solution = scipy.integrate.solve_ivp(
            lambda _, y: SPIRAL.matrix.numpy() @ y,
            (float(t[i]), float(r[i])),
            z[i].numpy(),
            "DOP853",
            rtol=1e-13,
            atol=1e-13,
        )
        displacement = z[i].numpy() - solution.y[:, -1]
        # Solver tolerance 1e-13 a step, a few steps.
        np.testing.assert_allclose(u[i].numpy() * float(t[i] - r[i]), displacement, rtol=0, atol=5e-12)


@pytest.mark.parametrize("gap", [0.5, 1e-3, 1e-9, 1e-16, 0.0])
def test_the_identity_holds_at_every_gap(gap: float) -> None:
    z, _, t = states()
    t = 0.5 + t / 2
    r = t - gap
    v = SPIRAL.velocity(z, t)
    tangents = (v, torch.zeros_like(r), torch.ones_like(t))
    u, du_dt = torch.func.jvp(SPIRAL.average_velocity, (z, r, t), tangents)[:2]
    # Entries of size 5; matrix_exp and its derivative are accurate to a few tens of roundings.
    torch.testing.assert_close(u, v - (t - r)[:, None] * du_dt, rtol=0, atol=1e-13)
    if gap == 0:
        torch.testing.assert_close(u, v, rtol=0, atol=1e-14)


def test_the_jacobian_of_u_is_not_symmetric() -> None:
    z, r, t = states(1)
    jacobian = torch.func.jacrev(lambda x: SPIRAL.average_velocity(x[None], r, t)[0])(z[0])
    assert (jacobian - jacobian.mT).abs().max() > 1
    torch.testing.assert_close(torch.eye(2, dtype=z.dtype) - (t - r) * jacobian, SPIRAL.jacobian(z, r, t)[0])


def test_float32_and_bad_shapes() -> None:
    z, r, t = (x.float() for x in states())
    field = SPIRAL.to(dtype=torch.float32)
    assert field.average_velocity(z, r, t).dtype is torch.float32
    with pytest.raises(ShapeError):
        LinearFlow(torch.zeros(2, 3))
