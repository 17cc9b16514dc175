"""The checker is checked: each term of the bounds is needed, and leaving it out is seen.

The polynomials are not certified and may be anything, so that a test may spoil them: the honest bound then has to grow
and still hold the truth, and a bound that lacks a term does not.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from certified_cases import PLANE
from flint import arb, arb_mat, arb_poly, arb_series, ctx

from meanflow_ref.errors import CertificationError
from meanflow_ref.truth.certified import Enclosure, Mixture, certified_truth, certify, defect, flow, working_precision
from meanflow_ref.truth.certified.balls import exact
from meanflow_ref.truth.certified.flow import Plan, State, follow
from meanflow_ref.truth.certified.linear import LinearField
from meanflow_ref.truth.certified.lognorm import log_norm_bound, positive_definite
from meanflow_ref.truth.certified.mixture import BallField
from meanflow_ref.truth.certified.one_dimensional import Marginal, certified_quantile
from meanflow_ref.truth.certified.schedules import LinearSchedule

# Two modes and a state near the line between them: errors grow more than threefold on the way to the data.
PAIR, START, BITS = Mixture([1, 1], [-1, 1], [0.25, 0.25]), 0.03125, 200
SPOILED = 2.0**-60


def run(plan: Plan, start: float = START) -> State:
    with working_precision(BITS):
        return follow(LinearField.build(PAIR), [exact(start)], arb(1), arb(1), plan)


def sharp(jacobian: bool = False) -> Plan:
    return Plan.of(130, BITS, jacobian)


def holds(state: State, start: float = START) -> bool:
    """Whether the state's enclosure overlaps the quantile route's, which knows nothing of polynomials."""
    truth = certified_truth(PAIR, start, 0.0, 1.0).end[0]
    with working_precision(BITS):
        return Enclosure.from_ball(state.balls()[0]).overlaps(truth)


def jacobian_holds(state: State) -> bool:
    truth = certified_truth(PAIR, START, 0.0, 1.0).jacobian
    assert truth is not None
    with working_precision(BITS):
        return Enclosure.from_ball(state.jacobian()[0][0]).overlaps(truth[0][0])


def spoil(monkeypatch: pytest.MonkeyPatch, power: int, by: float, only_first: bool = False) -> None:
    """Add ``by x^power`` to the first coordinate's polynomial at every step, or at the first."""
    honest, calls = flow.approximate, []

    def spoiled(*arguments: Any) -> tuple[list[arb_poly], int]:
        polynomials, order = honest(*arguments)
        calls.append(order)
        if not only_first or len(calls) == 1:
            polynomials[0] = polynomials[0] + arb_poly([0] * power + [by])
        return polynomials, order

    monkeypatch.setattr(flow, "approximate", spoiled)


def test_a_spoiled_polynomial_widens_the_bound_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = run(sharp())
    assert holds(clean)
    assert clean.error < arb(2) ** -120
    for power in (0, 1, 3):
        with monkeypatch.context() as patch:
            spoil(patch, power, SPOILED)
            state = run(sharp())
        assert holds(state)
        assert state.error > arb(2) ** -80


def test_a_dropped_defect_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, SPOILED)
    monkeypatch.setattr(flow, "defect_bound", lambda *_: arb(0))
    assert not holds(run(sharp()))


def test_a_dropped_known_part_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, SPOILED)
    monkeypatch.setattr(defect, "known_part", lambda *_: arb(0))
    assert not holds(run(sharp()))


def test_a_dropped_tail_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Degree 8 with long steps: the tail is all there is.
    coarse = Plan(defect=-40.0, bits=BITS, order=8, jacobian=False)
    assert holds(run(coarse))
    monkeypatch.setattr(defect.DiscBound, "tail", lambda *_: arb(0))
    assert not holds(run(coarse))


@pytest.mark.parametrize("wrong", [lambda mu: mu / 2, lambda mu: -abs(mu), lambda mu: mu - 2])
def test_a_wrong_logarithmic_norm_is_seen(wrong: Callable[[arb], arb], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = flow.log_norms
    spoil(monkeypatch, 0, SPOILED, only_first=True)
    monkeypatch.setattr(flow, "log_norms", lambda *a: [(length, wrong(mu)) for length, mu in honest(*a)])
    assert not holds(run(sharp()))


def test_a_dropped_start_of_a_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jump from one polynomial to the next is the only trace of a displaced start."""
    spoil(monkeypatch, 0, SPOILED)
    honest: Any = flow._errors

    def without_jump(field: Any, polynomial: list[arb_poly], *others: Any) -> Any:
        *before, state, share = others
        return honest(field, polynomial, *before, replace(state, z=[p[0] for p in polynomial]), share)

    monkeypatch.setattr(flow, "_errors", without_jump)
    assert not holds(run(sharp()))


def test_a_tube_that_is_left_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "TUBE_SHARES", (1.0 + 2.0**-30,))
    with pytest.raises(CertificationError, match="stays in its tube"):
        run(sharp())


def test_without_the_check_of_the_tube_a_wrong_state_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A polynomial displaced across the watershed runs to the other mode, where errors are damped."""
    start = -0.02
    with monkeypatch.context() as patch:
        spoil(patch, 0, 0.5, only_first=True)
        with pytest.raises(CertificationError, match="tube"):
            run(sharp(), start)
    spoil(monkeypatch, 0, 0.5, only_first=True)
    monkeypatch.setattr(flow, "TUBE_SHARES", (2.0**-20,))
    monkeypatch.setattr(flow, "stays_inside", lambda *_: None)
    assert not holds(run(sharp(), start), start)


def test_the_jacobian_needs_its_defect_and_the_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jacobian_holds(run(sharp(jacobian=True)))
    honest = flow.variational_polynomials

    def displaced(*arguments: Any) -> list[list[arb_poly]]:
        return [[q + arb_poly([0, SPOILED]) for q in column] for column in honest(*arguments)]

    with monkeypatch.context() as patch:
        patch.setattr(flow, "variational_polynomials", displaced)
        assert jacobian_holds(run(sharp(jacobian=True)))
        patch.setattr(flow, "known_part", lambda *_: arb(0))
        assert not jacobian_holds(run(sharp(jacobian=True)))
    spoil(monkeypatch, 0, SPOILED)
    assert jacobian_holds(run(sharp(jacobian=True)))
    monkeypatch.setattr(defect.DiscBound, "curvature", arb(0))
    assert not jacobian_holds(run(sharp(jacobian=True)))


# ---------------------------------------------------------------- the disc


def polynomials_at(z: Sequence[float], t: float) -> tuple[LinearField, list[arb_poly], float]:
    field = LinearField.build(PLANE)
    found, _ = flow.approximate(field, [exact(x) for x in z], exact(t), arb(1), Plan.of(100, BITS, False))
    return field, found, flow._radius(field, [p.coeffs() for p in found], exact(t))


def test_a_disc_with_a_singularity_is_refused() -> None:
    """Beyond the radius of convergence something must be singular: no margin of error may let it pass."""
    with working_precision(BITS):
        for z, t in (((0.25, -0.4), 0.75), ((-2.0, 0.5), 0.5), ((0.1, 0.1), 0.25)):
            field, found, radius = polynomials_at(z, t)
            assert defect.bound_on_disc(field, found, exact(t), arb(radius / 3), arb(0)) is not None
            assert defect.bound_on_disc(field, found, exact(t), arb(radius * 1.5), arb(0)) is None


def test_a_zero_of_the_denominator_alone_is_refused() -> None:
    """At a constant state between two modes D = 1 + e^w(x) with w linear: its zeros are known, at w = i pi."""
    with working_precision(BITS):
        field = LinearField.build(Mixture([1, 1], [-1, 1], [1, 1]))
        # p(x) = 6 i pi x is real for no such x; take p = 40 x, so that w = -2 a p/lambda has its first zero nearby.
        path, t = [arb_poly([0, 40])], arb(0.5)
        zero = cmath.pi / (40 * 2 * 0.5 / 0.5)
        assert defect.bound_on_disc(field, path, t, arb(0.8 * zero), arb(0)) is not None
        # Well inside, and short of the zeros of lambda at |x| = 0.5.
        assert defect.bound_on_disc(field, path, t, arb(1.5 * zero), arb(0)) is None


def test_bounds_on_the_disc_are_bounds() -> None:
    """Coefficients of v along the polynomial obey ``|f_n| <= M R^-n``; derivatives over the margin hold the matrix."""
    with working_precision(BITS, length=30):
        field, found, radius = polynomials_at((0.25, -0.4), 0.75)
        disc = defect.bound_on_disc(field, found, arb(0.75), arb(radius / 3), arb(2) ** -8)
        assert disc is not None
        curve, time = [arb_series(p) for p in found], arb_series([arb(0.75), -1])
        for bound, series in zip(disc.velocity, field.velocity_series(curve, time), strict=True):
            assert all(abs(series[n]) <= bound / disc.radius**n for n in range(30))
        matrix = field.jacobian_box([p(arb(0)) for p in found], arb(0.75))
        assert sum((entry**2 for entry in matrix.entries()), arb(0)).sqrt() <= disc.jacobian
        # The series' constant term is the box's matrix: two formulas for one derivative.
        for i, row in enumerate(field.jacobian_series(curve, time)):
            assert all(series[0].overlaps(matrix[i, j]) for j, series in enumerate(row))
            assert all(matrix[i, j].rad() < 1e-40 for j in range(2))


def test_turns_about_zero_are_counted() -> None:
    def half_turn(turns: float) -> list[complex]:
        return [cmath.exp(2j * cmath.pi * turns * k / 16) for k in range(17)]

    assert defect._no_zero(half_turn(0))
    assert not defect._no_zero(half_turn(1))
    assert not defect._no_zero(half_turn(-2))


def test_a_step_beyond_the_disc_and_a_short_series_are_refused() -> None:
    disc = defect.DiscBound(arb(1), [arb(1)], arb(0))
    with pytest.raises(CertificationError, match="a step inside the disc"):
        disc.tail(arb(1), 10, arb(1))
    with working_precision(64, length=3), pytest.raises(CertificationError, match="as long as the polynomial"):
        defect.known_part(arb_poly([1, 1, 1, 1]), arb_series([1]), arb(1))


# ---------------------------------------------------------------- logarithmic norms


def test_log_norms_bound_the_greatest_eigenvalue() -> None:
    generator = np.random.default_rng(2)
    # At this precision sums of float64 are exact.
    with working_precision(BITS):
        _check_log_norms(generator)


def _check_log_norms(generator: np.random.Generator) -> None:
    for d in (1, 2, 3, 8):
        for scale in (1e-3, 1.0, 1e4):
            matrix = scale * generator.standard_normal((d, d))
            bound, width = log_norm_bound(arb_mat(matrix.tolist()))
            greatest = float(np.linalg.eigvalsh(-(matrix + matrix.T) / 2)[-1])
            assert greatest <= float(bound) <= greatest + 1e-6 * (1 + scale)
            assert width == 0
            # Every matrix of a box is meant: those at its corners too.
            radius = 0.1 * scale
            wide, _ = log_norm_bound(arb_mat([[arb(x, radius) for x in row] for row in matrix.tolist()]))
            for _ in range(20):
                corner = matrix + radius * generator.choice([-1.0, 1.0], (d, d))
                assert float(np.linalg.eigvalsh(-(corner + corner.T) / 2)[-1]) <= float(wide)


def test_positive_definiteness_is_never_claimed_of_a_box_that_holds_another() -> None:
    def rows(diagonal: float, off: float, radius: float) -> list[list[arb]]:
        return [[arb(diagonal, radius), arb(off, radius)], [arb(off, radius), arb(diagonal, radius)]]

    assert positive_definite(rows(1.0, 0.5, 0.1))
    assert not positive_definite(rows(1.0, 1.0, 0.0))
    assert not positive_definite(rows(1.0, 1.5, 0.0))
    assert not positive_definite(rows(1.0, 0.95, 0.1))
    with pytest.raises(CertificationError, match="no finite enclosure"):
        log_norm_bound(arb_mat([[arb("nan")]]))


# ---------------------------------------------------------------- quantiles and precision


def test_a_wrong_quantile_is_widened_or_refused() -> None:
    truth = certified_truth(PAIR, START, 0.25, 1.0).end[0]
    with working_precision(BITS):
        field = BallField.build(PAIR, LinearSchedule())
        start, finish = (Marginal.of(field.terms[0][1], field.schedule.at(exact(t))) for t in (1.0, 0.25))
        mass = start.tail(exact(START), 1)
        for offset in (2.0**-190, 2.0**-120):
            found = certified_quantile(finish, mass, 1, arb(truth.mid) + offset, BITS)
            assert Enclosure.from_ball(found).overlaps(truth)
            assert found.rad() > offset / 2
        with pytest.raises(CertificationError, match="the signs of"):
            certified_quantile(finish, mass, 1, arb(0.5), BITS)


def test_parameters_made_at_low_precision_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def low(bits: int, length: int = 2) -> Iterator[None]:
        """A context that does not set the precision: what forgetting it amounts to."""
        before = ctx.prec
        yield
        ctx.prec = before

    with monkeypatch.context() as patch:
        patch.setattr(certify, "working_precision", low)
        for point in ((0.5, 0.25, 0.75), (0.5, 0.5, 0.5)):
            with pytest.raises(CertificationError, match=r"bits are missing|signs of"):
                certified_truth(PAIR, *point)
    with working_precision(53):
        early = BallField.build(Mixture([5, 3], [-1, 1], [0.3, 0.7]), LinearSchedule())
    with working_precision(BITS):
        late = early.velocity([exact(0.5)], exact(0.5))[0]
        now = BallField.build(Mixture([5, 3], [-1, 1], [0.3, 0.7]), LinearSchedule()).velocity(
            [exact(0.5)], exact(0.5)
        )[0]
    # Still an enclosure, but for ever of 16 digits.
    assert late.overlaps(now)
    assert Enclosure.from_ball(late).digits < 18
    assert Enclosure.from_ball(now, 60).digits > 50
