"""The front door of the certified truth: a route, a precision and a degree, raised until the digits are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, TypeAlias

from flint import arb, arb_mat

from meanflow_ref.errors import CertificationError, NonFiniteError, ParameterError, ShapeError, TimeError
from meanflow_ref.fields import AbstractField
from meanflow_ref.paths import LINEAR, AbstractPath
from meanflow_ref.truth.certified.balls import PRINTED_DIGITS, Exact, exact, working_precision
from meanflow_ref.truth.certified.convert import exact_field
from meanflow_ref.truth.certified.fields import Combination, Mixture
from meanflow_ref.truth.certified.flow import Plan, follow
from meanflow_ref.truth.certified.growth import growth_exponent
from meanflow_ref.truth.certified.linear import LinearField
from meanflow_ref.truth.certified.mixture import BallField
from meanflow_ref.truth.certified.one_dimensional import quantile_balls
from meanflow_ref.truth.certified.result import Balls, CertifiedTruth, missing_bits
from meanflow_ref.truth.certified.schedules import AbstractSchedule, schedule_of

Method: TypeAlias = Literal["auto", "quantile", "flow"]

# Bits beyond the digits asked for, at the first attempt.
GUARD_BITS = 48
ATTEMPTS = 5
MAX_BITS = 20_000
# Beyond this growth of errors the polynomials' degree, and with its cube the time, becomes absurd.
MAX_GROWTH_BITS = 300


def certified_truth(
    field: AbstractField | Mixture | Combination,
    z: Exact | Sequence[Exact],
    r: Exact,
    t: Exact,
    *,
    path: AbstractPath | None = None,
    digits: int | None = None,
    method: Method = "auto",
    jacobian: bool = False,
) -> CertifiedTruth:
    r"""Enclosures, proved in ball arithmetic, of the average velocity over ``[r, t]`` and its derivatives.

    Source: mf:3, mf:8, ref:quantile, ref:logdet, ref:transfer.

    Args:
        field: A normal mixture with diagonal covariances or a guided combination of such: as plain data, or as one of
            the library's fields.
        z: The state at ``t``: d numbers, or one for d = 1. Inputs are exact: a float is the rational that it is.
        r: End time, ``0 <= r <= t``; at r = t the limits are given.
        t: Time of the state, at most 1.
        path: Conditional path; by default the field's own, or the linear one for plain data.
        digits: Certified decimal digits of every output, relative to it, or to 1e-6 where it is smaller than that. By
            default 36 on the quantile route and 30 on the flow route.
        method: ``"quantile"`` (one mixture, d = 1), ``"flow"`` (any), or ``"auto"``.
        jacobian: Also the matrices J and du/dz where d > 1. In one dimension they come for free.

    Returns:
        A :class:`CertifiedTruth` of decimal enclosures.

    Raises:
        CertificationError: The field, the path or the state is outside what can be certified; the message names the
            hypothesis that fails.
        TimeError: ``r > t``, or a time outside [0, 1].
        ShapeError, NonFiniteError, ParameterError: The arguments do not fit.

    """
    data, path = _data(field, path)
    states = tuple(z) if isinstance(z, Sequence) else (z,)
    _check(data, states, r, t, method)
    schedule = schedule_of(path)
    if r == t:
        return _limit(data, schedule, states, t, digits or 36, jacobian)
    if method != "flow" and data.dim == 1 and isinstance(data, Mixture):
        return _quantile(data, schedule, states, r, t, digits or 36)
    return _flow(data, schedule, states, r, t, digits or 30, jacobian)


def _limit(
    data: Mixture | Combination, schedule: AbstractSchedule, z: Sequence[Exact], t: Exact, digits: int, jacobian: bool
) -> CertifiedTruth:
    """The values at r = t."""
    bits = _bits(digits) + GUARD_BITS
    missing = math.inf
    for _ in range(ATTEMPTS):
        with working_precision(bits):
            field, state, time = BallField.build(data, schedule), [exact(z_i) for z_i in z], exact(t)
            slope = field.jacobian(state, time) if jacobian or data.dim == 1 else None
            balls = Balls.at_limit(state, field.velocity(state, time), field.acceleration(state, time), slope)
            missing = missing_bits(balls.outputs(), digits)
            if missing <= 0:
                return balls.printed("limit", bits, _printed(digits))
        bits = _more(bits, missing)
    raise _unreached(digits, bits, missing)


def _quantile(
    data: Mixture, schedule: AbstractSchedule, z: Sequence[Exact], r: Exact, t: Exact, digits: int
) -> CertifiedTruth:
    """The values by quantile transport."""
    bits = _bits(digits) + GUARD_BITS + 2 * _span_bits(r, t)
    missing = math.inf
    for _ in range(ATTEMPTS):
        failure: CertificationError | None = None
        with working_precision(bits):
            try:
                field = BallField.build(data, schedule)
                balls = quantile_balls(field, exact(z[0]), exact(r), exact(t), bits)
                missing = missing_bits(balls.outputs(), digits)
            except CertificationError as error:
                missing, failure = math.inf, error
            if missing <= 0:
                return balls.printed("quantile", bits, _printed(digits))
        bits = _more(bits, missing)
    raise failure or _unreached(digits, bits, missing)


def _flow(
    data: Mixture | Combination,
    schedule: AbstractSchedule,
    z: Sequence[Exact],
    r: Exact,
    t: Exact,
    digits: int,
    jacobian: bool,
) -> CertifiedTruth:
    """The values by validated polynomials of the trajectory."""
    # u divides the end's error by t - r, du/dt once more; the Jacobian's error is the state's times a curvature.
    extra, missing = 8 + 2 * _span_bits(r, t) + (26 if jacobian else 0), math.inf
    for _ in range(ATTEMPTS):
        with working_precision(_bits(digits) + extra):
            sharpness = _bits(digits) + extra + _growth_bits(data, schedule, z, r, t)
        bits = sharpness + GUARD_BITS
        with working_precision(bits):
            balls = flow_balls(data, schedule, z, r, t, Plan.of(sharpness, bits, jacobian))
            missing = missing_bits(balls.outputs(), digits)
            if missing <= 0:
                return balls.printed("flow", bits, _printed(digits))
        if not missing < MAX_BITS:
            break
        extra += math.ceil(missing) + 8
    raise _unreached(digits, bits, missing)


def flow_balls(
    data: Mixture | Combination,
    schedule: AbstractSchedule,
    z: Sequence[Exact],
    r: Exact,
    t: Exact,
    plan: Plan,
) -> Balls:
    """The values by validated polynomials, at the working precision set.

    The trajectory is followed on the linear path and carried over by the schedule transfer. Source: ref:transfer.
    """
    field, core = BallField.build(data, schedule), LinearField.build(data)
    state, time, end_time = [exact(z_i) for z_i in z], exact(t), exact(r)
    (scale, start), (end_scale, finish) = schedule.transfer(time), schedule.transfer(end_time)
    span = start - finish
    if not span > 0:
        raise CertificationError(
            f"the linear times {start.str(8)} and {finish.str(8)} are not proved in order.",
            "the hypothesis that sigma/(alpha + sigma) increases with t",
            "times further apart, or more digits",
        )
    last = follow(core, [z_i / scale for z_i in state], start, span, plan)
    end = [end_scale * y for y in last.balls()]
    matrix = [[end_scale / scale * entry for entry in row] for row in last.jacobian()] if plan.jacobian else None
    return Balls.from_end(
        state,
        time - end_time,
        end,
        field.velocity(state, time),
        field.velocity(end, end_time),
        _log_det(field, state, time, end, end_time, matrix),
        matrix,
    )


def _log_det(
    field: BallField, z: list[arb], t: arb, end: list[arb], r: arb, matrix: list[list[arb]] | None
) -> arb | None:
    """``log det J``: from the densities of a data field, from the matrix of another. Source: ref:logdet."""
    if len(field.terms) == 1:
        mixture = field.terms[0][1]
        return mixture.log_density(z, field.schedule.at(t)) - mixture.log_density(end, field.schedule.at(r))
    if matrix is None:
        return None
    return arb_mat(matrix).det().log()


def _growth_bits(
    data: Mixture | Combination, schedule: AbstractSchedule, z: Sequence[Exact], r: Exact, t: Exact
) -> int:
    """Bits that the growth of errors along the trajectory will cost, by a float64 estimate."""
    core = LinearField.build(data)
    (scale, start), (_, finish) = schedule.transfer(exact(t)), schedule.transfer(exact(r))
    state = [exact(z_i) / scale for z_i in z]
    growth = math.ceil(growth_exponent(core, state, start, start - finish) / math.log(2))
    if growth > MAX_GROWTH_BITS:
        raise CertificationError(
            f"errors grow by about 2^{growth} along the trajectory through z = {[float(z_i) for z_i in z]}.",
            f"a trajectory along which they grow by at most 2^{MAX_GROWTH_BITS}, so that it can be followed",
            "a state further from the boundary between narrow modes; in one dimension, quantile transport",
        )
    return growth


def _data(
    field: AbstractField | Mixture | Combination, path: AbstractPath | None
) -> tuple[Mixture | Combination, AbstractPath]:
    """The field as plain data, and the path that it is meant on."""
    if isinstance(field, Mixture | Combination):
        return field, path or LINEAR
    if not isinstance(field, AbstractField):
        raise ParameterError(f"`field` is a {type(field).__name__}.", "a field, a Mixture or a Combination")
    if path is not None and path != field.path:
        raise ParameterError(f"path={path!r} beside a field on {field.path!r}.", "the field's path, or none")
    return exact_field(field), field.path


def _check(data: Mixture | Combination, z: Sequence[Exact], r: Exact, t: Exact, method: str) -> None:
    """Raise one clear error unless the arguments fit together."""
    if len(z) != data.dim:
        raise ShapeError(f"`z` has {len(z)} numbers; the field has dimension {data.dim}.", f"{data.dim} numbers")
    for name, numbers in (("z", z), ("r", (r,)), ("t", (t,))):
        if not all(isinstance(x, Fraction) or math.isfinite(x) for x in numbers):
            raise NonFiniteError(f"`{name}` is {numbers}.", "finite numbers")
    if not 0 <= r <= t <= 1:
        raise TimeError(f"r = {r}, t = {t}.", "0 <= r <= t <= 1")
    if method not in ("auto", "quantile", "flow"):
        raise ParameterError(f"method={method!r}.", "auto, quantile or flow")
    if method == "quantile" and not (data.dim == 1 and isinstance(data, Mixture)):
        raise CertificationError(
            f"method='quantile' of a {type(data).__name__} of dimension {data.dim}.",
            "the hypothesis of quantile transport, one mixture in one dimension",
            "method='flow'",
        )


def _bits(digits: int) -> int:
    """Bits that hold a number of decimal digits."""
    return math.ceil(digits * math.log2(10))


def _span_bits(r: Exact, t: Exact) -> int:
    """Bits lost in one division by ``t - r``."""
    span = Fraction(t) - Fraction(r)
    return max(0, span.denominator.bit_length() - span.numerator.bit_length() + 1)


def _printed(digits: int) -> int:
    """Digits of the decimal midpoint: a few more than are certified."""
    return max(PRINTED_DIGITS, digits + 4)


def _more(bits: int, missing: float) -> int:
    """The next precision: by what was missing, or twice as much where nothing was known."""
    following = bits + math.ceil(missing) + 16 if math.isfinite(missing) else 2 * bits
    return min(following, MAX_BITS)


def _unreached(digits: int, bits: int, missing: float) -> CertificationError:
    """The error for an enclosure that stayed too wide."""
    return CertificationError(
        f"{missing:.0f} bits are missing for {digits} digits at {bits} bits of working precision.",
        "an enclosure that narrows as the precision rises",
        "fewer digits, or a state where the flow's Jacobian is not so large",
    )
