r"""The library's own evaluators held against the golden vectors, in units of the last place times ``1 + |J|``.

The unit of a row is ``eps (1 + |J|) max(1, |z|, |value|)``: eps of the precision used, J the flow map's Jacobian
(an error made on the way arrives multiplied by it), and sizes in the maximum norm. For the loss it is ``eps max(1,
|value|)``, since a network's output is no flow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.fields import Gaussian, GaussianMixture
from meanflow_ref.fields.base import AbstractDataField
from meanflow_ref.fields.compose import Product
from meanflow_ref.truth import average_velocity, average_velocity_ode
from meanflow_ref.truth.golden import FieldCase, MixtureData, Oracle
from meanflow_ref.truth.golden.rebuild import Batch, batches

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
# Tolerance of the ODE route, near the least that float64 resolves.
TOLERANCE = 1e-13
_DERIVED = ("du_dt", "dr_u", "dz_u", "jacobian")


@dataclass(frozen=True)
class Held:
    """One line of the table.

    Attributes:
        what: The evaluator and the quantity.
        precision: A key of :data:`DTYPES`.
        count: Cases held.
        worst: Largest error, in the units above.
        id: The case that has it.

    """

    what: str
    precision: str
    count: int
    worst: float
    id: str


Answers = Callable[[Batch], dict[str, Tensor]]


def held(answers: Answers, cases: Iterable[FieldCase], label: str, precision: str = "float64") -> list[Held]:
    """Errors of an evaluator by quantity."""
    worst: dict[str, tuple[float, str]] = {}
    counts: dict[str, int] = {}
    dtype = DTYPES[precision]
    for batch in batches(cases, dtype):
        for name, values in answers(batch).items():
            errors = batch.errors(name, values) / units(batch, name, dtype)
            row = int(errors.argmax())
            counts[name] = counts.get(name, 0) + len(batch.cases)
            # NaN is the worst of all.
            size = float("inf") if bool(errors.isnan().any()) else float(errors[row])
            if size >= worst.get(name, (-1.0, ""))[0]:
                worst[name] = size, batch.cases[row].id
    return [Held(f"{label}: {name}", precision, counts[name], *found) for name, found in worst.items()]


def units(batch: Batch, name: str, dtype: torch.dtype) -> Tensor:
    """The unit of each row, ``(B,)``."""
    value = batch.truth(name).abs().reshape(len(batch.cases), -1).amax(1)
    size = torch.maximum(value, batch.z.double().abs().amax(1)).clamp(min=1)
    return torch.finfo(dtype).eps * batch.amplification * size


# ---------------------------------------------------------------- evaluators


def closed_field(batch: Batch) -> AbstractDataField:
    """The field in a form whose flow is closed: a normal law, one dimension, or the product that it is."""
    data = batch.cases[0].field
    assert isinstance(data, MixtureData)
    path, dtype = batch.field.path, batch.z.dtype
    if len(data.weights) == 1:
        variances = torch.tensor(data.stds[0], dtype=torch.float64) ** 2
        mean = torch.tensor(data.means[0], dtype=torch.float64)
        return Gaussian(mean.to(dtype), torch.diag(variances).to(dtype), path)
    if data.dim > 1:
        half = torch.tensor([0.5, 0.5], dtype=dtype)
        places = torch.tensor([-1.0, 1.0], dtype=dtype)
        return Product(tuple(GaussianMixture(half, places, std * torch.ones(2).to(half), path) for std in data.stds[0]))
    assert isinstance(batch.field, AbstractDataField)
    return batch.field


def has_closed_flow(case: FieldCase) -> bool:
    """Whether :func:`closed_field` knows the field."""
    data = case.field
    return isinstance(data, MixtureData) and (data.dim == 1 or len(data.weights) == 1 or case.name == "plane-square")


def quadrature_settles(case: FieldCase) -> bool:
    """Whether quadrature is tried: in one dimension, and not a hundred deviations out, where it may refuse."""
    return len(case.z) == 1 and "FAR_TAIL" not in case.flags


def velocity(batch: Batch) -> dict[str, Tensor]:
    """The instantaneous velocity."""
    return {"v": batch.field.velocity(batch.z, batch.t)}


def closed(batch: Batch) -> dict[str, Tensor]:
    """The closed form and its derivatives by reverse mode."""
    field = closed_field(batch)
    truth = average_velocity(field, batch.z, batch.r, batch.t, method="closed", derivatives=True)
    end = field.flow_map(batch.z, batch.t, batch.r)
    log_det = field.log_det_jacobian(batch.z, batch.r, batch.t)
    derived = {name: getattr(truth, name) for name in _DERIVED}
    return {"u": truth.value, "end": end, "log_det_jacobian": log_det, **derived}


def closed_value(batch: Batch) -> dict[str, Tensor]:
    """The closed form in the batch's own precision."""
    return {"u": closed_field(batch).average_velocity(batch.z, batch.r, batch.t)}


def quadrature(batch: Batch) -> dict[str, Tensor]:
    """Quadrature of v along the closed flow."""
    return {"u": average_velocity(closed_field(batch), batch.z, batch.r, batch.t, method="quadrature").value}


def ode(batch: Batch) -> dict[str, Tensor]:
    """The u-space ODE by torchdiffeq."""
    return {"u": average_velocity(batch.field, batch.z, batch.r, batch.t, method="ode", tol=TOLERANCE).value}


def ode_derivatives(batch: Batch) -> dict[str, Tensor]:
    """The variational equation beside it."""
    truth = average_velocity(batch.field, batch.z, batch.r, batch.t, method="ode", tol=TOLERANCE, derivatives=True)
    return {name: getattr(truth, name) for name in _DERIVED}


def ode_in_dtype(batch: Batch) -> dict[str, Tensor]:
    """The u-space ODE with a velocity that is called in the batch's precision."""
    return {"u": average_velocity_ode(batch.field.velocity, batch.z, batch.r, batch.t).value}


def field_table(oracle: Oracle, every: int = 1) -> list[Held]:
    """All evaluators of fields against every n-th case that each can take."""
    cases = oracle.fields[::every]
    closed_cases = [case for case in cases if has_closed_flow(case)]
    lines = held(velocity, cases, "velocity")
    lines += held(closed, closed_cases, "closed form")
    lines += held(quadrature, [case for case in closed_cases if quadrature_settles(case)], "quadrature")
    lines += held(ode, cases, "torchdiffeq") + held(ode_derivatives, cases, "torchdiffeq")
    lines += held(velocity, flagged(cases, "float32"), "velocity", "float32")
    lines += held(closed_value, flagged(closed_cases, "float32"), "closed form", "float32")
    lines += held(ode_in_dtype, flagged(cases, "float32"), "torchdiffeq", "float32")
    lines += held(velocity, flagged(cases, "bfloat16"), "velocity", "bfloat16")
    return lines + held(closed_value, flagged(closed_cases, "bfloat16"), "closed form", "bfloat16")


def flagged(cases: Sequence[FieldCase], dtype: str) -> list[FieldCase]:
    """The cases whose numbers a precision holds exactly."""
    return [case for case in cases if f"{dtype.upper()}_INPUTS" in case.flags]
