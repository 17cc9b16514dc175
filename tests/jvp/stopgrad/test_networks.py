"""Whole networks: the derivative of forward AD or of differences, u and its gradients bit for bit or to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from meanflow_ref.bench.counters import count_cost
from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp.stopgrad import stopgrad_jvp
from meanflow_ref.jvp.stopgrad.front import stopgrad_jvp_of_rows

# A reentrant checkpoint on an input without a graph, which torch remarks on.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")

F64 = torch.float64
WIDTH = 8


class SineKernel(torch.autograd.Function):
    """In the old style, without jvp: torch.func.jvp cannot go through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = grad[0] * x.cos()
        return slope


class Fn(nn.Module):
    def __init__(self, fn: Callable[..., Tensor], *inner: nn.Module) -> None:
        super().__init__()
        self.fn, self.inner = fn, nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fn(x, *self.inner)
        return out


class SinhInside(SineKernel):
    """An operation without a rule inside a function's forward, where torch switches forward mode off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sinh()


def heads(x: Tensor, n: int = 2) -> Tensor:
    return x.view(*x.shape[:-1], n, x.shape[-1] // n).transpose(1, 2)


def sdpa(x: Tensor, project: nn.Module, **options: Any) -> Tensor:
    q, k, v = map(heads, project(x).chunk(3, -1))
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def scaled_row(row: Tensor) -> Tensor:
    return row * (1 + row.mean())


def in_parts(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    half = x.shape[-1] // 2
    out[..., :half] = x[..., half:].sin()
    out[..., half:] = x[..., :half] * 2
    return out


def inplace_chain(x: Tensor) -> Tensor:
    y = x.clone(memory_format=torch.contiguous_format)
    y[:, 0].mul_(2)
    y.view(-1).add_(1)
    return y


# Blocks of (batch, tokens, WIDTH) to the same.
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "residual": lambda: Fn(lambda x, f: x + F.silu(f(x)), nn.Linear(WIDTH, WIDTH)),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: Fn(lambda x, f: f(x.transpose(1, 2)).transpose(1, 2), nn.GroupNorm(2, WIDTH)),
    "batch norm, evaluation": lambda: Fn(
        lambda x, f: f(x.transpose(1, 2)).transpose(1, 2), nn.BatchNorm1d(WIDTH).eval()
    ),
    "convolution": lambda: Fn(
        lambda x, f: f(x.transpose(1, 2)).transpose(1, 2), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
    ),
    "circular": lambda: Fn(
        lambda x, f: f(x.transpose(1, 2)).transpose(1, 2),
        nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"),
    ),
    "attention": lambda: Fn(sdpa, nn.Linear(WIDTH, 3 * WIDTH)),
    "causal attention": lambda: Fn(lambda x, f: sdpa(x, f, is_causal=True), nn.Linear(WIDTH, 3 * WIDTH)),
    "nn.MultiheadAttention": lambda: Fn(
        lambda x, f: f(x, x, x, need_weights=False)[0], nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    ),
    "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, "gelu", batch_first=True),
    "chunk and cat": lambda: Fn(lambda x: torch.cat([p.sin() for p in x.chunk(2, -1)][::-1], -1)),
    "gated": lambda: Fn(lambda x, f: F.glu(f(x), -1), nn.Linear(WIDTH, 2 * WIDTH)),
    "gelu": nn.GELU,
    "in-place activation": lambda: Fn(lambda x, f: F.silu(f(x), inplace=True), nn.Linear(WIDTH, WIDTH)),
    "filled in parts": lambda: Fn(in_parts),
    "in-place chain": lambda: Fn(inplace_chain),
    "views": lambda: Fn(lambda x: x.flip(1).transpose(1, 2).reshape(x.shape) + x.roll(1, -1)[:, :1]),
    "checkpointed": lambda: Fn(
        lambda x, f: checkpoint(f, x, use_reentrant=False), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Mish())
    ),
    "reentrant checkpoint": lambda: Fn(lambda x, f: checkpoint(f, x, use_reentrant=True), nn.Linear(WIDTH, WIDTH)),
    "custom function": lambda: Fn(lambda x: SineKernel.apply(x * 2)),  # type: ignore[no-untyped-call]
    "detached in a reentrant checkpoint": lambda: Fn(
        lambda x: checkpoint(lambda x: x * x.detach().sin(), x, use_reentrant=True)
    ),
    "custom function, no rule inside": lambda: Fn(lambda x: SinhInside.apply(x.tanh())),  # type: ignore[no-untyped-call]
    "spectral": lambda: Fn(lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * 2j, n=x.shape[1], dim=1)),
    "einsum": lambda: Fn(lambda x: torch.einsum("bij,bkj,bkl->bil", *[x.tanh()] * 3) / x.shape[1]),
    "recurrent": lambda: Fn(lambda x, f: f(x)[0], nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "normalised": lambda: Fn(lambda x: F.normalize(x, dim=-1) * x.norm(dim=(1, 2), keepdim=True)),
    "vmapped": lambda: Fn(torch.vmap(scaled_row)),
    "mixes rows": lambda: Fn(lambda x: x + x.mean(0, keepdim=True).tanh() + x.roll(1, 0) * x.flip(0)),
    "batch norm, training": lambda: Fn(
        lambda x, f: f(x.transpose(1, 2)).transpose(1, 2),
        nn.BatchNorm1d(WIDTH, track_running_stats=False),
    ),
    "rows in the middle": lambda: Fn(lambda x: (x.transpose(0, 1).reshape(x.shape[1], -1).softmax(0) * 2).view(
        x.shape[1], *x.shape[::2]).transpose(0, 1).contiguous()),
    "every other row": lambda: Fn(lambda x: x + F.pad(x[::2].sin(), (0, 0, 0, 0, 0, len(x) // 2))),
    "a row for all": lambda: Fn(lambda x: x * x[:1].sigmoid() + x[-1].cos()),
}  # fmt: skip


# The same functions with the same parameters, for an oracle that refuses the blocks above.
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "reentrant checkpoint": lambda: Fn(lambda x, f: f(x), nn.Linear(WIDTH, WIDTH)),
    "custom function": lambda: Fn(lambda x: (x * 2).sin()),
    "detached in a reentrant checkpoint": lambda: Fn(lambda x: x * x.detach().sin()),
    "custom function, no rule inside": lambda: Fn(lambda x: x.tanh().sinh()),
}


class Net(nn.Module):
    """A chain of blocks, with r and t entering by a sum."""

    def __init__(self, names: tuple[str, ...], seed: int = 0, plain: bool = False) -> None:
        super().__init__()
        blocks = {**BLOCKS, **PLAIN} if plain else BLOCKS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.time = nn.Linear(2, WIDTH)
            self.blocks = nn.ModuleList([blocks[name]() for name in names])
            self.last = nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        x = z + torch.sin(self.time(torch.stack([r, t - r], -1)))[:, None]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


def inputs(batch: int = 3, tokens: int = 5) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    generator = torch.Generator().manual_seed(7)
    z, v = torch.randn(2, batch, tokens, WIDTH, dtype=F64, generator=generator)
    times = torch.rand(2, batch, dtype=F64, generator=generator).sort(0).values
    return (z, times[0], times[1]), (v, None, torch.ones(batch, dtype=F64))


def expect(net: nn.Module, primals: Any, tangents: Any) -> tuple[Tensor, float]:
    """The derivative by torch.func.jvp, or by central differences where that refuses; and the tolerance."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            _, du_dt = get_backend("func")(net, primals, tangents)
        # Roundings of 1e-16 times what seven layers can amplify them by.
        return du_dt.detach(), 1e-11
    except RuntimeError:
        h, (z, r, t), (v, _, one) = 1e-3, primals, tangents
        with torch.no_grad():
            near, far = ((net(z + k * h * v, r, t + k * h * one) - net(z - k * h * v, r, t - k * h * one)) / (2 * k * h)
                         for k in (1, 2))  # fmt: skip
        return (4 * near - far) / 3, 1e-6  # fourth order: h^4 = 1e-12 times a fifth derivative


def gradient(u: Tensor, net: nn.Module) -> list[Tensor]:
    weight = torch.linspace(-1, 1, u.numel(), dtype=u.dtype).view_as(u)
    net.zero_grad(set_to_none=True)
    u.backward(weight)  # type: ignore[no-untyped-call]
    return [torch.zeros(()) if p.grad is None else p.grad for p in net.parameters()]


def check(net: nn.Module, primals: Any, tangents: Any, twin: nn.Module | None = None) -> None:
    u, du_dt = stopgrad_jvp(net, primals, tangents)
    plain = net(*primals)
    assert torch.equal(u, plain), "u is that of a plain forward pass"
    for found, wanted in zip(gradient(u, net), gradient(plain, net), strict=True):
        assert torch.equal(found, wanted) or float((found - wanted).norm()) <= 1e-14 * float(wanted.norm())
    expected, tolerance = expect(net if twin is None else twin, primals, tangents)
    assert not du_dt.requires_grad
    assert float((du_dt - expected).norm()) <= tolerance * (1 + float(expected.norm()))
    check_rows(net, primals, tangents)


def check_rows(net: nn.Module, primals: Any, tangents: Any) -> None:
    """One call in which the first rows move, against all rows with a direction that is 0 on the others."""
    batch = len(primals[0])
    for moving in range(1, batch):
        first = torch.arange(batch) < moving
        cut = [None if d is None else d * first.reshape(-1, *[1] * (d.dim() - 1)) for d in tangents]
        u, du_dt = stopgrad_jvp_of_rows(net, primals, tangents, moving)
        plain, expected = stopgrad_jvp(net, primals, tuple(cut))
        assert torch.equal(u, plain)
        assert float((du_dt - expected).norm()) <= 1e-12 * (1 + float(expected.norm()))


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str) -> None:
    check(Net((name,)), *inputs(), Net((name,), plain=True))


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_models(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    batch = small.data(dtype=F64)
    check(small.network(dtype=F64), (batch.x, batch.r, batch.t), (batch.eps, None, torch.ones_like(batch.t)))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=5), st.integers(0, 10_000))
def test_random_networks(names: list[str], seed: int) -> None:
    check(Net(tuple(names), seed), *inputs(), Net(tuple(names), seed, plain=True))


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=7), st.integers(0, 10_000), st.integers(2, 6))
def test_many_random_networks(names: list[str], seed: int, tokens: int) -> None:
    check(Net(tuple(names), seed), *inputs(tokens=tokens), Net(tuple(names), seed, plain=True))


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_uses_one_mask(inplace: bool) -> None:
    x, d = torch.randn(2, 64, 8, dtype=F64, generator=torch.Generator().manual_seed(2))
    u, du_dt = stopgrad_jvp(lambda a: F.dropout(a * 1, 0.5, inplace=inplace), (x,), (d,))
    torch.testing.assert_close(du_dt, torch.where(u == 0, 0.0, 2 * d), rtol=0, atol=0)
    assert 0.3 < float((u == 0).double().mean()) < 0.7


def test_batch_norm_in_training_moves_its_statistics_once() -> None:
    net, twin = nn.BatchNorm1d(8).double(), nn.BatchNorm1d(8).double()
    x, d = torch.randn(2, 16, 8, dtype=F64, generator=torch.Generator().manual_seed(2))
    u, du_dt = stopgrad_jvp(net, (x,), (d,))
    assert torch.equal(u, twin(x))
    assert torch.equal(net.running_mean, twin.running_mean)  # type: ignore[arg-type]
    assert torch.equal(net.num_batches_tracked, twin.num_batches_tracked)  # type: ignore[arg-type]
    _, expected = get_backend("func")(lambda a: F.batch_norm(a, None, None, net.weight, net.bias, True), (x,), (d,))
    torch.testing.assert_close(du_dt, expected.detach(), rtol=1e-12, atol=1e-12)


def test_without_a_graph_and_in_inference_mode() -> None:
    net, (primals, tangents) = Net(("encoder layer",)).eval(), inputs()
    _, expected = stopgrad_jvp(net, primals, tangents)
    with torch.no_grad():
        u, du_dt = stopgrad_jvp(net, primals, tangents)
    assert not u.requires_grad
    torch.testing.assert_close(du_dt, expected, rtol=1e-13, atol=1e-13)
    with torch.inference_mode():
        _, du_dt = stopgrad_jvp(net, primals, tangents)
    torch.testing.assert_close(du_dt.clone(), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_module_compiled_apart_from_the_loss() -> None:
    torch.compiler.reset()
    net, (primals, tangents) = Net(("residual",)), inputs()
    expected, _ = expect(net, primals, tangents)
    net.blocks[0] = torch.compile(net.blocks[0], backend="aot_eager")  # type: ignore[assignment]
    net(*primals)  # compiled before the mode is on
    _, du_dt = stopgrad_jvp(net, primals, tangents)
    torch.testing.assert_close(du_dt, expected, rtol=1e-12, atol=1e-12)


def test_zero_tangents_cost_nothing() -> None:
    """Counted: with the tangent of r left out, nothing of r's branch is computed twice."""
    branch = nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6))
    x, r = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))

    def net(z: Tensor, r: Tensor) -> Tensor:
        out: Tensor = z + branch(r)
        return out

    def flops(dr: Tensor | None) -> int:
        return count_cost(lambda: stopgrad_jvp(net, (x, r), (x, dr))).flops

    plain = count_cost(lambda: net(x, r)).flops
    assert flops(None) == plain
    assert flops(r) == 2 * plain


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_the_price_is_a_forward_a_tangent_and_a_backward_pass(scenario: str) -> None:
    """FLOPs and kernels, counted; the limit of 4/3 is passed by what networks this small spend on first layers."""
    from meanflow_ref.bench.methods import METHODS

    small = SMALL_SCENARIOS[scenario]
    net, batch = small.network(), small.data()
    cost = {name: count_cost(METHODS[name].step(net, batch)) for name in ("flow_matching", "stopgrad", "func")}
    unit = cost["flow_matching"]
    assert cost["stopgrad"].flops <= 1.45 * unit.flops
    assert cost["func"].flops >= 1.6 * unit.flops
    assert cost["stopgrad"].kernels is not None
    assert unit.kernels is not None
    assert cost["stopgrad"].kernels <= 2.0 * unit.kernels
