r"""Class-conditional data and classifier-free guidance.

The unconditional velocity is the mean of the class velocities under the *posterior* of the class given the state;
prior weights are wrong by the order of the velocity itself. Both guidance formulas of the paper lead at their fixed
point to one field, :math:`\omega' v(\cdot\mid c) + (1-\omega') v` with :math:`\omega' = \omega/(1-\kappa)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref._typing import Matrices, PerState, State, Times
from meanflow_ref._validate import as_times, require_same_kind
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields._parameters import (
    draw_labels,
    log_weights,
    require_fields,
    require_one_path,
    require_shape,
    require_weights,
    set_derived,
    set_parameters,
)
from meanflow_ref.fields._precision import in_float64
from meanflow_ref.fields.base import AbstractDataField, AbstractField
from meanflow_ref.paths import AbstractPath


@dataclass(frozen=True, eq=False)
class ClassConditional(AbstractDataField):
    """Data of several classes; as a field, their mixture. Source: mf:14.

    Args:
        classes: The data field of each class, all of one dimension and on one path.
        priors: Class probabilities, ``(C,)``, non-negative with sum 1.

    Raises:
        ParameterError: If the priors do not sum to 1, or the classes' paths or dimensions differ.
        ShapeError: If the number of priors is not the number of classes.

    """

    classes: tuple[AbstractDataField, ...]
    priors: Tensor
    _log_priors: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        require_fields(self.classes, AbstractDataField, "classes")
        set_parameters(self, priors=self.priors)
        require_shape(self.priors, [(len(self.classes),)], "priors")
        require_weights(self.priors, "priors")
        require_one_path([one.path for one in self.classes], "ClassConditional")
        dims = [one.dim for one in self.classes]
        if len(set(dims)) > 1:
            raise ParameterError(f"the classes have dimensions {dims}.", "one dimension", "")
        for one in self.classes:
            require_same_kind(self.priors, one.anchor, "priors", type(one).__name__)
        set_derived(self, _log_priors=log_weights(self.priors))

    @property
    def path(self) -> AbstractPath:  # type: ignore[override]
        """The classes' path."""
        return self.classes[0].path

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.classes[0].dim

    @property
    def anchor(self) -> Tensor:
        """The priors."""
        return self.priors

    def conditional(self, label: int) -> AbstractDataField:
        """Data field of one class.

        Raises:
            ParameterError: If there is no such class.

        """
        if not 0 <= label < len(self.classes):
            raise ParameterError(f"label {label} of {len(self.classes)} classes.", f"0 to {len(self.classes) - 1}", "")
        return self.classes[label]

    def posterior(self, z: State, t: Times | float) -> Tensor:
        """Class probabilities given ``z_t = z``, ``(*batch, C)``. Source: mf:14."""
        z = self._state(z)
        return self._posterior(z, as_times(t, z, "t"))

    def _log_joint(self, z: State, t: Times) -> Tensor:
        return self._log_priors + torch.stack([one._log_density(z, t) for one in self.classes], -1)

    @in_float64
    def _posterior(self, z: State, t: Times) -> Tensor:
        return torch.softmax(self._log_joint(z, t), -1)

    def _velocities(self, z: State, t: Times) -> Tensor:
        """Velocity of each class, ``(*batch, C, d)``."""
        return torch.stack([one._velocity(z, t) for one in self.classes], -2)

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        return (self._posterior(z, t)[..., None] * self._velocities(z, t)).sum(-2)

    @in_float64
    def _log_density(self, z: State, t: Times) -> PerState:
        return torch.logsumexp(self._log_joint(z, t), -1)

    @in_float64
    def _velocity_covariance(self, z: State, t: Times) -> Matrices:
        posterior, velocities = self._posterior(z, t), self._velocities(z, t)
        within = torch.stack([one._velocity_covariance(z, t) for one in self.classes], -3)
        around = velocities - (posterior[..., None] * velocities).sum(-2, keepdim=True)
        between = torch.einsum("...k,...ki,...kj->...ij", posterior, around, around)
        return between + (posterior[..., None, None] * within).sum(-3)

    def sample_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[State, Tensor]:
        """Draw ``n`` data samples ``(n, d)`` and their labels ``(n,)``."""
        labels = draw_labels(self.priors, n, generator)
        x = torch.empty(n, self.dim, dtype=self.priors.dtype, device=self.priors.device)
        for label, one in enumerate(self.classes):
            members = labels == label
            x[members] = one.sample_data(int(members.sum()), generator)
        return x, labels

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> State:
        """Draw ``n`` data samples, ``(n, d)``."""
        return self.sample_labelled(n, generator)[0]


@dataclass(frozen=True, eq=False)
class Guided(AbstractField):
    """The guided field of one class: ``omega' v(.|c) + (1 - omega') v``. Source: mf:13, mf:20.

    Its average velocity is that of its own trajectories, not the same combination of average velocities; there is no
    closed form, so :func:`meanflow_ref.average_velocity` takes the ODE.

    Args:
        classes: The classes and their priors.
        label: The class c.
        omega: Guidance scale.
        kappa: Share of the conditional model in the target, below 1.

    Raises:
        ParameterError: If kappa is not below 1, a scale is not finite, or there is no such class.

    """

    classes: ClassConditional
    label: int
    omega: float
    kappa: float = 0.0

    def __post_init__(self) -> None:
        require_guidance(self.omega, self.kappa)
        if not isinstance(self.classes, ClassConditional):
            raise ParameterError(
                f"`classes` is {type(self.classes).__name__}.", "a ClassConditional", "ClassConditional(fields, priors)"
            )
        self.classes.conditional(self.label)

    @property
    def path(self) -> AbstractPath:  # type: ignore[override]
        """The classes' path."""
        return self.classes.path

    @property
    def dim(self) -> int:
        """Dimension d of a state."""
        return self.classes.dim

    @property
    def anchor(self) -> Tensor:
        """The priors."""
        return self.classes.anchor

    @property
    def effective_omega(self) -> float:
        """``omega' = omega/(1 - kappa)``. Source: mf:20."""
        return float(formulas.effective_guidance(self.omega, self.kappa))

    @in_float64
    def _velocity(self, z: State, t: Times) -> State:
        conditional = self.classes.conditional(self.label)._velocity(z, t)
        v: Tensor = formulas.guided_velocity(conditional, self.classes._velocity(z, t), self.effective_omega)
        return v


def require_guidance(omega: float, kappa: float) -> None:
    """Raise unless the scales are finite and ``kappa < 1``."""
    if not (math.isfinite(omega) and math.isfinite(kappa)):
        raise ParameterError(f"omega={omega}, kappa={kappa}.", "finite scales", "")
    if kappa >= 1:
        raise ParameterError(
            f"kappa={kappa}.",
            "kappa < 1: the effective scale is omega/(1 - kappa), and the fixed point repels from kappa = 1 on",
            "",
        )
