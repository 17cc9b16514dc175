"""What mistakes in samplers, times, guidance, networks and distribution cost, measured on toy fields.

``python -m meanflow_ref.kit.sister_effects --write`` measures all (some minutes on one core) and writes the sentences
that the pages print; without ``--write`` it prints them; names as arguments choose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.fields.gaussian import Gaussian
from meanflow_ref.fields.guided import ClassConditional, Guided
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.files import write_atomic
from meanflow_ref.jvp.func import func_jvp
from meanflow_ref.kit.calling import seeded
from meanflow_ref.kit.catalogue.sister_effects import FILE
from meanflow_ref.kit.exact import ExactNetwork, OnEvents
from meanflow_ref.kit.mutants import guidance, networks, samplers, times
from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.models.mlp import MLP
from meanflow_ref.truth import average_velocity

STEPS, BATCH, RATE = 600, 256, 4e-3
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@cache
def mixture() -> GaussianMixture:
    """Three unequal modes in one dimension."""
    weights, means, stds = torch.tensor([[0.5, 0.3, 0.2], [-1.5, 0.4, 2.0], [0.3, 0.5, 0.4]], dtype=torch.float64)
    return GaussianMixture(weights, means, stds)


@cache
def classes() -> ClassConditional:
    """Two classes in one dimension that overlap."""
    priors = torch.tensor([0.6, 0.4], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    return ClassConditional((Gaussian(-one, 0.36 * one[None]), Gaussian(one, 0.64 * one[None])), priors)


def named(cases: tuple[Case, ...], name: str, title: str = "") -> Case:
    """The first case of a name."""
    return next(case for case in cases if case.name == name and title in case.title)


# ------------------------------------------------------------ samplers


def sampler(name: str) -> str:
    """Distance from the exact data, with the exact u."""
    case = named(samplers.MUTANTS, name)
    errors = []
    for count in (1, 4):
        options = dict(case.options)
        convention = Convention(
            options.get("call", "z, r, t"),
            returns=options.get("returns", "u"),
            time=options.get("time_direction", "noise_at_one"),
        )
        net = ExactNetwork(OnEvents(mixture()), convention, {})
        noise = torch.randn(4096, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            data = case.target(net, noise, count)
        exact = mixture().flow_map(noise, 1.0, 0.0)
        errors.append(float((data - exact).square().mean().sqrt() / exact.std()))
    return (
        f"With the exact u of a mixture of three normals ({case.title}), the root-mean-square distance from the exact "
        f"data is {errors[0]:.2f} of their deviation in one step and {errors[1]:.2f} in four."
    )


# ------------------------------------------------------------ trained


def trained(loss: Loss, classes_: int | None = None, net: nn.Module | None = None) -> nn.Module:
    """A small network after some hundred steps of Adam on ``loss(net, x, labels)``."""
    with seeded(0):
        net = net or MLP(1, width=64, depth=2, classes=classes_)
        optimizer = torch.optim.Adam(net.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            if classes_ is None:
                x, y = mixture().sample_data(BATCH, generator), torch.zeros(BATCH, dtype=torch.long)
            else:
                x, y = classes().sample_labelled(BATCH, generator)
            optimizer.zero_grad()
            loss(net, x.float(), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return net


@cache
def _cases() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States at random times with the exact u."""
    generator = torch.Generator().manual_seed(7)
    times_ = torch.rand(2, 4096, dtype=torch.float64, generator=generator).sort(0).values
    z = mixture().sample(times_[1], generator)
    return z, times_[0], times_[1], mixture().average_velocity(z, times_[0], times_[1])


def error_of(net: nn.Module) -> float:
    """``E|u_theta - u|^2 / E|u|^2`` over uniform pairs of times."""
    z, r, t, u = _cases()
    with torch.no_grad():
        learned = net(z.float(), r.float(), t.float()).double()
    return float((learned - u).square().mean() / u.square().mean())


def with_times(sample: Callable[[int], Any]) -> Loss:
    """The reference loss without weight, under a law of times."""

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        r, t, *_ = sample(len(x))
        t_, z_noise = t[:, None].to(x), torch.randn_like(x)
        z, v = (1 - t_) * x + t_ * z_noise, z_noise - x
        u, du_dt = func_jvp(lambda z, r, t: net(z, r, t), (z, r.to(x), t.to(x)), (v, None, torch.ones_like(t)))  # noqa: PLW0108
        target = (v - (t - r)[:, None] * du_dt).detach()
        value: Tensor = (u - target).square().mean()
        return value

    return loss


@cache
def right_error() -> float:
    """Of the law that is stated."""
    return error_of(trained(with_times(times.CORRECT[0].target)))


TIME_CASES = {"RATIO_MISMATCH": "before sorting", "LAW_MISMATCH": "r uniform", "TIMES_OUT_OF_RANGE": "randn",
              "PER_BATCH_COIN": "a coin"}  # fmt: skip


def law(name: str) -> str:
    """Error of a network trained under a wrong law."""
    if name == "NEVER_R_EQ_T":
        case = Case("never r = t", times._sorted_pair)
    elif name == "MASKS_CORRELATED":
        return masks()
    else:
        case = named(times.MUTANTS, name, TIME_CASES.get(name, ""))
    wrong = error_of(trained(with_times(case.target)))
    return _compared(case.title, wrong, right_error())


def _compared(title: str, wrong: float, right: float) -> str:
    return (
        f"Trained for {STEPS} steps on a mixture of three normals ({title}), E|u_theta - u|^2 / E|u|^2 over uniform "
        f"pairs of times ends at {wrong:.3g}; with the right code at {right:.3g}."
    )


def masks() -> str:
    """Share of r != t among rows without a class."""
    r, t, y = times.masks_by_index(1000)
    null = y == 10
    share, whole = (100 * float(x.double().mean()) for x in ((r != t)[null], r != t))
    return (
        f"r != t in {share:.0f} % of the rows without a class and in {whole:.0f} % of all: "
        "u without class is never trained at r < t."
    )


# ------------------------------------------------------------ guidance


@cache
def _guided_truth(omega: float, kappa: float) -> tuple[Tensor, Tensor]:
    """Noise and the exact guided data of class 1."""
    noise = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)[:, None]
    field = Guided(classes(), 1, omega, kappa)
    zero, one = torch.zeros(101, dtype=torch.float64), torch.ones(101, dtype=torch.float64)
    return noise, noise - average_velocity(field, noise, zero, one).value


def _guided_error(net: nn.Module, omega: float, kappa: float) -> float:
    noise, exact = _guided_truth(omega, kappa)
    label = torch.ones(len(noise), dtype=torch.long)
    with torch.no_grad():
        data = noise - net(noise.float(), torch.zeros(101), torch.ones(101), label).double()
    weight = torch.exp(-(noise**2) / 2)
    return float(((data - exact).square() * weight).sum().div(weight.sum()).sqrt() / 0.8)


def _two_classes(s: guidance.Settings) -> Loss:
    """A guided loss whose null label is 2 and whose network has two classes."""

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        def renamed(z: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
            u: Tensor = net(z, r, t, torch.where(y == guidance.NULL, torch.full_like(y, 2), y))
            return u

        return guidance.guided(s)(renamed, x, y)

    return loss


GUIDED = {
    "GUIDED_TARGET_UNGUIDED_TANGENT": guidance.Settings(guided_tangent=False),
    "NULL_BRANCH_CONDITIONAL": guidance.Settings(null=None),
    "KAPPA_MISSING": guidance.Settings(kappa=0.0),
    "GUIDANCE_LOST_ON_R_EQ_T": guidance.Settings(guide_equal=False),
    "GUIDANCE_ON_NULL_ROWS": guidance.Settings(guide_null=True),
    "GUIDANCE_INTERVAL": guidance.Settings(interval=(0.0, 0.5)),
}


@cache
def _right_guided() -> float:
    return _guided_error(trained(_two_classes(guidance.Settings()), 2), 2.0, 0.5)


def guided(name: str) -> str:
    """Error of one-step samples of a network trained with wrong guidance."""
    wrong = _guided_error(trained(_two_classes(GUIDED[name]), 2), 2.0, 0.5)
    return (
        f"Trained for {STEPS} steps on two normal classes (omega 2, kappa 0.5), one-step samples of a class end at a "
        f"root-mean-square distance of {wrong:.2f} of its deviation from the exact guided data; with the right code "
        f"{_right_guided():.2f}."
    )


# ------------------------------------------------------------ networks


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z, v = torch.randn(2, 6, 4, generator=generator)
    times_ = torch.rand(2, 6, generator=generator).sort(0).values
    return z, times_[0], times_[1], v


def _made(kind: Callable[[], nn.Module]) -> nn.Module:
    with seeded(0):
        return kind()


def raises(kind: Callable[[], nn.Module]) -> str:
    """What torch raises."""
    net, (z, r, t, v) = _made(kind), _inputs()
    try:
        u, _ = torch.func.jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))  # type: ignore[misc]
        u.sum().backward()
    except Exception as error:
        return f"The step raises {type(error).__name__}: nothing is trained."
    return "No error."


def _derivative(net: Callable[..., Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    z, r, t, v = (x.to(dtype) for x in _inputs())
    return func_jvp(net, (z, r, t), (v, None, torch.ones_like(t)))[1].detach().double()


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def time_dead() -> str:
    """Trained with a target whose time part is missing."""

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        r, t = times.CORRECT[0].target(len(x))
        e = torch.randn_like(x)
        z, v = (1 - t)[:, None] * x + t[:, None] * e, e - x
        u, du_dt = func_jvp(lambda z, r, t: net(z, r, t), (z, r, t), (v, None, None))  # noqa: PLW0108
        value: Tensor = (u - (v - (t - r)[:, None] * du_dt).detach()).square().mean()
        return value

    return _compared("the derivative without its time part", error_of(trained(loss)), right_error())


def stiff() -> str:
    """Error of du/dt in bfloat16."""
    parts = []
    for kind in (networks.Thousandfold, networks.Small):
        exact = _derivative(_made(kind).double())
        parts.append(_off(_derivative(_made(kind).bfloat16(), torch.bfloat16), exact))
    percent = [100 * part for part in parts]
    return f"In bfloat16 du/dt is off by {percent[0]:.0f} %; with angular frequencies up to 4 by {percent[1]:.1f} %."


def cut() -> str:
    """Gradient to the parameters, with and without no_grad."""
    gradients = []
    for kind in (networks.FrozenPart, _Whole):
        net = _made(kind)
        z, r, t, _ = _inputs()
        net(z, r, t).square().sum().backward()
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in net.parameters()]
        gradients.append(torch.cat([part.flatten() for part in parts]))
    return f"The gradient of |u|^2 is off by {100 * _off(*gradients):.0f} %, and the layer in it is never trained."


class _Whole(networks.Small):
    """:class:`networks.FrozenPart` without no_grad."""

    def body(self, h: Tensor) -> Tensor:
        """The same value."""
        return torch.tanh(self.middle(h)) + h


def coupled() -> str:
    """du/dt of a row when its neighbours move, against when they stand still."""
    net = _made(networks.Centred).double()
    z, r, t, v = (x.double() for x in _inputs())
    together = _derivative(net)
    alone = []
    for i in range(len(z)):
        one = torch.zeros_like(t).index_fill(0, torch.tensor([i]), 1.0)
        alone.append(func_jvp(net, (z, r, t), (v * one[:, None], None, one))[1].detach()[i])
    return f"du/dt of a row is off by {100 * _off(together, torch.stack(alone)):.0f} %, since the other rows move too."


def compiled() -> str:
    """du/dt through dynamo."""
    net = _made(networks.CustomKernel).double()
    off = _off(_derivative(torch.compile(net, backend="eager")), _derivative(net))
    return f"du/dt of a small network with one custom function is off by {100 * off:.0f} %, without an error."


def unsynced() -> str:
    """Gradients of two ranks."""
    from meanflow_ref.kit.distributed.check import compare
    from meanflow_ref.kit.mutants.steps import module_unwrapped

    (one,) = compare([module_unwrapped], shape=(4,), rows=13, dtype=torch.float32, timeout=600, seed=0)
    return f"The gradients of two ranks with 13 rows each differ by {100 * one.ranks:.0f} % after one step."


def measures() -> dict[str, Callable[[], str]]:
    """Name -> what measures it."""
    from meanflow_ref.kit.catalogue import sampler as sampler_part
    from meanflow_ref.kit.catalogue import times as times_part

    found: dict[str, Callable[[], str]] = {}
    found |= {page.name: partial(sampler, page.name) for page in sampler_part.PAGES}
    found |= {page.name: partial(law, page.name) for page in times_part.PAGES}
    found |= {name: partial(guided, name) for name in GUIDED}
    found |= {
        "ATTENTION_NO_FORWARD_AD": lambda: raises(networks.FusedAttention),
        "CUSTOM_FUNCTION_NO_JVP": lambda: raises(networks.CustomFunction),
        "CHECKPOINT_REENTRANT": lambda: raises(networks.Recomputed),
        "TIME_DERIVATIVE_DEAD": time_dead,
        "TIME_STIFFNESS": stiff,
        "NO_GRAD_IN_FORWARD": cut,
        "BATCH_COUPLING": coupled,
        "COMPILED_NEQ_EAGER": compiled,
        "GRADIENTS_NOT_SYNCED": unsynced,
    }
    return found


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(prog="python -m meanflow_ref.kit.sister_effects", description=__doc__)
    parser.add_argument("names", nargs="*", help="diagnoses to measure (default: all)")
    parser.add_argument("--write", action="store_true", help="write the file that the pages read")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name, measure in measures().items():
        if not arguments.names or name in arguments.names:
            known[name] = measure()
            print(f"{name}: {known[name]}", flush=True)
    if arguments.write:
        write_atomic(FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
