"""The sampler, held to the exact flow of fields whose average velocity is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from meanflow_ref.convention import TIMES, Convention
from meanflow_ref.errors import NetworkError, NonFiniteError, ParameterError, ShapeError, TimeError
from meanflow_ref.fields import Gaussian, GaussianMixture
from meanflow_ref.sampling import sample, trajectory


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


FIELDS = {
    "gaussian": Gaussian(tensor(1.0, -2.0), tensor([2.0, 0.5], [0.5, 0.7])),
    "mixture": GaussianMixture(tensor(0.3, 0.7), tensor(-2.0, 1.5), tensor(0.4, 0.6)),
}
STEPS = (1, 2, 4, 7)
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
# A few roundings a step of states of size 3; a mixture's Jacobian of 10 or so carries them on.
EXACT = 1e-13


def noise_for(field: Any, generator: torch.Generator) -> Tensor:
    return torch.randn(32, field.dim, dtype=torch.float64, generator=generator)


def error(net: Callable[..., Any], field: Any, generator: torch.Generator, **options: Any) -> float:
    noise = noise_for(field, generator)
    return float((sample(net, noise, **options) - field.flow_map(noise, 1.0, 0.0)).abs().max())


@every_field
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("arguments", ["z, r, t", "z, (t, h)"])
def test_the_exact_u_arrives_at_the_exact_data_in_any_number_of_steps(
    arguments: str, time: Any, steps: int, field: Any, generator: torch.Generator
) -> None:
    convention = Convention(arguments, time=time)
    net = convention.express(field.average_velocity)
    assert error(net, field, generator, steps=steps, convention=convention) < EXACT


@every_field
@pytest.mark.parametrize("times", [(1.0, 0.0), (1.0, 0.9, 0.05, 0.0), torch.tensor([1.0, 0.25, 0.0])])
def test_along_any_grid(times: Any, field: Any, generator: torch.Generator) -> None:
    assert error(field.average_velocity, field, generator, times=times) < EXACT


@every_field
def test_part_of_the_way(field: Any, generator: torch.Generator) -> None:
    z = field.sample(torch.full((32,), 0.8, dtype=torch.float64), generator)
    out = sample(field.average_velocity, z, times=(0.8, 0.5, 0.2))
    torch.testing.assert_close(out, field.flow_map(z, 0.8, 0.2), rtol=0, atol=EXACT)


@every_field
def test_a_trajectory_is_the_flow_at_every_time(field: Any, generator: torch.Generator) -> None:
    noise = noise_for(field, generator)
    states = trajectory(field.average_velocity, noise, steps=4)
    assert states.shape == (5, *noise.shape)
    for state, t in zip(states, (1.0, 0.75, 0.5, 0.25, 0.0), strict=True):
        torch.testing.assert_close(state, field.flow_map(noise, 1.0, t), rtol=0, atol=EXACT)
    assert torch.equal(states[-1], sample(field.average_velocity, noise, steps=4))


@every_field
@pytest.mark.parametrize("steps", [2, 4])
def test_networks_that_mean_something_else_are_noticed(steps: int, field: Any, generator: torch.Generator) -> None:
    u, v = field.average_velocity, field.velocity
    for wrong in (
        lambda z, r, t: u(z, t, r),  # arguments exchanged
        lambda z, r, t: v(z, t),  # the Euler step
        lambda z, r, t: u(z, 0 * r, t),  # r is not the next time
        lambda z, r, t: -u(z, r, t),  # the sign of the step
    ):
        assert error(wrong, field, generator, steps=steps) > 1e-2


def test_labels_reach_the_network(generator: torch.Generator) -> None:
    label = torch.arange(32) % 2
    field = FIELDS["gaussian"]

    def net(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where((y == 1)[:, None], field.average_velocity(z, r, t), 0 * z)

    noise = noise_for(field, generator)
    out = sample(net, noise, steps=2, label=label)
    assert torch.equal(out[label == 0], noise[label == 0])
    torch.testing.assert_close(out[label == 1], field.flow_map(noise, 1.0, 0.0)[label == 1], rtol=0, atol=EXACT)


def test_differentiable_in_noise_and_network(generator: torch.Generator) -> None:
    """For ``u = a z`` two steps multiply by ``(1 - a/2)^2``."""
    a = tensor(0.6)[0].requires_grad_()
    noise = torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()
    out = sample(lambda z, r, t: a * z, noise, steps=2)
    d_noise, d_a = torch.autograd.grad(out.sum(), [noise, a])
    torch.testing.assert_close(d_noise, torch.full_like(noise, 0.49), rtol=1e-14, atol=0)
    torch.testing.assert_close(d_a, -0.7 * noise.detach().sum(), rtol=1e-13, atol=1e-14)
    with torch.no_grad():
        assert not sample(lambda z, r, t: a * z, noise).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype: torch.dtype, generator: torch.Generator) -> None:
    kinds = []

    def net(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        kinds.append((z.dtype, r.dtype, t.dtype))
        return 0.5 * z

    noise = torch.randn(4, 3, generator=generator).to(dtype)
    out = sample(net, noise, steps=4)
    assert out.dtype == dtype
    # Four products, each rounded to the state's dtype: half an eps each.
    expected = noise.double() * 0.875**4
    assert float(((out.double() - expected) / expected).abs().max()) < 4 * torch.finfo(dtype).eps
    sample(net, noise, time_dtype=torch.float32)
    assert kinds == [(dtype, dtype, dtype)] * 4 + [(dtype, torch.float32, torch.float32)]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"steps": 0}, ParameterError, "steps=0"),
        ({"steps": 1.5}, ParameterError, "steps=1.5"),
        ({"steps": True}, ParameterError, "steps=True"),
        ({"steps": 3, "times": (1.0, 0.5, 0.0)}, ParameterError, "steps=3 beside 3 times"),
        ({"times": (1.0,)}, ShapeError, "`times` has 1 entries"),
        ({"times": (0.0, 0.5, 1.0)}, TimeError, "strictly decreasing"),
        ({"times": (1.0, 0.5, 0.5)}, TimeError, "strictly decreasing"),
        ({"times": (1.0, float("nan"), 0.0)}, TimeError, "strictly decreasing"),
        ({"times": (2.0, 1.0)}, TimeError, r"in \[0, 1\]"),
    ],
)
def test_grids_that_make_no_sense(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        sample(lambda z, r, t: z, torch.ones(2, 2), **options)


def test_an_output_of_another_shape() -> None:
    with pytest.raises(NetworkError, match=r"returned shape \(2, 1\)"):
        sample(lambda z, r, t: z[:, :1], torch.ones(2, 2))


def test_noise_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="noise"):
        sample(lambda z, r, t: z, torch.full((2, 3), float("nan")))
