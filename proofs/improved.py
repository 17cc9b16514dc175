"""Other objectives with the same truth: improved MeanFlow and AlphaFlow."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .language import opaque
from .notation import TIMES, D, r, t, theta, theta0, z
from .theorem import Theorem, theorem

_STEP = sp.Symbol("a", real=True)


@theorem(
    "improved",
    "MeanFlow and improved MeanFlow have the same expected gradient",
    r"\nabla_\theta\lVert u_\theta-\mathrm{sg}(u_{\mathrm{tgt}})\rVert^2"
    r"=\nabla_\theta\lVert V_\theta-v_t\rVert^2,\qquad V_\theta=u_\theta+(t-r)\,\mathrm{sg}(\dot u)",
    hypotheses=(
        "one dimension and two values of $v_t$ given $z$",
        "the same tangent in both losses for the equality of single gradients; any unbiased one for the expectation",
    ),
    sources=("imf:velocity", "mf:9", "mf:11"),
    where=TIMES,
    notes=(
        "With the conditional tangent $v_t$ the two losses are one, sample by sample. With the marginal tangent the "
        "expected gradient is the same and the noise is not: it is $\\mathrm{Var}(v_t)$ instead of "
        "$\\Phi^2\\,\\mathrm{Var}(v_t)$.",
    ),
)
def _improved(T: Theorem) -> None:
    u, jacobian, dt_u = (sp.Function(name)(theta) for name in ("u", "J", "q"))
    p, first, second = sp.symbols("p v_1 v_2", real=True)
    mean = p * first + (1 - p) * second

    def du_dt(tangent: Any) -> Any:
        held = (f.subs(theta, theta0) for f in (jacobian, dt_u))
        dz_u, dt = held
        return formulas.total_derivative(dz_u, 0, dt, tangent, 0, 1)

    def plain(v: Any, tangent: Any) -> Any:
        return (u - formulas.meanflow_target(v, du_dt(tangent), r, t)) ** 2

    def improved_loss(v: Any, tangent: Any) -> Any:
        return (formulas.improved_velocity(u, du_dt(tangent), r, t) - v) ** 2

    def gradient(loss: Any) -> Any:
        return sp.diff(loss, theta).subs(theta0, theta)

    def expected(loss: Any) -> Any:
        return p * loss(first) + (1 - p) * loss(second)

    T.step("One loss, sample by sample", plain(first, first), improved_loss(first, first))
    conditional = gradient(expected(lambda v: plain(v, v)))
    marginal = gradient(expected(lambda v: improved_loss(v, mean)))
    T.step(
        "Equal expected gradients, conditional against marginal tangent",
        conditional,
        marginal,
        reads=(
            r"\partial_\theta\sum_kp_k\big(u_\theta-u_{\mathrm{tgt}}(v_k)\big)^2"
            r"=\partial_\theta\sum_kp_k\big(u_\theta+(t-r)\,\mathrm{sg}[J\bar v+q]-v_k\big)^2"
        ),
    )
    T.step("Both are the marginal gradient", conditional, gradient(plain(mean, mean)))
    phi = 1 - (t - r) * jacobian.subs(theta, theta0)
    variance = p * (1 - p) * (first - second) ** 2
    tangent = expected(lambda v: plain(v, v)) - plain(mean, mean)
    T.step("Excess loss with the conditional tangent", tangent, phi**2 * variance)
    T.step(
        "Excess loss with the marginal tangent",
        expected(lambda v: improved_loss(v, mean)) - plain(mean, mean),
        variance,
    )
    T.control("a tangent with another mean", conditional, gradient(expected(lambda v: improved_loss(v, first))))
    T.control("equal excess losses", tangent, variance)
    live = (u + (t - r) * (jacobian * first + dt_u) - first) ** 2
    T.control("no stop-gradient in $V$", gradient(plain(first, first)), gradient(live))
    T.control(
        "$V=u-(t-r)\\dot u$", plain(first, first), (formulas.improved_velocity(u, -du_dt(first), r, t) - first) ** 2
    )


@theorem(
    "alpha-flow",
    "AlphaFlow: from trajectory flow matching to MeanFlow, and the decomposition of the loss",
    r"u^{(a)}_{\mathrm{tgt}}=a\,v+(1-a)\,u(z-a(t-r)v,\,r,\,t-a(t-r)),\qquad"
    r"\frac{u-u^{(a)}_{\mathrm{tgt}}}{a}\to u-u_{\mathrm{tgt}}\ (a\to0)",
    hypotheses=("$u$ differentiable", "$0<a\\leq1$"),
    sources=("alphaflow:discrete", "mf:11"),
    nonzero=(t - r, _STEP, 1 - _STEP),
    where=(*TIMES, _STEP > 0, _STEP < 1),
    notes=(
        "The limit of the quotient is the derivative of its numerator at $a=0$, where the numerator vanishes. For the "
        "true field with the mean velocity of the last piece, the target is exact at every $a$: that is consistency.",
    ),
)
def _alpha_flow(T: Theorem) -> None:
    u, v = opaque("u", ("z", "r", "t")), sp.Symbol("v", real=True)
    here = u(z, r, t)
    target = _STEP * v + (1 - _STEP) * u(z - _STEP * (t - r) * v, r, t - _STEP * (t - r))
    du_dt = formulas.total_derivative(here.fdiff(1), here.fdiff(2), here.fdiff(3), v, 0, 1)
    T.step("The residual vanishes at $a=0$", (here - target).subs(_STEP, 0), 0)
    slope = D(here - target, _STEP).doit().subs(_STEP, 0)
    T.step("where its slope is MeanFlow's residual", slope, formulas.identity_residual(here, v, du_dt, r, t))
    T.step("At $a=1$ the target is the velocity", target.subs(_STEP, 1), v)
    c = sp.Function("z")
    middle = t - _STEP * (t - r)

    def mean(a: Any, b: Any) -> Any:
        return formulas.average_velocity(c(b) - c(a), a, b)

    T.assume(nonzero=(middle - r,))
    exact = _STEP * mean(middle, t) + (1 - _STEP) * mean(r, middle)
    T.step("Exact for the true field, whatever $a$", exact, mean(r, t))
    T.step(
        "which solved for the earlier field is the discrete identity",
        mean(r, middle),
        formulas.discrete_target(mean(middle, t), mean(r, t), mean(r, middle), r, middle, t),
    )
    value, held = sp.symbols("u_theta u_tgt", real=True)
    parts = (value - v) ** 2 + 2 * (v - held) * value
    T.step("The loss is flow matching plus consistency plus a constant", (value - held) ** 2, parts + held**2 - v**2)
    T.control("the slope with the other sign", slope, -formulas.identity_residual(here, v, du_dt, r, t))
    T.control("weights $a$ and $1-a$ exchanged", (1 - _STEP) * mean(middle, t) + _STEP * mean(r, middle), mean(r, t))
    T.control(
        "the parts without the factor 2", (value - held) ** 2 - (value - v) ** 2, (v - held) * value + held**2 - v**2
    )
    T.control(
        "$v(t)$ for the mean velocity of the last piece", _STEP * D(c(t), t) + (1 - _STEP) * mean(r, middle), mean(r, t)
    )
