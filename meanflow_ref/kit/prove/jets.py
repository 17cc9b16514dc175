"""Values and derivatives of the opaque network at the points where it was evaluated.

Two evaluations are the same if and only if their arguments are the same numbers: then they share all symbols
(congruence). At different points the values and derivatives of a differentiable function are unrelated; given finitely
many points there is a polynomial network with any prescribed ones, so that every witness is realised by a network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from meanflow_ref.kit.prove.ring import Number, Ring

# The head of a derivative in the parameter.
TRAINED = "d_theta"


@dataclass
class Site:
    """One row's evaluation: inputs 0 to d-1 are z, then r, t and the parameter."""

    ring: Ring
    index: int
    z: tuple[Number, ...]
    r: Number
    t: Number
    y: tuple[Number, ...]
    theta: Number
    _jets: dict[tuple[int, ...], Number] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Dimension of the state."""
        return len(self.z)

    @property
    def inputs(self) -> int:
        """Number of inputs of u."""
        return self.dim + 3

    def u(self, i: int) -> Number:
        """Component i of u."""
        return self._jet(i)

    def du(self, i: int, a: int) -> Number:
        """Its derivative in input a."""
        return self._jet(i, a)

    def d2u(self, i: int, a: int, b: int) -> Number:
        """Its second derivative in inputs a and b."""
        return self._jet(i, *sorted((a, b)))

    def input_name(self, a: int) -> str:
        """Name of input a."""
        return f"z{a}" if a < self.dim else ("r", "t", "theta")[a - self.dim]

    def _jet(self, i: int, *inputs: int) -> Number:
        key = (i, *inputs)
        if key not in self._jets:
            partials = "".join(f"d_{self.input_name(a)} " for a in inputs)
            name = f"({partials}u[{i}])@{self.index}" if inputs else f"u[{i}]@{self.index}"
            head = TRAINED if self.inputs - 1 in inputs else ""
            self._jets[key] = self.ring.symbol(name, "network", parent=self.index, head=head)
        return self._jets[key]


@dataclass
class Sites:
    """All evaluations of a run."""

    ring: Ring
    found: dict[Any, Site] = field(default_factory=dict)

    def at(self, z: tuple[Number, ...], r: Number, t: Number, y: tuple[Number, ...], theta: Number) -> Site:
        """The evaluation at a point, new or known."""
        z, y = tuple(entry.expanded() for entry in z), tuple(entry.expanded() for entry in y)
        r, t, theta = r.expanded(), t.expanded(), theta.expanded()
        key = tuple(number.key() for number in (*z, r, t, theta, *y)), len(z)
        if key not in self.found:
            self.found[key] = Site(self.ring, len(self.found), z, r, t, y, theta)
        return self.found[key]
