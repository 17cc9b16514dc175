"""Mixtures, point masses and one-dimensional transport: exact fields without a Gaussian's simplicity."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .gaussian import variance, velocity
from .language import opaque
from .notation import TIMES, D, r, t, x, z
from .theorem import Theorem, theorem

_ALPHA, _SIGMA = sp.Function("alpha"), sp.Function("sigma")
_M = sp.Symbol("m", real=True)


@theorem(
    "posterior-mean",
    "Any data: the velocity from the posterior mean of the data, or of the noise",
    r"v=\frac{\dot\sigma z+(\dot\alpha\sigma-\alpha\dot\sigma)\,\mathbb E[x\mid z]}{\sigma},\qquad"
    r"\mathbb E[x\mid z]=\sum_i\gamma_ix_i\ \text{for point masses}",
    hypotheses=(
        "$\\sigma_t\\neq0$ (or $\\alpha_t\\neq0$ by the noise)",
        "three atoms with posterior weights $\\gamma_i$, $\\sum\\gamma_i=1$",
    ),
    sources=("ref:shell", "ref:points", "mf:1"),
    nonzero=(_SIGMA(t), _ALPHA(t)),
    notes=("Linear in the posterior law, so that it holds for any data: shell, mixture, empirical.",),
)
def _posterior_mean(T: Theorem) -> None:
    a, b = _ALPHA(t), _SIGMA(t)
    a_dot, b_dot = sp.diff(a, t), sp.diff(b, t)
    gamma = [*sp.symbols("gamma_1:3", real=True)]
    gamma.append(1 - sum(gamma))
    T.assume(where=[g > 0 for g in gamma] + [g < 1 for g in gamma[:2]])
    data = sp.symbols("x_1:4", real=True)
    mean = sum(g * xi for g, xi in zip(gamma, data, strict=True))
    v = sum(
        g * formulas.conditional_velocity(xi, (z - a * xi) / b, a_dot, b_dot) for g, xi in zip(gamma, data, strict=True)
    )
    T.step("The noise of an atom is what takes it to $z$", formulas.interpolant(x, (z - a * x) / b, a, b), z)
    T.step(
        "Velocity by the mean of the data",
        v,
        (b_dot * z + (a_dot * b - a * b_dot) * mean) / b,
        reads=(
            r"\sum_i\gamma_i\Big[\dot\alpha x_i+\dot\sigma\,\frac{z-\alpha x_i}\sigma\Big]="
            r"\frac{\dot\sigma z+(\dot\alpha\sigma-\alpha\dot\sigma)\,\bar x}{\sigma}"
        ),
    )
    noise = (z - a * mean) / b
    T.step(
        "Velocity by the mean of the noise",
        v,
        (a_dot * z + (a * b_dot - a_dot * b) * noise) / a,
        reads=(
            r"\sum_i\gamma_i\Big[\dot\alpha x_i+\dot\sigma\,\frac{z-\alpha x_i}\sigma\Big]="
            r"\frac{\dot\alpha z+(\alpha\dot\sigma-\dot\alpha\sigma)\,\bar\varepsilon}{\alpha}"
        ),
    )
    T.control("sign of the second term", v, (b_dot * z - (a_dot * b - a * b_dot) * mean) / b)
    T.control("prior weights", v, (b_dot * z + (a_dot * b - a * b_dot) * sum(data) / 3) / b)


@theorem(
    "point-masses",
    "Point masses: the softmax-weighted velocity transports the density",
    r"\gamma_i\propto w_i\,e^{-(z-\alpha x_i)^2/2\sigma^2},\qquad"
    r"\partial_tp+\partial_z(pv)=0,\ v=\sum_i\gamma_i\,"
    r"\big(\dot\alpha x_i+\tfrac{\dot\sigma}{\sigma}(z-\alpha x_i)\big)",
    hypotheses=("$\\sigma_t>0$", "two atoms with positive weights"),
    sources=("ref:points", "mf:1", "mf:2"),
    positive=(_SIGMA(t),),
    notes=(
        "Each atom carries a Gaussian of width $\\sigma_t$ whose continuity equation is checked; the sum follows by "
        "linearity, `mixture`.",
    ),
)
def _point_masses(T: Theorem) -> None:
    a, b = _ALPHA(t), _SIGMA(t)
    w, xs = sp.symbols("w_1:3", positive=True), sp.symbols("x_1:3", real=True)
    bump = [sp.exp(-((z - a * xi) ** 2) / (2 * b**2)) / b for xi in xs]
    v = [formulas.conditional_velocity(xi, (z - a * xi) / b, sp.diff(a, t), sp.diff(b, t)) for xi in xs]
    T.step("Continuity of one atom", D(bump[0], t) + D(bump[0] * v[0], z), 0)
    total = sum(wi * p for wi, p in zip(w, bump, strict=True))
    T.assume(nonzero=(total,))
    gamma = [wi * p / total for wi, p in zip(w, bump, strict=True)]
    T.step(
        "Two weights are in the ratio of their bumps",
        gamma[0] * w[1] * bump[1],
        gamma[1] * w[0] * bump[0],
        reads=r"\gamma_1\,w_2p_2=\gamma_2\,w_1p_1",
    )
    logit = [sp.log(wi) - (z - a * xi) ** 2 / (2 * b**2) for wi, xi in zip(w, xs, strict=True)]
    softmax = sp.exp(logit[0]) / (sp.exp(logit[0]) + sp.exp(logit[1]))
    T.assume(nonzero=(sp.exp(logit[0]) + sp.exp(logit[1]),))
    T.step(
        "of the logits $\\log w_i-(z-\\alpha x_i)^2/2\\sigma^2$",
        gamma[0],
        softmax,
        reads=(r"\gamma_1=\frac{e^{l_1}}{e^{l_1}+e^{l_2}},\quad l_i=\log w_i-" r"\frac{(z-\alpha x_i)^2}{2\sigma^2}"),
    )
    flux = sum(wi * p * vi for wi, p, vi in zip(w, bump, v, strict=True))
    T.step(
        "Density times averaged velocity is the flux",
        total * (gamma[0] * v[0] + gamma[1] * v[1]),
        flux,
        reads=r"p\,(\gamma_1v_1+\gamma_2v_2)=w_1p_1v_1+w_2p_2v_2",
    )
    wrong = formulas.conditional_velocity(xs[0], (z - a * xs[0]) / b, sp.diff(a, t), -sp.diff(b, t))
    T.control("sign of the noise's part", D(bump[0], t) + D(bump[0] * wrong, z), 0)
    T.control("weights without the bumps", total * (w[0] * v[0] + w[1] * v[1]) / (w[0] + w[1]), flux)


@theorem(
    "mixture",
    "Mixture: the posterior-weighted velocity transports the mixture, and its law given z is a mixture",
    r"v=\frac{\sum_kw_kp_kv_k}{\sum_kw_kp_k},\qquad\mathrm{Var}(v_t\mid z)=\sum_k\gamma_k\,(c_k+v_k^2)-v^2",
    hypotheses=("three components, each transported by its own $v_k$", "$p=\\sum w_kp_k\\neq0$"),
    sources=("mf:1", "mf:14", "ref:covariance"),
    nonzero=(sum(sp.Symbol(f"w_{k}", positive=True) * sp.Function(f"p_{k}")(z, t) for k in (1, 2, 3)),),
)
def _mixture(T: Theorem) -> None:
    w = sp.symbols("w_1:4", positive=True)
    p = [sp.Function(f"p_{k}")(z, t) for k in (1, 2, 3)]
    v = [sp.Function(f"v_{k}")(z, t) for k in (1, 2, 3)]
    total = sum(a * b for a, b in zip(w, p, strict=True))
    gamma = [a * b / total for a, b in zip(w, p, strict=True)]
    mean = sum(g * vk for g, vk in zip(gamma, v, strict=True))

    def transport(density: Any, field: Any) -> Any:
        return D(density, t) + D(density * field, z)

    parts = sum(wk * transport(pk, vk) for wk, pk, vk in zip(w, p, v, strict=True))
    T.step(
        "Continuity is linear in the components",
        transport(total, mean),
        parts,
        reads=r"\partial_tp+\partial_z(pv)=\sum_kw_k\,\big[\partial_tp_k+\partial_z(p_kv_k)\big]",
    )
    spread = sp.symbols("c_1:4", positive=True)
    second = sum(g * (c + vk**2) for g, c, vk in zip(gamma, spread, v, strict=True))
    between = sum(g * (vk - mean) ** 2 for g, vk in zip(gamma, v, strict=True))
    within = sum(g * c for g, c in zip(gamma, spread, strict=True))
    T.step(
        "Variance of $v_t$ given $z$: within plus between",
        second - mean**2,
        within + between,
        reads=r"\sum_k\gamma_k(c_k+v_k^2)-v^2=\sum_k\gamma_kc_k+\sum_k\gamma_k(v_k-v)^2",
    )
    T.control("prior weights", transport(total, sum(wk * vk for wk, vk in zip(w, v, strict=True)) / sum(w)), parts)
    T.control("variance within the components alone", second - mean**2, within)


@theorem(
    "quantile",
    "One dimension: the distribution function is constant along the flow",
    r"\partial_tF_t+p_tv=0\ \Rightarrow\ \frac{d}{dt}F_t(z_t)=0\ \Rightarrow\ \phi_{t\to r}=F_r^{-1}\circ F_t,\qquad"
    r"\partial_z\phi=\frac{p_t(z)}{p_r(\phi)}",
    hypotheses=("Gaussian components; mixtures by linearity in $F$ and in $pv$", "$p_r\\neq0$ where it divides"),
    sources=("ref:quantile", "ref:logdet", "mf:2"),
    positive=(variance(t),),
    nonzero=(opaque("F", ("z", "t"))(sp.Function("phi")(z), r).fdiff(1),),
    notes=("The derivative of erf is sympy's; so is the derivative of the implicit equation $F_r(\\phi(z))=F_t(z)$.",),
)
def _quantile(T: Theorem) -> None:
    lam = variance(t)
    score = (z - _ALPHA(t) * _M) / sp.sqrt(lam)
    cdf = (1 + sp.erf(score / sp.sqrt(2))) / 2
    density = sp.exp(-(score**2) / 2) / sp.sqrt(2 * sp.pi * lam)
    T.step("The density is the derivative of the distribution function", D(cdf, z), density)
    T.step(
        "which loses what flows past $z$",
        D(cdf, t) + density * velocity(),
        0,
        reads=(r"\partial_tF+p\,v=0,\quad F=\tfrac12\Big(1+\mathrm{erf}" r"\frac{z-\alpha m}{\sqrt{2\lambda}}\Big)"),
    )
    f, p, v, curve = opaque("F", ("z", "t")), sp.Function("p"), sp.Function("v"), sp.Function("z")
    here = f(curve(t), t)
    rate = D(here, t).doit().subs(D(curve(t), t), v(t))
    T.step(
        "Along the flow its rate of change is $\\partial_tF+v\\,\\partial_zF$",
        rate,
        formulas.total_derivative(here.fdiff(1), 0, here.fdiff(2), v(t), 0, 1),
    )
    T.step(
        "which is 0 for $\\partial_tF=-pv$, $\\partial_zF=p$",
        rate.subs({here.fdiff(1): p(t), here.fdiff(2): -p(t) * v(t)}),
        0,
    )
    phi = sp.Function("phi")
    arrived = f(phi(z), r)
    slope = f(z, t).fdiff(1) / arrived.fdiff(1)
    T.step(
        "Jacobian of the transport from $F_r(\\phi)=F_t(z)$",
        D(arrived - f(z, t), z).doit().subs(D(phi(z), z), slope),
        0,
    )
    T.control("the flux with the other sign", D(cdf, t) - density * velocity(), 0)
    T.control("the density is constant along the flow", D(sp.log(density), t) + velocity() * D(sp.log(density), z), 0)
    T.control("the Jacobian upside down", lambda: D(arrived - f(z, t), z).doit().subs(D(phi(z), z), 1 / slope), 0)


@theorem(
    "segment",
    "One dimension: the average velocity is a mean of v along the straight segment, weighted with the density",
    r"u(z,r,t)=\frac{\int_0^1p_\tau(y)\,v(y,\tau)\,d\theta}{\int_0^1p_\tau(y)\,d\theta},\qquad"
    r"(y,\tau)=(1-\theta)\,(\phi_{t\to r}(z),r)+\theta\,(z,t)",
    hypotheses=("$\\partial_zF=p>0$, $\\partial_tF=-pv$", "$F_r(\\phi)=F_t(z)$, from `quantile`", "$r\\neq t$"),
    sources=("ref:segment", "ref:quantile", "mf:12"),
    nonzero=(t - r,),
    where=TIMES,
    notes=("The integral of the first step over $\\theta$ is $F_t(z)-F_r(\\phi)=0$: solve it for $u$.",),
)
def _segment(T: Theorem) -> None:
    theta, u = sp.symbols("theta u", real=True)
    f, p, v = opaque("F", ("z", "t")), sp.Function("p"), sp.Function("v")
    arrived = formulas.step(z, u, r, t)
    y, time = arrived + theta * (z - arrived), r + theta * (t - r)
    here = f(y, time)
    rate = D(here, theta).doit().subs({here.fdiff(1): p(theta), here.fdiff(2): -p(theta) * v(theta)})
    T.step("Change of $F$ along the segment from $\\phi=z-(t-r)u$", rate, (t - r) * p(theta) * (u - v(theta)))
    ends = [here.subs(theta, end) for end in (0, 1)]
    T.step("The segment joins the two states", sp.Matrix(ends), sp.Matrix([f(arrived, r), f(z, t)]))
    mass, flow = sp.symbols("P Q", real=True)
    T.assume(nonzero=(mass,))
    gained = formulas.displacement(u, r, t) * mass - (t - r) * flow
    T.step(
        "With $P=\\int p$, $Q=\\int pv$: the total vanishes if and only if $u=Q/P$",
        gained,
        (t - r) * mass * (u - flow / mass),
    )
    T.control("the plain mean of $v$, without the density", rate, (t - r) * (u - v(theta)))
    T.control("the other sign of the flux", rate, (t - r) * p(theta) * (u + v(theta)))
    T.control("$u=P/Q$", lambda: gained, lambda: (t - r) * flow * (u - mass / flow))


@theorem(
    "log-det",
    "Any dimension: log det of the flow map is a difference of log densities",
    r"\frac{d}{d\tau}\log p_\tau(z_\tau)=-\mathrm{tr}\,\partial_zv,"
    r"\quad\frac{d}{d\tau}\det M=\mathrm{tr}(\partial_zv)\det M"
    r"\ \Rightarrow\ \log\det\partial_z\phi_{t\to r}=\log p_t(z)-\log p_r(\phi)",
    hypotheses=(
        "$M=\\partial z_\\tau/\\partial z_t$ solves $\\dot M=(\\partial_zv)M$",
        "$p>0$ satisfies the continuity equation",
    ),
    sources=("ref:logdet", "mf:2"),
    nonzero=(sp.Function("p", positive=True)(*sp.symbols("z_1:3", real=True), t),),
    notes=("Both logarithms change at the same rate with opposite sign, and agree at $r=t$.",),
)
def _log_det(T: Theorem) -> None:
    for d in (2, 3):
        matrix = sp.Matrix(d, d, lambda i, j, d=d: sp.Function(f"M{d}_{i}{j}")(t))
        jacobian = sp.Matrix(d, d, sp.symbols(f"A{d}_0:{d * d}", real=True))
        flow = dict(zip(matrix.diff(t), jacobian * matrix, strict=True))
        rate = D(matrix.det(), t).doit().subs(flow)
        T.step(
            f"Liouville's formula, d = {d}",
            rate,
            jacobian.trace() * matrix.det(),
            reads=r"\frac{d}{dt}\det M=\mathrm{tr}(A)\,\det M\quad\text{for}\ \dot M=AM",
        )
        T.control(f"the determinant for the trace, d = {d}", rate, jacobian.det() * matrix.det())
        T.control(f"the other sign, d = {d}", rate, -jacobian.trace() * matrix.det())
    states = sp.symbols("z_1:3", real=True)
    p = sp.Function("p", positive=True)(*states, t)
    v = [sp.Function(f"v_{i + 1}")(*states, t) for i in range(2)]
    loss = D(p, t) + sum(D(p * v[i], states[i]) for i in range(2))
    moving = (D(p, t) + sum(v[i] * D(p, states[i]) for i in range(2))) / p
    divergence = sum(D(v[i], states[i]) for i in range(2))
    T.step(
        "The log density along the flow loses the divergence, by the continuity equation",
        moving,
        loss / p - divergence,
        reads=r"\frac{\partial_tp+v\cdot\nabla p}p=\frac{\partial_tp+\nabla\cdot(pv)}p-\nabla\cdot v",
    )
    T.control("it gains it", moving, loss / p + divergence)
