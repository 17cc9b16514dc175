"""One seeded run of somebody's loss on a probe: the loss's value, the calls, and dL/du in each of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.convention.grammar import CallSpec
from meanflow_ref.errors import NetworkError, NonFiniteError, ParameterError
from meanflow_ref.kit.calling import blame, require_device, seeded
from meanflow_ref.kit.loss.probe import Call, Probe, Setting

ROWS = 24
# Tried in order where no shape is given; no extent equals ROWS, so that times of a wrong shape do not broadcast.
EVENTS: tuple[tuple[int, ...], ...] = ((2, 3, 5), (20,), (4, 5))


@dataclass(frozen=True)
class Target:
    """A loss and how it is run."""

    loss: Callable[..., Any]
    spec: CallSpec
    outputs: tuple[str, ...]
    returns_tuple: bool
    event: tuple[int, ...]
    labels: bool
    dtype: torch.dtype
    attributes: Mapping[str, Any]
    seed: int

    def data(self, kind: int = 0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        """A batch of data and labels, fixed by ``kind``."""
        generator = torch.Generator().manual_seed(1000 + kind)
        x = torch.randn(rows, *self.event, generator=generator, dtype=torch.float64) * 0.7
        return x.to(self.dtype), torch.arange(rows) * 7 % 10


@dataclass(frozen=True)
class Run:
    """What one run showed."""

    value: Tensor
    calls: list[Call]
    probe: Probe
    per_sample: bool

    @property
    def mains(self) -> list[int]:
        """Calls that the loss has a gradient to."""
        return [k for k, call in enumerate(self.calls) if call.grad is not None and bool(call.grad.abs().sum() > 0)]


def run(target: Target, setting: Setting | None = None, *, x: Tensor | None = None, seed: int = 0) -> Run:
    """Run the loss once.

    Raises:
        NetworkError: If the network is not called, or not as ``call`` says.
        NonFiniteError: If the loss is not finite.
        ParameterError: If the loss raises, or returns nothing that can be differentiated.

    """
    data, labels = target.data()
    x = data if x is None else x
    probe = Probe(
        target.spec, target.outputs, target.returns_tuple, target.event, 4 * len(x), setting or Setting(),
        target.attributes,
    )  # fmt: skip
    arguments = (x.clone(), labels[: len(x)].clone()) if target.labels else (x.clone(),)
    with seeded(target.seed * 7919 + seed), _double(target.dtype):
        raw = call_loss(target.loss, probe, arguments)
    loss = scalar_of(raw)
    require_device(loss)
    value = loss.double().mean()
    if not probe.calls:
        raise NetworkError(
            "the loss never calls the network that it is given.",
            "a loss(model, x) that trains `model`",
            "pass a function that takes the network as its first argument",
        )
    if not bool(torch.isfinite(value)):
        raise NonFiniteError(
            f"the loss is {float(value.detach())} on ordinary data.", "a finite loss", "look for 1/t or 1/(t-r)"
        )
    if value.requires_grad:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value.backward()  # type: ignore[no-untyped-call]
    for call, leaf, head in zip(probe.calls, probe.pool, probe.heads, strict=False):
        call.grad = None if leaf.grad is None else leaf.grad[: call.rows].clone()
        call.head_grad = None if head.grad is None else head.grad[: call.rows].clone()
    return Run(value.detach(), probe.calls, probe, loss.dim() > 0)


@contextmanager
def _double(dtype: torch.dtype) -> Iterator[None]:
    """Context in which new tensors have the checked dtype, compiled code runs eagerly and warnings are let pass."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(before)


def call_loss(loss: Callable[..., Any], probe: Probe, arguments: tuple[Tensor, ...]) -> Any:
    """Call the loss; its exceptions become one clear error."""
    with blame("the loss"):
        return loss(probe, *arguments)


def scalar_of(raw: Any) -> Tensor:
    """The loss in whatever was returned: a tensor, the first of a tuple, a dict's ``loss``, an attribute ``loss``."""
    if isinstance(raw, Tensor):
        return raw
    if isinstance(raw, Mapping):
        for name in ("loss", "total_loss", "total"):
            if isinstance(raw.get(name), Tensor):
                return raw[name]  # type: ignore[no-any-return]
        tensors = [value for value in raw.values() if isinstance(value, Tensor) and value.requires_grad]
    elif isinstance(getattr(raw, "loss", None), Tensor):
        return raw.loss  # type: ignore[no-any-return]
    else:
        items = raw if isinstance(raw, tuple | list) else ()
        tensors = [value for value in items if isinstance(value, Tensor) and value.is_floating_point()]
    if tensors:
        return tensors[0]
    raise ParameterError(
        f"the loss returned {type(raw).__name__}.", "a tensor, a tuple that starts with it, or a dict with `loss`", ""
    )


def wants_labels(loss: Callable[..., Any]) -> bool:
    """Whether a loss has a third argument without a default, which is taken for the labels."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    ]
    named = [p for p in parameters if p.name in {"y", "label", "labels", "c", "cond", "class_labels"}]
    return len(required) > 2 or bool(named and named[0] in list(parameters)[2:3])
