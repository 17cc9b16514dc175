"""Gaussian data: velocity, average velocity, flow, and the law of v given z, for any schedule."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, divided_difference, eps, r, t, x, z
from .theorem import Theorem, theorem

_ALPHA, _SIGMA = sp.Function("alpha"), sp.Function("sigma")
_M, _S = sp.Symbol("m", real=True), sp.Symbol("s", positive=True)


def variance(at: Any) -> Any:
    """Variance of ``z`` at a time, for data of variance ``s``."""
    return formulas.gaussian_variance(_S, _ALPHA(at), _SIGMA(at))


def velocity() -> Any:
    """Marginal velocity ``alpha' m + gain (z - alpha m)`` at ``t``."""
    a, b = _ALPHA(t), _SIGMA(t)
    gain = formulas.gaussian_velocity_gain(_S, a, b, sp.diff(a, t), b * sp.diff(b, t))
    return sp.diff(a, t) * _M + gain * (z - a * _M)


def _average(std_r: Any, std_t: Any, dd_alpha: Any, dd_sigma: Any) -> Any:
    gain = formulas.gaussian_average_gain(
        _S, _ALPHA(r), _ALPHA(t), _SIGMA(r), _SIGMA(t), dd_alpha, dd_sigma, std_r, std_t
    )
    return dd_alpha * _M + gain * (z - _ALPHA(t) * _M)


@theorem(
    "gaussian-velocity",
    "Gaussian data: the velocity is the posterior mean, and transports the density",
    r"v=\dot\alpha m+\frac{\alpha\dot\alpha s+\sigma\dot\sigma}{\alpha^2s+\sigma^2}(z-\alpha m),\qquad"
    r"\partial_tp+\partial_z(pv)=0,\ p=\mathcal N(\alpha m,\alpha^2s+\sigma^2)",
    hypotheses=(
        "$x\\sim\\mathcal N(m,s)$, $\\varepsilon\\sim\\mathcal N(0,1)$, independent",
        "$s>0$, $\\alpha^2s+\\sigma^2>0$, $\\sigma_t\\neq0$ for the posterior",
    ),
    sources=("ref:gaussian", "mf:1", "fm:path"),
    nonzero=(_SIGMA(t),),
    positive=(variance(t),),
    notes=("One axis; a covariance matrix is this along its eigenvectors, and a mean is a shift.",),
)
def _gaussian_velocity(T: Theorem) -> None:
    a, b, lam = _ALPHA(t), _SIGMA(t), variance(t)
    prior, likelihood = (x - _M) ** 2 / _S, (z - a * x) ** 2 / b**2
    mean, spread = (_M * b**2 + a * _S * z) / lam, _S * b**2 / lam
    T.step(
        "Completing the square: prior times likelihood is posterior times evidence",
        prior + likelihood,
        (x - mean) ** 2 / spread + (z - a * _M) ** 2 / lam,
    )
    T.step("and so for the normalisers", _S * b**2, spread * lam)
    noise = (z - a * mean) / b
    v = formulas.conditional_velocity(mean, noise, sp.diff(a, t), sp.diff(b, t))
    T.step(
        "$\\mathbb E[v_t\\mid z]$ by the posterior mean of $x$",
        v,
        velocity(),
        reads=(
            r"\dot\alpha\,\mathbb E[x\mid z]+\dot\sigma\,\frac{z-\alpha\,\mathbb E[x\mid z]}\sigma"
            r"=\dot\alpha m+\frac{\alpha\dot\alpha s+\sigma\dot\sigma}{\lambda}(z-\alpha m),"
            r"\quad\mathbb E[x\mid z]=\frac{m\sigma^2+\alpha sz}\lambda"
        ),
    )
    log_p = -((z - a * _M) ** 2) / (2 * lam) - sp.log(lam) / 2
    T.step(
        "Continuity equation, divided by $p$",
        D(log_p, t) + D(velocity(), z) + velocity() * D(log_p, z),
        0,
        reads=(
            r"\partial_t\log p+\partial_zv+v\,\partial_z\log p=0,\quad\log p=-"
            r"\frac{(z-\alpha m)^2}{2\lambda}-\tfrac12\log\lambda"
        ),
    )
    minus = formulas.gaussian_velocity_gain(_S, a, b, sp.diff(a, t), -b * sp.diff(b, t))
    wrong = sp.diff(a, t) * _M + minus * (z - a * _M)
    T.control("sign of the noise's part", D(log_p, t) + D(wrong, z) + wrong * D(log_p, z), 0)
    naive = formulas.conditional_velocity(_M, (z - a * _M) / b, sp.diff(a, t), sp.diff(b, t))
    T.control("the mean of $x$ instead of its posterior mean", naive, velocity())


@theorem(
    "gaussian-average",
    "Gaussian data: the average velocity in a form without cancellation",
    r"u=\mathrm{DD}(\alpha)m+\frac{s\,\mathrm{DD}(\alpha)(\alpha_t+\alpha_r)+\mathrm{DD}(\sigma)(\sigma_t+\sigma_r)}"
    r"{\sqrt{\lambda_t}\,(\sqrt{\lambda_t}+\sqrt{\lambda_r})}(z-\alpha_tm),\quad\lambda=\alpha^2s+\sigma^2",
    hypotheses=("as in `gaussian-velocity`", "$r\\neq t$ in the divided differences; finite and equal to $v$ at $r=t$"),
    sources=("ref:gaussian", "mf:6", "mf:12", "mf:limit"),
    nonzero=(t - r, sp.sqrt(variance(r)) + sp.sqrt(variance(t))),
    positive=(variance(t), variance(r)),
    where=TIMES,
)
def _gaussian_average(T: Theorem) -> None:
    std = [sp.sqrt(variance(at)) for at in (r, t)]
    dd = [divided_difference(f(t), t, r, t) for f in (_ALPHA, _SIGMA)]
    u = _average(*std, *dd)
    landed = _ALPHA(r) * _M + std[0] / std[1] * (z - _ALPHA(t) * _M)
    T.step(
        "One step is the Gaussian transport $\\alpha_rm+\\sqrt{\\lambda_r/\\lambda_t}(z-\\alpha_tm)$",
        formulas.step(z, u, r, t),
        landed,
        reads=r"z-(t-r)u=\alpha_rm+\sqrt{\lambda_r/\lambda_t}\,(z-\alpha_tm)",
    )
    plain = formulas.average_velocity(z - landed, r, t)
    v = velocity()
    du_dt = formulas.total_derivative(D(plain, z), D(plain, r), D(plain, t), v, 0, 1)
    T.step(
        "Identity in JVP form",
        formulas.identity_residual(plain, v, du_dt, r, t),
        0,
        reads=r"u-v+(t-r)(v\,\partial_zu+\partial_tu)=0",
    )
    T.step(
        "which is the same field",
        u,
        plain,
        reads=(
            r"\mathrm{DD}(\alpha)m+g\,(z-\alpha_tm)="
            r"\frac{z-\alpha_rm-\sqrt{\lambda_r/\lambda_t}\,(z-\alpha_tm)}{t-r}"
        ),
    )
    one = sp.sqrt(variance(t))
    at_t = _average(one, one, sp.diff(_ALPHA(t), t), sp.diff(_SIGMA(t), t)).subs(
        {_ALPHA(r): _ALPHA(t), _SIGMA(r): _SIGMA(t)}
    )
    T.step("At $r=t$ it is the velocity, with nothing to cancel", at_t, v)
    swapped = formulas.average_velocity(z - _ALPHA(r) * _M - std[1] / std[0] * (z - _ALPHA(t) * _M), r, t)
    T.control("$\\lambda_r$ and $\\lambda_t$ exchanged", formulas.step(z, swapped, r, t), landed)
    T.control("$u=v$", u, v)
    T.control(
        "tangent $(v,1,1)$",
        formulas.identity_residual(
            plain, v, formulas.total_derivative(D(plain, z), D(plain, r), D(plain, t), v, 1, 1), r, t
        ),
        0,
    )


@theorem(
    "gaussian-rate",
    "Gaussian data: the same average velocity by the divided difference of the variance",
    r"\frac{1-\sqrt{\lambda_r/\lambda_t}}{t-r}=\frac{\mathrm{DD}(\lambda)}{\sqrt{\lambda_t}\,"
    r"(\sqrt{\lambda_t}+\sqrt{\lambda_r})},\qquad\mathrm{DD}(\lambda)=s\,\mathrm{DD}(\alpha^2)+\mathrm{DD}(\sigma^2)",
    hypotheses=("as in `gaussian-average`",),
    sources=("ref:gaussian", "mf:12", "mf:limit"),
    nonzero=(t - r, sp.sqrt(variance(r)) + sp.sqrt(variance(t))),
    positive=(variance(t), variance(r)),
    where=TIMES,
    notes=(
        "It needs $\\sigma^2$ alone, which is smooth where $\\dot\\sigma$ is not (the variance-preserving path at 0).",
    ),
)
def _gaussian_rate(T: Theorem) -> None:
    std_r, std_t = (sp.sqrt(variance(at)) for at in (r, t))
    dd_alpha, dd_sigma, dd_square = (divided_difference(f, t, r, t) for f in (_ALPHA(t), _SIGMA(t), _SIGMA(t) ** 2))
    dd = formulas.gaussian_variance_dd(_S, _ALPHA(r), _ALPHA(t), dd_alpha, dd_square)
    T.step("Divided difference of the variance", dd, divided_difference(variance(t), t, r, t))
    rate = formulas.contraction_rate(dd, std_r, std_t)
    T.step("The rate", rate, (1 - std_r / std_t) / (t - r))
    T.step("so that the deviation contracts by it", formulas.step(z, rate * z, r, t), std_r / std_t * z)
    other = (_ALPHA(r), _ALPHA(t), _SIGMA(r), _SIGMA(t), dd_alpha, dd_sigma, std_r, std_t)
    T.step("It is the gain of `gaussian-average`", rate, formulas.gaussian_average_gain(_S, *other))
    a, b = _ALPHA(t), _SIGMA(t)
    a_dot, half = sp.diff(a, t), b * sp.diff(b, t)
    at_t = formulas.contraction_rate(formulas.gaussian_variance_dd(_S, a, a, a_dot, 2 * half), std_t, std_t)
    T.step("At $r=t$ it is the gain of the velocity", at_t, formulas.gaussian_velocity_gain(_S, a, b, a_dot, half))
    T.control("$\\lambda_r$ and $\\lambda_t$ exchanged", formulas.contraction_rate(dd, std_t, std_r), rate)
    T.control("divided difference of $\\sigma$ for that of $\\sigma^2$", _S * dd_alpha + dd_sigma, dd)


@theorem(
    "gaussian-flow",
    "Gaussian data: the flow solves its equation, and its density ratio is its Jacobian",
    r"\partial_r\phi=v(\phi,r),\qquad\partial_z\phi=\sqrt{\lambda_r/\lambda_t}=\frac{p_t(z)}{p_r(\phi)}",
    hypotheses=("as in `gaussian-average`", "$\\phi=z-(t-r)u$, one step"),
    sources=("ref:gaussian", "ref:logdet", "mf:2"),
    nonzero=(t - r, sp.sqrt(variance(r)) + sp.sqrt(variance(t))),
    positive=(variance(t), variance(r)),
    where=TIMES,
)
def _gaussian_flow(T: Theorem) -> None:
    std = [sp.sqrt(variance(at)) for at in (r, t)]
    u = _average(*std, *(divided_difference(f(t), t, r, t) for f in (_ALPHA, _SIGMA)))
    flow = formulas.step(z, u, r, t)
    T.step(
        "Flow equation in the end time",
        D(flow, r),
        _velocity_at_r(flow),
        reads=(
            r"\partial_r\phi=\dot\alpha_rm+\frac{\alpha_r\dot\alpha_rs"
            r"+\sigma_r\dot\sigma_r}{\lambda_r}(\phi-\alpha_rm),\quad\phi=z-(t-r)u"
        ),
    )
    exponent = [(z - _ALPHA(t) * _M) ** 2 / variance(t), (flow - _ALPHA(r) * _M) ** 2 / variance(r)]
    T.step(
        "The exponents of the two densities agree",
        exponent[0],
        exponent[1],
        reads=r"\frac{(z-\alpha_tm)^2}{\lambda_t}=\frac{(\phi-\alpha_rm)^2}{\lambda_r}",
    )
    T.step(
        "so that the Jacobian is the ratio of the normalisers",
        D(flow, z),
        std[0] / std[1],
        reads=r"\partial_z\phi=\sqrt{\lambda_r}/\sqrt{\lambda_t}",
    )
    T.control("flow equation with the velocity at the start", D(flow, r), velocity())
    T.control("density not transported", (z - _ALPHA(r) * _M) ** 2 / variance(r), exponent[0])


def _velocity_at_r(state: Any) -> Any:
    a, b = _ALPHA(r), _SIGMA(r)
    gain = formulas.gaussian_velocity_gain(_S, a, b, sp.diff(a, r), b * sp.diff(b, r))
    return sp.diff(a, r) * _M + gain * (state - a * _M)


@theorem(
    "gaussian-covariance",
    "Gaussian data: the law of v given z",
    r"\mathrm{Var}(v_t\mid z)=\frac{(\dot\alpha\sigma-\alpha\dot\sigma)^2s}{\alpha^2s+\sigma^2}",
    hypotheses=("as in `gaussian-velocity`",),
    sources=("ref:covariance", "ref:gaussian"),
    positive=(variance(t),),
    notes=(
        "Jointly Gaussian, so that the conditional variance is "
        "$\\mathrm{Var}(v)-\\mathrm{Cov}(v,z)^2/\\mathrm{Var}(z)$.",
    ),
)
def _gaussian_covariance(T: Theorem) -> None:
    a, b = _ALPHA(t), _SIGMA(t)
    a_dot, b_dot = sp.diff(a, t), sp.diff(b, t)

    def covariance(f: Any, g: Any) -> Any:
        """Covariance of two forms linear in the independent x (variance s) and eps (variance 1)."""
        return sp.diff(f, x) * sp.diff(g, x) * _S + sp.diff(f, eps) * sp.diff(g, eps)

    state = formulas.interpolant(x, eps, a, b)
    v = formulas.conditional_velocity(x, eps, a_dot, b_dot)
    T.step("Variance of the state", covariance(state, state), variance(t))
    gain = formulas.gaussian_velocity_gain(_S, a, b, a_dot, b * b_dot)
    T.step("Gain by regression", covariance(v, state) / covariance(state, state), gain)
    conditional = covariance(v, v) - covariance(v, state) ** 2 / covariance(state, state)
    claimed = (a_dot * b - a * b_dot) ** 2 * _S / variance(t)
    T.step("Conditional variance", conditional, claimed)
    linear = {a_dot: -1, b_dot: 1, a: 1 - t, b: t}
    T.assume(positive=[formulas.gaussian_variance(_S, 1 - t, t)])
    T.step("on the linear path", claimed.subs(linear), _S / formulas.gaussian_variance(_S, 1 - t, t))
    turn = sp.pi * t / 2
    T.step(
        "On the trigonometric path data of variance 1 stay so",
        formulas.gaussian_variance(1, sp.cos(turn), sp.sin(turn)),
        sp.Integer(1),
    )
    T.control("the unconditional variance", conditional, covariance(v, v))
    T.control(
        "$(\\dot\\alpha\\sigma+\\alpha\\dot\\sigma)^2$", conditional, (a_dot * b + a * b_dot) ** 2 * _S / variance(t)
    )
