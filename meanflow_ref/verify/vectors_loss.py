"""The reference loss held against the golden loss targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.jvp import get_backend
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import meanflow_loss
from meanflow_ref.objectives.weighting import adaptive_weight, squared_norm
from meanflow_ref.truth.golden import LossCase, Oracle, flat
from meanflow_ref.truth.golden.data import Output
from meanflow_ref.truth.golden.rebuild import Perceptron, path_of
from meanflow_ref.verify.vectors import DTYPES, Held

BACKENDS = ("func", "forward_ad", "double_backward")
# Output -> its value, a tensor, or one for each parameter.
Values = dict[str, "Tensor | list[Tensor]"]
Evaluate = Callable[[LossCase, torch.dtype], Values]


def evaluate(case: LossCase, dtype: torch.dtype = torch.float64, jvp: str = "func") -> Values:
    """Everything that the reference loss hands back for one case, and the gradient in every parameter."""
    net = Perceptron(case.network, dtype)
    x, eps, r, t = (torch.tensor(value, dtype=torch.float64).to(dtype) for value in (case.x, case.eps, case.r, case.t))
    label = None if case.label is None else torch.tensor([case.label])
    guidance = None
    if case.guidance is not None:
        omega, kappa, null = case.guidance
        guidance = Guidance(omega, kappa, null_label=null)
    terms: Any = meanflow_loss(
        net,
        x[None],
        eps[None],
        r[None],
        t[None],
        label=label,
        path=path_of(case.path),
        guidance=guidance,
        weight_power=case.weight_power,
        weight_eps=case.weight_eps,
        norm=case.norm,
        jvp=jvp,
    )
    if case.objective == "meanflow":
        parts = {name: getattr(terms, name) for name in ("z", "v", "u", "du_dt", "target", "squared_error", "weight")}
        return _with_gradient({**parts, "tangent": terms.v}, terms.loss, terms.u, net)
    return _improved(case, net, terms, (r[None], t[None]), label, jvp)


def _improved(
    case: LossCase, net: Perceptron, terms: Any, times: tuple[Tensor, Tensor], label: Tensor | None, jvp: str
) -> Values:
    """Improved MeanFlow at the same state and velocity: the library's parts along the network's own tangent.

    Source: imf:velocity.
    """
    r, t = times
    with torch.no_grad():
        tangent = net(terms.z, t, t, label)

    def u_at(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        output: Tensor = net(z, r, t, label)
        return output

    u, du_dt = get_backend(jvp)(u_at, (terms.z, r, t), (tangent, None, torch.ones_like(t)))
    wide = torch.promote_types(u.dtype, torch.float32)
    h = (r.to(wide)[:, None], t.to(wide)[:, None])
    target = formulas.meanflow_target(terms.v.to(wide), du_dt.detach().to(wide), *h)
    squared_error = squared_norm(u.to(wide) - target, case.norm)
    weight = adaptive_weight(squared_error, case.weight_power, case.weight_eps)
    parts = {"z": terms.z, "v": terms.v, "tangent": tangent, "u": u, "du_dt": du_dt, "target": target}
    loss = (weight * squared_error).mean()
    return _with_gradient({**parts, "squared_error": squared_error, "weight": weight}, loss, u, net)


def _with_gradient(parts: dict[str, Tensor], loss: Tensor, u: Tensor, net: Perceptron) -> Values:
    gradients = torch.autograd.grad(loss, [u, *net.parameters()])
    found: Values = {name: value.detach() for name, value in parts.items()}
    return {**found, "loss": loss.detach(), "dloss_du": gradients[0], "gradient": list(gradients[1:])}


def error(output: Output, value: Tensor | list[Tensor]) -> float:
    """Largest distance from the midpoints over ``max(1, |output|)``; infinite for NaN."""
    tensors = value if isinstance(value, list) else [value]
    found = [x for tensor in tensors for x in tensor.double().flatten().tolist()]
    numbers = list(flat(output))
    if not all(map(math.isfinite, found)):
        return float("inf")
    size = max(1.0, *(abs(number.float64) for number in numbers))
    return max(number.error(x) for number, x in zip(numbers, found, strict=True)) / size


def held_loss(cases: Iterable[LossCase], label: str, precision: str = "float64", jvp: str = "func") -> list[Held]:
    """Errors of the reference loss by quantity."""
    dtype, worst, count = DTYPES[precision], dict[str, tuple[float, str]](), 0
    for case in cases:
        count += 1
        values = evaluate(case, dtype, jvp)
        for name, output in case.outputs.items():
            size = error(output, values[name]) / torch.finfo(dtype).eps
            if size >= worst.get(name, (-1.0, ""))[0]:
                worst[name] = size, case.id
    return [Held(f"{label}: {name}", precision, count, *found) for name, found in worst.items()]


def loss_table(oracle: Oracle, every: int = 1) -> list[Held]:
    """The loss in each precision and by each backend against every n-th case."""
    cases = oracle.losses[::every]
    lines = held_loss(cases, "loss")
    for backend in BACKENDS[1:]:
        lines += [line for line in held_loss(cases, f"loss by {backend}", jvp=backend) if "gradient" in line.what]
    for dtype in ("float32", "bfloat16"):
        lines += held_loss([case for case in cases if f"{dtype.upper()}_INPUTS" in case.flags], "loss", dtype)
    return lines
