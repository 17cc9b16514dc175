"""What a network is and draws, held still while a recording of it is compared with the dispatch form."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from meanflow_ref.jvp.stopgrad.products import SWITCH


class NotRecorded(Exception):
    """Why a network cannot be recorded."""


class State:
    """Random generators, and the tensors that a recording reads, as they are now.

    Args:
        owner: A network; the names of its buffers are put back too.
        inputs: What the recorded graph is given. Parameters are taken to stay as they are.

    """

    def __init__(self, owner: Any, inputs: Sequence[Tensor]) -> None:
        self.parameters = [x for x in inputs if isinstance(x, nn.Parameter)]
        self._tensors = [(x, x.detach().clone()) for x in inputs if not isinstance(x, nn.Parameter)]
        modules = owner.modules() if isinstance(owner, nn.Module) else ()
        self._buffers = [(weakref.ref(m), name, x) for m in modules for name, x in m._buffers.items()]
        self._devices = {x.device for x in inputs if x.device.type not in ("cpu", "meta")}
        self._generators = self.generators()

    def put_back(self) -> None:
        """Make generators and tensors again what they were."""
        self._write(self._generators)
        with torch.no_grad():
            for x, value in self._tensors:
                if not same_numbers(x, value):  # a write that is not needed would spoil graphs that saved the tensor
                    x.copy_(value)
        for reference, name, buffer in self._buffers:
            if (module := reference()) is not None:
                module._buffers[name] = buffer

    def generators(self) -> list[Tensor]:
        """States of the random generators now."""
        return [torch.get_rng_state(), *(getattr(torch, d.type).get_rng_state(d) for d in self._devices)]

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            getattr(torch, device.type).set_rng_state(state, device)


def same_numbers(x: Tensor, y: Tensor) -> bool:
    """Whether all numbers are equal; a nan is itself."""
    return torch.equal(x, y) or bool(((x == y) | (x != x) & (y != y)).all())  # noqa: PLR0124


def hooks_of_all_modules() -> list[tuple[int, ...]]:
    """Which hooks are registered for every module, by kind."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [tuple(getattr(nn.modules.module, f"_global{name}")) for name in names]


class Modes:
    """Autograd's, forward mode's and autocast's switches as they are now."""

    def __init__(self) -> None:
        self._grad, self._depth = torch.is_grad_enabled(), _autocast_depth()
        self._forward, self._level = torch._C._is_fwd_grad_enabled(), forward_ad._current_level
        self._autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]

    def put_back(self) -> None:
        """Make them again what they were."""
        torch.set_grad_enabled(self._grad)
        while torch._C._functorch.peek_interpreter_stack() is not None:  # there was none
            torch._C._functorch._jvp_decrement_nesting()
        if self._level < 0:
            _leave_dual_level()
        torch._C._set_fwd_grad_enabled(self._forward)
        for device, enabled, dtype in self._autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        for _ in range(_autocast_depth() - self._depth):
            torch.autocast_decrement_nesting()


def _leave_dual_level() -> None:
    """Forward mode has one level: where it cannot be entered, something left it open."""
    try:
        torch._C._exit_dual_level(level=torch._C._enter_dual_level())
    except RuntimeError:
        torch._C._exit_dual_level(level=0)


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@contextmanager
def zeros_replaced(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Context in which parameters that are all zero, as initialisations have them, hold small random numbers.

    A network whose last layer is zero has the value and the derivative 0, whatever is wrong with them.
    """
    zero = [p.data for p in parameters if p.is_floating_point() and not p.any() and 0 not in p.stride()]
    try:
        for x in zero:
            x.copy_(0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel())))
        yield
    finally:
        for x in zero:
            x.zero_()


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative distance of two tensors, 0 if both are 0."""
    wide = torch.promote_types(wanted.dtype, torch.float32)
    difference, size = (found.to(wide) - wanted.to(wide)).norm(), wanted.to(wide).norm()
    return float(difference / size) if bool(size > 0) else float(difference)


def tolerance(x: Tensor) -> float:
    """Distance that rounding may make: half the digits of the coarsest dtype that computes ``x``."""
    dtypes = [x.dtype] + ([SWITCH.dtype] if SWITCH.dtype is not None else [])
    if torch.is_autocast_enabled(x.device.type):
        dtypes.append(torch.get_autocast_dtype(x.device.type))
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5)
