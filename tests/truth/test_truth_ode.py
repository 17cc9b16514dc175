"""The u-space ODE against closed forms: accuracy, derivatives, the solver's pitfalls, its own error estimate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint
from truth_cases import PATHS, Cases, amplification, draw, gaussian, line_mixture, plane_mixture, sharp_mixture, worst

from meanflow_ref.errors import DtypeError, ShapeError, TruthError
from meanflow_ref.fields.base import AbstractDataField
from meanflow_ref.paths import VARIANCE_PRESERVING
from meanflow_ref.truth import average_velocity, average_velocity_ode
from meanflow_ref.truth.ode import _RightHandSide

CLOSED = {"gaussian": gaussian, "mixture": line_mixture, "sharp mixture": sharp_mixture}
every_path = pytest.mark.parametrize("path", PATHS)
every_closed = pytest.mark.parametrize("family", CLOSED)


def between_modes(field: AbstractDataField, c: Cases) -> Cases:
    """The cases with rows near the separatrix, where J reaches 1e6."""
    z, r, t = (x.clone() for x in c.all)
    z[-8:] = torch.logspace(-6, -0.5, 8, dtype=torch.float64)[:, None]
    r[-8:], t[-8:] = 0.01, 1.0
    return Cases(z, r, t) if field.dim == 1 else c


# ---------------------------------------------------------------- accuracy


@every_path
@every_closed
@pytest.mark.parametrize(("tol", "bound"), [(1e-6, 1e-6), (1e-12, 2e-13)])
def test_error_is_below_the_tolerance_and_below_its_estimate(family: str, path: str, tol: float, bound: float) -> None:
    field = CLOSED[family](PATHS[path])
    c = between_modes(field, draw(field))
    truth = average_velocity_ode(field.velocity, *c.all, tol=tol)
    exact = average_velocity(field, *c.all, method="closed")
    error = (truth.value - exact.value).abs().amax(1)
    # A step's error is held below tol and carried to r by the flow: tol (1 + J). At 1e-12 the eighth-order steps are a
    # fifth of that at most, and both methods' rounding is 1e3 units: 2e-13.
    scale = amplification(field, c)
    assert float((error / scale).max()) < bound

    # Beyond what the closed form itself can judge the estimate must not be exceeded (measured, it is at least eight
    # times the error), and where tol J is small it is no empty bound: within twenty tolerances (1 + J)(1 + |u|).
    assert bool((truth.error >= error - exact.error).all())
    assert bool((truth.error >= error)[error > exact.error].all())
    linear = tol * scale < 1e-3
    assert float((truth.error / (tol * scale * (1 + exact.value.abs().amax(1))))[linear].max()) < 20


@every_path
def test_is_the_velocity_at_equal_times(path: str) -> None:
    field = plane_mixture(PATHS[path])
    c = draw(field)
    truth = average_velocity_ode(field.velocity, c.z, c.t, c.t, derivatives=True)
    v = field.velocity(c.z, c.t)
    # The right-hand side is constant: only the tableau's own rounding is left, 13 stages of |v|.
    assert worst(truth.value - v, 1 + v.abs().amax(1)) < 1e-14
    acceleration = torch.func.jvp(field.velocity, (c.z, c.t), (v, torch.ones_like(c.t)))[1]
    assert truth.du_dt is not None
    assert truth.dr_u is not None
    # Source: ref:acceleration; the integrand is (1 - s) a, so the same rounding, relative to a.
    assert worst(truth.du_dt - acceleration / 2, 1 + acceleration.abs().amax(1)) < 1e-13
    assert worst(truth.dr_u - acceleration / 2, 1 + acceleration.abs().amax(1)) < 1e-13


def test_keeps_its_accuracy_at_a_gap_where_dividing_by_it_fails() -> None:
    field = line_mixture()
    c = draw(field, 64, seed=4)
    t = 0.2 + 0.8 * c.t
    c = Cases(c.z, t - 1e-9, t)
    exact = field.average_velocity(*c.all)
    assert worst(average_velocity_ode(field.velocity, *c.all).value - exact, 1 + exact.abs().amax(1)) < 1e-13

    def rate(s: Tensor, y: Tensor) -> Tensor:
        return -c.h * field.velocity(y, c.t - c.h[:, 0] * s)

    # The control: the displacement itself, solved to the same tolerance and divided by h.
    end = odeint(rate, c.z, torch.tensor([0.0, 1.0], dtype=torch.float64), method="dopri8", rtol=1e-12, atol=1e-12)[-1]
    assert worst((c.z - end) / c.h - exact) > 1e-8


def test_float32_is_as_good_as_its_velocity() -> None:
    exact = plane_mixture()
    c = draw(exact, 64)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        assert z.dtype == t.dtype == torch.float32
        return exact.velocity(z.double(), t.double()).float()

    single = average_velocity_ode(velocity, c.z.float(), c.r.float(), c.t.float())
    double = average_velocity_ode(exact.velocity, c.z.float().double(), c.r.float().double(), c.t.float().double())
    assert single.value.dtype == single.error.dtype == torch.float32
    # Every call rounds z, t and v to 6e-8: about 1e-6 with dv/dt of a few, and the tolerance is floored at 4e-6.
    assert worst(single.value.double() - double.value) < 2e-5
    assert bool((single.error >= (single.value.double() - double.value).abs().amax(1)).all())


@every_closed
def test_other_solvers_agree(family: str) -> None:
    field = CLOSED[family]()
    c = draw(field, 32)
    truth = average_velocity_ode(field.velocity, *c.all, tol=1e-9, solver="dopri5")
    assert worst(truth.value - field.average_velocity(*c.all), amplification(field, c)) < 1e-9


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("path", ["linear", "variance preserving"])
@pytest.mark.parametrize("family", ["gaussian", "mixture"])
def test_derivatives_are_those_of_the_closed_form(family: str, path: str) -> None:
    field = CLOSED[family](PATHS[path])
    c = draw(field)
    truth = average_velocity_ode(field.velocity, *c.all, derivatives=True)
    closed = average_velocity(field, *c.all, method="closed", derivatives=True)
    # Tolerance 1e-12 on every state, amplified along the way by J and once more through the state it depends on. The
    # closed mixture divides rounding by t - r >= 2^-5 and differentiates a root: 32 eps 10 = 7e-14, below that.
    scale = amplification(field, c) ** 2
    for name in ("value", "du_dt", "dr_u", "dz_u", "jacobian"):
        assert worst(getattr(truth, name) - getattr(closed, name), scale) < 1e-12, name


def test_derivatives_are_central_differences() -> None:
    field = plane_mixture()
    c = draw(field, 64, seed=2)
    c = c[(c.h[:, 0] > 0.05) & (c.r > 0.02) & (c.t < 0.98)]
    truth = average_velocity_ode(field.velocity, *c.all, derivatives=True)
    v = field.velocity(c.z, c.t)
    zero, unit = torch.zeros_like(v), torch.tensor([0.0, 1.0], dtype=torch.float64).expand_as(v)
    e = 1e-3
    directions = {"du_dt": (v, 0, 1), "dr_u": (zero, 1, 0), "dz_u": (unit, 0, 0)}
    directions |= {"both times": (v, 1, 1), "t alone": (zero, 0, 1), "backwards": (-v, 0, 1)}
    moved = [
        (c.z + k * e * dz, c.r + k * e * dr, c.t + k * e * dt)
        for dz, dr, dt in directions.values()
        for k in (-2, -1, 1, 2)
    ]
    u = average_velocity_ode(field.velocity, *(torch.cat(x) for x in zip(*moved, strict=True)), tol=1e-13).value
    u = u.reshape(len(directions), 4, *v.shape)
    # Fourth-order central differences: truncation e^4 u'''''/30, rounding 1e-13/e.
    slopes = dict(zip(directions, (8 * (u[:, 2] - u[:, 1]) - (u[:, 3] - u[:, 0])) / (12 * e), strict=True))

    assert truth.du_dt is not None
    assert truth.dr_u is not None
    assert truth.dz_u is not None
    # Fifth derivatives reach (1/std)^5 ~ 400 times |u|: 1e-12 * 400 / 30 is small, 1e-6 is safe, and still four digits
    # below what a wrong tangent shows.
    scale = 1 + truth.du_dt.abs().amax(1)
    assert worst(truth.du_dt - slopes["du_dt"], scale) < 1e-6
    assert worst(truth.dr_u - slopes["dr_u"], scale) < 1e-6
    assert worst(truth.dz_u[:, :, 1] - slopes["dz_u"], scale) < 1e-6
    for wrong in (slopes["both times"], slopes["t alone"], slopes["backwards"], truth.dr_u):
        assert worst(truth.du_dt - wrong) > 1e-2
    assert worst(truth.dz_u[:, 1, :] - slopes["dz_u"]) > 1e-2  # transposed


def test_derivatives_of_a_velocity_that_ignores_an_argument() -> None:
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r, t = torch.full((5,), 0.25, dtype=torch.float64), torch.full((5,), 0.75, dtype=torch.float64)
    constant = average_velocity_ode(lambda z, t: torch.ones_like(z), z, r, t, derivatives=True)
    still = average_velocity_ode(lambda z, t: 2 * z, z, r, t, derivatives=True)
    moving = average_velocity_ode(lambda z, t: (3 * t**2)[:, None].expand_as(z), z, r, t, derivatives=True)
    assert constant.du_dt is not None
    assert still.jacobian is not None
    assert moving.du_dt is not None
    assert worst(constant.value - 1) < 1e-13
    assert worst(constant.du_dt) == 0
    # dz/dt = 2z from t to r: J = exp(-2h). v = 3t^2: u = (t^3 - r^3)/h, du/dt = (v - u)/h.
    assert worst(still.jacobian - math.exp(-1) * torch.eye(3, dtype=torch.float64)) < 1e-12
    u = (0.75**3 - 0.25**3) / 0.5
    assert worst(moving.value - u) < 1e-12
    assert worst(moving.du_dt - (3 * 0.75**2 - u) / 0.5) < 1e-12


def test_derivatives_of_a_flow_that_turns() -> None:
    """A velocity with a skew Jacobian: data fields are gradients, and would forgive a transposed one."""
    a = torch.tensor([[0.3, 1.7], [-0.9, 0.1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 2, dtype=torch.float64, generator=generator)
    r, t = torch.full((6,), 0.1, dtype=torch.float64), torch.full((6,), 0.8, dtype=torch.float64)
    truth = average_velocity_ode(lambda z, t: z @ a.T, z, r, t, derivatives=True)
    # phi = exp(-hA) z, so that u = (z - phi)/h and du/dt = (v - u)/h.
    jacobian = torch.linalg.matrix_exp(-0.7 * a)
    u = (z - z @ jacobian.T) / 0.7
    assert truth.du_dt is not None
    assert truth.jacobian is not None
    assert truth.dz_u is not None
    assert worst(truth.value - u) < 1e-11
    assert worst(truth.du_dt - (z @ a.T - u) / 0.7) < 1e-11
    assert worst(truth.jacobian - jacobian) < 1e-11
    assert worst(truth.dz_u - (torch.eye(2, dtype=torch.float64) - jacobian) / 0.7) < 1e-11
    assert worst(truth.jacobian - jacobian.T) > 0.1


# ---------------------------------------------------------------- pitfalls of adaptive solvers


class Spy:
    """A velocity that remembers how far outside [r, t] it was called, row by row."""

    def __init__(self, field: AbstractDataField, c: Cases) -> None:
        self.field, self.c = field, c
        self.below, self.above = -math.inf, -math.inf

    def __call__(self, z: Tensor, tau: Tensor) -> Tensor:
        copies = tau.shape[0] // self.c.t.shape[0]
        self.below = max(self.below, float((self.c.r.repeat_interleave(copies) - tau.detach()).max()))
        self.above = max(self.above, float((tau.detach() - self.c.t.repeat_interleave(copies)).max()))
        return self.field.velocity(z, tau)


@pytest.mark.parametrize("derivatives", [False, True])
def test_velocity_is_never_called_outside_the_interval(derivatives: bool) -> None:
    field = plane_mixture()
    c = draw(field, 64)
    for tol in (1e-3, 1e-6, 1e-12):
        spy = Spy(field, c)
        average_velocity_ode(spy, *c.all, tol=tol, derivatives=derivatives)
        assert spy.below <= 0
        assert spy.above <= 0


def test_rounding_does_not_carry_a_time_below_r() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 10_000, dtype=torch.float64, generator=generator)
    # Squared: torch.rand is a multiple of 2^-53, of which differences are exact.
    r, t, z = pair.amin(0) ** 2, pair.amax(0), torch.zeros(10_000, 1, dtype=torch.float64)
    rhs = _RightHandSide(lambda z, t: z, z, r, t)
    assert bool((t - (t - r) * 1.0 < r).any())  # the control: plain arithmetic does
    for s in (1.0, 1 - 2**-53):
        _, tau = rhs.point(torch.tensor(s, dtype=torch.float64), z)
        assert bool((tau >= r).all())


def test_the_spy_sees_a_default_solver_overshoot() -> None:
    """The control, and why ``step_t`` and the maximum norm are set: without them 1e-13 becomes worse than 1e-10."""
    field = line_mixture()
    c = draw(field, 128)[28:]
    spy = Spy(field, c)

    def rate(s: Tensor, w: Tensor) -> Tensor:
        return spy(c.z - c.h * w, c.t - c.h[:, 0] * s)

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    naive = odeint(rate, torch.zeros_like(c.z), ends, method="dopri8", rtol=1e-13, atol=1e-13)[-1]
    assert spy.below > 1e-3
    assert worst(naive - field.average_velocity(*c.all)) > 1e-10


@pytest.mark.parametrize("derivatives", [False, True])
def test_variance_preserving_path_down_to_zero(derivatives: bool) -> None:
    # sigma' is infinite at r = 0, v is not; a solver that steps past 0 takes the root of a negative variance.
    field = plane_mixture(VARIANCE_PRESERVING)
    c = draw(field)[:16]
    c = Cases(c.z, torch.zeros_like(c.r), c.t)
    truth = average_velocity_ode(field.velocity, *c.all, derivatives=derivatives)
    assert bool(torch.isfinite(truth.value).all())
    if derivatives:
        assert truth.jacobian is not None
        own = torch.linalg.slogdet(truth.jacobian).logabsdet
        end = c.z - c.h * truth.value
        densities = field.log_density(c.z, c.t) - field.log_density(end, c.r)
        condition = torch.linalg.cond(truth.jacobian)
        # Source: ref:logdet. The determinant's relative error is that of J, 1e-12 (1 + J), times |J^-1|.
        assert float(((own - densities).abs() / (1 + condition)).max()) < 1e-11


def test_an_easy_batch_does_not_hide_a_hard_row() -> None:
    field = sharp_mixture()
    z = torch.full((2048, 1), 1.5, dtype=torch.float64)
    z[0] = 0.02
    c = Cases(z, torch.zeros(2048, dtype=torch.float64), torch.ones(2048, dtype=torch.float64))
    hard = c[:1]
    crowd = average_velocity_ode(field.velocity, *c.all, tol=1e-6)
    exact = field.average_velocity(*hard.all)
    assert worst(crowd.value[:1] - exact, amplification(field, hard)) < 1e-6

    def rate(s: Tensor, w: Tensor) -> Tensor:
        return field.velocity(c.z - c.h * w, c.t - c.h[:, 0] * s)

    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    diluted = odeint(rate, torch.zeros_like(z), ends, method="dopri8", rtol=1e-6, atol=1e-6)[-1]
    assert worst(diluted[:1] - exact, amplification(field, hard)) > 1e-6


def test_batch_composition_moves_an_answer_by_less_than_the_tolerance() -> None:
    field = plane_mixture()
    c = draw(field, 64)
    whole = average_velocity_ode(field.velocity, *c.all, tol=1e-10)
    for row in (0, 12, 40):
        one = c[row : row + 1]
        alone = average_velocity_ode(field.velocity, *one.all, tol=1e-10, derivatives=True)
        assert alone.jacobian is not None
        # Two answers, each within tol (1 + J).
        assert worst(alone.value - whole.value[row : row + 1], 1 + alone.jacobian.abs().sum()) < 2e-10


def test_error_estimate_knows_the_conditioning() -> None:
    # The same tolerance, 0.5 and 1e-6 from the separatrix: J is 9e5 against 1, and a tolerance is carried by it.
    field = sharp_mixture()
    z = torch.tensor([[1.0], [1e-6]], dtype=torch.float64)
    r, t = torch.full((2,), 0.01, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    easy, hard = average_velocity_ode(field.velocity, z, r, t).error
    assert hard > 1e3 * easy


# ---------------------------------------------------------------- failures


def _line(n: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
    return z, torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)


def test_a_velocity_that_is_not_finite_is_named_with_row_and_time() -> None:
    def velocity(z: Tensor, t: Tensor) -> Tensor:
        # Only the third row, and only below t = 1/2.
        return torch.where((z > 0.3) & (z < 0.5) & (t[:, None] < 0.5), z * float("nan"), torch.zeros_like(z))

    with pytest.raises(TruthError, match=r"not finite in row 2 at time 0\.[34]\d*, \|z\| = 0\.333") as failure:
        average_velocity_ode(velocity, *_line())
    assert "stop at r > 0" in failure.value.remedy
    with pytest.raises(TruthError, match="not finite in row 2"):
        average_velocity_ode(velocity, *_line(), derivatives=True)


def test_a_solver_that_gives_up_says_why() -> None:
    with pytest.raises(TruthError, match="in 3 steps") as failure:
        average_velocity_ode(lambda z, t: torch.cos(50 * z), *_line(), max_steps=3)
    assert "max_steps" in failure.value.remedy


def test_a_velocity_that_blows_up_stops_the_solver_with_a_cause() -> None:
    # dz/dt = 2 z^2 with z(1) = -1 is z = 1/(1 - 2t): a pole half way.
    with pytest.raises(TruthError, match="underflow in dt") as failure:
        average_velocity_ode(lambda z, t: 2 * z**2, *_line())
    assert "raise tol" in failure.value.remedy


def test_a_velocity_of_wrong_shape_type_or_dtype() -> None:
    with pytest.raises(ShapeError, match=r"returned shape \(4,\) for z of shape \(4, 1\)"):
        average_velocity_ode(lambda z, t: t, *_line())
    with pytest.raises(ShapeError, match="returned a tuple"):
        average_velocity_ode(lambda z, t: (z, t), *_line())  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match=r"returned torch\.float32 for torch\.float64"):
        average_velocity_ode(lambda z, t: z.float(), *_line())


def test_no_states_are_no_work() -> None:
    z, r, t = _line(0)
    truth = average_velocity_ode(lambda z, t: z, z, r, t, derivatives=True)
    assert truth.value.shape == (0, 1)
    assert truth.jacobian is not None
    assert truth.jacobian.shape == (0, 1, 1)
