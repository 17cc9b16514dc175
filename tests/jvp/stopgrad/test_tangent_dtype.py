"""Tangent products in half precision: what is rounded, by how much, and that nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanflow_ref.bench.counters import count_cost
from meanflow_ref.bench.methods import METHODS
from meanflow_ref.bench.scenarios import SCENARIOS, SMALL_SCENARIOS
from meanflow_ref.errors import ParameterError, ShapeError
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp.stopgrad import StopgradJvp, stopgrad_jvp
from meanflow_ref.objectives.meanflow import meanflow_loss
from meanflow_ref.train.precision import backend_of

BF16 = StopgradJvp(torch.bfloat16)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


# ---------------------------------------------------------------- the error, on networks

# Root mean square of a rounding to 8 bits is 2^-9 / sqrt(3) = 0.0011 relative; three roundings a layer (two operands,
# one result), a few layers in a row: 0.4 to 0.8 % is measured. Above 2 % something else is rounded, below 0.1 %
# nothing is.
ROUNDED = {torch.bfloat16: (1e-3, 2e-2), torch.float16: (1e-4, 2.5e-3)}


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_error_of_the_derivative_against_float64(scenario: str, dtype: torch.dtype) -> None:
    small = SMALL_SCENARIOS[scenario]
    exact = meanflow_loss(
        small.network(dtype=torch.float64), *small.data(dtype=torch.float64), jvp="double_backward"
    ).du_dt
    du_dt = meanflow_loss(small.network(), *small.data(), jvp=StopgradJvp(dtype)).du_dt
    assert du_dt.dtype == torch.float32
    low, high = ROUNDED[dtype]
    assert low < relative(du_dt, exact) < high


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_error_of_the_derivative_on_the_networks_of_the_benchmark(scenario: str) -> None:
    sized = SCENARIOS[scenario]
    exact = meanflow_loss(
        sized.network(dtype=torch.float64), *sized.data(dtype=torch.float64), jvp="double_backward"
    ).du_dt
    error = relative(meanflow_loss(sized.network(), *sized.data(), jvp="stopgrad_bf16").du_dt, exact)
    assert 0.003 < error < 0.01, "the docstring of StopgradJvp says 0.4 to 0.8 %"


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_value_and_its_gradients_are_untouched_bit_for_bit(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    batch = small.data()
    primals, along = (batch.x, batch.r, batch.t), (batch.eps, None, torch.ones_like(batch.t))
    found = []
    for backend in (stopgrad_jvp, BF16):
        net = small.network()
        u, du_dt = backend(net, primals, along)
        assert not du_dt.requires_grad
        torch.autograd.backward(u.square().sum())
        found.append([u.detach(), *gradients(net)])
    assert len(found[0]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_loss_is_exact_for_the_target_it_took() -> None:
    small = SMALL_SCENARIOS["mlp"]
    net, batch = small.network(), small.data()
    terms = meanflow_loss(net, *batch, jvp="stopgrad_bf16", weight_power=0.0)
    torch.autograd.backward(terms.loss)
    mine = gradients(net)
    net.zero_grad()
    torch.autograd.backward((net(terms.z, batch.r, batch.t) - terms.target).square().sum(-1).mean())
    for a, b in zip(mine, gradients(net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- the operations, one at a time


def whole(*shape: int, seed: int) -> Tensor:
    """Small whole numbers, whose products and sums of a few products bfloat16 holds exactly."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


BILINEAR: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "mm": (torch.mm, ((3, 4), (4, 5))),
    "bmm": (torch.bmm, ((2, 3, 4), (2, 4, 5))),
    "mv": (torch.mv, ((3, 4), (4,))),
    "dot": (torch.dot, ((4,), (4,))),
    "linear": (F.linear, ((3, 4), (5, 4), (5,))),
    "addmm": (lambda c, x, y: torch.addmm(c, x, y, beta=2, alpha=3), ((5,), (3, 4), (4, 5))),
    "baddbmm": (lambda c, x, y: torch.baddbmm(c, x, y, beta=2, alpha=3), ((2, 3, 5), (2, 3, 4), (2, 4, 5))),
    "einsum": (lambda x, y: torch.einsum("bij,bkj->bik", x, y), ((2, 3, 4), (2, 5, 4))),
    "conv1d": (F.conv1d, ((2, 3, 6), (4, 3, 2), (4,))),
    "conv2d": (F.conv2d, ((2, 2, 5, 5), (3, 2, 2, 2), (3,))),
    "transposed convolution": (F.conv_transpose1d, ((2, 3, 6), (3, 4, 2), (4,))),
}


def some_and_all(count: int) -> list[tuple[bool, ...]]:
    return [tuple(i == j for j in range(count)) for i in range(count)] + [(True,) * count]


CASES = [(name, moves) for name, (_, shapes) in BILINEAR.items() for moves in some_and_all(len(shapes))]


@pytest.mark.parametrize(("name", "moves"), CASES)
def test_numbers_that_bfloat16_holds_stay_exact(name: str, moves: tuple[bool, ...]) -> None:
    fn, shapes = BILINEAR[name]
    at = tuple(whole(*shape, seed=i) for i, shape in enumerate(shapes))
    along = tuple(
        whole(*shape, seed=10 + i) if m else None for i, (shape, m) in enumerate(zip(shapes, moves, strict=True))
    )
    zero = tuple(torch.zeros_like(x) if d is None else d for x, d in zip(at, along, strict=True))
    u, du_dt = BF16(fn, at, along)
    value, expected = torch.func.jvp(fn, at, zero)[:2]
    assert torch.equal(u, value)
    assert du_dt.dtype == torch.float32
    assert torch.equal(du_dt, expected)


@pytest.mark.parametrize("name", BILINEAR)
def test_other_numbers_are_rounded(name: str) -> None:
    """By 2^-8 at most in each of three places; and not by nothing, so that the exactness above is no accident."""
    fn, shapes = BILINEAR[name]
    generator = torch.Generator().manual_seed(4)
    at = tuple(torch.rand(shape, generator=generator) + 1 for shape in shapes)
    along = tuple(torch.rand(shape, generator=generator) + 1 for shape in shapes)
    _, du_dt = BF16(fn, at, along)
    exact = torch.func.jvp(fn, tuple(x.double() for x in at), tuple(d.double() for d in along))[1]
    worst = float(((du_dt - exact) / exact).abs().max())
    assert 2**-14 < worst < 4 * 2**-8


def test_what_is_added_to_a_product_is_not_rounded() -> None:
    bias, along = torch.zeros(5), torch.full((5,), 1 + 2.0**-12)
    x, w = whole(3, 4, seed=0), whole(5, 4, seed=1)
    _, du_dt = BF16(lambda b: F.linear(x, w, b), (bias,), (along,))
    assert torch.equal(du_dt, along.expand(3, 5))
    dx = torch.zeros_like(x)
    _, both = BF16(lambda x, b: F.linear(x, w, b), (x, bias), (dx, along))
    assert torch.equal(both, along.expand(3, 5))
    _, added = BF16(lambda x: torch.mm(x, w.T) + x.sum() * 0 + along, (x,), (whole(3, 4, seed=2),))
    assert torch.equal(added, torch.mm(whole(3, 4, seed=2), w.T))


def test_a_float64_primal_is_rounded_as_well() -> None:
    x, w, d = whole(3, 4, seed=0).double(), whole(4, 5, seed=1).double(), torch.full((3, 4), 1 + 2.0**-12).double()
    _, du_dt = BF16(torch.mm, (x, w), (d, None))
    assert du_dt.dtype == torch.float64
    assert torch.equal(du_dt, d.bfloat16().double() @ w)


def test_a_matrix_times_itself() -> None:
    x, d = whole(4, 4, seed=0), whole(4, 4, seed=1)
    _, du_dt = BF16(lambda x: x @ x, (x,), (d,))
    assert torch.equal(du_dt, d @ x + x @ d)


def test_other_operations_are_not_rounded() -> None:
    generator = torch.Generator().manual_seed(4)
    x, d = (torch.randn(6, 8, generator=generator) for _ in range(2))

    def fn(x: Tensor) -> Tensor:
        return F.layer_norm(F.silu(x) * x.softmax(-1), (8,)) + torch.sinh(x)

    assert torch.equal(BF16(fn, (x,), (d,))[1], stopgrad_jvp(fn, (x,), (d,))[1])
    q = torch.randn(2, 2, 6, 8, generator=generator)
    attend = F.scaled_dot_product_attention
    assert torch.equal(BF16(attend, (q, q, q), (q, None, q))[1], stopgrad_jvp(attend, (q, q, q), (q, None, q))[1])


# ---------------------------------------------------------------- the switch


@pytest.mark.parametrize("wrong", [torch.float32, torch.float64, torch.int8, torch.float8_e4m3fn, "bfloat16", 16])
def test_another_dtype_is_refused(wrong: Any) -> None:
    with pytest.raises(
        ParameterError, match=r"(?s)tangent_dtype=.*torch\.bfloat16, torch\.float16, or None.*What to do"
    ):
        StopgradJvp(wrong)


def test_none_is_the_plain_one() -> None:
    x, d = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    w = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    for mine, plain in zip(
        StopgradJvp()(torch.mm, (x, w), (d, None)), stopgrad_jvp(torch.mm, (x, w), (d, None)), strict=True
    ):
        assert torch.equal(mine, plain)


def test_names() -> None:
    assert get_backend("stopgrad_bf16") == BF16
    # The trainer's --jvp goes through the same table.
    assert backend_of("stopgrad_bf16", "fp32") == BF16
    with pytest.raises(ParameterError, match='jvp="stopgrad_bf16"'):
        get_backend("stopgrad_bf")


def test_it_ends_with_the_call_even_if_that_fails() -> None:
    x, w = whole(3, 4, seed=0), whole(4, 5, seed=1)
    d = torch.full((3, 4), 1 + 2.0**-12)
    with pytest.raises(ShapeError):
        BF16(torch.mm, (x, w), (d[:2], None))
    with pytest.raises(RuntimeError):
        BF16(torch.mm, (x, w.T), (d, None))
    assert torch.equal(stopgrad_jvp(torch.mm, (x, w), (d, None))[1], d @ w)


def test_another_thread_keeps_its_own() -> None:
    x, w, d = whole(3, 4, seed=0), whole(4, 5, seed=1), torch.full((3, 4), 1 + 2.0**-12)
    found: list[Tensor] = []

    def net(x: Tensor) -> Tensor:
        worker = threading.Thread(target=lambda: found.append(stopgrad_jvp(torch.mm, (x.detach(), w), (d, None))[1]))
        worker.start()
        worker.join()
        return x @ w

    assert torch.equal(BF16(net, (x,), (d,))[1], d.bfloat16().float() @ w)
    assert torch.equal(found[0], d @ w)


def test_a_half_precision_primal_stays_as_it_is() -> None:
    small = SMALL_SCENARIOS["dit"]
    batch = small.data()
    primals, along = (batch.x, batch.r, batch.t), (batch.eps, None, torch.ones_like(batch.t))
    with torch.autocast("cpu", torch.bfloat16):
        plain, mine = (backend(small.network(), primals, along)[1] for backend in (stopgrad_jvp, BF16))
    # Its products are bfloat16's already, but for those that autocast leaves in float32.
    assert mine.dtype == plain.dtype
    assert relative(mine, plain) < 0.02


@pytest.mark.parametrize("options", [{"rows": "moving"}, {"two_pass": True}], ids=str)
def test_with_the_other_options_of_the_loss(options: dict[str, Any]) -> None:
    small = SMALL_SCENARIOS["unet"]
    x, eps, r, t = small.data()
    r = torch.where(torch.arange(len(t)) == 0, t, r)
    plain = meanflow_loss(small.network(), x, eps, r, t, jvp="stopgrad", **options)
    mine = meanflow_loss(small.network(), x, eps, r, t, jvp="stopgrad_bf16", **options)
    assert torch.equal(plain.u, mine.u)
    assert 1e-3 < relative(mine.du_dt, plain.du_dt) < 2e-2


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_compiled_into_one_graph(scenario: str) -> None:
    torch.compiler.reset()
    small = SMALL_SCENARIOS[scenario]
    net, batch = small.network(), small.data()
    exact = meanflow_loss(
        small.network(dtype=torch.float64), *small.data(dtype=torch.float64), jvp="double_backward"
    ).du_dt
    compiled = torch.compile(meanflow_loss, fullgraph=True, backend="aot_eager")
    terms = compiled(net, *batch, jvp="stopgrad_bf16")
    assert terms.du_dt.dtype == torch.float32
    assert 1e-3 < relative(terms.du_dt, exact) < 2e-2
    # The plain one after it, in the same process, is not rounded.
    assert relative(compiled(net, *batch, jvp="stopgrad").du_dt, exact) < 1e-5
    torch.compiler.reset()


def test_one_compiled_function_keeps_the_dtypes_apart() -> None:
    torch.compiler.reset()
    x, w, d = whole(3, 4, seed=0), whole(4, 5, seed=1), torch.full((3, 4), 1 + 2.0**-12)
    compiled = torch.compile(
        lambda backend, x, d: backend(lambda a: torch.matmul(a, w), (x,), (d,))[1], fullgraph=True, backend="eager"
    )
    rounded = d.bfloat16().float() @ w
    for _ in range(2):
        for backend, expected in (
            (stopgrad_jvp, d @ w),
            (StopgradJvp(), d @ w),
            (BF16, rounded),
            (StopgradJvp(), d @ w),
        ):
            assert torch.equal(compiled(backend, x, d), expected)
    torch.compiler.reset()


def test_work_and_memory_are_those_of_the_plain_one() -> None:
    """No copy of the weights outlives its product, and no operand is copied that meets no tangent."""
    sized = SCENARIOS["mlp"]
    net, batch = sized.network(), sized.data()
    plain, mine = (count_cost(METHODS[name].step(net, batch)) for name in ("stopgrad", "stopgrad_bf16"))
    assert mine.flops == plain.flops
    assert plain.kernels is not None
    assert mine.kernels is not None
    # Two operands down, one result up.
    products = sum(isinstance(module, nn.Linear) for module in net.modules())
    assert plain.kernels < mine.kernels <= plain.kernels + 3 * products
    largest = max(p.numel() for p in net.parameters()) + batch.x.shape[0] * 384
    assert mine.peak_bytes <= plain.peak_bytes + 4 * largest
