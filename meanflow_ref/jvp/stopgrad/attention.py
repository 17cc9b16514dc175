r"""The tangent of attention beside its fused kernel, in memory linear in the number of tokens.

With :math:`S = s\,QK^\top + M`, :math:`P = \mathrm{softmax}(S)`, :math:`O = PV`, primes for tangents:

.. math:: O' = (P\odot S')\,V - \mathrm{rowsum}(P\odot S')\odot O + P\,V',\qquad S' = s\,(Q'K^\top + QK'^\top) + M'.

The fused kernel returns the log of the softmax's denominators, :math:`\ell`, so that a block of rows of :math:`P` is
:math:`e^{S-\ell}` at any time: :func:`attention_tangent` forms it block by block and never the whole. A second route,
:func:`flash_backward_tangent`, gets the same from the backward kernel, and serves as its check.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.errors import TangentError
from meanflow_ref.jvp.stopgrad.table import Op, TangentOf

# Operations of torch's fused kernels.
FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
)
# Bytes of one block of scores.
BLOCK = 8 << 20


def attention_tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    *,
    scale: float,
    mask: Tensor | None = None,
    dmask: Tensor | None = None,
    causal: bool = False,
    block: int = BLOCK,
) -> Tensor:
    """Tangent of attention from its logsumexp, a block of rows at a time. Source: mf:8.

    Args:
        q: Queries, ``(batch, heads, rows, width)``.
        k: Keys, ``(batch, heads or a divisor, columns, width)``.
        v: Values, of ``k``'s heads and columns.
        out: What attention returned, ``(batch, heads, rows, value width)``.
        lse: Log of the softmax's denominators, ``(batch, heads, rows)``.
        dq: Tangent of q, or None for zero; like dk, dv and dmask.
        dk: Tangent of k.
        dv: Tangent of v.
        scale: Factor of the scores.
        mask: Added to the scores, broadcastable to ``(batch, heads, rows, columns)``.
        dmask: Tangent of the mask.
        causal: Whether a row sees the columns up to its own only (aligned at the top left).
        block: Bytes of scores held at once.

    Returns:
        Tangent of ``out``, of its shape and dtype. Products run in float32 at least.

    """
    batch, heads, rows, _ = q.shape
    columns, groups = k.shape[2], heads // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)

    def flat(x: Any, repeat: bool) -> Any:
        if x is None:
            return None
        x = x.repeat_interleave(groups, 1) if repeat and groups > 1 else x
        return x.reshape(batch * heads, x.shape[2], x.shape[3]).to(wide)

    q_, k_, v_, out_ = flat(q, False), flat(k, True), flat(v, True), flat(out, False)
    dq_, dk_, dv_ = flat(dq, False), flat(dk, True), flat(dv, True)
    lse_ = lse[..., :rows].reshape(batch * heads, rows, 1).to(wide)
    tangent = torch.empty(batch * heads, rows, v.shape[-1], dtype=wide, device=q.device)
    # Whole heads where a head's scores fit, else rows of one head.
    per_row = columns * q_.element_size()
    step_rows = max(1, min(rows, block // per_row))
    step_heads = max(1, block // (per_row * rows)) if step_rows == rows else 1
    for h in range(0, batch * heads, step_heads):
        hs = slice(h, min(h + step_heads, batch * heads))
        for i in range(0, rows, step_rows):
            rs = slice(i, min(i + step_rows, rows))
            # A causal row needs no column beyond its own.
            cs = slice(0, min(rs.stop, columns) if causal else columns)
            p = torch.bmm(q_[hs, rs], k_[hs, cs].transpose(1, 2)).mul_(scale)
            if mask is not None:
                p += _part(mask, batch, heads, rows, columns, hs, rs, cs).to(wide)
            if causal:
                p.masked_fill_(_later(rs, cs, p.device), -math.inf)
            p = p.sub_(lse_[hs, rs]).exp_()
            # A row that sees nothing has lse -inf; the kernels give it the value 0.
            p.nan_to_num_(nan=0.0, posinf=0.0)
            part = tangent[hs, rs]
            if dv_ is None:
                part.zero_()
            else:
                torch.bmm(p, dv_[hs, cs], out=part)
            ds = _score_tangent(q_, k_, dq_, dk_, hs, rs, cs, scale)
            if dmask is not None:
                dm = _part(dmask, batch, heads, rows, columns, hs, rs, cs).to(wide)
                ds = dm.clone() if ds is None else ds.add_(dm)
            if ds is not None:
                ds.mul_(p)
                part.baddbmm_(ds, v_[hs, cs]).sub_(ds.sum(-1, keepdim=True) * out_[hs, rs])
    return tangent.reshape(batch, heads, rows, -1).to(out.dtype)


def _score_tangent(
    q: Tensor, k: Tensor, dq: Tensor | None, dk: Tensor | None, hs: slice, rs: slice, cs: slice, scale: float
) -> Tensor | None:
    ds = None if dq is None else torch.bmm(dq[hs, rs], k[hs, cs].transpose(1, 2))
    if dk is not None:
        other = dk[hs, cs].transpose(1, 2)
        ds = torch.bmm(q[hs, rs], other) if ds is None else ds.baddbmm_(q[hs, rs], other)
    return None if ds is None else ds.mul_(scale)


def _part(mask: Tensor, batch: int, heads: int, rows: int, columns: int, hs: slice, rs: slice, cs: slice) -> Tensor:
    """A block of a mask that broadcasts over batch and heads, without expanding it whole."""
    mask = mask.expand(batch, heads, rows, columns)[:, :, rs, cs]
    index = torch.arange(hs.start, hs.stop, device=mask.device)
    return mask[index // heads, index % heads]


def _later(rs: slice, cs: slice, device: torch.device) -> Tensor:
    row = torch.arange(rs.start, rs.stop, device=device)[:, None]
    return torch.arange(cs.start, cs.stop, device=device)[None] > row


def flash_backward_tangent(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, *, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Value and tangent of attention by the CPU's flash kernels alone. Source: mf:8.

    The backward kernel returns ``s (P * (g v^T - rowsum(g * out))) k``. Fed ``q = [Q, 0], k = [K, V], v = [K, K'],
    g = [Q', Q], out = P [K, K']`` the bracket is ``P * S'`` less its row sums, so that the second half of the gradient
    of q is the part of ``O'`` that comes through the softmax; ``P V'`` is one more forward pass.

    Args:
        q: Queries, ``(batch, heads, rows, width)``; all six of one shape.
        k: Keys.
        v: Values.
        dq: Tangent of q.
        dk: Tangent of k.
        dv: Tangent of v.
        scale: Factor of the scores.
        causal: Whether a row sees only the columns up to its own.

    """
    forward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    width = q.shape[-1]
    value, lse = forward(q, k, v, 0.0, causal, scale=scale)
    wide_q, wide_k = torch.cat([q, torch.zeros_like(q)], -1), torch.cat([k, v], -1)
    wide_v, cotangent = torch.cat([k, dk], -1), torch.cat([dq, q], -1)
    mixed, _ = forward(wide_q, wide_k, wide_v, 0.0, causal, scale=scale)
    gradient, _, _ = backward(cotangent, wide_q, wide_k, wide_v, mixed, lse, 0.0, causal, scale=scale)
    moved, _ = forward(q, k, dv, 0.0, causal, scale=scale)
    return value, gradient[..., width:] + moved


def attention_rule(d: TangentOf, op: Op, out: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The four fused kernels, whose arguments differ after ``q, k, v``.

    Raises:
        TangentError: With dropout inside attention, whose mask the kernels keep to themselves.

    """
    given = {a.name: value for a, value in zip(op._schema.arguments[3:], args, strict=False)} | kwargs
    if given.get("dropout_p", 0.0):
        raise TangentError(
            f"{op} with dropout_p={given['dropout_p']}: the fused kernel keeps its dropout mask to itself.",
            "attention without dropout inside, as diffusion transformers have it",
            "dropout_p=0, or torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the loss",
        )
    mask = given.get("attn_mask", given.get("attn_bias"))
    scale = given.get("scale")
    value, lse = out[0], out[1]
    if lse is None or lse.numel() == 0:
        # Without a graph in sight two of the kernels leave the logsumexp out: once more, with it.
        again = [True if a.name == "compute_log_sumexp" else given.get(a.name) for a in op._schema.arguments[3:]]
        lse = op(q, k, v, *again[: len(args)], scale=scale)[1]
    tangent = attention_tangent(
        q,
        k,
        v,
        value,
        lse,
        d(q),
        d(k),
        d(v),
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        mask=mask,
        dmask=d(mask),
        causal=bool(given.get("is_causal", False)),
    )
    return (tangent, *[None] * (len(out) - 1))
