"""The identity without calculus: quotient rule and finite differences."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, r, t
from .theorem import Theorem, theorem

_DT = sp.Symbol("dt", real=True)


@theorem(
    "quotient-rule",
    "The identity is the quotient rule",
    r"u=\frac{x(t)-x(r)}{t-r}\ \Longrightarrow\ \dot u=\frac{(t-r)\dot x-[x(t)-x(r)]}{(t-r)^2}=\frac{v-u}{t-r}",
    hypotheses=("$x$ differentiable, $v=\\dot x$", "$r\\neq t$"),
    sources=("mf:3", "mf:6"),
    nonzero=(t - r,),
    where=TIMES,
)
def _quotient_rule(T: Theorem) -> None:
    x = sp.Function("x")
    v, u = sp.diff(x(t), t), formulas.average_velocity(x(t) - x(r), r, t)
    T.step("Quotient rule", D(u, t), ((t - r) * v - (x(t) - x(r))) / (t - r) ** 2)
    T.step("is $(v-u)/(t-r)$", D(u, t), (v - u) / (t - r))
    T.step("which is the identity", u, formulas.meanflow_target(v, D(u, t), r, t))
    T.control("$(u-v)/(t-r)$", D(u, t), (u - v) / (t - r))
    T.control("the quotient of the derivatives", D(u, t), v / (t - r))
    T.control("identity with the other sign", u, formulas.meanflow_target(v, -D(u, t), r, t))


@theorem(
    "discrete",
    "The identity in finite differences is exact with the mean velocity of the next interval",
    r"u(r,t)=\bar v_{[t,t+dt]}-(t+dt-r)\frac{u(r,t+dt)-u(r,t)}{dt},\qquad"
    r"3.1\,[u(3)+0.1]=3\,u(3)+0.1\cdot4.1\ \Rightarrow\ u(3)=1",
    hypotheses=("$x$ any function of time", "$r\\neq t$, $t+dt\\neq r$, $dt\\neq0$"),
    sources=("alphaflow:discrete", "mf:consistency"),
    nonzero=(t - r, _DT, t + _DT - r),
    where=(*TIMES, _DT > 0, _DT < 1),
    notes=(
        "No derivative is taken. With $v(t)$ in the place of the mean velocity $\\bar v$ the statement is wrong by a "
        "term of order $dt$, and it tends to the identity.",
        "The puzzle: over the first 3 s the average speed is $u(3)$, it gains 0.1 in the next 0.1 s at speed 4.1.",
    ),
)
def _discrete(T: Theorem) -> None:
    x, later = sp.Function("x"), t + _DT

    def u(end: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(x(end) - x(r), r, end)

    mean = formulas.average_velocity(x(later) - x(t), t, later)
    T.step("Exact for every motion", u(t), formulas.discrete_target(mean, u(later), u(t), r, t, later))
    gain = u(later) - u(t)
    T.step("or with both differences apart", u(t), mean - (t - r) * gain / _DT - gain)
    T.step("and as a weighted mean", (later - r) * u(later), (t - r) * u(t) + _DT * mean)
    T.control("$v(t)$ for the mean velocity", u(t), formulas.discrete_target(D(x(t), t), u(later), u(t), r, t, later))
    T.control("the last difference left out", u(t), mean - (t - r) * gain / _DT)
    T.control("sign of the difference", u(t), formulas.discrete_target(mean, u(t), u(later), r, t, later))

    tenth, at_three = sp.Rational(1, 10), sp.Symbol("u_3", real=True)
    puzzle = 31 * tenth * (at_three + tenth) - (3 * at_three + tenth * 41 * tenth)
    T.step("The puzzle's equation is $u(3)=1$ over ten", puzzle, (at_three - 1) / 10)
    T.step(
        "so that with $u(3)=1$ the target says 1",
        formulas.discrete_target(41 * tenth, 1 + tenth, sp.Integer(1), 0, 3, 3 + tenth),
        sp.Integer(1),
    )
    T.control("the last difference left out: 1.1", 41 * tenth - 3 * tenth / tenth, sp.Integer(1))


@theorem(
    "discrete-limit",
    "With v(t) for the mean velocity the discrete identity is off by a multiple of dt",
    r"v(t)-(t+dt-r)\frac{u(r,t+dt)-u(r,t)}{dt}-u(r,t)=-\tfrac12\dot v(t)\,dt-\tfrac16\ddot v(t)\,dt^2",
    hypotheses=("$x$ a cubic with arbitrary coefficients (the error of any smooth motion to second order)",),
    sources=("alphaflow:discrete", "mf:6"),
    nonzero=(t - r, _DT, t + _DT - r),
    where=(*TIMES, _DT > 0, _DT < 1),
)
def _discrete_limit(T: Theorem) -> None:
    c = sp.symbols("c_0:4", real=True)

    def x(at: sp.Expr) -> sp.Expr:
        return sum(c[n] * at**n for n in range(4))

    def u(end: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(x(end) - x(r), r, end)

    v, later = sp.diff(x(t), t), t + _DT
    off = formulas.discrete_target(v, u(later), u(t), r, t, later) - u(t)
    expansion = -sp.diff(v, t) * _DT / 2 - sp.diff(v, t, 2) * _DT**2 / 6
    T.step("The error, exactly", off, expansion)
    T.step("vanishes with $dt$", expansion.subs(_DT, 0), 0)
    T.control("it is of second order", off, -sp.diff(v, t, 2) * _DT**2 / 6)
    T.control("no error", off, 0)
