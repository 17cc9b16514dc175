"""The total derivative as a Jacobian-vector product with tangent ``(v, 0, 1)``."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .notation import D, curves, h, networks, r, t
from .theorem import Theorem, theorem


def _rows(u: Any, at: list[Any], dz_dt: list[Any], dr_dt: Any, dt_dt: Any) -> Any:
    """``formulas.total_derivative`` in several dimensions: the state's part one coordinate at a time."""
    d, applied = len(dz_dt), u(*at)
    times = formulas.total_derivative(0, applied.fdiff(d + 1), applied.fdiff(d + 2), 0, dr_dt, dt_dt)
    return times + sum(formulas.total_derivative(applied.fdiff(j + 1), 0, 0, dz_dt[j], 0, 0) for j in range(d))


@theorem(
    "total-derivative",
    "The total derivative is the JVP with tangent (v, 0, 1)",
    r"\frac{d}{dt}u(z_t,r,t)=\partial_zu\,v+\partial_tu=\frac{d}{d\eta}\Big|_0u(z+\eta v,\,r+\eta\cdot0,\,t+\eta)",
    hypotheses=("$u$ differentiable", "$\\dot z_t=v$, $\\dot r=0$"),
    sources=("mf:7", "mf:8"),
    notes=(
        "Here the chain rule is sympy's, so that the steps on an opaque $u$ restate it; the limit definition of the "
        "derivative is used in `total-derivative-limit`, and dual numbers in this theorem, neither of which knows it.",
    ),
)
def _total_derivative(T: Theorem) -> None:
    for d in (1, 2, 3):
        u, states = networks(d)[-1], [c(t) for c in curves(d)]
        v = list(sp.symbols(f"v_1:{d + 1}", real=True))
        total = D(u(*states, r, t), t).doit().subs({D(states[j], t): v[j] for j in range(d)})
        T.step(
            f"Chain rule, d = {d}",
            total,
            _rows(u, [*states, r, t], v, 0, 1),
            reads=r"\frac{d}{dt}u(z_t,r,t)=\sum_jv_j\,\partial_{z_j}u+\partial_tu",
        )
        moved = [states[j] + h * v[j] for j in range(d)]
        T.step(
            f"JVP, d = {d}",
            D(u(*moved, r, t + h), h).doit().subs(h, 0),
            _rows(u, [*states, r, t], v, 0, 1),
            reads=r"\frac{d}{dh}\Big|_0u(z+hv,r,t+h)=\sum_jv_j\,\partial_{z_j}u+\partial_tu",
        )

    for name, tangent in {
        "(v, 1, 0)": (v, 1, 0),
        "(v, 0, 0)": (v, 0, 0),
        "(0, 0, 1)": ([0] * 3, 0, 1),
        "(v, 1, 1)": (v, 1, 1),
        "(-v, 0, 1)": ([-a for a in v], 0, 1),
        "(v, 0, -1)": (v, 0, -1),
    }.items():
        T.control(f"tangent ${name}$", total, _rows(u, [*states, r, t], *tangent))
    _dual_numbers(T)


def _dual_numbers(T: Theorem) -> None:
    """Forward-mode arithmetic, ``(a + a' e)(b + b' e) = ab + (a b' + a' b) e``, against partial derivatives."""
    x, c, dx, dr, dt = sp.symbols("z c dz dr dt", real=True)

    def times(a: Any, b: Any) -> Any:
        return a[0] * b[0], a[0] * b[1] + a[1] * b[0]

    zd, rd, td = (x, dx), (r, dr), (t, dt)
    value, tangent = times(times((c, 0), times(zd, times(zd, zd))), times(rd, times(td, td)))
    partials = (D(value, x), D(value, r), D(value, t))
    T.step("Dual numbers carry the tangent of $c z^3 r t^2$", tangent, formulas.total_derivative(*partials, dx, dr, dt))


@theorem(
    "total-derivative-limit",
    "The same from the limit definition",
    r"\lim_{h\to0}\frac{u(z_{t+h},r,t+h)-u(z_t,r,t)}h=\partial_zu\,\dot z_t+\partial_tu",
    hypotheses=("$u$ a quadratic in $(z,r,t)$, and $z_t$ a quadratic in $t$, with arbitrary coefficients",),
    sources=("mf:7", "mf:8"),
    nonzero=(h,),
    notes=("Independent of any chain rule: the quotient is a polynomial in $h$, whose value at 0 is its limit.",),
)
def _total_derivative_limit(T: Theorem) -> None:
    for d in (1, 2):
        names = list(sp.symbols(f"z_1:{d + 1}", real=True))
        monomials = sorted(sp.itermonomials([*names, r, t], 2), key=sp.default_sort_key)
        c = sp.symbols(f"c_0:{len(monomials)}", real=True)
        u = sum(ci * m for ci, m in zip(c, monomials, strict=True))
        b = [sp.symbols(f"b{j}_0:3", real=True) for j in range(d)]
        curve = [sum(b[j][k] * t**k for k in range(3)) for j in range(d)]
        on_curve = dict(zip(names, curve, strict=True))
        along = u.subs(on_curve, simultaneous=True)
        change = sp.Poly(along.subs(t, t + h) - along, h)
        quotient = sum(coefficient * h ** (n - 1) for (n,), coefficient in change.terms())
        T.step(
            f"The quotient times $h$ is the change of $u$, d = {d}",
            h * quotient,
            along.subs(t, t + h) - along,
            reads=r"h\,q(h)=u(z_{t+h},r,t+h)-u(z_t,r,t)",
        )
        limit = quotient.subs(h, 0)

        def jvp(dr_dt: int, dt_dt: int, u: Any = u, names: Any = names, curve: Any = curve, at: Any = on_curve) -> Any:
            states = sum(
                formulas.total_derivative(sp.diff(u, n), 0, 0, sp.diff(c, t), 0, 0)
                for n, c in zip(names, curve, strict=True)
            )
            times = formulas.total_derivative(0, sp.diff(u, r), sp.diff(u, t), 0, dr_dt, dt_dt)
            return (states + times).subs(at, simultaneous=True)

        T.step(
            f"Its value at $h=0$ is the JVP, d = {d}",
            limit,
            jvp(0, 1),
            reads=r"q(0)=\sum_j\dot z_j\,\partial_{z_j}u+\partial_tu",
        )
        T.control(f"tangent $(v, 1, 1)$, d = {d}", limit, jvp(1, 1))
        T.control(f"tangent $(v, 0, 0)$, d = {d}", limit, jvp(0, 0))
        T.control(f"tangent $(v, 1, 0)$, d = {d}", limit, jvp(1, 0))


@theorem(
    "double-backward",
    "Two backward passes give the JVP; a gradient of the sum does not",
    r"\partial_w\langle J^\top w,\,v\rangle=Jv,\qquad(J^\top\mathbf 1)\odot v\neq Jv\ \text{for}\ d\ge2",
    hypotheses=("$J$ any $d\\times d$ Jacobian",),
    sources=("mf:8",),
    notes=(
        "`grad(u.sum(), z) * v` is $(J^\\top\\mathbf 1)\\odot v$. It agrees with the JVP for $d=1$ alone, and so does "
        "`grad(u.sum(), t)`, the sum of the components of $\\partial_tu$.",
    ),
)
def _double_backward(T: Theorem) -> None:
    for d in (1, 2, 3):
        jacobian = sp.Matrix(d, d, sp.symbols(f"J_0:{d * d}", real=True))
        v, w, dt_u = (sp.Matrix(sp.symbols(f"{name}_1:{d + 1}", real=True)) for name in ("v", "w", "p"))
        pulled = (jacobian.T * w).dot(v)
        T.step(
            f"Second backward pass, d = {d}",
            sp.Matrix([D(pulled, wi) for wi in w]),
            jacobian * v,
            reads=r"\partial_w\langle J^\top w,v\rangle=Jv",
        )
        summed = (jacobian.T * sp.ones(d, 1)).multiply_elementwise(v)
        if d == 1:
            T.step("For d = 1 the gradient of the sum agrees", summed, jacobian * v)
        else:
            T.control(f"`grad(u.sum(), z) * v` is the JVP, d = {d}", summed, jacobian * v)
            T.control(f"`grad(u.sum(), t)` is $\\partial_t u$, d = {d}", sp.ones(d, 1) * sum(dt_u), dt_u)
            T.control(f"one backward pass, $J^\\top v$, d = {d}", jacobian.T * v, jacobian * v)
    _two_layers(T)


def _two_layers(T: Theorem) -> None:
    """Reverse mode layer by layer, differentiated in its cotangent, against forward mode layer by layer."""
    first, second = (sp.Matrix(2, 2, sp.symbols(f"{name}_0:4", real=True)) for name in ("A", "B"))
    slope, v, w = (sp.Matrix(sp.symbols(f"{name}_1:3", real=True)) for name in ("s", "v", "w"))
    backward = first.T * slope.multiply_elementwise(second.T * w)
    forward = second * slope.multiply_elementwise(first * v)
    again = sp.Matrix([D((backward.T * v)[0], wi) for wi in w])
    T.step(
        "Network $B\\,\\sigma(Az)$ with slopes $s=\\sigma'$: backward twice is forward once",
        again,
        forward,
        reads=r"\partial_w\langle A^\top(s\odot B^\top w),v\rangle=B(s\odot Av)",
    )
    T.control("the same with the layers in the wrong order", again, first * slope.multiply_elementwise(second * v))
