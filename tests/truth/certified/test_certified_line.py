"""One dimension: quantile enclosures against closed forms, mpmath, and the library's float64 values."""

from __future__ import annotations

from fractions import Fraction

import mpmath as mp
import pytest
import torch
from certified_cases import LINE, PATHS, apart, entries, floats, worst_ratio

from meanflow_ref.errors import CertificationError
from meanflow_ref.fields import GaussianMixture
from meanflow_ref.paths import VariancePreservingPath
from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.certified import CertifiedTruth, Enclosure, Mixture, certified_truth

# z, r, t: whole and inner intervals, short ones, both ends of time, far tails.
POINTS = [
    (0.7, 0.0, 1.0),
    (-1.3, 0.2, 0.9),
    (0.25, 0.5, 0.5 + 2.0**-40),
    (1.0, 0.0, 1e-12),
    (0.3, 1 - 1e-9, 1.0),
    (30.0, 0.1, 0.9),
    (-200.0, 0.0, 0.5),
    (1.1, 0.0, 0.05),
]


def mp_schedule(path: str, t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """alpha and sigma by mpmath."""
    if path == "linear":
        return 1 - t, t
    if path == "trigonometric":
        return mp.cos(mp.pi * t / 2), mp.sin(mp.pi * t / 2)
    low, high = mp.mpf(VariancePreservingPath().beta_min), mp.mpf(VariancePreservingPath().beta_max)
    alpha = mp.exp(-t * t * (high - low) / 4 - t * low / 2)
    return alpha, mp.sqrt(1 - alpha * alpha)


def holds(enclosure: Enclosure, value: mp.mpf) -> bool:
    """Whether a number of mpmath, good to 1e-58 of itself, lies in the enclosure."""
    exact = Fraction(mp.nstr(value, 60))
    slack = abs(exact) * Fraction(1, 10**58)
    return enclosure.lower - slack <= exact <= enclosure.upper + slack


@pytest.mark.parametrize("path", PATHS)
def test_normal_data_hold_the_closed_form(path: str) -> None:
    """K = 1: the flow scales ``z - alpha m`` by ``sqrt(lambda_r/lambda_t)``; velocities by mpmath's differentiation."""
    mean, std = 0.75, 0.3
    with mp.workdps(90):

        def flow(z: mp.mpf, t: mp.mpf, r: mp.mpf) -> mp.mpf:
            (a, b), (c, d) = mp_schedule(path, t), mp_schedule(path, r)
            variance = mp.mpf(std) ** 2
            return c * mean + mp.sqrt((c * c * variance + d * d) / (a * a * variance + b * b)) * (z - a * mean)

        for z, r, t in ((0.5, 0.125, 0.75), (-4.0, 0.25, 0.5), (1.5, 0.5, 0.9)):
            truth = certified_truth(Mixture([1], [mean], [std]), z, r, t, path=PATHS[path])
            z_, r_, t_ = mp.mpf(z), mp.mpf(r), mp.mpf(t)
            u = (z_ - flow(z_, t_, r_)) / (t_ - r_)
            v = mp.diff(lambda s: flow(z_, t_, s), t_)  # noqa: B023
            v_end = mp.diff(lambda s: flow(z_, t_, s), r_)  # noqa: B023
            slope = flow(mp.mpf(1), t_, r_) - flow(mp.mpf(0), t_, r_)
            expected = {
                "u[0]": u,
                "v[0]": v,
                "v_end[0]": v_end,
                "du_dt[0]": (v - u) / (t_ - r_),
                "dr_u[0]": (u - v_end) / (t_ - r_),
                "jacobian[0][0]": slope,
                "dz_u[0][0]": (1 - slope) / (t_ - r_),
                "log_det_jacobian": mp.log(slope),
            }
            found = dict(entries(truth))
            for name, value in expected.items():
                # The numerical derivative is good to about half of the 90 digits.
                assert abs(mp.mpf(found[name].mid) - value) < mp.mpf(10) ** -35, (name, z)
            for name in ("u[0]", "jacobian[0][0]", "log_det_jacobian", "dz_u[0][0]"):
                assert holds(found[name], expected[name]), (name, z)


@pytest.mark.parametrize("path", PATHS)
def test_mixtures_hold_mpmath_s_quantile(path: str) -> None:
    """mpmath's secant solver on its own erfc: no shared code, 60 digits."""
    with mp.workdps(70):
        for z, r, t in ((0.5, 0.125, 0.75), (1.75, 0.25, 0.5)):

            def below(y: mp.mpf, time: mp.mpf) -> mp.mpf:
                a, b = mp_schedule(path, time)
                return sum(
                    w * mp.erfc((a * mp.mpf(m) - y) / mp.sqrt(2 * ((a * mp.mpf(s)) ** 2 + b * b)))
                    for w, m, s in ((5, -1.5, 0.3), (3, 0.4, 0.5), (2, 2.0, 0.2))
                )

            truth = certified_truth(LINE, z, r, t, path=PATHS[path])
            wanted = below(mp.mpf(z), mp.mpf(t))
            start = mp.mpf(truth.end[0].to_float)
            end = mp.findroot(lambda y: below(y, mp.mpf(r)) - wanted, start)  # noqa: B023
            assert holds(truth.end[0], end)
            assert holds(truth.u[0], (mp.mpf(z) - end) / (mp.mpf(t) - mp.mpf(r)))


@pytest.mark.parametrize("path", PATHS)
def test_float64_values_lie_within_the_error_they_claim(path: str) -> None:
    field = GaussianMixture(floats(0.5, 0.3, 0.2), floats(-1.5, 0.4, 2.0), floats(0.3, 0.5, 0.2), PATHS[path])
    generator = torch.Generator().manual_seed(4)
    times = torch.rand(12, 2, dtype=torch.float64, generator=generator).sort(1).values.tolist()
    states = (2 * torch.randn(12, dtype=torch.float64, generator=generator)).tolist()
    points = [*POINTS, *((z, r, t) for z, (r, t) in zip(states, times, strict=True))]
    for z, r, t in points:
        truth = certified_truth(field, z, r, t)
        assert worst_ratio(truth, field, [z], r, t) <= 1, (z, r, t)


@pytest.mark.parametrize("path", PATHS)
def test_36_digits_everywhere(path: str) -> None:
    for z, r, t in POINTS:
        truth = certified_truth(LINE, z, r, t, path=PATHS[path])
        # A value below 1e-6 has its digits relative to 1e-6.
        short = [name for name, one in entries(truth) if one.digits < 36 and Fraction(one.rad) > Fraction(1, 10**42)]
        assert short == [], (z, r, t)
        assert truth.u[0].correctly_rounded


@pytest.mark.parametrize("path", PATHS)
def test_the_limit_joins_short_intervals(path: str) -> None:
    """At h = 2^-40 the next term of each quantity is of order h: 1e-12 times derivatives of some 1e3 here."""
    for z, t in ((0.5, 0.5), (-2.0, 0.75), (1.7, 0.3)):
        limit = certified_truth(LINE, z, t, t, path=PATHS[path])
        near = certified_truth(LINE, z, t - 2.0**-40, t, path=PATHS[path])
        for (name, one), (_, two) in zip(entries(limit), entries(near), strict=True):
            assert abs(one.to_float - two.to_float) < 1e-8, (name, z, t)
        assert limit.method == "limit"
        assert limit.log_det_jacobian == Enclosure("0", "0")


def test_the_limit_at_both_ends_of_time() -> None:
    # At t = 0 the linear velocity is -z: u = v = -z, exactly, of data that are all there.
    start = certified_truth(LINE, 0.5, 0.0, 0.0)
    assert start.u[0].contains(-0.5)
    assert start.u[0].digits >= 36
    for path in PATHS.values():
        assert certified_truth(LINE, 0.5, 1.0, 1.0, path=path).du_dt[0].digits >= 36
        assert certified_truth(LINE, 0.5, 0.0, 0.0, path=path).du_dt[0].digits >= 36


def test_a_symmetric_state_encloses_zero() -> None:
    truth = certified_truth(Mixture([1, 1], [-2, 2], [0.05, 0.05]), 0.0, 0.0, 1.0)
    assert truth.u[0].contains(0)
    assert Fraction(truth.u[0].rad) < Fraction(1, 10**40)


def test_the_separatrix_of_narrow_modes() -> None:
    """J is some e^800 at z = 0: precision is raised until the quantile is known in spite of it."""
    narrow = Mixture([1, 1], [-2, 2], [0.05, 0.05])
    near = certified_truth(narrow, 1e-300, 0.0, 1.0)
    assert near.u[0].digits >= 36
    # The mass between z = 0 and 1e-300 is 4e-301: phi lies far inside the gap, where the density is still smaller.
    assert 0 < near.end[0].to_float < 1.5
    assert near.log_det_jacobian is not None
    assert near.log_det_jacobian.to_float > 500


def test_far_tails_keep_their_digits() -> None:
    """At z = 200 the tail is e^-20000; the outermost widest mode alone decides, so u is nearly its closed form."""
    truth = certified_truth(LINE, 200.0, 0.0, 1.0)
    # Component 1, (m, s) = (0.4, 0.5), has the heaviest tail: phi = m + s z, up to log(0.3)/z.
    assert truth.end[0].to_float == pytest.approx(0.4 + 0.5 * 200, abs=1e-2)
    assert min(one.digits for _, one in entries(truth)) >= 36


def test_more_digits_refine_the_same_number() -> None:
    coarse, fine = (certified_truth(LINE, 0.7, 0.1, 0.9, digits=digits) for digits in (12, 120))
    assert apart(coarse, fine) == []
    assert fine.u[0].digits >= 120
    assert len(fine.u[0].mid) > 120


def test_an_unreachable_number_of_digits_is_refused() -> None:
    with pytest.raises(CertificationError, match="bits"):
        certified_truth(LINE, 1e60, 0.0, 1.0, digits=36)


def test_inputs_may_be_fractions() -> None:
    third: CertifiedTruth = certified_truth(LINE, Fraction(1, 3), 0, 1)
    rounded = certified_truth(LINE, 1 / 3, 0, 1)
    assert not third.u[0].overlaps(rounded.u[0])
    assert third.u[0].to_float == pytest.approx(rounded.u[0].to_float, abs=1e-15)


def test_derivatives_agree_with_the_library_s() -> None:
    field = GaussianMixture(floats(0.5, 0.3, 0.2), floats(-1.5, 0.4, 2.0), floats(0.3, 0.5, 0.2))
    for z, r, t in ((0.7, 0.0, 1.0), (-1.3, 0.2, 0.9), (1.1, 0.0, 0.05)):
        truth = certified_truth(field, z, r, t)
        claimed = average_velocity(field, floats(z)[None], r, t, derivatives=True)
        assert claimed.du_dt is not None
        assert claimed.dr_u is not None
        assert claimed.dz_u is not None
        assert truth.dz_u is not None
        # The library divides its error by max(t - r, 2^-5).
        bound = float(claimed.error) / max(t - r, 2.0**-5)
        assert truth.du_dt[0].distance(float(claimed.du_dt)) <= bound
        assert truth.dr_u[0].distance(float(claimed.dr_u)) <= bound
        assert truth.dz_u[0][0].distance(float(claimed.dz_u)) <= bound
