"""Rows about the reference loss and the sampler: held against exact fields, and against themselves by other means."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from meanflow_ref import formulas
from meanflow_ref._typing import JvpBackend
from meanflow_ref.convention import Convention
from meanflow_ref.fields.base import AbstractField, column
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.models.mlp import MLP
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss, meanflow_loss_at
from meanflow_ref.objectives.times import AbstractTimePair, LogitNormalPair, UniformPair
from meanflow_ref.sampling import sample
from meanflow_ref.verify.check import Check
from meanflow_ref.verify.problems import PATHS, amplification, cases, gaussian, mixture, product, spiral, tensor

GROUP = "Reference loss"
# Backends that differentiate exactly, up to rounding.
EXACT_BACKENDS = ("stopgrad", "func", "forward_ad", "double_backward")


def network(seed: int = 0, dim: int = 3) -> MLP:
    """A small float64 network with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(dim, width=32, depth=2).double()


def batch(seed: int = 1, n: int = 32, dim: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seeded data, noise and sorted times, a quarter of them equal: ``(x, eps, r, t)``."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, n, dim, dtype=torch.float64, generator=generator)
    r, t = UniformPair(equal=0.25).sample(n, generator, dtype=torch.float64)
    return x, eps, r, t


def flat_gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """Gradient of a scalar in all parameters, as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of two vectors over the length of the second."""
    return float((a - b).norm() / b.norm())


def target_error(field: AbstractField, backend: str | JvpBackend, seed: int = 20, sign: float = 1.0) -> float:
    """How far the target of the reference loss is from u, when the network *is* the exact u and v is exact.

    The MeanFlow identity says 0. Over (1 + J)(1 + |v|). Source: mf:6, mf:10.
    """
    c = cases(field, seed=seed)
    v = field.velocity(c.z, c.t)
    terms = meanflow_loss_at(field.average_velocity, c.z, sign * v, c.r, c.t, weight_power=0.0, jvp=backend)
    error = (terms.target - field.average_velocity(c.z, c.r, c.t)).abs().amax(1)
    return float((error / (amplification(field, c) * (1 + v.abs().amax(1)))).max())


def exact_target(build: Callable[[], AbstractField], backend: str) -> float:
    """:func:`target_error` of a backend on a field."""
    return target_error(build(), backend)


def marginal_loss_is_zero() -> float:
    """Loss at the exact u with the exact v, over the loss of predicting 0."""
    field = product()
    c = cases(field, seed=21)
    v = field.velocity(c.z, c.t)
    terms = meanflow_loss_at(field.average_velocity, c.z, v, c.r, c.t, weight_power=0.0)
    return float(terms.loss / (terms.u**2).sum(1).mean())


def backend_gradient(backend: str, weight_power: float = 0.75) -> float:
    """Gradient of the loss by a backend against torch.func.jvp, relative."""
    net, (x, eps, r, t) = network(), batch()
    gradients = [
        flat_gradient(meanflow_loss(net, x, eps, r, t, weight_power=weight_power, jvp=name).loss, net)
        for name in (backend, "func")
    ]
    return relative(*gradients)


def two_passes() -> float:
    """Gradient of the loss in two passes against one, relative."""
    net, (x, eps, r, t) = network(), batch()
    one, two = (flat_gradient(meanflow_loss(net, x, eps, r, t, two_pass=flag).loss, net) for flag in (False, True))
    return relative(two, one)


def cotangent_gradient(loss: Callable[..., MeanFlowTerms] = meanflow_loss) -> float:
    """Gradient of the loss against the VJP of u alone with the cotangent ``2 w (u - target)/B``, relative.

    What leaks through the target or the weight shows here: the right-hand side has only u's graph. Source: mf:9.
    """
    net, (x, eps, r, t) = network(), batch()
    terms = loss(net, x, eps, r, t)
    observed = flat_gradient(terms.loss, net)
    u = net(terms.z, r, t)
    cotangent = 2 * terms.weight[:, None] * (terms.u - terms.target) / len(x)
    expected = torch.autograd.grad(u, list(net.parameters()), cotangent.detach())
    return relative(observed, torch.cat([g.flatten() for g in expected]))


def improved_gradient() -> float:
    """Gradient of improved MeanFlow, conditional tangent, against MeanFlow's, relative. Source: imf:velocity."""
    net, (x, eps, r, t) = network(), batch()
    terms = meanflow_loss(net, x, eps, r, t, weight_power=0.0)
    velocity = formulas.improved_velocity(terms.u, terms.du_dt, column(r), column(t))
    improved = ((velocity - terms.v) ** 2).sum(1).mean()
    expected = flat_gradient(meanflow_loss(net, x, eps, r, t, weight_power=0.0).loss, net)
    return relative(flat_gradient(improved, net), expected)


def flow_matching_at_equal_times() -> float:
    """Loss on r = t rows against flow matching, ``|u - (eps - x)|^2``; the same numbers."""
    net, (x, eps, _, t) = network(), batch()
    terms = meanflow_loss(net, x, eps, t, t, weight_power=0.0)
    z = (1 - t[:, None]) * x + t[:, None] * eps
    direct = ((net(z, t, t) - (eps - x)) ** 2).sum(1)
    return float(((terms.per_sample - direct).abs() / direct).detach().max())


class _WithDuration(nn.Module):
    """The same network as a function of ``(z, t, h)``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Return u."""
        u: Tensor = self.net(z, t - h, t)
        return u


def duration_network() -> float:
    """Gradient through a (z, t, h) network against the (z, r, t) one, relative."""
    net, (x, eps, r, t) = network(), batch()
    expected = flat_gradient(meanflow_loss(net, x, eps, r, t).loss, net)
    other = meanflow_loss(_WithDuration(net), x, eps, r, t, convention=Convention("z, t, h"))
    return relative(flat_gradient(other.loss, net), expected)


def guided_fixed_point(omega: float = 1.4, kappa: float = 0.3) -> float:
    """Guided target at its fixed point: for Gaussian classes the guided field is linear, so its u is closed.

    Two classes differ by their mean; the network answers the exact guided u of a class, and the exact unguided u for
    the null label; the target with the class's marginal v must be the network's own u. Source: mf:18, mf:21.
    """
    covariance = torch.diag(tensor(0.5, 1.2))
    generator = torch.Generator().manual_seed(30)
    unguided = Gaussian(tensor(0.3, -0.2), covariance)
    classes = [Gaussian(tensor(-1.0, 0.5), covariance), Gaussian(tensor(1.6, -0.9), covariance)]
    scale = float(formulas.effective_guidance(omega, kappa))
    # One covariance: v is affine in z with a slope that the classes share, so guidance only moves the mean.
    guided = [Gaussian(formulas.guided_velocity(c.mean, unguided.mean, scale), covariance) for c in classes]
    fields = [*guided, unguided]

    def net(z: Tensor, r: Tensor, t: Tensor, label: Tensor) -> Tensor:
        answers = torch.stack([field.average_velocity(z, r, t) for field in fields])
        return answers.gather(0, label[None, :, None].expand(1, -1, z.shape[1]))[0]

    label = torch.randint(0, 3, (48,), generator=generator)
    z = torch.randn(48, 2, dtype=torch.float64, generator=generator)
    pair = torch.rand(2, 48, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    own = torch.stack([field.velocity(z, t) for field in (*classes, unguided)])
    v = own.gather(0, label[None, :, None].expand(1, -1, 2))[0]
    terms = meanflow_loss_at(
        net, z, v, r, t, label=label, guidance=Guidance(omega, kappa, null_label=2), weight_power=0.0
    )
    return float((terms.target - net(z, r, t, label)).abs().max())


def sampling_is_exact(build: Callable[[], AbstractField], direction: str = "noise_at_one") -> float:
    """z_0 by 1, 2, 4 and 7 steps of the exact u against the flow map, over (1 + J). Source: mf:12."""
    field = build()
    noise = torch.randn(64, field.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(22))
    exact = field.flow_map(noise, 1.0, 0.0)
    scale = 1 + torch.linalg.matrix_norm(field.jacobian(noise, 0.0, 1.0), ord=2)
    convention = Convention(time=direction)  # type: ignore[arg-type]
    net = convention.express(field.average_velocity)
    return max(
        float(((sample(net, noise, steps, convention=convention) - exact).abs().amax(1) / scale).max())
        for steps in (1, 2, 4, 7)
    )


def time_law(law: AbstractTimePair, n: int = 100_000) -> float:
    """Kolmogorov-Smirnov distance of r and of t to their closed laws, times sqrt(n).

    Above 2.226 with probability below 1e-4 for each of the two (asymptotic law, conservative at this n); the draw is
    seeded, so the row is the same on every run of one torch version.
    """
    generator = torch.Generator().manual_seed(40)
    worst = 0.0
    for x, cdf in zip(law.sample(n, generator, dtype=torch.float64), (law.cdf_r, law.cdf_t), strict=True):
        ordered = cdf(x.sort().values)
        ranks = torch.arange(n, dtype=torch.float64)
        worst = max(worst, float((ordered - ranks / n).max()), float(((ranks + 1) / n - ordered).max()))
    return float(worst * n**0.5)


def loss_by_hand(path: str, power: float = 0.75, eps: float = 1e-3) -> float:
    """Loss against numpy's own arithmetic for z, v, target, weight and mean; only u and du/dt are the network's.

    Pins what the rows above cannot see: that the state and its velocity are those of the path, that the weight is
    ``(S + c)^-p`` of the summed square, and that the batch is averaged. Source: fm:path, mf:11, mf:22.
    """
    net, (x, noise, r, t) = network(), batch()
    a, b, a_dot, b_dot = {
        "linear": (1 - t, t, -torch.ones_like(t), torch.ones_like(t)),
        "trigonometric": (
            torch.cos(torch.pi / 2 * t),
            torch.sin(torch.pi / 2 * t),
            -torch.pi / 2 * torch.sin(torch.pi / 2 * t),
            torch.pi / 2 * torch.cos(torch.pi / 2 * t),
        ),
    }[path]
    with torch.no_grad():
        z, v = column(a) * x + column(b) * noise, column(a_dot) * x + column(b_dot) * noise
        # Central difference of the network along (v, 0, 1), extrapolated once: about 1e-11 here.
        slopes = [(net(z + h * v, r, t + h) - net(z - h * v, r, t - h)) / (2 * h) for h in (1e-3, 5e-4)]
        du_dt = (4 * slopes[1] - slopes[0]) / 3
        squares = ((net(z, r, t) - v + column(t - r) * du_dt).numpy() ** 2).sum(1)
    expected = float((squares * (squares + eps) ** -power).mean())
    loss = meanflow_loss(net, x, noise, r, t, path=PATHS[path], weight_power=power, weight_eps=eps).loss
    return abs(float(loss.detach()) - expected) / expected


def low_precision(dtype: torch.dtype) -> float:
    """Target in a low precision against float64, relative to its size."""
    x, eps, r, t = batch(n=256)
    reference = meanflow_loss(network(), x, eps, r, t).target
    # Times stay in float32 at least: bfloat16 has only 256 of them in [1/2, 1].
    times = (r.float(), t.float()) if dtype is torch.bfloat16 else (r.to(dtype), t.to(dtype))
    low = meanflow_loss(network().to(dtype), x.to(dtype), eps.to(dtype), *times).target
    return relative(low.double().flatten(), reference.flatten())


def checks() -> list[Check]:
    """The rows."""
    rows: list[Check] = []
    for backend in EXACT_BACKENDS:
        rows += [
            Check(
                GROUP,
                f"exact u as network: target is u, Gaussian d = 4, {backend}",
                partial(exact_target, gaussian, backend),
                1e-14,
                note="over (1 + J)(1 + |v|)",
            ),
            Check(
                GROUP,
                f"exact u as network: target is u, product of mixtures d = 3, {backend}",
                partial(exact_target, product, backend),
                2e-13,
                note="over (1 + J)(1 + |v|)",
            ),
            Check(
                GROUP,
                f"exact u as network: target is u, spiral d = 3, {backend}",
                partial(exact_target, spiral, backend),
                1e-13,
                note="over (1 + J)(1 + |v|)",
            ),
        ]
    rows += [
        Check(GROUP, "exact u and exact v: the loss is 0", marginal_loss_is_zero, 1e-24, note="over the loss of u = 0"),
        Check(GROUP, "gradient, stopgrad against func", partial(backend_gradient, "stopgrad"), 1e-12),
        Check(GROUP, "gradient, forward_ad against func", partial(backend_gradient, "forward_ad"), 1e-12),
        Check(GROUP, "gradient, double_backward against func", partial(backend_gradient, "double_backward"), 1e-12),
        Check(GROUP, "gradient, two passes against one", two_passes, 1e-12),
        Check(GROUP, "gradient is the VJP of u alone (nothing leaks)", cotangent_gradient, 1e-12),
        Check(GROUP, "gradient of improved MeanFlow, conditional tangent", improved_gradient, 1e-12),
        *(
            Check(
                GROUP,
                f"value by hand in numpy, {path} path",
                partial(loss_by_hand, path),
                1e-9,
                note="du/dt by extrapolated central differences",
            )
            for path in ("linear", "trigonometric")
        ),
        Check(GROUP, "r = t rows are flow matching", flow_matching_at_equal_times, 1e-14),
        Check(GROUP, "(z, t, h) network: same gradient", duration_network, 1e-12),
        Check(GROUP, "guided target at its fixed point (omega, kappa)", guided_fixed_point, 1e-13),
        Check(GROUP, "float32 target against float64", partial(low_precision, torch.float32), 2e-5, note="relative"),
        Check(GROUP, "bfloat16 target against float64", partial(low_precision, torch.bfloat16), 5e-2, note="relative"),
    ]
    for name, build in (("Gaussian d = 4", gaussian), ("mixture d = 1", mixture), ("product d = 3", product)):
        rows.append(
            Check(
                GROUP,
                f"sampling with the exact u, 1 to 7 steps: {name}",
                partial(sampling_is_exact, build),
                2e-13,
                note="over 1 + J",
            )
        )
    rows.append(
        Check(
            GROUP,
            "sampling with the exact u, data at t = 1",
            partial(sampling_is_exact, gaussian, "data_at_one"),
            2e-13,
            note="over 1 + J",
        )
    )
    for law in (UniformPair(equal=0.3), LogitNormalPair(-0.4, 1.0), LogitNormalPair(-0.4, 1.0, share="bernoulli")):
        name = f"{type(law).__name__}(equal={law.equal}, {law.share})"
        rows.append(
            Check(GROUP, f"times follow their law: {name}", partial(time_law, law), 2.226, note="KS times sqrt(n)")
        )
    return rows
