"""The limit r -> t: the average velocity is the instantaneous one there."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .language import opaque
from .notation import TIMES, D, r, t, tau
from .theorem import Theorem, theorem

_SHARE = sp.Symbol("sigma", real=True)


@theorem(
    "limit",
    "The average velocity tends to the velocity as r tends to t",
    r"\lim_{r\to t}u(z_t,r,t)=v(z_t,t),\qquad u=\int_0^1v(z_{r+\sigma(t-r)},\,r+\sigma(t-r))\,d\sigma",
    hypotheses=("$v$ continuous along the curve", "five times differentiable, for the expansion"),
    sources=("mf:3", "mf:limit"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "The substitution removes the division by $t-r$, so that $r=t$ may be put in. That the integral is continuous "
        "in $r$ is the theorem on parameter integrals, not proved here; the expansion is a second, finite argument.",
    ),
)
def _limit(T: Theorem) -> None:
    v, primitive = sp.Function("v"), sp.Function("F")
    inner = r + _SHARE * (t - r)
    T.step(
        "Substituting $\\tau=r+\\sigma(t-r)$ in an antiderivative",
        D(primitive(inner), _SHARE),
        (t - r) * D(primitive(tau), tau).subs(tau, inner),
    )
    T.step("At $r=t$ the averaged integrand is constant", v(inner).subs(r, t), v(t))
    T.step("so that its integral is $v$", sp.Integral(v(t), (_SHARE, 0, 1)).doit(), v(t))
    c = sp.symbols("c_0:6", real=True)
    taylor = sum(c[n] * (tau - t) ** n for n in range(6))
    u = formulas.average_velocity(T.integral(taylor, tau, r, t), r, t)
    series = sum(c[n] * (r - t) ** n / (n + 1) for n in range(6))
    T.step(
        "$v=\\sum c_n(\\tau-t)^n$ to order 5 gives $u=\\sum c_n(r-t)^n/(n+1)$",
        u,
        series,
        reads=r"\frac1{t-r}\int_r^t\sum_nc_n(\tau-t)^n\,d\tau=\sum_n\frac{c_n(r-t)^n}{n+1}",
    )
    T.step("which is $v$ at $r=t$", series.subs(r, t), taylor.subs(tau, t))
    T.step("and $v-\\tfrac12(t-r)\\dot v$ to second order", D(series, r).doit().subs(r, t), c[1] / 2)
    T.control("$u=v$ already before the limit", u, taylor.subs(tau, t))
    T.control("the limit is $-v$", series.subs(r, t), -taylor.subs(tau, t))
    T.control("$u=v-(t-r)\\dot v$ to second order", D(series, r).doit().subs(r, t), c[1])


@theorem(
    "acceleration",
    "At r = t the total derivative is half the acceleration",
    r"\lim_{r\to t}\frac{d}{dt}u=\tfrac12(\partial_zv\,v+\partial_tv),\qquad"
    r"\lim_{r\to t}\partial_ru=\tfrac12(\partial_zv\,v+\partial_tv)",
    hypotheses=("$v$ analytic along the trajectory (a polynomial of degree 5 is run)", "$\\dot z=v$"),
    sources=("ref:acceleration", "mf:7"),
    nonzero=(t - r,),
    where=TIMES,
    notes=("This is the value that an implementation must give where the form $(v-u)/(t-r)$ reads $0/0$.",),
)
def _acceleration(T: Theorem) -> None:
    c = sp.symbols("c_0:6", real=True)
    along = sum(c[n] * tau**n for n in range(6))
    u = formulas.average_velocity(T.integral(along, tau, r, t), r, t)
    v = along.subs(tau, t)
    T.step("From the identity, $\\dot u=(v-u)/(t-r)$", D(u, t), (v - u) / (t - r))
    taylor = [sp.diff(along, tau, k).subs(tau, t) / sp.factorial(k) for k in range(6)]
    in_t = sum(taylor[k] * (r - t) ** (k - 1) / (k + 1) for k in range(1, 6))
    in_r = sum(k * taylor[k] * (r - t) ** (k - 1) / (k + 1) for k in range(1, 6))
    half = D(along, tau).doit().subs(tau, t) / 2
    T.step("where the division by $t-r$ goes out", D(u, t), in_t)
    T.step("and likewise for the derivative in $r$", D(u, r), in_r)
    T.step("At $r=t$ half the derivative of the velocity is left", in_t.subs(r, t), half)
    T.step("in both", in_r.subs(r, t), half)
    z, field = sp.Function("z"), opaque("v", ("z", "t"))
    here = field(z(t), t)
    T.step(
        "That derivative along the flow is $\\partial_zv\\,v+\\partial_tv$",
        D(here, t).doit().subs(D(z(t), t), here),
        formulas.total_derivative(here.fdiff(1), 0, here.fdiff(2), here, 0, 1),
    )
    T.control("the whole acceleration, not half", in_t.subs(r, t), 2 * half)
    T.control("half the acceleration already for $r<t$", D(u, t), half)
