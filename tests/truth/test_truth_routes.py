"""The front door and its routes: against each other, against 40-digit arithmetic, and against bad input."""

from __future__ import annotations

import builtins
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from truth_cases import PATHS, Cases, amplification, draw, floats, gaussian, line_mixture, plane_mixture, sharp_mixture
from truth_cases import worst as worst_row

import meanflow_ref as mf
from meanflow_ref.errors import (
    DtypeError,
    MissingExtraError,
    NoClosedFormError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    TimeError,
    TruthError,
)
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.truth import average_velocity, flow_map
from meanflow_ref.truth.quadrature import average_velocity_quadrature

CLOSED = {"gaussian": gaussian, "mixture": line_mixture, "sharp mixture": sharp_mixture}
every_path = pytest.mark.parametrize("path", PATHS)
every_closed = pytest.mark.parametrize("family", CLOSED)


# ---------------------------------------------------------------- routes against each other


@every_path
@every_closed
def test_quadrature_agrees_with_the_closed_form(family: str, path: str) -> None:
    field = CLOSED[family](PATHS[path])
    c = draw(field)
    closed, quadrature = (average_velocity(field, *c.all, method=m) for m in ("closed", "quadrature"))
    # Both rest on the flow map, whose rounding is 1e2 units at most: (1 + J)(1 + |z|).
    scale = amplification(field, c) * (1 + c.z.abs().amax(1))
    assert worst_row(quadrature.value - closed.value, scale) < 2e-14
    error = (quadrature.value - closed.value).abs().amax(1)
    assert bool((error <= quadrature.error + closed.error).all())


@pytest.mark.parametrize("family", ["gaussian", "mixture"])
def test_scipy_agrees_with_the_closed_form(family: str) -> None:
    field = CLOSED[family](PATHS["trigonometric"])
    c = draw(field)[torch.tensor([0, 5, 8, 16, 18, 21, 40, 41])]
    closed, scipy = average_velocity(field, *c.all), average_velocity(field, *c.all, method="scipy")
    error = (scipy.value - closed.value).abs().amax(1)
    # A step's tolerance 1e-12, amplified by J, divided by h (not at r = t, where v itself is returned).
    h = torch.where(c.h[:, 0] > 0, c.h[:, 0], torch.ones_like(c.t))
    assert float((error * h / amplification(field, c)).max()) < 3e-12
    assert bool((error <= scipy.error + closed.error).all())


def test_ode_and_scipy_agree_where_there_is_no_closed_form() -> None:
    field = plane_mixture()
    c = draw(field)[torch.tensor([0, 5, 16, 40, 41, 42])]
    ode = average_velocity(field, *c.all, derivatives=True)
    scipy = average_velocity(field, *c.all, method="scipy")
    assert ode.jacobian is not None
    scale = (1 + ode.jacobian.abs().sum(-1).amax(-1)) / c.h[:, 0]
    assert worst_row(ode.value - scipy.value, scale) < 3e-12
    assert bool(((ode.value - scipy.value).abs().amax(1) <= ode.error + scipy.error).all())


def test_quadrature_refuses_an_answer_that_has_not_settled() -> None:
    # Beside the separatrix the trajectory stays between the two narrow modes, and then leaves within a sliver of time.
    field = sharp_mixture()
    z, r, t = floats(1e-5)[:, None], floats(0.0), floats(1.0)
    with pytest.raises(TruthError, match=r"64 nodes left 1 of 1 rows unsettled; row 0 still changes by") as failure:
        average_velocity_quadrature(field, z, r, t, last_nodes=64)
    assert "method='ode'" in failure.value.remedy


# ---------------------------------------------------------------- against 40 digits


def _exact_mixture(field: GaussianMixture, z: float, r: float, t: float) -> Any:
    """u of a mixture on a line, on the linear path: the root of F_r(y) = F_t(z) in 40 digits."""
    mpmath.mp.dps = 40
    parameters = (x.flatten().tolist() for x in (field.weights, field.means, field.stds))
    parts = [tuple(map(mpmath.mpf, part)) for part in zip(*parameters, strict=True)]
    total = sum(w for w, _, _ in parts)
    z, r, t = map(mpmath.mpf, (z, r, t))

    def tail(y: Any, tau: Any) -> Any:
        scores = ((w, (y - (1 - tau) * m) / mpmath.sqrt(((1 - tau) * s) ** 2 + tau**2)) for w, m, s in parts)
        return sum(w * mpmath.erfc(-q / mpmath.sqrt(2)) / 2 for w, q in scores) / total

    quantile = tail(z, t)
    low, high = mpmath.mpf(-30), mpmath.mpf(30)
    for _ in range(140):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, r) < quantile else (low, middle)
    return (z - (low + high) / 2) / (t - r)


def _distance(field: GaussianMixture, c: Cases, u: Tensor) -> Tensor:
    """How far ``u`` is from the exact one, ``(n,)``."""
    exact = (_exact_mixture(field, float(z), float(r), float(t)) for z, r, t in zip(*c.all, strict=True))
    return floats(*(float(abs(mpmath.mpf(float(a)) - b)) for a, b in zip(u[:, 0], exact, strict=True)))


def test_closed_error_estimate_holds_against_forty_digits() -> None:
    field = line_mixture()
    generator = torch.Generator().manual_seed(3)
    pair = torch.rand(2, 24, dtype=torch.float64, generator=generator)
    c = Cases(3 * torch.randn(24, 1, dtype=torch.float64, generator=generator), pair.amin(0), pair.amax(0))
    c.r[:6] = c.t[:6] - 10.0 ** -torch.arange(2, 14, 2, dtype=torch.float64)
    truth = average_velocity(field, *c.all)
    error = _distance(field, c, truth.value)
    # The estimate is 32 units of rounding times the conditioning.
    assert bool((error <= truth.error).all())
    # And 300 units are enough for any estimate: it is not idle.
    conditioning = amplification(field, c) * (1 + c.z.abs().amax(1)) + truth.value.abs().amax(1)
    assert float((truth.error / conditioning).max()) < 300 * 2.2e-16


def test_closed_error_estimate_knows_the_conditioning() -> None:
    # Towards the separatrix of two narrow modes, where J grows from 1 to 9e5 and errors of 1e-12 are to be expected.
    field = sharp_mixture()
    z = torch.logspace(-8, -1, 8, dtype=torch.float64)[:, None]
    c = Cases(z, torch.full((8,), 0.01, dtype=torch.float64), torch.ones(8, dtype=torch.float64))
    truth = average_velocity(field, *c.all)
    error = _distance(field, c, truth.value)
    assert bool((error <= truth.error).all())
    assert float(error.max()) > 1e-12  # so that an estimate without J would be caught


def test_ode_against_forty_digits() -> None:
    field = line_mixture()
    c = Cases(floats(0.3, -2.5, 1.0)[:, None], floats(0.1, 0.0, 0.55), floats(0.9, 1.0, 0.6))
    truth = average_velocity(field, *c.all, method="ode", tol=1e-13)
    assert float(_distance(field, c, truth.value).max()) < 1e-13


# ---------------------------------------------------------------- the front door


def test_it_is_public_and_reads_in_one_line() -> None:
    z = floats(0.3, 1.0)[:, None]
    u = mf.average_velocity(line_mixture(), z, 0.0, 1.0).value
    assert torch.equal(u, line_mixture().average_velocity(z, 0.0, 1.0))


def test_it_takes_the_best_route() -> None:
    assert average_velocity(line_mixture(), floats(0.3)[:, None], 0.2, 0.7).method == "closed"
    assert average_velocity(plane_mixture(), floats(0.3, 0.1)[None], 0.2, 0.7).method == "ode"
    assert average_velocity(lambda z, t: z, floats(0.3)[:, None], 0.2, 0.7).method == "ode"


@pytest.mark.parametrize("method", ["closed", "ode", "quadrature", "scipy"])
def test_every_route_keeps_shape_dtype_and_derivatives(method: Any) -> None:
    field = line_mixture()
    z = floats(0.3, -0.4, 1.0, 0.0, -1.3, 2.0).reshape(2, 3, 1).requires_grad_()
    t = floats(0.5, 0.8)[:, None]
    truth = average_velocity(field, z, 0.25, t, method=method, derivatives=True)
    exact = field.average_velocity(z.detach(), 0.25, t)
    assert truth.method == method
    assert truth.value.shape == (2, 3, 1)
    assert truth.error.shape == (2, 3)
    # Tolerance 1e-12, J below 3 here, h = 1/4 for the scipy route.
    assert float((truth.value - exact).abs().max()) < 4e-12
    assert truth.du_dt is not None
    assert truth.dr_u is not None
    assert truth.dz_u is not None
    assert truth.jacobian is not None
    assert truth.du_dt.shape == truth.dr_u.shape == (2, 3, 1)
    assert truth.dz_u.shape == truth.jacobian.shape == (2, 3, 1, 1)
    assert not any(x.requires_grad for x in (truth.value, truth.error, truth.du_dt, truth.jacobian))
    # Source: mf:6, and the rate at which the displacement (t - r) u changes with r: Source: fmm:lagrangian.
    h, v = (t - 0.25)[..., None], field.velocity(z.detach(), t)
    assert float((truth.value - (v - h * truth.du_dt)).abs().max()) < 1e-11
    v_r = field.velocity(z.detach() - h * exact, 0.25)
    assert float((truth.value - (v_r + h * truth.dr_u)).abs().max()) < 1e-11
    assert float((truth.jacobian - (1 - h[..., None] * truth.dz_u)).abs().max()) < 1e-11


def test_without_derivatives_there_are_none() -> None:
    truth = average_velocity(plane_mixture(), floats(0.3, 0.1)[None], 0.2, 0.7)
    assert truth.du_dt is None
    assert truth.dr_u is None
    assert truth.dz_u is None
    assert truth.jacobian is None


@pytest.mark.parametrize("family", [gaussian, line_mixture, plane_mixture])
def test_float32_states_get_the_float64_answer_rounded_once(family: Any) -> None:
    double = family()
    c = draw(double)
    single = Cases(c.z.float(), c.r.float(), c.t.float())
    truth = average_velocity(double.to(dtype=torch.float32), *single.all)
    # The float32 parameters and inputs, in float64.
    exact_field = double.to(dtype=torch.float32).to(dtype=torch.float64)
    exact = average_velocity(exact_field, single.z.double(), single.r.double(), single.t.double())
    assert truth.value.dtype == truth.error.dtype == torch.float32
    assert torch.equal(truth.value, exact.value.float())
    assert bool(((truth.value.double() - exact.value).abs().amax(1) <= truth.error).all())


def test_numbers_and_tensors_are_the_same_times() -> None:
    field, z = line_mixture(), floats(0.3, 1.0)[:, None]
    by_number = average_velocity(field, z, 0, 1)
    by_tensor = average_velocity(field, z, torch.zeros(2, dtype=torch.float64), floats(1.0))
    assert torch.equal(by_number.value, by_tensor.value)


@pytest.mark.parametrize("family", [line_mixture, plane_mixture])
def test_flow_map_goes_where_the_trajectory_goes(family: Any) -> None:
    field = family()
    c = draw(field)
    there = flow_map(field, c.z, c.t, c.r)
    middle = (c.r + c.t) / 2
    # Source: mf:consistency. Two solves at 1e-12 against one; J is at most 10 here.
    assert worst_row(flow_map(field, flow_map(field, c.z, c.t, middle), middle, c.r) - there) < 1e-10
    assert worst_row(flow_map(field, c.z, c.t, c.t) - c.z) == 0
    if field.exact_flow:
        assert worst_row(there - field.flow_map(c.z, c.t, c.r), amplification(field, c)) < 1e-14


# ---------------------------------------------------------------- bad input

FIELD = line_mixture()
Z = floats(0.3, 1.0)[:, None]
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "r > t": ({"r": 0.7, "t": 0.2}, TimeError, "r > t in 2 of 2 rows"),
    "one r > t": ({"r": floats(0.1, 0.9), "t": 0.5}, TimeError, "r > t in 1 of 2 rows"),
    "below 0": ({"r": -0.1}, TimeError, r"`r` ranges over \[-0.1, -0.1\]"),
    "above 1": ({"t": 1.5}, TimeError, "`t` ranges over"),
    "nan time": ({"t": float("nan")}, TimeError, "`t` has NaN"),
    "integer time": ({"t": torch.tensor([0, 1])}, TimeError, "integer time"),
    "string time": ({"t": "now"}, TimeError, "`t` is str"),
    "time dtype": ({"t": torch.tensor([0.5, 0.5])}, DtypeError, r"`t` is torch\.float32"),
    "time shape": ({"t": floats(0.5, 0.6, 0.7)}, ShapeError, r"`t` has shape \(3,\)"),
    "nan state": ({"z": floats(float("nan"), 1.0)[:, None]}, NonFiniteError, "1 NaN or infinite"),
    "integer state": ({"z": torch.ones(2, 1, dtype=torch.int64)}, DtypeError, "`z` has dtype"),
    "half state": ({"z": Z.half()}, DtypeError, r"torch\.float16"),
    "array state": ({"z": np.ones((2, 1))}, DtypeError, "`z` is ndarray"),
    "flat state": ({"z": Z[:, 0]}, ShapeError, r"`z` has shape \(2,\)"),
    "dimension": ({"z": torch.ones(2, 3, dtype=torch.float64)}, ShapeError, "has dimension 1"),
    "float32 state of a float64 field": ({"z": Z.float()}, DtypeError, r"torch\.float32"),
    "method": ({"method": "euler"}, ParameterError, "method='euler'"),
    "tolerance": ({"tol": 0.0}, ParameterError, r"tol=0\.0"),
    "nothing to call": ({"field": 3.0}, DtypeError, "`field` is a float"),
    "closed form of a function": ({"field": lambda z, t: z, "method": "closed"}, NoClosedFormError, "plain velocity"),
    "closed form of a mixture in the plane": (
        {"field": plane_mixture(), "z": torch.ones(2, 2, dtype=torch.float64), "method": "closed"},
        NoClosedFormError,
        "has no closed-form",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_its_own_error(case: str) -> None:
    changes, kind, message = BAD[case]
    arguments: dict[str, Any] = {"field": FIELD, "z": Z, "r": 0.2, "t": 0.7} | changes
    with pytest.raises(kind, match=message):
        average_velocity(**arguments)


def test_the_table_of_bad_input_starts_from_good_input() -> None:
    assert average_velocity(FIELD, Z, 0.2, 0.7).value.shape == (2, 1)


@pytest.mark.parametrize(("module", "method"), [("torchdiffeq", "ode"), ("scipy", "scipy")])
def test_a_missing_package_is_named_with_its_extra(module: str, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == module:
            raise ImportError(name)
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"needs the package `{module}`.*") as failure:
        average_velocity(FIELD, Z, 0.2, 0.7, method=method)
    assert "meanflow-ref[truth]" in failure.value.remedy


def test_truth_does_not_know_the_caller_of_its_velocity() -> None:
    """A velocity with parameters is evaluated without a graph, and its gradients stay empty."""
    layer = torch.nn.Linear(2, 2, dtype=torch.float64)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        result: Tensor = layer(z) * t[:, None]
        return result

    truth = average_velocity(velocity, torch.ones(3, 2, dtype=torch.float64), 0.1, 0.9, derivatives=True)
    assert not truth.value.requires_grad
    assert all(p.grad is None for p in layer.parameters())


def test_a_closed_form_without_a_value_is_an_error_and_not_infinity() -> None:
    points = mf.PointMasses(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([0.5, 0.5]).double())
    z = torch.tensor([[0.3], [0.4]], dtype=torch.float64)
    with pytest.raises(TruthError, match=r"(?s)not finite in row 1, at r = 0, t = 0.*take t > 0"):
        average_velocity(points, z, 0.0, torch.tensor([0.5, 0.0], dtype=torch.float64))


def test_the_error_of_a_loose_quadrature_is_admitted() -> None:
    field = sharp_mixture(PATHS["linear"])
    c = draw(field)
    closed = average_velocity(field, *c.all, method="closed")
    loose = average_velocity(field, *c.all, method="quadrature", tol=1e-3)
    wrong = (loose.value - closed.value).abs().amax(-1)
    assert bool((wrong > 10 * closed.error).any()), "the tolerance is loose enough to tell"
    assert bool((wrong <= loose.error + closed.error).all())
