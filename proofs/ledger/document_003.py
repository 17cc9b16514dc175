"""Document 003: a technical specification with listings. Its time runs from noise (0) to data (1), v = data - noise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

import sympy as sp

from meanflow_ref import formulas
from meanflow_ref.sources import PAPERS

from ..notation import D, t, tau
from .claim import Finding, beyond, claim, false_step, quoted, step, theorem, theorems, within
from .paper import AFFILIATIONS, CIFAR, MANY_STEPS, ONE_STEP, RATIO, TIME_LAW, WEIGHT_POWER, spread


@claim(
    "003.1",
    "refuted",
    "The authors belong to Facebook AI Research.",
    "Carnegie Mellon University and the Massachusetts Institute of Technology, as printed under the paper's title.",
)
def affiliation() -> Sequence[Finding]:
    """The paper's affiliations; its last author is the one whom the document names."""
    return [
        quoted(
            "affiliations under the title that the document does not name",
            len(AFFILIATIONS - {"Facebook AI Research"}),
            2,
        ),
        quoted("those that it names", len(AFFILIATIONS & {"Facebook AI Research"}), 0, "<="),
        quoted("the author whom it names is the last one (1: yes)", float(PAPERS["mf"].authors.endswith("He")), 1),
    ]


@claim(
    "003.2",
    "refuted",
    "Consistency models need distillation in stages; flow matching needs 20 steps or more.",
    "iCT, ECT and sCT train without a teacher. How many Euler steps are enough depends on the data: one, for a single "
    "point.",
)
def rivals() -> Sequence[Finding]:
    """Teacher-free rivals in Table 3, and one Euler step to a single point."""
    from . import measure as m

    field, z = m.mixture(), m.grid()
    one_step = {name: CIFAR[name] for name in ("iCT", "ECT", "sCT")}
    # v at noise is z - E[x]: a single Euler step ends at the mean of the data.
    return [
        quoted("consistency models without a teacher in Table 3", len(one_step), 3),
        quoted("the worst of them in one step, FID on CIFAR-10", max(one_step.values()), 3.6, "<="),
        within(
            "one Euler step, data a single point",
            m.worst(z - m.normal(0.7, 1e-9).velocity(z, 1.0) - 0.7),
            1e-8,
        ),
        beyond(
            "one Euler step, data the mixture", m.worst(z - field.velocity(z, 1.0) - field.flow_map(z, 1.0, 0.0)), 1.0
        ),
    ]


@claim(
    "003.3",
    "proved",
    "Noise is x_0, data x_1: time runs from noise to data.",
    "The reverse of the paper and of the other documents; consistent if carried through.",
)
def reversed_time() -> Sequence[Finding]:
    """Turning time round."""
    return [theorem("reversed-time")]


@claim("003.4", "verified numerically", "u is the mean of v over [r, t].", "The same integral whichever way time runs.")
def definition() -> Sequence[Finding]:
    """The reversed average velocity against scipy's ODE of the reversed field."""
    import torch

    from meanflow_ref import Convention

    from . import measure as m

    field, z = m.mixture(), m.grid()
    y = z[:, 0].numpy()
    start = m.flow(lambda state, at: -m.posterior_velocity(state, 1 - at), y, 0.3, 0.8)
    # The trajectory through z at 0.3 is at `start` at 0.8; u belongs to the later state.
    mean = torch.from_numpy((start - y) / 0.5)[:, None]
    u = Convention(time="data_at_one").express(field.average_velocity)
    later = torch.from_numpy(start)[:, None]
    low, high = m.times_for(later, 0.3, 0.8)
    return [
        within("reversed u against scipy's ODE", m.worst(u(later, low, high) - mean), 1e-8),
        beyond("with the sign kept", m.worst(-u(later, low, high) - mean), 1.0),
    ]


@claim("003.5", "proved", "v - u = (t - r)(d_t u + grad_z u . v), in three steps.")
def identity() -> Sequence[Finding]:
    """The identity and its total derivative."""
    return theorems("identity", "total-derivative")


@claim(
    "003.6",
    "refuted",
    "The identity is exact, with no approximation and no assumption.",
    "It assumes a marginal v that determines its trajectories (Lipschitz in z) and is continuous along them, and r "
    "held still.",
)
def no_assumptions() -> Sequence[Finding]:
    """v = 2 sqrt|z|: two trajectories through one state. And r that moves with t."""
    c, zero = sp.Integer(1), sp.Integer(0)
    # Both solve dz/dt = 2 sqrt|z| on [0, 1] and are 0 at t = 1: 0, and -(1 - t)^2 with slope 2 (1 - t).
    second = -((c - tau) ** 2)
    averages = [
        formulas.average_velocity(state.subs(tau, 1) - state.subs(tau, 0), 0, 1) for state in (zero * tau, second)
    ]
    x, moving = sp.Function("x"), t / 2
    u = formulas.average_velocity(x(t) - x(moving), moving, t)
    return [
        step("the second one moves at 2 (1 - t)", D(second, tau), 2 * (c - tau)),
        step("which is 2 sqrt|z| while t < 1", (2 * (c - tau)) ** 2, -4 * second),
        beyond("u(0, 0, 1) along the one less along the other", abs(float(averages[1] - averages[0])), 1),
        false_step("the identity for r = t/2", u, formulas.meanflow_target(D(x(t), t), D(u, t), moving, t)),
        theorem("identity"),
    ]


@claim(
    "003.7",
    "proved",
    "The target v_t - (t - r)(d_t u + grad_z u . v_t).",
    "The formula is right; its listings are not (003.11, 003.16).",
)
def target() -> Sequence[Finding]:
    """The target in expectation."""
    return [theorem("expectation")]


@claim(
    "003.8",
    "refuted",
    "The loss is an expectation over r < t, and its minimum is the average velocity.",
    "Without rows r = t nothing anchors the boundary: u + C/(t - r) has the same loss.",
)
def strict_interval() -> Sequence[Finding]:
    """Loss of u and of u + 1/(t - r) with the marginal v, and their distance."""
    import torch

    from meanflow_ref.objectives.meanflow import meanflow_loss_at

    from . import measure as m

    field = m.normal(0.4, 0.5)
    z, low, high = m.spread_out(field)
    low = torch.minimum(low, high - 0.05)

    def singular(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return field.average_velocity(z, r, t) + 1 / (t - r)[:, None]

    v = field.velocity(z, high)
    right, wrong = (
        float(meanflow_loss_at(net, z, v, low, high, weight_power=0.0).loss)
        for net in (field.average_velocity, singular)
    )
    return [
        within("loss of u", right, 1e-22),
        within("loss of u + 1/(t - r)", wrong, 1e-22),
        beyond(
            "least distance of the two", float((singular(z, low, high) - field.average_velocity(z, low, high)).min()), 1
        ),
        theorem("singular-family"),
    ]


@claim("003.9", "proved", "On the straight path from noise to data v_t = x_1 - x_0.")
def velocity_of_pair() -> Sequence[Finding]:
    """The derivative of the path in this direction."""
    x_0, x_1 = sp.symbols("x_0 x_1", real=True)
    path = formulas.interpolant(x_0, x_1, 1 - t, t)
    return [step("its derivative", D(path, t), x_1 - x_0), false_step("the other sign", D(path, t), x_0 - x_1)]


@claim(
    "003.10",
    "verified numerically",
    "A stop-gradient is the identity forwards and 0 backwards, so one update is supervised learning.",
    "One update, yes. From update to update the target moves: a fixed-point iteration, not descent on one loss.",
)
def stop_gradient() -> Sequence[Finding]:
    """Gradient against the VJP of u alone; how far the target moves in one update."""
    import torch

    from meanflow_ref import meanflow_loss

    from . import measure as m

    net, (x, eps, low, high) = m.Concatenation(2), m.batch(2)
    before = meanflow_loss(net, x, eps, low, high, weight_power=0.0)
    step_size = 0.05
    grads = torch.autograd.grad(before.loss, list(net.parameters()))
    with torch.no_grad():
        for parameter, g in zip(net.parameters(), grads, strict=True):
            parameter.sub_(step_size * g)
    after = meanflow_loss(net, x, eps, low, high, weight_power=0.0)
    return [
        within("gradient against the VJP of u alone, relative", m.leaks()[0], 1e-12),
        beyond("move of the target in one update", m.worst(after.target - before.target), 1e-3),
    ]


@claim(
    "003.11",
    "refuted",
    "Listing of section 3.4: the time derivative by one backward pass from ones, a JVP for z, then loss.backward().",
    "Run as our own version of the same mistakes. The backward pass adds the components of d_t u into one number a "
    "row; its shape (B,) does not multiply (B, d) unless B = d, when it does so silently and wrongly; and it frees "
    "the graph that loss.backward() needs. The listing also uses a module that it does not import. One JVP along (v, "
    "0, 1) does the whole.",
)
def listing_with_autograd() -> Sequence[Finding]:
    """Each mistake by itself, and the JVP that avoids them."""
    import torch

    from . import measure as m
    from . import mistakes

    findings = []
    for dim in (1, 2, 8):
        net, (z, v, low, high) = m.Concatenation(dim), m.batch(dim)
        clock = high.clone().requires_grad_()
        summed = mistakes.summed_time_derivative(net(z, low, clock), clock)[:, None]
        exact = m.jvp(lambda at, net=net, z=z, low=low: net(z, low, at), (high,), (torch.ones_like(high),))
        error = m.relative(summed.expand_as(exact), exact)
        text = f"time derivative, d = {dim}: relative error"
        findings.append(within(text, error, 1e-13) if dim == 1 else beyond(text, error, 0.9))
    net, (z, v, low, high) = m.Concatenation(2), m.batch(2)
    square, (zs, vs, lows, highs) = m.Concatenation(4), m.batch(4, n=4)
    clock = highs.clone().requires_grad_()
    in_time = mistakes.summed_time_derivative(square(zs, lows, clock), clock)
    still = torch.zeros_like(highs)
    in_space = m.jvp(square, (zs, lows, highs), (vs, still, still))
    silent = (highs - lows) * (in_time + in_space)
    right = (highs - lows)[:, None] * m.total_derivative(square, vs, lows, highs, zs)
    refused = m.raised(lambda: (high - low) * m.total_derivative(net, v, low, high, z), "must match the size")
    freed = m.raised(
        lambda: torch.autograd.backward(mistakes.loss_on_a_freed_graph(net, z, low, high, v)), "a second time"
    )
    quotient = m.difference_quotient(lambda h: net(z + h * v, low, high + h), 0.0)
    return [
        *findings,
        beyond("RuntimeErrors of (t - r) (B,) times (B, d), B = 16, d = 2", refused, 1),
        beyond(
            "correction (t - r) du/dt for B = d = 4, without an exception: relative error",
            m.relative(silent, right),
            0.5,
        ),
        beyond("RuntimeErrors of backward() on the freed graph", freed, 1),
        within(
            "one JVP along (v, 0, 1) against a difference quotient",
            m.worst(m.total_derivative(net, v, low, high, z) - quotient),
            1e-9,
        ),
    ]


def _two_maps(mean: float, std: float, steps: int = 1) -> tuple[float, float, float]:
    """Gain of the wrong sampler on normal data, its constant, and the error of the right sampler."""
    from meanflow_ref import Convention

    from . import measure as m
    from . import mistakes

    field, z = m.normal(mean, std), m.states(0.0, 1.0)
    u = Convention(time="data_at_one").express(field.average_velocity)
    wrong = mistakes.read_at_the_start(u, z, steps)
    right = mistakes.read_at_the_end(u, z, steps)
    return float(wrong[1] - wrong[0]), float(wrong[0]), m.worst(right - (mean + std * z))


@claim(
    "003.12",
    "refuted",
    "One step of sampling is z_1 = z_0 + u(z_0, 0, 1), time running from noise to data.",
    "The u that was trained belongs to the state at the later time, here the data; the rule hands it the noise. For "
    "N(0, 1) to N(m, s^2) the rule gives (2 - 1/s) z + m/s where s z + m is right. With s = 1/2 all samples "
    "collapse to one point, and with s = 1, a mere shift, nothing shows. Right is z_0 + u(z_0, 1, 0).",
)
def wrong_time_anchor() -> Sequence[Finding]:
    """The exact u of normal data in this direction, read at either end."""
    gain, constant, right = _two_maps(1.0, 0.5)
    wide, _, _ = _two_maps(0.0, 2.0)
    shift = _two_maps(3.0, 1.0)
    return [
        beyond("s = 1/2, m = 1: true gain 1/2 less the rule's", 0.5 - gain, 0.4999),
        within("the rule's gain there: a point", abs(gain), 1e-12),
        within("the rule's constant less m/s", abs(constant - 2.0), 1e-12),
        within("s = 2: the rule's gain less (2 - 1/s)", abs(wide - 1.5), 1e-12),
        within("the right end: error of the sample", right, 1e-12),
        within("s = 1, m = 3, where the mistake is hidden", abs(shift[0] - 1) + abs(shift[1] - 3), 1e-12),
        theorem("wrong-end"),
    ]


@claim(
    "003.13",
    "verified numerically",
    "Training: t uniform, r = t times a uniform number, straight path, target, mean squared error.",
    "Admissible. But the law of (r, t) has density 1/t: neither uniform on r < t nor the sorted pair of the paper.",
)
def time_sampling() -> Sequence[Finding]:
    """Kolmogorov-Smirnov distance of r = t U to two laws, times sqrt(n) (above 2.3 with probability 5e-5)."""
    import torch

    from . import measure as m

    n = 20_000
    draws = torch.rand(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    start = (draws[0] * draws[1]).sort().values
    ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n

    def distance(cdf: torch.Tensor) -> float:
        return m.worst(cdf - ranks) * sqrt(n)

    return [
        within("r against x (1 - log x), the law of density 1/t", distance(start * (1 - start.log())), 2.3),
        beyond("r against the smaller of two uniform draws", distance(1 - (1 - start) ** 2), 10),
    ]


@claim(
    "003.14",
    "refuted",
    "The sampling procedure: draw z_0, one evaluation at (z_0, 0, 1), add.",
    "The rule of 003.12. More steps hide the mistake: N(0, 1) to N(0, 1/4), where the true gain is 1/2.",
)
def sampling_procedure() -> Sequence[Finding]:
    """Gain of the samples by number of steps, beside a recurrence in plain numbers."""
    findings = []
    for steps in (1, 2, 4, 16, 256):
        gain, _, right = _two_maps(0.0, 0.5, steps)
        widths = [((1 - i / steps) ** 2 + (i / steps) ** 2 / 4) ** 0.5 for i in range(steps + 1)]
        product = 1.0
        for a, b in pairwise(widths):
            product *= 2 - a / b
        findings += [
            beyond(f"T = {steps}: true gain less the rule's", 0.5 - gain, 0.4 / steps),
            within(f"T = {steps}: the rule's gain less the product's, {product:.3f}", abs(gain - product), 1e-12),
            within(f"T = {steps}: error of the right rule", right, 1e-12),
        ]
    return findings


@claim(
    "003.15",
    "verified numerically",
    "The model: a perceptron on z, r and t in a row.",
    "Sound. The order z, r, t must be the one of the loss.",
)
def model() -> Sequence[Finding]:
    """The loss's du/dt through such a network against a difference quotient, in the right and the wrong order."""
    import torch

    from meanflow_ref import Convention, meanflow_loss

    from . import measure as m

    net, (x, eps, low, high) = m.Concatenation(2), m.batch(2)

    def observed(order: str) -> torch.Tensor:
        return meanflow_loss(net, x, eps, low, high, convention=Convention(order)).du_dt

    z, v = (1 - high[:, None]) * x + high[:, None] * eps, eps - x
    quotient = m.difference_quotient(lambda h: net(z + h * v, low, high + h), 0.0)
    return [
        within("du/dt in the order z, r, t", m.worst(observed("z, r, t") - quotient), 1e-8),
        beyond("in the order z, t, r", m.worst(observed("z, t, r") - quotient), 0.05),
    ]


@claim(
    "003.16",
    "refuted",
    "The function for the target: time derivative and z-gradient of the sum of u, the latter times v entry by entry.",
    "Run as our own version of the same mistake. (J^T 1) * v is not J v, and the sum of the components of d_t u is not "
    "d_t u. Both agree for d = 1, where such code is often tried.",
)
def target_by_sums() -> Sequence[Finding]:
    """Relative errors by dimension, on a seeded network; and the target at an exact u."""
    import torch

    from . import measure as m
    from . import mistakes

    findings = []
    for dim in (1, 2, 8):
        net, (z, v, low, high) = m.Concatenation(dim), m.batch(dim, n=64)
        right = m.total_derivative(net, v, low, high, z)
        wrong = mistakes.summed_derivative(net, z, low, high, v)
        error = m.relative(wrong, right)
        cosine = float(torch.nn.functional.cosine_similarity(wrong.flatten(), right.flatten(), 0).detach())
        in_space = m.relative(
            mistakes.summed_jacobian_product(net, z, low, high, v), m.total_derivative(net, v, low, high, z, dt=0.0)
        )
        named = {"(J^T 1) * v for J v": in_space, "both sums for du/dt": error, "one less its cosine": 1 - cosine}
        for name, value in named.items():
            text = f"d = {dim}, {name}" + (": relative error" if "for" in name else "")
            findings.append(within(text, value, 1e-13) if dim == 1 else beyond(text, value, 0.5))
    field = m.spiral()
    z, low, high = m.spread_out(field)
    v = field.velocity(z, high)
    u, gap = field.average_velocity(z, low, high), (high - low)[:, None]
    target = v - gap * mistakes.summed_derivative(field.average_velocity, z, low, high, v)
    right = v - gap * m.total_derivative(field.average_velocity, v, low, high, z)
    return [
        *findings,
        beyond("target at the exact u of the spiral, d = 3, less u", m.worst(target - u), 1.0),
        within("the right target there", m.worst(right - u), 1e-12),
        theorem("double-backward"),
    ]


@claim(
    "003.17",
    "verified numerically",
    "One training step: the mean of all squared entries, then an optimiser.",
    "The mean over the d components divides the paper's sum by d: harmless alone, but it rescales c of an adaptive "
    "weight.",
)
def mean_squared_error() -> Sequence[Finding]:
    """Sum over mean of the squared error, and the two weights."""
    from meanflow_ref import meanflow_loss

    from . import measure as m

    net, data = m.Concatenation(8), m.batch(8)
    total, mean = (meanflow_loss(net, *data, weight_power=1.0, weight_eps=1.0, norm=norm) for norm in ("sum", "mean"))
    return [
        within("sum over mean, less d = 8", m.worst(total.squared_error / mean.squared_error - 8), 1e-12),
        beyond(
            "ratio of the weights at c = 1, p = 1, its distance from 1/8",
            m.worst(total.weight / mean.weight - 1 / 8),
            0.05,
        ),
    ]


@claim(
    "003.18",
    "refuted",
    "A toy run (two Gaussians at +-3 in the plane) that is to give samples of the data.",
    "Judged at the optimum, so that no training is to blame: even the exact u, read as the listing does, gives another "
    "law. Training itself is not repeated here.",
)
def toy_run() -> Sequence[Finding]:
    """Along the diagonal the data are two unit normals at +-3 sqrt(2): law of the samples on 2000 quantiles."""
    import torch
    from scipy.stats import norm

    from meanflow_ref import Convention, GaussianMixture

    from . import measure as m
    from . import mistakes

    centre = 3 * 2**0.5
    field = GaussianMixture(m.vector(0.5, 0.5), m.vector(-centre, centre), m.vector(1.0, 1.0))
    level = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    z = torch.from_numpy(norm.ppf(level.numpy()))[:, None]
    u = Convention(time="data_at_one").express(field.average_velocity)
    right, wrong = mistakes.read_at_the_end(u, z), mistakes.read_at_the_start(u, z)
    cdf = 0.5 * (norm.cdf(right[:, 0].numpy(), -centre) + norm.cdf(right[:, 0].numpy(), centre))
    w2 = float((wrong.sort(0).values - right.sort(0).values).pow(2).mean().sqrt())
    return [
        beyond("Wasserstein distance of the samples from the data, along the diagonal", w2, 1.0),
        beyond("deviation of the data less that of the samples", float(right.std() - wrong.std()), 0.5),
        within(
            "the right end: data's distribution function at the samples", m.worst(torch.from_numpy(cdf) - level), 1e-10
        ),
    ]


@claim(
    "003.19",
    "refuted",
    "Training is stable, the loss smooth, its optimum unique.",
    "Not unique (003.8). Nor does a lower loss mean a better field: with v_t and no stop-gradient a wrong u has a "
    "lower one than the truth. Stability is a matter of runs and is not settled here.",
)
def unique_optimum() -> Sequence[Finding]:
    """Normal data, r = 0, t = 1: the loss without a stop-gradient of a times the exact u (5 errors: 6e-7)."""
    import torch

    from . import measure as m

    field, z = m.normal(0.0, 0.5), m.states(1.0)
    gain, slope = float(field.velocity(z, 1.0)), float(field.average_velocity(z, 0.0, 1.0))
    spread_of_v = float(field.velocity_covariance(z, 1.0))
    # At t = 1 z is standard normal and v_t = gain z + xi. The residual of a u is a w - v_t, w = gain z + slope xi
    # (w is u + du/dt along v_t, and equals v for xi = 0 by the identity).
    w_v, w_w = gain**2 + slope * spread_of_v, gain**2 + slope**2 * spread_of_v
    best = w_v / w_w

    def value(a: float) -> float:
        return gain**2 + spread_of_v - 2 * a * w_v + a * a * w_w

    n = 40_000
    x, eps = field.sample_pair(n, torch.Generator().manual_seed(10))
    low, high = m.times_for(x, 0.0, 1.0)
    w = field.average_velocity(eps, low, high) + m.total_derivative(field.average_velocity, eps - x, low, high, eps)
    sampled = (best * w - (eps - x)) ** 2
    off = abs(float(sampled.mean()) - value(best)) / float(sampled.std()) * sqrt(n)
    return [
        within("sampled loss at the minimiser less its moments', in standard errors", off, 5),
        beyond("minimiser of the loss without a stop-gradient, less 1", best - 1, 0.05),
        beyond("loss of the truth over the loss there, less 1", value(1.0) / value(best) - 1, 0.05),
        within(
            "loss of the truth less (1 - slope)^2 Var(v_t | z)", abs(value(1.0) - (1 - slope) ** 2 * spread_of_v), 1e-14
        ),
        theorem("singular-family"),
        theorem("stop-gradient"),
    ]


@claim(
    "003.20",
    "refuted",
    "Guidance can be embedded directly, without a change of structure.",
    "The network needs a class input with a null class, and the guided target in training, whose scale it then keeps. "
    "Guiding the outputs of an unguided u at sampling is another map.",
)
def direct_guidance() -> Sequence[Finding]:
    """omega u_c + (1 - omega) u_0 against the guided field's own average velocity, one step."""
    import torch

    from meanflow_ref.fields import LinearGaussianGuided

    from . import measure as m

    z, omega = m.grid(), 2.0
    guided, conditional = (LinearGaussianGuided(0.8, 1.0, 0.3, scale) for scale in (omega, 1.0))
    whole = m.normal(0.0, 1.3**0.5)
    mixed = formulas.guided_velocity(
        conditional.average_velocity(z, 0.0, 1.0), whole.average_velocity(z, 0.0, 1.0), omega
    )
    end = torch.from_numpy(m.flow(m.field_velocity(guided), z[:, 0].numpy(), 1.0, 0.0))[:, None]
    return [
        beyond("guided outputs, one step, against scipy's ODE of the guided field", m.worst(z - mixed - end), 0.3),
        within("the guided field's own u", m.worst(z - guided.average_velocity(z, 0.0, 1.0) - end), 1e-9),
        theorem("guided-average"),
    ]


@claim(
    "003.21",
    "refuted",
    "No heuristics and no curriculum.",
    "The paper chooses the share of r = t, the law of the times and the weight by trial, and FID depends on them.",
)
def no_heuristics() -> Sequence[Finding]:
    """Spread of FID over the paper's ablations of what is chosen by trial."""
    return [
        quoted("share of r < t, Table 1a: worst less best FID", spread(RATIO), 260),
        quoted("weight power, Table 1e", spread(WEIGHT_POWER), 18),
        quoted("law of the times, Table 1d", spread(TIME_LAW), 4),
        quoted(
            "best of the three tables less the default run, 61.06",
            max(map(min, (RATIO.values(), WEIGHT_POWER.values(), TIME_LAW.values()))) - 61.06,
            0,
            "<=",
        ),
    ]


@claim(
    "003.22",
    "out of reach",
    "A table of rivals and a list of uses (images, video, audio, proteins, devices), at nearly the quality of many "
    "steps.",
    "No figures are given. Training runs of the named rivals in each field, at equal cost, would settle it. What the "
    "paper reports for ImageNet is checked here: close to many steps, not equal.",
)
def uses() -> Sequence[Finding]:
    """One step against many on ImageNet 256, as reported."""
    return [
        quoted("FID in one step less the best of 250", ONE_STEP["MeanFlow-XL/2"] - min(MANY_STEPS.values()), 1.3),
        quoted(
            "FID of MeanFlow less that of the other one-step models",
            ONE_STEP["MeanFlow-XL/2"] - min(v for k, v in ONE_STEP.items() if k != "MeanFlow-XL/2"),
            -7,
            "<=",
        ),
    ]
