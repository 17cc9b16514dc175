r"""The reference MeanFlow loss.

Algorithm 1 of the paper, per sample and without randomness: the state and its velocity on the conditional path, ``u``
and ``du/dt`` by one JVP along ``(v, 0, 1)``, the target ``v - (t - r) du/dt`` behind a stop-gradient, and the squared
error under its adaptive weight. :func:`meanflow_loss_at` is the whole of it; :func:`meanflow_loss` builds its ``z, v``.

Precision. The network sees the dtypes it is given. Everything outside it (path, ``t - r``, target, error, weight) is
elementwise in float32 at least, under autocast too. Times may be float32 beside a half-precision state, and should be:
bfloat16 has 256 times in [1/2, 1]. Under autocast primal and tangent of the network both run in the autocast dtype;
for a JVP in float32 call the loss outside autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from meanflow_ref import formulas
from meanflow_ref._typing import JvpBackend
from meanflow_ref.convention import Adapted, Convention, adapted
from meanflow_ref.errors import NetworkError, ParameterError
from meanflow_ref.jvp import BACKENDS, VARIANTS, get_backend
from meanflow_ref.jvp.rng import replayed_rng
from meanflow_ref.jvp.rows import jvp_on_rows, rows_pay
from meanflow_ref.objectives._inputs import check_inputs, check_values
from meanflow_ref.objectives.guidance import Guidance, require_labels
from meanflow_ref.objectives.weighting import adaptive_weight, squared_norm
from meanflow_ref.paths import LINEAR, AbstractPath

# Loaded now, since torch.compile cannot follow an import at the first call.
for _name in BACKENDS | VARIANTS:
    get_backend(_name)


class MeanFlowTerms(NamedTuple):
    """The loss and what it is made of. Only the first three and ``u`` carry the graph to the network."""

    loss: Tensor
    """Mean of ``per_sample`` over the batch, a scalar."""
    per_sample: Tensor
    """``weight * squared_error``, ``(B,)``."""
    squared_error: Tensor
    """``|u - target|^2``, ``(B,)``: the number to watch."""
    weight: Tensor
    """Adaptive weight, ``(B,)``, detached."""
    u: Tensor
    """The network's average velocity, ``(B, *event)``."""
    target: Tensor
    """``v - (t - r) du/dt``, detached, in float32 at least."""
    du_dt: Tensor
    """Total derivative of u along ``(v, 0, 1)``, detached."""
    v: Tensor
    """Velocity in target and tangent: guided where guidance is active; detached."""
    z: Tensor
    """State at which the network was evaluated."""


def meanflow_loss(
    net: Callable[..., Any],
    x: Tensor,
    eps: Tensor,
    r: Tensor,
    t: Tensor,
    *,
    label: Tensor | None = None,
    path: AbstractPath = LINEAR,
    guidance: Guidance | None = None,
    weight_power: float = 1.0,
    weight_eps: float = 1e-3,
    norm: str = "sum",
    jvp: str | JvpBackend = "stopgrad",
    two_pass: bool = False,
    rows: str = "auto",
    convention: Convention | None = None,
) -> MeanFlowTerms:
    r"""MeanFlow loss of a batch of data and noise.

    .. math:: \mathcal L = \frac1B\sum_b w_b\,\lVert u_\theta(z_t,r,t) - \mathrm{sg}(u_{\mathrm{tgt}})\rVert^2,\qquad
              u_{\mathrm{tgt}} = v_t - (t-r)\,(v_t\,\partial_z u_\theta + \partial_t u_\theta)

    Source: mf:9, mf:11, mf:22, fm:path, fm:conditional-velocity; with guidance mf:17, mf:18, mf:21.

    Args:
        net: Average velocity ``net(z, r, t)``, or ``net(z, r, t, label)`` if there are labels; other calls by
            ``convention``.
        x: Data, ``(B, *event)``.
        eps: Standard normal noise, of ``x``'s shape.
        r: Start of the interval, ``(B,)``, ``0 <= r <= t``.
        t: Time of the state, ``(B,)``, at most 1 (noise).
        label: Labels, ``(B,)``.
        path: Conditional path.
        guidance: Guided target; needs ``label``.
        weight_power: ``p`` of the adaptive weight; 0 is the plain squared error.
        weight_eps: ``c`` of the adaptive weight.
        norm: ``"sum"`` or ``"mean"`` over the event.
        jvp: A backend's name (:data:`meanflow_ref.jvp.BACKENDS`, or of its ``VARIANTS``) or a backend.
        two_pass: JVP without a graph, then a forward pass with one: the memory of flow matching for one more forward
            pass. Random layers draw the same numbers in both; layers with state (BatchNorm) are updated twice. Keeping
            the random numbers breaks a compiled graph, so that it runs under ``torch.compile`` without ``fullgraph``.
        rows: Rows that the derivative is computed on: ``"all"``; ``"moving"``, those with r != t alone (``du_dt`` is 0
            at the others, where the target does not see it; guidance is on all rows); ``"auto"``, those where that
            pays (:mod:`meanflow_ref.jvp.rows`). The stop-gradient JVP does it in one call of the network, its rows in
            another order; other backends in two calls, and only on demand, of networks that do not mix rows.
        convention: How ``net`` is called and which way its time runs.

    Returns:
        :class:`MeanFlowTerms`.

    Raises:
        TimeError: If a time is NaN, outside [0, 1], of an integer type, or r > t.
        ShapeError: If shapes do not fit together or the batch is empty.
        DtypeError: If dtypes or devices do not fit together.
        NonFiniteError: If data or noise have NaN or infinite entries.
        NetworkError: If the network's output is not one tensor of the state's shape with a graph to its parameters.
        ForwardADError: If an operation in the network has no forward-mode derivative.
        ParameterError: If an option is out of range.

    """
    check_inputs({"x": x, "eps": eps}, r, t, label)
    if not isinstance(path, AbstractPath):
        raise ParameterError(f"path={path!r}.", "a path of meanflow_ref.paths", "path=meanflow_ref.LinearPath()")
    x_, eps_, t_ = _wide(x), _wide(eps), _column(_wide(t), x)
    z = formulas.interpolant(x_, eps_, path.alpha(t_), path.sigma(t_)).to(x.dtype)
    v = formulas.conditional_velocity(x_, eps_, path.alpha_dot(t_), path.sigma_dot(t_))
    check_values({"x": x, "eps": eps, "z": z, "v": v}, z, v, r, t)
    return _terms(net, z, v, r, t, label, guidance, weight_power, weight_eps, norm, jvp, two_pass, rows, convention)


def meanflow_loss_at(
    net: Callable[..., Any],
    z: Tensor,
    v: Tensor,
    r: Tensor,
    t: Tensor,
    *,
    label: Tensor | None = None,
    guidance: Guidance | None = None,
    weight_power: float = 1.0,
    weight_eps: float = 1e-3,
    norm: str = "sum",
    jvp: str | JvpBackend = "stopgrad",
    two_pass: bool = False,
    rows: str = "auto",
    convention: Convention | None = None,
) -> MeanFlowTerms:
    """MeanFlow loss at given states and velocities; with the marginal velocity, the exact u has loss 0.

    Source: mf:9, mf:10.

    Args:
        net: Average velocity; like r, t and the options, that of :func:`meanflow_loss`.
        z: States, ``(B, *event)``.
        v: Velocities at ``(z, t)``, marginal or of a sample, of ``z``'s shape; float32 is welcome beside a
            half-precision ``z``.
        r: Start of the interval, ``(B,)``.
        t: Time of the state, ``(B,)``.
        label: Labels, ``(B,)``.
        guidance: Guided target; needs ``label``.
        weight_power: ``p`` of the adaptive weight.
        weight_eps: ``c`` of the adaptive weight.
        norm: ``"sum"`` or ``"mean"`` over the event.
        jvp: A backend or its name.
        two_pass: JVP without a graph, then a forward pass with one.
        rows: Rows that the JVP runs on.
        convention: How ``net`` is called.

    Returns:
        :class:`MeanFlowTerms`.

    Raises:
        MeanFlowError: As :func:`meanflow_loss`.

    """
    check_inputs({"z": z, "v": v}, r, t, label)
    check_values({"z": z, "v": v}, z, v, r, t)
    return _terms(net, z, v, r, t, label, guidance, weight_power, weight_eps, norm, jvp, two_pass, rows, convention)


def _terms(
    net: Callable[..., Any], z: Tensor, v: Tensor, r: Tensor, t: Tensor, label: Tensor | None,
    guidance: Guidance | None, weight_power: float, weight_eps: float, norm: str, jvp: str | JvpBackend,
    two_pass: bool, rows: str, convention: Convention | None,
) -> MeanFlowTerms:  # fmt: skip
    """The loss at inputs that were looked at."""
    u_of = adapted(net, convention, label)
    v = _wide(v).detach()

    # The velocity of target and tangent. Source: mf:19, mf:21.
    if guidance is not None:
        if not isinstance(guidance, Guidance):
            raise ParameterError(f"guidance={guidance!r}.", "a meanflow_ref.Guidance", "Guidance(2.0, null_label=10)")
        if label is None:
            raise ParameterError("`guidance` without `label`.", "one label a row", "label=...")
        require_labels(label)
        v = guidance.sample_velocity(u_of, z, v, t, label)

    # u and its total derivative along (dz/dt, dr/dt, dt/dt) = (v, 0, 1). Source: mf:8.
    def u_at(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return u_of(z, r, t, label)

    tangents = (v.to(z.dtype), None, torch.ones_like(t))
    backend = get_backend(jvp)
    if rows not in ("all", "moving", "auto"):
        raise ParameterError(f"rows={rows!r}.", '"all", "moving" or "auto"', "")
    if two_pass:
        backend = partial(_two_passes, backend)
    moving = None if rows == "all" else r != t
    if moving is not None and (rows == "moving" or rows_pay(backend, net, z, moving)):
        u, du_dt = jvp_on_rows(backend, u_of, (z, r, t), tangents, label, moving)
    else:
        u, du_dt = backend(u_at, (z, r, t), tangents)
    _require_graph(u, net)
    du_dt = du_dt.detach()

    # The regression, its target behind a stop-gradient. Source: mf:9, mf:11.
    r_, t_ = _column(_wide(r), z), _column(_wide(t), z)
    target = formulas.meanflow_target(v, _wide(du_dt), r_, t_).detach()
    squared_error = squared_norm(_wide(u) - target, norm)

    # The adaptive weight, behind a stop-gradient too. Source: mf:22.
    weight = adaptive_weight(squared_error, weight_power, weight_eps)
    per_sample = weight * squared_error
    return MeanFlowTerms(per_sample.mean(), per_sample, squared_error, weight, u, target, du_dt, v, z)


def _two_passes(
    backend: JvpBackend,
    fn: Callable[..., Tensor],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor]:
    """The derivative without a graph, then the value with one, both with the same random numbers."""
    with torch.no_grad(), replayed_rng(*primals):
        _, du_dt = backend(fn, primals, tangents)
    return fn(*primals), du_dt


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _column(time: Tensor, z: Tensor) -> Tensor:
    """A time per state, ready to multiply a state: ``(B,) -> (B, 1, ..., 1)``."""
    return time.reshape(-1, *[1] * (z.dim() - 1))


def _require_graph(u: Tensor, net: Callable[..., Any]) -> None:
    """Raise if a network with trainable parameters gave a ``u`` that cannot train them."""
    net = net.net if isinstance(net, Adapted) else net
    if u.requires_grad or not torch.is_grad_enabled() or not isinstance(net, nn.Module):
        return
    if any(parameter.requires_grad for parameter in net.parameters()):
        raise NetworkError(
            "u carries no graph to the network's parameters, so that the loss would train nothing.",
            "a network and a JVP backend that keep u's graph",
            "look for .detach(), .data, .item() or torch.no_grad() in the network's forward or in the backend",
        )
