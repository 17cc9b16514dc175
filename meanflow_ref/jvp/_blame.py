"""Who could not be differentiated: torch's errors translated into one that names the module and the operation.

The traceback of the failed call holds every ``nn.Module`` that was running, so the network need not run again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import nn

from meanflow_ref.errors import ForwardADError, NetworkError, SecondDerivativeError, TangentError

# Each pattern's group, where it has one, is the operation.
_FORWARD_AD = (
    re.compile(r"Trying to use forward AD with (\S+) that does not support it"),
    re.compile(r"attempted to call in-place operation \((\S+)\) that would mutate a captured Tensor"),
    re.compile(r"You must implement the jvp function for custom autograd\.Function"),
    re.compile(r"must override the setup_context staticmethod"),
)
_DOUBLE_BACKWARD = (
    re.compile(r"derivative for '?([^\s']+)'? is not implemented"),
    re.compile(r"marked with @once_differentiable"),
)


@contextmanager
def blame_forward_ad() -> Iterator[None]:
    """Context that turns torch's complaints about forward mode into :class:`ForwardADError`."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        match = _first_match(_FORWARD_AD, error)
        if match is None:
            raise
        op, where = _culprit(match, error.__traceback__)
        raise ForwardADError(
            f"{where} uses {op}, which has no forward-mode derivative.",
            "operations that torch.func.jvp can go through",
            _way_out(op),
        ) from error


@contextmanager
def blame_double_backward() -> Iterator[None]:
    """Context that turns torch's complaints about a second derivative into :class:`SecondDerivativeError`."""
    try:
        yield
    except RuntimeError as error:
        match = _first_match(_DOUBLE_BACKWARD, error)
        if match is None:
            raise
        op = match.group(1) if match.groups() else "a once-differentiable autograd.Function"
        raise SecondDerivativeError(
            f"the backward pass of the network uses {op}, which has no derivative.",
            "operations that can be differentiated twice",
            _way_out(op, 'jvp="func"'),
        ) from error


@contextmanager
def blame_stopgrad() -> Iterator[None]:
    """Context that adds the module's path to what the stop-gradient JVP complains about."""
    try:
        yield
    except (ForwardADError, TangentError, NetworkError) as error:
        where = _where(error.__traceback__)[0]
        if where == "the network" or where in error.seen:
            raise
        raise type(error)(f"in {where}: {error.seen}", error.wanted, error.remedy) from error
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        raise TangentError(
            f"{_where(error.__traceback__)[0]} differentiates by a torch.func transform inside, under which a "
            "stop-gradient JVP cannot keep what autograd saves.",
            "torch.autograd.grad inside the network, or the transform under torch.no_grad()",
            'one of those, or jvp="func"',
        ) from error


def _first_match(patterns: tuple[re.Pattern[str], ...], error: Exception) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.search(str(error)))), None)


def _culprit(match: re.Match[str], traceback: TracebackType | None) -> tuple[str, str]:
    """The operation and the module path, from the frames between the call and the failure."""
    where, function = _where(traceback)
    op = match.group(1) if match.groups() else f"the autograd.Function `{function.__name__ if function else '?'}`"
    return op, where


def _where(traceback: TracebackType | None) -> tuple[str, type | None]:
    """The innermost module that was running, and the innermost autograd.Function."""
    modules: list[nn.Module] = []
    function: type | None = None
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        owner, cls = values.get("self"), values.get("cls")
        if isinstance(owner, nn.Module) and (not modules or modules[-1] is not owner):
            modules.append(owner)
        if isinstance(cls, type) and issubclass(cls, torch.autograd.Function):
            function = cls
        traceback = traceback.tb_next
    if not modules:
        return "the network", function
    root, inner = modules[0], modules[-1]
    kind = type(inner).__name__
    if inner is root:
        return f"the network itself ({kind})", function
    path = next((name for name, module in root.named_modules() if module is inner), "")
    return f"module `{path}` ({kind})" if path else f"a module ({kind})", function


def _way_out(op: str, other: str = 'jvp="double_backward"') -> str:
    if "attention" in op:
        return (
            "with torch.nn.attention.sdpa_kernel(SDPBackend.MATH): around the loss (N^2 memory), attention written out "
            'as softmax(q k^T) v, or jvp="finite_difference"'
        )
    if "Checkpoint" in op:
        return "checkpoint(..., use_reentrant=False) and two_pass=True, whose forward pass with a graph has no tangent"
    if "autograd.Function" in op:
        return f'give it a `jvp` staticmethod (and `setup_context`), {other}, or jvp="finite_difference"'
    if op.endswith("_.Tensor"):
        return 'it writes in place on a buffer, as BatchNorm in training does: .eval(), GroupNorm, or jvp="forward_ad"'
    return f'replace the operation, {other}, or jvp="finite_difference"'
