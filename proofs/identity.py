"""The MeanFlow identity, ``u = v - (t - r) du/dt``."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, curves, fields, r, t, tau
from .theorem import Theorem, theorem


@theorem(
    "identity",
    "MeanFlow identity along any curve, in any dimension",
    r"u(z_t,r,t)=v(z_t,t)-(t-r)\,\frac{d}{dt}u(z_t,r,t)",
    hypotheses=(
        "the velocity $\\tau\\mapsto v(z_\\tau,\\tau)$ is continuous along the curve",
        "$r\\neq t$, and $r$ does not move with $t$",
    ),
    sources=("mf:3", "mf:4", "mf:5", "mf:6"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "The derivative of an integral in its upper limit (the fundamental theorem of calculus) and the product rule "
        "are rules of sympy, taken as given here. The step marked as a restatement is the former.",
        "The curve and the field are undefined functions: nothing is used of them, so that the identity holds along "
        "the flow $\\dot z=v$ in particular. Dimensions 1 to 3 are run; each component reads alike in any.",
    ),
)
def _identity(T: Theorem) -> None:
    for d in (1, 2, 3):
        v = fields("v", d)[d - 1](*(z(tau) for z in curves(d)), tau)
        displacement, v_t = sp.Integral(v, (tau, r, t)), v.subs(tau, t)
        u = formulas.average_velocity(displacement, r, t)
        du_dt = D(u, t)
        name = f"component {d} of {d}"
        if d == 1:
            T.step("The displacement grows at the velocity", D(displacement, t), v_t)
            T.step(
                "Product rule on the displacement $(t-r)u$",
                D(formulas.displacement(u, r, t), t),
                formulas.improved_velocity(u, du_dt, r, t),
            )
        T.step(f"Identity, {name}", u, formulas.meanflow_target(v_t, du_dt, r, t))
        T.step(f"Its residual vanishes, {name}", formulas.identity_residual(u, v_t, du_dt, r, t), 0)
        T.step(f"Read for $v$, {name}", formulas.improved_velocity(u, du_dt, r, t), v_t)
        if d == 1:
            terms = {"u": u, "v": -v_t, "(t-r) du/dt": (t - r) * du_dt}
            T.mutants(terms)
            T.control("derivative in $r$ instead of $t$", u, formulas.meanflow_target(v_t, D(u, r), r, t))
            T.control("$v$ read at $r$ instead of $t$", u, formulas.meanflow_target(v.subs(tau, r), du_dt, r, t))
            T.control("$r$ and $t$ exchanged in the interval", u, formulas.meanflow_target(v_t, du_dt, t, r))
            T.control("no total derivative at all ($u = v$)", u, v_t)


@theorem(
    "identity-families",
    "MeanFlow identity with the integral carried out",
    r"v=\sum_{k\le 8}a_k\tau^k,\quad v=\tau^k\ (k\in\mathbb N\text{ a symbol}),\quad v=e^{\lambda\tau},"
    r"\quad v=\sin\lambda\tau",
    hypotheses=("$r\\neq t$", "$\\lambda\\neq0$", "$k$ a positive integer, $r,t>0$ for the monomials"),
    sources=("mf:3", "mf:6"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "An independent check of `identity`: no derivative of an integral is taken. Each antiderivative is verified by "
        "differentiation. With the monomials, linearity in $v$ gives every polynomial.",
    ),
)
def _identity_families(T: Theorem) -> None:
    lam = sp.Symbol("lambda", real=True, nonzero=True)
    a = sp.symbols("a_0:9", real=True)
    families = {
        "polynomial of degree 8": sum(a[k] * tau**k for k in range(9)),
        "exponential": sp.exp(lam * tau),
        "sine": sp.sin(lam * tau),
    }
    for name, v in families.items():
        u = formulas.average_velocity(T.integral(v, tau, r, t), r, t)
        T.step(
            f"Identity for the {name}",
            u,
            formulas.meanflow_target(v.subs(tau, t), D(u, t), r, t),
            reads=r"\frac1{t-r}\int_r^tv=v(t)-(t-r)\,\frac{d}{dt}\frac1{t-r}\int_r^tv",
        )
    k = sp.Symbol("k", integer=True, positive=True)
    # Symbols of their own: t**k differentiates without case distinctions only for t > 0.
    t_, r_ = sp.symbols("t_+ r_+", positive=True)
    T.assume(nonzero=(t_ - r_, k + 1))
    u = formulas.average_velocity((t_ ** (k + 1) - r_ ** (k + 1)) / (k + 1), r_, t_)
    T.step("Its numerator is an antiderivative of $t^k$", D(t_ ** (k + 1) / (k + 1), t_), t_**k)
    T.step("Identity for $\\tau^k$", formulas.identity_residual(u, t_**k, D(u, t_), r_, t_), 0)
    T.mutants({"u": u, "v": -(t_**k), "(t-r) du/dt": (t_ - r_) * D(u, t_)})
    T.control("$u$ is the mean of the end velocities", u, (t_**k + r_**k) / 2)
