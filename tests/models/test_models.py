"""Every model, differentiated three ways, compiled, in bfloat16, and held to being a function of z, r, t row by row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError, ShapeError
from meanflow_ref.models import MLP, DiT, UNet
from meanflow_ref.models.dit import position_features, softmax_attention
from meanflow_ref.models.unet import GroupNorm

BATCH, CLASSES = 3, 4
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(5, 16, 2, CLASSES), (5,)),
    "dit": (lambda: DiT(4, 2, 2, 16, 2, 2, CLASSES), (2, 4, 4)),
    "unet": (lambda: UNet(2, 8, (1, 2), CLASSES, groups=4), (2, 8, 8)),
}
Inputs = tuple[Tensor, Tensor, Tensor]


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Inputs, Tensor, Tensor]:
    """A network with every parameter random (no zero initialisation left), its inputs, a velocity and labels."""
    build, shape = MODELS[name]
    generator = torch.Generator().manual_seed(7)
    net = build().double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    z, v = (torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64) for _ in range(2))
    r, gap = (torch.rand(BATCH, generator=generator, dtype=torch.float64) / 2 for _ in range(2))
    label = torch.tensor([0, 3, 1])
    return net.to(dtype), (z.to(dtype), r.to(dtype), (r + gap).to(dtype)), v.to(dtype), label


def jvp(fn: Callable[..., Tensor], at: Inputs, along: Inputs) -> tuple[Tensor, Tensor]:
    value, derivative = torch.func.jvp(fn, at, along)[:2]
    return value, derivative


def by_dual_numbers(fn: Callable[..., Tensor], at: Inputs, along: Inputs) -> Tensor:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, dx) for x, dx in zip(at, along, strict=True)]  # type: ignore[no-untyped-call]
        tangent: Tensor | None = forward_ad.unpack_dual(fn(*duals)).tangent  # type: ignore[no-untyped-call]
    assert tangent is not None
    return tangent


def tangents(inputs: Inputs, v: Tensor) -> Inputs:
    return v, torch.zeros_like(inputs[1]), torch.ones_like(inputs[2])


@pytest.mark.parametrize("name", MODELS)
def test_du_dt_agrees_between_forward_mode_double_backward_and_differences(name: str) -> None:
    net, inputs, v, label = make(name)

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        out: Tensor = net(z, r, t, label)
        return out

    direction = tangents(inputs, v)
    value, forward = jvp(u, inputs, direction)
    _, twice = torch.autograd.functional.jvp(u, inputs, direction)  # type: ignore[no-untyped-call]
    dual = by_dual_numbers(u, inputs, direction)

    h = 1e-5
    ahead, behind = (u(*(x + s * h * dx for x, dx in zip(inputs, direction, strict=True))) for s in (1, -1))
    difference = (ahead - behind) / (2 * h)

    scale = float(forward.detach().abs().max())
    assert scale > 1e-2, "a derivative that vanishes compares nothing"
    # Three exact rules: they differ by float64 rounding through some 30 operations.
    torch.testing.assert_close(forward, twice, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(forward, dual, rtol=0, atol=1e-12 * scale)
    # Central differences: h^2 u'''/6 with u''' of order TIME_SCALE^3 = 4e3 gives 1e-7; rounding 1e-16/h gives 1e-11.
    torch.testing.assert_close(forward, difference, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(value, net(*inputs, label), rtol=0, atol=1e-13 * float(value.detach().abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_see_each_other(name: str) -> None:
    net, (z, r, t), _, label = make(name)
    before = net(z, r, t, label)
    z, r, t, label = z.clone(), r.clone(), t.clone(), label.clone()
    z[0] += 1
    r[0], t[0], label[0] = 0.1, 0.9, 2
    after = net(z, r, t, label)
    assert not torch.allclose(before[0], after[0])
    # The same shapes go through the same kernels; a batch norm would show at 1e-1.
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=1e-13)


@pytest.mark.parametrize("argument", ["z", "r", "t", "label"])
@pytest.mark.parametrize("name", MODELS)
def test_u_depends_on_every_argument(name: str, argument: str) -> None:
    net, (z, r, t), _, label = make(name)
    before = net(z, r, t, label)
    moved = {"z": z, "r": r, "t": t, "label": label}
    moved[argument] = (label + 1) % CLASSES if argument == "label" else moved[argument] + 0.1
    assert float((net(**moved) - before).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_no_label_means_the_null_class(name: str) -> None:
    net, inputs, _, _ = make(name)
    assert torch.equal(net(*inputs), net(*inputs, torch.full((BATCH,), CLASSES)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_low_precision_keeps_dtype_and_value(name: str, dtype: torch.dtype) -> None:
    wide, inputs, _, label = make(name)
    expected = wide(*inputs, label)
    net, (z, _, _), v, _ = make(name, dtype)
    # Times stay in float32, as training keeps them.
    low = (z, inputs[1].float(), inputs[2].float())
    u, du_dt = jvp(lambda *args: net(*args, label), low, tangents(low, v))
    assert u.dtype == du_dt.dtype == dtype
    # Some 100 roundings of random sign, of unit roundoff eps: 10 eps, and five times that for the worst entry.
    tolerance = 50 * torch.finfo(dtype).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(u.double(), expected, rtol=0, atol=tolerance)
    assert bool(torch.isfinite(du_dt).all())


@pytest.mark.parametrize("name", MODELS)
def test_compiles_whole_with_its_jvp_and_its_gradient(name: str) -> None:
    net, inputs, v, label = make(name)

    def loss(z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
        u, du_dt = jvp(lambda *args: net(*args, label), (z, r, t), tangents((z, r, t), v))
        return (u - du_dt.detach()).square().sum()

    torch._dynamo.reset()
    results = []
    for f in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        net.zero_grad()
        value = f(*inputs, v)
        torch.autograd.backward(value)
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        results.append((value.detach(), gradient))
    (value, gradient), (compiled_value, compiled_gradient) = results
    # The same operations in the same dtype, decomposed: float64 rounding.
    torch.testing.assert_close(compiled_value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(compiled_gradient, gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))


def test_attention_agrees_with_torch() -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(softmax_attention(q, k, v), expected, rtol=1e-13, atol=1e-13)


def test_group_norm_agrees_with_torch() -> None:
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, torchs = GroupNorm(4, 8).double(), nn.GroupNorm(4, 8).double()
    with torch.no_grad():
        ours.weight.uniform_(1, 2), ours.bias.uniform_(1, 2)
    torchs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-13, atol=1e-13)


def test_patches_are_cut_and_joined_without_loss() -> None:
    net = DiT(6, 3, 2, 8, 1, 2)
    z = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6)
    patches = net._to_patches(z)
    assert torch.equal(patches[1, 4].reshape(3, 2, 2), z[1, :, 2:4, 2:4])  # token 4 of 3 x 3 is the middle patch
    assert torch.equal(net._to_image(patches), z)


def test_every_patch_has_its_own_position() -> None:
    features = position_features(8, 16)
    distances = torch.cdist(features, features) + 10 * torch.eye(64)
    assert float(distances.min()) > 0.1


def test_a_new_transformer_is_zero_and_learns_nothing_by_accident() -> None:
    """adaLN-zero: the fresh network is the zero function, with a gradient that is not zero."""
    net = DiT(4, 2, 2, 16, 2, 2)
    u = net(torch.randn(2, 2, 4, 4), torch.zeros(2), torch.ones(2))
    assert float(u.detach().abs().max()) == 0
    torch.autograd.backward((u - 1).square().sum())
    assert net.outlet.bias.grad is not None
    assert float(net.outlet.bias.grad.abs().min()) > 0


BAD: dict[str, tuple[Callable[[], object], type[MeanFlowError]]] = {
    "vector of another dimension": (lambda: MLP(3)(torch.zeros(2, 4), torch.zeros(2), torch.ones(2)), ShapeError),
    "image of another size": (lambda: DiT(4, 2)(torch.zeros(2, 2, 6, 6), torch.zeros(2), torch.ones(2)), ShapeError),
    "image not divisible": (lambda: UNet(2)(torch.zeros(2, 2, 6, 6), torch.zeros(2), torch.ones(2)), ShapeError),
    "times with a second axis": (lambda: MLP(3)(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 1)), ShapeError),
    "label without classes": (
        lambda: MLP(3)(torch.zeros(2, 3), torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.long)),
        NetworkError,
    ),
    "null class without classes": (lambda: MLP(3).conditioning.null_class, NetworkError),
    "patch that does not divide": (lambda: DiT(5, 2, 2), ParameterError),
    "heads that do not divide": (lambda: DiT(4, 2, 2, 16, 1, 3), ParameterError),
    "groups that do not divide": (lambda: UNet(2, 12), ParameterError),
    "no level": (lambda: UNet(2, 8, ()), ParameterError),
    "no layer": (lambda: MLP(3, depth=0), ParameterError),
    "no class": (lambda: MLP(3, classes=0), ParameterError),
    "no width": (lambda: MLP(3, width=0), ParameterError),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, error = BAD[case]
    with pytest.raises(error, match="Wanted:"):
        call()
