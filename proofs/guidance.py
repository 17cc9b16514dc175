"""Classifier-free guidance: the field, its effective scale, its average velocity, and the class weights."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .language import opaque
from .notation import TIMES, D, kappa, omega, r, t, tau, z
from .theorem import Theorem, theorem

_V_COND, _V_NULL, _V = sp.symbols("v_c v_0 V", real=True)


@theorem(
    "guided-scale",
    "The improved guidance has the effective scale omega / (1 - kappa)",
    r"V=\omega v_c+\kappa V+(1-\omega-\kappa)v_0\iff V=\omega'v_c+(1-\omega')v_0,\quad\omega'=\frac{\omega}{1-\kappa}",
    hypotheses=(
        "$u(z,t,t\\mid c)=V$ and $u(z,t,t)=v_0$ at the fixed point",
        "$\\kappa\\neq1$; $|\\kappa|<1$ to reach it by iteration",
    ),
    sources=("mf:13", "mf:19", "mf:20", "mf:21"),
    nonzero=(1 - kappa,),
    notes=(
        "The null branch must be the *unconditional* field: with the conditional one in its place every "
        "$\\omega$ gives $v_c$.",
    ),
)
def _guided_scale(T: Theorem) -> None:
    fixed = formulas.guided_velocity(_V_COND, _V_NULL, formulas.effective_guidance(omega, kappa))
    update = formulas.guided_sample_velocity(_V_COND, _V, _V_NULL, omega, kappa)
    T.step("The claimed field is a fixed point", update.subs(_V, fixed), fixed)
    T.step("and the only one", _V - update, (1 - kappa) * (_V - fixed))
    T.step("An error shrinks by $\\kappa$ each time", update - fixed, kappa * (_V - fixed))
    T.step("$\\kappa=0$ is equation 19", update.subs(kappa, 0), formulas.guided_velocity(_V_COND, _V_NULL, omega))
    T.step("$\\omega=1-\\kappa$ is no guidance", fixed.subs(omega, 1 - kappa), _V_COND)
    T.step("The coefficients sum to 1", formulas.guided_sample_velocity(_V, _V, _V, omega, kappa), _V)
    alone = formulas.guided_sample_velocity(_V_COND, _V, _V, omega, sp.Integer(0))
    T.step(
        "With $u(\\cdot\\mid c)$ in the null slot the fixed point is $v_c$, whatever $\\omega$",
        alone - _V,
        omega * (_V_COND - _V),
    )
    for name, scale in {
        "$\\omega$": omega,
        "$\\omega+\\kappa$": omega + kappa,
        "$\\omega(1-\\kappa)$": omega * (1 - kappa),
    }.items():
        T.control(f"effective scale {name}", fixed, formulas.guided_velocity(_V_COND, _V_NULL, scale))
    T.control(
        "effective scale $\\omega/(1+\\kappa)$",
        fixed,
        lambda: formulas.guided_velocity(_V_COND, _V_NULL, formulas.effective_guidance(omega, -kappa)),
    )
    T.control("branches exchanged", fixed, formulas.guided_velocity(_V_NULL, _V_COND, omega))


@theorem(
    "posterior-weights",
    "The unconditional field is the class average with posterior weights",
    r"v(z,t)=\sum_c\frac{\pi_cp_c(z,t)}{\sum_k\pi_kp_k(z,t)}\,v_c(z,t),\qquad\text{not}\ \sum_c\pi_cv_c",
    hypotheses=("three classes with prior weights $\\pi_c$", "$p=\\sum\\pi_cp_c\\neq0$"),
    sources=("mf:14", "mf:13", "mf:1"),
    nonzero=(sum(sp.Symbol(f"pi_{c}", positive=True) * sp.Function(f"p_{c}")(z, t) for c in (1, 2, 3)),),
    notes=("The average must transport the mixture: its continuity equation has to follow from those of the classes.",),
)
def _posterior_weights(T: Theorem) -> None:
    prior = sp.symbols("pi_1:4", positive=True)
    density = [sp.Function(f"p_{c}")(z, t) for c in (1, 2, 3)]
    v = [sp.Function(f"v_{c}")(z, t) for c in (1, 2, 3)]
    joint = [a * b for a, b in zip(prior, density, strict=True)]
    total = sum(joint)
    posterior = [j / total for j in joint]

    def average(weights: Any, of: Any) -> Any:
        return sum(w * value for w, value in zip(weights, of, strict=True))

    def transport(p: Any, field: Any) -> Any:
        return D(p, t) + D(p * field, z)

    marginal = average(posterior, v)
    classes = average(prior, [transport(p, field) for p, field in zip(density, v, strict=True)])
    T.step("Weights sum to 1", sum(posterior), 1)
    T.step(
        "The average transports the mixture",
        transport(total, marginal),
        classes,
        reads=(
            r"\partial_tp+\partial_z\Big(p\sum_c\gamma_cv_c\Big)=\sum_c\pi_c\,\big[\partial_tp_c"
            r"+\partial_z(p_cv_c)\big],\quad\gamma_c=\pi_cp_c/p"
        ),
    )
    guided = [formulas.guided_velocity(vc, marginal, omega) for vc in v]
    T.step(
        "The class average of the guided field is the unguided one",
        average(posterior, guided),
        marginal,
        reads=r"\sum_c\gamma_c\,\big[\omega v_c+(1-\omega)v\big]=v",
    )
    T.control("prior weights transport the mixture", transport(total, average(prior, v)), classes)
    uniform = [sp.Rational(1, 3)] * 3
    T.control("the plain mean does", transport(total, average(uniform, v)), classes)
    T.control("the prior average of the guided field is the unguided one", average(uniform, guided), marginal)


@theorem(
    "guided-identity",
    "The guided identity takes the guided velocity everywhere",
    r"u^{\mathrm{cfg}}=\tilde v-(t-r)\,\mathrm{JVP}_{u^{\mathrm{cfg}}}(\tilde v,0,1),"
    r"\quad\dot z=v^{\mathrm{cfg}},\qquad"
    r"\mathbb E[\tilde v_t\mid z,c]=\omega v_c+\kappa u_c+(1-\omega-\kappa)u_0",
    hypotheses=("$r\\neq t$", "the curve follows the guided field"),
    sources=("mf:15", "mf:16", "mf:18", "mf:19"),
    nonzero=(t - r,),
    where=TIMES,
)
def _guided_identity(T: Theorem) -> None:
    v_c, v_0, curve = sp.Function("v_c"), sp.Function("v_0"), sp.Function("z")

    def field(at: Any) -> Any:
        return formulas.guided_velocity(v_c(curve(at), at), v_0(curve(at), at), omega)

    u = formulas.average_velocity(sp.Integral(field(tau), (tau, r, t)), r, t)
    T.step("Identity along the guided curve", u, formulas.meanflow_target(field(t), D(u, t), r, t))
    net = opaque("u", ("z", "r", "t"))(curve(t), r, t)
    total = D(net, t).doit().subs(D(curve(t), t), field(t))
    partials = (net.fdiff(1), net.fdiff(2), net.fdiff(3))
    T.step("Its JVP has the guided tangent", total, formulas.total_derivative(*partials, field(t), 0, 1))
    p, a, b, u_c, u_0 = sp.symbols("p v_1 v_2 u_c u_0", real=True)

    def sample(v: Any) -> Any:
        return formulas.guided_sample_velocity(v, u_c, u_0, omega, kappa)

    def target(v: Any) -> Any:
        du_dt = formulas.total_derivative(partials[0], partials[1], partials[2], sample(v), 0, 1)
        return formulas.meanflow_target(sample(v), du_dt, r, t)

    mean = p * a + (1 - p) * b
    T.step(
        "Expected guided target, two values of $v_t$",
        p * target(a) + (1 - p) * target(b),
        target(mean),
        reads=r"\sum_kp_k\,u_{\mathrm{tgt}}(\tilde v_k)=u_{\mathrm{tgt}}(\mathbb E\,\tilde v)",
    )
    T.control("identity with the unguided velocity", u, formulas.meanflow_target(v_c(curve(t), t), D(u, t), r, t))
    T.control("unguided tangent", total, formulas.total_derivative(*partials, v_c(curve(t), t), 0, 1))
    squared = formulas.guided_sample_velocity(a**2, u_c, u_0, omega, kappa)
    T.control("a sample velocity not affine in $v_t$", p * squared + (1 - p) * squared.subs(a, b), sample(mean))


@theorem(
    "guided-average",
    "Guiding average velocities is not averaging the guided velocity",
    r"\omega u_c+(1-\omega)u_0\neq u^{\mathrm{cfg}},\qquad v_c=az,\ v_0=bz",
    hypotheses=("$a,b$ and $\\omega a+(1-\\omega)b$ positive", "$r\\neq t$"),
    sources=("mf:15", "mf:16", "mf:limit"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "Equal at $r=t$ alone. To first order in $t-r$ the mix minus $u^{\\mathrm{cfg}}$ is "
        "$-\\tfrac12(t-r)\\,\\omega(1-\\omega)(a-b)^2z$.",
    ),
)
def _guided_average(T: Theorem) -> None:
    a, b = sp.symbols("a b", positive=True)
    rate = formulas.guided_velocity(a, b, omega)
    T.assume(where=(rate > 0, omega > 0, omega < 4))

    def u(k: Any) -> Any:
        return formulas.average_velocity(z * (1 - sp.exp(-k * (t - r))), r, t)

    for name, k in {"conditional": a, "guided": rate}.items():
        du_dt = formulas.total_derivative(D(u(k), z), D(u(k), r), D(u(k), t), k * z, 0, 1)
        T.step(f"The {name} field satisfies its identity", u(k), formulas.meanflow_target(k * z, du_dt, r, t))
    mixed = formulas.guided_velocity(u(a), u(b), omega)
    du_dt = formulas.total_derivative(D(mixed, z), D(mixed, r), D(mixed, t), rate * z, 0, 1)
    T.control("the mix is the average velocity of the guided field", mixed, u(rate))
    T.control("the mix satisfies the guided identity", mixed, formulas.meanflow_target(rate * z, du_dt, r, t))
    h = sp.Symbol("h", real=True)
    for order, coefficient in ((1, a), (2, -(a**2))):
        lost = D(1 - sp.exp(-a * h), h, order).doit().subs(h, 0)
        T.step(f"Taylor coefficient {order} of $1-e^{{-ah}}$, times {order}!", lost, coefficient)
    first = [k - k**2 * h / 2 for k in (a, b, rate)]
    gap = formulas.guided_velocity(first[0], first[1], omega) - first[2]
    T.step("So the mix misses, to first order in $h=t-r$, by", gap, -h * omega * (1 - omega) * (a - b) ** 2 / 2)
    T.control("the gap has the other sign", gap, h * omega * (1 - omega) * (a - b) ** 2 / 2)
