r"""A small tanh perceptron in balls, forwards, forwards with a tangent, and backwards.

The network is ``h_0 = [z; r; t; onehot(label)]``, ``h_l = tanh(W_l h_{l-1} + b_l)`` and ``u = W_L h_{L-1} + b_L``, with
exact float64 weights: a composition of sums, products and tanh. Three evaluations, each by the inclusion property
alone:

* *Value.* The composition itself.
* *Derivative along a tangent* (JVP). Pairs of a value and a tangent, with the exact rules ``d(W h + b) = W dh`` and
  ``d tanh(s) = (1 - tanh(s)^2) ds``: each is the derivative, so that the pair encloses value and derivative.
* *Gradient* (reverse mode). With ``delta_L = dL/du``: ``dL/dW_l = delta_l h_{l-1}^T``, ``dL/db_l = delta_l``,
  ``delta_{l-1} = (W_l^T delta_l) (1 - h_{l-1}^2)``: the chain rule, term by term.

No step approximates anything; the only width is that of rounding, which the digits asked for bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flint import arb, arb_mat

from meanflow_ref.errors import NonFiniteError, ParameterError, ShapeError
from meanflow_ref.truth.certified.balls import exact

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TanhNetwork:
    """Exact weights of a tanh perceptron ``u(z, r, t)`` or ``u(z, r, t, label)``.

    Args:
        layers: Pairs ``(W, b)`` from input to output; W row by row, as nested sequences or arrays of floats.
        classes: Number of labels, the null label included; the input ends with that many one-hot entries.

    Raises:
        ShapeError: The layers do not fit together, or the first does not take ``d + 2 + classes`` numbers.
        NonFiniteError: A weight is not finite.

    """

    layers: tuple[tuple[Rows, tuple[float, ...]], ...]
    classes: int

    def __init__(self, layers: Sequence[tuple[Any, Any]], classes: int = 0) -> None:
        read = tuple((_matrix(weight), _vector(bias)) for weight, bias in layers)
        if not read:
            raise ShapeError("no layers.", "at least one pair (W, b)")
        width = len(read[-1][1]) + 2 + classes
        for n, (weight, bias) in enumerate(read):
            if {len(row) for row in weight} != {width} or len(weight) != len(bias):
                raise ShapeError(
                    f"layer {n}: {len(weight)} rows of {sorted(set(map(len, weight)))} numbers, b of {len(bias)}.",
                    f"W of shape (n, {width}) and b of shape (n,); the first layer takes [z; r; t; onehot(label)]",
                )
            width = len(bias)
        object.__setattr__(self, "layers", read)
        object.__setattr__(self, "classes", classes)

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return len(self.layers[-1][1])


@dataclass(frozen=True)
class Pass:
    """One evaluation: each layer's input, the output, and the output's derivative along the tangent."""

    inputs: list[arb_mat]
    u: arb_mat
    du: arb_mat


@dataclass(frozen=True)
class BallNetwork:
    """The network's weights as balls at the working precision that was set when it was built."""

    layers: list[tuple[arb_mat, arb_mat]]
    classes: int

    @classmethod
    def build(cls, data: TanhNetwork) -> BallNetwork:
        """The exact weights."""
        return cls(
            [
                (arb_mat([[exact(w) for w in row] for row in weight]), column(map(exact, bias)))
                for weight, bias in data.layers
            ],
            data.classes,
        )

    def __call__(self, z: arb_mat, r: arb, t: arb, label: int | None, dz: arb_mat, dr: arb, dt: arb) -> Pass:
        """Value and derivative along ``(dz, dr, dt)``. Source: mf:7."""
        h = self._input(z, r, t, label)
        dh = self._input(dz, dr, dt, None)
        inputs = []
        for n, (weight, bias) in enumerate(self.layers):
            inputs.append(h)
            h, dh = weight * h + bias, weight * dh
            if n + 1 < len(self.layers):
                h = column(s.tanh() for s in h.entries())
                dh = column((1 - y * y) * ds for y, ds in zip(h.entries(), dh.entries(), strict=True))
        return Pass(inputs, h, dh)

    def value(self, z: arb_mat, r: arb, t: arb, label: int | None) -> arb_mat:
        """``u`` alone."""
        return self(z, r, t, label, 0 * z, arb(0), arb(0)).u

    def gradient(self, done: Pass, output: arb_mat) -> list[tuple[arb_mat, arb_mat]]:
        """Gradients in each ``(W, b)`` of a function whose gradient in u is ``output``."""
        found, delta = [], output
        for n in reversed(range(len(self.layers))):
            found.append((delta * done.inputs[n].transpose(), delta))
            back = self.layers[n][0].transpose() * delta
            delta = column((1 - y * y) * e for y, e in zip(done.inputs[n].entries(), back.entries(), strict=True))
        return found[::-1]

    def _input(self, z: arb_mat, r: arb, t: arb, label: int | None) -> arb_mat:
        """``[z; r; t; onehot(label)]``."""
        return column([*z.entries(), r, t, *(arb(int(label == c)) for c in range(self.classes))])


def column(values: Any) -> arb_mat:
    """A matrix of one column."""
    entries = list(values)
    return arb_mat(len(entries), 1, entries)


def require_label(network: TanhNetwork, label: int | None, name: str) -> None:
    """Raise unless ``label`` is one of the network's, or absent where it has none."""
    if label is None and network.classes == 0:
        return
    if label is None or not 0 <= label < network.classes:
        raise ParameterError(
            f"{name}={label!r} of a network with {network.classes} classes.",
            "None" if network.classes == 0 else f"an integer from 0 to {network.classes - 1}",
        )


def _vector(values: Any) -> tuple[float, ...]:
    """Plain numbers of an array."""
    numbers = tuple(float(x) for x in (values.tolist() if hasattr(values, "tolist") else values))
    if not all(abs(x) < float("inf") for x in numbers):
        raise NonFiniteError("a weight is NaN or infinite.", "finite weights")
    return numbers


def _matrix(rows: Any) -> Rows:
    """Plain rows of a matrix."""
    return tuple(_vector(row) for row in (rows.tolist() if hasattr(rows, "tolist") else rows))
