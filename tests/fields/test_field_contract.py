"""What every field owes, checked for every leaf on every path, and the checks themselves on wrong fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from meanflow_ref import formulas
from meanflow_ref.errors import DtypeError, NoClosedFormError, ShapeError, TimeError
from meanflow_ref.fields import (
    AbstractDataField,
    AbstractField,
    Affine,
    ClassConditional,
    Gaussian,
    GaussianMixture,
    Guided,
    LinearGaussianGuided,
    PointMasses,
    Product,
    Shell,
    Transferred,
    Uniform,
    UniformBoxes,
)
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC, VARIANCE_PRESERVING, AbstractPath

PATHS: dict[str, AbstractPath] = {"linear": LINEAR, "trig": TRIGONOMETRIC, "vp": VARIANCE_PRESERVING}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(path: AbstractPath) -> Gaussian:
    root = randn(3, 3, seed=1)
    return Gaussian(randn(3, seed=2), root @ root.mT / 3 + 0.05 * torch.eye(3, dtype=torch.float64), path)


def mixture(path: AbstractPath) -> GaussianMixture:
    return GaussianMixture(tensor(0.5, 0.3, 0.2), tensor(-1.5, 0.4, 2.0), tensor(0.3, 0.5, 0.2), path)


def mixture_3d(path: AbstractPath) -> GaussianMixture:
    return GaussianMixture(tensor(0.6, 0.4), randn(2, 3, seed=3), tensor(0.3, 0.5), path)


def single(path: AbstractPath) -> GaussianMixture:
    return GaussianMixture(tensor(1.0), randn(1, 3, seed=4), 0.2 + randn(1, 3, seed=5).abs(), path)


def intervals(path: AbstractPath) -> UniformBoxes:
    return UniformBoxes(tensor(-2.0, 0.5)[:, None], tensor(-1.0, 2.0)[:, None], tensor(0.3, 0.7), path)


def product(path: AbstractPath) -> Product:
    return Product((mixture(path), Gaussian(tensor(0.3), tensor(0.4)[None], path), intervals(path)))


def classes(path: AbstractPath) -> ClassConditional:
    return ClassConditional((mixture_3d(path), single(path)), tensor(0.3, 0.7))


def points(path: AbstractPath) -> PointMasses:
    return PointMasses(tensor(-1.0, 0.5, 2.0)[:, None], tensor(0.2, 0.5, 0.3), path)


LEAVES: dict[str, Callable[[AbstractPath], AbstractField]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "mixture_3d": mixture_3d,
    "single": single,
    "intervals": intervals,
    "box": lambda path: Uniform(tensor(-1.0, -0.5), tensor(1.0, 0.7), path),
    "checkerboard": lambda path: UniformBoxes.checkerboard(path=path),
    "product": product,
    "affine": lambda path: Affine(product(path), torch.linalg.qr(randn(3, 3, seed=6)).Q, tensor(0.3, -0.2, 0.5)),
    "shell_2d": lambda path: Shell(0.8, 2, path),
    "shell_3d": lambda path: Shell(1.3, 3, path),
    "points": points,
    "points_3d": lambda path: PointMasses(randn(4, 3, seed=7), tensor(0.1, 0.2, 0.3, 0.4), path),
    "from_trig": lambda path: Transferred(mixture(TRIGONOMETRIC), path),
    "from_vp": lambda path: Transferred(mixture(VARIANCE_PRESERVING), path),
    "classes": classes,
    "guided": lambda path: Guided(classes(path), 0, 1.5, 0.4),
    "linear_gaussian_guided": lambda path: LinearGaussianGuided(tensor(0.7, -0.2), 0.8, 0.3, 1.7, 0.2, path),
}
DATA = [name for name in LEAVES if name not in ("guided", "linear_gaussian_guided")]
EXACT = [name for name, leaf in LEAVES.items() if leaf(LINEAR).exact_flow]

# Their parts run on the trigonometric path elsewhere here: these are left to the long run.
COSTLY = ("affine", "product", "shell_2d", "shell_3d", "from_trig", "from_vp")


def on_every_path(leaves: list[str]) -> pytest.MarkDecorator:
    """Pairs of leaf and path."""
    pairs = [
        pytest.param(leaf, path, marks=[pytest.mark.slow] if path == "trig" and leaf in COSTLY else [])
        for leaf in leaves
        for path in PATHS
    ]
    return pytest.mark.parametrize(("leaf", "path"), pairs)


every_leaf = pytest.mark.parametrize("leaf", LEAVES)
data_leaf = pytest.mark.parametrize("leaf", DATA)


def states(field: AbstractField, n: int = 24, seed: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """States from the field's own marginals, and pairs of times: far apart, 1e-3 apart, equal."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, n, dtype=torch.float64, generator=generator)
    t = 0.03 + 0.97 * draw[0]
    r = t * (0.05 + 0.95 * draw[1])
    r[: n // 4] = t[: n // 4] - 1e-3
    r[n // 4 : n // 3] = t[n // 4 : n // 3]
    if isinstance(field, AbstractDataField):
        return field.sample(t, generator), r, t
    return torch.randn(n, field.dim, dtype=torch.float64, generator=generator), r, t


def relative(residual: Tensor, jacobian: Tensor, *sizes: Tensor) -> float:
    """Greatest residual in units of (1 + |J|)(1 + size): a trajectory that spreads by J carries rounding along."""
    scale = 1 + torch.linalg.matrix_norm(jacobian, ord=2)
    for size in sizes:
        scale = scale * (1 + largest(size))
    return float((largest(residual) / scale).max())


def largest(x: Tensor) -> Tensor:
    """Greatest absolute entry of each row of the batch."""
    return x.reshape(len(x), -1).abs().amax(1)


# A closed form of a few dozen operations, each rounded once (1.1e-16), through at most a division by h >= 2^-5 or a
# derivative of condition about 10: 1e-13 is some 30 times the worst case measured over all leaves and paths, while
# the smallest mutant below is wrong by 1e-3.
ROUNDING = 1e-13


def check_identity(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    """u = v - (t - r) du/dt, with du/dt by forward-mode differentiation of the closed form."""
    v = field.velocity(z, t)
    u, du_dt = jvp(field.average_velocity, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))[:2]
    residual = formulas.identity_residual(u, v, du_dt, r[:, None], t[:, None])
    assert relative(residual, field.jacobian(z, r, t), u) < ROUNDING


def check_lagrangian(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    """u = v(phi, r) + (t - r) d_r u: the same law seen from the other end."""
    u, dr_u = jvp(lambda time: field.average_velocity(z, time, t), (r,), (torch.ones_like(r),))[:2]
    v_r = field.velocity(field.flow_map(z, t, r), r)
    residual = formulas.lagrangian_residual(u, v_r, dr_u, r[:, None], t[:, None])
    # v at r is steep where r is small (slope 1/sigma at an edge or a point): it magnifies the rounding of phi.
    assert relative(residual, field.jacobian(z, r, t), u, 1 / r) < 10 * ROUNDING


def check_semigroup(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    s = 0.3 * r + 0.7 * t
    z_s = field.flow_map(z, t, s)
    residual = formulas.consistency_residual(
        field.average_velocity(z, r, t),
        field.average_velocity(z_s, r, s),
        field.average_velocity(z, s, t),
        *(time[:, None] for time in (r, s, t)),
    )
    assert relative(residual, field.jacobian(z, r, t), z) < ROUNDING


def check_jacobian(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    """J = I - (t - r) d_z u by reverse mode, and J by central differences of the flow map."""
    jacobian = field.jacobian(z, r, t)
    identity = torch.eye(field.dim, dtype=torch.float64)
    by_autograd = identity - (t - r)[:, None, None] * vmap(jacrev(field.average_velocity))(z, r, t)
    assert relative(jacobian - by_autograd, jacobian) < ROUNDING
    step = 1e-5
    columns = [
        (field.flow_map(z + step * axis, t, r) - field.flow_map(z - step * axis, t, r)) / (2 * step)
        for axis in identity
    ]
    # Truncation step^2 phi'''/6 with phi''' up to 1e4 (t = .03: scale sigma), rounding 1e-16/step.
    assert relative(jacobian - torch.stack(columns, -1), jacobian, 1 / t**2) < 1e-6


def check_log_det(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    assert isinstance(field, AbstractDataField)
    jacobian = field.jacobian(z, r, t)
    residual = torch.linalg.slogdet(jacobian).logabsdet - field.log_det_jacobian(z, r, t)
    assert relative(residual, jacobian, field.log_density(z, t)) < ROUNDING


def check_ode(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    """u by an independent integrator: dw/ds = v(z - h w, t - h s), w(0) = 0, w(1) = u."""
    z, r, t = z[-3:], r[-3:], t[-3:]
    h = (t - r)[:, None]

    def slope(s: float, w: np.ndarray) -> np.ndarray:
        return field.velocity(z - h * torch.from_numpy(w).reshape_as(z), t - h[:, 0] * s).reshape(-1).numpy()

    solution = solve_ivp(slope, (0, 1), np.zeros(z.numel()), method="DOP853", rtol=1e-11, atol=1e-12)
    u, jacobian = field.average_velocity(z, r, t), field.jacobian(z, r, t)
    # The solver's tolerance, times about ten steps.
    assert relative(u - torch.from_numpy(solution.y[:, -1]).reshape_as(u), jacobian, u) < 1e-10


def check_continuity(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    """d_t p + div(p v) = 0: the velocity transports the density."""
    assert isinstance(field, AbstractDataField)
    score, log_slope = vmap(jacrev(field.log_density, argnums=(0, 1)))(z, t)
    divergence = torch.einsum("bii->b", vmap(jacrev(field.velocity))(z, t))
    residual = log_slope + (score * field.velocity(z, t)).sum(-1) + divergence
    assert float((residual.abs() / (1 + log_slope.abs() + divergence.abs())).max()) < ROUNDING * 10


def check_covariance(field: AbstractField, z: Tensor, r: Tensor, t: Tensor) -> None:
    """Tweedie: d_z v = (sigma'/sigma) I + alpha/(sigma W) Cov(v|z) with W = alpha' sigma - alpha sigma'."""
    assert isinstance(field, AbstractDataField)
    path = field.path
    slope = vmap(jacrev(field.velocity))(z, t)
    wronskian = path.alpha_dot(t) * path.sigma(t) - path.alpha(t) * path.sigma_dot(t)
    isotropic = (path.sigma_dot(t) / path.sigma(t))[:, None, None] * torch.eye(field.dim, dtype=torch.float64)
    gain = (path.alpha(t) / (path.sigma(t) * wronskian))[:, None, None]
    residual = (slope - isotropic - gain * field.velocity_covariance(z, t)).abs().amax((1, 2))
    assert float((residual / (1 + slope.abs().amax((1, 2)))).max()) < ROUNDING * 10


EXACT_CHECKS = [check_identity, check_lagrangian, check_semigroup, check_jacobian, check_ode]
DATA_CHECKS = [check_continuity, check_covariance]


@pytest.mark.parametrize("check", EXACT_CHECKS)
@on_every_path(EXACT)
def test_exact_flow(leaf: str, path: str, check: Callable[[AbstractField, Tensor, Tensor, Tensor], None]) -> None:
    field = LEAVES[leaf](PATHS[path])
    check(field, *states(field))


@on_every_path([name for name in EXACT if name in DATA])
def test_log_det_jacobian(leaf: str, path: str) -> None:
    field = LEAVES[leaf](PATHS[path])
    check_log_det(field, *states(field))


@pytest.mark.parametrize("check", DATA_CHECKS)
@on_every_path(DATA)
def test_data_field(leaf: str, path: str, check: Callable[[AbstractField, Tensor, Tensor, Tensor], None]) -> None:
    field = LEAVES[leaf](PATHS[path])
    check(field, *states(field))


@on_every_path(EXACT)
def test_average_velocity_at_equal_times_is_the_velocity(leaf: str, path: str) -> None:
    field = LEAVES[leaf](PATHS[path])
    z, _, t = states(field)
    v = field.velocity(z, t)
    # Two evaluations of one number.
    assert float(((field.average_velocity(z, t, t) - v).abs() / (1 + v.abs())).max()) <= 1e-14


# Transferred documents that it has no derivatives at r = 0 with a variance-preserving path.
@on_every_path([name for name in EXACT if not name.startswith("from_")])
def test_identity_of_one_step_generation(leaf: str, path: str) -> None:
    """At r = 0, where sigma' may be infinite and point-like data have no density; the map ends on the data."""
    field = LEAVES[leaf](PATHS[path])
    z, _, t = states(field)
    check_identity(field, z, torch.zeros_like(t), t)


@data_leaf
def test_sampler_and_velocity_agree(leaf: str) -> None:
    """E[(v_t - v) f(z_t)] = 0 for f = 1 and z; Stein: E[score] = 0, E[z . score] = -d; Cov by the law of v given z."""
    field = LEAVES[leaf](LINEAR)
    assert isinstance(field, AbstractDataField)
    n = 4000
    generator = torch.Generator().manual_seed(9)
    x, eps = field.sample_pair(n, generator)
    t = torch.full((n,), 0.6, dtype=torch.float64)
    z = 0.4 * x + 0.6 * eps
    v = field.velocity(z, t)
    error = (eps - x) - v
    score = vmap(jacrev(field.log_density))(z, t)
    outer = error[:, :, None] * error[:, None, :] - field.velocity_covariance(z, t)
    columns = torch.cat(
        [error, error * z, score, (z * score).sum(-1, keepdim=True) + field.dim, outer.flatten(1)], dim=1
    )
    # Normal deviates of at most 3 + 3 + 3 + 1 + 9 means for each of 16 leaves: beyond 5 with probability 2e-4 in all.
    deviates = columns.mean(0) / (columns.std(0) / n**0.5)
    assert float(deviates.abs().max()) < 5


@every_leaf
def test_shapes_and_dtypes(leaf: str) -> None:
    field = LEAVES[leaf](LINEAR)
    z, r, t = states(field, n=6)
    for dtype in (torch.float64, torch.float32):
        cast = field.to(dtype=dtype)
        for batch in ((6,), (2, 3), (1, 6, 1)):
            z_, r_, t_ = z.to(dtype).reshape(*batch, field.dim), r.to(dtype).reshape(batch), t.to(dtype).reshape(batch)
            results: dict[str, tuple[Tensor, tuple[int, ...]]] = {"v": (cast.velocity(z_, t_), (field.dim,))}
            if field.exact_flow:
                results["u"] = (cast.average_velocity(z_, r_, t_), (field.dim,))
                results["phi"] = (cast.flow_map(z_, t_, r_), (field.dim,))
                results["J"] = (cast.jacobian(z_, r_, t_), (field.dim, field.dim))
            if isinstance(cast, AbstractDataField):
                results["log p"] = (cast.log_density(z_, t_), ())
                results["Cov"] = (cast.velocity_covariance(z_, t_), (field.dim, field.dim))
            for name, (value, event) in results.items():
                assert value.shape == (*batch, *event), name
                assert value.dtype == dtype, name
                assert bool(torch.isfinite(value).all()), name


@every_leaf
def test_float32_is_the_rounded_float64_truth(leaf: str) -> None:
    field = LEAVES[leaf](LINEAR)
    z, r, t = (x.float() for x in states(field, n=12))
    single_precision = field.to(dtype=torch.float32)
    double = single_precision.to(dtype=torch.float64)  # with the same, rounded parameters
    v = double.velocity(z.double(), t.double())
    # One rounding, of half a unit in the last place: 2^-24.
    assert bool(((single_precision.velocity(z, t) - v).abs() <= 2.0**-24 * v.abs() * (1 + 1e-6)).all())
    if field.exact_flow:
        u = double.average_velocity(z.double(), r.double(), t.double())
        assert bool(((single_precision.average_velocity(z, r, t) - u).abs() <= 2.0**-24 * u.abs() * (1 + 1e-6)).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_leaf
def test_same_numbers_on_a_gpu(leaf: str) -> None:
    field = LEAVES[leaf](LINEAR)
    z, r, t = states(field, n=12)
    moved = field.to(device="cuda")
    v = field.velocity(z, t)
    # Another device's elementary functions: a few roundings apart, magnified like those.
    assert float(((moved.velocity(z.cuda(), t.cuda()).cpu() - v).abs() / (1 + v.abs())).max()) < 1e-12
    if field.exact_flow:
        u = field.average_velocity(z, r, t)
        on_device = moved.average_velocity(z.cuda(), r.cuda(), t.cuda())
        assert on_device.is_cuda
        assert relative(on_device.cpu() - u, field.jacobian(z, r, t), u) < 1e-12


@every_leaf
def test_functional_transforms_agree(leaf: str) -> None:
    """vmap, forward and reverse mode of v in (z, t), without warnings (which are errors here)."""
    field = LEAVES[leaf](LINEAR)
    z, r, t = states(field, n=5)
    one = torch.ones_like(t)
    assert float((vmap(field.velocity)(z, t) - field.velocity(z, t)).abs().max()) < 1e-14 * float(1 + z.abs().max())
    slope_z, slope_t = vmap(jacrev(field.velocity, argnums=(0, 1)))(z, t)
    _, forward = jvp(field.velocity, (z, t), (z, one))[:2]
    reverse = torch.einsum("bij,bj->bi", slope_z, z) + slope_t
    assert float(((forward - reverse).abs() / (1 + slope_z.abs().sum((1, 2))[:, None])).max()) < 1e-12
    step = 1e-6
    difference = (field.velocity(z, t + step) - field.velocity(z, t - step)) / (2 * step)
    # Truncation step^2 v'''/6 with v''' of order t^-4, and rounding 1e-16 t^-2/step.
    assert float(((slope_t - difference).abs() * t[:, None] ** 4).max()) < 1e-8
    if field.exact_flow:
        assert float((vmap(field.average_velocity)(z, r, t) - field.average_velocity(z, r, t)).abs().max()) < 1e-12


@every_leaf
def test_bad_input_is_refused(leaf: str) -> None:
    field = LEAVES[leaf](LINEAR)
    z = torch.zeros(4, field.dim, dtype=torch.float64)
    with pytest.raises(ShapeError, match="has dimension"):
        field.velocity(torch.zeros(4, field.dim + 1, dtype=torch.float64), 0.5)
    with pytest.raises(DtypeError, match="one dtype"):
        field.velocity(z.float(), 0.5)
    with pytest.raises(TimeError, match="integer time"):
        field.velocity(z, torch.ones(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="one time per state"):
        field.velocity(z, torch.full((3,), 0.5, dtype=torch.float64))
    if not field.exact_flow:
        with pytest.raises(NoClosedFormError, match="no closed-form"):
            field.flow_map(z, 0.5, 0.2)
        with pytest.raises(NoClosedFormError, match="no closed-form"):
            field.average_velocity(z, 0.2, 0.5)
        with pytest.raises(NoClosedFormError, match="no closed-form"):
            field.jacobian(z, 0.2, 0.5)


# ---------------------------------------------------------------- the checks, checked


@dataclasses.dataclass(frozen=True, eq=False)
class Wrong(Product):
    """A product with one method wrong by a part in a thousand, or by a classic mistake."""

    mistake: str = ""

    def _average_velocity(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        if self.mistake == "u is v":
            return self._velocity(z, t)
        if self.mistake == "r for t":
            return super()._average_velocity(z, t, r)
        u = super()._average_velocity(z, r, t)
        return u * (1 + 1e-3 * (t - r)[..., None]) if self.mistake == "u is off" else u

    def _velocity(self, z: Tensor, t: Tensor) -> Tensor:
        v = super()._velocity(z, t)
        return 1.001 * v if self.mistake == "v is off" else v

    def _flow_map(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        phi = super()._flow_map(z, t, r)
        return phi + 1e-3 * (t - r)[..., None] if self.mistake == "phi is off" else phi

    def _jacobian(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        jacobian = super()._jacobian(z, r, t)
        return torch.linalg.inv(jacobian) if self.mistake == "J is inverted" else jacobian

    def _log_density(self, z: Tensor, t: Tensor) -> Tensor:
        log_density = super()._log_density(z, t)
        return log_density + torch.log(t) if self.mistake == "p is not normalised" else log_density

    def _velocity_covariance(self, z: Tensor, t: Tensor) -> Tensor:
        covariance = super()._velocity_covariance(z, t)
        return 1.001 * covariance if self.mistake == "Cov is off" else covariance


@pytest.mark.parametrize(
    ("mistake", "killers"),
    [
        ("u is v", [check_identity, check_lagrangian, check_semigroup, check_jacobian, check_ode]),
        ("u is off", [check_identity, check_lagrangian, check_semigroup, check_jacobian, check_ode]),
        ("r for t", [check_identity, check_lagrangian, check_jacobian, check_ode]),
        ("v is off", [check_identity, check_lagrangian, check_ode, check_continuity, check_covariance]),
        ("phi is off", [check_lagrangian, check_semigroup]),
        ("J is inverted", [check_jacobian, check_log_det]),
        ("p is not normalised", [check_log_det, check_continuity]),
        ("Cov is off", [check_covariance]),
    ],
)
def test_checks_refuse_wrong_fields(
    mistake: str, killers: list[Callable[[AbstractField, Tensor, Tensor, Tensor], None]]
) -> None:
    factors = product(LINEAR).factors[:2]
    right, wrong = Wrong(factors), Wrong(factors, mistake)
    z, r, t = states(right)
    for check in killers:
        check(right, z, r, t)
        with pytest.raises(AssertionError):
            check(wrong, z, r, t)
