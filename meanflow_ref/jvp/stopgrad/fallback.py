"""The derivative of one operation by PyTorch's own forward mode, for operations without a rule."""

from __future__ import annotations

import threading

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from meanflow_ref.errors import ForwardADError, TangentError
from meanflow_ref.jvp.stopgrad.table import Op, TangentOf

# The level of forward mode is one for the whole process.
_ONE_LEVEL = threading.Lock()
# Below autograd these keys are switched off for the thread; forward mode lives in them.
_AUTOGRAD_KEYS = (
    "AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView", "ZeroTensor", "Conjugate",
    "Negative",
)  # fmt: skip


def forward_mode(d: TangentOf, op: Op, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Tangents of ``op(*args, **kwargs)``, in the structure of its result; the operation is run once more.

    Raises:
        ForwardADError: If PyTorch has no forward-mode derivative for it either.
        TangentError: If it draws random numbers, which would not be those of the first run.

    """
    if torch.Tag.nondeterministic_seeded in op.tags:
        raise TangentError(
            f"{op} draws random numbers from a tensor that has a tangent, and has no rule.",
            "random numbers that do not depend on the state or the time",
            _register(op),
        )

    if "as_strided" in op.name() and not all(x.is_contiguous() for x in args if isinstance(x, Tensor)):
        raise ForwardADError(
            f"the network uses {op} of a tensor that is not contiguous; tangents are laid out otherwise.",
            "a contiguous tensor",
            "x.contiguous(), or indexing",
        )

    def dual(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        tangent = d(x)
        return x if tangent is None else _dual(x, tangent)

    def tangent_of(y: object) -> Tensor | None:
        if not (isinstance(y, Tensor) and (y.is_floating_point() or y.is_complex())):
            return None
        tangent: Tensor | None = forward_ad.unpack_dual(y).tangent  # type: ignore[no-untyped-call]
        return None if tangent is None else _plain(tangent.detach())

    keep_out = torch._C._dispatch_tls_local_exclude_set()
    for name in _AUTOGRAD_KEYS:
        if hasattr(torch._C.DispatchKey, name):
            keep_out = keep_out.remove(getattr(torch._C.DispatchKey, name))
    try:
        with (
            _ONE_LEVEL,
            torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), keep_out),
            torch.no_grad(),
            # Inside the forward of an autograd.Function torch switches forward mode off, and would drop the tangents.
            forward_ad._set_fwd_grad_enabled(True),
            forward_ad.dual_level(),
        ):
            out = op(*pytree.tree_map(dual, args), **pytree.tree_map(dual, kwargs))
            tangents = pytree.tree_map(tangent_of, out)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ForwardADError(
            f"the network uses {op}, which has no rule, and PyTorch's forward mode fails on it: {reason}",
            "operations with a rule or a forward-mode derivative",
            _register(op),
        ) from error

    if all(x is None for x in pytree.tree_leaves(tangents)):
        # PyTorch drops tangents without a word: at an operation of a library that registered no derivative, in an
        # argument that it has no formula for (the target of a loss), at what inference mode leaves undivided.
        inference = torch.is_inference_mode_enabled()
        raise ForwardADError(
            f"the network uses {op}{' under torch.inference_mode' * inference}, which has no rule, and no forward-mode "
            "derivative for what moves.",
            "operations with a rule or a forward-mode derivative",
            "torch.no_grad in place of torch.inference_mode" if inference else _register(op),
        )
    return tangents


def _dual(x: Tensor, tangent: Tensor) -> Tensor:
    # make_dual would write the tangent into memory laid out as x's, which an expanded x has too little of.
    dual: Tensor = forward_ad.make_dual(x.detach().contiguous(), tangent.contiguous())  # type: ignore[no-untyped-call]
    return dual


def _plain(tangent: Tensor) -> Tensor:
    """The tangent in memory of its own: forward mode may return a lazy zero or a view of what it was given."""
    if tangent._is_zerotensor():
        return torch.zeros(tangent.shape, dtype=tangent.dtype, device=tangent.device)
    return tangent.resolve_conj().resolve_neg().clone()


def _register(op: Op) -> str:
    return (
        f'give it one: meanflow_ref.jvp.stopgrad.register_rule("{op}", rule), or replace the operation, or take '
        'jvp="double_backward" or jvp="finite_difference"'
    )
