"""What mistakes in losses cost, measured: a small network trained with each on a mixture in the plane, against the exact u.

``python -m meanflow_ref.kit.loss_effects --write`` measures all (some minutes on one core) and writes the sentences that
the pages print; without ``--write`` it prints them; names as arguments choose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref.errors import MeanFlowError, ParameterError
from meanflow_ref.fields.mixture import GaussianMixture
from meanflow_ref.files import write_atomic
from meanflow_ref.kit.calling import seeded
from meanflow_ref.kit.catalogue.loss_effects import FILE
from meanflow_ref.kit.mutants import losses
from meanflow_ref.kit.mutants.composer import Recipe
from meanflow_ref.models.mlp import MLP
from meanflow_ref.truth import average_velocity

STEPS, BATCH, RATE, WIDTH = 1000, 256, 3e-3, 48
Loss = Callable[[Any, Tensor], Any]


def planar_mixture() -> GaussianMixture:
    """Four unequal modes in the plane: v is exact, u by the ODE."""
    means = torch.tensor([[-1.2, 0.3], [0.8, 1.1], [0.2, -1.4], [1.6, -0.5]], dtype=torch.float64)
    weights, stds = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.3, 0.5, 0.4, 0.6]], dtype=torch.float64)
    return GaussianMixture(weights, means, stds)


class OnEvents(nn.Module):
    """A small network on data of shape (1, 1, 2), since losses in the style of image code want channels."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = MLP(2, WIDTH, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """``u``, of ``z``'s shape."""
        u: Tensor = self.dropout(self.net(z.flatten(1), r.reshape(-1), t.reshape(-1)))
        return u.reshape(z.shape)


@cache
def _truth() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    field = planar_mixture()
    generator = torch.Generator().manual_seed(3)
    pair = torch.rand(2, 512, dtype=torch.float64, generator=generator)
    r, t = pair.amin(0), pair.amax(0)
    z = field.sample(t, generator)
    return z, r, t, average_velocity(field, z, r, t).value


@cache
def error_after(name: str) -> float:
    """``E|u_theta - u|^2 / E|u|^2`` after training with the loss of a name."""
    field = planar_mixture()
    with seeded(0):
        net = OnEvents(0.2 if name.endswith("dropout") else 0.0)
        optimiser = torch.optim.Adam(net.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
        loss = LOSSES[name]
        generator = torch.Generator().manual_seed(1)
        for _ in range(STEPS):
            x = field.sample(torch.zeros(BATCH, dtype=torch.float64), generator).float().reshape(-1, 1, 1, 2)
            value = loss(net, x)
            value = value if isinstance(value, Tensor) else value["loss"]
            if not value.requires_grad or not bool(torch.isfinite(value)):
                break
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
    z, r, t, u = _truth()
    net.eval()
    with torch.no_grad():
        seen = net(z.float(), r.float(), t.float()).double()
    return float((seen - u).square().sum(1).mean() / u.square().sum(1).mean())


def _composed(bug: str, **more: Any) -> Loss:
    return Recipe(**{"bug": bug, "metric": "plain", **more}).build()


LOSSES: dict[str, Loss] = {
    "right": _composed(""),
    "right, adaptive": _composed("", metric="adaptive"),
    "right, dropout": losses.one_mask,
    "VELOCITY_SIGN": _composed("velocity negated"),
    "PATH_TANGENT_MISMATCH": _composed("velocity of another path"),
    "R_AND_T_SWAPPED": _composed("tangents of r and t swapped"),
    "R_MOVES": _composed("r moves with t"),
    "SPATIAL_TANGENT_MISSING": _composed("no spatial tangent"),
    "TIME_TANGENT_MISSING": _composed("no time tangent"),
    "TRANSPOSED_JACOBIAN": losses.summed_gradient,
    "TANGENT_NOT_VELOCITY": _composed("tangent is the state"),
    "R_DERIVATIVE_AT_WRONG_POINT": losses.elsewhere,
    "COEFFICIENT": _composed("no derivative"),
    "INTERVAL_SIGN": _composed("plus sign"),
    "INTERVAL_NOT_T_MINUS_R": _composed("no interval"),
    "TARGET_NOT_DETACHED": _composed("target attached"),
    "PREDICTION_DETACHED": _composed("prediction detached"),
    "DROPOUT_MISMATCH dropout": losses.two_masks,
    "WEIGHT_POWER": _composed("weight's power negated", metric="adaptive"),
    "WEIGHT_SQUARED_TWICE": _composed("squared twice", metric="adaptive", power=0.5),
    "WEIGHT_PER_ELEMENT": _composed("weight per element", metric="adaptive"),
    "WEIGHT_NOT_DETACHED": _composed("weight attached", metric="adaptive"),
    "WEIGHT_BATCH_COUPLED": _composed("weight over the batch", metric="adaptive"),
    "REDUCTION_MEAN": _composed("", metric="adaptive", reduction="mean"),
    "TARGET_CLIPPED": losses.clamped_target,
    "TARGET_LOW_PRECISION": losses.autocast,
    "FINITE_DIFFERENCE_COARSE": losses.coarse,
}


def sentence(name: str) -> str:
    """The effect, in one sentence."""
    key = next(key for key in LOSSES if key.split()[0] == name)
    right = (
        "right, dropout"
        if key.endswith("dropout")
        else "right, adaptive"
        if name.startswith(("WEIGHT", "REDUCTION"))
        else "right"
    )
    try:
        off, base = error_after(key), error_after(right)
    except (MeanFlowError, RuntimeError) as error:
        return f"training stops: {type(error).__name__}"
    against = {
        "right": "the right loss",
        "right, adaptive": "the right weight, p = 1, itself biased in two dimensions (docs/adaptive_weight.md),",
        "right, dropout": "one mask for both",
    }[right]
    return (
        f"Trained for {STEPS} steps on a planar mixture, u ends {100 * off**0.5:.0f} % off (root mean square, relative to u); "
        f"with {against} {100 * base**0.5:.0f} %."
    )


def main() -> None:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(prog="python -m meanflow_ref.kit.loss_effects", description=__doc__)
    parser.add_argument("names", nargs="*", help="diagnoses; all if none is given")
    parser.add_argument("--write", action="store_true", help="write the file that the pages read")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [key.split()[0] for key in LOSSES if not key.startswith("right")]
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        raise ParameterError(f"{unknown[0]!r} has no measurement.", ", ".join(names), "")
    known: dict[str, str] = dict(json.loads(FILE.read_text())) if FILE.exists() else {}
    for name in arguments.names or names:
        known[name] = sentence(name)
        print(f"{name}: {known[name]}", flush=True)
        if arguments.write:
            write_atomic(FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
