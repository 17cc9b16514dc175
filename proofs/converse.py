"""The converse: the identity determines u, if u stays bounded; and not otherwise."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, r, t, tau
from .theorem import Theorem, theorem

_C = sp.Symbol("C", real=True)


@theorem(
    "converse",
    "A bounded solution of the identity is the average velocity",
    r"u=v-(t-r)\dot u\ \text{ and }\ |u|\le M\text{ near }t=r\ \Longrightarrow\ u=\frac1{t-r}\int_r^tv",
    hypotheses=(
        "$u$ differentiable in $t$ for $t\\neq r$ along the trajectory, bounded near $t=r$",
        "$v$ continuous along the trajectory",
    ),
    sources=("mf:6", "mf:B3"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "The analysis in words: a differentiable function with derivative 0 on $t>r$ is a constant $C$ (mean value "
        "theorem), and $|C|=(t-r)\\,|e|\\le2M(t-r)\\to0$. Sympy checks the algebra on both sides of that sentence.",
        "sympy's `dsolve` with its default hint returns a wrong general solution when $v$ is undefined; the solution "
        "here is not taken from it.",
    ),
)
def _converse(T: Theorem) -> None:
    u, v, e = sp.Function("u"), sp.Function("v"), sp.Function("e")
    integral = sp.Integral(v(tau), (tau, r, t))

    def gap_of(field: sp.Expr) -> sp.Expr:
        return formulas.displacement(field, r, t) - integral

    gap = gap_of(u(t))
    residual = formulas.identity_residual(u(t), v(t), D(u(t), t), r, t)
    T.step("The residual of any $u$ is the derivative of $G=(t-r)u-\\int_r^tv$", D(gap, t), residual)
    average = formulas.average_velocity(integral, r, t)
    T.step(
        "and $G=(t-r)e$ with the error $e=u-\\frac{1}{t-r}\\int_r^tv$", gap, formulas.displacement(u(t) - average, r, t)
    )
    T.step(
        "So the error of a solution obeys $\\frac{d}{dt}[(t-r)e]=0$, the identity with $v=0$",
        D(formulas.displacement(e(t), r, t), t),
        formulas.identity_residual(e(t), 0, D(e(t), t), r, t),
    )
    T.step("which $e=C/(t-r)$ solves", formulas.identity_residual(_C / (t - r), 0, D(_C / (t - r), t), r, t), 0)
    T.step("and nothing else: $(t-r)e$ is that constant", formulas.displacement(_C / (t - r), r, t), _C)
    T.step("The constant is read off at any one time", gap_of(average + _C / (t - r)), _C)
    T.control("without the bound: $u=\\bar v+C/(t-r)$ is the average velocity", average + _C / (t - r), average)
    T.control("an error that is constant in time solves it too", formulas.identity_residual(_C, 0, D(_C, t), r, t), 0)
    T.control("the residual is the derivative of $u-\\frac1{t-r}\\int$", D(gap / (t - r), t), residual)


@theorem(
    "singular-family",
    "Without the bound the identity has a one-parameter family of wrong solutions",
    r"u_C=\frac1{t-r}\int_r^tv\,d\tau+\frac{C(z_r,r)}{t-r}\quad\text{satisfies}"
    r"\quad u_C=v-(t-r)\dot u_C\ \text{ for every }C",
    hypotheses=("$r\\neq t$", "$C$ constant along the trajectory: a function of its state at $r$, and of $r$"),
    sources=("mf:6", "mf:B3"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "A loss over $r<t$ alone does not see $C$: the share of $r=t$ in training (or a network that cannot be "
        "singular) is what rules it out. Its one-step sample is off by $C$.",
    ),
)
def _singular_family(T: Theorem) -> None:
    v, c, z = sp.Function("v"), sp.Function("C"), sp.Function("z")
    integral = sp.Integral(v(tau), (tau, r, t))
    average = formulas.average_velocity(integral, r, t)
    wrong = average + c(z(r), r) / (t - r)
    T.step("The singular family satisfies the identity", formulas.identity_residual(wrong, v(t), D(wrong, t), r, t), 0)
    T.step(
        "Its sample misses by $C$", formulas.step(z(t), wrong, r, t), formulas.step(z(t), average, r, t) - c(z(r), r)
    )
    T.control("it is the average velocity", wrong, average)
    for name, regular in {"$C$": _C, "$C(t-r)$": _C * (t - r), "$C/(t-r)^2$": _C / (t - r) ** 2}.items():
        off = average + regular
        T.control(f"adding {name} instead", formulas.identity_residual(off, v(t), D(off, t), r, t), 0)
