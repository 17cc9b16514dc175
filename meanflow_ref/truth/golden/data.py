"""What a case is made of, as plain numbers: nothing here needs more than the standard library."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from meanflow_ref.truth.golden.number import Number

Rows: TypeAlias = tuple[tuple[float, ...], ...]
# A number, or nested tuples of numbers: a scalar, a vector, a matrix.
Output: TypeAlias = "Number | tuple[Output, ...]"

# Names of paths: with the linear path alpha = 1 - t, sigma = t; the others as in meanflow_ref.paths.
PATHS = ("linear", "trigonometric", "variance-preserving")
BETA_MIN, BETA_MAX = 0.1, 20.0


@dataclass(frozen=True)
class MixtureData:
    """A normal mixture with diagonal covariances: K weights of sum 1, K means and standard deviations of d numbers."""

    weights: tuple[float, ...]
    means: Rows
    stds: Rows

    @property
    def dim(self) -> int:
        """Dimension d."""
        return len(self.means[0])

    def numbers(self) -> Iterator[float]:
        """Every parameter."""
        yield from self.weights
        for row in (*self.means, *self.stds):
            yield from row


@dataclass(frozen=True)
class GuidedData:
    """Classes with priors of sum 1, and guidance of one of them with scale ``omega/(1 - kappa)``."""

    classes: tuple[MixtureData, ...]
    priors: tuple[float, ...]
    label: int
    omega: float
    kappa: float

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.classes[0].dim

    def numbers(self) -> Iterator[float]:
        """Every parameter."""
        yield from (*self.priors, self.omega, self.kappa)
        for mixture in self.classes:
            yield from mixture.numbers()


FieldData: TypeAlias = MixtureData | GuidedData


@dataclass(frozen=True)
class NetworkData:
    """A tanh perceptron: layers (W, b) from input [z; r; t; onehot(label)] to output, tanh between them."""

    layers: tuple[tuple[Rows, tuple[float, ...]], ...]
    classes: int

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return len(self.layers[-1][1])

    def numbers(self) -> Iterator[float]:
        """Every parameter."""
        for weight, bias in self.layers:
            for row in weight:
                yield from row
            yield from bias


@dataclass(frozen=True)
class FieldCase:
    """An average velocity and what belongs to it, at one state.

    Attributes:
        id: Given by the writer, never used twice.
        name: Name of the field in its file.
        field: The field.
        path: Name of the conditional path.
        z: State at t.
        r: End time.
        t: Time of the state.
        flags: Keys of the file's table of flags.
        note: What mistake this case catches.
        outputs: ``v``, ``u``, ``du_dt``, ``dr_u``, ``end`` (the state at r), ``v_end``, ``log_det_jacobian``,
            ``dz_u`` and ``jacobian`` (of the flow map).

    """

    id: str
    name: str
    field: FieldData
    path: str
    z: tuple[float, ...]
    r: float
    t: float
    flags: tuple[str, ...]
    note: str
    outputs: Mapping[str, Output] = dataclasses.field(default_factory=dict)

    def inputs(self) -> Iterator[float]:
        """Every number that an implementation is given."""
        yield from (*self.z, self.r, self.t)
        yield from self.field.numbers()

    def floats(self, name: str) -> Any:
        """The float64 nearest to an output: a number, or nested lists of numbers."""
        return nested(self.outputs[name])

    @property
    def amplification(self) -> float:
        """``1 + |J|``, J the flow map's Jacobian in the maximum norm: how far an error on the way is carried."""
        rows = self.outputs["jacobian"]
        assert isinstance(rows, tuple)
        return 1 + max(sum(abs(number.float64) for number in flat(row)) for row in rows)


@dataclass(frozen=True)
class LossCase:
    """One sample's loss, its parts and its gradient.

    Attributes:
        id: Given by the writer, never used twice.
        name: Name of the network in its file.
        network: The network.
        objective: ``"meanflow"`` or ``"improved"``.
        path: Name of the conditional path.
        x: Data.
        eps: Noise.
        r: Start of the interval.
        t: Time of the state.
        label: Label, or None for a network without classes.
        guidance: ``(omega, kappa, null_label)``, or None.
        weight_power: Power p of the adaptive weight.
        weight_eps: Constant c of the adaptive weight.
        norm: ``"sum"`` or ``"mean"`` over the coordinates.
        flags: Keys of the file's table of flags.
        note: What mistake this case catches.
        outputs: ``z``, ``v``, ``tangent``, ``u``, ``du_dt``, ``target``, ``squared_error``, ``weight``, ``loss``,
            ``dloss_du``, and ``gradient``: a pair (W, b) for each layer.

    """

    id: str
    name: str
    network: NetworkData
    objective: str
    path: str
    x: tuple[float, ...]
    eps: tuple[float, ...]
    r: float
    t: float
    label: int | None
    guidance: tuple[float, float, int] | None
    weight_power: float
    weight_eps: float
    norm: str
    flags: tuple[str, ...]
    note: str
    outputs: Mapping[str, Output] = dataclasses.field(default_factory=dict)

    def inputs(self) -> Iterator[float]:
        """Every number that an implementation is given in its own precision; the scalar options stay float64."""
        yield from (*self.x, *self.eps, self.r, self.t)
        yield from self.network.numbers()

    def floats(self, name: str) -> Any:
        """The float64 nearest to an output: a number, or nested lists of numbers."""
        return nested(self.outputs[name])


Case: TypeAlias = FieldCase | LossCase


def flat(output: Output) -> Iterator[Number]:
    """Every number of an output, in row-major order."""
    if isinstance(output, Number):
        yield output
    else:
        for part in output:
            yield from flat(part)


def nested(value: Output) -> Any:
    """Nearest float64 numbers, in nested lists: a scalar, a vector, a matrix."""
    return value.float64 if isinstance(value, Number) else [nested(part) for part in value]


def fits(value: float, dtype: str) -> bool:
    """Whether a float64 is exact in ``"float32"`` or ``"bfloat16"`` (normal numbers and zero)."""
    try:
        packed = struct.pack(">f", value)
    except OverflowError:
        return False
    exact: bool = struct.unpack(">f", packed)[0] == value and (value == 0 or abs(value) >= 2.0**-126)
    return exact and (dtype == "float32" or packed[2:] == b"\0\0")
