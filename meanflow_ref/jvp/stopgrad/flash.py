"""The tangent of fused attention by the Triton kernel of ``jvp_flash_attention``, where installed and asked for.

The package computes value and tangent of attention in one kernel. torch's fused kernel has computed the value, with
autograd's graph, by the time a rule runs, so that the kernel's value is dropped and its tangent kept: three times the
products of a forward pass, tile by tile on the chip, where :mod:`attention` sends blocks of scores through memory.

What is known of it (version 0.14.0): under Triton's interpreter (3.6) the kernel agrees with forward AD to float32
rounding, at heads 32, 64 and 128 wide, causal and not; on an H200 (torch 2.11) its tangent in bfloat16 agrees with this
library's to 2 % at the same heads (``test_cuda.py``). Where the tokens are no multiple of 32 it wrote beyond its
tensors in the interpreter, and an additive mask other than 0 and its own constant came out wrong by tens of per cent.
Those cases, like all it does not take (grouped heads, cross-attention, other widths), stay with
:mod:`attention`. Triton 3.9 has no block pointers any more, which the kernel is written with.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.jvp.stopgrad.attention import attention_rule, attention_tangent
from meanflow_ref.jvp.stopgrad.table import RULES, Op, TangentOf

_WIDTHS = (32, 64, 128, 256)
_TOKENS = 32
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# TensorFloat-32 in the kernel's products; a wrong formula is off by tens of per cent.
_AGREES_TO = 1e-2


def use_jvp_flash_attention(on: bool = True, *, device: str = "cuda") -> None:
    """Let ``jvp_flash_attention`` compute tangents of self-attention, for this process, where it can.

    Install it by ``pip install --no-deps jvp_flash_attention`` beside a torch for CUDA. The kernel is tried first,
    against this library's own tangent. Compiled networks do not use it.

    Args:
        on: False goes back to this library's own.
        device: Type of the tensors it is used for; ``"cpu"`` is for Triton's interpreter (``TRITON_INTERPRET=1``).

    Raises:
        ParameterError: If the package is not installed, fails on the device, or its tangent is not that of attention;
            the rules are then as they were.

    """
    ops = [op for op, rule in RULES.items() if rule is attention_rule or isinstance(rule, _ByKernel)]
    rule: Any = _tried(_ByKernel(_kernel(), device)) if on else attention_rule
    for op in ops:
        RULES[op] = rule


class _ByKernel:
    """The rule: by the kernel where it can, else by blocks."""

    def __init__(self, kernel: Callable[..., Any], device: str) -> None:
        self.kernel, self.device = kernel, device

    def __call__(
        self, d: TangentOf, op: Op, out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        given = {a.name: value for a, value in zip(op._schema.arguments[3:], args, strict=False)} | kwargs
        masked = given.get("attn_mask", given.get("attn_bias")) is not None
        if masked or given.get("dropout_p", 0.0) or not self.takes(q, k, v):
            return attention_rule(d, op, out, q, k, v, *args, **kwargs)
        # A tangent left out is not taken for zero by the kernel but for its primal.
        along = [torch.zeros_like(x) if d(x) is None else d(x) for x in (q, k, v)]
        tangent = self.tangent((q, k, v), along, bool(given.get("is_causal", False)), given.get("scale"))
        return (tangent, *[None] * (len(out) - 1))

    def takes(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        fits = q.shape[-2] % _TOKENS == 0 and q.shape[-1] in _WIDTHS and q.dtype in _DTYPES
        return fits and q.shape == k.shape == v.shape and q.device.type == self.device

    def tangent(self, at: Any, along: Any, causal: bool, scale: float | None) -> Tensor:
        """Tangent of ``softmax(scale q k^T) v``; all six are ``(batch, heads, N, width)``."""
        moving = (x.contiguous() for x in (*at, *along))
        # No mask, no dropout; no tensor memory accelerator and no specialised warps, which nobody has tried here.
        _, kept = self.kernel(*moving, None, 0.0, causal, scale, False, False, False)
        tangent: Tensor = kept[0]
        return tangent


def _kernel() -> Callable[..., Any]:
    try:
        kernel: Callable[..., Any] = import_module("jvp_flash_attention.jvp_attention").JVPAttn.forward
    except (ImportError, AttributeError) as error:
        raise ParameterError(
            f"use_jvp_flash_attention(): jvp_flash_attention cannot be had: {error}.",
            "the package jvp_flash_attention, and Triton",
            "pip install --no-deps jvp_flash_attention triton, or leave the call out: attention has a tangent without",
        ) from error
    return kernel


def _tried(rule: _ByKernel) -> _ByKernel:
    """The rule, if the kernel's tangent is that of attention on three blocks of tokens."""
    generator = torch.Generator().manual_seed(0)
    at, along = torch.randn(2, 3, 1, 2, 3 * _TOKENS, 64, generator=generator).unbind(0)
    for causal in (False, True):
        q, k, v = at.unbind(0)
        scores = q @ k.transpose(-2, -1) / 8
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -torch.inf)
        lse, out = scores.logsumexp(-1), scores.softmax(-1) @ v
        expected = attention_tangent(q, k, v, out, lse, *along.unbind(0), scale=1 / 8, causal=causal)
        try:
            there, moving = at.to(rule.device), along.to(rule.device)
            found = rule.tangent(there.unbind(0), moving.unbind(0), causal, None)
            error = float((found.cpu() - expected).norm() / expected.norm())
        except Exception as failure:
            raise _refused(rule, f"fails: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}") from failure
        if not error < _AGREES_TO:
            raise _refused(rule, f"is off by {error:.0e}{' with a causal mask' if causal else ''}")
    return rule


def _refused(rule: _ByKernel, why: str) -> ParameterError:
    return ParameterError(
        f"the tangent of attention by jvp_flash_attention, on {rule.device}, {why}.",
        f"a relative error below {_AGREES_TO}",
        "another version of jvp_flash_attention or Triton, or leave the call out: attention has a tangent without",
    )
