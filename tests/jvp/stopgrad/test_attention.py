"""The tangent of attention: two routes and forward AD through the written-out form agree, at every option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow_ref.bench.counters import count_cost
from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad import stopgrad_jvp
from meanflow_ref.jvp.stopgrad.attention import attention_rule, attention_tangent, flash_backward_tangent

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
    # In half precision one rounding at the end, 0.22 eps (root mean square); products there would leave 1.3 and more.
    assert error < (8 if dtype == torch.float32 else 0.5) * torch.finfo(dtype).eps


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


# ---------------------------------------------------------------- options together, and in blocks

TOGETHER: dict[str, tuple[int, dict[str, Any]]] = {
    "grouped, causal, wide": (128, {"enable_gqa": True, "is_causal": True}),
    "grouped, scale": (64, {"enable_gqa": True, "scale": 0.2}),
    "grouped, Boolean mask": (32, {"enable_gqa": True, "attn_mask": boolean_mask(7, 7)}),
    "grouped, additive mask of a head": (
        16,
        {"enable_gqa": True, "attn_mask": torch.linspace(-2, 2, 6 * 49, dtype=F64).view(6, 7, 7)},
    ),
    "causal, scale, wide": (128, {"is_causal": True, "scale": 0.1, "enable_gqa": True}),
    "dropout 0": (32, {"dropout_p": 0.0, "enable_gqa": True}),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_options_together(name: str) -> None:
    width, options = TOGETHER[name]
    q, dq = draw(2, 6, 7, width, count=2)
    k, v, dk, dv = draw(2, 3, 7, width, count=4, seed=1)
    found, expected = both(options, q, k, v, dq, dk, dv)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 3, 9, 11), (2, 1, 9, 11), (3, 9, 11), (9, 11), (2, 3, 1, 11)], ids=str)
@pytest.mark.parametrize("block", [1, 4 * 11 * 8, 2 * 9 * 11 * 8])
def test_masks_of_any_breadth_in_blocks(block: int, shape: tuple[int, ...]) -> None:
    """A block must read the part of the mask, and of its tangent, that belongs to its heads and rows."""
    q, dq = draw(2, 3, 9, 16, count=2)
    k, v, dk, dv = draw(2, 3, 11, 16, count=4, seed=1)
    mask, dmask = draw(*shape, count=2, seed=2)

    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / 4 + mask).softmax(-1) @ v

    out, expected = torch.func.jvp(fn, (q, k, v, mask), (dq, dk, dv, dmask))[:2]
    lse = (q @ k.transpose(-1, -2) / 4 + mask).logsumexp(-1)
    found = attention_tangent(
        q, k, v, out, lse, dq, dk, dv, scale=0.25, mask=mask, dmask=dmask, block=block
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_the_second_route_agrees_with_what_the_network_gets(causal: bool, width: int) -> None:
    q, k, v, dq, dk, dv = draw(2, 2, 33, width, count=6)

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)

    u, du_dt = stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))
    value, tangent = flash_backward_tangent(q, k, v, dq, dk, dv, scale=0.3, causal=causal)
    torch.testing.assert_close(u, value, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(du_dt, tangent, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"enable_gqa": True}], ids=str)
def test_twice_the_tokens_take_twice_the_memory(options: dict[str, Any]) -> None:
    """Counted through the whole call; growth, so that a block of scores, which does not grow, drops out."""

    def peak(tokens: int) -> int:
        q, k, v, dq, dk, dv = draw(1, 2, tokens, 16, count=6, dtype=torch.float32)
        if options.get("enable_gqa"):
            k, v, dk, dv = (x[:, :1] for x in (k, v, dk, dv))

        def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, **options)

        return count_cost(lambda: stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))).peak_bytes

    # At 2048 tokens a head's scores, 16 MiB, are over a block already.
    first, second, third = (peak(n) for n in (2048, 4096, 8192))
    assert third - second < 2.5 * (second - first)
    assert third < 8192 * 8192 * 4 / 4, "far from the scores of a head"


def test_dropout_inside_attention_has_one_mask_or_is_refused() -> None:
    """The CPU takes its written-out form, whose mask is seen; a fused kernel's is not."""
    q, k, v, dq, dk, dv = draw(2, 2, 16, 8, count=6)

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    torch.manual_seed(3)
    _, found = stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))
    h = 1e-5
    values = []
    for step in (h, -h):
        torch.manual_seed(3)
        values.append(fn(q + step * dq, k + step * dk, v + step * dv))
    torch.testing.assert_close(found, (values[0] - values[1]) / (2 * h), rtol=1e-6, atol=1e-8)
    op = torch.ops.aten._scaled_dot_product_flash_attention.default
    with pytest.raises(TangentError, match=r"(?s)dropout_p=0\.1: the fused kernel keeps its dropout mask"):
        attention_rule(lambda x: None, op, None, q, k, v, 0.1, False)


# ---------------------------------------------------------------- the kernels of CUDA, by their schemas


class OnCuda:
    """Schema and results of a CUDA kernel, in plain arithmetic: logsumexp padded, with a last axis, or left out."""

    def __init__(self, name: str) -> None:
        self.name, self._schema = name, getattr(torch.ops.aten, name).default._schema

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        given = {a.name: x for a, x in zip(self._schema.arguments[3:], args, strict=False)} | kwargs
        scale = given.get("scale") or q.shape[-1] ** -0.5
        scores = q @ k.transpose(-1, -2) * scale
        if given.get("attn_bias") is not None:
            scores = scores + given["attn_bias"]
        if given.get("is_causal"):
            scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf)
        lse = scores.logsumexp(-1)
        if "efficient" in self.name:
            lse = F.pad(lse, (0, 32 - lse.shape[-1]), value=torch.inf)
        elif "cudnn" in self.name:
            lse = lse.unsqueeze(-1)
        if not given.get("compute_log_sumexp", True):
            # As on an H200, torch 2.11.
            return (scores.softmax(-1) @ v, None if "cudnn" in self.name else lse.new_empty(0)) + (None,) * (
                len(self._schema.returns) - 2
            )
        return (scores.softmax(-1) @ v, lse, *[None] * (len(self._schema.returns) - 2))


CUDA: dict[str, tuple[str, list[Any]]] = {
    "flash": ("_scaled_dot_product_flash_attention", [0.0, False, False]),
    "flash, causal": ("_scaled_dot_product_flash_attention", [0.0, True, False]),
    "efficient": ("_scaled_dot_product_efficient_attention", [None, True, 0.0, False]),
    "efficient without its logsumexp": ("_scaled_dot_product_efficient_attention", [None, False, 0.0, False]),
    "efficient, biased": ("_scaled_dot_product_efficient_attention", ["bias", True, 0.0, False]),
    "efficient, biased, without": ("_scaled_dot_product_efficient_attention", ["bias", False, 0.0, False]),
    "cudnn": ("_scaled_dot_product_cudnn_attention", [None, True, 0.0, False, False]),
    "cudnn, causal, without": ("_scaled_dot_product_cudnn_attention", [None, False, 0.0, True, False]),
    "cudnn, biased": ("_scaled_dot_product_cudnn_attention", ["bias", True, 0.0, False, False]),
}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("case", CUDA)
def test_arguments_and_results_of_the_cuda_kernels(case: str, scale: float | None) -> None:
    """What the rule makes of each kernel's signature; the kernels themselves need a GPU (``test_cuda.py``)."""
    name, args = CUDA[case]
    op = OnCuda(name)
    q, k, v, dq, dk, dv = draw(2, 3, 7, 16, count=6)
    bias = torch.linspace(-2, 2, 49, dtype=F64).view(1, 1, 7, 7)
    args = [bias if isinstance(a, str) else a for a in args]
    out = op(q, k, v, *args, scale=scale)
    tangents = {id(q): dq, id(k): dk, id(v): dv}
    found = attention_rule(lambda x: tangents.get(id(x)), op, out, q, k, v, *args, scale=scale)
    expected = torch.func.jvp(lambda q, k, v: op(q, k, v, *args, scale=scale)[0], (q, k, v), (dq, dk, dv))[1]
    assert len(found) == len(out)
    assert all(part is None for part in found[1:])
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=1e-13)


def test_a_row_that_sees_nothing_has_tangent_zero() -> None:
    """Its logsumexp is -inf and its value 0, as the fused kernels have it."""
    q, k, v, dq, dk, dv = draw(1, 2, 4, 8, count=6)
    mask = torch.zeros(4, 4, dtype=F64)
    mask[2] = -torch.inf
    scores = q @ k.transpose(-1, -2) + mask
    out = scores.softmax(-1).nan_to_num(0.0) @ v
    found = attention_tangent(q, k, v, out, scores.logsumexp(-1), dq, dk, dv, scale=1.0, mask=mask)
    assert torch.equal(found[:, :, 2], torch.zeros(1, 2, 8, dtype=F64))
    assert bool((found[:, :, [0, 1, 3]] != 0).all())
