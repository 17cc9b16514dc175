"""The reference loss against exact fields, against a network differentiated by hand, and against itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.fields import Gaussian, GaussianMixture
from meanflow_ref.jvp.finite_difference import FiniteDifference
from meanflow_ref.objectives import meanflow
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss, meanflow_loss_at
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, AbstractPath

GradientOf = Callable[[Tensor, nn.Module], Tensor]
EXACT = ("func", "forward_ad", "double_backward")


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(path: AbstractPath = LINEAR) -> Gaussian:
    return Gaussian(tensor(1.0, -2.0), tensor([2.0, 0.5], [0.5, 0.7]), path)


def mixture(path: AbstractPath = LINEAR) -> GaussianMixture:
    return GaussianMixture(tensor(0.3, 0.7), tensor(-1.0, 1.5), tensor(0.6, 0.8), path)


class Spiral:
    """The field ``v = A z`` with ``A = [[a, -b], [b, a]]``: multiplication by a + ib, so that u is one by complex exp.

    Its Jacobian is not symmetric, as that of normal data is: it alone tells J v from J^T v.
    """

    a, b = 0.7, 2.0

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        return torch.stack([self.a * z[:, 0] - self.b * z[:, 1], self.b * z[:, 0] + self.a * z[:, 1]], 1)

    def average_velocity(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        # (1 - e^{-(a + ib) h})/h by real arithmetic, h > 0.
        h = t - r
        decay = torch.exp(-self.a * h)
        real, imaginary = (1 - decay * torch.cos(self.b * h)) / h, decay * torch.sin(self.b * h) / h
        return torch.stack([real * z[:, 0] - imaginary * z[:, 1], imaginary * z[:, 0] + real * z[:, 1]], 1)


def pairs(n: int, generator: torch.Generator, gap: float = 0.0) -> tuple[Tensor, Tensor]:
    t = gap + (1 - gap) * torch.rand(n, dtype=torch.float64, generator=generator)
    return (t - gap) * torch.rand(n, dtype=torch.float64, generator=generator), t


def residual(field: Any, generator: torch.Generator, jvp: Any = "func", **options: Any) -> float:
    """Largest |u - target| with the exact u as network and the exact v."""
    if isinstance(field, Spiral):
        r, t = pairs(64, generator, gap=0.1)
        z = torch.randn(64, 2, dtype=torch.float64, generator=generator)
    else:
        r, t = pairs(64, generator)
        r[::8] = t[::8]
        z = field.sample(t, generator)
    v = field.velocity(z, t)
    terms = meanflow_loss_at(field.average_velocity, z, v, r, t, jvp=jvp, **options)
    return float((terms.u - terms.target).detach().abs().max())


# ---------------------------------------------------------------- exact fields


@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize("jvp", EXACT)
@pytest.mark.parametrize(
    "field",
    [gaussian(), gaussian(TRIGONOMETRIC), mixture(), mixture(TRIGONOMETRIC), Spiral()],
    ids=["gaussian", "gaussian-trig", "mixture", "mixture-trig", "spiral"],
)
def test_at_the_exact_u_the_target_is_u(field: Any, jvp: str, two_pass: bool, generator: torch.Generator) -> None:
    # u and du/dt are of size 10 at most, and right to some ten roundings each: 1e-13 leaves a factor of a few.
    assert residual(field, generator, jvp, two_pass=two_pass) < 1e-13


@pytest.mark.parametrize(("order", "bound"), [(1, 1e-5), (2, 1e-8), (4, 1e-9)])
def test_finite_differences_come_as_near_as_their_order_allows(
    order: int, bound: float, generator: torch.Generator
) -> None:
    # The steps' table times the size of the field's derivatives of order up to five, a hundred or so.
    assert residual(gaussian(), generator, FiniteDifference(order=order)) < bound


Derivative = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
one, zero = torch.ones_like, torch.zeros_like


def jvp(fn: Any, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Tensor:
    derivative: Tensor = torch.func.jvp(fn, at, along)[1]
    return derivative


def transposed(fn: Any, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """``J^T v + d_t u`` in place of ``J v + d_t u``."""
    z = z.detach().requires_grad_()
    return torch.autograd.grad(fn(z, r, t), z, v)[0] + jvp(fn, (z, r, t), (zero(v), zero(r), one(t))).detach()


def wrong(derivative: Derivative) -> Callable[..., tuple[Tensor, Tensor]]:
    """A backend with a mistake in place of the derivative along (v, 0, 1)."""

    def backend(fn: Any, primals: Any, tangents: Any, /) -> tuple[Tensor, Tensor]:
        z, r, t = primals
        return fn(z, r, t), derivative(fn, z, r, t, tangents[0])

    return backend


MISTAKES: dict[str, Derivative] = {
    "r and t swapped": lambda fn, z, r, t, v: jvp(fn, (z, r, t), (v, one(r), zero(t))),
    "r moves too": lambda fn, z, r, t, v: jvp(fn, (z, r, t), (v, one(r), one(t))),
    "no spatial tangent": lambda fn, z, r, t, v: jvp(fn, (z, r, t), (zero(v), zero(r), one(t))),
    "no time tangent": lambda fn, z, r, t, v: jvp(fn, (z, r, t), (v, zero(r), zero(t))),
    "velocity reversed": lambda fn, z, r, t, v: jvp(fn, (z, r, t), (-v, zero(r), one(t))),
    "sign": lambda fn, z, r, t, v: -jvp(fn, (z, r, t), (v, zero(r), one(t))),
    "half the coefficient": lambda fn, z, r, t, v: 0.5 * jvp(fn, (z, r, t), (v, zero(r), one(t))),
    "tangent is u": lambda fn, z, r, t, v: jvp(fn, (z, r, t), (fn(z, r, t), zero(r), one(t))),
    "another r": lambda fn, z, r, t, v: jvp(fn, (z, (r + t) / 2, t), (v, zero(r), one(t))),
}


@pytest.mark.parametrize("field", [gaussian(), mixture(), Spiral()], ids=["gaussian", "mixture", "spiral"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_exact_field_finds_every_mistake_in_the_derivative(
    mistake: str, field: Any, generator: torch.Generator
) -> None:
    # Ten orders of magnitude above what the right derivative leaves.
    assert residual(field, generator, wrong(MISTAKES[mistake])) > 1e-2


def test_the_transposed_jacobian_hides_on_normal_data_and_shows_on_a_spiral(generator: torch.Generator) -> None:
    assert residual(gaussian(), generator, wrong(transposed)) < 1e-13
    assert residual(Spiral(), generator, wrong(transposed)) > 1e-2


def test_the_loss_of_the_exact_u_is_zero(generator: torch.Generator) -> None:
    field = gaussian()
    r, t = pairs(64, generator)
    z = field.sample(t, generator)
    terms = meanflow_loss_at(field.average_velocity, z, field.velocity(z, t), r, t, weight_power=0.0)
    assert float(terms.loss) < 1e-26  # 1e-13 squared


# ---------------------------------------------------------------- by hand


def test_every_term_of_a_network_differentiated_by_hand(generator: torch.Generator) -> None:
    """For ``u = a t z + b r`` the derivative along (v, 0, 1) is ``a (z + t v)``; the rest is arithmetic on floats."""
    a, b, p, c = 0.7, -1.3, 0.75, 1e-2
    x, eps = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    r, t = pairs(5, generator)
    terms = meanflow_loss(lambda z, r, t: a * t * z + b * r, x, eps, r, t, weight_power=p, weight_eps=c)
    per_sample = []
    for i, (xi, ei, ri, ti) in enumerate(zip(x.tolist(), eps.tolist(), r.tolist(), t.tolist(), strict=True)):
        z, v = (1 - ti) * xi + ti * ei, ei - xi
        du_dt = a * (z + ti * v)
        target = v - (ti - ri) * du_dt
        squared_error = (a * ti * z + b * ri - target) ** 2
        per_sample.append(squared_error / (squared_error + c) ** p)
        row = [float(term[i]) for term in (terms.z, terms.v, terms.du_dt, terms.target, terms.squared_error)]
        # A handful of roundings of numbers of size one to ten.
        assert row == pytest.approx([z, v, du_dt, target, squared_error], rel=1e-13, abs=1e-14)
    assert terms.per_sample.tolist() == pytest.approx(per_sample, rel=1e-13)
    assert float(terms.loss) == pytest.approx(math.fsum(per_sample) / 5, rel=1e-13)


def test_the_path_fixes_state_and_velocity(batch: Any, net: nn.Module) -> None:
    terms = meanflow_loss(net, *batch.args, path=TRIGONOMETRIC)
    angle = (math.pi / 2 * batch.t)[:, None]
    torch.testing.assert_close(terms.z, angle.cos() * batch.x + angle.sin() * batch.eps, rtol=1e-14, atol=1e-15)
    velocity = math.pi / 2 * (angle.cos() * batch.eps - angle.sin() * batch.x)
    torch.testing.assert_close(terms.v, velocity, rtol=1e-14, atol=1e-14)


def test_rows_with_r_equal_t_are_flow_matching(batch: Any, net: nn.Module, gradient_of: GradientOf) -> None:
    terms = meanflow_loss(net, batch.x, batch.eps, batch.t, batch.t, weight_power=0.0)
    assert torch.equal(terms.target, batch.eps - batch.x)
    z = (1 - batch.t[:, None]) * batch.x + batch.t[:, None] * batch.eps
    flow_matching = (net(z, batch.t, batch.t) - (batch.eps - batch.x)).square().sum(1).mean()
    torch.testing.assert_close(terms.loss, flow_matching, rtol=1e-15, atol=0)
    torch.testing.assert_close(gradient_of(terms.loss, net), gradient_of(flow_matching, net), rtol=1e-13, atol=1e-14)
    mixed = meanflow_loss(net, *batch.args)
    equal = batch.r == batch.t
    assert torch.equal(mixed.target[equal], (batch.eps - batch.x)[equal])
    assert not torch.equal(mixed.target[~equal], (batch.eps - batch.x)[~equal])


def test_reductions(batch: Any, net: nn.Module) -> None:
    total, mean = (meanflow_loss(net, *batch.args, weight_power=0.0, norm=norm) for norm in ("sum", "mean"))
    torch.testing.assert_close(total.squared_error, 3 * mean.squared_error, rtol=1e-14, atol=0)
    torch.testing.assert_close(total.loss, 3 * mean.loss, rtol=1e-14, atol=0)
    assert torch.equal(total.per_sample, total.squared_error)


@pytest.mark.parametrize("event", [(), (1,), (5,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("rows", [1, 3])
def test_any_event_shape_is_a_flat_one(event: tuple[int, ...], rows: int, generator: torch.Generator) -> None:
    x, eps = torch.randn(2, rows, *event, dtype=torch.float64, generator=generator)
    r, t = pairs(rows, generator)

    def net(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        flat = z.reshape(z.shape[0], -1)
        return (torch.sin(flat) * t[:, None] + r[:, None] * flat.roll(1, 1)).reshape(z.shape)

    terms = meanflow_loss(net, x, eps, r, t)
    flat = meanflow_loss(net, x.reshape(rows, -1), eps.reshape(rows, -1), r, t)
    assert terms.u.shape == terms.target.shape == terms.du_dt.shape == terms.v.shape == terms.z.shape == x.shape
    assert terms.per_sample.shape == terms.squared_error.shape == terms.weight.shape == (rows,)
    assert terms.loss.shape == ()
    torch.testing.assert_close(terms.per_sample, flat.per_sample, rtol=1e-14, atol=0)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("two_pass", [False, True])
@pytest.mark.parametrize("jvp", EXACT)
def test_the_gradient_does_not_depend_on_how_du_dt_was_computed(
    jvp: str, two_pass: bool, batch: Any, net: nn.Module, gradient_of: GradientOf
) -> None:
    reference = meanflow_loss(net, *batch.args)
    terms = meanflow_loss(net, *batch.args, jvp=jvp, two_pass=two_pass)
    expected, found = gradient_of(reference.loss, net), gradient_of(terms.loss, net)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    torch.testing.assert_close(terms.du_dt, reference.du_dt, rtol=1e-13, atol=1e-14)


def test_the_gradient_of_fine_differences_is_near(batch: Any, net: nn.Module, gradient_of: GradientOf) -> None:
    expected = gradient_of(meanflow_loss(net, *batch.args).loss, net)
    found = gradient_of(meanflow_loss(net, *batch.args, jvp=FiniteDifference(order=4)).loss, net)
    # The derivative is right to 1e-12 or so (order 4), the gradient to a few times that.
    assert float((found - expected).norm() / expected.norm()) < 1e-10


def test_nothing_but_u_carries_the_gradient(batch: Any, net: nn.Module, gradient_of: GradientOf) -> None:
    """The gradient is the VJP of u with dL/du = 2 w (u - target)/B, all of it constants."""
    terms = meanflow_loss(net, *batch.args)
    for name in ("weight", "target", "du_dt", "v", "z"):
        assert not getattr(terms, name).requires_grad, name
    cotangent = 2 * terms.weight[:, None] * (terms.u.detach() - terms.target) / 8
    u = net(terms.z, batch.r, batch.t)
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(u, list(net.parameters()), cotangent)])
    found = gradient_of(terms.loss, net)
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=1e-14)

    # What this comparison is able to see: a target with a graph, and a weight with one.
    def loss_with(leak_target: bool, leak_weight: bool) -> Tensor:
        u = net(terms.z, batch.r, batch.t)
        du_dt = jvp(lambda z, t: net(z, batch.r, t), (terms.z, batch.t), (terms.v, one(batch.t)))
        target = terms.v - (batch.t - batch.r)[:, None] * (du_dt if leak_target else du_dt.detach())
        squared_error = (u - target).square().sum(1)
        weight = 1 / ((squared_error if leak_weight else squared_error.detach()) + 1e-3)
        loss: Tensor = (weight * squared_error).mean()
        return loss

    torch.testing.assert_close(gradient_of(loss_with(False, False), net), found, rtol=1e-12, atol=1e-14)
    for leaks in ((True, False), (False, True)):
        leaky = gradient_of(loss_with(*leaks), net)
        assert float((leaky - found).norm() / found.norm()) > 1e-2


def test_finite_differences_of_the_loss_at_frozen_target_and_weight(
    batch: Any, net: nn.Module, gradient_of: GradientOf
) -> None:
    terms = meanflow_loss(net, *batch.args, weight_power=0.75)
    slope = gradient_of(terms.loss, net)
    direction = torch.randn(slope.shape, dtype=torch.float64)
    parameters = [p.data for p in net.parameters()]
    kept = [p.clone() for p in parameters]

    def along(step: float, loss: Callable[[], Tensor]) -> float:
        parts = torch.split(direction, [p.numel() for p in parameters])
        for p, old, part in zip(parameters, kept, parts, strict=True):
            p.copy_(old + step * part.reshape(p.shape))
        return float(loss().detach())

    def frozen() -> Tensor:
        delta = net(terms.z, batch.r, batch.t) - terms.target
        loss: Tensor = (terms.weight * delta.square().sum(1)).mean()
        return loss

    def whole() -> Tensor:
        return meanflow_loss(net, *batch.args, weight_power=0.75).loss

    h = 1e-5  # central: error h^2 and 1e-16/h, both some 1e-10
    frozen_slope, whole_slope = ((along(h, f) - along(-h, f)) / (2 * h) for f in (frozen, whole))
    assert frozen_slope == pytest.approx(float(slope @ direction), rel=1e-7)
    # The loss's value also moves through target and weight, which the gradient must not follow.
    assert abs(whole_slope - frozen_slope) > 0.1 * abs(frozen_slope)


@pytest.mark.parametrize(
    "convention",
    [Convention("z, (t, h)"), Convention("z, t, h"), Convention("z=z, h=h, r=r"), Convention("z, t, -h")],
    ids=lambda c: c.arguments,
)
def test_a_network_that_is_given_the_interval_has_the_same_loss_and_gradient(
    convention: Convention, batch: Any, net: nn.Module, gradient_of: GradientOf
) -> None:
    reference = meanflow_loss(net, *batch.args)
    terms = meanflow_loss(convention.express(net), *batch.args, convention=convention)
    # t - (t - r) differs from r by a rounding.
    torch.testing.assert_close(terms.per_sample, reference.per_sample, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient_of(terms.loss, net), gradient_of(reference.loss, net), rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- purity and randomness


def test_the_loss_is_a_function_of_its_arguments(batch: Any, net: nn.Module) -> None:
    kept = [x.clone() for x in batch.args]
    state = torch.get_rng_state()
    first, second = meanflow_loss(net, *batch.args, two_pass=True), meanflow_loss(net, *batch.args, two_pass=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batch.args, kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def seeded(net: nn.Module, batch: Any, **options: Any) -> MeanFlowTerms:
    torch.manual_seed(5)
    return meanflow_loss(net, *batch.args, **options)


@pytest.mark.parametrize("jvp", EXACT)
def test_two_passes_see_one_dropout_mask(
    jvp: str, batch: Any, small_net: Callable[..., nn.Module], gradient_of: GradientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net(dropout=0.3)
    one, two = seeded(net, batch, jvp=jvp), seeded(net, batch, jvp=jvp, two_pass=True)
    torch.testing.assert_close(two.u, one.u, rtol=0, atol=0)
    torch.testing.assert_close(two.du_dt, one.du_dt, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradient_of(two.loss, net), gradient_of(one.loss, net), rtol=1e-12, atol=1e-14)
    # Both passes consumed what one would have: the next draw is the same.
    assert torch.equal(seeded(net, batch).u, one.u)
    # Without the replay the masks differ.
    monkeypatch.setattr(meanflow, "replayed_rng", lambda *near: nullcontext())
    apart = seeded(net, batch, jvp=jvp, two_pass=True)
    assert float((apart.u - one.u).detach().abs().max()) > 1e-2


def test_the_random_stream_goes_on_as_after_one_pass(batch: Any, small_net: Callable[..., nn.Module]) -> None:
    net = small_net(dropout=0.3)
    ends = []
    for two_pass in (False, True):
        seeded(net, batch, two_pass=two_pass)
        ends.append(torch.get_rng_state())
    assert torch.equal(ends[0], ends[1])


def test_inputs_that_require_grad_leave_all_but_u_and_the_errors_detached(
    small_net: Callable[..., nn.Module], batch: Any
) -> None:
    x, eps, r, t = (tensor.clone().requires_grad_() for tensor in batch.args)
    terms = meanflow_loss(small_net(), x, eps, r, t)
    assert not any(part.requires_grad for part in (terms.weight, terms.target, terms.du_dt, terms.v))
