"""Conditional paths with any schedule, and the transfer between schedules."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, divided_difference, eps, r, t, x, z
from .theorem import Theorem, theorem

_ALPHA, _SIGMA = sp.Function("alpha"), sp.Function("sigma")


@theorem(
    "general-path",
    "Any schedule: the conditional path and its average velocity",
    r"z_t=\alpha_tx+\sigma_t\varepsilon,\quad v_t=\dot\alpha_tx+\dot\sigma_t\varepsilon,\quad"
    r"\frac{z_t-z_r}{t-r}=\mathrm{DD}(\alpha)\,x+\mathrm{DD}(\sigma)\,\varepsilon",
    hypotheses=(
        "$\\alpha,\\sigma$ differentiable",
        "$r\\neq t$; $\\alpha_t\\neq0$ (or $\\sigma_t\\neq0$) where $x$ (or $\\varepsilon$) is eliminated",
    ),
    sources=("fm:path", "fm:conditional-velocity", "mf:6"),
    nonzero=(t - r, _ALPHA(t), _SIGMA(t)),
    where=TIMES,
    notes=(
        "On the linear path the conditional velocity is constant and equals its own average: the difference between "
        "$u$ and $v$ comes from the *marginal* field alone. On any other path that is false.",
    ),
)
def _general_path(T: Theorem) -> None:
    a, b = _ALPHA(t), _SIGMA(t)
    a_dot, b_dot = sp.diff(a, t), sp.diff(b, t)
    path = formulas.interpolant(x, eps, a, b)
    v = formulas.conditional_velocity(x, eps, a_dot, b_dot)
    T.step("The velocity is the derivative of the path", D(path, t), v)
    u = formulas.average_velocity(path - path.subs(t, r), r, t)
    dd = [divided_difference(f, t, r, t) for f in (a, b)]
    T.step(
        "The average velocity has divided differences for derivatives", u, formulas.conditional_velocity(x, eps, *dd)
    )
    T.step("and satisfies the identity", u, formulas.meanflow_target(v, D(u, t), r, t))
    T.step("Velocity by the data, noise eliminated", v, b_dot / b * path + (a_dot - a * b_dot / b) * x)
    T.step("Velocity by the noise, data eliminated", v, a_dot / a * path + (b_dot - b * a_dot / a) * eps)
    linear = formulas.interpolant(x, eps, 1 - t, t)
    straight = formulas.average_velocity(linear - linear.subs(t, r), r, t)
    T.step("Linear path: the average is the constant $\\varepsilon-x$", straight, eps - x)
    T.control("linear path: $v_t=x-\\varepsilon$", straight, x - eps)
    T.control("any path: the conditional average is the conditional velocity", u, v)
    trig = formulas.interpolant(x, eps, sp.cos(sp.pi * t / 2), sp.sin(sp.pi * t / 2))
    T.control("so on the trigonometric path", divided_difference(trig, t, r, t), D(trig, t))


@theorem(
    "transfer",
    "One oracle for all schedules: transfer from the linear path",
    r"z^{\alpha\sigma}_t=c_t\,z^{\mathrm{lin}}_{S_t},\quad c=\alpha+\sigma,\ S=\frac{\sigma}{\alpha+\sigma},\qquad"
    r"u^{\alpha\sigma}(z,r,t)=\mathrm{DD}(c)\,y+c_r\,\mathrm{DD}(S)\,u^{\mathrm{lin}}(y,S_r,S_t),\ y=z/c_t",
    hypotheses=("$\\alpha+\\sigma\\neq0$ at both times", "$r\\neq t$"),
    sources=("ref:transfer", "mf:12"),
    nonzero=(t - r, _ALPHA(t) + _SIGMA(t), _ALPHA(r) + _SIGMA(r)),
    where=TIMES,
)
def _transfer(T: Theorem) -> None:
    def scale(at: Any) -> Any:
        return formulas.transfer_scale(_ALPHA(at), _SIGMA(at))

    def clock(at: Any) -> Any:
        return formulas.transfer_time(_ALPHA(at), _SIGMA(at))

    path = formulas.interpolant(x, eps, _ALPHA(t), _SIGMA(t))
    linear = formulas.interpolant(x, eps, 1 - clock(t), clock(t))
    T.step("A path is a linear path, scaled and on another clock", path, scale(t) * linear)
    u_linear = sp.Symbol("u", real=True)
    y = z / scale(t)
    y_earlier = formulas.step(y, u_linear, clock(r), clock(t))
    u = formulas.average_velocity(z - scale(r) * y_earlier, r, t)
    dd_c, dd_s = ((f(t) - f(r)) / (t - r) for f in (scale, clock))
    moved = formulas.transfer_average_velocity(y, u_linear, scale(r), dd_c, dd_s)
    T.step(
        "So is its flow map, and the average velocity reads",
        u,
        moved,
        reads=(r"\frac{z-c_r\,[\,y-(S_t-S_r)u\,]}{t-r}=\mathrm{DD}(c)\,y+c_r\,\mathrm{DD}(S)\,u," r"\quad y=z/c_t"),
    )
    T.step(
        "Its step lands on the scaled linear step",
        formulas.step(z, moved, r, t),
        scale(r) * y_earlier,
        reads=r"z-(t-r)\big(\mathrm{DD}(c)\,y+c_r\,\mathrm{DD}(S)\,u\big)=c_r\,[\,y-(S_t-S_r)u\,]",
    )
    curve = sp.Function("y")
    velocity = D(scale(t) * curve(clock(t)), t).doit()
    inner = sp.Subs(D(curve(x), x), x, clock(t))
    T.step(
        "At $r=t$: the velocity, $\\dot c\\,y+c\\,\\dot S\\,v$",
        velocity,
        formulas.transfer_average_velocity(curve(clock(t)), inner, scale(t), D(scale(t), t), D(clock(t), t)),
        reads=r"\frac{d}{dt}\big(c_t\,y(S_t)\big)=\dot c\,y+c\,\dot S\,y'(S)",
    )
    T.control("scale left out", path, linear)
    T.control("clock $\\alpha/(\\alpha+\\sigma)$", path, scale(t) * linear.subs(_SIGMA(t), _ALPHA(t)))
    T.control("$c_t$ for $c_r$", u, formulas.transfer_average_velocity(y, u_linear, scale(t), dd_c, dd_s))
    T.control("state not scaled back", u, formulas.transfer_average_velocity(z, u_linear, scale(r), dd_c, dd_s))
