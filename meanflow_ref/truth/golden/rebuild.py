"""The library's own fields and tensors of golden cases, batched by field and path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.fields import ClassConditional, GaussianMixture, Guided
from meanflow_ref.fields.base import AbstractDataField, AbstractField
from meanflow_ref.paths import LINEAR, AbstractPath, TrigonometricPath, VariancePreservingPath
from meanflow_ref.truth.golden.data import (
    BETA_MAX,
    BETA_MIN,
    FieldCase,
    FieldData,
    MixtureData,
    NetworkData,
    Output,
    nested,
)
from meanflow_ref.truth.golden.number import Number


def path_of(name: str) -> AbstractPath:
    """The path of a name in the files."""
    return {
        "linear": LINEAR,
        "trigonometric": TrigonometricPath(),
        "variance-preserving": VariancePreservingPath(BETA_MIN, BETA_MAX),
    }[name]


def field_of(data: FieldData, path: AbstractPath, dtype: torch.dtype = torch.float64) -> AbstractField:
    """The field of plain data, with parameters of a dtype."""
    if isinstance(data, MixtureData):
        return _mixture(data, path, dtype)
    classes: tuple[AbstractDataField, ...] = tuple(_mixture(one, path, dtype) for one in data.classes)
    law = ClassConditional(classes, torch.tensor(data.priors, dtype=dtype))
    return Guided(law, data.label, data.omega, data.kappa)


def _mixture(data: MixtureData, path: AbstractPath, dtype: torch.dtype) -> GaussianMixture:
    weights, means, stds = (
        torch.tensor(part, dtype=torch.float64).to(dtype) for part in (data.weights, data.means, data.stds)
    )
    return GaussianMixture(weights, means, stds, path)


@dataclass(frozen=True)
class Batch:
    """Cases of one field on one path, as tensors.

    Attributes:
        field: The library's field.
        cases: The cases, in the order of the rows.
        z: States, ``(B, d)``.
        r: End times, ``(B,)``.
        t: Times, ``(B,)``.

    """

    field: AbstractField
    cases: tuple[FieldCase, ...]
    z: Tensor
    r: Tensor
    t: Tensor

    def truth(self, name: str) -> Tensor:
        """The float64 nearest to an output, stacked over the cases."""
        return torch.tensor([nested(case.outputs[name]) for case in self.cases], dtype=torch.float64)

    def errors(self, name: str, values: Tensor) -> Tensor:
        """Largest error of each row in an output, ``(B,)``.

        The difference from the *decimal* midpoint is formed: in float64, as ``(value - f64) - (mid - f64)``, where
        both differences are exact or far below a rounding of the error.
        """
        truth = self.truth(name)
        rest = torch.tensor([_rest(case.outputs[name]) for case in self.cases], dtype=torch.float64)
        difference = (values.double().reshape(truth.shape) - truth) - rest
        return difference.abs().reshape(len(self.cases), -1).amax(1)

    @property
    def amplification(self) -> Tensor:
        """``1 + |J|`` of each row."""
        return torch.tensor([case.amplification for case in self.cases], dtype=torch.float64)


def batches(cases: Iterable[FieldCase], dtype: torch.dtype = torch.float64) -> Iterator[Batch]:
    """The cases batched, with inputs rounded to a dtype (take such whose flags say that nothing is lost)."""

    def key(case: FieldCase) -> tuple[str, str]:
        return case.name, case.path

    for (_, path), group in groupby(sorted(cases, key=key), key):
        members = tuple(group)
        z, r, t = (
            torch.tensor(values, dtype=torch.float64).to(dtype)
            for values in zip(*((case.z, case.r, case.t) for case in members), strict=True)
        )
        yield Batch(field_of(members[0].field, path_of(path), dtype), members, z, r, t)


class Perceptron(nn.Module):
    """The network of a loss case as a torch module ``net(z, r, t)`` or ``net(z, r, t, label)``."""

    def __init__(self, data: NetworkData, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        flat = (torch.tensor(part, dtype=torch.float64).to(dtype) for layer in data.layers for part in layer)
        self.weights = nn.ParameterList(flat)
        self.classes = data.classes

    def forward(self, z: Tensor, r: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Average velocity of states ``(B, d)``, times ``(B,)`` and labels ``(B,)``."""
        parts = [z, r[:, None], t[:, None]]
        if label is not None and self.classes:
            parts.append(nn.functional.one_hot(label, self.classes).to(z))
        h, layers = torch.cat(parts, 1), len(self.weights) // 2
        for n in range(layers):
            h = h @ self.weights[2 * n].mT + self.weights[2 * n + 1]
            h = torch.tanh(h) if n + 1 < layers else h
        return h


def _rest(value: Output) -> Any:
    """``mid - f64`` as a float, in nested lists."""
    if isinstance(value, Number):
        return float(value.middle - value.middle.from_float(value.float64))
    return [_rest(part) for part in value]
