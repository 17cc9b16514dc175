"""Document 004: an introduction by school mathematics, with a linked notebook that runs from source to target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy as sp

from meanflow_ref import formulas

from ..notation import D, r, t, tau
from .claim import Finding, beyond, claim, false_step, step, theorem, theorems, within


@claim("004.1", "proved", "A puzzle in numbers: 3.1 (u + 0.1) = 3 u + 0.1 * 4.1 gives u = 1.")
def puzzle() -> Sequence[Finding]:
    """The puzzle's equation."""
    return [theorem("discrete")]


@claim(
    "004.2",
    "refuted",
    "Motion along a straight line has speed equal to velocity.",
    "Only without a turn. Nothing later depends on it.",
)
def speed_is_velocity() -> Sequence[Finding]:
    """There and back on a line: x = t (1 - t), and x = t^2 without a turn."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(64)

    def gap(velocity: Callable[[float], float]) -> float:
        # On each half of [0, 1], so that a change of sign at 1/2 costs no accuracy.
        values = [(w / 4, velocity((k + (n + 1) / 2) / 2)) for k in (0, 1) for n, w in zip(nodes, weights, strict=True)]
        return float(sum(w * abs(v) for w, v in values) - abs(sum(w * v for w, v in values)))

    return [
        beyond("mean speed less size of the mean velocity, x = t (1 - t)", gap(lambda a: 1 - 2 * a), 0.49),
        within("the same for x = t^2", gap(lambda a: 2 * a), 1e-14),
    ]


@claim(
    "004.3",
    "factual",
    "The average over [r, t] is spelt in three ways, u(t), u(t, r) and u(r, t).",
    "The order of r and t does no harm, since the average is symmetric in them. But u(t) was defined as the average "
    "over [0, t], and read so the equation is false.",
)
def three_spellings() -> Sequence[Finding]:
    """x = t^2: the averages over [0, t] and [r, t]."""
    x = sp.Function("x")

    def u(a: sp.Expr, b: sp.Expr) -> sp.Expr:
        return formulas.average_velocity(x(b) - x(a), a, b)

    return [
        step("u(r, t) = u(t, r)", u(r, t), u(t, r)),
        false_step("u over [0, t] for u over [r, t]", u(sp.Integer(0), t), u(r, t)),
    ]


@claim(
    "004.4",
    "refuted",
    "For any step dt: u(r, t) = v(t) - (t - r) du/dt - du, in differences.",
    "Exact only with the mean velocity over [t, t + dt] for v(t), as in the puzzle, where v is constant there. With "
    "v(t) the error is of first order in dt.",
)
def finite_differences() -> Sequence[Finding]:
    """x = sin t, r = 0, t = 1: the error with v(t), its order, and the exact form."""
    from math import cos, sin

    def u(end: float) -> float:
        return sin(end) / end

    def error(dt: float, v: float) -> float:
        return abs(float(formulas.discrete_target(v, u(1 + dt), u(1.0), 0.0, 1.0, 1 + dt)) - u(1.0))

    mean = (sin(1.1) - sin(1.0)) / 0.1
    return [
        beyond("error with v(t), dt = 0.1", error(0.1, cos(1.0)), 0.04),
        within(
            "distance of its ratio under halving of dt = 0.01 from 2",
            abs(error(0.01, cos(1.0)) / error(0.005, cos(1.0)) - 2),
            0.02,
        ),
        within("error with the mean velocity, dt = 0.1", error(0.1, mean), 1e-14),
        theorem("discrete"),
        theorem("discrete-limit"),
    ]


@claim("004.5", "proved", "As dt tends to 0 the relation becomes u = v - (t - r) du/dt.")
def limit_of_differences() -> Sequence[Finding]:
    """The error vanishes with dt, and what is left is the identity."""
    return theorems("discrete-limit", "identity")


@claim("004.6", "proved", "The same by the quotient rule: du/dt = (v - u)/(t - r).")
def quotient_rule() -> Sequence[Finding]:
    """The quotient rule."""
    return [theorem("quotient-rule")]


@claim("004.7", "verified numerically", "u(r, t) is the change of position over the time.")
def change_of_position() -> Sequence[Finding]:
    """Displacement of the mixture's flow against the mean of v along it, by quadrature."""
    import numpy as np

    from . import measure as m

    field, z = m.mixture(), m.grid()
    nodes, weights = np.polynomial.legendre.leggauss(48)
    low, high = 0.3, 0.9
    mean = sum(
        w
        / 2
        * field.velocity(field.flow_map(z, high, low + (high - low) * (n + 1) / 2), low + (high - low) * (n + 1) / 2)
        for n, w in zip(nodes, weights, strict=True)
    )
    moved = (z - field.flow_map(z, high, low)) / (high - low)
    return [
        within("displacement over time against the mean of v", m.worst(moved - mean), 1e-9),
        beyond("over the later time alone", m.worst(moved * (high - low) / high - mean), 0.1),
    ]


@claim(
    "004.8",
    "proved",
    "With a state: differentiating (t - r) u(X_t, r, t) gives the identity.",
    "By the product rule on the left, not the chain rule.",
)
def with_a_state() -> Sequence[Finding]:
    """The product rule's step, and the identity along any curve."""
    u = sp.Function("u")
    product = D(formulas.displacement(u(t), r, t), t)
    integral = sp.Integral(sp.Function("v")(tau), (tau, r, t))
    return [
        step("product rule", product, formulas.improved_velocity(u(t), D(u(t), t), r, t)),
        false_step("without its first term", product, (t - r) * D(u(t), t)),
        step("fundamental theorem", D(integral, t), sp.Function("v")(t)),
        theorem("identity"),
    ]


@claim(
    "004.9",
    "refuted",
    "A network for u is trained by matching the left side of the identity to the conditional velocity.",
    "Read literally that is flow matching, whose optimum is v. The right side must be matched, with v_t in it and the "
    "derivative behind a stop-gradient, which is not mentioned.",
)
def matching_the_left_side() -> Sequence[Finding]:
    """The optimum of u against v_t is E[v_t | z] = v; that of u against the whole right side is u."""
    from meanflow_ref.objectives.meanflow import meanflow_loss_at

    from . import measure as m

    field, z = m.mixture(), m.grid()
    r, t = m.times_for(z, 0.1, 0.9)
    v, u = field.velocity(z, t), m.mixture_by_ode()
    target = meanflow_loss_at(field.average_velocity, z, v, r, t, weight_power=0.0).target
    return [
        beyond("optimum of the left side alone, distance from u", m.worst(v - u), 0.5),
        within("optimum of the right side, distance from u", m.worst(target - u), 1e-9),
        theorem("expectation"),
    ]


@claim(
    "004.10",
    "verified numerically",
    "Autograd hands out partial derivatives only; the total one comes from torch.autograd.functional.jvp.",
    "That works, but is the trick of two backward passes: where a backward pass cannot be differentiated it answers "
    "0, without a word. torch.func.jvp is one forward pass with tangents.",
)
def functional_jvp() -> Sequence[Finding]:
    """The two agree on a network, and part on an operation without a second derivative."""
    import torch

    from . import measure as m

    net, (z, v, r, t) = m.Concatenation(3), m.batch(3)
    primals, tangents = (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    forward = m.jvp(net, primals, tangents)

    def twice_of(fn: object, at: object, along: object) -> torch.Tensor:
        derivative: torch.Tensor = torch.autograd.functional.jvp(fn, at, along)[1]  # type: ignore[no-untyped-call]
        return derivative

    twice, still = (twice_of(net, primals, (v, *times)) for times in (tangents[1:], map(torch.zeros_like, (r, t))))

    class Doubled(torch.autograd.Function):
        """2z, with a forward derivative and a backward pass of which torch may not take a second."""

        @staticmethod
        def forward(z: torch.Tensor) -> torch.Tensor:
            return 2 * z

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            return None

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            return 2 * grad

        @staticmethod
        def jvp(ctx: object, tangent: torch.Tensor) -> torch.Tensor:
            return 2 * tangent

    apply = Doubled.apply
    try:
        error = m.relative(twice_of(apply, z, v), 2 * v)
    except RuntimeError:  # what other versions of torch do
        error = 1.0
    return [
        within("functional.jvp against func.jvp", m.worst(twice - forward), 1e-13),
        within(
            "func.jvp of an operation that is differentiable backwards once",
            m.worst(m.jvp(apply, (z,), (v,)) - 2 * v),
            0,
        ),
        beyond("functional.jvp there, relative error (1 too if it raises)", error, 0.99),
        beyond("the partial derivative along z alone", m.worst(still - forward), 0.1),
    ]


@claim(
    "004.11",
    "refuted",
    "The linked notebook samples by Z_t = Z_r + (t - r) u(Z_r, r, t), with a u trained on the state at t.",
    "The wrong end again, as in 003.12, in an independent text: u belongs to the later state and is read at the "
    "earlier one. The rule here is measured with the exact u; the notebook itself is not run.",
)
def notebook_sampler() -> Sequence[Finding]:
    """The exact u of the mixture, read at the start: spread of the samples, one and four steps."""
    import torch
    from scipy.stats import norm

    from meanflow_ref import Convention

    from . import measure as m
    from . import mistakes

    z = torch.from_numpy(norm.ppf((torch.arange(400, dtype=torch.float64).numpy() + 0.5) / 400))[:, None]
    mixture = m.mixture()
    exact = mixture.flow_map(z, 1.0, 0.0)
    u = Convention(time="data_at_one").express(mixture.average_velocity)
    shift = Convention(time="data_at_one").express(m.normal(2.0, 1.0).average_velocity)

    def w2(samples: torch.Tensor) -> float:
        return float((samples.sort(0).values - exact.sort(0).values).pow(2).mean().sqrt())

    return [
        beyond("Wasserstein distance from the data, one step", w2(mistakes.read_at_the_start(u, z)), 0.3),
        beyond("four steps", w2(mistakes.read_at_the_start(u, z, 4)), 0.2),
        within("read at the right end", w2(mistakes.read_at_the_end(u, z)), 1e-12),
        within(
            "what hides it: a mere shift of normal data, at t = 1 alone",
            m.worst(mistakes.read_at_the_start(shift, z) - (z + 2.0)),
            1e-12,
        ),
        theorem("wrong-end"),
    ]
