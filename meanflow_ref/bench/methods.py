"""What is compared: one training step per way of getting du/dt, all through the shipped loss.

To measure another way, add its row to :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from meanflow_ref import formulas
from meanflow_ref._typing import TensorFunction
from meanflow_ref.bench.scenarios import Batch
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp._moving import moving_part
from meanflow_ref.jvp.finite_difference import FiniteDifference
from meanflow_ref.jvp.stopgrad import StopgradJvp
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss
from meanflow_ref.paths import LINEAR

# The loss with its graph, and du/dt where there is one: on all rows, or on those with r != t.
Evaluation: TypeAlias = Callable[[], tuple[Tensor, Tensor | None]]

# The yardstick (a flow-matching step) and the baseline (what one writes without forward mode).
YARDSTICK = "flow_matching"
BASELINE = "double_backward"
_COMPILED = "_compiled"


@dataclass(frozen=True)
class Method:
    """A way to take a training step.

    Attributes:
        name: What tables call it.
        about: One line on how du/dt comes about.
        options: Keyword arguments of :func:`meanflow_ref.meanflow_loss`; None for flow matching.
        exact: Whether du/dt is exact to rounding.
        compiled: Whether the loss runs under ``torch.compile(fullgraph=True)``.

    """

    name: str
    about: str
    options: Mapping[str, Any] | None = field(default_factory=dict)
    exact: bool = True
    compiled: bool = False

    @property
    def yardstick(self) -> str:
        """The step it is compared with: a compiled one with the compiled flow-matching step."""
        return YARDSTICK + _COMPILED * self.compiled

    @property
    def on_rows(self) -> bool:
        """Whether du/dt is computed on the rows with r != t alone."""
        return self.options is not None and self.options.get("rows") == "moving"

    @property
    def traced(self) -> bool:
        """Whether the network is recorded once and replayed."""
        backend = (self.options or {}).get("jvp")
        return backend is not None and getattr(get_backend(backend), "traced", False)

    def evaluate(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Loss of a batch, with its graph, and du/dt; eager."""
        if self.options is None:
            return flow_matching_loss(net, batch), None
        terms = self._terms(net, batch)
        return terms.loss, terms.du_dt

    def derivative(self, net: nn.Module, batch: Batch) -> Tensor:
        """The method's du/dt on a batch; eager."""
        return self._terms(net, batch).du_dt

    def _terms(self, net: nn.Module, batch: Batch) -> MeanFlowTerms:
        return meanflow_loss(net, *batch, weight_power=0.0, **{"rows": "all", **(self.options or {})})

    def marked(self, mark: Callable[[], None]) -> Method:
        """The same method, which calls ``mark`` when u and du/dt are there and their graphs still are."""
        if self.options is None:
            return self
        if self.on_rows:
            return replace(self, options={**self.options, "jvp": _MarkingRows(mark, self.traced)})
        backend = get_backend(self.options.get("jvp", "stopgrad"))

        def marking(fn: TensorFunction, primals: Any, tangents: Any, /) -> tuple[Tensor, Tensor]:
            pair = backend(fn, primals, tangents)
            mark()
            return pair

        return replace(self, options={**self.options, "jvp": marking})

    def prepare(self, net: nn.Module, batch: Batch) -> Evaluation:
        """What a step evaluates; of a compiled method, the first call compiles."""
        if not self.compiled:
            return lambda: self.evaluate(net, batch)
        if not self.on_rows:
            compiled = _compile(lambda *tensors: self.evaluate(net, Batch(*tensors)))
            return lambda: compiled(*batch)
        # A graph cannot depend on which rows move, but on how many: they are told apart before it, as a trainer does
        # that draws a fixed share of rows with r = t.
        moving = batch.r != batch.t
        parts = [x[moving] for x in batch] + [x[~moving] for x in batch]
        in_parts = replace(self, options={**(self.options or {}), "rows": "all"})
        compiled = _compile(lambda *tensors: _evaluate_parts(in_parts, net, Batch(*tensors[:4]), Batch(*tensors[4:])))
        return lambda: compiled(*parts)

    def step(self, net: nn.Module, batch: Batch) -> Callable[[], Tensor]:
        """A training step without its optimiser: loss and gradients, from scratch at every call."""
        return step_of(net, self.prepare(net, batch))


class _MarkingRows(StopgradJvp):
    """The stop-gradient JVP of some rows, which tells when it is done."""

    def __init__(self, mark: Callable[[], None], traced: bool) -> None:
        super().__init__(traced=traced)
        object.__setattr__(self, "mark", mark)

    def _with_options(self, jvp: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        pair = super()._with_options(jvp)
        self.mark()  # type: ignore[attr-defined]
        return pair


def step_of(net: nn.Module, evaluation: Evaluation) -> Callable[[], Tensor]:
    """The training step around an evaluation of the loss."""

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = evaluation()[0]
        torch.autograd.backward(loss)
        return loss.detach()

    return step


def flow_matching_loss(net: nn.Module, batch: Batch) -> Tensor:
    """Flow-matching loss of the same network, ``E |u(z, t, t) - v_t|^2``: one forward and one backward pass.

    Source: fm:path, fm:conditional-velocity.
    """
    x, eps, _, t = batch
    t_ = t.reshape(-1, *[1] * (x.dim() - 1))
    z = formulas.interpolant(x, eps, LINEAR.alpha(t_), LINEAR.sigma(t_)).to(x.dtype)
    v = formulas.conditional_velocity(x, eps, LINEAR.alpha_dot(t_), LINEAR.sigma_dot(t_)).to(x.dtype)
    per_sample: Tensor = (net(z, t, t) - v).square().flatten(1).sum(-1)
    return per_sample.mean()


def functional_jvp(
    fn: TensorFunction, primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...], /
) -> tuple[Tensor, Tensor]:
    """``torch.autograd.functional.jvp`` as one writes it: two reverse passes, and a graph through all of it."""
    of_moving, at, along = moving_part(fn, primals, tangents)
    u, du_dt = torch.autograd.functional.jvp(of_moving, at, along, create_graph=True)  # type: ignore[no-untyped-call]
    return u, du_dt


def _evaluate_parts(method: Method, net: nn.Module, moving: Batch, still: Batch) -> tuple[Tensor, Tensor | None]:
    """Loss of a batch in two parts. Where r = t the target is v, and the loss that of flow matching."""
    if not len(still.x):
        return method.evaluate(net, moving)
    loss, du_dt = method.evaluate(net, moving)
    m, s = len(moving.x), len(still.x)
    return (m * loss + s * flow_matching_loss(net, still)) / (m + s), du_dt


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # torch.compile keeps its graphs by code object. With one of its own a method does not look through the others'
    # graphs at every call, nor count towards their limit.
    assert isinstance(function, FunctionType)
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__)
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(YARDSTICK, "no du/dt at all: the yardstick", None),
        Method(BASELINE, "two vector-Jacobian products: the baseline", {"jvp": "double_backward"}),
        Method("stopgrad", "stop-gradient JVP, below autograd: no graph, no zero products", {"jvp": "stopgrad"}),
        Method(
            "stopgrad_rows",
            "the same on the rows with r != t alone, in one call of the network",
            {"jvp": "stopgrad", "rows": "moving"},
        ),
        Method(
            "stopgrad_traced",
            "the stop-gradient JVP recorded once by Dynamo and replayed by the same kernels, without a compiler",
            {"jvp": "stopgrad_traced"},
        ),
        Method(
            "stopgrad_traced_rows",
            "the same on the rows with r != t alone, in one replay",
            {"jvp": "stopgrad_traced", "rows": "moving"},
        ),
        Method(
            "stopgrad_bf16",
            "the stop-gradient JVP, its matrix products and convolutions of tangents in bfloat16",
            {"jvp": "stopgrad_bf16"},
            exact=False,
        ),
        Method("func", "torch.func.jvp, the graph recorded through it", {"jvp": "func"}),
        Method("functional_jvp", "torch.autograd.functional.jvp, create_graph=True", {"jvp": functional_jvp}),
        Method("forward_ad", "dual tensors of torch.autograd.forward_ad", {"jvp": "forward_ad"}),
        Method("two_pass", "torch.func.jvp without a graph, then a forward pass", {"jvp": "func", "two_pass": True}),
        Method(
            "finite_difference",
            "central difference of the network's values",
            {"jvp": "finite_difference"},
            exact=False,
        ),
        Method(
            "one_sided_difference",
            "one-sided difference: four units of work, the least there is",
            {"jvp": FiniteDifference(order=1)},
            exact=False,
        ),
    )
}

# The same losses under torch.compile(fullgraph=True), to be compared with the compiled flow-matching step.
COMPILED: dict[str, Method] = {
    twin.name + _COMPILED: replace(
        twin, name=twin.name + _COMPILED, about=f"`{twin.name}` under torch.compile(fullgraph=True)", compiled=True
    )
    for twin in (METHODS[name] for name in (YARDSTICK, "stopgrad", "stopgrad_rows", "func"))
}
