"""The part of a function's arguments that has a tangent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from meanflow_ref._typing import TensorFunction
from meanflow_ref._validate import require_output
from meanflow_ref.errors import DtypeError, ShapeError


def moving_part(
    fn: TensorFunction, primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[TensorFunction, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """``fn`` as a function of the arguments that have a tangent, with those arguments and their tangents.

    A zero tangent is thereby never materialised. Tangents are held to their primals' shape and dtype because
    forward mode accepts a float64 tangent of a float32 primal without a word, and returns float64.

    Raises:
        ShapeError: If there are not as many tangents as primals, or a tangent's shape is not its primal's.
        DtypeError: If a tangent's dtype or device is not its primal's, or one of them is no tensor.

    """
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, tuple | list):
            raise DtypeError(f"{name} is {type(given).__name__}.", "a tuple of tensors", f"({name},) for a single one")
    if len(primals) != len(tangents):
        raise ShapeError(f"{len(primals)} primals, {len(tangents)} tangents.", "one tangent (or None) for each primal")
    for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True)):
        if not isinstance(primal, Tensor) or not (tangent is None or isinstance(tangent, Tensor)):
            raise DtypeError(
                f"primal {i} is {type(primal).__name__}, its tangent {type(tangent).__name__}.",
                "tensors, and None for a tangent that is zero",
                "torch.as_tensor(...), torch.ones_like(primal), or a lambda that holds what is no tensor",
            )
        if tangent is not None and not (primal.is_floating_point() or primal.is_complex()):
            raise DtypeError(
                f"primal {i} is {primal.dtype} and has a tangent.",
                "a floating-point primal where there is a tangent",
                "None for the tangent, or primal.to(torch.float32)",
            )
        if tangent is not None and tangent.shape != primal.shape:
            raise ShapeError(
                f"tangent {i} has shape {tuple(tangent.shape)}, its primal has {tuple(primal.shape)}.", "equal shapes"
            )
        if tangent is not None and (tangent.dtype != primal.dtype or tangent.device != primal.device):
            raise DtypeError(
                f"tangent {i} is {tangent.dtype} on {tangent.device}, its primal is {primal.dtype} on {primal.device}.",
                "one dtype and one device",
                "tangent.to(primal)",
            )
    moving = tuple(i for i, tangent in enumerate(tangents) if tangent is not None)

    def of_moving(*values: Tensor) -> Tensor:
        arguments = list(primals)
        for i, value in zip(moving, values, strict=True):
            arguments[i] = value
        return require_output(fn(*arguments))

    directions = tuple(tangent for tangent in tangents if tangent is not None)
    return of_moving, tuple(primals[i] for i in moving), directions
