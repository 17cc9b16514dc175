"""The compile form: one graph, no breaks, the eager form's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.jvp.stopgrad import stopgrad_jvp
from meanflow_ref.objectives.meanflow import meanflow_loss

F64 = torch.float64
WIDTH = 8


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.qkv, self.options = nn.Linear(WIDTH, 3 * WIDTH), options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2)


class Fn(nn.Module):
    def __init__(self, fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fn(x)
        return out


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "affine layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(1, 5),
    "attention": Attention,
    "causal attention": lambda: Attention(is_causal=True),
    "masked attention": lambda: Attention(attn_mask=torch.eye(5, dtype=torch.bool).logical_not()),
    "perceptron": lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(approximate="tanh"), nn.Linear(16, WIDTH)),
    "convolution": lambda: nn.Conv1d(5, 5, 3, padding=1),
    "arithmetic": lambda: Fn(lambda x: (1 - x) * x / (2 + x * x) - x**3 + torch.cat([x[:, 1:], x[:, :1]], 1)),
    "by forward mode": lambda: Fn(lambda x: torch.logsumexp(x, -1, keepdim=True) + x.clamp(-1, 1) + x.cumsum(1)),
    "where and einsum": lambda: Fn(
        lambda x: torch.where(x > 0, x, 0.1 * x) + torch.matmul(torch.einsum("bij,bkj->bik", x, x), x.detach())
    ),
    "dropout, evaluation": lambda: nn.Dropout(0.5).eval(),
    "elementwise": lambda: Fn(
        lambda x: F.leaky_relu(x, 0.3) + F.softplus(x, beta=2) + F.elu(x) + x.sigmoid().sqrt() + F.mish(x)
    ),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.time, self.block, self.last = nn.Linear(1, WIDTH), block, nn.Linear(WIDTH, WIDTH)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        x = z + torch.sin(self.time((t - r)[:, None]))[:, None]
        out: Tensor = self.last(self.block(x))
        return out


def inputs(batch: int = 3) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(7)
    z, v = torch.randn(2, batch, 5, WIDTH, dtype=F64, generator=generator)
    times = torch.rand(2, batch, dtype=F64, generator=generator).sort(0).values
    return (z, times[0], times[1]), (v, None, torch.ones(batch, dtype=F64))


def gradient(u: Tensor, net: nn.Module) -> Tensor:
    grads = torch.autograd.grad(u.square().sum(), list(net.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("name", BLOCKS)
def test_one_graph_with_the_eager_numbers(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(BLOCKS[name]()).double()
    primals, tangents = inputs()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda p, d: stopgrad_jvp(net, p, d), backend=counter, fullgraph=True)
    u, du_dt = compiled(primals, tangents)
    u_eager, du_eager = stopgrad_jvp(net, primals, tangents)
    assert counter.frame_count == 1, "one graph, no break"
    assert not du_dt.requires_grad
    torch.testing.assert_close(u, u_eager, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(du_dt, du_eager, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient(u, net), gradient(u_eager, net), rtol=1e-12, atol=1e-13)


def test_operators_with_tensors_and_numbers_on_either_side() -> None:
    """Reflected operators are where an argument order is lost; square matrices would not show it in the shapes."""
    c = torch.rand(4, 4, dtype=F64, generator=torch.Generator().manual_seed(4)) + 1

    def fn(a: Tensor) -> list[Tensor]:
        a = a.abs() + 1
        return [a - c, c - a, a / c, c / a, a + c, c + a, a * c, c * a, 2 - a, 2 / a, a - 2, a / 2, a**2, 2.0**a,
                a**1.5, a**c, torch.matmul(a, c), torch.matmul(c, a), -a, a - a * c, a / (c * a)]  # fmt: skip

    x, d = torch.randn(2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(
        lambda x, d: stopgrad_jvp(lambda a: torch.stack(fn(a)), (x,), (d,)), backend="aot_eager", fullgraph=True
    )
    u, du_dt = compiled(x, d)
    u_eager, du_eager = stopgrad_jvp(lambda a: torch.stack(fn(a)), (x,), (d,))
    torch.testing.assert_close(u, u_eager, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(du_dt, du_eager, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_matrix_operator_keeps_its_order_or_is_refused(side: str) -> None:
    c = torch.randn(4, 4, dtype=F64, generator=torch.Generator().manual_seed(4))
    x, d = torch.randn(2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(2))
    fn: Callable[[Tensor], Tensor] = (lambda a: a @ c) if side == "left" else (lambda a: c @ a)
    try:
        u, du_dt = torch.compile(lambda x, d: stopgrad_jvp(fn, (x,), (d,)), backend="aot_eager", fullgraph=True)(x, d)
    except torch._dynamo.exc.Unsupported:
        return
    torch.testing.assert_close(u, fn(x), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(du_dt, fn(d), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "scenario", [pytest.param(name, marks=[pytest.mark.slow] * (name != "mlp")) for name in SMALL_SCENARIOS]
)
def test_the_loss_of_the_models_and_a_batch_that_changes(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    net = small.network(dtype=F64)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *args: meanflow_loss(net, *args).loss, backend=counter, fullgraph=True)
    for batch in (small.batch, small.batch + 2, small.batch + 5):
        data = small.resized(batch).data(dtype=F64)
        torch.testing.assert_close(compiled(*data), meanflow_loss(net, *data).loss, rtol=1e-12, atol=1e-13)
    # Static at first, then once more for a batch that changes, and never again.
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_inductor() -> None:
    small = SMALL_SCENARIOS["mlp"]
    net, data = small.network(dtype=F64), small.data(dtype=F64)
    compiled = torch.compile(lambda *args: meanflow_loss(net, *args).loss, fullgraph=True)
    torch.testing.assert_close(compiled(*data), meanflow_loss(net, *data).loss, rtol=1e-12, atol=1e-13)


def test_dropout_uses_one_mask() -> None:
    x, d = torch.randn(2, 64, 8, dtype=F64, generator=torch.Generator().manual_seed(2))
    fn = torch.compile(lambda x, d: stopgrad_jvp(nn.Dropout(0.5), (x,), (d,)), backend="aot_eager", fullgraph=True)
    u, du_dt = fn(x, d)
    torch.testing.assert_close(du_dt, torch.where(u == 0, 0.0, 2 * d), rtol=0, atol=0)


def write(a: Tensor) -> Tensor:
    a = a * 2
    a += 1
    return a


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "augmented": write,
    "method": lambda a: (a * 2).add_(1),
    "activation": lambda a: F.relu(a * 2, inplace=True),
    "item": lambda a: a * a.sum().item(),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_a_pair_cannot_follow_is_not_followed(name: str) -> None:
    """An error, never a number: a pair does not know who shares its memory."""
    x, d = torch.randn(2, 4, 6, dtype=F64, generator=torch.Generator().manual_seed(2))
    with pytest.raises(Exception):  # noqa: B017, PT011 - Dynamo wraps it in one of its own
        torch.compile(lambda x, d: stopgrad_jvp(WRITES[name], (x,), (d,)), backend="aot_eager", fullgraph=True)(x, d)
