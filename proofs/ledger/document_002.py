"""Document 002: notes that follow the paper closely, equation by equation. Its middle time is s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..notation import D, eps, t, x
from .claim import Finding, beyond, claim, false_step, quoted, step, theorem, theorems, within
from .paper import EMBEDDING, KAPPA, OMEGA, TIME_LAW, WEIGHT_POWER, spread

if TYPE_CHECKING:
    from meanflow_ref import ClassConditional
    from meanflow_ref.fields.base import AbstractField


@claim("002.1", "proved", "States are a_t x + b_t eps for chosen schedules a, b.")
def general_path() -> Sequence[Finding]:
    """Any schedule."""
    return [theorem("general-path")]


@claim("002.2", "proved", "The conditional velocity is a'x + b'eps, and eps - x for the linear schedule.")
def conditional_velocity() -> Sequence[Finding]:
    """The derivative of the path."""
    from meanflow_ref import formulas

    path = formulas.interpolant(x, eps, 1 - t, t)
    return [
        theorem("general-path"),
        step("linear schedule", D(path, t), formulas.conditional_velocity(x, eps, -1, 1)),
        false_step("with the sign turned", D(path, t), x - eps),
    ]


@claim("002.3", "verified numerically", "The marginal velocity is the posterior mean of the conditional one.")
def marginal_velocity() -> Sequence[Finding]:
    """The field's v against scipy's posterior; the prior mean of the data is not enough."""
    import torch

    from . import measure as m

    field, z = m.mixture(), m.grid()
    expected = torch.from_numpy(m.posterior_velocity(z[:, 0].numpy(), 0.6))[:, None]
    prior = (z - float((field.weights * field.means).sum())) / 0.6
    return [
        within("v against (z - E[x | z])/t by scipy", m.worst(field.velocity(z, 0.6) - expected), 1e-12),
        beyond("with the prior mean of x", m.worst(prior - expected), 0.5),
    ]


@claim("002.4", "verified numerically", "Flow matching regresses a network on the marginal velocity.")
def flow_matching_loss() -> Sequence[Finding]:
    """Least squares on samples of v_t finds the gain of the marginal field (5 standard errors: false alarm 6e-7)."""
    import torch

    from . import measure as m

    field, n, at = m.normal(0.0, 0.5), 40_000, 0.6
    x, eps = field.sample_pair(n, torch.Generator().manual_seed(8))
    z, v = (1 - at) * x + at * eps, eps - x
    gain = float((z * v).sum() / (z * z).sum())
    exact = float(field.velocity(m.states(1.0), at))
    standard_error = float((v - exact * z).std() / (z.std() * n**0.5))
    return [
        within("fitted gain less that of v, in standard errors", abs(gain - exact) / standard_error, 5),
        beyond("the same for a gain of 0", abs(exact) / standard_error, 50),
    ]


@claim(
    "002.5",
    "proved",
    "Minimising the conditional flow-matching loss is fully equivalent to minimising the marginal one.",
    "Equal gradients and minimisers. The values differ, by the mean conditional variance of v_t.",
)
def equivalence() -> Sequence[Finding]:
    """The difference is free of the parameters."""
    return [theorem("flow-matching")]


@claim("002.6", "verified numerically", "Sampling solves dz/dt = v from noise; z_r is z_t less the integral of v.")
def the_flow() -> Sequence[Finding]:
    """The closed flow against scipy's ODE."""
    import torch

    from . import measure as m

    field, z = m.mixture(), m.grid()
    end = torch.from_numpy(m.flow(m.posterior_velocity, z[:, 0].numpy(), 0.9, 0.1))[:, None]
    return [
        within("flow map against scipy's ODE", m.worst(field.flow_map(z, 0.9, 0.1) - end), 1e-9),
        beyond("one Euler step in its place", m.worst(z - 0.8 * field.velocity(z, 0.9) - end), 0.3),
    ]


@claim(
    "002.7",
    "verified numerically",
    "Euler's rule z + (t' - t) v steps along the flow, in either direction, to first order.",
)
def euler() -> Sequence[Finding]:
    """Observed order from two step sizes; the sign is right for falling times as well."""
    from . import measure as m

    field, z = m.normal(0.4, 0.5), m.states(-1.0, 0.5, 2.0)

    def error(steps: int, sign: float = 1.0) -> float:
        y = z
        for i in range(steps):
            a, b = 1 - i / steps, 1 - (i + 1) / steps
            y = y + sign * (b - a) * field.velocity(y, a)
        return m.worst(y - field.flow_map(z, 1.0, 0.0))

    ratio = error(256) / error(512)
    return [
        within("distance of the error's ratio under halving from 2", abs(ratio - 2), 0.05),
        beyond("error with the sign turned", error(512, -1.0), 1.0),
    ]


@claim(
    "002.8",
    "verified numerically",
    "Although conditional paths are straight, trajectories of the marginal field are usually curved.",
    "A character of the word for 'curved' is misprinted.",
)
def curved_trajectories() -> Sequence[Finding]:
    """Distance of the middle of a trajectory from its chord."""
    from . import measure as m

    z = m.grid()

    def sag(field: AbstractField) -> float:
        middle, end = (field.flow_map(z, 1.0, at) for at in (0.5, 0.0))
        return m.worst(middle - (z + end) / 2)

    return [
        beyond("mixture", sag(m.mixture()), 0.3),
        within("(almost) a single data point", abs(sag(m.normal(0.0, 1e-9))), 1e-8),
    ]


@claim("002.9", "verified numerically", "u is a functional of v alone; no network enters.")
def functional_of_v() -> Sequence[Finding]:
    """Two descriptions of one v have one u; another v another."""
    from meanflow_ref import GaussianMixture, average_velocity

    from . import measure as m

    field, z = m.normal(0.3, 0.6), m.grid(5)
    same = GaussianMixture(m.vector(0.4, 0.6), m.vector(0.3, 0.3), m.vector(0.6, 0.6))
    u = field.average_velocity(z, 0.1, 0.9)
    by_v = average_velocity(field.velocity, z, 0.1, 0.9, tol=1e-9).value
    return [
        within("the same law written as two equal modes", m.worst(same.average_velocity(z, 0.1, 0.9) - u), 1e-12),
        within("u from v as a mere function, by an ODE", m.worst(by_v - u), 1e-7),
        beyond("u of another field", m.worst(m.normal(0.3, 0.9).average_velocity(z, 0.1, 0.9) - u), 0.1),
    ]


@claim("002.10", "proved", "u tends to v as r tends to t.")
def boundary() -> Sequence[Finding]:
    """The limit."""
    return [theorem("limit")]


@claim(
    "002.11",
    "proved",
    "One large step over [r, t] is two small ones over [r, s] and [s, t], for s in [r, t].",
    "The restriction on s is not needed.",
)
def consistency() -> Sequence[Finding]:
    """Any middle time, and its converse."""
    return theorems("consistency", "consistency-identity")


@claim(
    "002.12",
    "proved",
    "The three lines from the displacement to the MeanFlow identity.",
    "d/dt is called total only afterwards.",
)
def identity() -> Sequence[Finding]:
    """The identity."""
    return [theorem("identity")]


@claim(
    "002.13", "proved", "du/dt = v d_z u + d_t u, a JVP with tangent [v, 0, 1].", "Read (d_z u) v: matrix times vector."
)
def total_derivative() -> Sequence[Finding]:
    """The chain rule, and a field whose Jacobian is not symmetric."""
    import torch

    from . import measure as m

    field = m.spiral()
    z, r, t = m.spread_out(field)
    v = field.velocity(z, t)
    du_dt = m.total_derivative(field.average_velocity, v, r, t, z)
    identity = (v - field.average_velocity(z, r, t)) / (t - r)[:, None]
    unit = torch.eye(3, dtype=torch.float64)
    rows = (unit - field.jacobian(z, r, t)) / (t - r)[:, None, None]
    transposed = du_dt + torch.einsum("bji,bj->bi", rows, v) - torch.einsum("bij,bj->bi", rows, v)
    return [
        theorem("total-derivative"),
        within("JVP against (v - u)/(t - r), spiral", m.worst(du_dt - identity), 1e-9),
        beyond("with the Jacobian transposed", m.worst(transposed - identity), 0.5),
    ]


@claim("002.14", "proved", "The loss, with the marginal v in the target, then with the conditional v_t in its place.")
def loss() -> Sequence[Finding]:
    """Equal expectation of the target, equal gradient behind the stop-gradient."""
    return theorems("expectation", "stop-gradient")


@claim(
    "002.15",
    "refuted",
    "A network with zero loss satisfies the identity and hence, easily, the definition of u.",
    "Two gaps. With v_t in the target zero loss cannot be had: the exact u has the loss E tr(Phi Cov Phi^T). And the "
    "identity on r < t alone has wrong solutions u + C/(t - r); a bound at r = t rules them out.",
)
def zero_loss() -> Sequence[Finding]:
    """The loss of the exact u with v_t and with v."""
    import torch

    from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at

    from . import measure as m

    field, n = m.normal(), 40_000
    x, eps = field.sample_pair(n, torch.Generator().manual_seed(9))
    r, t = m.times_for(x, 0.2, 0.8)
    terms = meanflow_loss(field.average_velocity, x, eps, r, t, weight_power=0.0)
    exact = meanflow_loss_at(field.average_velocity, terms.z, field.velocity(terms.z, t), r, t, weight_power=0.0)
    phi = float(field.jacobian(x[:1], 0.2, 0.8))
    floor = phi**2 * float(field.velocity_covariance(x[:1], 0.8))
    standard_error = float(terms.squared_error.std()) / n**0.5
    return [
        beyond("loss of the exact u with v_t, normal data, r = 0.2, t = 0.8", float(terms.loss), 1.4),
        within(
            "that loss less Phi^2 Var(v_t | z), in standard errors", abs(float(terms.loss) - floor) / standard_error, 5
        ),
        within("loss of the exact u with the marginal v", float(exact.loss), 1e-24),
        theorem("covariance"),
        theorem("singular-family"),
    ]


@claim("002.16", "proved", "z_r = z_t - (t - r) u; one step or a few.")
def sampling() -> Sequence[Finding]:
    """The sampling rule."""
    return [theorem("sampling")]


def _two_classes() -> ClassConditional:
    """Two unequal normal classes."""
    from meanflow_ref import ClassConditional

    from . import measure as m

    return ClassConditional((m.normal(-1.0, 0.4), m.normal(1.5, 0.7)), m.vector(0.7, 0.3))


@claim("002.17", "verified numerically", "The guided field is omega v(.|c) + (1 - omega) v(.).")
def guided_field() -> Sequence[Finding]:
    """The library's guided field against scipy's normal densities."""
    import torch
    from scipy.stats import norm

    from meanflow_ref import Guided

    from . import measure as m

    classes, z, at, omega = _two_classes(), m.grid(), 0.6, 2.0
    y = z[:, 0].numpy()
    parts = []
    for weight, mean, std in ((0.7, -1.0, 0.4), (0.3, 1.5, 0.7)):
        variance = (1 - at) ** 2 * std**2 + at**2
        offset = y - (1 - at) * mean
        velocity = (y - mean - (1 - at) * std**2 * offset / variance) / at
        parts.append((weight * norm.pdf(offset, scale=variance**0.5), velocity))
    total = sum(density for density, _ in parts)
    marginal = sum(density * velocity for density, velocity in parts) / total
    expected = torch.from_numpy(omega * parts[0][1] + (1 - omega) * marginal)[:, None]
    guided = Guided(classes, 0, omega)
    return [
        within("guided v against scipy's", m.worst(guided.velocity(z, at) - expected), 1e-11),
        beyond("the conditional field alone", m.worst(torch.from_numpy(parts[0][1])[:, None] - expected), 0.5),
    ]


@claim(
    "002.18",
    "refuted",
    "The mean of v_t given the state and the class is written as the velocity given the data point x.",
    "A misprint: the left side must be conditioned on the class c.",
)
def conditioned_on_x() -> Sequence[Finding]:
    """The class's field against (z - x)/t at one x of the class."""
    from . import measure as m

    field, z, at, point = m.normal(-1.0, 0.4), m.states(0.5), 0.6, 0.3
    given_class = field.velocity(z, at)
    narrow = m.normal(point, 1e-7).velocity(z, at)
    return [
        beyond(
            "v given the class less v given x = 0.3, z = 0.5, t = 0.6", m.worst(given_class - (z - point) / at), 0.3
        ),
        within("v given a class that is the point x alone", m.worst(narrow - (z - point) / at), 1e-6),
    ]


@claim(
    "002.19",
    "refuted",
    "The unconditional field is the mean of the class fields over the classes.",
    "It must be the mean over the classes given z. Imprecise in the paper's equation 14 too.",
)
def prior_average() -> Sequence[Finding]:
    """Prior and posterior weights against scipy's density of the whole."""
    import torch

    from . import measure as m

    field, z, at = m.mixture(), m.states(0.9), 0.3
    expected = torch.from_numpy(m.posterior_velocity(z[:, 0].numpy(), at))
    each = torch.stack([m.normal(mean, std).velocity(z, at)[0, 0] for _, mean, std in m.MODES])
    share = field.responsibilities(z, m.vector(at))[0]
    return [
        beyond("prior weights, error of v at z = 0.9, t = 0.3", m.worst((field.weights * each).sum() - expected), 1.0),
        within("posterior weights", m.worst((share * each).sum() - expected), 1e-12),
        theorem("posterior-weights"),
    ]


@claim(
    "002.20",
    "proved",
    "The guided average velocity obeys the identity with the guided v.",
    "A stray comma before the bar.",
)
def guided_identity() -> Sequence[Finding]:
    """The guided identity."""
    return [theorem("guided-identity")]


@claim(
    "002.21",
    "proved",
    "The class-free guided field is v itself, so the guided field can be written with u(z, t, t) without a class.",
    "True through v_cfg(z, t) = u_cfg(z, t, t), which the document superscripts otherwise, and at r = t only: over an "
    "interval u without a class is no class average of guided average velocities.",
)
def class_free_branch() -> Sequence[Finding]:
    """The posterior average of the guided field, the boundary, and what fails over an interval."""
    return theorems("posterior-weights", "limit", "guided-average")


@claim("002.22", "verified numerically", "With omega = 1 the guided loss is the plain one.")
def no_guidance() -> Sequence[Finding]:
    """The same target, bit for bit up to rounding."""
    import torch

    from meanflow_ref import Guidance, meanflow_loss

    from . import measure as m

    x, noise, r, t = m.batch(2)
    label, inner = torch.zeros(len(x), dtype=torch.long), m.Concatenation(2)

    def net(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        u: torch.Tensor = inner(z, r, t) + 0.3 * label[:, None]
        return u

    def target(omega: float | None) -> torch.Tensor:
        guidance = None if omega is None else Guidance(omega, null_label=7)
        return meanflow_loss(net, x, noise, r, t, label=label, guidance=guidance).target

    return [
        within("omega = 1 against no guidance", m.worst(target(1.0) - target(None)), 1e-14),
        beyond("omega = 2 against no guidance", m.worst(target(2.0) - target(None)), 0.5),
    ]


@claim(
    "002.23",
    "proved",
    "The improved guided field adds kappa times the network's conditional velocity and rebalances the rest.",
    "True of the fixed point. As printed a true field stands on the left and a network on the right; the paper has "
    "u_cfg in the field (eq. 20) and the network only in the sample velocity (eq. 21).",
)
def improved_guidance() -> Sequence[Finding]:
    """The fixed point."""
    return theorems("guided-scale", "guided-identity")


@claim("002.24", "proved", "Its effective scale is omega/(1 - kappa).", "For kappa < 1.")
def effective_scale() -> Sequence[Finding]:
    """The fixed point's scale."""
    return [theorem("guided-scale")]


@claim(
    "002.25",
    "refuted",
    "Experiments show that guiding with the unconditional network output alone does not work.",
    "It works (kappa = 0, FID 61.06 to 20.15 at the same scale 2); kappa improves on it a little.",
)
def kappa_zero_fails() -> Sequence[Finding]:
    """What guidance without kappa gains in the paper, and what kappa adds."""
    return [
        quoted("FID gained by omega = 2 with kappa = 0 (Table 1f)", OMEGA[1.0] - OMEGA[2.0], 40),
        quoted("FID that the best kappa adds to that (Table 5)", KAPPA[0.0] - min(KAPPA.values()), 1.6, "<="),
    ]


@claim(
    "002.26",
    "refuted",
    "Experiments find a fixed scale of 2.0 to be the best.",
    "The table over kappa is made at scale 2; over scales, 3 is the best.",
)
def best_scale() -> Sequence[Finding]:
    """The best scale of Table 1f."""
    return [
        quoted("FID at omega = 2 less the best of the table", OMEGA[2.0] - min(OMEGA.values()), 4),
        quoted("distance of the best omega from 3", abs(min(OMEGA, key=lambda omega: OMEGA[omega]) - 3.0), 0, "<="),
    ]


@claim(
    "002.27",
    "factual",
    "(An omission.) The document has neither the adaptive weight, nor the law of (r, t), nor how the times are "
    "embedded.",
    "The paper's ablations show what each is worth.",
)
def omissions() -> Sequence[Finding]:
    """Spread of FID in the three ablations."""
    return [
        quoted("weight power, Table 1e: worst less best FID", spread(WEIGHT_POWER), 18),
        quoted("law of the times, Table 1d", spread(TIME_LAW), 4),
        quoted("embedding, Table 1c", spread(EMBEDDING), 2),
    ]
