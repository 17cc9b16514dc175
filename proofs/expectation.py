"""From conditional to marginal: what the expectation of target, loss and gradient is, given the state z."""

from __future__ import annotations

from typing import Any

import sympy as sp

from meanflow_ref import formulas

from .notation import TIMES, D, r, squared_norm, t, theta, theta0
from .theorem import Theorem, theorem

_FINITE = "$v_t$ given $z$ takes finitely many values (K atoms in d dimensions; both are run, neither is special)"


def _column(entries: list[Any]) -> Any:
    return sp.Matrix(len(entries), 1, entries)


def _law(T: Theorem, count: int, dimension: int) -> tuple[list[Any], list[Any], Any]:
    """Probabilities that sum to 1, values, and mean of a finite law."""
    p = list(sp.symbols(f"p_1:{count}", real=True))
    p.append(1 - sum(p))
    T.assume(where=[relation for pk in p[:-1] for relation in (pk > 0, pk < 1)] + [p[-1] > 0])
    values = [sp.Matrix(sp.symbols(f"v{k + 1}_1:{dimension + 1}", real=True)) for k in range(count)]
    return p, values, _mean(p, values)


def _mean(p: list[Any], values: list[Any]) -> Any:
    return sum((pk * vk for pk, vk in zip(p, values, strict=True)), values[0] * 0)


def _covariance(p: list[Any], values: list[Any]) -> Any:
    centre = _mean(p, values)
    return sum((pk * (vk - centre) * (vk - centre).T for pk, vk in zip(p, values, strict=True)), centre * centre.T * 0)


def _network(dimension: int, of: Any = None) -> tuple[Any, Any, Any]:
    """Value, Jacobian in z and derivative in t of a network at one point: symbols, or functions of a parameter."""

    def entry(name: str) -> Any:
        return sp.Symbol(name, real=True) if of is None else sp.Function(name)(of)

    n = range(1, dimension + 1)
    jacobian = sp.Matrix(dimension, dimension, [entry(f"J_{i}{j}") for i in n for j in n])
    return _column([entry(f"u_{i}") for i in n]), jacobian, _column([entry(f"q_{i}") for i in n])


def _target(v: Any, jacobian: Any, dt_u: Any) -> Any:
    """``formulas.meanflow_target`` of every component, with the JVP by ``formulas.total_derivative``."""
    n = range(len(v))
    du_dt = [
        formulas.total_derivative(0, 0, dt_u[i], 0, 0, 1)
        + sum(formulas.total_derivative(jacobian[i, j], 0, 0, v[j], 0, 0) for j in n)
        for i in n
    ]
    return _column([formulas.meanflow_target(v[i], du_dt[i], r, t) for i in n])


@theorem(
    "expectation",
    "The conditional target is the marginal one in expectation",
    r"\mathbb E[u_{\mathrm{tgt}}(v_t)\mid z]=u_{\mathrm{tgt}}(\mathbb E[v_t\mid z]),\qquad"
    r"u_{\mathrm{tgt}}(v_t)=v_t-(t-r)(\partial_zu\,v_t+\partial_tu)",
    hypotheses=(_FINITE,),
    sources=("mf:1", "mf:10", "mf:11"),
    where=TIMES,
    notes=("The target is affine in $v_t$, and that is all that is used; any other dependence on $v_t$ breaks it.",),
)
def _expectation(T: Theorem) -> None:
    for count, d in ((2, 1), (3, 2), (4, 3)):
        p, values, mean = _law(T, count, d)
        _, jacobian, dt_u = _network(d)
        targets = [_target(v, jacobian, dt_u) for v in values]
        T.step(
            f"Mean of the targets, K = {count}, d = {d}",
            _mean(p, targets),
            _target(mean, jacobian, dt_u),
            reads=r"\sum_kp_k\,\big[v_k-(t-r)(Jv_k+q)\big]=\bar v-(t-r)(J\bar v+q)",
        )
        if d == 2:
            squared = [v.multiply_elementwise(v) for v in values]
            T.control("a target quadratic in $v_t$", _mean(p, squared), mean.multiply_elementwise(mean))
            clipped = [_target(v, jacobian * v[0], dt_u) for v in values]
            T.control(
                "a Jacobian that depends on the sample", _mean(p, clipped), _target(mean, jacobian * mean[0], dt_u)
            )
            T.control("weights other than $p(v_t\\mid z)$", _mean(p[::-1], targets), _target(mean, jacobian, dt_u))


@theorem(
    "covariance",
    "Law of the target, and the floor of the loss",
    r"\mathrm{Cov}(u_{\mathrm{tgt}}\mid z)=\Phi\,\mathrm{Cov}(v_t\mid z)\,\Phi^\top,\ \Phi=I-(t-r)\,\partial_zu,\qquad"
    r"\mathbb E\lVert u-u_{\mathrm{tgt}}\rVert^2=\lVert u-\mathbb E\,u_{\mathrm{tgt}}\rVert^2"
    r"+\mathrm{tr}\,\Phi\,\mathrm{Cov}\,\Phi^\top",
    hypotheses=(_FINITE,),
    sources=("ref:covariance", "mf:11"),
    where=TIMES,
    notes=("So the loss of the exact field is not 0 but the trace: a lower loss is no proof of a better field.",),
)
def _covariance_of_target(T: Theorem) -> None:
    for count, d in ((3, 1), (2, 2)):
        p, values, mean = _law(T, count, d)
        u, jacobian, dt_u = _network(d)
        targets = [_target(v, jacobian, dt_u) for v in values]
        phi = sp.eye(d) - (t - r) * jacobian
        law = phi * _covariance(p, values) * phi.T
        T.step(
            f"Covariance of the target, K = {count}, d = {d}",
            _covariance(p, targets),
            law,
            reads=r"\mathrm{Cov}\big[v-(t-r)(Jv+q)\big]=\Phi\,\mathrm{Cov}(v)\,\Phi^\top",
        )
        loss = sum(pk * squared_norm(u - target) for pk, target in zip(p, targets, strict=True))
        marginal = squared_norm(u - _target(mean, jacobian, dt_u))
        T.step(
            f"The loss splits, K = {count}, d = {d}",
            loss,
            marginal + law.trace(),
            reads=(
                r"\sum_kp_k\lVert u-u_{\mathrm{tgt}}(v_k)\rVert^2="
                r"\lVert u-u_{\mathrm{tgt}}(\bar v)\rVert^2"
                r"+\mathrm{tr}\,\Phi\,\mathrm{Cov}(v)\,\Phi^\top"
            ),
        )
        T.control(f"covariance of $v_t$ itself, d = {d}", _covariance(p, targets), _covariance(p, values))
        psi = 2 * sp.eye(d) - phi
        T.control(
            f"$\\Phi=I+(t-r)\\partial_zu$, d = {d}", _covariance(p, targets), psi * _covariance(p, values) * psi.T
        )
        T.control(f"conditional and marginal losses have one value, d = {d}", loss, marginal)


@theorem(
    "stop-gradient",
    "With the stop-gradient conditional and marginal losses have one gradient; without it they do not",
    r"\nabla_\theta\,\mathbb E\lVert u_\theta-\mathrm{sg}(u_{\mathrm{tgt}}(v_t))\rVert^2"
    r"=\nabla_\theta\lVert u_\theta-\mathrm{sg}(u_{\mathrm{tgt}}(\bar v))\rVert^2,\qquad"
    r"\text{without sg: }L_c-L_m=\mathrm{tr}\,\Phi_\theta\,\mathrm{Cov}(v_t\mid z)\,\Phi_\theta^\top",
    hypotheses=(
        _FINITE,
        "$u$, its Jacobian and its $\\partial_tu$ are functions of one parameter $\\theta$ (a partial of many)",
    ),
    sources=("mf:9", "mf:11", "ref:covariance"),
    where=TIMES,
    notes=(
        "sg is written as a second parameter $\\theta_0$ that is set equal to $\\theta$ after differentiating. Without "
        "sg the extra term depends on $\\theta$: it pulls $\\Phi$ towards 0, so that the minimiser is not $u$.",
    ),
)
def _stop_gradient(T: Theorem) -> None:
    for count, d in ((2, 1), (3, 2)):
        p, values, mean = _law(T, count, d)
        u, jacobian, dt_u = _network(d, theta)
        _, held_jacobian, held_dt_u = _network(d, theta0)
        name = f"K = {count}, d = {d}"

        def loss(
            v: Any, sg: bool, u: Any = u, live: Any = (jacobian, dt_u), held: Any = (held_jacobian, held_dt_u)
        ) -> Any:
            return squared_norm(u - _target(v, *(held if sg else live)))

        def gradient(value: Any) -> Any:
            return sp.diff(value, theta).subs(theta0, theta)

        with_sg = [sum(pk * loss(v, True) for pk, v in zip(p, values, strict=True)), loss(mean, True)]
        T.step(
            f"Equal gradients with sg, {name}",
            gradient(with_sg[0]),
            gradient(with_sg[1]),
            reads=(
                r"\partial_\theta\sum_kp_k"
                r"\lVert u_\theta-u_{\mathrm{tgt},\theta_0}(v_k)\rVert^2\Big|_{\theta_0=\theta}"
                r"=\partial_\theta\lVert u_\theta-u_{\mathrm{tgt},\theta_0}(\bar v)\rVert^2\Big|_{\theta_0=\theta"
                r"}"
            ),
        )
        without = [sum(pk * loss(v, False) for pk, v in zip(p, values, strict=True)), loss(mean, False)]
        phi = sp.eye(d) - (t - r) * jacobian
        extra = (phi * _covariance(p, values) * phi.T).trace()
        T.step(
            f"Without sg the losses differ by the trace, {name}",
            without[0] - without[1],
            extra,
            reads=(
                r"\sum_kp_k\lVert u_\theta-u_{\mathrm{tgt},\theta}(v_k)\rVert^2-"
                r"\lVert u_\theta-u_{\mathrm{tgt},\theta}(\bar v)\rVert^2"
                r"=\mathrm{tr}\,\Phi_\theta\,\mathrm{Cov}(v)\,\Phi_\theta^\top"
            ),
        )
        T.control(f"equal gradients without sg, {name}", gradient(without[0]), gradient(without[1]))
        T.control(f"sg changes no gradient, {name}", gradient(with_sg[1]), gradient(without[1]))


@theorem(
    "flow-matching",
    "Flow matching and conditional flow matching differ by a constant",
    r"\mathbb E\lVert v_\theta-v_t\rVert^2-\lVert v_\theta-\mathbb E[v_t\mid z]\rVert^2"
    r"=\mathrm{tr}\,\mathrm{Cov}(v_t\mid z)",
    hypotheses=(_FINITE,),
    sources=("mf:1", "mf:9"),
    notes=("Equal gradients, not equal values. MeanFlow at $r=t$ is this case: its target is $v_t$.",),
    where=TIMES,
)
def _flow_matching(T: Theorem) -> None:
    for count, d in ((2, 1), (3, 2)):
        p, values, mean = _law(T, count, d)
        net = _column([sp.Function(f"v_{i + 1}")(theta) for i in range(d)])
        conditional = sum(pk * squared_norm(net - v) for pk, v in zip(p, values, strict=True))
        marginal = squared_norm(net - mean)
        T.step(
            f"The difference, K = {count}, d = {d}",
            conditional - marginal,
            _covariance(p, values).trace(),
            reads=(
                r"\sum_kp_k\lVert v_\theta-v_k\rVert^2-\lVert v_\theta-\bar v\rVert^2" r"=\mathrm{tr}\,\mathrm{Cov}(v)"
            ),
        )
        T.step(
            f"Equal gradients, K = {count}, d = {d}",
            D(conditional, theta),
            D(marginal, theta),
            reads=(
                r"\partial_\theta\sum_kp_k\lVert v_\theta-v_k\rVert^2=\partial_\theta" r"\lVert v_\theta-\bar v\rVert^2"
            ),
        )
        T.control(f"equal values, K = {count}, d = {d}", conditional, marginal)
        T.control(
            f"gradient at one sample, K = {count}, d = {d}", D(squared_norm(net - values[0]), theta), D(marginal, theta)
        )
        _, jacobian, dt_u = _network(d)
        T.step(f"MeanFlow's target at $r=t$, d = {d}", _target(values[0], jacobian, dt_u).subs(r, t), values[0])
