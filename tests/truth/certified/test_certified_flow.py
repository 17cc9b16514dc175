"""Any dimension: validated trajectories against independent enclosures, and against the library's float64 values."""

from __future__ import annotations

from fractions import Fraction

import mpmath as mp
import pytest
import torch
from certified_cases import GUIDED, LINE, PATHS, PLANE, apart, entries, floats, worst_ratio
from flint import arb, arb_mat

from meanflow_ref.errors import CertificationError
from meanflow_ref.fields import ClassConditional, Gaussian, GaussianMixture, Guided
from meanflow_ref.truth import average_velocity
from meanflow_ref.truth.certified import Combination, Enclosure, Mixture, certified_truth, working_precision

# How far apart are two enclosures' midpoints allowed to be where they must agree to this many digits.
THIRTY = Fraction(1, 10**30)


def ball(enclosure: Enclosure) -> arb:
    return arb(enclosure.mid) + arb(0, arb(enclosure.rad))


@pytest.mark.parametrize("path", PATHS)
def test_one_dimension_overlaps_quantile_transport(path: str) -> None:
    """Two proofs that share no theorem: Taylor polynomials on the linear path, carried over; quantiles natively."""
    for z, r, t in ((0.7, 0.0, 1.0), (-1.3, 0.25, 0.5), (0.25, 0.5, 0.5 + 2.0**-40)):
        flow = certified_truth(LINE, z, r, t, path=PATHS[path], method="flow", jacobian=True)
        quantile = certified_truth(LINE, z, r, t, path=PATHS[path])
        assert (flow.method, quantile.method) == ("flow", "quantile")
        assert apart(flow, quantile) == []
        assert min(one.digits for _, one in entries(flow)) >= 30


def test_a_product_overlaps_its_factors() -> None:
    """Independent coordinates: a mixture of 2 x 3 components in the plane, each coordinate by its own quantiles."""
    one, two = Mixture([2, 1], [-1.0, 0.5], [0.4, 0.25]), Mixture([1, 1, 2], [0.0, 1.5, -1.0], [0.3, 0.5, 0.4])
    pairs = [(k, j) for k in range(2) for j in range(3)]
    product = Mixture.from_variances(
        [one.weights[k] * two.weights[j] for k, j in pairs],
        [(*one.means[k], *two.means[j]) for k, j in pairs],
        [(*one.variances[k], *two.variances[j]) for k, j in pairs],
    )
    z, r, t = (0.3, -0.8), 0.125, 0.875
    whole = certified_truth(product, z, r, t, jacobian=True)
    assert whole.jacobian is not None
    for i, factor in enumerate((one, two)):
        alone = certified_truth(factor, z[i], r, t)
        assert alone.jacobian is not None
        for name in ("v", "u", "du_dt", "dr_u", "end", "v_end"):
            assert getattr(whole, name)[i].overlaps(getattr(alone, name)[0]), name
        assert whole.jacobian[i][i].overlaps(alone.jacobian[0][0])
        # Coordinates do not influence each other.
        assert whole.jacobian[i][1 - i].contains(0)
        assert Fraction(whole.jacobian[i][1 - i].rad) < THIRTY


def test_normal_data_hold_the_closed_form() -> None:
    """K = 1 with four different variances: ``z - a m`` is scaled by ``sqrt(lambda_r/lambda_t)``, at 50 digits."""
    mean, std, z = (0.5, -1.0, 0.25, 2.0), (0.3, 1.0, 0.05, 2.0), (0.1, -0.2, 0.3, 0.4)
    r, t = 0.25, 0.75
    truth = certified_truth(Mixture([1], [mean], [std]), z, r, t, jacobian=True)
    assert truth.jacobian is not None
    with mp.workdps(60):
        for i in range(4):
            s, m = mp.mpf(std[i]) ** 2, mp.mpf(mean[i])
            scale = mp.sqrt(((1 - r) ** 2 * s + mp.mpf(r) ** 2) / ((1 - t) ** 2 * s + mp.mpf(t) ** 2))
            end = (1 - r) * m + scale * (mp.mpf(z[i]) - (1 - t) * m)
            assert truth.end[i].contains(mp.nstr(end, 55))
            assert truth.jacobian[i][i].contains(mp.nstr(scale, 55))


def test_the_determinant_overlaps_the_densities() -> None:
    """J by the variational equation, ``log p_t(z) - log p_r(phi)`` by the densities: two proofs of one number."""
    for path in PATHS.values():
        truth = certified_truth(PLANE, (0.25, -0.4), 0.375, 0.75, path=path, jacobian=True)
        assert truth.jacobian is not None
        assert truth.log_det_jacobian is not None
        with working_precision(200):
            determinant = arb_mat([[ball(entry) for entry in row] for row in truth.jacobian]).det()
            assert determinant.log().overlaps(ball(truth.log_det_jacobian))
            assert determinant.rad() < 1e-28


def test_the_jacobian_overlaps_a_difference_quotient() -> None:
    """Central differences of certified states: the remainder, ``e^2/6`` times a third derivative, is below 1e-20."""
    z, r, t, e = (0.25, -0.4), 0.25, 0.75, 2.0**-40
    truth = certified_truth(GUIDED, z, r, t, jacobian=True)
    assert truth.jacobian is not None
    for j in range(2):
        ahead, behind = (
            certified_truth(GUIDED, [Fraction(x) + Fraction(s * e) * (i == j) for i, x in enumerate(z)], r, t)
            for s in (1, -1)
        )
        for i in range(2):
            quotient = (Fraction(ahead.end[i].mid) - Fraction(behind.end[i].mid)) / (2 * Fraction(e))
            assert truth.jacobian[i][j].distance(quotient) < 1e-20


def test_a_transferred_trajectory_overlaps_the_native_velocity() -> None:
    """u on another path is ``1/h`` times the integral of that path's own v: at a small h, its Taylor expansion."""
    for path in PATHS.values():
        z, t, h = (0.25, -0.4), 0.5, 2.0**-60
        near = certified_truth(PLANE, z, Fraction(t) - Fraction(h), t, path=path, jacobian=True)
        limit = certified_truth(PLANE, z, t, t, path=path, jacobian=True)
        for (name, one), (_, two) in zip(entries(near), entries(limit), strict=True):
            assert abs(Fraction(one.mid) - Fraction(two.mid)) < 1e-14, name


def test_float64_values_lie_within_the_error_they_claim() -> None:
    means = torch.tensor([[-1.0, 0.5], [1.2, 0.3], [0.1, -1.1]], dtype=torch.float64)
    for path in PATHS.values():
        field = GaussianMixture(floats(0.5, 0.3, 0.2), means, floats(0.3, 0.5, 0.4), path)
        truth = certified_truth(field, [0.25, -0.4], 0.25, 0.75)
        assert worst_ratio(truth, field, [0.25, -0.4], 0.25, 0.75) <= 1
    normal = Gaussian(floats(0.5, -1.0), torch.diag(floats(0.3, 2.0)))
    truth = certified_truth(normal, [1.0, 0.5], 0.125, 0.75)
    assert worst_ratio(truth, normal, [1.0, 0.5], 0.125, 0.75) <= 1


def test_the_library_s_guided_field_lies_within_its_error() -> None:
    """Guidance by converted classes: the velocity, the trajectory and its derivatives."""
    one = GaussianMixture(floats(0.5, 0.5), torch.tensor([[-1.0, 0.5], [1.2, 0.3]]).double(), floats(0.3, 0.5))
    two = GaussianMixture(floats(1.0), torch.tensor([[0.1, -1.1]]).double(), floats(0.4))
    field = Guided(ClassConditional((one, two), floats(0.7, 0.3)), 0, 1.5, 0.4)
    z, r, t = [0.25, -0.4], 0.375, 0.75
    truth = certified_truth(field, z, r, t, jacobian=True)
    assert worst_ratio(truth, field, z, r, t) <= 1
    claimed = average_velocity(field, floats(*z)[None], r, t, tol=1e-11, derivatives=True)
    assert claimed.jacobian is not None
    assert truth.jacobian is not None
    # The ODE route's variational states are solved to the same tolerance; 1e-8 leaves room for their growth.
    for row, wanted in zip(truth.jacobian, claimed.jacobian[0].tolist(), strict=True):
        assert all(one.distance(value) < 1e-8 for one, value in zip(row, wanted, strict=True))
    # A guided field has no density; its log-determinant needs the matrix.
    assert truth.log_det_jacobian is not None
    assert certified_truth(field, z, r, t).log_det_jacobian is None


def test_mpmath_solves_the_same_equation() -> None:
    """Not a proof but an outsider: mpmath's Taylor solver of an independent transcription of the guided field."""
    z, r, t = (0.25, -0.4), 0.5, 0.625
    truth = certified_truth(GUIDED, z, r, t)
    with mp.workdps(24):

        def mixture(y: list[mp.mpf], s: mp.mpf, weights: list[int]) -> list[mp.mpf]:
            a, total, sums = 1 - s, mp.mpf(0), [mp.mpf(0)] * 2
            for weight, mean, std in zip(weights, PLANE.means, (0.3, 0.5, 0.4), strict=False):
                spread = (a * mp.mpf(std)) ** 2 + s * s
                offset = [y[i] - a * mp.mpf(float(mean[i])) for i in range(2)]
                share = weight * mp.exp(-(offset[0] ** 2 + offset[1] ** 2) / (2 * spread)) / spread
                total += share
                for i in range(2):
                    sums[i] += share * (-mp.mpf(float(mean[i])) + (s - a * mp.mpf(std) ** 2) / spread * offset[i])
            return [value / total for value in sums]

        def backwards(x: mp.mpf, y: list[mp.mpf]) -> list[mp.mpf]:
            s, scale = t - x, mp.mpf(1.5) / (1 - mp.mpf(0.4))
            cond, every = mixture(y, s, [5, 3]), mixture(y, s, [5, 3, 2])
            return [-(scale * c + (1 - scale) * e) for c, e in zip(cond, every, strict=True)]

        end = mp.odefun(backwards, 0, [mp.mpf(x) for x in z], tol=mp.mpf(10) ** -18)(mp.mpf(t - r))
        for found, value in zip(truth.end, end, strict=True):
            # The solver's tolerance with room for its own estimate of it.
            assert abs(mp.mpf(found.mid) - value) < mp.mpf(10) ** -16


@pytest.mark.parametrize(
    ("name", "field", "z", "r", "t"),
    [
        ("narrow modes", Mixture([1, 1], [[-2.0, 0.0], [2.0, 0.0]], [0.05, 0.05]), (0.5, 0.2), 0.0, 1.0),
        ("near a separatrix", Mixture([1, 1], [[-2.0, 0.3], [2.0, -0.1]], [0.5, 0.2]), (1e-6, 0.1), 0.0, 1.0),
        ("far tail", PLANE, (12.0, -9.0), 0.75, 1.0),
        ("short", PLANE, (0.3, -0.4), 0.5, 0.5 + 1e-12),
        ("short at 0", PLANE, (0.3, -0.4), 0.0, 1e-12),
        ("near 1", PLANE, (0.3, -0.4), 1 - 1e-6, 1.0),
        ("subnormal", PLANE, (0.3, -0.4), 0.0, 2.0**-1070),
        ("symmetric", Mixture([1, 1], [[-1.0, 0.0], [1.0, 0.0]], [0.5, 0.5]), (0.0, 0.0), 0.25, 0.75),
    ],
)
def test_30_digits_in_hard_regions(name: str, field: Mixture, z: tuple[float, ...], r: float, t: float) -> None:
    truth = certified_truth(field, z, r, t)
    # A value below 1e-6 has its digits relative to 1e-6.
    short = [key for key, one in entries(truth) if one.digits < 30 and Fraction(one.rad) > Fraction(1, 10**36)]
    assert short == [], name


def test_eight_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    means = (1.2 * torch.randn(4, 8, dtype=torch.float64, generator=generator)).tolist()
    z = torch.randn(8, dtype=torch.float64, generator=generator).tolist()
    field = Mixture([4, 3, 2, 1], means, [0.4, 0.6, 0.3, 0.5])
    truth = certified_truth(field, z, 0.5, 1.0)
    assert min(one.digits for one in (*truth.u, *truth.du_dt, *truth.dr_u)) >= 29


@pytest.mark.slow
def test_eight_dimensions_with_the_jacobian() -> None:
    generator = torch.Generator().manual_seed(0)
    means = (1.2 * torch.randn(4, 8, dtype=torch.float64, generator=generator)).tolist()
    z = torch.randn(8, dtype=torch.float64, generator=generator).tolist()
    guided = Combination.guided(
        Mixture([4, 3], means[:2], [0.4, 0.6]), Mixture([4, 3, 2, 1], means, [0.4, 0.6, 0.3, 0.5]), 2.5
    )
    for field in (guided.terms[1][1], guided):
        truth = certified_truth(field, z, 0.0, 1.0, jacobian=True)
        assert truth.jacobian is not None
        assert truth.log_det_jacobian is not None
        with working_precision(200):
            determinant = arb_mat([[ball(entry) for entry in row] for row in truth.jacobian]).det()
            assert determinant.log().overlaps(ball(truth.log_det_jacobian))


def test_a_trajectory_on_which_errors_explode_is_refused() -> None:
    with pytest.raises(CertificationError, match="errors grow by about"):
        certified_truth(Mixture([1, 1], [[-2.0, 0.0], [2.0, 0.0]], [0.05, 0.05]), (0.0, 0.2), 0.0, 1.0)
