"""The consistency (semigroup) property, and what it implies."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, r, s, t, tau
from .theorem import Theorem, theorem

MIDDLE_FREE = (*TIMES, s > 0, s < 1)


@theorem(
    "consistency",
    "Consistency for any middle time, inside the interval or not",
    r"(t-r)\,u(z_t,r,t)=(s-r)\,u(z_s,r,s)+(t-s)\,u(z_t,s,t)",
    hypotheses=("$v$ continuous along the curve", "$r,s,t$ pairwise different, in any order"),
    sources=("mf:3", "mf:consistency"),
    nonzero=(t - r, s - r, t - s),
    where=MIDDLE_FREE,
    notes=(
        "Two derivations. With an antiderivative $F$ of $\\tau\\mapsto v(z_\\tau,\\tau)$ the statement is algebra. "
        "Without it: the residual does not move with $s$, and tends to 0 as $s\\to r$, where the first term is an "
        "integral over an interval of no length.",
    ),
)
def _consistency(T: Theorem) -> None:
    f = sp.Function("F")

    def u(a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(f(b) - f(a), a, b)

    T.step("Residual with an antiderivative", formulas.consistency_residual(u(r, t), u(r, s), u(s, t), r, s, t), 0)
    wrong = sp.symbols("e_1:4", real=True)
    off = [field + e for field, e in zip((u(r, t), u(r, s), u(s, t)), wrong, strict=True)]
    T.step(
        "Errors of the three fields show in it, each times its interval",
        formulas.consistency_residual(off[0], off[1], off[2], r, s, t),
        (t - r) * wrong[0] - (s - r) * wrong[1] - (t - s) * wrong[2],
    )
    share = (s - r) / (t - r)
    T.step("So $u$ is a weighted mean of the two pieces", u(r, t), share * u(r, s) + (1 - share) * u(s, t))
    T.mutants({"[r, t]": (t - r) * u(r, t), "[r, s]": -(s - r) * u(r, s), "[s, t]": -(t - s) * u(s, t)})
    T.control("velocities add, without weights", u(r, t), u(r, s) + u(s, t))
    T.control("weights exchanged", u(r, t), (1 - share) * u(r, s) + share * u(s, t))

    v = sp.Function("v")(sp.Function("z")(tau), tau)

    def mean(a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(sp.Integral(v, (tau, a, b)), a, b)

    residual = formulas.consistency_residual(mean(r, t), mean(r, s), mean(s, t), r, s, t)
    T.step("The residual does not move with $s$", D(residual, s), 0)
    empty = formulas.displacement(mean(r, s), r, s).subs(s, r)
    T.step("At $s=r$ the first piece has no length", empty.doit(), 0)


@theorem(
    "consistency-identity",
    "Consistency for every middle time implies the identity",
    r"S(r,t)=S(r,s)+S(s,t)\ \forall s\ \Rightarrow\ \partial_tS(r,t)=\partial_tS(s,t)\ \forall s"
    r"\ \Rightarrow\ u=v-(t-r)\tfrac{d}{dt}u",
    hypotheses=(
        "$S(r,t)=(t-r)u(z_t,r,t)$ is differentiable",
        "$v:=\\partial_tS(s,t)$ at $s=t$, the instantaneous velocity",
    ),
    sources=("mf:consistency", "mf:6"),
    nonzero=(t - r, t - s),
    where=MIDDLE_FREE,
    notes=("Only additivity is used, in the form $S(r,t)=G(t)-G(r)$ with $G(t)=S(c,t)$ for one fixed $c$.",),
)
def _consistency_identity(T: Theorem) -> None:
    g = sp.Function("G")
    u = formulas.average_velocity(g(t) - g(r), r, t)
    u_s = formulas.average_velocity(g(t) - g(s), s, t)
    grows, grows_s = (D(formulas.displacement(a, b, t), t) for a, b in ((u, r), (u_s, s)))
    T.step("The displacement grows alike whatever its start", grows, grows_s)
    v = sp.diff(g(t), t)
    T.step("The derivative of $(t-r)u$ is $u+(t-r)\\dot u$", grows, formulas.improved_velocity(u, D(u, t), r, t))
    T.step("Identity", formulas.identity_residual(u, v, D(u, t), r, t), 0)
    T.control("$u$ itself grows alike whatever its start", D(u, t), D(u_s, t))
    T.control("identity with $r$ and $t$ exchanged", formulas.identity_residual(u, v, D(u, t), t, r), 0)
