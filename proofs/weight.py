"""The adaptive weight: which loss it descends, and where it moves the fixed point."""

from __future__ import annotations

import sympy as sp

from meanflow_ref import formulas

from .notation import D, theta
from .theorem import Theorem, theorem

_C = sp.Symbol("c", positive=True)
_P = sp.Symbol("p", real=True)


@theorem(
    "adaptive-weight",
    "The weighted gradient is the gradient of a power, a logarithm, or a pseudo-Huber loss",
    r"\mathrm{sg}\big[(q+c)^{-p}\big]\nabla q=\nabla\frac{(q+c)^{1-p}}{1-p}\ (p\neq1),\qquad"
    r"=\nabla\log(q+c)\ (p=1),\qquad =\nabla\,2\sqrt{q+c}\ (p=\tfrac12)",
    hypotheses=("$q=\\lVert\\Delta\\rVert^2>0$ is differentiable in $\\theta$", "$c>0$", "$p\\neq1$ in the first form"),
    sources=("mf:22",),
    nonzero=(1 - _P,),
    notes=("So $p=\\tfrac12$ is the pseudo-Huber loss, and the usual $p=1$ is a logarithm (Cauchy, Lorentz), not it.",),
)
def _adaptive_weight(T: Theorem) -> None:
    q = sp.Function("q", positive=True)(theta)
    slope = sp.diff(q, theta)
    one, half, zero = sp.Integer(1), sp.Rational(1, 2), sp.Integer(0)
    T.step("Any $p\\neq1$", formulas.adaptive_weight(q, _P, _C) * slope, D((q + _C) ** (1 - _P) / (1 - _P), theta))
    T.step("$p=1$: logarithm", formulas.adaptive_weight(q, one, _C) * slope, D(sp.log(q + _C), theta))
    huber = 2 * sp.sqrt(q + _C)
    T.step("$p=1/2$: pseudo-Huber", formulas.adaptive_weight(q, half, _C) * slope, D(huber, theta))
    T.step("$p=0$: no weight", formulas.adaptive_weight(q, zero, _C) * slope, slope)
    d = sp.Symbol("delta", positive=True)
    pseudo_huber = d**2 * (sp.sqrt(1 + q / d**2) - 1)
    T.step(
        "$p=1/2$ with $c=\\delta^2$ is $\\delta^2(\\sqrt{1+q/\\delta^2}-1)$ up to the factor $2/\\delta$",
        formulas.adaptive_weight(q, half, d**2) * slope,
        D(2 * pseudo_huber / d, theta),
    )
    T.control("$p=1$ is pseudo-Huber", formulas.adaptive_weight(q, one, _C) * slope, D(huber, theta))
    T.control("$p=1/2$ is a logarithm", formulas.adaptive_weight(q, half, _C) * slope, D(sp.log(q + _C), theta))
    T.control(
        "the weight not behind a stop-gradient",
        D(formulas.adaptive_weight(q, one, _C) * q, theta),
        formulas.adaptive_weight(q, one, _C) * slope,
    )
    T.control(
        "the weight of the norm in place of its square",
        formulas.adaptive_weight(sp.sqrt(q), one, _C) * slope,
        D(sp.log(q + _C), theta),
    )


@theorem(
    "moved-fixed-point",
    "A per-sample weight moves the fixed point away from the average velocity",
    r"\mathbb E[w(\Delta)\,\Delta\mid z]=\frac{ab\,(b^2-a^2)}{(a+b)(a^2+c)(b^2+c)}\quad"
    r"\text{at the marginal field, }p=1",
    hypotheses=(
        "$v_t$ given $z$ is $\\bar v+a$ or $\\bar v-b$, with mean $\\bar v$",
        "$r=t$, so that the target is $v_t$",
        "$a,b,c>0$",
    ),
    sources=("mf:22", "mf:1"),
    notes=(
        "Zero if $a=b$: a symmetric law is not moved. With $p=0$ nothing is. Tests of training use $p=0$ for "
        "this reason.",
    ),
)
def _moved_fixed_point(T: Theorem) -> None:
    a, b = sp.symbols("a b", positive=True)
    above, below = b / (a + b), a / (a + b)

    def force(power: sp.Expr) -> sp.Expr:
        return (
            above * formulas.adaptive_weight(a**2, power, _C) * a
            - below * formulas.adaptive_weight(b**2, power, _C) * b
        )

    T.step("The probabilities", above + below, 1)
    T.step("$p=0$: stationary at the mean", force(sp.Integer(0)), 0)
    pull = a * b * (b**2 - a**2) / ((a + b) * (a**2 + _C) * (b**2 + _C))
    T.step("$p=1$: the force there", force(sp.Integer(1)), pull)
    T.step("none for a symmetric law", pull.subs(b, a), 0)
    quarter = (formulas.adaptive_weight(a**2, _P, _C) - formulas.adaptive_weight(b**2, _P, _C)) * a * b / (a + b)
    T.step("any $p$: proportional to the difference of the two weights", force(_P), quarter)
    T.control("$p=1$: stationary at the mean", force(sp.Integer(1)), 0)
    T.control("$p=1/2$: stationary at the mean", force(sp.Rational(1, 2)), 0)
    T.control("the force has the other sign", force(sp.Integer(1)), -pull)
