r"""Any dimension: the trajectory as piecewise polynomials, with a proved bound of their distance from it.

Backwards along the linear path, ``x = t0 - t``, the trajectory obeys ``dz/dx = -v(z, t0 - x)``. On each step [0, H]
a polynomial p is made (:mod:`taylor`, not certified) and its distance ``e(x) = |z(x) - p(x)|_2`` bounded.

*Theorem* (Dahlquist 1958; Hairer, Norsett, Wanner, Solving ODEs I, theorem I.10.6). Let ``|p' + v(p, t0 - x)|_2 <=
delta`` on [a, b], and let ``mu`` bound the logarithmic norm ``mu_2[-dv/dz]`` at all ``(p(x) + y, t0 - x)`` with
``|y|_2 <= rho``. Then, as long as the right-hand side stays below rho,

.. math:: e(a + s) \le E(s) = e(a)\,e^{\mu s} + \delta\,\frac{e^{\mu s} - 1}{\mu}.

*Hypotheses and how each is checked.*

1. ``delta``: :func:`defect_bound`.
2. ``mu``: :func:`log_norm_bound` of an enclosure of dv/dz over the box ``p([a, b]) + [-rho, rho]^d``, which contains
   the tube; a box on which it is needlessly wide is halved.
3. The tube is not left: ``E' = (mu e(a) + delta) e^{mu s}`` has one sign, so that E is largest at an end, and
   ``max(e(a), E(b - a)) < rho`` is checked in balls (:func:`stays_inside`). With it, a first time at which e reaches
   rho cannot exist.
4. The solution exists up to the end: v is smooth where all variances are positive (:class:`Mixture`), and by 3 the
   solution stays in a compact tube.

Steps are joined by ``e(0) <= e_old(H) + |p_old(H) - p(0)|``: the polynomial may start anywhere. Times and states may be
balls: the argument holds for each real number in them, and all bounds are suprema over the balls.

*The Jacobian* of the flow map obeys the variational equation ``dJ/dx = -A(x) J``, ``A = dv/dz`` along the true
trajectory, ``J(0) = I``. It is linear with the same logarithmic norm, so that the same theorem serves for each column
w of J beside a polynomial q: the error ``f = |w - q|_2`` obeys it with the defect

.. math:: |q' + A q| \le |q' + A_p q| + |A - A_p|_2\,|q|_2 \le \delta_q + \kappa\,e\,|q|_2,

``A_p`` taken along p, ``kappa`` the bound of the second derivative of v over the tube (:attr:`DiscBound.curvature`,
valid while ``rho <= eta/2``, which is checked), and ``delta_q`` bounded like delta itself: power series of ``q' + A_p
q`` at x = 0, and Cauchy's estimate with ``|A_p|`` on the disc (:attr:`DiscBound.jacobian`) for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flint import arb, arb_mat, arb_poly, arb_series, ctx

from meanflow_ref.errors import CertificationError
from meanflow_ref.truth.certified.balls import euclidean_norm, largest, working_precision
from meanflow_ref.truth.certified.defect import BOX_BITS, DiscBound, bound_on_disc, defect_bound, known_part
from meanflow_ref.truth.certified.linear import LinearField
from meanflow_ref.truth.certified.lognorm import log_norm_bound
from meanflow_ref.truth.certified.taylor import convergence_radius, taylor_polynomial

# The disc's first radius, relative to an estimate of the radius of convergence.
DISC_SHARE = 0.5
# Degree of the polynomials for each bit of sharpness.
ORDER_PER_BIT = 0.42
# The margin eta, relative to the least standard deviation of a component at the time.
MARGIN_SHARE = 2.0**-8
# The tube's radius, relative to the error at the start of a step; the next one where the tube is left.
TUBE_SHARES = (2.0**16, 2.0**64, 2.0**256)
# A box is halved where its width adds more than this, plus a tenth of mu, to mu.
BOX_WIDTH = 1.0
BOX_DEPTH = 8
MAX_STEPS = 20_000
PROBE_ORDER, PROBE_BITS = 14, 96


@dataclass(frozen=True)
class State:
    """A point of a trajectory: midpoints, bounds of their distance from the truth, and the columns of the Jacobian.

    Attributes:
        z: Centres of the state; balls whose radii are rounding, not the bound.
        error: Bound of ``|z_true - z|_2``.
        columns: Centres of the Jacobian's columns, none if it was not asked for.
        column_errors: Bounds of their distances.

    """

    z: list[arb]
    error: arb
    columns: list[list[arb]]
    column_errors: list[arb]

    def balls(self) -> list[arb]:
        """The state, errors included."""
        return [z_i + arb(0, self.error) for z_i in self.z]

    def jacobian(self) -> list[list[arb]]:
        """The Jacobian, errors included, row by row."""
        columns = [
            [entry + arb(0, error) for entry in column]
            for column, error in zip(self.columns, self.column_errors, strict=True)
        ]
        return [list(row) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Plan:
    """What a run aims at: it decides the cost and the radius, never the validity.

    Attributes:
        defect: ``log2`` of the defect that each step may have.
        bits: Working precision.
        order: Degree of the polynomials.
        jacobian: Whether to carry the Jacobian.

    """

    defect: float
    bits: int
    order: int
    jacobian: bool

    @classmethod
    def of(cls, sharpness: int, bits: int, jacobian: bool) -> Plan:
        """A plan for an error of about ``2^-sharpness``; the degree is the one found to cost least."""
        return cls(-float(sharpness + 6), bits, max(12, round(ORDER_PER_BIT * sharpness)), jacobian)


def follow(field: LinearField, z: Sequence[arb], t: arb, span: arb, plan: Plan) -> State:
    """State and Jacobian after ``span > 0``, backwards from ``t`` along the linear path.

    Args:
        field: The field, built at the working precision.
        z: The state, as balls.
        t: Its time, a ball.
        span: How far to go, a ball.
        plan: Degree and sharpness, and whether to carry the Jacobian.

    Raises:
        CertificationError: A hypothesis could not be verified; the message names it.

    """
    units = [[arb(int(i == j)) for i in range(field.dim)] for j in range(field.dim)] if plan.jacobian else []
    state, done = State(list(z), arb(0), units, [arb(0)] * len(units)), arb(0)
    for _ in range(MAX_STEPS):
        state, step = advance(field, state, t - done, span - done, plan)
        done = done + step
        if not done < span:
            return state
    raise CertificationError(
        f"{MAX_STEPS} steps covered only {float(done):.3g} of {float(span):.3g}.",
        "a velocity that is analytic in a disc of useful size around each time",
        "modes that are wider or nearer to each other",
    )


def advance(field: LinearField, state: State, t: arb, rest: arb, plan: Plan) -> tuple[State, arb]:
    """One step: the state after it, and its length."""
    polynomial, order = approximate(field, state.z, t, rest, plan)
    disc = _largest_disc(field, polynomial, t, plan)
    step, last = _step_length(disc, order, rest, plan)
    with working_precision(ctx.prec, length=order):
        defect = defect_bound(field, polynomial, t, step, disc)
        columns = _Columns.build(field, polynomial, state.columns, t, step, disc) if state.columns else None
    error, column_errors = _in_a_tube(
        lambda share: _errors(field, polynomial, t, step, disc, defect, columns, state, share)
    )
    moved = State([p(step) for p in polynomial], error, columns.ends(step) if columns else [], column_errors)
    return moved, (rest if last else step)


def _in_a_tube(errors: Callable[[float], tuple[arb, list[arb]]]) -> tuple[arb, list[arb]]:
    """The error bounds of the first tube that is not left; if there is none, why the narrowest failed."""
    failures = []
    for share in TUBE_SHARES:
        try:
            return errors(share)
        except CertificationError as failure:
            failures.append(failure)
    raise failures[0]


def _errors(
    field: LinearField,
    polynomial: Sequence[arb_poly],
    t: arb,
    step: arb,
    disc: DiscBound,
    defect: arb,
    columns: _Columns | None,
    state: State,
    share: float,
) -> tuple[arb, list[arb]]:
    """Error bounds at the end of the step, by a tube of radius ``share`` times the error so far.

    Raises:
        CertificationError: If the tube is left, or is too wide for a bound of the logarithmic norm.

    """
    start = euclidean_norm(z_i - p[0] for z_i, p in zip(state.z, polynomial, strict=True))
    error = (state.error + start).upper()
    # Not zero, where polynomial and trajectory agree exactly.
    tube = ((error + defect * step) * share + arb(2) ** (-2 * ctx.prec)).upper()
    column_errors = columns.start(state) if columns else []
    if columns and not tube <= disc.margin / 2:
        raise CertificationError(
            f"the tube's radius {tube.str(2)} exceeds half the margin {disc.margin.str(2)}.",
            "a tube inside the polydisc on which the second derivative of v is bounded",
            "more digits",
        )
    for length, mu in log_norms(field, polynomial, t, step, tube):
        before, error = error, grown(error, defect, mu, length)
        stays_inside(before, error, tube)
        if columns:
            column_errors = columns.grown(column_errors, largest([before, error]), mu, length, disc)
    return error, column_errors


def approximate(field: LinearField, z: Sequence[arb], t: arb, rest: arb, plan: Plan) -> tuple[list[arb_poly], int]:
    """Polynomials near the trajectory, and their degree: anything may be returned here, at a price in the defect."""
    probe = taylor_polynomial(field, z, t, PROBE_ORDER, PROBE_BITS, 0)
    radius = _radius(field, probe, t)
    shift = math.frexp(radius)[1]
    # A span far inside the disc needs fewer terms.
    ratio = float(rest) / (DISC_SHARE * radius)
    order = plan.order
    if 0 < ratio < 0.5:
        order = min(order, max(4, math.ceil((8 - plan.defect) / -math.log2(ratio))))
    return [arb_poly(p) for p in taylor_polynomial(field, z, t, order, plan.bits, shift)], order


def log_norms(
    field: LinearField, polynomial: Sequence[arb_poly], t: arb, step: arb, tube: arb
) -> list[tuple[arb, arb]]:
    """Pieces of the step in order: length, and a bound of the logarithmic norm on the tube over it."""
    slopes = [p.derivative() for p in polynomial]
    with working_precision(BOX_BITS):
        return list(_pieces(field, polynomial, slopes, t, arb(0), step, tube, 0))


def _pieces(
    field: LinearField,
    polynomial: Sequence[arb_poly],
    slopes: Sequence[arb_poly],
    t: arb,
    low: arb,
    high: arb,
    tube: arb,
    depth: int,
) -> Iterator[tuple[arb, arb]]:
    """``[low, high]``, halved until the box is narrow enough for a good bound."""
    box, middle = low.union(high), ((low + high) / 2).mid()
    # Mean value form: p(x) lies in p(m) + p'([low, high]) (x - m).
    z = [p(middle) + slope(box) * (box - middle) + arb(0, tube) for p, slope in zip(polynomial, slopes, strict=True)]
    failure: CertificationError | None = None
    try:
        mu, width = log_norm_bound(field.jacobian_box(z, t - box))
        if width <= BOX_WIDTH + abs(mu) / 10 or depth >= BOX_DEPTH:
            yield high - low, mu
            return
    except CertificationError as error:
        failure = error
    if failure is not None and depth >= BOX_DEPTH:
        raise failure
    yield from _pieces(field, polynomial, slopes, t, low, middle, tube, depth + 1)
    yield from _pieces(field, polynomial, slopes, t, middle, high, tube, depth + 1)


def grown(error: arb, defect: arb, mu: arb, length: arb) -> arb:
    """``E(length)``: the error bound carried over a piece."""
    factor = (mu * length).exp()
    # (e^{mu s} - 1)/mu is at most s e^{mu s} for mu >= 0 and at most s for mu <= 0.
    integral = (mu * length).expm1() / mu if not mu.contains(0) else length * largest([factor, arb(1)])
    return (error * factor + defect * integral).upper()


def stays_inside(before: arb, after: arb, tube: arb) -> None:
    """Check that the error bound stays below the tube's radius over a piece (it is monotone there).

    Raises:
        CertificationError: If it does not, so that the bound of the logarithmic norm may not be used.

    """
    if not (before < tube and after < tube):
        raise CertificationError(
            f"the error bound reaches {largest([before, after]).str(2)}, beyond the tube of radius {tube.str(2)} on "
            "which the logarithmic norm is known.",
            "a trajectory that stays in its tube",
            "more digits, or a shorter interval: errors grow too much over this one",
        )


@dataclass(frozen=True)
class _Columns:
    """Polynomials q beside the columns of the Jacobian, with their defects and sizes over the step."""

    polynomials: list[list[arb_poly]]
    defects: list[arb]
    sizes: list[arb]

    @classmethod
    def build(
        cls,
        field: LinearField,
        polynomial: Sequence[arb_poly],
        columns: list[list[arb]],
        t: arb,
        step: arb,
        disc: DiscBound,
    ) -> _Columns:
        """Solve ``q' = -A_p q`` coefficient by coefficient, and bound what it misses."""
        series = [arb_series(p) for p in polynomial]
        matrix = field.jacobian_series(series, arb_series([t, -1]))
        found = variational_polynomials(matrix, columns)
        defects, sizes = [], []
        for q in found:
            curve = [arb_series(entry) for entry in q]
            products = [sum((a * w for a, w in zip(row, curve, strict=True)), arb_series([0])) for row in matrix]
            known = [known_part(e.derivative(), f, step.upper()) for e, f in zip(q, products, strict=True)]
            tail = disc.tail(disc.jacobian * size_on_disc(q, disc.radius), products[0].prec, step.upper())
            defects.append((euclidean_norm(known) + tail).upper())
            sizes.append(size_on_disc(q, step.upper()))
        return cls(found, defects, sizes)

    def start(self, state: State) -> list[arb]:
        """Errors at the start of the step: those before it, and the polynomials' own distance."""
        jumps = (
            euclidean_norm(entry - p[0] for entry, p in zip(column, q, strict=True))
            for column, q in zip(state.columns, self.polynomials, strict=True)
        )
        return [(error + jump).upper() for error, jump in zip(state.column_errors, jumps, strict=True)]

    def grown(self, errors: list[arb], error: arb, mu: arb, length: arb, disc: DiscBound) -> list[arb]:
        """The columns' error bounds carried over a piece, on which the state's is at most ``error``."""
        curvature = disc.curvature
        return [
            grown(before, defect + curvature * error * size, mu, length)
            for before, defect, size in zip(errors, self.defects, self.sizes, strict=True)
        ]

    def ends(self, step: arb) -> list[list[arb]]:
        """The polynomials at the end of the step."""
        return [[entry(step) for entry in q] for q in self.polynomials]


def variational_polynomials(matrix: list[list[arb_series]], columns: list[list[arb]]) -> list[list[arb_poly]]:
    """Polynomials near the solutions of ``q' = -A q`` from given columns; not certified, like the trajectory's."""
    dim, order = len(matrix), matrix[0][0].prec
    coefficients = [arb_mat([[entry[n].mid() for entry in row] for row in matrix]) for n in range(order)]
    solution = [arb_mat([[column[i].mid() for column in columns] for i in range(dim)])]
    for n in range(order):
        total = arb_mat(dim, len(columns))
        for j in range(n + 1):
            total = total + coefficients[j] * solution[n - j]
        solution.append((total / -(n + 1)).mid())
    return [[arb_poly([term[i, j] for term in solution]) for i in range(dim)] for j in range(len(columns))]


def size_on_disc(q: Sequence[arb_poly], radius: arb) -> arb:
    """Bound of ``|q(x)|_2`` for complex ``|x| <= radius``: each coordinate is at most ``sum_n |q_n| radius^n``."""
    return euclidean_norm(arb_poly([abs(c).upper() for c in entry.coeffs()])(radius) for entry in q)


def _largest_disc(field: LinearField, polynomial: Sequence[arb_poly], t: arb, plan: Plan) -> DiscBound:
    """A disc on which the velocity along the polynomial is proved analytic, as large as was easily found."""
    radius, margin = DISC_SHARE * _radius(field, [p.coeffs() for p in polynomial], t), 0.0
    if plan.jacobian:
        spread = min(float(variance * (1 - t) ** 2 + t * t) for variance in field.variances)
        margin = MARGIN_SHARE * math.sqrt(spread / field.dim)
    for _ in range(40):
        disc = bound_on_disc(field, polynomial, t, arb(radius), arb(margin))
        if disc is not None:
            return disc
        radius, margin = 0.75 * radius, 0.25 * margin
    raise CertificationError(
        f"the velocity along the trajectory is not proved analytic in a disc of radius {radius:.2g} about "
        f"t = {float(t):.6g}.",
        "mixture densities without complex zeros so near to real time",
        "a state that is not exactly between narrow modes",
    )


def _radius(field: LinearField, coefficients: Sequence[Sequence[arb]], t: arb) -> float:
    """Distance of the next singularity: as the coefficients tell, or the zero of lambda, a quadratic in x."""
    zeros = (float((variance * (1 - t) ** 2 + t * t) / (1 + variance)) for variance in field.variances)
    return min(convergence_radius(coefficients), math.sqrt(min(zeros)))


def _step_length(disc: DiscBound, order: int, rest: arb, plan: Plan) -> tuple[arb, bool]:
    """The step at which the tail meets the plan, or all that is left."""
    size = max(1e-30, float(euclidean_norm(disc.velocity)))
    ratio = min(0.7, 2.0 ** ((plan.defect - math.log2(size)) / order))
    ratio *= (1 - ratio) ** (1 / order)
    step = arb(float(f"{ratio * float(disc.radius):.5g}"))
    return (rest, True) if not step < rest else (step, False)
