"""What a certified truth is made of, and how its parts follow from the end of the trajectory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from flint import arb

from meanflow_ref.truth.certified.balls import PRINTED_DIGITS, Enclosure, fraction_of

Vector: TypeAlias = tuple[Enclosure, ...]
Matrix: TypeAlias = tuple[Vector, ...]

# Digits are counted relative to a value, but for values below this relative to this: zero has no significant digits.
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class CertifiedTruth:
    r"""Enclosures of the average velocity and what belongs to it, at one ``(z, r, t)``.

    Attributes:
        v: Velocity at ``(z, t)``. Source: mf:1.
        u: Average velocity over ``[r, t]``. Source: mf:3.
        du_dt: Total derivative of u along ``(v, 0, 1)``. Source: mf:8.
        dr_u: Partial derivative of u in ``r``.
        end: State at ``r`` of the trajectory.
        v_end: Velocity there.
        log_det_jacobian: Log-determinant of the flow map's Jacobian; None for a guided field without ``jacobian``.
        dz_u: Partial derivative of u in z, row by row, ``dz_u[i][j] = du_i/dz_j``; None unless asked for.
        jacobian: Jacobian of the flow map; None unless asked for.
        method: ``"quantile"``, ``"flow"`` or ``"limit"`` (r = t).
        bits: Working precision at which all digits were reached.

    """

    v: Vector
    u: Vector
    du_dt: Vector
    dr_u: Vector
    end: Vector
    v_end: Vector
    log_det_jacobian: Enclosure | None
    dz_u: Matrix | None
    jacobian: Matrix | None
    method: str
    bits: int


@dataclass(frozen=True)
class Balls:
    """The same quantities as balls, before they are printed."""

    v: list[arb]
    u: list[arb]
    du_dt: list[arb]
    dr_u: list[arb]
    end: list[arb]
    v_end: list[arb]
    log_det_jacobian: arb | None
    dz_u: list[list[arb]] | None
    jacobian: list[list[arb]] | None

    @classmethod
    def from_end(
        cls,
        z: Sequence[arb],
        h: arb,
        end: list[arb],
        v: list[arb],
        v_end: list[arb],
        log_det_jacobian: arb | None,
        jacobian: list[list[arb]] | None,
    ) -> Balls:
        """All quantities from the trajectory's end, for ``h = t - r > 0``.

        The definition gives ``u = (z - phi)/h``. Along the trajectory ``h u = z_t - z_r``; its total derivative in t is
        ``u + h du/dt = v`` (mf:5), its derivative in r is ``-u + h d_r u = -v_r`` (fmm:lagrangian), and its derivative
        in z is ``h dz_u = I - J``. Each is solved for the unknown, exactly: no truncation enters, and the radius grows
        by 1/h at each division, which is why the end is asked for ``h^2`` more sharply than the answer.
        Source: mf:3, mf:5, fmm:lagrangian.
        """
        u = [(z_i - y_i) / h for z_i, y_i in zip(z, end, strict=True)]
        dz_u = None
        if jacobian is not None:
            dz_u = [[(int(i == j) - entry) / h for j, entry in enumerate(row)] for i, row in enumerate(jacobian)]
        return cls(
            v=v,
            u=u,
            du_dt=[(v_i - u_i) / h for v_i, u_i in zip(v, u, strict=True)],
            dr_u=[(u_i - w_i) / h for u_i, w_i in zip(u, v_end, strict=True)],
            end=end,
            v_end=v_end,
            log_det_jacobian=log_det_jacobian,
            dz_u=dz_u,
            jacobian=jacobian,
        )

    @classmethod
    def at_limit(cls, z: Sequence[arb], v: list[arb], acceleration: list[arb], slope: list[list[arb]] | None) -> Balls:
        """All quantities at r = t, by continuity.

        The integrand of ``u = 1/h int v`` is continuously differentiable along the trajectory with derivative
        ``a = d_t v + (dv/dz) v``, so that ``u = v - h a/2 + o(h)``: u tends to v, and du/dt and d_r u both to a/2 (the
        two sum to the derivative a of v along the trajectory, and exchange under reversal). ``(I - J)/h`` tends to
        dv/dz. Source: mf:limit, ref:acceleration.
        """
        half = [a / 2 for a in acceleration]
        identity = [[arb(int(i == j)) for j in range(len(z))] for i in range(len(z))]
        jacobian = None if slope is None else identity
        return cls(v, v, half, half, list(z), v, arb(0), slope, jacobian)

    def outputs(self) -> list[arb]:
        """Every ball whose digits are promised."""
        rows = [*(self.dz_u or []), *(self.jacobian or [])]
        last = [] if self.log_det_jacobian is None else [self.log_det_jacobian]
        return list(chain(self.v, self.u, self.du_dt, self.dr_u, self.end, self.v_end, *rows, last))

    def printed(self, method: str, bits: int, digits: int = PRINTED_DIGITS) -> CertifiedTruth:
        """The decimal enclosures."""

        def vector(values: Sequence[arb]) -> Vector:
            return tuple(Enclosure.from_ball(value, digits) for value in values)

        def matrix(rows: list[list[arb]] | None) -> Matrix | None:
            return None if rows is None else tuple(map(vector, rows))

        log_det = self.log_det_jacobian
        return CertifiedTruth(
            v=vector(self.v),
            u=vector(self.u),
            du_dt=vector(self.du_dt),
            dr_u=vector(self.dr_u),
            end=vector(self.end),
            v_end=vector(self.v_end),
            log_det_jacobian=None if log_det is None else Enclosure.from_ball(log_det, digits),
            dz_u=matrix(self.dz_u),
            jacobian=matrix(self.jacobian),
            method=method,
            bits=bits,
        )


def missing_bits(values: Iterable[arb], digits: int) -> float:
    """By how many bits the widest ball misses ``digits`` decimal digits; not positive if none does."""
    wanted = digits * math.log2(10)
    return max((_radius_bits(value) + wanted for value in values), default=-math.inf)


def _radius_bits(x: arb) -> float:
    """``log2`` of the radius relative to the value, or to the smallest scale."""
    if not x.is_finite():
        return math.inf
    return _log2(x.rad()) - max(_log2(x.mid()), math.log2(SMALLEST_SCALE))


def _log2(x: arb) -> float:
    """``log2 |x|`` of an exact ball of any exponent."""
    value = abs(fraction_of(x))
    if not value:
        return -math.inf
    shift = value.numerator.bit_length() - value.denominator.bit_length()
    return shift + math.log2(value / 2**shift) if shift >= 0 else shift + math.log2(value * 2**-shift)
