r"""The stop-gradient JVP: ``u`` with its graph, ``du/dt`` without one, for one forward pass and one tangent pass.

A MeanFlow target is behind a stop-gradient, so that nothing of the tangent is needed by the backward pass. Forward mode
records a graph through the tangents all the same, and multiplies by a dense zero for every weight. Neither happens
here: the work is that of a forward, a tangent and a backward pass, 4/3 of a flow-matching step, and the memory is that
of the backward pass alone.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from meanflow_ref._typing import TensorFunction
from meanflow_ref.errors import TangentError
from meanflow_ref.jvp._blame import blame_stopgrad
from meanflow_ref.jvp._moving import moving_part
from meanflow_ref.jvp.double_backward import double_backward_jvp
from meanflow_ref.jvp.stopgrad.mode import LeavingTorch, StopGradMode
from meanflow_ref.jvp.stopgrad.tangents import Rows, Tangents

_ACTIVE = threading.local()


def stopgrad_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
) -> tuple[Tensor, Tensor]:
    """Value with its graph, and derivative without one. Source: mf:8.

    **du_dt is a constant to autograd.** Behind the stop-gradient of a MeanFlow target that changes nothing. An
    objective that differentiates through du_dt would miss a part of its gradient without a word: the backend for it is
    ``func`` or ``forward_ad``. :func:`require_graph` raises for it, and so does the du_dt of
    ``StopgradJvp(guard=True)`` once a gradient arrives.

    Any module or callable, unmodified: eager code runs under a dispatch mode, and ``torch.compile`` traces duck-typed
    pairs instead.

    Args:
        fn: A function of ``primals`` that returns one tensor.
        primals: Where to differentiate.
        tangents: Direction, each of its primal's shape and dtype, or ``None`` for zero, which costs nothing.

    Returns:
        ``u``, bit for bit that of ``fn(*primals)``, which carries the graph to the parameters that ``fn`` closes over
        and to the primals, and ``du_dt``, which carries none.

    Raises:
        ForwardADError: If an operation has neither a rule nor a forward-mode derivative.
        TangentError: If a tangent would be lost: a Python number taken from a moving tensor, an in-place write that
            cannot be followed, a kernel that torch does not see.
        NetworkError: If the network writes into its inputs.

    """
    of_moving, at, along = moving_part(fn, primals, tangents)
    if torch.compiler.is_dynamo_compiling():
        from meanflow_ref.jvp.stopgrad.compiled import pairs_jvp

        return pairs_jvp(fn, primals, tangents)
    if torch.is_inference_mode_enabled():
        # Under inference mode operations arrive undivided, and forward mode is silent.
        with torch.inference_mode(False), torch.no_grad():
            copies = tuple(x.clone() for x in primals)
            return stopgrad_jvp(fn, copies, tuple(None if d is None else d.clone() for d in tangents))
    if not at:
        u = of_moving()
        return u, torch.zeros_like(u)
    require_plain(at, along)
    still = [(f"{i}", primal) for i, (primal, d) in enumerate(zip(primals, tangents, strict=True)) if d is None]
    u, du_dt = _dispatched(of_moving, at, along, still)
    if du_dt is None:
        # Either u does not depend on the inputs, or it went where no operation is seen. Reverse mode knows which.
        _, du_dt = double_backward_jvp(fn, primals, tangents)
    return u, du_dt


def stopgrad_jvp_of_rows(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], moving: int, /
) -> tuple[Tensor, Tensor]:
    """As :func:`stopgrad_jvp`, in one call of ``fn``, with the derivative on the first ``moving`` rows alone.

    Args:
        fn: A function of ``primals`` that returns one tensor.
        primals: Where to differentiate, ``(B, ...)`` each.
        tangents: Direction; its rows from ``moving`` on count as zero.
        moving: Rows that move, ``0 < moving < B``.

    Returns:
        ``u`` and ``du_dt``. Where ``fn`` treats its rows one by one, ``du_dt`` is 0 from row ``moving`` on.

    Raises:
        MeanFlowError: As :func:`stopgrad_jvp`.

    """
    rows = Rows(moving, primals[0].shape[0])
    of_moving, at, along = moving_part(fn, primals, tangents)
    require_plain(at, along)
    still = [(f"{i}", primal) for i, (primal, d) in enumerate(zip(primals, tangents, strict=True)) if d is None]
    u, du_dt = _dispatched(of_moving, at, tuple(d[:moving] for d in along), still, rows)
    if du_dt is None:
        first = torch.arange(rows.batch, device=u.device) < moving
        cut = [None if d is None else d * first.reshape(-1, *[1] * (d.dim() - 1)) for d in tangents]
        _, du_dt = double_backward_jvp(fn, primals, tuple(cut))
    return u, du_dt


def seen_tangent(x: Tensor) -> Tensor | None:
    """Tangent of ``x`` as the network sees it inside :func:`stopgrad_jvp`, zeros where still; None outside."""
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg="seen_tangent under torch.compile")
    tangents = getattr(_ACTIVE, "tangents", None)
    if tangents is None:
        return None
    tangent: Tensor | None = tangents.get(x)
    return torch.zeros_like(x) if tangent is None else tangent


def require_graph(du_dt: Tensor) -> Tensor:
    """Return ``du_dt`` if an objective can differentiate through it.

    Raises:
        TangentError: If it carries no graph, as that of :func:`stopgrad_jvp`.

    """
    if not du_dt.requires_grad:
        raise TangentError(
            "du_dt is used in a graph, and carries none: it comes from a stop-gradient JVP.",
            "a derivative with a graph, where the objective has no stop-gradient around it",
            'jvp="func" or jvp="forward_ad", which record one',
        )
    return du_dt


def _dispatched(
    fn: Callable[..., Tensor],
    at: tuple[Tensor, ...],
    along: tuple[Tensor, ...],
    still: list[tuple[str, Tensor]],
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor | None]:
    # Copies, so that what the network closes over stays a constant even where it is the very tensor that moves here.
    copies = tuple(primal.clone() for primal in at)
    mode = StopGradMode(rows)
    _ACTIVE.inside, _ACTIVE.tangents = True, mode.tangents
    try:
        for i, (copy, tangent) in enumerate(zip(copies, along, strict=True)):
            mode.tangents.put(copy, tangent.detach(), None if rows is None else 0)
            mode.tangents.protect(copy, f"{i} of those that move")
        for name, primal in still:
            mode.tangents.protect(primal, f"primals[{name}]")
        with ExitStack() as stack:
            stack.enter_context(blame_stopgrad())
            stack.enter_context(_without_fast_path())
            if torch.is_grad_enabled() and not recorded():
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_saver(mode.tangents), _check_alias))
            stack.enter_context(mode)
            stack.enter_context(LeavingTorch(mode.tangents))
            u = fn(*copies)
            du_dt = mode.result(u)
    finally:
        mode.tangents.clear()
        _ACTIVE.inside, _ACTIVE.tangents = False, None
    if du_dt is not None and any(_share_memory(du_dt, tangent) for tangent in along):
        du_dt = du_dt.clone()
    return u, du_dt


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


# ---------------------------------------------------------------- what autograd keeps


def recorded() -> bool:
    """Whether ``make_fx`` records this call; it knows tensors, not aliases that are made behind its back."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return proxies is not None and proxies.get_proxy_mode() is not None


_Saved: TypeAlias = "tuple[Tensor, int, weakref.ref[Tensor] | None]"


def _saver(tangents: Tangents) -> Callable[[Tensor], _Saved]:
    """What autograd keeps in place of a tensor that moves: an alias, so that the tensor, and its tangent, can die."""
    entries = tangents.entries

    def save(x: Tensor) -> _Saved:
        if id(x) not in entries:
            return x, x._version, None
        with torch._C._DisableTorchDispatch():
            return x.detach(), x._version, weakref.ref(x)

    return save


def _check_alias(saved: _Saved) -> Tensor:
    """The alias, if nothing was written into it since. With hooks, autograd leaves this check to them.

    A network that differentiates inside (a force, a score) gets the tensor itself, whose tangent is known.
    """
    x, version, original = saved
    if x._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"a tensor of shape {tuple(x.shape)} is at version {x._version}; expected version {version} instead."
        )
    if original is None or not getattr(_ACTIVE, "inside", False):
        return x
    alive = original()
    return x if alive is None else alive


class _without_fast_path:
    """Context in which transformer layers of torch.nn run as separate operations and not as one without derivative."""

    def __enter__(self) -> None:
        self.before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self.before)


# ---------------------------------------------------------------- where it cannot run


def _is_dual(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def require_plain(at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> None:
    """Raise where transforms or forward mode around the call would hide tensors, or want more than du_dt has."""
    if getattr(_ACTIVE, "inside", False):
        raise TangentError(
            "stopgrad_jvp inside the network of another stopgrad_jvp: the outer one would need a derivative of du_dt, "
            "which carries none.",
            "one level",
            'jvp="func" for both, or for the inner one',
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise TangentError(
            "stopgrad_jvp inside a torch.func transform (grad, vmap, jvp), whose wrappers hide the tensors from it.",
            "loss.backward() or torch.autograd.grad around it",
            'jvp="func" inside torch.func transforms',
        )
    if forward_ad._current_level >= 0 and any(_is_dual(x) for x in (*at, *along)):
        raise TangentError("stopgrad_jvp inside a forward_ad.dual_level().", "no forward mode around it", 'jvp="func"')
