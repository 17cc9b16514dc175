"""Document 000: a one-page note with pseudo-code. Its interval is (s, t), its middle time r."""

from __future__ import annotations

from collections.abc import Sequence

from .claim import Finding, beyond, claim, theorem, theorems, within


@claim("000.1", "proved", "States lie on the straight segment from a data point (t = 0) to its noise (t = 1).")
def straight_segment() -> Sequence[Finding]:
    """The path and its derivative."""
    return [theorem("general-path")]


@claim(
    "000.2",
    "refuted",
    "The velocity at a state and a time is the difference of noise and data, constant along the path.",
    "That is the conditional velocity of one pair. The field v(z, t) of the next section is its posterior mean; were "
    "it constant along trajectories, average and instantaneous velocity would coincide and nothing would be left to "
    "learn.",
)
def constant_velocity() -> Sequence[Finding]:
    """The spread of the conditional velocity at one state, and how far v moves along a trajectory."""
    from . import measure as m

    z, field = m.states(0.0), m.normal()
    field_of_one = m.normal(0.7, 1e-7)
    away = m.states(1.5)
    return [
        beyond("variance of eps - x given z = 0, t = 1/2, N(0, 1)", float(field.velocity_covariance(z, 0.5)), 1.99),
        beyond(
            "change of v along the trajectory of the mixture from t = 1 to 0.05",
            m.worst(
                m.mixture().velocity(m.mixture().flow_map(m.grid(), 1.0, 0.05), 0.05)
                - m.mixture().velocity(m.grid(), 1.0)
            ),
            1.0,
        ),
        within(
            "the same with (almost) a single data point, where the claim is right",
            m.worst(
                field_of_one.velocity(field_of_one.flow_map(away, 1.0, 0.05), 0.05) - field_of_one.velocity(away, 1.0)
            ),
            1e-6,
        ),
    ]


@claim(
    "000.3",
    "verified numerically",
    "The average velocity is the integral of v along the trajectory over the interval's length.",
)
def definition_of_average() -> Sequence[Finding]:
    """Closed form against an ODE of scipy's own velocity."""
    from . import measure as m

    field, z = m.mixture(), m.grid()
    return [
        within("closed u against scipy's ODE", m.worst(field.average_velocity(z, 0.1, 0.9) - m.mixture_by_ode()), 1e-9),
        beyond("v in its place", m.worst(field.velocity(z, 0.9) - m.mixture_by_ode()), 0.5),
    ]


@claim(
    "000.4",
    "proved",
    "The displacement over [s, t] is the sum of those over [s, r] and [r, t], for a time r between.",
    "More is true: r may be any time, inside the interval or not.",
)
def consistency() -> Sequence[Finding]:
    """The theorem, and the residual at a middle time outside the interval."""
    from meanflow_ref.truth.residuals import consistency_residual

    from . import measure as m

    field, z = m.mixture(), m.grid()
    outside = consistency_residual(field.average_velocity, z, 0.3, 0.95, 0.7)
    mixed = consistency_residual(lambda z, r, t: field.velocity(z, t), z, 0.3, 0.5, 0.7)
    return [
        theorem("consistency"),
        within("residual with the middle time outside", m.worst(outside), 1e-12),
        beyond("residual of v in the place of u", m.worst(mixed), 0.01),
    ]


@claim(
    "000.5",
    "verified numerically",
    "One evaluation of u at pure noise decodes data.",
    "A sample of the data law, that is; not the data point with which the noise was paired.",
)
def one_step_from_noise() -> Sequence[Finding]:
    """The distribution function of data at the sample is that of noise at the noise."""
    import numpy as np
    import torch
    from scipy.stats import norm

    from . import measure as m

    field, z = m.mixture(), m.grid()
    sample = (z - field.average_velocity(z, 0.0, 1.0))[:, 0].numpy()
    level = sum(w * norm.cdf(sample, mean, std) for w, mean, std in m.MODES)
    x, eps = field.sample_pair(4096, torch.Generator().manual_seed(3))
    decoded = eps - field.average_velocity(eps, 0.0, 1.0)
    return [
        within("F_data(sample) against F_noise(noise)", m.worst(np.asarray(level - norm.cdf(z[:, 0].numpy()))), 1e-12),
        beyond("mean distance from the paired data point", float((decoded - x).abs().mean()), 1.0),
    ]


@claim("000.6", "proved", "As s tends to t the average velocity tends to v(x_t, t).")
def boundary() -> Sequence[Finding]:
    """The limit."""
    return [theorem("limit")]


@claim(
    "000.7",
    "proved",
    "Multiplying by the interval and differentiating in t gives u = v - (t - s) du/dt.",
    "Tacit: s is held still, and v is continuous along the trajectory.",
)
def identity() -> Sequence[Finding]:
    """The identity."""
    return theorems("identity", "identity-families")


@claim(
    "000.8",
    "proved",
    "du/dt is the Jacobian of u in (x, s, t) times the vector (v, 0, 1).",
    "The best written of the five.",
)
def total_derivative() -> Sequence[Finding]:
    """The chain rule."""
    return theorems("total-derivative", "total-derivative-limit")


@claim(
    "000.9",
    "refuted",
    "Training pseudo-code: a JVP with the tangent (v_t, 0, 1) written in bare numbers, times (t - s), behind a detach.",
    "As PyTorch it does not run: tangents must be tensors. Repaired it gives the right target. It has neither the "
    "share of r = t, nor a weight, nor a shape for t - s.",
)
def pseudo_code() -> Sequence[Finding]:
    """Our own call with bare numbers, and the repaired one."""
    import torch

    from . import measure as m

    net, (z, v, r, t) = m.Concatenation(3), m.batch(3, n=5)
    bare = m.raised(lambda: torch.func.jvp(net, (z, r, t), (v, 0, 1)), "to only contain Tensors")
    du_dt = m.total_derivative(net, v, r, t, z)
    shapeless = m.raised(lambda: (t - r) * du_dt, "must match the size")
    h = 1e-3
    moved = [net(z + k * h * v, r, t + k * h) for k in (-2, -1, 1, 2)]
    quotient = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * h)
    return [
        beyond("RuntimeErrors for the numbers 0 and 1 as tangents", bare, 1),
        beyond("RuntimeErrors for (t - s) of shape (5,) times (5, 3)", shapeless, 1),
        within("zeros and ones as tensors: du/dt against a difference quotient", m.worst(du_dt - quotient), 1e-8),
    ]


@claim("000.10", "verified numerically", "Sampling pseudo-code: noise less the network's answer at (noise, 0, 1).")
def sampling() -> Sequence[Finding]:
    """One step with the exact u against an ODE."""
    import torch

    from . import measure as m

    field, z = m.mixture(), m.states(-1.2, -0.4, 0.3, 1.1)
    # The posterior mean divides by t: the ODE stops a little above 0 and the closed flow does so too.
    end = m.flow(m.posterior_velocity, z[:, 0].numpy(), 1.0, 1e-3)
    u, full = field.average_velocity(z, 1e-3, 1.0), field.average_velocity(z, 0.0, 1.0)
    return [
        within(
            "z - (t - r) u against scipy's ODE, r = 1e-3", m.worst((z - 0.999 * u)[:, 0] - torch.from_numpy(end)), 1e-9
        ),
        within("and its last stretch to r = 0", m.worst((z - full) - (z - 0.999 * u)), 0.01),
        beyond("with the sign of u turned", m.worst((z + full) - (z - full)), 1.0),
    ]


@claim(
    "000.11",
    "verified numerically",
    "Obtaining the average velocity by integrating v directly is expensive.",
    "Counted in evaluations, not seconds. The integral also asks for the marginal v, which training does not have.",
)
def integration_is_expensive() -> Sequence[Finding]:
    """Evaluations of the velocity by the ODE, and of the network by the identity."""
    from meanflow_ref import average_velocity, meanflow_loss

    from . import measure as m

    net, (x, eps, r, t) = m.Concatenation(1), m.batch(1)
    meanflow_loss(net, x, eps, r, t)
    count = average_velocity(m.mixture(), m.grid(5), 0.0, 1.0, method="ode", tol=1e-4).evaluations
    return [
        within("evaluations of the network for one target", net.calls, 1),
        beyond("evaluations of v for one integral to 1e-4", count, 20),
    ]
