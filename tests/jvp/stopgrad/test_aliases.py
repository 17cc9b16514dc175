"""Views, aliases and in-place writes: the derivative is that of the values, whoever shares memory with whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meanflow_ref.jvp.stopgrad import stopgrad_jvp

CASES: dict[str, Callable[[Tensor], Tensor]] = {}


def case(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    CASES[fn.__name__] = fn
    return fn


@case
def circular_padding(a: Tensor) -> Tensor:
    padded: Tensor = F.pad(a[None], (1, 1), mode="circular")[0]
    return padded


@case
def matrix_power(a: Tensor) -> Tensor:
    power: Tensor = torch.linalg.matrix_power(a[:, :4], 3)
    return power


@case
def a_buffer_filled_in_parts(a: Tensor) -> Tensor:
    b = torch.zeros(4, 12, dtype=a.dtype)
    b[:, :6] = a
    b[:, 6:] = a * a
    return b * 3


@case
def a_view_taken_before_the_write(a: Tensor) -> Tensor:
    b = torch.zeros(4, 12, dtype=a.dtype)
    row, flat = b[1], b.view(-1)
    b[1:3, 2:8].copy_(a[:2] * 2)
    return row.sin().sum() + flat * 2


@case
def the_base_read_after_a_write_to_its_view(a: Tensor) -> Tensor:
    y = a * 2
    part, turned = y[:, 1:3], y.t()
    part.mul_(a[:, :2])
    part.add_(1)
    return y * turned.t()


@case
def a_view_of_a_view_of_what_died(a: Tensor) -> Tensor:
    y = (a * 2).view(2, 2, 6)[0]
    y.exp_()
    return y.t()[1:4].sin()


@case
def the_same_tangent_in_two_places(a: Tensor) -> Tensor:
    # The rule of `x + constant` hands on the tangent itself; a write to one must not move the other.
    x = a * 2
    y = x + 1
    x[0].mul_(5)
    return torch.cat([x, y])


@case
def a_write_that_reads_itself(a: Tensor) -> Tensor:
    y = a.clone()
    y += y
    y *= y.flip(0)
    y[:2] = y[2:].clone() * y[:2]
    return y


@case
def halves_that_write_into_each_other(a: Tensor) -> Tensor:
    y = a * 2
    p, q = y.chunk(2, 1)
    p.copy_(q.exp())
    q.zero_()
    return y


@case
def rows_scaled_one_by_one(a: Tensor) -> Tensor:
    y = a * 2
    for i, row in enumerate(y.unbind(0)):
        row.mul_(i + 1) if i else row.fill_(3.0)
    return y


@case
def autoregression_in_place(a: Tensor) -> Tensor:
    h = a
    for i in range(1, 4):
        h = h.clone()
        h[:, i] = h[:, i - 1] * h[:, i]
    return h


@case
def an_accumulator(a: Tensor) -> Tensor:
    total = torch.zeros(6, dtype=a.dtype)
    for row in a:
        total += row * row
    return total


@case
def masks_and_indices(a: Tensor) -> Tensor:
    y = a * 3
    y[a > 0] = 0
    y.masked_fill_(a < -1, 2.0)
    y[torch.tensor([0, 2])] = a[:2].sin()
    y.index_put_((torch.tensor([1]),), a[3:4] * a[3:4], accumulate=True)
    return y.scatter_add_(1, torch.zeros(4, 6, dtype=torch.long), a)


@case
def expanded(a: Tensor) -> Tensor:
    e = a[:, :1].expand(4, 6)
    y = e * a
    y[:, 0] += e[:, 2]
    return y + e.sum()


@case
def a_write_through_an_expanded_tangent(a: Tensor) -> Tensor:
    y = a[:1].sum() + torch.zeros(4, 6, dtype=a.dtype)
    y[0, 0] = 7.0
    y[1] *= a[0]
    return y


@case
def results_into_out(a: Tensor) -> Tensor:
    o = torch.empty(4, 4, dtype=a.dtype)
    torch.mm(a, a.t(), out=o)
    p = torch.empty(4, 4, dtype=a.dtype)
    return torch.mul(o, a[:, :4], out=p) + o


@case
def shapes_changed_in_place(a: Tensor) -> Tensor:
    y = a * 2
    y.unsqueeze_(0)
    y.squeeze_(0)
    y.t_()
    return y * y


@case
def strided_by_hand(a: Tensor) -> Tensor:
    y = (a * 2).t()
    z = torch.as_strided(y, (3, 3), (1, 4), 1)
    w = a * 3
    w.as_strided_((2, 2), (6, 1), 1)
    w.mul_(2)
    return torch.cat([z.flatten(), w.flatten()])


@case
def inplace_activations(a: Tensor) -> Tensor:
    y = F.relu(a * 2, inplace=True)
    y = F.silu(y + a, inplace=True)
    return F.leaky_relu(y.view(2, 12), 0.2, inplace=True).view(4, 6)


@case
def complex_numbers(a: Tensor) -> Tensor:
    c = torch.complex(a, a.sin())
    f: Tensor = torch.fft.fft(c)
    f[0] *= 2j
    return (f * f).real + (c * c.conj()).real + torch.view_as_real(c * 1j)[..., 0] + c.abs()


@case
def integers_between(a: Tensor) -> Tensor:
    return a * a.long().double() + a.round() + a.argmax() + (a > 0).double()


@case
def branches_on_data(a: Tensor) -> Tensor:
    return a[a[:, 0] > 0].sum() * a if bool(a.sum() > 100) else a * a[:, 1:2]


@case
def regions_without_graph(a: Tensor) -> Tensor:
    with torch.no_grad():
        h = a * a
    with torch.enable_grad():
        return h * a


@case
def a_gradient_inside(a: Tensor) -> Tensor:
    with torch.enable_grad():
        b = a * 1
        b = b if b.requires_grad else b.requires_grad_()
        wave = b.sin()
        (force,) = torch.autograd.grad((wave * b).sum(), b, create_graph=True)
    return force


@case
def vectorised(a: Tensor) -> Tensor:
    out: Tensor = torch.vmap(lambda row: row.sin() * row.sum())(a)
    return out


@case
def recurrence(a: Tensor) -> Tensor:
    gate = a.new_ones(6, 6).tril() / 6
    h = torch.zeros_like(a[0])
    out = torch.empty_like(a)
    for i, x in enumerate(a):
        h = torch.tanh(x + gate @ h)
        out[i] = h
    return out


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, d = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    return x, d


def difference(fn: Callable[[Tensor], Tensor], x: Tensor, d: Tensor, h: float = 1e-4) -> Tensor:
    """Central difference of fourth order: truncation about 1e-14, rounding about 1e-11 at this step."""
    near, far = ((fn(x + k * h * d) - fn(x - k * h * d)) / (2 * k * h) for k in (1, 2))
    return (4 * near - far) / 3


@pytest.mark.parametrize("name", CASES)
def test_against_differences(name: str) -> None:
    x, d = inputs()
    before = x.clone()
    u, du_dt = stopgrad_jvp(CASES[name], (x,), (d,))
    assert torch.equal(x, before)
    assert torch.equal(u, CASES[name](x.clone()))
    torch.testing.assert_close(du_dt, difference(CASES[name], x, d), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_against_forward_ad_where_it_answers(name: str) -> None:
    x, d = inputs()
    try:
        _, expected = torch.func.jvp(CASES[name], (x,), (d,))  # type: ignore[misc]
    except RuntimeError:
        pytest.skip("torch.func.jvp refuses this case")
    _, du_dt = stopgrad_jvp(CASES[name], (x,), (d,))
    torch.testing.assert_close(du_dt, expected, rtol=1e-13, atol=1e-13)


def test_detached_is_constant_as_in_forward_ad() -> None:
    x, d = inputs()
    for fn in (
        lambda a: (a * 2).detach() * a,
        lambda a: (a * 2).data * a,
        lambda a: (a * 2).detach()[1:].view(-1)[0] * a,
        lambda a: a * (a * 1).detach().sum().item(),
    ):
        _, expected = torch.func.jvp(fn, (x,), (d,))  # type: ignore[misc]
        _, du_dt = stopgrad_jvp(fn, (x,), (d,))
        torch.testing.assert_close(du_dt, expected, rtol=1e-14, atol=1e-14)


def test_what_the_network_closes_over_is_constant() -> None:
    x, d = inputs()
    _, du_dt = stopgrad_jvp(lambda a: a * x + x.view(-1)[:6], (x,), (d,))
    torch.testing.assert_close(du_dt, d * x, rtol=0, atol=0)


def test_the_derivative_is_not_the_callers_tangent() -> None:
    x, d = inputs()
    for fn in (lambda a: a, lambda a: a + 1, lambda a: a.view(6, 4)):
        _, du_dt = stopgrad_jvp(fn, (x,), (d,))
        du_dt.zero_()
        assert bool((d != 0).all())


def test_many_calls_leave_nothing_behind() -> None:
    """Identities are reused by Python as soon as tensors die; a stale entry would show as a wrong number."""
    x, d = inputs()

    def churn(a: Tensor) -> Tensor:
        for _ in range(50):
            torch.randn(4, 6, dtype=a.dtype)
            b = a * 2
            del b
            c: Any = torch.ones(4, 6, dtype=a.dtype)
            c += 1
            a = a + c
        return a

    for _ in range(5):
        _, du_dt = stopgrad_jvp(churn, (x,), (d,))
        assert torch.equal(du_dt, d)
