r"""The opaque network: any differentiable function of a row, to all engines of differentiation and to second order.

:math:`u(z, r, t, y; \theta)` is an operation without a body. Differentiating it, by whatever engine, meets further
operations without a body: with :math:`p = (z, r, t, \theta)`,

.. math:: \mathtt{du} = D u[\dot p], \quad \mathtt{vu} = D u^\top[g], \quad
          \mathtt{d2} = D^2 u[a, b], \quad \mathtt{d2v} = D^2 u[a]^\top[g],

and these five are closed under differentiation once, forwards and backwards. A third derivative is refused. One
parameter is no restriction: a loss that sees the parameters through the network alone treats every coordinate line
of a larger network alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.errors import NetworkError
from meanflow_ref.jvp.stopgrad import register_rule
from meanflow_ref.kit.prove.errors import MissingAttributeError, NotExactError

NAMESPACE = "meanflow_ref_prove"
# The point p = (z, r, t, theta), with the label y carried along.
Point: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _define(name: str, arguments: str, returns: str, fake: Any) -> Any:
    torch.library.define(f"{NAMESPACE}::{name}", f"({arguments}) -> {returns}")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    return getattr(getattr(torch.ops, NAMESPACE), name)


def _like_state(z: Tensor, *rest: Tensor) -> Tensor:
    return torch.empty(z.shape, dtype=z.dtype, device=z.device)


def _like_point(z: Tensor, r: Tensor, t: Tensor, y: Tensor, theta: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (z, r, t, theta))


_POINT = "Tensor z, Tensor r, Tensor t, Tensor y, Tensor theta"
_FIRST = "Tensor az, Tensor ar, Tensor at, Tensor atheta"
_SECOND = "Tensor bz, Tensor br, Tensor bt, Tensor btheta"
_STATES = "(Tensor, Tensor, Tensor, Tensor)"
u_op = _define("u", _POINT, "Tensor", _like_state)
du_op = _define("du", f"{_POINT}, {_FIRST}", "Tensor", _like_state)
vu_op = _define("vu", f"{_POINT}, Tensor g", _STATES, _like_point)
d2_op = _define("d2", f"{_POINT}, {_FIRST}, {_SECOND}", "Tensor", _like_state)
d2v_op = _define("d2v", f"{_POINT}, {_FIRST}, Tensor g", _STATES, _like_point)


def _filled(tangents: tuple[Any, ...], primals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tangents or cotangents, zeros for those that are ``None``."""
    return tuple(torch.zeros_like(x) if d is None else d for d, x in zip(tangents, primals, strict=True))


def _moving(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """``(z, r, t, theta)`` of ``(z, r, t, y, theta)``."""
    return (*values[:3], values[4])


def _unmoved(products: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inverse, with ``None`` for the label, which is not differentiated."""
    return (*products[:3], None, products[3])


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """``function.apply``, which torch leaves untyped."""
    apply: Any = function.apply
    return apply(*inputs)


class _Jet(torch.autograd.Function):
    """What the five operations share: which operation it is, and that all inputs are saved."""

    operation: ClassVar[Any]

    @classmethod
    def forward(cls, *inputs: Any) -> Any:
        """The operation itself."""
        return cls.operation(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save all inputs for both modes."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class U(_Jet):
    """``u(p)``."""

    operation = u_op

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """``Du(p)[dp]``."""
        point = ctx.saved_tensors
        return _apply(DU, *point, *_filled(_moving(tangents), _moving(point)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """``Du(p)^T[g]``."""
        return _unmoved(_apply(VU, *ctx.saved_tensors, *cotangents))


class DU(_Jet):
    """``Du(p)[a]``."""

    operation = du_op

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """``D^2u(p)[a, dp] + Du(p)[da]``."""
        point, a = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        along = _filled(_moving(tangents[:5]), _moving(point))
        return _apply(D2, *point, *a, *along) + _apply(DU, *point, *_filled(tangents[5:], a))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """``D^2u(p)[a]^T[g]`` for p and ``Du(p)^T[g]`` for a."""
        point, a = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        return (*_unmoved(_apply(D2V, *point, *a, *cotangents)), *_apply(VU, *point, *cotangents))


class VU(_Jet):
    """``Du(p)^T[g]``."""

    operation = vu_op

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """``D^2u(p)[dp]^T[g] + Du(p)^T[dg]``."""
        point, g = ctx.saved_tensors[:5], ctx.saved_tensors[5]
        along = _filled(_moving(tangents[:5]), _moving(point))
        (dg,) = _filled(tangents[5:], (g,))
        moved = _apply(D2V, *point, *along, g)
        return tuple(x + y for x, y in zip(moved, _apply(VU, *point, dg), strict=True))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """``D^2u(p)[c]^T[g]`` for p and ``Du(p)[c]`` for g."""
        point, g = ctx.saved_tensors[:5], ctx.saved_tensors[5]
        c = _filled(cotangents, _moving(point))
        return (*_unmoved(_apply(D2V, *point, *c, g)), _apply(DU, *point, *c))


class _LastJet(_Jet):
    """A second derivative, which is not differentiated again."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refused."""
        raise NotExactError("a third derivative of the network")

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Refused."""
        raise NotExactError("a third derivative of the network")


class D2(_LastJet):
    """``D^2u(p)[a, b]``."""

    operation = d2_op


class D2V(_LastJet):
    """``D^2u(p)[a]^T[g]``."""

    operation = d2v_op


@partial(register_rule, u_op.default)
def _tangent_of_u(d: Any, op: Any, out: Tensor, z: Tensor, r: Tensor, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """``Du(p)[dp]`` for the stop-gradient JVP, which meets the operation and not the function around it."""
    point = (z, r, t, theta)
    du: Tensor = du_op(z, r, t, y, theta, *_filled(tuple(d(x) for x in point), point))
    return du


class OpaqueNetwork(nn.Module):
    """A network of the given convention about which nothing is known but that it is differentiable and row-wise."""

    def __init__(self, convention: Convention, dtype: torch.dtype) -> None:
        super().__init__()
        self.convention = convention
        self.theta = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.calls = 0
        self._express = convention.express(self._average_velocity)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output in its own convention."""
        self.calls += 1
        return self._express(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise MissingAttributeError(
                f"the loss asks the network for `.{name}`, which an arbitrary network does not have.",
                "a loss that uses its network by calling it",
                f"bind what the loss needs: lambda model, *a: loss(wrapped(model), *a), where wrapped has `{name}`",
            ) from None

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The first parameter alone, which code asks for its device; the others of an arbitrary network are unknown."""
        yield from super().named_parameters(*args, **kwargs)
        raise NotExactError("the loss goes through its network's parameters, of which an arbitrary network has others")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, likewise."""
        raise NotExactError("the loss asks for its network's state_dict, which is another in an arbitrary network")

    def _average_velocity(self, z: Tensor, r: Any, t: Any, y: Any = None) -> Tensor:
        # Times keep their shape: a view of a dual tensor without data fails in some layouts.
        rows = z.shape[0]
        label = torch.zeros(rows, 0) if y is None else _per_row(y, rows, "y", self.theta)
        u: Tensor = _apply(
            U, z, _per_row(r, rows, "r", self.theta), _per_row(t, rows, "t", self.theta), label, self.theta
        )
        return u


def _per_row(value: Any, rows: int, name: str, like: Tensor) -> Tensor:
    """A time or label for each row, from one for each or one for all."""
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype)
    if tensor.numel() == 1 and rows != 1:
        tensor = tensor.reshape(1).expand(rows)
    if tensor.dim() == 0 or tensor.shape[0] != rows or (name != "y" and tensor.numel() != rows):
        raise NetworkError(
            f"the network was called with `{name}` of shape {tuple(tensor.shape)} beside {rows} states.",
            "one for each state",
            'say how the network is called, for example call="z, t, h"',
        )
    return tensor
