"""The rules, one a line, grouped by the mathematics that makes them right.

``x'`` is the tangent of ``x``. A rule runs below autograd on values that were computed anyway, so that it costs what it
says: no weight without a tangent meets a matrix product of zeros, which is where forward mode pays.

A rule that meets a case it was not written for returns ``NotImplemented``, and PyTorch's forward mode takes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from meanflow_ref.errors import ForwardADError, TangentError
from meanflow_ref.jvp.stopgrad.attention import FUSED, attention_rule
from meanflow_ref.jvp.stopgrad.products import bilinear
from meanflow_ref.jvp.stopgrad.table import RULES, Op, TangentOf, define

aten = torch.ops.aten

# ================================================================ linear: y = A x, so y' = A x'

# Of their one differentiable argument, the first.
LINEAR = """
alias clone contiguous view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze expand slice
select narrow diagonal unfold split split_with_sizes unbind chunk flip roll repeat rot90 movedim detach_copy view_copy
view_as_real view_as_complex _conj _conj_physical conj_physical _neg_view real imag resolve_conj resolve_neg
neg sum mean cumsum trace triu tril diag diag_embed lift_fresh
index_select gather im2col col2im avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle _fft_r2c _fft_c2r _fft_c2c
_to_copy expand_copy permute_copy
"""


def linear(d: TangentOf, op: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """``y = A x`` gives ``y' = A x'``; NotImplemented if another argument moves."""
    dx = d(x)
    if dx is None:
        return NotImplemented
    if op is aten.view.default and not _viewable(dx):
        return dx.reshape(*args)
    return op(dx, *args, **kwargs)


def _viewable(x: Tensor) -> bool:
    return x.is_contiguous()


def reinterpreted(d: TangentOf, op: Op, out: Any, x: Tensor, dtype: torch.dtype) -> Any:
    """``view(dtype)`` reads bits as other numbers: not a function that has a derivative."""
    return d(x) if dtype == x.dtype else NotImplemented


def padded(d: TangentOf, op: Op, out: Any, x: Tensor, pad: list[int], value: float = 0) -> Any:
    """Padding by a constant is affine: y' is x' padded by 0."""
    return op(d(x), pad, 0)


def indexed(d: TangentOf, op: Op, out: Any, x: Tensor, index: Any) -> Any:
    """``x[i]``: y' = x'[i]."""
    return NotImplemented if d(x) is None else op(d(x), index)


def joined(d: TangentOf, op: Op, out: Any, parts: list[Tensor], *args: Any, **kwargs: Any) -> Any:
    """``cat`` and ``stack``: y' joins the parts' tangents, of the result's dtype, with zeros where there is none."""
    return op([torch.zeros_like(x) if d(x) is None else d(x) for x in parts], *args, **kwargs)


def added(d: TangentOf, op: Op, out: Any, x: Any, y: Any, alpha: Any = 1) -> Any:
    """``x + a y``: x' + a y'; ``x - a y``: x' - a y'; a missing term costs nothing."""
    dx, dy, factor = d(x), d(y), alpha if op._overloadpacket is aten.add else -alpha
    if dy is None:
        return dx
    if dx is None:
        return dy if factor == 1 else dy * factor
    return torch.add(dx, dy, alpha=factor)


def subtracted_from(d: TangentOf, op: Op, out: Any, x: Any, y: Any, alpha: Any = 1) -> Any:
    """``y - a x``: y' - a x'."""
    dx, dy = d(x), d(y)
    if dx is None:
        return dy
    return dx * -alpha if dy is None else torch.sub(dy, dx, alpha=alpha)


def chosen(d: TangentOf, op: Op, out: Any, condition: Tensor, x: Any, y: Any) -> Any:
    """``where(c, x, y)`` picks; so do the tangents."""
    dx, dy = (0.0 if d(part) is None else d(part) for part in (x, y))
    return aten.where(condition, dx, dy)


def masked(d: TangentOf, op: Op, out: Any, x: Tensor, mask: Tensor, value: Any) -> Any:
    """``masked_fill``: x' with 0 where a constant was put."""
    return NotImplemented if d(value) is not None else torch.where(mask, 0.0, d(x))


def dropped(d: TangentOf, op: Op, out: Any, x: Tensor, p: float, train: bool | None = True) -> Any:
    """Dropout is linear at its mask, which is the one that the value saw."""
    _, mask = out
    if not train:
        return d(x), None
    return (d(x) * mask).div_(1 - p) if p < 1 else torch.zeros_like(x), None


# ================================================================ bilinear: y = b(p, q), so y' = b(p', q) + b(p, q')


def multiplied(d: TangentOf, op: Op, out: Any, x: Any, y: Any) -> Any:
    """``x y``: x' y + x y'."""
    dx, dy = d(x), d(y)
    if dy is None:
        return dx * y
    if dx is None:
        return dy * x
    # What was just made may be written into.
    return (dx * y).addcmul_(x, dy) if x.dtype == y.dtype else dx * y + x * dy


def divided(d: TangentOf, op: Op, out: Any, x: Any, y: Any, **rounding: Any) -> Any:
    """``q = x / y``: q' = (x' - q y') / y."""
    if rounding:
        return NotImplemented
    dx, dy = d(x), d(y)
    if dy is None:
        return dx / y
    change = out * dy
    return (-change if dx is None else dx - change) / y


_FUSED = {aten.mm.default: Tensor.addmm_, aten.bmm.default: Tensor.baddbmm_, aten.mv.default: Tensor.addmv_}


def matmul(d: TangentOf, op: Op, out: Any, x: Tensor, y: Tensor, *more: Any) -> Any:
    """``x y`` of matrices: x' y + x y', the sum in one kernel."""
    dx, dy = d(x), d(y)
    if more:
        return NotImplemented
    if dy is None:
        return op(dx, y)
    if dx is None:
        return op(x, dy)
    first = op(dx, y)
    fused: Any = _FUSED.get(op)
    return first + op(x, dy) if fused is None else fused(first, x, dy)


def affine(d: TangentOf, op: Op, out: Any, c: Tensor, x: Tensor, y: Tensor, beta: Any = 1, alpha: Any = 1) -> Any:
    """``beta c + alpha x y``: beta c' + alpha (x' y + x y')."""
    dc, dx, dy = d(c), d(x), d(y)
    product: Any = torch.bmm if op is aten.baddbmm.default else torch.mv if op is aten.addmv.default else torch.mm
    tangent = None if dx is None else product(dx, y)
    if dy is not None:
        second = product(x, dy)
        tangent = second if tangent is None else tangent.add_(second)
    if tangent is not None and alpha != 1:
        tangent = tangent.mul_(alpha)
    if dc is None:
        return tangent
    return dc * beta if tangent is None else torch.add(tangent, dc, alpha=beta)


def convolved(d: TangentOf, op: Op, out: Any, x: Tensor, w: Tensor, b: Tensor | None, *args: Any) -> Any:
    """``w * x + b``: w * x' (+ w' * x + b' where weights move)."""
    dx, dw, db = d(x), d(w), d(b)
    tangent = None if dx is None else op(dx, w, None, *args)
    if dw is not None:
        second = op(x, dw, None, *args)
        tangent = second if tangent is None else tangent + second
    if db is not None:
        column = db.reshape(1, -1, *[1] * (out.dim() - 2))
        tangent = column if tangent is None else tangent + column
    return tangent


# ================================================================ symmetric Jacobian: J = J^T
# Backward kernels compute J^T g. Where J is symmetric the same kernel, given x' for g, computes J x'.

# Diagonal, y_i = f(x_i): the kernel's arguments are (dx, x or y, options).
DIAGONAL: dict[str, Callable[..., Any]] = {
    "silu": lambda dx, x, y: aten.silu_backward(dx, x),  # x s(x)
    "gelu": lambda dx, x, y, approximate="none": aten.gelu_backward(dx, x, approximate=approximate),  # x Phi(x)
    "sigmoid": lambda dx, x, y: aten.sigmoid_backward(dx, y),  # y' = y (1 - y) x'
    "tanh": lambda dx, x, y: aten.tanh_backward(dx, y),  # y' = (1 - y^2) x'
    "relu": lambda dx, x, y: aten.threshold_backward(dx, y, 0),  # y' = [y > 0] x'
    "threshold": lambda dx, x, y, at, value: aten.threshold_backward(dx, x, at),  # y' = [x > at] x'
    "leaky_relu": lambda dx, x, y, slope=0.01: aten.leaky_relu_backward(dx, x, slope, False),  # slope for x < 0
    "softplus": lambda dx, x, y, b=1, th=20: aten.softplus_backward(dx, x, b, th),  # y' = s(b x) x'
    "elu": lambda dx, x, y, a=1, s=1, i=1: aten.elu_backward(dx, a, s, i, False, x),  # y' = a e^x x' for x < 0
    "mish": lambda dx, x, y: aten.mish_backward(dx, x),  # x tanh(softplus(x))
    "hardtanh": lambda dx, x, y, lo=-1, hi=1: aten.hardtanh_backward(dx, x, lo, hi),  # y' = [lo < x < hi] x'
    "hardsigmoid": lambda dx, x, y: aten.hardsigmoid_backward(dx, x),  # y' = [-3 < x < 3] x' / 6
    "hardswish": lambda dx, x, y: aten.hardswish_backward(dx, x),  # x hardsigmoid(x)
    "log_sigmoid_forward": lambda dx, x, y: (aten.log_sigmoid_backward(dx, x, y[1]), None),  # y' = s(-x) x'
    "exp": lambda dx, x, y: dx * y,  # (e^x)' = e^x x'
    "exp2": lambda dx, x, y: dx * y * 0.6931471805599453,  # (2^x)' = ln 2 2^x x'
    "expm1": lambda dx, x, y: dx * (y + 1),  # (e^x - 1)' = e^x x'
    "log": lambda dx, x, y: dx / x,  # x' / x
    "log1p": lambda dx, x, y: dx / (x + 1),  # x' / (1 + x)
    "log2": lambda dx, x, y: dx / (x * 0.6931471805599453),  # x' / (x ln 2)
    "sin": lambda dx, x, y: dx * x.cos(),  # cos(x) x'
    "cos": lambda dx, x, y: -(dx * x.sin()),  # -sin(x) x'
    "atan": lambda dx, x, y: dx / (x * x + 1),  # x' / (1 + x^2)
    "sqrt": lambda dx, x, y: dx / (2 * y),  # x' / (2 y)
    "rsqrt": lambda dx, x, y: dx * (y * y * y).mul_(-0.5),  # -x' y^3 / 2
    "reciprocal": lambda dx, x, y: -dx * y * y,  # -x' y^2
    "square": lambda dx, x, y: dx * x * 2,  # 2 x x'
    "erf": lambda dx, x, y: dx * (-x * x).exp_().mul_(1.1283791670955126),  # 2/sqrt(pi) e^(-x^2) x'
    "_softmax": lambda dx, x, y, dim, half: aten._softmax_backward_data(dx, y, dim, y.dtype),  # J = diag(y) - y y^T
}
# Of real x alone: a complex derivative is no real one times x'.
REAL_ONLY = frozenset(DIAGONAL) - {"sin", "cos", "exp", "log", "log1p", "expm1", "reciprocal", "square", "sqrt", "exp2"}


def symmetric(kernel: Callable[..., Any], real: bool) -> Any:
    """Rule that feeds x' to a backward kernel, or to the derivative written out."""

    def rule(d: TangentOf, op: Op, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        dx = d(x)
        first = out[0] if isinstance(out, tuple | list) else out
        # A mixed dtype (half_to_float of softmax) is left to forward mode.
        if dx is None or (real and x.is_complex()) or first.dtype != x.dtype:
            return NotImplemented
        return kernel(dx, x, out, *args, **kwargs)

    return rule


def log_softmax(d: TangentOf, op: Op, out: Tensor, x: Tensor, dim: int, half: bool) -> Any:
    """``y = x - logsumexp(x)``: J = I - 1 y~^T is not symmetric; y' = x' - sum(e^y x')."""
    dx = d(x)
    return NotImplemented if out.dtype != x.dtype else dx - (out.exp() * dx).sum(dim, keepdim=True)


def power(d: TangentOf, op: Op, out: Tensor, x: Any, e: Any) -> Any:
    """``x^e`` at a number e: e x^(e-1) x'."""
    if isinstance(e, Tensor) or not isinstance(x, Tensor) or x.is_complex() or isinstance(e, complex):
        return NotImplemented
    if e == 0:
        return None
    return d(x) * (x * 2 if e == 2 else x.pow(e - 1).mul_(e))


# Normalisations: y = w n(x) + b, and the Jacobian of n (centre, divide by the deviation) is a projection times
# 1/deviation, hence symmetric: n' is n's own backward kernel applied to x'; then y' = w n' + w' n + b'.


def _scaled(tangent: Tensor, w: Tensor | None, shape: list[int] | None = None) -> Tensor:
    return tangent if w is None else tangent.mul_(w if shape is None else w.view(shape))


def normalised(backward: Any, w: Tensor | None, dx: Tensor, x: Tensor, *args: Any) -> Tensor:
    """n', by the norm's backward kernel, which wants its tensors in one dtype.

    Under autocast there is a norm of bfloat16 with weights and statistics in float32: then n' is in float32.
    """
    if w is not None and w.dtype != x.dtype:
        dx, x = dx.to(w.dtype), x.to(w.dtype)
        args = tuple(part.to(w.dtype) if isinstance(part, Tensor) else part for part in args)
    tangent: Tensor = backward(dx.contiguous(), x, *args, [True, False, False])[0]
    return tangent


def layer_norm(
    d: TangentOf, op: Op, out: Any, x: Tensor, shape: list[int], w: Tensor | None, b: Tensor | None, eps: float
) -> Any:
    """Symmetric in the normalised dimensions; see above."""
    dx = d(x)
    if dx is None or d(w) is not None or d(b) is not None:
        return NotImplemented
    _, mean, rstd = out
    grad = normalised(aten.native_layer_norm_backward, w, dx, x, shape, mean, rstd, None, None)
    return _scaled(grad, w), None, None


def group_norm(
    d: TangentOf, op: Op, out: Any, x: Tensor, w: Any, b: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    """Symmetric in a group's channels and places; see above."""
    dx = d(x)
    if dx is None or d(w) is not None or d(b) is not None:
        return NotImplemented
    _, mean, rstd = out
    grad = normalised(aten.native_group_norm_backward, w, dx, x.contiguous(), mean, rstd, None, n, c, hw, groups)
    return _scaled(grad, w, [1, c, *[1] * (x.dim() - 2)]), None, None


def batch_norm(
    d: TangentOf, op: Op, out: Any, x: Tensor, w: Any, b: Any, mean: Any, var: Any, train: bool, momentum: Any,
    eps: float,
) -> Any:  # fmt: skip
    """Symmetric in the batch and the places of a channel; with running statistics, diagonal."""
    dx = d(x)
    if dx is None or any(d(part) is not None for part in (w, b, mean, var)):
        return NotImplemented
    grad = aten.native_batch_norm_backward(
        dx.contiguous(), x.contiguous(), None, mean, var, out[1], out[2], train, eps, [True, False, False]
    )[0]
    return (_scaled(grad, w, [1, -1, *[1] * (x.dim() - 2)]), *[None] * (len(out) - 1))


def batch_norm_without_statistics(
    d: TangentOf, op: Op, out: Any, x: Tensor, w: Any, b: Any, train: bool, momentum: Any, eps: float
) -> Any:
    """The same, for a norm that keeps no running statistics."""
    return batch_norm(d, op, out, x, w, b, None, None, train, momentum, eps)


# ================================================================ constant: y' = 0

# Piecewise constant, integer or Boolean, drawn at random, or made from a shape. `detach` is the stop-gradient, in
# forward as in reverse mode (`.data` arrives as the same operation).
CONSTANT = """
eq ne lt gt le ge isnan isinf isfinite isposinf isneginf logical_and logical_or logical_not logical_xor signbit
argmax argmin argsort any all bucketize searchsorted floor ceil round trunc sign floor_divide count_nonzero nonzero
histc zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full
new_empty_strided bernoulli is_same_size equal allclose sym_size sym_stride sym_numel sym_storage_offset is_nonzero
"""


def constant(d: TangentOf, op: Op, out: Any, *args: Any, **kwargs: Any) -> None:
    """No tangent."""


def detached(d: TangentOf, op: Op, out: Tensor, x: Tensor) -> None:
    """No tangent: a stop-gradient.

    Raises:
        TangentError: In the forward of a user's ``autograd.Function``. Autograd is off there, so that people detach
            what they mean to differentiate; but one's own checkpoint runs a network there, with its stop-gradients.

    """
    function = None if torch._C._is_fwd_grad_enabled() else _function_around()
    if d(x) is not None and function is not None and not function.__module__.startswith("torch."):
        raise TangentError(
            f"the forward of autograd.Function `{function.__name__}` detaches a tensor that has a tangent: to a "
            "derivative that may be a stop-gradient, or nothing, since autograd is off there.",
            "no detach(), .data or .numpy() in it",
            "leave it out, or torch.utils.checkpoint.checkpoint where it is a checkpoint",
        )


_APPLY = inspect.unwrap(Function.apply.__func__).__code__  # type: ignore[attr-defined]


def _function_around() -> type | None:
    """The innermost ``autograd.Function`` that runs inside this JVP."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "_dispatched":
        if frame.f_code is _APPLY:
            function: type = frame.f_locals["cls"]
            return function
        frame = frame.f_back
    return None


def weighted_loss(d: TangentOf, op: Op, out: Any, x: Tensor, target: Tensor, weight: Any, *args: Any) -> Any:
    """By forward mode, which has no formula for the weight and drops its tangent beside that of x."""
    if d(weight) is not None:
        raise ForwardADError(
            f"the network uses {op} with a weight that moves, for which PyTorch has no derivative.",
            "a weight that is a constant",
            "losses of each entry (reduction='none'), times the weight",
        )
    return NotImplemented


def copysign(d: TangentOf, op: Op, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Of a sign that moves alone, nothing; else by forward mode."""
    return None if d(x) is None else NotImplemented


# ================================================================ the table itself

define(LINEAR, linear)
define("constant_pad_nd", padded)
define("index _unsafe_index", indexed)
define("cat stack", joined)
define("add sub", added)
define("rsub", subtracted_from)
define("where", chosen)
define("masked_fill", masked)
define("native_dropout", dropped)
define("mul", multiplied)
define("div", divided)
define("mm bmm mv dot", bilinear(matmul, 0, 1))
define("addmm baddbmm addmv", bilinear(affine, 1, 2))
define("convolution", bilinear(convolved, 0, 1))
for _name, _kernel in DIAGONAL.items():
    define(_name, symmetric(_kernel, _name in REAL_ONLY))
define("_log_softmax", log_softmax)
define("pow", power)
define("native_layer_norm", layer_norm)
define("native_group_norm", group_norm)
define("native_batch_norm cudnn_batch_norm", batch_norm)
define(CONSTANT, constant)
define("detach", detached)
define("nll_loss_forward nll_loss2d_forward", weighted_loss)
RULES[aten.copysign.Tensor] = copysign
define(FUSED, attention_rule)
RULES[aten.view.dtype] = reinterpreted
RULES[aten._native_batch_norm_legit.no_stats] = batch_norm_without_statistics
