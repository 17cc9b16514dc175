"""The sampling rule, in both directions, and the rule that reads the field at the wrong end."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .notation import MIDDLE, TIMES, D, r, s, t, tau, z
from .theorem import Theorem, theorem

_RATE = sp.Symbol("lambda", positive=True)


@theorem(
    "sampling",
    "One step with u is exact, in either direction, and so are several",
    r"z_r=z_t-(t-r)\,u(z_t,r,t),\qquad z_t=z_r-(r-t)\,u(z_r,t,r),\qquad u(z_t,r,t)=u(z_r,t,r)",
    hypotheses=("$\\dot z=v$: the curve is its own antiderivative of the velocity", "$r,s,t$ pairwise different"),
    sources=("mf:12", "mf:4"),
    nonzero=(t - r, s - r, t - s),
    where=MIDDLE,
    notes=("One step from noise is $r=0$, $t=1$: $z_0=z_1-u(z_1,0,1)$.",),
)
def _sampling(T: Theorem) -> None:
    c = sp.Function("z")

    def u(a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(c(b) - c(a), a, b)

    T.step("One step back in time", formulas.step(c(t), u(r, t), r, t), c(r))
    T.step("The average does not depend on the direction", u(t, r), u(r, t))
    T.step("One step forward, $r$ and $t$ exchanged throughout", formulas.step(c(r), u(t, r), t, r), c(t))
    middle = formulas.step(c(t), u(s, t), s, t)
    T.step("Two steps land where one does", formulas.step(middle, u(r, s), r, s), formulas.step(c(t), u(r, t), r, t))
    one, zero = sp.Integer(1), sp.Integer(0)
    T.step("One step from noise to data", formulas.step(c(one), u(zero, one), 0, 1), c(zero))
    T.control("step with the wrong sign", formulas.step(c(t), -u(r, t), r, t), c(r))
    T.control("forward step with the interval not exchanged", formulas.step(c(r), u(r, t), r, t), c(t))
    T.control("one Euler step with $v$", formulas.step(c(t), D(c(t), t), r, t), c(r))
    T.control("second of two steps over the whole interval", formulas.step(middle, u(r, t), r, s), c(r))


@theorem(
    "wrong-end",
    "A field trained at the end of the interval must not be read at its start",
    r"\dot z=\lambda z:\quad u(z,r,t)=z\,\frac{1-e^{-\lambda(t-r)}}{t-r},\qquad"
    r"z_0+u(z_0,0,1)=(2-e^{-\lambda})z_0\ \neq\ e^{\lambda}z_0=z_1",
    hypotheses=("$\\lambda>0$", "$z$ is the state at $t$, the later time, as in the identity's tangent $(v,0,1)$"),
    sources=("mf:12", "mf:6"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "The right forward step is $z_1=z_0+u(z_0,1,0)$. A field $E(z_r,r,t)$ of the state at the *start* is another "
        "function, with another identity, $E=v+(t-r)\\,\\mathrm{JVP}(v,1,0)$; for it $z_1=z_0+E(z_0,0,1)$ is right.",
    ),
)
def _wrong_end(T: Theorem) -> None:
    def end(state: sp.Expr, a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(state * (1 - sp.exp(-_RATE * (b - a))), a, b)

    def start(state: sp.Expr, a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(state * (sp.exp(_RATE * (b - a)) - 1), a, b)

    u, v = end(z, r, t), _RATE * z
    du_dt = formulas.total_derivative(D(u, z), D(u, r), D(u, t), v, 0, 1)
    T.step("$u$ satisfies the identity with tangent $(v,0,1)$", u, formulas.meanflow_target(v, du_dt, r, t))
    one, zero = sp.Integer(1), sp.Integer(0)
    T.step("Backward step", formulas.step(z, end(z, zero, one), 0, 1), z * sp.exp(-_RATE))
    T.step("Forward step, times exchanged", formulas.step(z, end(z, one, zero), 1, 0), z * sp.exp(_RATE))
    wrong = z + end(z, zero, one)
    T.step("Reading it at the start gives", wrong, z * (2 - sp.exp(-_RATE)))
    T.control("reading it at the start is right", wrong, z * sp.exp(_RATE))
    e = start(z, r, t)
    de_dr = formulas.total_derivative(D(e, z), D(e, r), D(e, t), v, 1, 0)
    T.step("The field of the start has the tangent $(v,1,0)$", formulas.lagrangian_residual(e, v, de_dr, r, t), 0)
    T.step("and its own forward step", z + start(z, zero, one), z * sp.exp(_RATE))
    de_dt = formulas.total_derivative(D(e, z), D(e, r), D(e, t), v, 0, 1)
    T.control("the field of the start with tangent $(v,0,1)$", e, formulas.meanflow_target(v, de_dt, r, t))
    T.control("the two fields are one", e, u)


@theorem(
    "reversed-time",
    "Turning time round turns the sign of u and exchanges the times",
    r"\tilde z_\tau=z_{1-\tau},\quad\tilde v(z,\tau)=-v(z,1-\tau),\quad\tilde u(z,r,t)=-u(z,1-r,1-t)",
    hypotheses=("$r\\neq t$",),
    sources=("mf:12", "mf:6"),
    nonzero=(t - r,),
    where=TIMES,
    notes=(
        "Conventions with noise at time 0 are this theorem; $u(\\cdot,1-r,1-t)$ has its arguments in falling order.",
    ),
)
def _reversed_time(T: Theorem) -> None:
    c = sp.Function("z")

    def u(a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(c(b) - c(a), a, b)

    def back(a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(c(1 - b) - c(1 - a), a, b)

    x, noise = sp.symbols("x varepsilon", real=True)
    path = formulas.interpolant(x, noise, 1 - t, t)
    turned = formulas.interpolant(x, noise, t, 1 - t)
    T.step("The linear path turned round", path.subs(t, 1 - t), turned)
    T.step("moves with the opposite velocity", D(turned, t), -formulas.conditional_velocity(x, noise, -1, 1))
    T.step("The average velocity turned round", back(r, t), -u(1 - r, 1 - t))
    v = D(c(tau), tau).doit().subs(tau, 1 - t).doit()
    T.step("still satisfies the identity", formulas.identity_residual(back(r, t), -v, D(back(r, t), t), r, t), 0)
    one, zero = sp.Integer(1), sp.Integer(0)
    T.step("and samples from noise at 0 to data at 1", c(one) + back(one, zero), c(zero))
    T.control("the sign is kept", back(r, t), u(1 - r, 1 - t))
    T.control("the times are not turned", back(r, t), -u(r, t))
    T.control("sampling in the old direction", formulas.step(c(one), back(zero, one), 0, 1), c(zero))
