"""The flow map: Eulerian, Lagrangian and second-order forms of the identity, and its Jacobian."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, curves, fields, h, networks, r, t, tau
from .theorem import Theorem, theorem


def _pair() -> tuple[Any, Any]:
    """Velocity along an arbitrary trajectory as a function of time, and its average over [r, t]."""
    v = sp.Function("v")
    return v, formulas.average_velocity(sp.Integral(v(tau), (tau, r, t)), r, t)


@theorem(
    "eulerian",
    "Eulerian form: the flow map is constant along the flow",
    r"\phi=z-(t-r)u:\qquad\partial_t\phi+\partial_z\phi\,v=-\big(u-[v-(t-r)\tfrac{d}{dt}u]\big)",
    hypotheses=("$u$ any differentiable function of $(z,r,t)$, exact or a network",),
    sources=("mf:6", "mf:8", "mf:12"),
    notes=("So MeanFlow's residual is the Eulerian residual of its own flow map, for any network.",),
    where=TIMES,
)
def _eulerian(T: Theorem) -> None:
    for d in (1, 2):
        states = list(sp.symbols(f"z_1:{d + 1}", real=True))
        v = [f(*states, t) for f in fields("v", d)]
        u = [n(*states, r, t) for n in networks(d)]
        for i in range(d):
            phi = formulas.step(states[i], u[i], r, t)
            transported = D(phi, t) + sum(D(phi, states[j]) * v[j] for j in range(d))
            du_dt = formulas.total_derivative(0, u[i].fdiff(d + 1), u[i].fdiff(d + 2), 0, 0, 1)
            du_dt += sum(formulas.total_derivative(u[i].fdiff(j + 1), 0, 0, v[j], 0, 0) for j in range(d))
            residual = formulas.identity_residual(u[i], v[i], du_dt, r, t)
            T.step(
                f"Component {i + 1} of {d}",
                transported,
                -residual,
                reads=(
                    r"\partial_t\phi_i+\sum_jv_j\,\partial_{z_j}\phi_i=-\big(u_i-v_i" r"+(t-r)\tfrac{d}{dt}u_i\big)"
                ),
            )
            T.control(f"the other sign, component {i + 1} of {d}", transported, residual)
    T.control(
        "no transport by $v$",
        D(formulas.step(states[0], u[0], r, t), t),
        -formulas.identity_residual(u[0], v[0], du_dt, r, t),
    )


@theorem(
    "lagrangian",
    "Lagrangian form: the identity in the other end",
    r"u(z_t,r,t)=v(z_r,r)+(t-r)\,\partial_ru(z_t,r,t),\qquad\partial_r\phi=v(\phi,r)",
    hypotheses=("$v$ continuous along the trajectory", "$r\\neq t$"),
    sources=("fmm:lagrangian", "mf:12"),
    nonzero=(t - r,),
    where=TIMES,
)
def _lagrangian(T: Theorem) -> None:
    v, u = _pair()
    T.step("Identity in $r$", formulas.lagrangian_residual(u, v(r), D(u, r), r, t), 0)
    error, state = sp.Symbol("e", real=True), sp.Function("z")
    T.step("An error of $u$ shows as it is", formulas.lagrangian_residual(u + error, v(r), D(u, r), r, t), error)
    T.step("The flow map moves with the velocity at its end", D(formulas.step(state(t), u, r, t), r), v(r))
    T.mutants({"u": u, "v_r": -v(r), "(t-r) d_r u": -(t - r) * D(u, r)})
    T.control("velocity at $t$", formulas.lagrangian_residual(u, v(t), D(u, r), r, t), 0)
    T.control("the sign of the other end's identity", formulas.lagrangian_residual(u, v(r), -D(u, r), r, t), 0)


@theorem(
    "two-ended",
    "Both ends: sum, mean, and the second-order form",
    r"(t-r)(\tfrac{d}{dt}u+\partial_ru)=v_t-v_r,"
    r"\quad u=\tfrac12(v_t+v_r)-\tfrac12(t-r)(\tfrac{d}{dt}u-\partial_ru),\quad"
    r"u=\tfrac12(v_t+v_r)-\tfrac12(t-r)^2\,\partial_r\tfrac{d}{dt}u",
    hypotheses=("$v$ continuous along the trajectory, $v_t=v(z_t,t)$", "$r\\neq t$"),
    sources=("mf:6", "fmm:lagrangian", "mf:12"),
    nonzero=(t - r,),
    where=TIMES,
    notes=("The trapezium rule with its exact remainder: no derivative of $v$ is needed.",),
)
def _two_ended(T: Theorem) -> None:
    v, u = _pair()
    ends = (v(t) + v(r)) / 2
    T.step("Sum of the two rates", (t - r) * (D(u, t) + D(u, r)), v(t) - v(r))
    T.step("Mean of the two identities", u, ends - (t - r) * (D(u, t) - D(u, r)) / 2)
    T.step("Second order", u, ends - (t - r) ** 2 * D(u, t, r) / 2)
    backward = formulas.meanflow_target(v(t), D(u, t), r, t)
    forward = v(r) + (t - r) * D(u, r)
    T.step("The two targets agree", backward, forward)
    T.control("trapezium rule without remainder", u, ends)
    T.control("the remainder without the half", u, ends - (t - r) ** 2 * D(u, t, r))
    T.control("the remainder with the other sign", u, ends + (t - r) ** 2 * D(u, t, r) / 2)


@theorem(
    "average-acceleration",
    "The same identity one derivative up: the average acceleration",
    r"\bar a=\frac{v_t-v_r}{t-r},\qquad\bar a=a_t-(t-r)\,\frac{d}{dt}\bar a",
    hypotheses=("$v$ differentiable along the trajectory, $a=\\dot v$", "$r\\neq t$"),
    sources=("mf:6", "ref:acceleration"),
    nonzero=(t - r,),
    where=TIMES,
)
def _average_acceleration(T: Theorem) -> None:
    v = sp.Function("v")
    mean = formulas.average_velocity(v(t) - v(r), r, t)
    T.step("Identity", mean, formulas.meanflow_target(D(v(t), t), D(mean, t), r, t))
    _, u = _pair()
    T.step("It is the sum of both rates of $u$", mean, D(u, t) + D(u, r))
    T.control("it is the rate of $u$", mean, D(u, t))
    T.control("identity with the other sign", mean, formulas.meanflow_target(D(v(t), t), -D(mean, t), r, t))


@theorem(
    "jacobian",
    "Jacobian of the flow map, and the partial derivatives of u",
    r"\Phi=\partial_z\phi=I-(t-r)\,\partial_zu,\qquad\partial_tu=\frac{\Phi v-u}{t-r}\ \text{for the exact }u",
    hypotheses=("$r\\neq t$", "the identity holds, for the partial derivative in $t$"),
    sources=("ref:covariance", "ref:logdet", "mf:8"),
    nonzero=(t - r,),
    where=TIMES,
)
def _jacobian(T: Theorem) -> None:
    d = 2
    states = list(sp.symbols("z_1:3", real=True))
    u = sp.Matrix([n(*states, r, t) for n in networks(d)])
    v = sp.Matrix([f(*states, t) for f in fields("v", d)])
    du_dz = sp.Matrix(d, d, lambda i, j: u[i].fdiff(j + 1))
    phi = sp.Matrix([formulas.step(states[i], u[i], r, t) for i in range(d)])
    gradient = sp.Matrix(d, d, lambda i, j: D(phi[i], states[j]))
    T.step(
        "Jacobian of one step",
        gradient,
        sp.eye(d) - (t - r) * du_dz,
        reads=r"\partial_z\big(z-(t-r)u\big)=I-(t-r)\,\partial_zu",
    )
    dt_u = (gradient * v - u) / (t - r)
    total = du_dz * v + dt_u
    residual = sp.Matrix([formulas.identity_residual(u[i], v[i], total[i], r, t) for i in range(d)])
    T.step(
        "With this $\\partial_tu$ the identity holds",
        residual,
        sp.zeros(d, 1),
        reads=r"u-v+(t-r)\Big(\partial_zu\,v+\frac{\Phi v-u}{t-r}\Big)=0",
    )
    T.step(
        "and the total derivative is $(v-u)/(t-r)$",
        total,
        (v - u) / (t - r),
        reads=r"\partial_zu\,v+\frac{\Phi v-u}{t-r}=\frac{v-u}{t-r}",
    )
    T.control("$\\Phi=I+(t-r)\\partial_zu$", gradient, sp.eye(d) + (t - r) * du_dz)
    T.control("transposed Jacobian", gradient, sp.eye(d) - (t - r) * du_dz.T)
    T.control("$\\partial_tu=(v-u)/(t-r)$", dt_u, (v - u) / (t - r))


@theorem(
    "u-space",
    "The average velocity is the end point of a differential equation without division",
    r"\dot w=v(z-hw,\,t-hq),\quad w(0)=0\ \Rightarrow\ w(1)=u(z,t-h,t),\qquad h=t-r",
    hypotheses=("$h\\neq0$ in the proof; at $h=0$ the equation reads $\\dot w=v(z,t)$ and gives $u=v$",),
    sources=("ref:u-ode", "mf:12", "mf:limit"),
    nonzero=(h,),
    where=(h > 0, h < t, t < 1),
    notes=("Uniqueness of the solution is Picard's theorem, not proved here.",),
)
def _u_space(T: Theorem) -> None:
    q = sp.Symbol("q", real=True)
    state = curves(1)[0]
    v = D(state(tau), tau)
    w = (state(t) - state(t - h * q)) / h
    T.step("$z-hw$ runs along the trajectory", state(t) - h * w, state(t - h * q))
    arrived = formulas.step(
        state(t), formulas.average_velocity(state(t) - state(t - h * q), t - h * q, t), t - h * q, t
    )
    T.assume(nonzero=(q,))
    T.step("which is one step over $[t-hq,t]$", state(t) - h * w, arrived)
    T.step("and $w$ grows with the velocity there", D(w, q), v.subs(tau, t - h * q))
    T.step("from 0", w.subs(q, 0), 0)
    T.step("to the average velocity", w.subs(q, 1), formulas.average_velocity(state(t) - state(t - h), t - h, t))
    share = formulas.average_velocity(state(t) - state(t - h * q), t - h * q, t)
    T.step("On the way it is $q\\,u(z,t-hq,t)$", w, q * share)
    rate, z = sp.symbols("lambda z", real=True)
    linear = (1 - sp.exp(-rate * h * q)) * z / h
    T.step("So for $v=\\lambda z$: $\\dot w=\\lambda(z-hw)$", D(linear, q), rate * (z - h * linear))
    T.step(
        "and it is $q$ times the average",
        linear,
        q * formulas.average_velocity(z - z * sp.exp(-rate * h * q), t - h * q, t),
    )
    T.control("the equation with $+hw$", D(linear, q), rate * (z + h * linear))
    T.control("the velocity at $t$", D(w, q), v.subs(tau, t))
    T.control("the equation without the minus in the state", state(t) + h * w, state(t - h * q))
    T.control("on the way it is $u(z,t-hq,t)$", w, share)
