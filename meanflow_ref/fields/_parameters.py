"""Checks of a field's parameters, at construction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meanflow_ref._validate import require_same_kind
from meanflow_ref.errors import DtypeError, ParameterError, ShapeError
from meanflow_ref.paths import AbstractPath

# Weights may miss 1 by this much (float32 weights do) and are then normalised.
WEIGHT_TOLERANCE = 1e-6


def as_parameter(value: Any, name: str) -> Tensor:
    """``value`` as a finite floating-point tensor; Python numbers and lists become float64."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=_dtype_of(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(
            f"parameter `{name}` is {type(value).__name__}: {error}.", "a tensor, or numbers that make one", ""
        ) from None
    if not tensor.is_floating_point():
        raise DtypeError(
            f"parameter `{name}` has dtype {tensor.dtype}.", "a floating-point dtype", f"{name}.to(torch.float64)"
        )
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ParameterError(f"parameter `{name}` has {bad} NaN or infinite entries.", "finite values", "")
    return tensor.detach()


def _dtype_of(value: Any) -> torch.dtype | None:
    """``None`` for numpy arrays, which carry their own dtype."""
    return None if hasattr(value, "dtype") else torch.float64


def set_parameters(field: Any, **values: Any) -> None:
    """Store parameters on a frozen dataclass, and require that they share dtype and device; check its path."""
    if not isinstance(getattr(type(field), "path", None), property):  # otherwise it is that of the fields inside
        require_path(field.path)
    first: tuple[str, Tensor] | None = None
    for name, value in values.items():
        tensor = as_parameter(value, name)
        if first is None:
            first = (name, tensor)
        require_same_kind(first[1], tensor, first[0], name)
        object.__setattr__(field, name, tensor)


def set_derived(field: object, **values: object) -> None:
    """Store quantities that follow from the parameters on a frozen dataclass."""
    for name, value in values.items():
        object.__setattr__(field, name, value)


def require_shape(tensor: Tensor, shapes: Sequence[tuple[int | str, ...]], name: str) -> None:
    """Raise unless ``tensor`` has one of ``shapes``, whose letters stand for any size."""
    for shape in shapes:
        if tensor.dim() == len(shape) and all(
            isinstance(n, str) or n == m for n, m in zip(shape, tensor.shape, strict=True)
        ):
            return
    wanted = " or ".join("(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")" for shape in shapes)
    raise ShapeError(f"parameter `{name}` has shape {tuple(tensor.shape)}.", wanted, "")


def require_weights(weights: Tensor, name: str = "weights") -> None:
    """Raise unless ``weights`` are non-negative, not empty, and sum to 1."""
    if weights.numel() == 0:
        raise ParameterError(f"`{name}` is empty.", "at least one weight", "")
    if bool((weights < 0).any()):
        raise ParameterError(f"`{name}` has the negative entry {float(weights.min()):g}.", "weights >= 0", "")
    total = float(weights.double().sum())
    if abs(total - 1) > WEIGHT_TOLERANCE:
        raise ParameterError(f"`{name}` sum to {total:.9g}.", "a sum of 1", f"{name} / {name}.sum()")


def require_positive(tensor: Tensor, name: str) -> None:
    """Raise unless every entry is positive."""
    if bool((tensor <= 0).any()):
        raise ParameterError(f"`{name}` has the entry {float(tensor.min()):g}.", f"{name} > 0", "")


def require_path(path: object) -> None:
    """Raise unless ``path`` is a path."""
    if not isinstance(path, AbstractPath):
        raise ParameterError(f"path={path!r}.", "a path of meanflow_ref.paths", "path=meanflow_ref.LinearPath()")


def require_fields(items: Sequence[object], kind: type, name: str) -> None:
    """Raise unless every item is a field of ``kind``, and there is one at least."""
    if not items:
        raise ParameterError(f"`{name}` is empty.", "at least one field", "")
    for i, item in enumerate(items):
        if not isinstance(item, kind):
            raise ParameterError(f"`{name}[{i}]` is {type(item).__name__}.", f"fields ({kind.__name__})", "")


def require_one_path(paths: Sequence[AbstractPath], owner: str) -> None:
    """Raise unless all ``paths`` are equal."""
    for path in paths[1:]:
        if path != paths[0]:
            raise ParameterError(
                f"{owner} was given fields on the paths {paths[0]!r} and {path!r}.",
                "one path",
                "Transferred(field, path) carries a field over to another path",
            )


def log_weights(weights: Tensor) -> Tensor:
    """Logarithms of the normalised weights, in float64; minus infinity for a zero weight."""
    weights = weights.double()
    return torch.log(weights / weights.sum())


def draw_labels(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw ``n`` indices with the given weights."""
    if n == 0:  # multinomial refuses what is a class without a sample
        return torch.zeros(0, dtype=torch.int64, device=weights.device)
    return torch.multinomial(weights, n, replacement=True, generator=generator)
