"""Every backend against a derivative taken by hand, and what each promises about graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow_ref._typing import JvpBackend
from meanflow_ref.errors import DtypeError, NetworkError, ParameterError, ShapeError
from meanflow_ref.jvp import BACKENDS, get_backend
from meanflow_ref.jvp.finite_difference import FiniteDifference
from meanflow_ref.jvp.rng import replayed_rng

# Automatic differentiation is right to rounding; central differences to the error their module's table states.
EXACT = ("stopgrad", "func", "forward_ad", "double_backward")
ERROR = {**dict.fromkeys(EXACT, 1e-14), "finite_difference": 1e-9}


class HandMade(nn.Module):
    """``u = sin(z A^T) e^t + r^2 z`` with a matrix A that is not symmetric, and its derivative by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.3, -1.1], [0.7, 0.2]], dtype=torch.float64))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return torch.sin(z @ self.matrix.T) * torch.exp(t)[:, None] + (r * r)[:, None] * z

    def derivative(self, z: Tensor, r: Tensor, t: Tensor, dz: Tensor, dr: Tensor, dt: Tensor, a: Tensor) -> Tensor:
        wave = torch.cos(z @ a.T) * (dz @ a.T) + torch.sin(z @ a.T) * dt[:, None]
        return wave * torch.exp(t)[:, None] + 2 * (r * dr)[:, None] * z + (r * r)[:, None] * dz


@pytest.fixture
def net() -> HandMade:
    return HandMade()


@pytest.fixture
def primals(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    r, t = torch.rand(2, 6, dtype=torch.float64, generator=generator).sort(0).values
    return z, r, t


@pytest.fixture
def tangents(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    dz = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    dr, dt = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    return dz, dr, dt


@pytest.mark.parametrize("name", BACKENDS)
def test_value_and_derivative_are_those_found_by_hand(
    name: str, net: HandMade, primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    u, du_dt = get_backend(name)(net, primals, tangents)
    a = net.matrix.detach()
    by_hand = net.derivative(*primals, *tangents, a)
    # 1e-14: a dozen roundings of numbers of size 10.
    torch.testing.assert_close(du_dt.detach(), by_hand, rtol=ERROR[name], atol=ERROR[name])
    torch.testing.assert_close(u, net(*primals), rtol=0, atol=0)
    # What this comparison is able to see: the transposed Jacobian, and r and t exchanged.
    assert (by_hand - net.derivative(*primals, *tangents, a.T)).abs().max() > 0.1
    dz, dr, dt = tangents
    assert (by_hand - net.derivative(*primals, dz, dt, dr, a)).abs().max() > 0.1


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("still", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_no_tangent_is_a_zero_tangent(
    name: str,
    still: tuple[int, ...],
    net: HandMade,
    primals: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor, Tensor, Tensor],
) -> None:
    zeros = [torch.zeros_like(d) if i in still else d for i, d in enumerate(tangents)]
    none = tuple(None if i in still else d for i, d in enumerate(tangents))
    u, du_dt = get_backend(name)(net, primals, none)
    by_hand = net.derivative(*primals, zeros[0], zeros[1], zeros[2], net.matrix.detach())
    torch.testing.assert_close(du_dt.detach(), by_hand, rtol=ERROR[name], atol=ERROR[name])
    assert u.requires_grad


class NoForwardMode(torch.autograd.Function):
    """The identity, without a forward-mode derivative."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[object, ...], output: object) -> None:
        pass

    @staticmethod
    def backward(ctx: object, *grad: Tensor) -> Tensor:
        return grad[0]


@pytest.mark.parametrize("name", ["func", "forward_ad"])
def test_a_zero_tangent_is_not_materialised(
    name: str, primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    def net(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        moved: Tensor = NoForwardMode.apply(r)  # type: ignore[no-untyped-call]
        return z * moved[:, None] + t[:, None]

    dz, dr, dt = tangents
    _, du_dt = get_backend(name)(net, primals, (dz, None, dt))
    torch.testing.assert_close(du_dt, dz * primals[1][:, None] + dt[:, None], rtol=0, atol=0)
    # A dense zero would have reached the operation, as any tangent of r does.
    with pytest.raises(RuntimeError, match="NoForwardMode"):
        get_backend(name)(net, primals, (dz, torch.zeros_like(dr), dt))


@pytest.mark.parametrize("name", BACKENDS)
def test_u_carries_the_graph_to_the_parameters(
    name: str, net: HandMade, primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    cotangent = torch.randn_like(primals[0])
    u, du_dt = get_backend(name)(net, primals, tangents)
    (through_backend,) = torch.autograd.grad(u, net.matrix, cotangent, retain_graph=True)
    (plain,) = torch.autograd.grad(net(*primals), net.matrix, cotangent)
    torch.testing.assert_close(through_backend, plain, rtol=1e-14, atol=1e-14)
    assert du_dt.requires_grad == (name in {"func", "forward_ad"})  # as their docstrings say


@pytest.mark.parametrize("name", BACKENDS)
def test_without_grad_mode_the_derivative_is_the_same_and_nothing_has_a_graph(
    name: str, net: HandMade, primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    _, expected = get_backend(name)(net, primals, tangents)
    with torch.no_grad():
        u, du_dt = get_backend(name)(net, primals, tangents)
    assert not u.requires_grad
    assert not du_dt.requires_grad
    torch.testing.assert_close(du_dt, expected.detach(), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", EXACT)
def test_a_graph_to_the_inputs_is_kept(name: str, net: HandMade, primals: tuple[Tensor, Tensor, Tensor]) -> None:
    z, r, t = primals
    z = z.clone().requires_grad_()
    u, _ = get_backend(name)(net, (z, r, t), (torch.ones_like(z), None, None))
    (through_backend,) = torch.autograd.grad(u.sum(), z)
    (plain,) = torch.autograd.grad(net(z, r, t).sum(), z)
    torch.testing.assert_close(through_backend, plain, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", BACKENDS)
def test_primals_that_depend_on_one_another_are_still_differentiated_apart(
    name: str, net: HandMade, primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    (z, _, t), (dz, _, dt) = primals, tangents
    _, expected = get_backend(name)(net, (z, t.clone(), t), (dz, None, dt))
    learned = t.clone().requires_grad_()
    # z is a function of t as on a path, and r is the very tensor t: neither moves with t in a partial derivative.
    for state in (z, z + (learned - learned.detach())[:, None]):
        _, du_dt = get_backend(name)(net, (state, learned, learned), (dz, None, dt))
        torch.testing.assert_close(du_dt, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_output_that_does_not_move_has_derivative_zero(name: str) -> None:
    bias = torch.zeros(3, 1, requires_grad=True)
    x = torch.ones(3, 1)
    for fn in (lambda z: bias + 1, lambda z: bias + torch.floor(z), torch.ones_like):
        _, du_dt = get_backend(name)(fn, (x + 0.5,), (x,))
        assert torch.equal(du_dt, torch.zeros_like(du_dt))


def test_a_tangent_lost_in_silence_is_found_again(
    primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    """What a frozen network does that was compiled apart from the loss: the value passes, its tangent is dropped."""

    def compiled(z: Tensor) -> Tensor:
        value: Tensor = forward_ad.unpack_dual(z).primal  # type: ignore[no-untyped-call]
        return torch.sin(value)

    _, du_dt = get_backend("forward_ad")(compiled, primals[:1], tangents[:1])
    torch.testing.assert_close(du_dt, torch.cos(primals[0]) * tangents[0], rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- finite differences


@pytest.mark.parametrize("order", [1, 2, 4])
def test_finite_differences_converge_at_their_order(
    order: int, net: HandMade, primals: tuple[Tensor, Tensor, Tensor], tangents: tuple[Tensor, Tensor, Tensor]
) -> None:
    by_hand = net.derivative(*primals, *tangents, net.matrix.detach())

    def error(step: float) -> float:
        _, du_dt = FiniteDifference(step, order)(net, primals, tangents)
        return float((du_dt - by_hand).norm())

    # At h = 1/32 the next term of the series is some 5 % of the leading one, and rounding 1e-13 of it.
    ratio = error(1 / 32) / error(1 / 64)
    assert 0.85 * 2**order < ratio < 1.15 * 2**order


@pytest.mark.parametrize(
    ("dtype", "order", "step", "error"),
    [
        (torch.float64, 1, 2.0**-26, 1e-8),
        (torch.float64, 2, 2.0**-17, 6e-11),
        (torch.float64, 4, 2.0**-10, 1e-12),
        (torch.float32, 1, 2.0**-12, 3e-4),
        (torch.float32, 2, 2.0**-8, 2e-5),
        (torch.float32, 4, 2.0**-5, 4e-6),
    ],
)
def test_the_table_of_steps_and_errors_holds(dtype: torch.dtype, order: int, step: float, error: float) -> None:
    difference = FiniteDifference(order=order)
    assert difference.step_for(dtype) == step
    x = torch.linspace(-1, 1, 101, dtype=dtype)
    _, du_dt = difference(torch.sin, (x,), (torch.ones_like(x),))
    measured = float((du_dt.double() - torch.cos(x.double())).abs().max())
    # The table gives the order of magnitude for a function whose derivatives are of size one.
    assert error / 30 < measured < 3 * error


def test_finite_differences_see_one_dropout_mask(generator: torch.Generator) -> None:
    x, d = torch.randn(2, 64, 8, dtype=torch.float64, generator=generator)
    net = nn.Dropout(0.5)
    u, du_dt = get_backend("finite_difference")(net, (x,), (d,))
    # Dropout is linear at a fixed mask, so the quotient is the mask times d.
    torch.testing.assert_close(du_dt, torch.where(u == 0, 0, 2 * d), rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{"step": 0.0}, {"step": -1e-3}, {"step": float("nan")}, {"order": 3}])
def test_a_finite_difference_that_makes_no_sense(options: dict[str, float]) -> None:
    with pytest.raises(ParameterError, match=r"order|step"):
        FiniteDifference(**options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- front door


def test_a_backend_by_name_or_by_itself() -> None:
    def mine(fn: object, primals: object, tangents: object, /) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    backend: JvpBackend = mine
    assert get_backend(backend) is backend
    assert all(callable(get_backend(name)) for name in BACKENDS)


@pytest.mark.parametrize(("seen", "near"), [("fucn", "func"), ("doublebackward", "double_backward"), ("fwd_ad", "for")])
def test_an_unknown_backend_names_the_nearest(seen: str, near: str) -> None:
    with pytest.raises(ParameterError, match=f'What to do: jvp="{near}'):
        get_backend(seen)


def test_what_is_no_backend_at_all() -> None:
    with pytest.raises(ParameterError, match="jvp=3 is int"):
        get_backend(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BACKENDS)
def test_tangents_are_held_to_their_primals(name: str) -> None:
    x = torch.ones(3, 2)
    backend = get_backend(name)
    with pytest.raises(DtypeError, match=r"tangent 0 is torch\.float64"):
        backend(torch.sin, (x,), (x.double(),))
    with pytest.raises(ShapeError, match=r"tangent 0 has shape \(2, 3\)"):
        backend(torch.sin, (x,), (x.T,))
    with pytest.raises(ShapeError, match="1 primals, 2 tangents"):
        backend(torch.sin, (x,), (x, None))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_tuple_is_no_output(name: str) -> None:
    x = torch.ones(3)
    with pytest.raises(NetworkError, match=r"returned tuple \(Tensor, Tensor\)"):
        get_backend(name)(lambda z: (z, z), (x,), (x,))  # type: ignore[arg-type, return-value]


def test_random_numbers_are_replayed() -> None:
    before = torch.get_rng_state()
    with replayed_rng(torch.ones(1)):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.rand(3), inside)
