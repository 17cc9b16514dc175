"""The compile form: pairs of a value and its tangent that ``torch.compile`` traces through the network.

A dispatch mode cannot be traced. A :class:`Pair` is no tensor but answers like one, so that Dynamo inlines its
``__torch_function__`` and sees plain operations: the value's, which autograd records, and the tangent's, which run on
detached values. The mathematics is that of :mod:`meanflow_ref.jvp.stopgrad.rules`, whose kernels are used here by the
names of torch's functions; what has no rule goes through ``torch.func.jvp``, that operation alone.

Pairs are values: what would write into one is refused, since a pair cannot know who shares its memory.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref._validate import require_output
from meanflow_ref.errors import ForwardADError, MeanFlowError, TangentError
from meanflow_ref.jvp.stopgrad.attention import attention_tangent
from meanflow_ref.jvp.stopgrad.dynamo import never_first, types_as_of_values
from meanflow_ref.jvp.stopgrad.front import stopgrad_jvp
from meanflow_ref.jvp.stopgrad.operation import differentiable
from meanflow_ref.jvp.stopgrad.products import product_dtype
from meanflow_ref.jvp.stopgrad.rules import DIAGONAL, REAL_ONLY, normalised
from meanflow_ref.jvp.stopgrad.table import RULES as OF_OPERATIONS

aten: Any = torch.ops.aten
_SPACES: tuple[Any, ...] = (torch, Tensor, F, torch._C._nn, torch.special)
RULES: dict[Any, Callable[..., Any]] = {}


class Pair:
    """A value and its tangent, which answers like a tensor; their names are none that a network would ask for."""

    def __init__(self, value: Tensor, tangent: Tensor) -> None:
        self._paired_value = value
        self._paired_tangent = tangent if tangent.dtype == value.dtype else tangent.to(value.dtype)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return by_table(func, *args, **(kwargs or {}))

    shape = property(lambda self: self._paired_value.shape)
    dtype = property(lambda self: self._paired_value.dtype)
    device = property(lambda self: self._paired_value.device)
    ndim = property(lambda self: self._paired_value.ndim)
    requires_grad = property(lambda self: self._paired_value.requires_grad)
    is_cuda = property(lambda self: self._paired_value.is_cuda)
    is_cpu = property(lambda self: self._paired_value.is_cpu)
    is_nested = property(lambda self: self._paired_value.is_nested)
    is_sparse = property(lambda self: self._paired_value.is_sparse)
    layout = property(lambda self: self._paired_value.layout)
    T = property(lambda self: Pair(self._paired_value.T, self._paired_tangent.T))
    mT = property(lambda self: Pair(self._paired_value.mT, self._paired_tangent.mT))
    data = property(lambda self: self._paired_value.detach())

    def __getattr__(self, name: str) -> Any:
        # hasattr() of a pair must not be False where it is True of a tensor.
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        return refuse(
            TangentError,
            f"the network uses .{name} of a tensor that has a tangent, under torch.compile.",
            "the attributes and methods of tensors that pairs have",
            "the function of the same name, or run this network's loss without torch.compile",
        )

    def __len__(self) -> int:
        return len(self._paired_value)

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __bool__(self) -> bool:
        return bool(self._paired_value)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        return refuse(
            TangentError,
            "the network writes in place on, or takes a Python number from, a tensor that has a tangent, under "
            "torch.compile.",
            "operations that return new tensors",
            "write x = x + y for x += y and the like, or run this network's loss without torch.compile",
        )


never_first(stopgrad_jvp.__code__)


def by_table(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """The call by its rule, or by forward mode."""
    # Python functions of torch's, which Dynamo cannot look up in a dictionary.
    if func is Tensor.__pow__ or func is Tensor.__rpow__:
        return power(torch.pow, *(args if func is Tensor.__pow__ else args[::-1]))
    if func is Tensor.matmul and not isinstance(args[0], Pair):
        # Dynamo turns both `pair @ tensor` and `tensor @ pair` into this, and which is lost (torch 2.13).
        return refuse(
            TangentError,
            "the network multiplies matrices by the operator @, whose order is lost under torch.compile.",
            "torch.matmul(a, b)",
            "write torch.matmul(a, b) for a @ b",
        )
    if func is Tensor.__rsub__:
        return added(-1)(torch.sub, args[1], args[0])
    if func is Tensor.__rmatmul__:
        return product(torch.matmul, args[1], args[0])
    if func is Tensor.__rtruediv__ or func is Tensor.__rdiv__:
        return divided(torch.div, args[1], args[0])
    rule = refused if _writes(func, args, kwargs) else RULES.get(func)
    return by_forward_mode(func, *args, **kwargs) if rule is None else rule(func, *args, **kwargs)


def _writes(func: Any, args: Any, kwargs: Any) -> bool:
    place = _INPLACE_AT.get(func)
    by_name = kwargs.get("out") is not None or bool(kwargs.get("inplace"))
    return by_name or (place is not None and len(args) > place and bool(args[place]))


def pairs_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor]:
    """Value with its graph, and derivative without one, in code that ``torch.compile`` can trace whole."""
    pairs = [x if d is None else Pair(x, d.detach()) for x, d in zip(primals, tangents, strict=True)]
    out: Any = fn(*pairs)
    if isinstance(out, Pair):
        return require_output(out._paired_value), out._paired_tangent
    return require_output(out), torch.zeros_like(out)


types_as_of_values(Pair, pairs_jvp.__code__)


# ---------------------------------------------------------------- parts of pairs


def value_of(x: Any) -> Any:
    """The value in place of a pair, inside tuples and lists too."""
    if isinstance(x, Pair):
        return x._paired_value
    if type(x) in (tuple, list):
        return type(x)([value_of(part) for part in x])
    return x


def still(x: Any) -> Any:
    """The value without its graph."""
    x = value_of(x)
    return x.detach() if isinstance(x, Tensor) else x


def d(x: Any) -> Any:
    """The tangent, None for zero."""
    return x._paired_tangent if isinstance(x, Pair) else None


def pair(value: Tensor, tangent: Any) -> Any:
    """Value and tangent together; the value alone where the tangent is zero."""
    if tangent is None:
        return value
    return Pair(value, tangent if tangent.shape == value.shape else tangent.expand(value.shape))


def _as(x: Tensor, low: torch.dtype | None) -> Tensor:
    """An operand of a product of tangents, rounded where that was asked for; :class:`Pair` widens the result."""
    return x if low is None else x.to(low)


def _scaled(tangent: Tensor, weight: Tensor) -> Tensor:
    """What a kernel has just made, times a weight: in its own memory where that holds the product."""
    return tangent.mul_(weight) if weight.dtype == tangent.dtype else tangent * weight


# ---------------------------------------------------------------- rules, in the groups of the table


def constant(func: Any, *args: Any, **kwargs: Any) -> Any:
    """y' = 0, or no tensor at all."""
    return func(*value_of(args), **{key: value_of(x) for key, x in kwargs.items()})


def linear(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = A x: y' = A x'."""
    if not isinstance(x, Pair):
        return by_forward_mode(func, x, *args, **kwargs)
    args = value_of(args)
    out = func(x._paired_value, *args, **kwargs)
    if out is x._paired_value:
        return x  # as contiguous() and to() return their argument
    with torch.no_grad():
        tangent = func(x._paired_tangent, *args, **kwargs)
    if isinstance(out, Tensor):
        return pair(out, tangent) if out.is_floating_point() or out.is_complex() else out
    return tuple(Pair(a, b) for a, b in zip(out, tangent, strict=True))


def viewed(func: Any, x: Any, *shape: Any, size: Any = None) -> Any:
    """Another shape of the value's memory; the tangent's may lie otherwise."""
    shape = shape or (size,)
    if not isinstance(x, Pair) or isinstance(shape[0], torch.dtype):
        return by_forward_mode(func, x, *shape)
    out = func(x._paired_value, *shape)
    with torch.no_grad():
        return Pair(out, x._paired_tangent.reshape(out.shape))


def padded(func: Any, x: Pair, pad: Any, mode: str = "constant", value: Any = None) -> Any:
    """Padding by a constant is affine."""
    with torch.no_grad():
        tangent = func(x._paired_tangent, pad, mode) if mode != "constant" else func(x._paired_tangent, pad)
    return Pair(func(x._paired_value, pad, mode, value), tangent)


def indexed(func: Any, x: Any, index: Any) -> Any:
    """x[i]: x'[i]."""
    index = value_of(index)
    if not isinstance(x, Pair):
        return x[index]
    with torch.no_grad():
        tangent = x._paired_tangent[index]
    return Pair(x._paired_value[index], tangent)


def joined(func: Any, parts: Any, *args: Any, **kwargs: Any) -> Any:
    """cat and stack: of the tangents, with zeros where there is none."""
    out = func([value_of(x) for x in parts], *args, **kwargs)
    with torch.no_grad():
        tangent = func([torch.zeros_like(x) if d(x) is None else d(x) for x in parts], *args, **kwargs)
    return Pair(out, tangent)


def added(sign: int) -> Any:
    """x + a y, x - a y."""

    def rule(func: Any, x: Any, y: Any, *, alpha: Any = 1) -> Any:
        a, b = value_of(x), value_of(y)
        dx, dy, factor = d(x), d(y), sign * alpha
        # Before the value, so that what it is a sum of is free when that is made.
        with torch.no_grad():
            if dy is None:
                tangent = dx
            elif dx is None:
                tangent = dy if factor == 1 else dy * factor
            else:
                tangent = torch.add(dx, dy, alpha=factor)
        return pair(func(a, b) if alpha == 1 else func(a, b, alpha=alpha), tangent)

    return rule


def added_reversed(func: Any, x: Pair, y: Any) -> Any:
    """y - x of a number or a tensor y."""
    with torch.no_grad():
        tangent = -x._paired_tangent
    return pair(func(x._paired_value, y), tangent)


def divided_reversed(func: Any, x: Pair, y: Any) -> Any:
    """q = y / x of a number or a tensor y: -q x' / x."""
    out = func(x._paired_value, y)
    with torch.no_grad():
        tangent = -(out.detach() * x._paired_tangent) / still(x)
    return pair(out, tangent)


def multiplied(func: Any, x: Any, y: Any) -> Any:
    """x y: x' y + x y'."""
    out = func(value_of(x), value_of(y))
    dx, dy = d(x), d(y)
    with torch.no_grad():
        if dy is None:
            tangent = dx * still(y)
        elif dx is None:
            tangent = dy * still(x)
        else:
            tangent = _sum_of_products(dx, still(y), still(x), dy)
    return pair(out, tangent)


def _sum_of_products(a: Any, b: Any, c: Any, d: Any) -> Any:
    """a b + c d, in the memory of the first product where it is of one kind."""
    product = a * b
    if product.dtype == c.dtype == d.dtype:
        return product.addcmul_(c, d)
    return product + c * d


def divided(func: Any, x: Any, y: Any, *, rounding_mode: Any = None) -> Any:
    """q = x / y: (x' - q y') / y."""
    if rounding_mode is not None:
        return by_forward_mode(func, x, y, rounding_mode=rounding_mode)
    out = func(value_of(x), value_of(y))
    dx, dy = d(x), d(y)
    with torch.no_grad():
        if dy is None:
            tangent = dx / still(y)
        else:
            change = out.detach() * dy
            tangent = (change.neg_() if dx is None else dx - change) / still(y)
    return pair(out, tangent)


def power(func: Any, x: Any, e: Any) -> Any:
    """x^e at a number e."""
    if isinstance(e, Tensor | Pair) or not isinstance(x, Pair) or e == 0:
        return by_forward_mode(func, x, e)
    out = func(x._paired_value, e)
    with torch.no_grad():
        tangent = x._paired_tangent * (e * still(x) ** (e - 1))
    return Pair(out, tangent)


def product(func: Any, x: Any, y: Any) -> Any:
    """Matrix products: x' y + x y'."""
    out = func(value_of(x), value_of(y))
    dx, dy = d(x), d(y)
    low = product_dtype(out.dtype)
    with torch.no_grad():
        tangent = None if dx is None else torch.matmul(_as(dx, low), _as(still(y), low))
        if dy is not None:
            second = torch.matmul(_as(still(x), low), _as(dy, low))
            tangent = second if tangent is None else tangent.add_(second)
    return pair(out, tangent)


def affine(func: Any, x: Any, w: Any, bias: Any = None) -> Any:
    """x w^T + b of a linear layer."""
    out = func(value_of(x), value_of(w), value_of(bias))
    dx, dw, db = d(x), d(w), d(bias)
    low = product_dtype(out.dtype)
    with torch.no_grad():
        tangent = None if dx is None else func(_as(dx, low), _as(still(w), low))
        if dw is not None:
            second = func(_as(still(x), low), _as(dw, low))
            tangent = second if tangent is None else tangent.add_(second)
        if db is not None:
            tangent = db if tangent is None else tangent + db
    return pair(out, tangent)


def convolved(func: Any, x: Any, w: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """w * x + b."""
    if d(w) is not None or d(bias) is not None:
        return by_forward_mode(func, x, w, bias, *args, **kwargs)
    out = func(x._paired_value, w, bias, *args, **kwargs)
    low = product_dtype(out.dtype)
    with torch.no_grad():
        tangent = func(_as(x._paired_tangent, low), _as(still(w), low), None, *args, **kwargs)
    return Pair(out, tangent)


def einsum(func: Any, equation: str, *operands: Any) -> Any:
    """Multilinear: one term for each operand that moves."""
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    out = func(equation, *value_of(operands))
    tangent: Any = None
    with torch.no_grad():
        for i, x in enumerate(operands):
            if d(x) is not None:
                term = func(equation, *[d(x) if j == i else still(y) for j, y in enumerate(operands)])
                tangent = term if tangent is None else tangent + term
    return pair(out, tangent)


def symmetric(kernel: Callable[..., Any], names: tuple[str, ...] = (), real: bool = True) -> Any:
    """A symmetric Jacobian: the backward kernel of the table, given x'; of real x alone if ``real``."""
    defaults = kernel.__defaults__ or ()

    def rule(func: Any, x: Any, *args: Any, inplace: bool = False, **kwargs: Any) -> Any:
        if inplace or not isinstance(x, Pair):
            return refused(func)
        if (place := _INPLACE_AT.get(func)) is not None and len(args) >= place:
            args = (*args[: place - 1], *args[place:])
        if real and x._paired_value.is_complex():
            return by_forward_mode(func, x, *args, **kwargs)
        out = func(x._paired_value, *args, **kwargs)
        options = list(args)[: len(names)] if names else list(args)
        for i in range(len(options), len(names)):
            options.append(kwargs.get(names[i], defaults[i]))
        named = {key: value for key, value in kwargs.items() if key not in names}
        with torch.no_grad():
            tangent = kernel(x._paired_tangent, x._paired_value.detach(), out.detach(), *options, **named)
        return Pair(out, tangent)

    return rule


def softmax(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """J = diag(y) - y y^T."""
    dim = args[0] if args else kwargs.get("dim")
    # A second argument is a dtype, but of F.softmax, which its module calls, how deep in the stack to warn.
    several = len(args) > (2 if func is F.softmax else 1)
    if dim is None or several or kwargs.get("dtype") is not None:
        return by_forward_mode(func, x, *args, **kwargs)
    out = torch.softmax(x._paired_value, dim)
    with torch.no_grad():
        tangent = aten._softmax_backward_data(x._paired_tangent, out.detach(), dim, out.dtype)
    return Pair(out, tangent)


def layer_norm(
    func: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Any:
    """Symmetric in the normalised dimensions; the statistics are the value's."""
    if d(weight) is not None or d(bias) is not None:
        return by_forward_mode(func, x, shape, weight, bias, eps)
    shape = list(shape)
    out, mean, rstd = torch.native_layer_norm(x._paired_value, shape, weight, bias, eps)
    with torch.no_grad():
        tangent = normalised(
            aten.native_layer_norm_backward,
            weight,
            x._paired_tangent,
            x._paired_value.detach(),
            shape,
            mean,
            rstd,
            None,
            None,
        )
        if weight is not None:
            tangent = _scaled(tangent, weight.detach())
    return Pair(out, tangent)


def group_norm(
    func: Any, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Any:
    """Symmetric in a group."""
    if d(weight) is not None or d(bias) is not None:
        return by_forward_mode(func, x, groups, weight, bias, eps)
    batch, channels = x._paired_value.shape[:2]
    places = math.prod(x._paired_value.shape[2:])
    value = x._paired_value.contiguous()
    out, mean, rstd = torch.native_group_norm(value, weight, bias, batch, channels, places, groups, eps)
    with torch.no_grad():
        tangent = normalised(
            aten.native_group_norm_backward, weight, x._paired_tangent, value.detach(), mean, rstd, None, batch,
            channels, places, groups,
        )  # fmt: skip
        if weight is not None:
            tangent = _scaled(tangent, weight.detach().view(1, channels, *[1] * (tangent.dim() - 2)))
    return Pair(out, tangent)


def batch_norm(
    func: Any, x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: Any = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    """Symmetric in the batch and the places of a channel; with running statistics, diagonal."""
    if not isinstance(x, Pair) or any(isinstance(part, Pair) for part in (mean, var, weight, bias)):
        return by_forward_mode(func, x, mean, var, weight, bias, training, momentum, eps)
    momentum = 0.0 if momentum is None else momentum
    out, mean_, invstd = torch.native_batch_norm(x._paired_value, weight, bias, mean, var, training, momentum, eps)
    with torch.no_grad():
        tangent = normalised(
            aten.native_batch_norm_backward, weight, x._paired_tangent, still(x), None, mean, var, mean_, invstd,
            training, eps,
        )  # fmt: skip
        if weight is not None:
            tangent = _scaled(tangent, weight.detach().view(1, -1, *[1] * (tangent.dim() - 2)))
    return Pair(out, tangent)


def masked(func: Any, x: Any, mask: Any, value: Any) -> Any:
    """Numbers put in some places: no tangent there."""
    if not isinstance(x, Pair) or isinstance(value, Pair):
        return by_forward_mode(func, x, mask, value)
    with torch.no_grad():
        tangent = x._paired_tangent.masked_fill(mask, 0)
    return pair(func(x._paired_value, mask, value), tangent)


def dropout(func: Any, x: Pair, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """One mask for both, over elements or whole channels."""
    if not training or p == 0:
        return x
    mask = func(torch.ones_like(x._paired_value), p, True)
    with torch.no_grad():
        tangent = x._paired_tangent * mask
    return Pair(x._paired_value * mask, tangent)


def attention(
    func: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """The fused kernel for the value, the tangent from its logsumexp.

    Without the kernel's own entry (a mask or grouped heads on this device) it is written out.
    """
    if dropout_p:
        return refuse(
            TangentError,
            "scaled_dot_product_attention with dropout_p under a stop-gradient JVP.",
            "dropout_p=0",
            "dropout outside",
        )
    q, k, v = query, key, value
    if torch.is_autocast_enabled(q.device.type):  # as the function does, which is passed by
        q, k, v = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (q, k, v))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q_, k_, v_ = value_of(q), value_of(k), value_of(v)
    mask = value_of(attn_mask)
    plain = mask is None and not enable_gqa and q_.dim() == k_.dim() == v_.dim() == 4
    # Batch and heads of one size each, one width, and something to see: the kernel itself looks at none of these.
    plain = plain and q_.shape[:2] == k_.shape[:2] == v_.shape[:2] and q_.shape[-1] == v_.shape[-1]
    if not (plain and q_.device.type == "cpu" and q_.shape[2] > 0 and k_.shape[2] > 0):
        return _written_out(q, k, v, attn_mask, is_causal, factor, enable_gqa)
    # Nor at how the last dimension lies.
    q_, k_, v_ = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_, k_, v_))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q_, k_, v_, 0.0, is_causal, scale=scale)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        tangent = attention_tangent(
            q_.detach(), k_.detach(), v_.detach(), out.detach(), lse.detach(), d(q), d(k), d(v),
            scale=factor, causal=is_causal,
        )  # fmt: skip
    return Pair(out, tangent)


def _written_out(q: Any, k: Any, v: Any, mask: Any, causal: bool, scale: float, gqa: bool) -> Any:
    """Attention as two products and a softmax, of pairs and tensors."""
    if gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = torch.matmul(q, k.transpose(-2, -1)) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    if mask is None:
        return torch.matmul(scores.softmax(-1), v)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    # The kernels give a row that sees nothing the value 0.
    blind = (scores.detach() == -math.inf).all(-1, keepdim=True)
    return torch.matmul(scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0), v)


# Torch's own code of it, which would hand a pair back to the table before its first line, and makes a check that Dynamo
# cannot trace. Without a name for its module, from which Dynamo would take the names that are others here.
_heads_of_torch = FunctionType(
    F.multi_head_attention_forward.__code__,
    {key: value for key, value in vars(F).items() if key != "__name__"}
    | {
        "has_torch_function": lambda _: False,
        "_none_or_dtype": lambda x: None if x is None else x.dtype,
        "_check_key_padding_mask": lambda *_: None,
    },
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def heads(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Projections around attention: what ``torch.nn.MultiheadAttention`` runs."""
    return _heads_of_torch(*args, **kwargs)


# ---------------------------------------------------------------- everything else


def refuse(kind: type[MeanFlowError], seen: str, wanted: str, remedy: str) -> Any:
    """Raise, with the words in what Dynamo says: it traces no exception's ``__init__`` and would drop them."""
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg=f"{seen} Wanted: {wanted}. What to do: {remedy}")
    raise kind(seen, wanted, remedy)


def refused(func: Any, *args: Any, **kwargs: Any) -> Any:
    """A write, or a Python number."""
    return refuse(
        TangentError,
        "the network writes into, or takes a number from, a tensor that has a tangent, under torch.compile.",
        "operations that return new tensors",
        "write out of place, or run this network's loss without torch.compile",
    )


def random(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What draws numbers: its value and its derivative would draw apart."""
    return refuse(
        TangentError,
        f"the network uses {func.__name__}, under torch.compile, where its mask is not known.",
        "torch.nn.functional.dropout, dropout1d, dropout2d or dropout3d",
        "one of those, or run this network's loss without torch.compile",
    )


def random_in_training(func: Any, x: Any, *args: Any, training: bool = False, **kwargs: Any) -> Any:
    """The same, of an operation that is deterministic in evaluation."""
    if training or any(option is True for option in args):
        return random(func)
    return by_forward_mode(func, x, *args, **kwargs)


def by_its_input(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A loss, of whose other arguments forward mode would drop the tangent without a word."""
    if any(isinstance(part, Pair) for part in (*args, *kwargs.values())):
        return refuse(
            ForwardADError,
            f"the network uses {func.__name__} with a target or a weight that moves, under torch.compile.",
            "a target and a weight that are constants",
            "the loss written out, or run this network's loss without torch.compile",
        )
    return by_forward_mode(func, x, *args, **kwargs)


def from_library(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation of a library: by its registered rule alone. Forward mode knows none and would drop the tangent."""
    op = func.default if isinstance(func, torch._ops.OpOverloadPacket) else func
    rule = OF_OPERATIONS.get(op)
    if rule is None:
        return refuse(
            ForwardADError,
            f"the network uses {op}, which has no rule, under torch.compile.",
            "operations of torch, or with a registered rule",
            f'meanflow_ref.jvp.stopgrad.register_rule("{op}", rule) before compiling',
        )
    for x in (*args, *kwargs.values()):
        if type(x) in (tuple, list) and any(isinstance(part, Pair) for part in x):
            return refused(func)
    value = func(*value_of(args), **{key: value_of(x) for key, x in kwargs.items()})
    fixed, fixed_named = [still(x) for x in args], {key: still(x) for key, x in kwargs.items()}
    moving = [(at, x._paired_tangent) for at, x in zip(fixed, args, strict=False) if isinstance(x, Pair)]
    moving += [(fixed_named[key], x._paired_tangent) for key, x in kwargs.items() if isinstance(x, Pair)]

    def tangent_of(x: Any) -> Any:
        for at, along in moving:
            if at is x:
                return along
        return None

    with torch.no_grad():
        tangent = rule(tangent_of, op, value.detach(), *fixed, **fixed_named)
    return _if_floating(value, tangent)


def by_forward_mode(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation by ``torch.func.jvp``; its value is computed twice, which the compiler merges."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket) and not _of_torch(func):
        return from_library(func, *args, **kwargs)
    moving = [*_pairs_in(args), *_pairs_in(tuple(kwargs.values()))]
    if not moving:
        return refused(func)
    value = func(*value_of(args), **{key: value_of(x) for key, x in kwargs.items()})
    if not differentiable(value):
        return value  # places, answers

    fixed, fixed_named = _stilled(args), {key: _stilled(x) for key, x in kwargs.items()}

    def of_moving(*values: Tensor) -> Any:
        left = list(values)
        now = _filled(fixed, left)
        return func(*now, **{key: _filled(x, left) for key, x in fixed_named.items()})

    at, along = tuple(x._paired_value.detach() for x in moving), tuple(x._paired_tangent for x in moving)
    with torch.no_grad():
        tangents: Any = torch.func.jvp(of_moving, at, along)[1]
    if isinstance(value, Tensor):
        return _if_floating(value, tangents)
    # Of torch's own kind, as that of max() with its values and indices.
    return type(value)([_if_floating(a, b) for a, b in zip(value, tangents, strict=True)])


def _pairs_in(x: Any) -> list[Any]:
    """The pairs of an argument, of lists and tuples too, in order."""
    if isinstance(x, Pair):
        return [x]
    return [found for part in x for found in _pairs_in(part)] if type(x) in (tuple, list) else []


def _stilled(x: Any) -> Any:
    """The argument without its graph but in its pairs."""
    if isinstance(x, Pair):
        return x
    return type(x)([_stilled(part) for part in x]) if type(x) in (tuple, list) else still(x)


def _filled(x: Any, values: list[Tensor]) -> Any:
    """The argument with the first of ``values`` in place of each pair."""
    if isinstance(x, Pair):
        return values.pop(0)
    return type(x)([_filled(part, values) for part in x]) if type(x) in (tuple, list) else x


def _of_torch(func: Any) -> bool:
    return str(func).startswith(("aten.", "prims."))


def _if_floating(value: Any, tangent: Any) -> Any:
    return pair(value, tangent) if differentiable(value) else value


# ---------------------------------------------------------------- the table itself

# Where a function of torch.nn takes `inplace`: its modules give it by position.
_INPLACE_AT = {
    function: list(inspect.signature(function).parameters).index("inplace")
    for function in map(F.__dict__.get, dir(F))
    if isinstance(function, FunctionType) and "inplace" in inspect.signature(function).parameters
}


def _define(rule: Callable[..., Any], names: str) -> None:
    for name in names.split():
        for space in _SPACES:
            function = getattr(space, name, None)
            if function is not None:
                RULES[function] = rule


_CONSTANT = """size dim numel stride is_contiguous storage_offset is_floating_point is_complex element_size nelement
ndimension get_device __len__ eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ argmax argmin zeros_like
ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full new_tensor isnan isinf
isfinite long int short bool sign floor ceil round detach all any is_same_size"""
_LINEAR = """view reshape permute transpose swapaxes unsqueeze squeeze expand expand_as chunk split unbind flatten
unflatten contiguous to float half bfloat16 double type repeat repeat_interleave roll flip interpolate upsample
cpu cuda avg_pool2d adaptive_avg_pool2d avg_pool1d mean sum pixel_shuffle pixel_unshuffle fold unfold neg __neg__ clone
narrow select index_select movedim moveaxis view_as reshape_as t tensor_split diagonal tile rot90 cumsum triu tril
broadcast_to gather hsplit vsplit type_as"""
_NUMBERS = "item tolist numpy __float__ __int__ __setitem__"
# Functions that draw random numbers: always, or in what way is not known.
_RANDOM_NAMES = """native_dropout _fused_dropout fractional_max_pool2d fractional_max_pool3d
fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices gumbel_softmax bernoulli poisson multinomial
normal binomial svd_lowrank pca_lowrank lstm gru rnn_tanh rnn_relu"""
# Functions of the table's diagonal group, with the names of their options in the kernel's order.
_ELEMENTWISE = {
    "leaky_relu": ("negative_slope",), "softplus": ("beta", "threshold"), "elu": ("alpha",),
    "hardtanh": ("min_val", "max_val"),
    **dict.fromkeys(("silu", "gelu", "sigmoid", "tanh", "relu", "mish", "hardsigmoid", "hardswish", "exp", "exp2",
                     "expm1", "log", "log1p", "log2", "sin", "cos", "atan", "sqrt", "rsqrt", "reciprocal", "square",
                     "erf"), ()),
}  # fmt: skip

_define(constant, _CONSTANT)
_define(linear, _LINEAR)
_define(refused, _NUMBERS)
for _space in _SPACES:
    _define(refused, " ".join(n for n in dir(_space) if n.endswith("_") and not n.startswith("_")))
_define(padded, "pad")
_define(indexed, "__getitem__")
_define(joined, "cat concat concatenate stack hstack vstack")
_define(added(1), "add __add__ __radd__")
_define(added(-1), "sub subtract __sub__")
_define(multiplied, "mul multiply __mul__ __rmul__")
_define(divided, "div divide true_divide __truediv__ __div__")
_define(power, "pow")
_define(product, "matmul __matmul__ mm bmm")
_define(affine, "linear")
_define(convolved, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
_define(einsum, "einsum")
for _name, _options in _ELEMENTWISE.items():
    _define(symmetric(DIAGONAL[_name], _options, _name in REAL_ONLY), _name)
_define(softmax, "softmax")
_define(layer_norm, "layer_norm")
_define(group_norm, "group_norm")
_define(dropout, "dropout dropout1d dropout2d dropout3d feature_dropout")
_define(random, _RANDOM_NAMES)
_define(random_in_training, "alpha_dropout feature_alpha_dropout rrelu")
_define(viewed, "view")
_define(masked, "masked_fill")
_define(batch_norm, "batch_norm")
_define(by_its_input, "soft_margin_loss nll_loss cross_entropy binary_cross_entropy")
# Without a derivative: forward mode would say 0.
_define(refused, " ".join(n for n in dir(torch.special) if "bessel" in n or "airy" in n or "_polynomial_" in n))
_define(refused, "linear_cross_entropy")  # of which a part is an operation of a library
_define(heads, "multi_head_attention_forward")
_define(attention, "scaled_dot_product_attention")


def _method(name: str) -> Any:
    function = getattr(Tensor, name)

    def method(self: Pair, *args: Any, **kwargs: Any) -> Any:
        return by_table(function, self, *args, **kwargs)

    return method


def _through(function: Any, rule: Callable[..., Any]) -> Any:
    def method(self: Pair, *args: Any, **kwargs: Any) -> Any:
        return rule(function, self, *args, **kwargs)

    return method


_COMPARISONS = "__eq__ __ne__ __lt__ __le__ __gt__ __ge__"
_METHODS = f"""{_CONSTANT} {_LINEAR} add __add__ __radd__ sub __sub__ mul __mul__ __rmul__ div __truediv__ pow
matmul __matmul__ mm bmm softmax sigmoid tanh relu exp exp2 expm1 log log1p log2 sin cos sqrt rsqrt square
reciprocal abs erf __getitem__ var std norm clamp clamp_min clamp_max masked_fill log_softmax amax amin max min
logsumexp cumprod prod sinh cosh tan atan where lerp addcmul minimum maximum swapdims ravel"""
_WRITES = """__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ipow__ __float__ __int__ item tolist numpy add_
sub_ mul_ div_ copy_ fill_ zero_ clamp_ relu_ sigmoid_ tanh_ exp_ masked_fill_ index_put_ scatter_ scatter_add_
index_add_ index_copy_ t_ transpose_ squeeze_ unsqueeze_ addcmul_ addcdiv_ lerp_ pow_ sqrt_ neg_"""
# Methods that torch wrote in Python, around functions of the same name, which can be traced where those cannot.
for _name in ("unflatten", "split", "norm"):
    setattr(Pair, _name, _through(getattr(torch, _name), linear if _name != "norm" else by_forward_mode))
for _name, _plain_function, _rule in (
    ("__rsub__", lambda x, y: y - x, added_reversed),
    ("__rtruediv__", lambda x, y: y / x, divided_reversed),
    ("__rpow__", lambda x, y: y**x, by_forward_mode),
    ("__mod__", lambda x, y: x % y, by_forward_mode),
    ("__rmod__", lambda x, y: y % x, by_forward_mode),
    ("__floordiv__", lambda x, y: x // y, constant),
    ("__rfloordiv__", lambda x, y: y // x, constant),
    ("__abs__", torch.abs, by_forward_mode),
    ("__pos__", torch.positive, linear),
    ("__reversed__", lambda x: x.flip(0), linear),
    ("__pow__", torch.pow, power),
):
    setattr(Pair, _name, _through(_plain_function, _rule))
_ALSO_FUNCTIONS = [name for name in dir(Tensor) if callable(getattr(torch, name, None))]
for _name in (*_METHODS.split(), *_ALSO_FUNCTIONS):
    if callable(getattr(Tensor, _name, None)) and not hasattr(Pair, _name):
        setattr(Pair, _name, _method(_name))
for _name in _COMPARISONS.split():  # which every object has
    setattr(Pair, _name, _method(_name))
for _name in _WRITES.split():
    setattr(Pair, _name, Pair._refuse)
# What else a tensor has of Python's protocols: code may ask whether it is there, and is refused when it calls it.
for _name in dir(Tensor):
    if _name.startswith("__") and callable(getattr(Tensor, _name)) and not hasattr(Pair, _name):
        setattr(Pair, _name, Pair._refuse)
