"""Other ways to write the network: by the interval, by the data, by the residual."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .language import opaque
from .notation import TIMES, D, r, t, z
from .theorem import Theorem, theorem

_V = sp.Symbol("v", real=True)


@theorem(
    "interval",
    "A network of (z, t, h = t - r) needs the tangent (v, 1, 1)",
    r"u(z,r,t)=N(z,t,t-r):\qquad\mathrm{JVP}_u(v,0,1)=\mathrm{JVP}_N(v,1,1)",
    hypotheses=("$N$ differentiable in its three arguments",),
    sources=("mf:8",),
    notes=("The tangent $(v,1,0)$ of $N$ holds $h$ still: it is the tangent $(v,1,1)$ of $u$.",),
    where=TIMES,
)
def _interval(T: Theorem) -> None:
    net = opaque("N", ("z", "t", "h"))
    u, n = net(z, t, t - r), opaque("N", ("z", "t", "h"))(z, t, t - r)

    def of_u(dz_dt: sp.Expr, dr_dt: int, dt_dt: int) -> sp.Expr:
        return formulas.total_derivative(D(u, z), D(u, r), D(u, t), dz_dt, dr_dt, dt_dt)

    def of_n(dz_dt: sp.Expr, dt_dt: int, dh_dt: int) -> sp.Expr:
        # The second slot of N is t and the third is h: the formula's r and t are only names for them.
        return formulas.total_derivative(n.fdiff(1), n.fdiff(2), n.fdiff(3), dz_dt, dt_dt, dh_dt)

    T.step("Tangent $(v,1,1)$ of $N$", of_u(_V, 0, 1), of_n(_V, 1, 1))
    T.step("Tangent $(v,1,0)$ of $N$ is $(v,1,1)$ of $u$", of_u(_V, 1, 1), of_n(_V, 1, 0))
    T.step("Tangent $(v,0,1)$ of $N$ is $(v,-1,0)$ of $u$", of_u(_V, -1, 0), of_n(_V, 0, 1))
    time, gap = sp.symbols("t h", real=True)
    monomials = sorted(sp.itermonomials([z, time, gap], 3), key=sp.default_sort_key)
    cubic = sum(c * m for c, m in zip(sp.symbols(f"c_0:{len(monomials)}", real=True), monomials, strict=True))
    as_u = cubic.subs(gap, t - r)
    dz_n, dt_n, dh_n = (sp.diff(cubic, a).subs(gap, t - r) for a in (z, time, gap))
    T.step(
        "The same for every cubic $N$, multiplied out",
        formulas.total_derivative(D(as_u, z), D(as_u, r), D(as_u, t), _V, 0, 1),
        formulas.total_derivative(dz_n, dt_n, dh_n, _V, 1, 1),
        reads=(r"v\,\partial_zu+\partial_tu=v\,\partial_zN+\partial_tN+\partial_hN,\quad u(z,r,t)" r"=N(z,t,t-r)"),
    )
    value = sp.Symbol("u", real=True)
    T.step(
        "The target with $h$ for $t-r$",
        formulas.identity_residual(value, _V, of_n(_V, 1, 1), r, t),
        value - _V + (t - r) * of_u(_V, 0, 1),
    )
    T.control("tangent $(v,1,0)$ of $N$", of_u(_V, 0, 1), of_n(_V, 1, 0))
    T.control("tangent $(v,0,1)$ of $N$", of_u(_V, 0, 1), of_n(_V, 0, 1))
    T.control("tangent $(v,1,-1)$ of $N$", of_u(_V, 0, 1), of_n(_V, 1, -1))


@theorem(
    "data-prediction",
    "A network that predicts data: u = (z - X) / t",
    r"X=z_t-t\,u:\qquad u=v-(t-r)\dot u\iff\frac rt(z_t-X)=r\,v+(t-r)\dot X",
    hypotheses=("$t\\neq0$", "$\\dot z=v$"),
    sources=("mf:6", "mf:12"),
    nonzero=(t, t - r),
    where=TIMES,
    notes=(
        "At $r=0$ the identity says $\\dot X=0$: $X=z_0$ along the whole trajectory. For $r>0$ it is not: $X$ is where "
        "the chord over $[r,t]$, extended, meets time 0.",
    ),
)
def _data_prediction(T: Theorem) -> None:
    curve, prediction = sp.Function("z"), sp.Function("X")
    v = sp.diff(curve(t), t)
    u = (curve(t) - prediction(t)) / t
    residual = formulas.identity_residual(u, v, D(u, t), r, t)
    form = r * (curve(t) - prediction(t)) / t - r * v - (t - r) * D(prediction(t), t)
    T.step("The identity in $X$", t * residual, form)
    T.step("At $r=0$ it is $\\dot X=0$", form.subs(r, 0), -t * D(prediction(t), t))
    mean = formulas.average_velocity(curve(t) - curve(r), r, t)
    exact = curve(t) - t * mean
    T.step("The exact $X$ is the chord's value at time 0", exact, curve(r) - r * mean)
    T.step("at $r=0$ the data", formulas.step(curve(t), mean, r, t).subs(r, 0), exact.subs(r, 0))
    T.control("$X$ is the state at $r$", exact, curve(r))
    T.control("$X$ is the data for every $r$", exact, curve(sp.Integer(0)))
    T.control("$\\dot X=0$ for every $r$", form, -t * D(prediction(t), t))


@theorem(
    "residual-prediction",
    "A network that predicts the state at r = 0 less the velocity: g = z - u(z, 0, t)",
    r"g=z_t-u(z_t,0,t):\qquad g=z_t+(t-1)\,v-t\,\dot g",
    hypotheses=("$r=0$, $t\\neq0$", "$\\dot z=v$"),
    sources=("mf:6", "mf:12"),
    nonzero=(t,),
    where=TIMES,
    notes=("At $t=1$ it is the one-step sample itself: $g=z_1-u(z_1,0,1)=z_0$.",),
)
def _residual_prediction(T: Theorem) -> None:
    curve, zero = sp.Function("z"), sp.Integer(0)
    v = sp.diff(curve(t), t)
    u = formulas.average_velocity(curve(t) - curve(zero), zero, t)
    g = curve(t) - u
    T.step("Identity in $g$", g, curve(t) + (t - 1) * v - t * D(g, t))
    other = sp.Function("u")(t)
    residual = formulas.identity_residual(other, v, D(other, t), zero, t)
    left = (curve(t) - other) - (curve(t) + (t - 1) * v - t * D(curve(t) - other, t))
    T.step("For any $u$ the two residuals are opposite", left, -residual)
    T.step("At $t=1$ it is the sample", g.subs(t, 1), formulas.step(curve(sp.Integer(1)), u.subs(t, 1), 0, 1))
    T.control("$(t+1)v$", g, curve(t) + (t + 1) * v - t * D(g, t))
    T.control("$g=z_0$ for every $t$", g, curve(zero))
