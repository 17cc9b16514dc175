"""Every equation of MeanFlow, once, in plain arithmetic.

The functions use only ``+ - * / **``, so they run on sympy expressions, ``fractions.Fraction``, numpy, torch and jax
arrays and balls alike. The shipped loss, the proofs and the tests call these same lines. Nothing is imported here.

Broadcasting is the caller's: where ``z`` has shape ``(B, *event)``, pass ``r`` and ``t`` as ``(B, 1, ..., 1)``.
Letters are the paper's: ``x`` data, ``eps`` noise, ``z`` state, ``r <= t`` times (t = 1 is noise), ``v`` instantaneous
and ``u`` average velocity, ``omega`` and ``kappa`` guidance scales. Each docstring names its equation by an id of
:mod:`meanflow_ref.sources`.
"""

# Plain arithmetic has no common static type across sympy, Fraction and arrays: `Any` is the honest annotation.
from typing import Any

# ---------------------------------------------------------------- paths


def interpolant(x: Any, eps: Any, alpha: Any, sigma: Any) -> Any:
    """State on the conditional path, ``z_t = alpha x + sigma eps``. Source: fm:path."""
    return alpha * x + sigma * eps


def conditional_velocity(x: Any, eps: Any, alpha_dot: Any, sigma_dot: Any) -> Any:
    """Velocity of the conditional path, ``v_t = alpha' x + sigma' eps``. Source: fm:conditional-velocity."""
    return alpha_dot * x + sigma_dot * eps


# ---------------------------------------------------------------- average velocity


def average_velocity(displacement: Any, r: Any, t: Any) -> Any:
    """Average velocity from the displacement ``z_t - z_r``; singular at r = t. Source: mf:3."""
    return displacement / (t - r)


def displacement(u: Any, r: Any, t: Any) -> Any:
    """Displacement ``z_t - z_r = (t - r) u``. Source: mf:4."""
    return (t - r) * u


def step(z: Any, u: Any, r: Any, t: Any) -> Any:
    """State at ``r`` reached from ``z`` at ``t`` in one step, ``z_r = z_t - (t - r) u(z_t, r, t)``. Source: mf:12."""
    return z - (t - r) * u


def total_derivative(dz_u: Any, dr_u: Any, dt_u: Any, dz_dt: Any, dr_dt: Any, dt_dt: Any) -> Any:
    """Chain rule for one state dimension, ``dz_u dz/dt + dr_u dr/dt + dt_u dt/dt``. Source: mf:7, mf:8.

    With the tangent ``(v, 0, 1)`` this is ``v dz_u + dt_u``.
    """
    return dz_u * dz_dt + dr_u * dr_dt + dt_u * dt_dt


def meanflow_target(v: Any, du_dt: Any, r: Any, t: Any) -> Any:
    """Right-hand side of the MeanFlow identity, ``v - (t - r) du/dt``. Source: mf:6, mf:10, mf:11."""
    return v - (t - r) * du_dt


def identity_residual(u: Any, v: Any, du_dt: Any, r: Any, t: Any) -> Any:
    """Residual ``u - [v - (t - r) du/dt]`` of the MeanFlow identity. Source: mf:6."""
    return u - meanflow_target(v, du_dt, r, t)


def improved_velocity(u: Any, du_dt: Any, r: Any, t: Any) -> Any:
    """Velocity implied by an average velocity, ``V = u + (t - r) du/dt``. Source: imf:velocity."""
    return u + (t - r) * du_dt


def consistency_residual(u_rt: Any, u_rs: Any, u_st: Any, r: Any, s: Any, t: Any) -> Any:
    """Residual of ``(t-r) u(z_t,r,t) = (s-r) u(z_s,r,s) + (t-s) u(z_t,s,t)``, for any s. Source: mf:consistency."""
    return (t - r) * u_rt - (s - r) * u_rs - (t - s) * u_st


def lagrangian_residual(u: Any, v_r: Any, dr_u: Any, r: Any, t: Any) -> Any:
    """Residual ``u - [v(z_r, r) + (t - r) d_r u]`` of the identity in the other end. Source: fmm:lagrangian."""
    return u - v_r - (t - r) * dr_u


def discrete_target(v_mean: Any, u_next: Any, u: Any, r: Any, t: Any, t_next: Any) -> Any:
    """Average velocity over [r, t] from finite differences, ``v_mean - (t_next - r)(u_next - u)/(t_next - t)``.

    Exact when ``v_mean`` is the mean velocity over ``[t, t_next]``. Source: alphaflow:discrete.
    """
    return v_mean - (t_next - r) * (u_next - u) / (t_next - t)


# ---------------------------------------------------------------- loss


def adaptive_weight(squared_error: Any, power: Any, eps: Any) -> Any:
    """Weight ``(|Delta|^2 + c)^(-p)`` of a sample, always used behind a stop-gradient. Source: mf:22."""
    return (squared_error + eps) ** (-power)


# ---------------------------------------------------------------- guidance


def guided_velocity(v_cond: Any, v_uncond: Any, omega: Any) -> Any:
    """Classifier-free guided field, ``omega v(.|c) + (1 - omega) v(.)``. Source: mf:13."""
    return omega * v_cond + (1 - omega) * v_uncond


def guided_sample_velocity(v: Any, u_cond: Any, u_uncond: Any, omega: Any, kappa: Any) -> Any:
    """Guided conditional velocity, ``omega v_t + kappa u(z,t,t|c) + (1 - omega - kappa) u(z,t,t)``.

    ``kappa = 0`` is equation 19. Source: mf:19, mf:21.
    """
    return omega * v + kappa * u_cond + (1 - omega - kappa) * u_uncond


def effective_guidance(omega: Any, kappa: Any) -> Any:
    """Scale of the field at the fixed point, ``omega' = omega / (1 - kappa)``, for kappa < 1. Source: mf:20."""
    return omega / (1 - kappa)


# ---------------------------------------------------------------- closed forms


def gaussian_variance(s: Any, alpha: Any, sigma: Any) -> Any:
    """Variance of ``z_t`` along an axis where the data have variance ``s``. Source: ref:gaussian."""
    return alpha * alpha * s + sigma * sigma


def gaussian_velocity_gain(s: Any, alpha: Any, sigma: Any, alpha_dot: Any, sigma_sigma_dot: Any) -> Any:
    """Gain ``(alpha alpha' s + sigma sigma') / (alpha^2 s + sigma^2)`` of ``v`` on ``z - alpha m``.

    ``v = alpha' m + gain (z - alpha m)`` along an axis of variance ``s``. Source: ref:gaussian.
    """
    return (alpha * alpha_dot * s + sigma_sigma_dot) / gaussian_variance(s, alpha, sigma)


def gaussian_average_gain(
    s: Any,
    alpha_r: Any,
    alpha_t: Any,
    sigma_r: Any,
    sigma_t: Any,
    dd_alpha: Any,
    dd_sigma: Any,
    std_r: Any,
    std_t: Any,
) -> Any:
    """Gain of ``u`` on ``z - alpha_t m``, free of cancellation and finite at r = t.

    ``u = DD(alpha) m + gain (z - alpha_t m)``, where ``DD(f) = (f(t) - f(r))/(t - r)`` is handed in by the path,
    and ``std`` is the square root of :func:`gaussian_variance`. Source: ref:gaussian.
    """
    numerator = s * dd_alpha * (alpha_t + alpha_r) + dd_sigma * (sigma_t + sigma_r)
    return numerator / (std_t * (std_t + std_r))


def gaussian_variance_dd(s: Any, alpha_r: Any, alpha_t: Any, dd_alpha: Any, dd_sigma_squared: Any) -> Any:
    """Divided difference ``s DD(alpha^2) + DD(sigma^2)`` of :func:`gaussian_variance`. Source: ref:gaussian."""
    return s * dd_alpha * (alpha_t + alpha_r) + dd_sigma_squared


def contraction_rate(dd_variance: Any, std_r: Any, std_t: Any) -> Any:
    """``(1 - std_r/std_t)/(t - r)`` from the divided difference of the variance, finite at r = t.

    The same gain as :func:`gaussian_average_gain`, for paths whose ``sigma'`` is infinite at t = 0.
    Source: ref:gaussian.
    """
    return dd_variance / (std_t * (std_t + std_r))


def transfer_scale(alpha: Any, sigma: Any) -> Any:
    """Scale ``c = alpha + sigma`` of the schedule transfer ``z^{path}_t = c_t z^{linear}_S``. Source: ref:transfer."""
    return alpha + sigma


def transfer_time(alpha: Any, sigma: Any) -> Any:
    """Linear time ``S = sigma / (alpha + sigma)`` of the schedule transfer. Source: ref:transfer."""
    return sigma / (alpha + sigma)


def transfer_average_velocity(y: Any, u_linear: Any, c_r: Any, dd_c: Any, dd_s: Any) -> Any:
    """Average velocity on another path from the linear one, ``DD(c) y + c_r DD(S) u_lin(y, S_r, S_t)``, ``y = z/c_t``.

    Source: ref:transfer.
    """
    return dd_c * y + c_r * dd_s * u_linear
