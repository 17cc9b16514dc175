r"""Classifier-free guidance inside the training target.

Equation 21 mixes the sample velocity with the network's own instantaneous velocities,

.. math:: \tilde v_t = \omega v_t + \kappa\,u(z,t,t|c) + (1-\omega-\kappa)\,u(z,t,t),

all behind a stop-gradient. At its fixed point the network's field is guided with scale
:math:`\omega' = \omega/(1-\kappa)`. The same :math:`\tilde v_t` is the tangent of the JVP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meanflow_ref import formulas
from meanflow_ref.errors import DtypeError, ParameterError


@dataclass(frozen=True)
class Guidance:
    """Scales of the guided target. Source: mf:19, mf:21.

    Args:
        omega: Weight of the sample velocity; 1 with ``kappa = 0`` is no guidance.
        kappa: Weight of the network's own conditional velocity, below 1 (at 1 no fixed point exists).
        null_label: Label that stands for "no class".
        interval: Closed interval of times t that are guided; the others take ``v_t``.

    Raises:
        ParameterError: If a scale is not finite, ``kappa >= 1`` or the interval is not inside [0, 1].

    """

    omega: float
    kappa: float = 0.0
    null_label: int = field(kw_only=True)
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (abs(self.omega) < float("inf") and float("-inf") < self.kappa < 1):
            raise ParameterError(
                f"omega={self.omega!r}, kappa={self.kappa!r}.",
                "finite scales with kappa < 1, since the effective scale is omega/(1 - kappa)",
                "",
            )
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ParameterError(f"interval={self.interval!r}.", "0 <= low <= high <= 1", "")

    @property
    def effective_scale(self) -> float:
        """Scale of the field at the fixed point, ``omega/(1 - kappa)``. Source: mf:20."""
        return float(formulas.effective_guidance(self.omega, self.kappa))

    def active(self, t: Tensor, label: Tensor) -> Tensor:
        """Rows that are guided: those with a class, whose t is in the interval. A mask, ``(B,)``."""
        low, high = self.interval
        return (label != self.null_label) & (t >= low) & (t <= high)

    def sample_velocity(
        self, net: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], z: Tensor, v: Tensor, t: Tensor, label: Tensor
    ) -> Tensor:
        """Guided velocity of each row, ``v_t`` itself where guidance is not active. Source: mf:21.

        Costs one or two forward passes (the conditional one only if kappa is not 0). They run in the network's
        current mode: with dropout on, the null branch has dropout too.

        Args:
            net: Average velocity ``(z, r, t, label)``; asked at r = t.
            z: States, ``(B, *event)``.
            v: Velocities ``v_t``, of ``z``'s shape.
            t: Times, ``(B,)``.
            label: Integer labels, ``(B,)``.

        Returns:
            ``v``'s shape and dtype, detached.

        """
        with torch.no_grad():
            v = v.detach()
            u_null = net(z, t, t, torch.full_like(label, self.null_label)).to(v.dtype)
            u_label = net(z, t, t, label).to(v.dtype) if self.kappa else torch.zeros_like(v)
            guided = formulas.guided_sample_velocity(v, u_label, u_null, self.omega, self.kappa)
            rows = self.active(t, label).reshape(-1, *[1] * (z.dim() - 1))
            return torch.where(rows, guided, v)


def drop_labels(label: Tensor, probability: float, null_label: int, generator: torch.Generator) -> Tensor:
    """Labels with each replaced by the null label with ``probability``, independently of the others and of the row.

    Args:
        label: Integer labels, any shape.
        probability: In [0, 1].
        null_label: What a dropped label becomes.
        generator: Source of randomness; the draws happen on its device.

    Raises:
        ParameterError: If the probability is outside [0, 1].
        DtypeError: If the labels are not integers.

    """
    if not 0 <= probability <= 1:
        raise ParameterError(f"probability={probability!r}.", "a probability, in [0, 1]", "")
    require_labels(label)
    drop = torch.rand(label.shape, generator=generator, device=generator.device) < probability
    return torch.where(drop.to(label.device), torch.full_like(label, null_label), label)


def require_labels(label: object) -> Tensor:
    """Return ``label`` if it is an integer tensor."""
    if not isinstance(label, Tensor) or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        seen = label.dtype if isinstance(label, Tensor) else type(label).__name__
        raise DtypeError(f"`label` is {seen}.", "integer labels, one a row", "label.long()")
    return label
