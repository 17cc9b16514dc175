"""The tangent of attention: two routes and forward AD through the written-out form agree, at every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow_ref.bench.counters import count_cost
from meanflow_ref.jvp.stopgrad import stopgrad_jvp
from meanflow_ref.jvp.stopgrad.attention import attention_tangent, flash_backward_tangent

F64 = torch.float64


def draw(*shape: int, count: int = 1, dtype: torch.dtype = F64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, dtype=F64, generator=generator).to(dtype) for _ in range(count)]


def boolean_mask(rows: int, columns: int) -> Tensor:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(5)) < 0.7
    mask[:, 0] = True
    return mask


def both(options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, dq: Any, dk: Any, dv: Any) -> tuple[Tensor, Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)

    _, found = stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))
    zero = [torch.zeros_like(x) if d is None else d for x, d in zip((q, k, v), (dq, dk, dv), strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        expected: Tensor = torch.func.jvp(fn, (q, k, v), tuple(zero))[1]
    return found, expected


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "boolean mask": {"attn_mask": boolean_mask(7, 7)},
    "additive mask": {"attn_mask": torch.linspace(-3, 3, 49, dtype=F64).view(7, 7)},
    "mask of a head": {"attn_mask": torch.linspace(-3, 3, 2 * 4 * 49, dtype=F64).view(2, 4, 7, 7)},
}


@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_forward_ad_of_the_written_form(name: str, width: int) -> None:
    found, expected = both(OPTIONS[name], *draw(2, 4, 7, width, count=6))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_tangents_that_are_zero(missing: tuple[int, ...]) -> None:
    q, k, v, *tangents = draw(2, 3, 9, 16, count=6)
    given = [None if i in missing else d for i, d in enumerate(tangents)]
    found, expected = both({}, q, k, v, *given)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
def test_more_keys_than_queries_and_the_reverse(causal: bool) -> None:
    for rows, columns in ((5, 11), (11, 5)):
        q, dq = draw(2, 3, rows, 16, count=2)
        k, v, dk, dv = draw(2, 3, columns, 16, count=4, seed=1)
        found, expected = both({"is_causal": causal}, q, k, v, dq, dk, dv)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_grouped_heads() -> None:
    q, dq = draw(2, 6, 7, 16, count=2)
    k, v, dk, dv = draw(2, 2, 7, 16, count=4, seed=1)
    found, expected = both({"enable_gqa": True}, q, k, v, dq, dk, dv)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    # The function itself, as kernels that take fewer heads of keys call it.
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    scores = q @ k.repeat_interleave(3, 1).transpose(-1, -2) / 4
    direct = attention_tangent(q, k, v, out, scores.logsumexp(-1), dq, dk, dv, scale=0.25)
    torch.testing.assert_close(direct, expected, rtol=1e-12, atol=1e-13)


def test_a_mask_that_moves() -> None:
    q, k, v, dq, dk, dv = draw(2, 3, 7, 16, count=6)
    mask, dmask = draw(1, 3, 7, 7, count=2, seed=2)

    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    _, found = stopgrad_jvp(fn, (q, k, v, mask), (dq, dk, dv, dmask))
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.func.jvp(fn, (q, k, v, mask), (dq, dk, dv, dmask))[1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [16, 64])
def test_the_second_route_agrees(causal: bool, width: int) -> None:
    q, k, v, dq, dk, dv = draw(2, 3, 37, width, count=6)
    scale = width**-0.5
    value, second = flash_backward_tangent(q, k, v, dq, dk, dv, scale=scale, causal=causal)
    _, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    first = attention_tangent(q, k, v, value, lse, dq, dk, dv, scale=scale, causal=causal)
    torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [1, 3 * 37 * 8, 5 * 37 * 37 * 8, 1 << 30])
def test_blocks_of_any_size_give_the_same(block: int, causal: bool) -> None:
    q, k, v, dq, dk, dv = draw(2, 3, 37, 16, count=6)
    mask = torch.randn(37, 37, dtype=F64, generator=torch.Generator().manual_seed(3))
    scores = q @ k.transpose(-1, -2) / 4 + mask
    if causal:
        scores = scores.masked_fill(torch.ones(37, 37, dtype=torch.bool).triu(1), -torch.inf)
    lse, out = scores.logsumexp(-1), scores.softmax(-1) @ v
    options: Any = {"scale": 0.25, "mask": mask, "causal": causal}
    whole = attention_tangent(q, k, v, out, lse, dq, dk, dv, **options)
    torch.testing.assert_close(
        attention_tangent(q, k, v, out, lse, dq, dk, dv, **options, block=block), whole, rtol=1e-12, atol=1e-13
    )


def test_rows_that_see_nothing_stay_finite() -> None:
    q, k, v, dq, dk, dv = draw(1, 2, 5, 8, count=6)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    u, du_dt = stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))
    assert bool(torch.isfinite(u).all()) == bool(torch.isfinite(du_dt).all())
    seen = torch.tensor([0, 1, 3, 4])
    expected = torch.func.jvp(
        lambda q, k, v: (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v,
        (q[:, :, seen], k, v),
        (dq[:, :, seen], dk, dv),
    )[1]
    torch.testing.assert_close(du_dt[:, :, seen], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    wide = draw(2, 3, 33, 32, count=6)
    q, k, v, dq, dk, dv = (x.to(dtype) for x in wide)
    _, found = stopgrad_jvp(F.scaled_dot_product_attention, (q, k, v), (dq, dk, dv))
    assert found.dtype == dtype
    _, expected = both({}, *(x.to(F64) for x in (q, k, v, dq, dk, dv)))
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < 8 * torch.finfo(dtype).eps


def test_memory_is_linear_in_the_tokens() -> None:
    """Counted: four times the tokens cost four times the memory plus a block of scores, not sixteen times."""

    def peak(tokens: int) -> int:
        q, k, v, dq, dk, dv = draw(1, 1, tokens, 16, count=6, dtype=torch.float32)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return count_cost(
            lambda: attention_tangent(q, k, v, out, lse, dq, dk, dv, scale=0.25, block=1 << 16)
        ).peak_bytes

    assert peak(4096) <= 4 * peak(1024) + (1 << 19)
    assert peak(4096) < 4096 * 4096 * 4 / 8


def test_the_fused_kernel_runs() -> None:
    q, k, v = draw(2, 3, 7, 16, count=3)
    q = q.requires_grad_()
    u, _ = stopgrad_jvp(lambda q: F.scaled_dot_product_attention(q, k, v), (q,), (torch.ones_like(q),))
    assert "FlashAttention" in type(u.grad_fn).__name__
