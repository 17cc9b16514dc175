"""Deterministic costs of one training step: floating-point operations, peak memory, kernels, passes of the network.

Wall clocks differ between machines and runs; these do not, so tests may hold them to a number.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Step = Callable[[], object]


@dataclass(frozen=True)
class Counts:
    """What one run of a step costs, as far as it can be counted.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention.
        peak_bytes: Largest sum of tensor memory alive at once, of that made inside the step.
        kernels: Operations that computed something; views and metadata are free. None where a compiler fused them.
        kept_bytes: Memory kept for the backward pass; None if not asked for.

    """

    flops: int
    peak_bytes: int
    kernels: int | None
    kept_bytes: int | None = None


@dataclass(frozen=True)
class Cost(Counts):
    """The counts of an eager step, which has kernels."""

    kernels: int


@dataclass(frozen=True)
class Passes:
    """Times a whole batch went through the network; fractions where a step sends a part of it.

    Attributes:
        primal: Forward evaluations.
        tangent: Jacobian-vector products, by forward mode or by differentiating a backward pass.
        backward: Vector-Jacobian products.

    """

    primal: float
    tangent: float
    backward: float

    def __str__(self) -> str:
        return f"{self.primal:g} + {self.tangent:g} + {self.backward:g}"


def count_cost(step: Step) -> Cost:
    """Cost of one run of ``step``, which is run once before to warm up."""
    step()
    with _Watcher() as watcher:
        step()
    return Cost(watcher.flops, watcher.peak, watcher.kernels)


def count_kept(evaluation_with: Callable[[Callable[[], None]], Callable[[], object]]) -> int:
    """Most bytes alive between forward and backward pass, of those made in the forward pass.

    What is alive then is kept by the graph for the backward pass. It is told by what is alive, and not by
    ``saved_tensors_hooks``, which do not see what a method saves by hooks of its own.

    Args:
        evaluation_with: Given a mark, the evaluation of a loss, which calls the mark where ``u`` and ``du/dt`` are
            there with all their graphs. The other moment that counts is the end, with the loss alive.

    """
    marks: list[int] = []
    watcher = _Watcher()
    evaluation = evaluation_with(lambda: marks.append(watcher.live))
    with watcher:
        result = evaluation()
        marks.append(watcher.live)
    del result
    return max(marks)


def count_flops_compiled(step: Step) -> int:
    """FLOPs of one run of a compiled ``step`` that has run before.

    Products, convolutions and attention are called by compiled code through the dispatcher and are seen; what the
    compiler fused is elementwise and has none.
    """
    with _Watcher() as watcher:
        step()
    flops: int = watcher.flops
    return flops


class _Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and follows every storage made inside the block from birth to death.

    FLOPs by the registry of ``torch.utils.flop_counter``. Its ``FlopCounterMode`` gives the same numbers, but the
    module tracker it starts cannot bear ``torch.autograd.grad`` with respect to a network's input (torch 2.13), which
    is what a double backward does.

    The mode sits below autograd and functorch, where ``torch.autograd.graph.saved_tensors_hooks`` and memory trackers
    that hang on modules do not see what a JVP allocates. Scratch memory inside a kernel is not seen, nor is anything
    of an allocator's rounding.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.kernels = self.flops = 0
        self._known: set[int] = set()

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Under any other mode what was recorded or compiled before would run eagerly, or refuse to."""
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code is watched from outside."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            # Parameters and data were there before the step, and cost it nothing.
            self._register(tensor.untyped_storage(), 0)
        out = func(*args, **kwargs)
        fresh = [s for s in map(Tensor.untyped_storage, _tensors(out)) if self._register(s, s.nbytes())]
        if (formula := _formula(func)) is not None:
            self.flops += int(formula(*args, **kwargs, out_val=out))
        # An operation computes if it fills new memory or writes into old; a view does neither.
        self.kernels += bool(fresh) or bool(func._schema.is_mutable)
        return out

    def _register(self, storage: torch.UntypedStorage, size: int) -> bool:
        """Count ``size`` bytes if the storage is seen for the first time, and say whether it is."""
        key = int(storage._cdata)
        if key in self._known:
            return False
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        # An address is free for another storage once this one is gone.
        weakref.finalize(storage, self._release, key, size)
        return True

    def _release(self, key: int, size: int) -> None:
        self.live -= size
        self._known.discard(key)


@cache
def _formula(func: Any) -> Callable[..., Any] | None:
    """FLOPs of an operation; of one that writes its result (``baddbmm_``) as of one that returns it."""
    packet = func._overloadpacket
    if packet not in flop_registry and func._schema.is_mutable:
        packet = getattr(torch.ops.aten, func._schema.name.split("::")[1].removesuffix("_"), packet)
    return flop_registry.get(packet)


def _tensors(tree: Any) -> list[Tensor]:
    """Tensors with memory in a nest of arguments; a zero tensor of forward AD has none."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf._is_zerotensor()]


# ---------------------------------------------------------------- passes of the network


class _Tally:
    """Rows that went through the tap, by direction."""

    def __init__(self) -> None:
        self.primal = self.tangent = self.backward = 0


class _TapGradient(torch.autograd.Function):
    """Identity on a cotangent; its own derivative is a tangent computed by differentiating a backward pass."""

    @staticmethod
    def forward(cotangent: Tensor, tally: _Tally) -> Tensor:
        tally.backward += cotangent.shape[0]
        return cotangent.view_as(cotangent)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tally = inputs[1]

    @staticmethod
    def backward(ctx: Any, *tangents: Any) -> Any:
        ctx.tally.tangent += tangents[0].shape[0]
        return tangents[0], None


class _Tap(torch.autograd.Function):
    """Identity on a network's output that counts the rows passing in each direction."""

    @staticmethod
    def forward(u: Tensor, tally: _Tally) -> Tensor:
        tally.primal += u.shape[0]
        return u.view_as(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.tally = inputs[1]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        ctx.tally.tangent += tangents[0].shape[0]
        return tangents[0].view_as(tangents[0])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return _TapGradient.apply(cotangents[0], ctx.tally), None  # type: ignore[no-untyped-call]


class _Tapped(nn.Module):
    """A network with the tap at its output."""

    def __init__(self, net: nn.Module, tally: _Tally) -> None:
        super().__init__()
        self.net, self.tally = net, tally

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        tapped: Tensor = _Tap.apply(self.net(*args, **kwargs), self.tally)  # type: ignore[no-untyped-call]
        return tapped


def count_passes(step_of: Callable[[nn.Module], Step], net: nn.Module, batch: int) -> Passes:
    """Passes of ``net`` in one run of the step that ``step_of`` builds on it.

    The tap is an ``autograd.Function`` at the network's output: its forward is a primal pass, its forward derivative
    or the derivative of its backward a tangent pass, its backward a backward pass. What a backend computes outside
    autograd passes unseen.

    Args:
        step_of: Builds a step on a network; given ``net`` with the tap.
        net: The network.
        batch: Rows that make one pass.

    """
    tally = _Tally()
    step_of(_Tapped(net, tally))()
    return Passes(tally.primal / batch, tally.tangent / batch, tally.backward / batch)
