"""The whole route against torch: the exact loss and gradient, filled with a real network's derivatives, are torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.kit.prove.execute import Outcome, execute
from meanflow_ref.kit.prove.inputs import symbols
from meanflow_ref.kit.prove.jets import Site
from meanflow_ref.kit.prove.ring import Ring
from meanflow_ref.kit.prove.trace import Question, trace
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import meanflow_loss

Net = Callable[..., Tensor]
jvp = cast(Callable[..., tuple[Tensor, Tensor]], torch.func.jvp)
THETA = 0.3
DIM = 3


class Smooth(nn.Module):
    """A small smooth network with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(2, DIM, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.a, self.b = weights[0], weights[1]
        self.theta = nn.Parameter(torch.tensor([THETA], dtype=torch.float64))

    def forward(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        label = torch.zeros_like(t) if y is None else y.to(t)
        return self.row(z, r[:, None], t[:, None], label[:, None], self.theta)

    def row(self, z: Tensor, r: Tensor, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        return torch.tanh(z @ self.a + theta * t - r * r) @ self.b * (1 + theta * theta * r) + 0.1 * y * z * theta


def column(time: Tensor) -> Tensor:
    return time[:, None]


def everything_attached(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Value, first and second derivatives, all in the gradient."""
    z, v = (1 - column(t)) * x + column(t) * eps, eps - x
    u, du = jvp(net, (z, r, t), (v, 0.5 * torch.ones_like(r), torch.ones_like(t)))
    error = ((u - (v - column(t - r) * du)) ** 2).sum(1)
    return (error / (error + 0.1) ** 0.75).mean()


def two_reverse_passes(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z = ((1 - column(t)) * x + column(t) * eps).requires_grad_()
    u = net(z, r, t)
    (slope,) = torch.autograd.grad((u * eps).sum(), z, create_graph=True)
    return (u * slope).square().sum(1).mean()


def reverse_over_forward(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    def along(z: Tensor) -> Tensor:
        return jvp(lambda t: net(z, r, t), (t,), (torch.ones_like(t),))[1]

    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((along(z) * eps).sum(), z)
    return (net(x, r, t) * slope).sum(1).mean()


def forward_over_reverse(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    def slope(z: Tensor) -> Tensor:
        result: Tensor = torch.func.grad(lambda z: (net(z, r, t) * eps).sum())(z)
        return result

    _, curvature = jvp(slope, (x,), (eps,))
    return (net(x, r, t) * curvature.detach()).sum(1).mean()


def guided(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return meanflow_loss(net, x, eps, r, t, label=y, guidance=Guidance(1.5, 0.25, null_label=1)).loss


CASES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...], str]] = {
    **{
        backend: (lambda net, *a, b=backend: meanflow_loss(net, *a, jvp=b).loss, ("x", "eps", "r", "t"), "z, r, t")
        for backend in ("func", "forward_ad", "double_backward", "finite_difference")
    },
    "everything attached": (everything_attached, ("x", "eps", "r", "t"), "z, r, t"),
    "two reverse passes": (two_reverse_passes, ("x", "eps", "r", "t"), "z, r, t"),
    "reverse over forward": (reverse_over_forward, ("x", "eps", "r", "t"), "z, r, t"),
    "forward over reverse": (forward_over_reverse, ("x", "eps", "r", "t"), "z, r, t"),
    "guided": (guided, ("x", "eps", "r", "t", "y"), "z, r, t, y"),
}


def fill(outcome: Outcome, net: Smooth) -> None:
    """Give every network symbol the derivative of a real network that it stands for."""
    ring = outcome.ring
    ring.atoms[outcome.theta.only_atom()].value = THETA
    for site in outcome.sites.found.values():
        point = torch.tensor([float(n.value()) for n in (*site.z, site.r, site.t, site.theta)], dtype=torch.float64)
        label = torch.tensor([float(n.value()) for n in site.y] or [0.0], dtype=torch.float64)

        def u(point: Tensor, label: Tensor = label) -> Tensor:
            return net.row(point[:DIM], point[DIM], point[DIM + 1], label, point[DIM + 2])

        # Forward over forward: no reverse mode takes part.
        jacobian = torch.func.jacfwd(u)
        derivatives = (u(point), jacobian(point), torch.func.jacfwd(jacobian)(point))
        set_jets(site, derivatives)


def set_jets(site: Site, derivatives: tuple[Tensor, ...]) -> None:
    for key, number in site._jets.items():
        site.ring.atoms[number.only_atom()].value = float(derivatives[len(key) - 1][key])


def numbers(outcome: Outcome, letter: str) -> Tensor:
    array = outcome.inputs[letter]
    values = torch.tensor([float(n.value()) for n in array.reshape(-1)], dtype=torch.float64).reshape(array.shape)
    return values.long() if letter == "y" else values


@pytest.mark.parametrize("name", CASES)
def test_the_exact_loss_of_a_real_network_is_torchs(name: str) -> None:
    loss, letters, call = CASES[name]
    question = Question(loss, letters, Convention(call), (2, DIM), torch.float64)
    ring = Ring(seed=3)
    outcome = execute(trace(question), symbols(ring, question), ring)
    net = Smooth()
    fill(outcome, net)
    value = loss(net, *(numbers(outcome, letter) for letter in letters))
    (slope,) = torch.autograd.grad(value, net.theta)
    # float64 in torch. A step of 2^-17 in the finite difference costs it 17 bits, and its second forward mode more.
    tolerance = 1e-7 if name == "finite_difference" else 1e-11
    assert outcome.gradient is not None
    assert float(outcome.value.value()) == pytest.approx(float(value.detach()), rel=tolerance)
    assert float(outcome.gradient.value()) == pytest.approx(float(slope), rel=tolerance)


def test_the_comparison_sees_a_wrong_derivative() -> None:
    loss, letters, call = CASES["everything attached"]
    question = Question(loss, letters, Convention(call), (2, DIM), torch.float64)
    ring = Ring(seed=3)
    outcome = execute(trace(question), symbols(ring, question), ring)
    net = Smooth()
    fill(outcome, net)
    assert outcome.gradient is not None
    (site, *_) = outcome.sites.found.values()
    used = outcome.gradient.atoms() & {n.only_atom() for key, n in site._jets.items() if len(key) == 3}
    ring.atoms[min(used)].value += 1e-4
    value = loss(net, *(numbers(outcome, letter) for letter in letters))
    (slope,) = torch.autograd.grad(value, net.theta)
    assert float(outcome.gradient.value()) != pytest.approx(float(slope), rel=1e-11)
