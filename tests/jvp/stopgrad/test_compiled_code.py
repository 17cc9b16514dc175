"""The compile form on code as people write it: attention of any layout, questions of Python, arguments by position."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from meanflow_ref.jvp.stopgrad import stopgrad_jvp

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def data() -> tuple[Tensor, Tensor]:
    both = torch.randn(2, 2, 3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    return both[0], both[1]


def compiled(fn: Callable[[Tensor], Tensor], x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.compile(
        lambda x, d: stopgrad_jvp(fn, (x,), (d,)), backend="eager", fullgraph=True
    )(x, d)
    return result


def assert_right(fn: Callable[[Tensor], Tensor], tolerance: float = 1e-12) -> None:
    """Against forward mode, which attention wants written out for."""
    x, d = data()
    u, du_dt = compiled(fn, x, d)
    with sdpa_kernel(SDPBackend.MATH):
        value, expected = jvp(fn, (x,), (d,))[:2]
    torch.testing.assert_close(u, value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(du_dt, expected, rtol=tolerance, atol=tolerance)


SDPA: Any = F.scaled_dot_product_attention
ONE = torch.randn(1, 3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
HEAD = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(2), dtype=F64)
WEIGHT = torch.randn(4, 12, generator=torch.Generator().manual_seed(3), dtype=F64)
HALF = torch.arange(6)[:, None] >= torch.arange(6)

# The kernel for the CPU reads memory as if the last dimension lay together, and looks at no size.
ATTENTION: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda x: SDPA(*[x.transpose(2, 3).contiguous().transpose(2, 3)] * 3),
    "every other number": lambda x: SDPA(torch.cat([x, 2 * x], -1)[..., ::2], x, x),
    "one number for all": lambda x: SDPA(x[..., :1].expand(-1, -1, -1, 4), x, x),
    "values turned": lambda x: SDPA(x, x, torch.cat([x, x], 2).transpose(2, 3)[..., :6].transpose(2, 3)),
    "chunks of one product": lambda x: SDPA(*torch.matmul(x, WEIGHT).chunk(3, -1)),
    "heads in the middle": lambda x: SDPA(*[x.transpose(1, 2)] * 3).transpose(1, 2),
    "one sample of keys": lambda x: SDPA(x, ONE, ONE),
    "one sample of queries": lambda x: SDPA(ONE, x, x),
    "one head of keys": lambda x: SDPA(x, HEAD, HEAD),
    "one sample moves": lambda x: SDPA(x, x[:1], x[:1]),
    "values of another width": lambda x: SDPA(x, x, torch.cat([x, x], -1)),
    "fewer queries, causal": lambda x: SDPA(x[:, :, :4], x, x, is_causal=True),
    "no queries": lambda x: SDPA(x[:, :, :0], x, x),
    "a mask": lambda x: SDPA(x, x, x, attn_mask=HALF),
    "a mask that adds and moves": lambda x: SDPA(x, x, x, attn_mask=torch.matmul(x, x.transpose(2, 3))),
    "arguments by name": lambda x: SDPA(query=x, key=2 * x, value=x.sin()),
    "three dimensions": lambda x: SDPA(x[0], x[0], x[0]),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    assert_right(ATTENTION[name])


def test_attention_with_a_mask_at_a_second_size() -> None:
    """Once without a trace: forward mode of a part of the graph left something behind in torch's own cache."""
    x, d = data()
    step = torch.compile(
        lambda x, d, mask: stopgrad_jvp(lambda x: SDPA(x, x, x, attn_mask=mask), (x,), (d,)),
        backend="eager", fullgraph=True,
    )  # fmt: skip
    for batch in (2, 1, 2):
        found = step(x[:batch], d[:batch], HALF)
        for a, b in zip(found, stopgrad_jvp(lambda x: SDPA(x, x, x, attn_mask=HALF), (x[:batch],), (d[:batch],)),
                        strict=True):  # fmt: skip
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


class With(nn.Module):
    """A function of a tensor and a module."""

    def __init__(self, fn: Callable[..., Tensor], module: nn.Module) -> None:
        super().__init__()
        self.fn, self.module = fn, module

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x, self.module)


def heads(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(4, 2, batch_first=True, dtype=F64, **options)


PADDED, CAUSAL = (
    torch.arange(6) > torch.tensor([[5], [3], [4]]),
    nn.Transformer.generate_square_subsequent_mask(6, dtype=F64),
)
LAYER: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "dtype": F64}
# Modules of torch around attention, on tokens of (3, 6, 4).
HEADS: dict[str, Callable[[], nn.Module]] = {
    "weights too": lambda: With(lambda x, m: m(x, x, x)[0] * m(x, x, x)[1].square().sum(), heads()),
    "no weights": lambda: With(lambda x, m: m(x, x, x, need_weights=False)[0], heads()),
    "padding": lambda: With(lambda x, m: m(x, x, x, need_weights=False, key_padding_mask=PADDED)[0], heads()),
    "causal": lambda: With(lambda x, m: m(x, x, x, need_weights=False, attn_mask=CAUSAL, is_causal=True)[0], heads()),
    "to others": lambda: With(lambda x, m: m(x, x.sin(), x.cos(), attn_mask=CAUSAL)[0], heads(add_zero_attn=True)),
    "of other widths": lambda: With(lambda x, m: m(x, x[..., :2], x[..., 2:])[0], heads(kdim=2, vdim=2)),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, **LAYER), 2),
    "encoder, evaluation": lambda: nn.TransformerEncoderLayer(4, 2, 8, **LAYER, norm_first=True).eval(),
    "decoder": lambda: With(lambda x, m: m(x, x.sin()), nn.TransformerDecoderLayer(4, 2, 8, **LAYER)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_transformers_of_torch(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = HEADS[name]()
    (x, _), (d, _) = data()
    u, du_dt = compiled(net, x, d)
    torch.backends.mha.set_fastpath_enabled(False)  # as inside the JVP: it has no derivative
    try:
        torch.testing.assert_close(u, net(x), rtol=1e-13, atol=1e-14)
        with sdpa_kernel(SDPBackend.MATH):
            expected = jvp(net, (x,), (d,))[1]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(du_dt, expected, rtol=1e-11, atol=1e-12)


@functools.singledispatch
def squared(x: Any) -> Any:
    return x.sin()


@squared.register
def _(x: Tensor) -> Tensor:
    return x * x


def if_possible(operation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def fn(x: Tensor) -> Tensor:
        try:
            return operation(x) * x
        except TypeError:
            return x.sin()

    return fn


# A pair is no tensor; code that asks goes the way of tensors all the same.
QUESTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tree_map_only": lambda x: tree_map_only(Tensor, lambda a: a * a, {"a": x})["a"],
    "singledispatch": squared,
    "its class": lambda x: x * x if issubclass(x.__class__, Tensor) else x.sin(),
    "its array": lambda x: x * x if hasattr(x, "__array__") else x.sin(),
    "its absolute value": lambda x: abs(x) * x if hasattr(x, "__abs__") else x.sin(),
    "contiguous as it is": lambda x: x * x if x.contiguous() is x else x.sin(),
    "of its dtype as it is": lambda x: x * x if x.to(F64) is x else x.sin(),
    "a name of ours": lambda x: getattr(x, "value", x) * getattr(x, "tangent", x),
    "the remainder": if_possible(lambda x: x % 1.0),
    "a plus": if_possible(lambda x: +x),
    "numbers divided": if_possible(lambda x: x + 2.0 // x.detach() + x // 0.5),
    "turned round": if_possible(lambda x: torch.stack(list(reversed(x)))),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_code_that_asks_what_it_is_given(name: str) -> None:
    fn, (x, d) = QUESTIONS[name], data()
    u, du_dt = compiled(fn, x, d)
    value, expected = stopgrad_jvp(fn, (x,), (d,))
    torch.testing.assert_close(u, value, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(du_dt, expected, rtol=1e-13, atol=1e-14)


class OfDetached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x[0] if isinstance(x, list) else x).detach().square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_attention_under_autocast_of_float32() -> None:
    """As behind a norm of queries and keys."""
    (x, _), (d, _) = ((part.float() for part in both) for both in data())
    weight = WEIGHT[:, :4].float()

    def fn(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = SDPA(F.layer_norm(x, (4,)), x, torch.matmul(x, weight)).float()
        return out

    u, du_dt = compiled(fn, x[None], d[None])
    value, expected = stopgrad_jvp(fn, (x[None],), (d[None],))
    torch.testing.assert_close(u, value, rtol=1e-2, atol=1e-2)
    assert float((du_dt - expected).norm() / expected.norm()) < 2e-2


def test_types_can_be_made_in_code_that_is_compiled_elsewhere() -> None:
    """What is answered for pairs is answered in every trace of the process."""
    compiled(torch.sin, *data())

    @torch.compile(backend="eager")
    def fn(x: Tensor) -> Tensor:
        made = type("Made", (), {"number": 2})
        return x * made.number if type(x) is Tensor else x  # type: ignore[attr-defined]

    x = torch.ones(2)
    assert torch.equal(fn(x), 2 * x)


POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax to a dtype": lambda x: x.softmax(-1, torch.float32).double() * x,
    "softmax of a module": nn.Softmax(2),
    "a list of what moves": lambda x: torch.gradient(x[0, 0], spacing=[x[0, 0, :, 0].cumsum(0), x[1, 0, 0]])[0],
    "results with names": lambda x: x.max(-1).values * x.sort(-1).values[..., 0] + x.topk(2, -1)[0][..., 1],
    "places": lambda x: x.gather(-1, x.argsort(-1)) * torch.searchsorted(x[0, 0, 0].sort().values, x),
    "whole numbers": lambda x: F.embedding((x * 2).long().clamp(0, 3), WEIGHT)[..., 0] * x,
    "another device, the same": lambda x: x.cpu() * x,
    "a norm in evaluation": nn.BatchNorm2d(3, dtype=F64).eval(),
    "a mask with a number": lambda x: x.masked_fill(HALF[:, :4], 2.0) * x,
    "a mask with what moves": lambda x: x.masked_fill(HALF[:, :4], x[0, 0, 0, 0]),
    "a view of a tangent laid out otherwise": lambda x: x.view(2, -1) * x.reshape(2, -1),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_arguments(name: str) -> None:
    assert_right(POSITIONS[name], 1e-6 if "dtype" in name else 1e-12)


def test_a_tangent_that_lies_otherwise() -> None:
    x, d = data()
    d = d.transpose(0, 1).contiguous().transpose(0, 1)
    u, du_dt = compiled(POSITIONS["a view of a tangent laid out otherwise"], x, d)
    torch.testing.assert_close(u, (x * x).view(2, -1), rtol=0, atol=0)
    torch.testing.assert_close(du_dt, (2 * x * d).reshape(2, -1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training: bool) -> None:
    net = nn.BatchNorm2d(3, dtype=F64).train(training)
    nn.init.normal_(net.weight, generator=torch.Generator().manual_seed(0))
    other, (x, d) = copy.deepcopy(net), data()
    found, wanted = compiled(net, x, d), stopgrad_jvp(other, (x,), (d,))
    for a, b in zip((*found, *net.buffers()), (*wanted, *other.buffers()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: F.dropout(2 * x, 0.5, True, inplace=True) + x,
        lambda x: F.dropout1d((2 * x)[0], 0.5, True, inplace=True),
        lambda x: F.relu(2 * x, inplace=True),
        lambda x: torch.svd_lowrank(x)[1],
        lambda x: torch.pca_lowrank(x)[1],
        lambda x: x * float(x.sum()),
        lambda x: OfDetached.apply(x) * x,  # type: ignore[no-untyped-call]
        lambda x: OfDetached.apply([x])[0] * x,  # type: ignore[no-untyped-call]
        torch.special.bessel_j0,
        lambda x: F.soft_margin_loss(torch.ones_like(x), x) * x,
        lambda x: F.cross_entropy(x[0, 0], torch.arange(6) % 4, weight=x[0, 0, 0]) * x,
    ],
)
def test_refused_in_words(fn: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Unsupported, match=r"under torch\.compile.*Wanted: .*What to do: "):
        compiled(fn, *data())
