"""Document 001: a long explainer in questions and answers. Its letters and order are the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sympy as sp

from meanflow_ref import formulas
from meanflow_ref.sources import equation

from ..notation import omega
from .claim import Finding, beyond, claim, false_step, quoted, step, theorem, theorems, within
from .paper import OMEGA, RATIO

if TYPE_CHECKING:
    from torch import Tensor


@claim(
    "001.1",
    "proved",
    "du/dt = (v - u)/(t - r), given as equation 6 of the paper.",
    "The equation holds for r < t and has half the acceleration as its limit at r = t. The paper's equation 6 is the "
    "form solved for u, without a division.",
)
def solved_for_derivative() -> Sequence[Finding]:
    """The quotient form, its limit, and how equation 6 reads in the registry."""
    return [
        theorem("quotient-rule"),
        theorem("acceleration"),
        quoted("equation 6 begins with u, not du/dt", float(equation("mf:6").latex.startswith("u(z_t,r,t)=")), 1),
    ]


@claim("001.2", "proved", "Rearranged: u = v - (t - r) du/dt, the source of the training target.")
def identity() -> Sequence[Finding]:
    """The identity."""
    return [theorem("identity")]


@claim(
    "001.3",
    "verified numerically",
    "The target is v_t - (t - r)(v_t . grad_z u + d_t u), cited as equations 10 and 11.",
    "Equation 10 has the marginal v and 11 the conditional v_t. 'v . grad u' must be read as the matrix d_z u times v.",
)
def target() -> Sequence[Finding]:
    """The target at the exact u of a field whose Jacobian is not symmetric."""
    import torch

    from meanflow_ref.objectives.meanflow import meanflow_loss_at

    from . import measure as m

    field = m.spiral()
    z, r, t = m.spread_out(field)
    u, v = field.average_velocity(z, r, t), field.velocity(z, t)
    observed = meanflow_loss_at(field.average_velocity, z, v, r, t, weight_power=0.0).target
    unit, h = torch.eye(3, dtype=torch.float64), (t - r)[:, None]
    jacobian = (unit - field.jacobian(z, r, t)) / h[..., None]
    other = observed + h * torch.einsum("bij,bj->bi", jacobian - jacobian.mT, v)
    return [
        within("target at the exact u less u", m.worst(observed - u), 1e-12),
        beyond("with the transposed Jacobian", m.worst(other - u), 0.5),
        theorem("expectation"),
    ]


@claim(
    "001.4",
    "proved",
    "v_t is the only outside signal; it is eps - x, or x - eps by another convention.",
    "The other convention turns time round, and then the sampling rule turns too.",
)
def sign_convention() -> Sequence[Finding]:
    """The theorem, and what comes of turning v but not the sampler."""
    from meanflow_ref import Convention

    from . import measure as m
    from . import mistakes

    field, z = m.mixture(), m.grid()
    data = field.flow_map(z, 1.0, 0.0)
    turned = Convention(time="data_at_one").express(field.average_velocity)
    return [
        theorem("reversed-time"),
        within("both turned: sample less data", m.worst(mistakes.read_at_the_end(turned, z) - data), 1e-12),
        beyond("v alone turned", m.worst(z + field.average_velocity(z, 0.0, 1.0) - data), 1.0),
    ]


@claim(
    "001.5",
    "refuted",
    "Inside the total derivative dz/dt is v_t.",
    "Along the flow dz/dt is v(z_t, t). Taking v_t is right in expectation, since the target is affine in it.",
)
def dz_dt_is_conditional() -> Sequence[Finding]:
    """The target with each v_t that a state may have, and with their mean."""
    from . import measure as m

    field, z = m.two_points(), m.states(0.3)
    r, t = m.times_for(z, 0.2, 0.7)
    each = field.conditional_velocities(z, t)[0]
    share = field.responsibilities(z, t)[0]
    u = field.average_velocity(z, r, t)
    targets = [v - 0.5 * m.total_derivative(field.average_velocity, v[None], r, t, z)[0] for v in each]
    mean = sum(p * target for p, target in zip(share, targets, strict=True))
    return [
        beyond("target with one v_t less u, data on -1 and 1", max(m.worst(target - u) for target in targets), 0.9),
        within("posterior mean of the targets less u", m.worst(mean - u), 1e-9),
        theorem("expectation"),
    ]


@claim(
    "001.6",
    "verified numerically",
    "du/dt is the JVP of u along (v, 0, 1).",
    "It is a derivative along a direction, not a projection on it.",
)
def jvp_tangent() -> Sequence[Finding]:
    """The JVP against a difference quotient along scipy's trajectory."""
    import torch

    from . import measure as m

    field, z = m.mixture(), m.grid()
    r, t = m.times_for(z, 0.2, 0.7)
    y = z[:, 0].numpy()

    def along(at: float) -> torch.Tensor:
        state = y if at == 0.7 else m.flow(m.posterior_velocity, y, 0.7, at)
        return field.average_velocity(torch.from_numpy(state)[:, None], 0.2, at)

    slope, v = m.difference_quotient(along, 0.7), field.velocity(z, t)
    right, wrong = (m.total_derivative(field.average_velocity, v, r, t, z, dr=dr) for dr in (0.0, 1.0))
    return [
        within("tangent (v, 0, 1) against the slope along the trajectory", m.worst(right - slope), 1e-6),
        beyond("tangent (v, 1, 1)", m.worst(wrong - slope), 0.5),
    ]


@claim("001.7", "verified numerically", "A stop-gradient on the target avoids a second backward pass.")
def stop_gradient() -> Sequence[Finding]:
    """The gradient of the loss is a vector-Jacobian product of u alone."""
    from . import measure as m

    stopped, leaky = m.leaks()
    return [
        within("gradient against the VJP of u alone, relative", stopped, 1e-12),
        beyond("without the stop-gradient", leaky, 0.1),
    ]


@claim("001.8", "verified numerically", "The loss is the mean squared distance of u from the stopped target.")
def loss() -> Sequence[Finding]:
    """The loss against a sum over the entries in plain Python, and at the exact u."""
    from meanflow_ref import meanflow_loss
    from meanflow_ref.objectives.meanflow import meanflow_loss_at

    from . import measure as m

    net, (x, eps, r, t) = m.Concatenation(2), m.batch(2)
    terms = meanflow_loss(net, x, eps, r, t, weight_power=0.0)
    by_hand = (
        sum((a - b) ** 2 for a, b in zip(terms.u.flatten().tolist(), terms.target.flatten().tolist(), strict=True)) / 16
    )
    field = m.spiral()
    z, low, high = m.spread_out(field)
    v = field.velocity(z, high)
    right, wrong = (
        meanflow_loss_at(field.average_velocity, z, k * v, low, high, weight_power=0.0).loss for k in (1, 1.1)
    )
    return [
        within("loss against the plain sum", abs(float(terms.loss.detach()) - by_hand), 1e-12),
        within("loss at the exact u and v of the spiral", float(right), 1e-22),
        beyond("with v a tenth too large", float(wrong), 1e-3),
    ]


@claim("001.9", "verified numerically", "At t = r the loss is that of flow matching.")
def equal_times() -> Sequence[Finding]:
    """Per sample, against |u - (eps - x)|^2."""
    from meanflow_ref import meanflow_loss

    from . import measure as m

    net, (x, eps, r, t) = m.Concatenation(2), m.batch(2)

    def gap(start: Tensor) -> float:
        terms = meanflow_loss(net, x, eps, start, t, weight_power=0.0)
        return m.worst(terms.per_sample - ((terms.u - (eps - x)) ** 2).sum(1))

    return [within("at r = t", gap(t), 1e-13), beyond("at r < t", gap(r), 0.01)]


@claim(
    "001.10",
    "refuted",
    "The weight 1/(|Delta|^2 + c) makes the loss behave like a pseudo-Huber loss.",
    "That is the weight with power 1/2. Power 1, the default, is the derivative of a logarithm (Cauchy). The power p "
    "and the stop-gradient on the weight are left out.",
)
def adaptive_weight() -> Sequence[Finding]:
    """Size of the weighted gradient of a large error: pseudo-Huber tends to a constant, power 1 to 0."""

    def force(delta: float, power: float) -> float:
        return float(formulas.adaptive_weight(delta**2, power, 1e-3) * 2 * delta)

    return [
        beyond(
            "p = 1: fall of the force from an error of 10 to one of 100, a factor", force(10, 1) / force(100, 1), 9.9
        ),
        within("p = 1/2: that factor less 1", abs(force(10, 0.5) / force(100, 0.5) - 1), 1e-4),
        theorem("adaptive-weight"),
    ]


@claim(
    "001.11",
    "verified numerically",
    "Training in eight steps, from two times (usually t > r) to the update.",
    "The steps are right. 'Usually t > r' hides that three quarters of the default batch have r = t.",
)
def eight_steps() -> Sequence[Finding]:
    """The steps, followed by hand with difference quotients, against the library's loss; the share of r = t."""
    import torch

    from meanflow_ref import LogitNormalPair, meanflow_loss

    from . import measure as m

    net, (x, eps, r, t) = m.Concatenation(2), m.batch(2)
    z, v = (1 - t[:, None]) * x + t[:, None] * eps, eps - x
    u = net(z, r, t)
    slope = m.difference_quotient(lambda h: net(z + h * v, r, t + h), 0.0)
    by_hand = ((u - (v - (t - r)[:, None] * slope)) ** 2).sum(1)
    observed = meanflow_loss(net, x, eps, r, t, weight_power=0.0).squared_error
    start, end = LogitNormalPair().sample(4000, torch.Generator().manual_seed(2))
    return [
        within("squared error by the eight steps less the library's", m.worst(by_hand - observed), 1e-8),
        beyond("share of r = t in the default law", float((start == end).float().mean()), 0.74),
        quoted("FID lost by r < t throughout (Table 1a)", RATIO[1.0] - RATIO[0.25], 6),
    ]


def _two_classes() -> tuple[Tensor, Tensor, Tensor]:
    """Two normal classes: the first one's v, that of the whole, and states."""
    from meanflow_ref import ClassConditional

    from . import measure as m

    classes = ClassConditional((m.normal(-1.0, 0.5), m.normal(1.2, 0.5)), m.vector(0.6, 0.4))
    z = m.grid()
    return classes.conditional(0).velocity(z, 0.5), classes.velocity(z, 0.5), z


@claim(
    "001.12",
    "refuted",
    "The guided sample velocity is omega v_t + (1 - omega) u(z, t, t), cited as equations 13 and 19.",
    "In the second term the class must be dropped (and u is the guided network). With the class kept the fixed point "
    "is the unguided v(z|c) for every omega. The text adds later that the class is 'usually' dropped.",
)
def class_not_dropped() -> Sequence[Finding]:
    """One update of the library's guidance at v(.|c), by networks that ignore and that heed the null label."""
    import torch

    from meanflow_ref import Guidance

    from . import measure as m

    conditional, marginal, z = _two_classes()
    label, times = torch.zeros(len(z), dtype=torch.long), m.times_for(z, 0.5, 0.5)[1]
    rule = Guidance(2.0, null_label=1)

    def keeps(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return conditional

    def drops(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.where(label[:, None] == 1, marginal, conditional)

    wanted = formulas.guided_velocity(conditional, marginal, 2.0)
    kept, dropped = (rule.sample_velocity(net, z, conditional, times, label) for net in (keeps, drops))
    return [
        beyond("class kept, omega = 2: distance from the guided field", m.worst(kept - wanted), 0.5),
        within("and from the unguided v(z|c), a fixed point", m.worst(kept - conditional), 1e-14),
        within("class dropped: distance from the guided field", m.worst(dropped - wanted), 1e-14),
        theorem("guided-scale"),
    ]


@claim("001.13", "proved", "Classic guidance is uncond + omega (cond - uncond), two evaluations a step.")
def classic_guidance() -> Sequence[Finding]:
    """The two ways to write it."""
    cond, uncond = sp.symbols("a b", real=True)
    guided = formulas.guided_velocity(cond, uncond, omega)
    return [
        step(
            "uncond + omega (cond - uncond) is omega cond + (1 - omega) uncond",
            uncond + omega * (cond - uncond),
            guided,
        ),
        false_step("with the branches exchanged", cond + omega * (uncond - cond), guided),
    ]


@claim(
    "001.14",
    "factual",
    "Guidance scales such as 2.0 or 7.5.",
    "7.5 belongs to other models: the paper's table ends at 5, where FID is worse than at 3 already.",
)
def example_scales() -> Sequence[Finding]:
    """The scales of Table 1f."""
    return [
        quoted("largest scale in Table 1f", max(OMEGA), 5, "<="),
        quoted("FID at 5 less FID at 3", OMEGA[5.0] - OMEGA[3.0], 5),
    ]


@claim(
    "001.15",
    "proved",
    "With guidance the velocity of the sample is replaced in the target and in the tangent alike (eq. 18).",
    "What public code gets wrong most easily.",
)
def guided_target() -> Sequence[Finding]:
    """The guided identity, and its failure with the unguided tangent."""
    return [theorem("guided-identity")]


@claim(
    "001.16",
    "proved",
    "Improved guidance mixes omega (eps - x), kappa u(.|c) and (1 - omega - kappa) u(.|null) (eq. 21).",
    "Its effective scale omega/(1 - kappa) is not mentioned; 'self-distillation' is a gloss.",
)
def improved_guidance() -> Sequence[Finding]:
    """The fixed point; the coefficients sum to 1."""
    return [theorem("guided-scale")]


@claim("001.17", "verified numerically", "Guided inference is one step of one evaluation, z_1 - u(z_1, 0, 1 | c).")
def guided_inference() -> Sequence[Finding]:
    """One step with the exact guided u against scipy's ODE of the guided v."""
    import torch

    from meanflow_ref import sample
    from meanflow_ref.fields import LinearGaussianGuided

    from . import measure as m

    guided, plain = (LinearGaussianGuided(0.8, 1.0, 0.3, omega) for omega in (2.0, 1.0))
    z, calls = m.grid(), []

    def net(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return guided.average_velocity(z, r, t)

    end = torch.from_numpy(m.flow(m.field_velocity(guided), z[:, 0].numpy(), 1.0, 0.0))[:, None]
    observed = sample(net, z)
    return [
        within("one step against scipy's ODE", m.worst(observed - end), 1e-9),
        within("evaluations", len(calls), 1),
        beyond("the unguided u", m.worst(sample(plain.average_velocity, z) - end), 0.3),
    ]


@claim("001.18", "verified numerically", "u is the mean of v over [r, t] along the solution of dz/dt = v (eq. 3).")
def definition() -> Sequence[Finding]:
    """By another quadrature along the closed flow."""
    from meanflow_ref import average_velocity

    from . import measure as m

    field, z = m.mixture(), m.grid()
    along = average_velocity(field, z, 0.1, 0.9, method="quadrature", tol=1e-9).value
    middle = field.velocity(z, 0.5)
    return [
        within("quadrature along the flow against scipy's ODE", m.worst(along - m.mixture_by_ode()), 1e-7),
        beyond("v at the fixed state z, mid time", m.worst(middle - m.mixture_by_ode()), 0.5),
    ]


@claim("001.19", "proved", "Derivation in three steps: displacement (eq. 4), product rule, fundamental theorem.")
def derivation() -> Sequence[Finding]:
    """The identity, twice."""
    return theorems("identity", "identity-families")


@claim(
    "001.20",
    "proved",
    "The total derivative by the chain rule, with a term d_r u dr/dt that vanishes.",
    "Not a dot product of velocity and gradient but the Jacobian times v.",
)
def chain_rule() -> Sequence[Finding]:
    """The total derivative; the gradient of a sum is refuted."""
    return theorems("total-derivative", "double-backward")


@claim(
    "001.21",
    "refuted",
    "The integral is gone: a network that satisfies the differential equation has learnt u.",
    "The equation alone is also solved by u + C/(t - r), C constant along the trajectory. What selects u is a bound "
    "(or the value v) at r = t.",
)
def equation_suffices() -> Sequence[Finding]:
    """u + 1/(t - r) on the mixture: residual of the identity, and where its one step ends."""
    import torch

    from meanflow_ref.truth.residuals import identity_residual

    from . import measure as m

    field, z = m.mixture(), m.grid()

    def singular(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return field.average_velocity(z, r, t) + 1 / (t - r)[:, None]

    zero, one = m.times_for(z, 0.0, 1.0)
    residual = identity_residual(singular, field.velocity, z, 0.1, 0.9)
    miss = (z - singular(z, zero, one)) - field.flow_map(z, 1.0, 0.0)
    return [
        within("residual of the identity, C = 1", m.worst(residual), 1e-11),
        beyond("its one-step sample less the true one", float(miss.abs().min()), 0.999),
        theorem("singular-family"),
        theorem("converse"),
    ]


@claim("001.22", "proved", "For a single pair of data and noise both velocities are the same constant.")
def single_pair() -> Sequence[Finding]:
    """The linear path; on any other path it is false."""
    return [theorem("general-path")]


@claim(
    "001.23",
    "verified numerically",
    "The field learnt is v = E[v_t | z_t]; where paths cross it averages, and its trajectories are curved.",
    "In places the conditional velocity is written with the opposite sign.",
)
def crossing_paths() -> Sequence[Finding]:
    """Data on -1 and 1: v against a posterior by hand, and the bend of a trajectory."""
    import numpy as np

    from . import measure as m

    field, z, at = m.two_points(), m.grid(), 0.6
    y = z[:, 0].numpy()
    mean = np.tanh((1 - at) * y / at**2)
    velocity = field.velocity(z, at)[:, 0].numpy()
    start = m.states(0.4)
    middle, end = (field.flow_map(start, 1.0, r) for r in (0.5, 0.0))
    return [
        within("v against (z - tanh((1 - t) z/t^2))/t", m.worst(velocity - (y - mean) / at), 1e-12),
        beyond("one of the two conditional velocities", m.worst((y - 1) / at - velocity), 1.0),
        beyond("distance of a trajectory's middle from its chord", m.worst(middle - (start + end) / 2), 0.05),
    ]


@claim("001.24", "verified numerically", "u is a secant and v a tangent; they differ on curved trajectories.")
def secant_and_tangent() -> Sequence[Finding]:
    """On the mixture, and on a single data point."""
    from . import measure as m

    field, one, z = m.mixture(), m.normal(0.7, 1e-8), m.grid()
    return [
        beyond("u - v on the mixture", m.worst(m.mixture_by_ode() - field.velocity(z, 0.9)), 0.5),
        within(
            "u less the slope of scipy's secant",
            m.worst(m.mixture_by_ode() - (z - field.flow_map(z, 0.9, 0.1)) / 0.8),
            1e-9,
        ),
        within(
            "u - v on (almost) a single point", m.worst(one.average_velocity(z, 0.1, 0.9) - one.velocity(z, 0.9)), 1e-7
        ),
    ]


@claim(
    "001.25",
    "proved",
    "The expected loss with the conditional target may stand for that with the marginal one.",
    "For the gradient, and because of the stop-gradient. Without it an extra term tr(Phi Cov Phi^T) moves the "
    "minimiser.",
)
def conditional_for_marginal() -> Sequence[Finding]:
    """Equal gradients with the stop-gradient, unequal without."""
    return theorems("stop-gradient", "expectation")


@claim("001.26", "verified numerically", "Though a sample's velocity is constant, the JVP of the network is not 0.")
def jvp_is_not_zero() -> Sequence[Finding]:
    """The exact u of the two-point law along one sample's straight line, on which v_t is constant."""
    from . import measure as m

    field, x, eps = m.two_points(), 1.0, -0.4
    first, second = (m.states((1 - at) * x + at * eps) for at in (0.4, 0.7))
    r, t = m.times_for(second, 0.2, 0.7)
    v_t = m.states(eps - x)
    return [
        within("change of v_t along the line", m.worst((second - first) / 0.3 - v_t), 1e-14),
        beyond("du/dt there", m.worst(m.total_derivative(field.average_velocity, v_t, r, t, second)), 0.5),
    ]


@claim(
    "001.27",
    "verified numerically",
    "By the law of large numbers the variance of single samples averages out.",
    "The noise of one target is Phi (v_t - v): where the flow back to data splits modes it is far larger than that of "
    "v_t.",
)
def averaging_out() -> Sequence[Finding]:
    """20 000 conditional targets at one state between two modes (5 standard errors: false alarm 6e-7)."""
    import torch

    from . import measure as m

    field, z, n = m.two_points(), m.states(0.02), 20_000
    r, t = m.times_for(z, 0.25, 0.6)
    each = field.conditional_velocities(z, t)[0]
    targets = torch.stack(
        [v[0] - 0.35 * m.total_derivative(field.average_velocity, v[None], r, t, z)[0, 0] for v in each]
    )
    share = field.responsibilities(z, t)[0]
    drawn = targets[torch.multinomial(share, n, replacement=True, generator=torch.Generator().manual_seed(4))]
    u = float(field.average_velocity(z, r, t))
    variance = float(field.velocity_covariance(z, t))
    inflation = float(drawn.var()) / variance
    return [
        within(
            "mean of the targets less u, in standard errors",
            abs(float(drawn.mean()) - u) / float(drawn.std()) * n**0.5,
            5,
        ),
        within(
            "their variance over Phi^2 Var(v_t | z), less 1",
            abs(inflation / float(field.jacobian(z, r, t)) ** 2 - 1),
            0.05,
        ),
        beyond("their variance over Var(v_t | z)", inflation, 10),
    ]


@claim(
    "001.28",
    "verified numerically",
    "Guidance by training costs one evaluation a sample at inference.",
    "Training pays one or two forward passes more.",
)
def one_evaluation() -> Sequence[Finding]:
    """Calls of a network that counts them."""
    import torch

    from meanflow_ref import Guidance, meanflow_loss, sample

    from . import measure as m

    x, eps, r, t = m.batch(2)
    label = torch.zeros(len(x), dtype=torch.long)

    def calls(guidance: Guidance | None) -> int:
        net = m.Concatenation(2)
        meanflow_loss(net, x, eps, r, t, label=label, guidance=guidance)
        return net.calls

    net = m.Concatenation(2)
    sample(net, eps, label=label)
    plain = calls(None)
    return [
        within("evaluations at inference", net.calls, 1),
        within("more forward passes in training, kappa = 0", calls(Guidance(2.0, null_label=1)) - plain, 1),
        beyond("more forward passes in training, kappa > 0", calls(Guidance(1.0, 0.5, null_label=1)) - plain, 2),
    ]
