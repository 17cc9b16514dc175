"""The judgement of a run: its averaged weights against the truth, in numbers with their intervals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.fields import AbstractDataField
from meanflow_ref.sampling import sample
from meanflow_ref.train.config import Config
from meanflow_ref.train.data import AbstractSource
from meanflow_ref.train.distances import Kernel, discrepancy, distance_kernel, median_kernel, perfect_floor, within
from meanflow_ref.train.metrics import Points, estimate, euler, squared_errors, wasserstein_1d
from meanflow_ref.train.objective import times_of
from meanflow_ref.train.random import generator
from meanflow_ref.truth.residuals import consistency_residual, identity_residual

STEPS = (1, 2, 4)
EULER_STEPS = 100

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """Samples of a network and what they are held against.

    Attributes:
        data: Data samples, ``(n, *shape)``.
        label: Labels of the generated samples, or None.
        samples: Generated samples by "1", "2", "4" steps and "euler-100".

    """

    data: Tensor
    label: Tensor | None
    samples: dict[str, Tensor]


@torch.no_grad()
def generate(
    net: Callable[..., Tensor], noise: Tensor, label: Tensor | None, how: str, *, device: torch.device, rows: int = 1000
) -> Tensor:
    """Samples in ``how`` steps, "1" or "euler-100"; in parts of ``rows``, on the CPU at the end."""
    kind, _, count = how.rpartition("-")
    parts = []
    for i in range(0, len(noise), rows):
        z = noise[i : i + rows].to(device)
        y = None if label is None else label[i : i + rows].to(device)
        parts.append((euler(net, z, int(count), y) if kind else sample(net, z, int(count), label=y)).cpu())
    return torch.cat(parts)


def judge_samples(net: nn.Module, source: AbstractSource, config: Config, device: torch.device) -> Judged:
    """Generate as many samples as there are data to judge them by."""
    data, _ = source.reference(config.samples, config.seed)
    fresh = generator(config.seed, "judge", "noise")
    noise = torch.randn(data.shape, generator=fresh)
    label = None if source.classes is None else torch.arange(len(data)) % source.classes
    names = [*map(str, STEPS), f"euler-{EULER_STEPS}"]
    return Judged(data, label, {how: generate(net, noise, label, how, device=device) for how in names})


def sample_numbers(judged: Judged, config: Config) -> Numbers:
    """Energy distance, MMD and (on the line) Wasserstein-2 of each way to sample, beside the floor."""
    data = judged.data.flatten(1)
    kernels: dict[str, Kernel] = {"energy": distance_kernel, "mmd": median_kernel(data)}
    numbers: Numbers = {"n": len(data), "quantile": config.quantile, "floor": {}, "ways": {}}
    for name, kernel in kernels.items():
        fresh = generator(config.seed, "judge", "floor", name)
        numbers["floor"][name] = perfect_floor(data, len(data), fresh, kernel=kernel, quantile=config.quantile)
    own = {name: within(data, kernel) for name, kernel in kernels.items()}
    for how, samples in judged.samples.items():
        flat = samples.flatten(1)
        way: Numbers = {
            name: discrepancy(flat, data, kernel, within_b=own[name]).to_dict() for name, kernel in kernels.items()
        }
        if data.shape[1] == 1:
            way["wasserstein2"] = wasserstein_1d(flat, data)
        numbers["ways"][how] = way
    return numbers


def wasserstein_floor(field: AbstractDataField, config: Config, *, repeats: int = 200) -> float:
    """Quantile of Wasserstein-2 between two perfect samples on the line, by repetition."""
    fresh, n = generator(config.seed, "judge", "floor", "wasserstein"), config.samples
    draws = [wasserstein_1d(field.sample_data(n, fresh), field.sample_data(n, fresh)) for _ in range(repeats)]
    return float(torch.tensor(draws).quantile(config.quantile))


def truth_numbers(net: nn.Module, points: dict[str, Points], field: AbstractDataField, config: Config) -> Numbers:
    """Errors of u against the exact one, and how far the network is from obeying the laws of an average velocity."""
    numbers: Numbers = {}
    for name, at in points.items():
        errors = squared_errors(net, at, device=next(net.parameters()).device)
        size = float(at.u.square().sum(-1).mean())
        numbers[name] = {"error": estimate(errors).to_dict(), "size": size}
    at = points["anywhere"]
    exact = copy.deepcopy(net).cpu().double().eval()
    s = at.r + (at.t - at.r) * torch.rand(at.r.shape, generator=generator(config.seed, "judge", "s"), dtype=at.r.dtype)
    residuals = {
        "identity": identity_residual(exact, field.velocity, at.z, at.r, at.t),
        "semigroup": consistency_residual(exact, at.z, at.r, s, at.t),
    }
    for name, residual in residuals.items():
        numbers[name] = {"square": estimate(residual.detach().square().sum(-1)).to_dict()}
    return numbers


def floor_numbers(field: AbstractDataField, config: Config) -> Numbers | None:
    """The loss of the exact u on the law of the batches: the number that the raw loss cannot go below for long.

    Zero with the marginal velocity; None where the loss is not the plain sum of squares, whose floor this is.
    """
    from meanflow_ref.train.metrics import loss_floor

    if config.norm != "sum" or config.objective not in ("meanflow", "flow-matching"):
        return None
    if config.velocity == "marginal":
        return {"value": 0.0, "low": 0.0, "high": 0.0}
    fresh = generator(config.seed, "judge", "loss floor")
    r, t = (x.double().clamp(1e-6, 1) for x in times_of(config).sample(min(config.points, 512), fresh))
    r = t if config.objective == "flow-matching" else r
    return estimate(loss_floor(field, r, t, field.sample(t, fresh))).to_dict()


def class_numbers(judged: Judged, source: AbstractSource) -> Numbers:
    """How well one-step samples of each class are recognised, by classifiers trained on the data."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    assert source.size is not None
    assert judged.label is not None
    x, y = source.reference(min(source.size, 5000), 0)
    assert y is not None
    half = len(x) // 2
    flat, label = x.flatten(1).numpy(), y.numpy()
    # Its accuracy on held-out data says how far it may be trusted; then it is trained on all of them.
    held_out = float(SVC(gamma="scale").fit(flat[:half], label[:half]).score(flat[half:], label[half:]))
    classifier, nearest = SVC(gamma="scale").fit(flat, label), KNeighborsClassifier(1).fit(flat, label)
    wanted = judged.label.numpy()
    numbers: Numbers = {"classifier_on_held_out_data": held_out, "ways": {}}
    for how, samples in judged.samples.items():
        generated = samples.flatten(1).numpy()
        right, near = classifier.predict(generated) == wanted, nearest.predict(generated) == wanted
        shares = [float(near[wanted == k].mean()) for k in range(source.classes or 0)]
        numbers["ways"][how] = {
            "accuracy": float(right.mean()),
            "nearest_accuracy": float(near.mean()),
            "least_class_nearest_accuracy": min(shares),
        }
    return numbers
