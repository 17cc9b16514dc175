"""Exact fields by name, and any other by ``pkg.mod:name``."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

import torch

from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import AbstractDataField, Gaussian, GaussianMixture, Shell, UniformBoxes
from meanflow_ref.train.config import Config

_F64 = torch.float64


def ring(modes: int, radius: float, std: float) -> GaussianMixture:
    """Equal normal laws, evenly spaced on a circle; float64."""
    angles = 2 * math.pi * torch.arange(modes, dtype=_F64) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)
    weights = torch.full((modes,), 1 / modes, dtype=_F64)
    return GaussianMixture(weights, means, torch.full((modes,), std, dtype=_F64))


def checkerboard() -> UniformBoxes:
    """The eight black unit squares of a board over [-2, 2]^2."""
    corners = [(i - 2.0, j - 2.0) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    lower = torch.tensor(corners, dtype=_F64)
    return UniformBoxes(lower, lower + 1, torch.full((8,), 1 / 8, dtype=_F64))


def line() -> GaussianMixture:
    """Three unequal normal laws on the line, where u is closed and Wasserstein-2 is exact."""
    rows = ([0.5, 0.3, 0.2], [-1.5, 0.4, 2.0], [0.25, 0.3, 0.2])
    weights, means, stds = (torch.tensor(row, dtype=_F64) for row in rows)
    return GaussianMixture(weights, means, stds)


def gaussian() -> Gaussian:
    """A correlated normal law in the plane: closed u everywhere."""
    mean, covariance = torch.tensor([1.0, -0.5], dtype=_F64), torch.tensor([[0.5, 0.2], [0.2, 0.25]], dtype=_F64)
    return Gaussian(mean, covariance)


def shell() -> Shell:
    """The unit sphere in three dimensions, times two."""
    return Shell(2.0, 3)


FIELDS: dict[str, Callable[[Config], AbstractDataField]] = {
    "ring": lambda c: ring(c.modes, c.radius, c.std),
    "checkerboard": lambda c: checkerboard(),
    "line": lambda c: line(),
    "gaussian": lambda c: gaussian(),
    "shell": lambda c: shell(),
}


def named_field(config: Config) -> AbstractDataField:
    """The field that ``--data`` names: one of :data:`FIELDS`, or a field (or a function that returns one) elsewhere."""
    if config.data in FIELDS:
        return FIELDS[config.data](config)
    module, _, name = config.data.partition(":")
    try:
        field = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ParameterError(f"--data {config.data}: {error}.", "pkg.mod:name of a field", "") from error
    field = field if isinstance(field, AbstractDataField) or not callable(field) else field()
    if not isinstance(field, AbstractDataField):
        raise ParameterError(
            f"--data {config.data} is {type(field).__name__}.", "a data field of meanflow_ref.fields", ""
        )
    return field.to(dtype=_F64)
