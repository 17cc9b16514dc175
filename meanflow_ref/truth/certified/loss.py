r"""Certified values of the loss: all that Algorithm 1 computes for one sample, and its parameter gradient, in balls.

Term by term, with the network's weights, x, eps, r, t and all scales exact:

1. ``z = alpha x + sigma eps``, ``v_t = alpha' x + sigma' eps`` (schedules in balls);
2. the velocity of the target: ``v_t``, or guided, ``omega v_t + kappa u(z,t,t|c) + (1 - omega - kappa) u(z,t,t)``;
3. the tangent: that velocity (MeanFlow), or the network's own ``u(z, t, t)`` (improved MeanFlow);
4. u and du/dt by one pass along ``(tangent, 0, 1)``;
5. target ``v - (t - r) du/dt``, squared error S, weight ``w = (S + c)^-p``, loss ``w S``;
6. behind the stop-gradients of target and weight: ``dL/du = 2 w (u - target)`` and the network's reverse mode.

The improved loss ``|u + (t - r) sg(du/dt) - v|^2`` is the same function of u and du/dt as in 5; only the tangent
differs. A batch's loss is the mean of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from flint import arb, arb_mat

from meanflow_ref import formulas
from meanflow_ref.errors import CertificationError, NonFiniteError, ParameterError, ShapeError, TimeError
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.truth.certified.balls import PRINTED_DIGITS, Enclosure, Exact, exact, working_precision
from meanflow_ref.truth.certified.network import BallNetwork, TanhNetwork, column, require_label
from meanflow_ref.truth.certified.result import Matrix, Vector, missing_bits
from meanflow_ref.truth.certified.schedules import schedule_of

Objective: TypeAlias = Literal["meanflow", "improved"]

START_BITS = 224
MAX_BITS = 4096


@dataclass(frozen=True)
class GuidanceScales:
    """Guided target of one sample. Source: mf:19, mf:21.

    Args:
        omega: Weight of the sample velocity.
        kappa: Weight of the network's own conditional velocity, below 1.
        null_label: Label of "no class"; a sample that carries it is not guided.

    """

    omega: float
    kappa: float
    null_label: int


@dataclass(frozen=True)
class CertifiedLoss:
    """Enclosures of everything the loss of one sample is made of.

    Attributes:
        z: State.
        v: Velocity of the target: guided where guidance is active.
        tangent: The tangent's dz/dt.
        u: The network's average velocity at ``(z, r, t)``.
        du_dt: Its derivative along ``(tangent, 0, 1)``.
        target: ``v - (t - r) du/dt``.
        squared_error: ``S = |u - target|^2``.
        weight: ``(S + c)^-p``.
        loss: ``weight * S``.
        dloss_du: Gradient of the loss in u, target and weight fixed.
        gradient: Gradient in each layer's ``(W, b)``.
        bits: Working precision at which all digits were reached.

    """

    z: Vector
    v: Vector
    tangent: Vector
    u: Vector
    du_dt: Vector
    target: Vector
    squared_error: Enclosure
    weight: Enclosure
    loss: Enclosure
    dloss_du: Vector
    gradient: tuple[tuple[Matrix, Vector], ...]
    bits: int


@dataclass(frozen=True)
class _Sample:
    """One evaluation's inputs, exact."""

    network: TanhNetwork
    x: Sequence[float]
    eps: Sequence[float]
    r: Exact
    t: Exact
    path: AbstractPath
    objective: Objective
    label: int | None
    guidance: GuidanceScales | None
    weight_power: float
    weight_eps: float
    norm: str


def certified_loss(
    network: TanhNetwork,
    x: Sequence[float],
    eps: Sequence[float],
    r: Exact,
    t: Exact,
    *,
    path: AbstractPath = LINEAR,
    objective: Objective = "meanflow",
    label: int | None = None,
    guidance: GuidanceScales | None = None,
    weight_power: float = 1.0,
    weight_eps: float = 1e-3,
    norm: Literal["sum", "mean"] = "sum",
    digits: int = 34,
) -> CertifiedLoss:
    r"""Enclosures of one sample's MeanFlow loss, its parts and its gradient.

    Source: mf:9, mf:11, mf:21, mf:22, imf:velocity.

    Args:
        network: Exact weights.
        x: Data, d exact numbers.
        eps: Noise, d exact numbers.
        r: Start of the interval, ``0 <= r <= t``.
        t: Time of the state, at most 1.
        path: Conditional path.
        objective: ``"meanflow"`` (tangent v) or ``"improved"`` (tangent ``u(z, t, t)``, the network's own).
        label: Label, for a network with classes.
        guidance: Guided target; needs a label.
        weight_power: ``p >= 0`` of the adaptive weight.
        weight_eps: ``c > 0`` of the adaptive weight.
        norm: ``"sum"`` or ``"mean"`` over the d coordinates.
        digits: Certified decimal digits of every output, relative to it, or to 1e-6 where it is smaller than that.

    Raises:
        CertificationError: The digits were not reached, as at t = 0 of a path whose ``sigma'`` is infinite there.
        TimeError, ShapeError, NonFiniteError, ParameterError: The arguments do not fit.

    """
    sample = _Sample(network, x, eps, r, t, path, objective, label, guidance, weight_power, weight_eps, norm)
    _check(sample)
    bits = START_BITS
    while bits <= MAX_BITS:
        with working_precision(bits):
            parts = _evaluate(sample)
            if missing_bits(parts.outputs(), digits) <= 0:
                return parts.printed(bits, max(PRINTED_DIGITS, digits + 4))
        bits *= 2
    raise CertificationError(
        f"the loss at r = {r}, t = {t} did not reach {digits} digits with {MAX_BITS} bits.",
        "a path whose derivatives are finite at t, and weights of ordinary size",
    )


@dataclass(frozen=True)
class _Parts:
    """The outputs as balls."""

    vectors: list[arb_mat]  # z, v, tangent, u, du_dt, target
    scalars: list[arb]  # squared error, weight, loss
    dloss_du: arb_mat
    gradient: list[tuple[arb_mat, arb_mat]]

    def outputs(self) -> list[arb]:
        """Every ball whose digits are promised."""
        matrices = [*self.vectors, self.dloss_du, *(part for pair in self.gradient for part in pair)]
        return [*self.scalars, *(entry for matrix in matrices for entry in matrix.entries())]

    def printed(self, bits: int, digits: int) -> CertifiedLoss:
        """The decimal enclosures."""

        def vector(matrix: arb_mat) -> Vector:
            return tuple(Enclosure.from_ball(entry, digits) for entry in matrix.entries())

        def rows(matrix: arb_mat) -> Matrix:
            flat, width = vector(matrix), matrix.ncols()
            return tuple(flat[n : n + width] for n in range(0, len(flat), width))

        z, v, tangent, u, du_dt, target = map(vector, self.vectors)
        squared_error, weight, loss = (Enclosure.from_ball(value, digits) for value in self.scalars)
        gradient = tuple((rows(w), vector(b)) for w, b in self.gradient)
        dloss_du = vector(self.dloss_du)
        return CertifiedLoss(z, v, tangent, u, du_dt, target, squared_error, weight, loss, dloss_du, gradient, bits)


def _evaluate(sample: _Sample) -> _Parts:
    """The loss at the working precision, in the order of the module's list."""
    network, r, t = BallNetwork.build(sample.network), exact(sample.r), exact(sample.t)

    # 1. State and velocity of the sample. Source: fm:path, fm:conditional-velocity.
    schedule = schedule_of(sample.path)
    at, sigma = schedule.at(t), schedule.sigma(t)
    x, eps = column(map(exact, sample.x)), column(map(exact, sample.eps))
    z = formulas.interpolant(x, eps, at.alpha, sigma)
    sigma_dot = arb(1) if sample.path == LINEAR else at.sigma_sigma_dot / sigma
    v = formulas.conditional_velocity(x, eps, at.alpha_dot, sigma_dot)

    # 2. Guided target. Source: mf:19, mf:21.
    guidance = sample.guidance
    if guidance is not None and sample.label != guidance.null_label:
        omega, kappa = exact(guidance.omega), exact(guidance.kappa)
        u_label, u_null = (network.value(z, t, t, label) for label in (sample.label, guidance.null_label))
        v = formulas.guided_sample_velocity(v, u_label, u_null, omega, kappa)

    # 3. and 4. The tangent, u and du/dt. Source: mf:8, imf:velocity.
    tangent = v if sample.objective == "meanflow" else network.value(z, t, t, sample.label)
    done = network(z, r, t, sample.label, tangent, arb(0), arb(1))

    # 5. Target, error, weight. Source: mf:10, mf:9, mf:22.
    target = formulas.meanflow_target(v, done.du, r, t)
    delta = done.u - target
    share = arb(1) if sample.norm == "sum" else arb(1) / len(sample.x)
    squared_error = share * sum((entry * entry for entry in delta.entries()), arb(0))
    weight = formulas.adaptive_weight(squared_error, exact(sample.weight_power), exact(sample.weight_eps))

    # 6. Gradient.
    dloss_du = delta * (2 * weight * share)
    vectors = [z, v, tangent, done.u, done.du, target]
    gradient = network.gradient(done, dloss_du)
    return _Parts(vectors, [squared_error, weight, weight * squared_error], dloss_du, gradient)


def _check(sample: _Sample) -> None:
    """Raise one clear error unless the arguments fit together."""
    for name, values in (("x", sample.x), ("eps", sample.eps)):
        if len(values) != sample.network.dim:
            raise ShapeError(f"`{name}` has {len(values)} numbers.", f"{sample.network.dim}, the network's outputs")
        if not all(abs(value) < float("inf") for value in values):
            raise NonFiniteError(f"`{name}` has NaN or infinite entries.", "finite values")
    if not 0 <= sample.r <= sample.t <= 1:
        raise TimeError(f"r = {sample.r}, t = {sample.t}.", "0 <= r <= t <= 1")
    require_label(sample.network, sample.label, "label")
    if sample.objective not in ("meanflow", "improved"):
        raise ParameterError(f"objective={sample.objective!r}.", "meanflow or improved")
    if sample.norm not in ("sum", "mean"):
        raise ParameterError(f"norm={sample.norm!r}.", "sum or mean")
    if not (0 <= sample.weight_power < float("inf") and 0 < sample.weight_eps < float("inf")):
        raise ParameterError(
            f"weight_power={sample.weight_power!r}, weight_eps={sample.weight_eps!r}.", "p >= 0 and c > 0, both finite"
        )
    if sample.guidance is not None:
        require_label(sample.network, sample.guidance.null_label, "null_label")
        if not (abs(sample.guidance.omega) < float("inf") and -float("inf") < sample.guidance.kappa < 1):
            raise ParameterError(f"{sample.guidance!r}.", "finite scales with kappa < 1")
        if sample.label is None:
            raise ParameterError("guidance without a label.", "label=...")
