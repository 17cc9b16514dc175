"""Boxes against scipy's truncated normal law, integration over the data, and 60-digit roots."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from meanflow_ref.errors import NoClosedFormError, ParameterError, ShapeError
from meanflow_ref.fields import GaussianMixture, Product, Uniform, UniformBoxes
from meanflow_ref.paths import LINEAR, VARIANCE_PRESERVING, AbstractPath

EPS = 2.0**-52


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_velocity_against_the_truncated_normal_law(t: float) -> None:
    """Given z, the noise is standard normal truncated to where x = (z - t eps)/(1 - t) lies in the box."""
    field = Uniform(tensor(-1.0), tensor(1.0))
    z = torch.linspace(-4, 4, 33, dtype=torch.float64)[:, None] * (0.3 + t)
    v, variance = field.velocity(z, t)[:, 0], field.velocity_covariance(z, t)[:, 0, 0]
    for i, y in enumerate(z[:, 0].tolist()):
        with mp.workdps(60):
            y_, t_ = mp.mpf(y), mp.mpf(t)
            a = 1 - t_
            if a == 0:
                mean_x, variance_x = mp.mpf(0), mp.mpf(1) / 3
            else:
                low, high = (y_ - a) / t_, (y_ + a) / t_
                mass = mp.ncdf(high) - mp.ncdf(low) if low < 0 else mp.ncdf(-low) - mp.ncdf(-high)
                noise = (mp.npdf(low) - mp.npdf(high)) / mass
                spread = 1 + (low * mp.npdf(low) - high * mp.npdf(high)) / mass - noise**2
                mean_x, variance_x = (y_ - t_ * noise) / a, spread * (t_ / a) ** 2
            reference_v, reference_variance = float((y_ - mean_x) / t_), float(variance_x / t_**2)
        # z - x is formed from rounded z and 1 - t, then divided by t.
        assert abs(float(v[i]) - reference_v) < 8 * EPS * (1 + abs(y)) / t
        assert abs(float(variance[i]) - reference_variance) < 1e-13 * reference_variance


@pytest.mark.parametrize("z", [-30.0, 8.0, 1e4])
def test_velocity_in_the_tails_against_scipy(z: float) -> None:
    field = Uniform(tensor(-1.0), tensor(1.0))
    t = 0.6
    low, high = (z - 0.4) / t, (z + 0.4) / t
    nearest = low if z > 0 else high
    # Far out the noise sits on the near edge: mean = edge + 1/edge - 2/edge^3 + ... (Mills' ratio).
    series = nearest + 1 / nearest - 2 / nearest**3 + 10 / nearest**5 - 74 / nearest**7
    noise = series if abs(nearest) > 40 else float(stats.truncnorm.mean(low, high))
    expected = noise - (z - t * noise) / 0.4
    assert abs(float(field.velocity(tensor(z)[None], t)) - expected) < 1e-10 * abs(z)


def test_log_tail_against_mpmath() -> None:
    field = UniformBoxes(tensor(-2.0, 0.5)[:, None], tensor(-1.0, 2.0)[:, None], tensor(0.3, 0.7))
    for y in (-12.0, -3.0, -1.2, 0.0, 1.9, 5.0):
        for t in (1e-2, 0.3, 1.0 - 1e-9):
            with mp.workdps(60):
                a, b = mp.mpf(1) - mp.mpf(t), mp.mpf(t)
                tails = []
                for sign in (1, -1):
                    total = mp.mpf(0)
                    for w, low, high in ((0.3, -2.0, -1.0), (0.7, 0.5, 2.0)):
                        ends = sorted([sign * (y - a * low) / b, sign * (y - a * high) / b])
                        primitive = [x * mp.ncdf(x) + mp.npdf(x) for x in ends]  # of the distribution function
                        total += mp.mpf(w) * (primitive[1] - primitive[0]) / (ends[1] - ends[0])
                    tails.append(float(mp.log(total)))
            for side, reference in zip((1.0, -1.0), tails, strict=True):
                value = float(field._marginals.log_tail(*tensor(y, t, side)))
                # The score y/t is rounded, and the logarithm is its square.
                assert abs(value - reference) < 1e-14 * (1 + abs(reference))


def test_flow_of_one_interval_is_the_quantile() -> None:
    """Noise to data in one step is 2 Phi(z) - 1."""
    field = Uniform(tensor(-1.0), tensor(1.0))
    z = torch.linspace(-5, 5, 41, dtype=torch.float64)[:, None]
    phi = field.flow_map(z, 1.0, 0.0)[:, 0].numpy()
    assert float(np.abs(phi - (2 * stats.norm.cdf(z[:, 0].numpy()) - 1)).max()) < 8 * EPS
    # scipy's density, and the Jacobian 2 phi(z).
    slope = field.jacobian(z, 0.0, 1.0)[:, 0, 0].numpy()
    assert float(np.abs(slope - 2 * stats.norm.pdf(z[:, 0].numpy())).max()) < 16 * EPS


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1 - 1e-6])
@pytest.mark.parametrize("t", [0.9, 0.03, 1e-3, 1e-6, 1e-9])
def test_average_velocity_within_the_edge_s_layer(t: float, share: float) -> None:
    """Next to an edge v changes over a distance t: a quadrature in time from r = 0 misses it, at any t - r."""
    field, r = Uniform(tensor(-1.0), tensor(1.0)), share * t
    scores = (-5.0, -2.0, -0.5, 0.0, 1.0, 3.0)
    state = torch.tensor([[1 - t + t * q] for q in scores], dtype=torch.float64)
    u, start = field.average_velocity(state, r, t), field.flow_map(state, t, r)
    for i, z in enumerate(state[:, 0].tolist()):
        with mp.workdps(60):
            target, y = interval_tail(mp.mpf(z), mp.mpf(t))[0], mp.mpf(float(start[i]))
            for _ in range(60):
                tail, density = interval_tail(y, mp.mpf(r))
                step = (tail - target) / density
                y += step
                if abs(step) < mp.mpf(10) ** -40:
                    break
            reference = float((mp.mpf(z) - y) / (mp.mpf(t) - mp.mpf(r)))
        # u has the slope 1/t here, so a rounding of z near 1 is worth EPS/t.
        assert abs(float(u[i]) - reference) < 64 * EPS / t


def interval_tail(y: mp.mpf, t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """Mass above ``y`` and density, for data uniform on [-1, 1]."""
    if t == 0:
        return (1 - y) / 2, mp.mpf(1) / 2
    low, high = (-y - (1 - t)) / t, (-y + (1 - t)) / t
    primitive = [x * mp.ncdf(x) + mp.npdf(x) for x in (low, high)]
    width = 2 * (1 - t)
    return t * (primitive[1] - primitive[0]) / width, (mp.ncdf(high) - mp.ncdf(low)) / width


def test_density_at_time_zero_is_the_boxes() -> None:
    board = UniformBoxes.checkerboard(cells=4, extent=2.0)
    inside, outside = tensor(-1.5, -1.5)[None], tensor(-1.5, -0.5)[None]
    assert abs(float(board.log_density(inside, 0.0).exp()) - 1 / 8) < 1e-14
    assert float(board.log_density(outside, 0.0).exp()) == 0.0
    assert bool(torch.isfinite(board.velocity(inside, 0.0)).all())


@pytest.mark.parametrize("path", [LINEAR, VARIANCE_PRESERVING])
def test_fine_boxes_approach_a_smooth_law(path: AbstractPath) -> None:
    """A staircase of 160 boxes under a normal density has the variance 1 + width^2/6 (Sheppard's correction)."""
    edges = torch.linspace(-8, 8, 161, dtype=torch.float64)  # beyond 8 the mass is 1e-15
    mass = torch.special.ndtr(edges).diff()
    boxes = UniformBoxes(edges[:-1, None], edges[1:, None], mass / mass.sum(), path)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]

    def gap(variance: float) -> float:
        smooth = GaussianMixture(tensor(1.0), tensor(0.0), tensor(variance**0.5), path)
        pairs = [(boxes.velocity(z, t), smooth.velocity(z, t)) for t in (0.3, 0.6)]
        pairs.append((boxes.average_velocity(z, 0.1, 0.9), smooth.average_velocity(z, 0.1, 0.9)))
        return max(float((one - other).abs().max()) for one, other in pairs)

    # The next correction is of order width^4 = 1e-4, with factors of 1/24 and less; the first is 1.7e-3.
    assert gap(1 + 0.01 / 6) < 1e-5
    assert gap(1.0) > 1e-3


def test_box_is_the_product_of_its_sides() -> None:
    box = Uniform(tensor(-1.0, 0.5), tensor(1.0, 0.7))
    sides = Product((Uniform(tensor(-1.0), tensor(1.0)), Uniform(tensor(0.5), tensor(0.7))))
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(50, dtype=torch.float64, generator=generator)
    z = box.sample(t, generator)
    assert float((box.average_velocity(z, t / 3, t) - sides.average_velocity(z, t / 3, t)).abs().max()) < 1e-13


def test_checkerboard_samples_lie_on_its_cells() -> None:
    board = UniformBoxes.checkerboard(cells=4, extent=2.0)
    x = board.sample_data(4000, torch.Generator().manual_seed(1))
    cells = torch.floor(x + 2).long()
    assert bool(((cells.sum(-1) % 2) == 0).all())
    assert bool(((cells >= 0) & (cells < 4)).all())
    counts = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    expected = counts[counts > 0]
    assert len(expected) == 8
    # Chi-squared on 8 cells; false alarms 1e-6 (fixed seed).
    assert stats.chisquare(expected.numpy()).pvalue > 1e-6
    assert not board.exact_flow
    with pytest.raises(NoClosedFormError):
        board.flow_map(x, 1.0, 0.0)


def test_parameters_are_checked() -> None:
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ParameterError, match=r"side -0\.5"):
        Uniform(tensor(0.0, 0.0), tensor(1.0, -0.5))
    with pytest.raises(ParameterError, match="sum to 2"):
        UniformBoxes(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64), 2 * one)
    with pytest.raises(ShapeError, match="upper"):
        UniformBoxes(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64), one)
    with pytest.raises(ParameterError, match="cells"):
        UniformBoxes.checkerboard(cells=1)


def test_the_jacobian_of_a_state_far_outside_is_small_and_not_infinite() -> None:
    # It is carried to an edge of the data, and rounding may carry it beyond, where the data have no density.
    field = UniformBoxes(
        torch.tensor([[-1.0], [2.0]], dtype=torch.float64),
        torch.tensor([[1.0], [2.5]], dtype=torch.float64),
        torch.tensor([0.4, 0.6], dtype=torch.float64),
    )
    z = torch.tensor([[-60.0], [-8.0], [8.0], [60.0]], dtype=torch.float64)
    for t in (0.5, 1.0):
        assert bool((field.jacobian(z, 0.0, t).abs() < 1e-10).all())
