r"""What a published wrong recipe costs, beside the right one, on the same toy.

A public explanation of MeanFlow trains with time running from noise (0) to data (1), which is a legal convention, and
makes two mistakes in it:

- du/dt from the gradient of the *sum* of the network's outputs. For one output that is the Jacobian-vector product;
  for more it is :math:`(J^T 1) \odot v + \sum_d \partial_t u_d` in the place of :math:`J v + \partial_t u`.
- a sampler that stands at the wrong end: trained on :math:`u(z_t, r, t)` with z at the *later* time, it steps
  :math:`z_1 = z_0 + u(z_0, 0, 1)` from the state at the earlier one. The right step anchors the interval where the
  state is, :math:`z_1 = z_0 + u(z_0, r = 1, t = 0)`, or runs time the other way, as the paper does.

Each mistake is here by itself and both together, written anew from this description. All four runs have one network,
one set of seeds, one optimiser and the plain squared error. Every run trains rows with r = t too; the right sampler
of the reversed convention needs intervals in both directions, which the rows of all runs in it have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meanflow_ref.errors import ParameterError


@dataclass(frozen=True)
class Recipe:
    """A way to train and sample.

    Attributes:
        name: Short name.
        right_derivative: du/dt by a JVP; otherwise by the gradient of a sum.
        right_anchor: The sampler stands where training put the state.

    """

    name: str
    right_derivative: bool
    right_anchor: bool


RECIPES = (
    Recipe("right", True, True),
    Recipe("wrong derivative", False, True),
    Recipe("wrong anchor", True, False),
    Recipe("as published", False, False),
)


def summed_gradient(net: Callable[..., Any], z: Any, r: Any, t: Any, v: Any) -> tuple[Any, Any]:
    """u, and the published stand-in for du/dt: right in one dimension alone. Times run from noise to data."""
    import torch

    z, t = z.detach().requires_grad_(), t.detach().requires_grad_()
    u = net(z, r, t)
    by_z, by_t = torch.autograd.grad(u.sum(), (z, t), retain_graph=True)
    return u, (by_t[:, None] + by_z * v).detach()


def train_recipe(recipe: Recipe, *, steps: int, batch: int, seed: int) -> Any:
    """A network trained by a recipe, with time from noise (0) to data (1); the averaged one."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from meanflow_ref import formulas
    from meanflow_ref.jvp import get_backend
    from meanflow_ref.models import MLP
    from meanflow_ref.train.data.fields import ring
    from meanflow_ref.train.loop import schedule
    from meanflow_ref.train.presets import preset
    from meanflow_ref.train.random import generator, seed_of

    config = preset("toy", steps=steps)
    field, jvp = ring(8, 2.0, 0.3), get_backend("double_backward")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "network"))
        net = MLP(2, config.width, config.depth)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    for step in range(1, steps + 1):
        fresh = generator(seed, "recipes", step)
        data, noise = (x.float() for x in field.sample_pair(batch, fresh))
        # The published recipe has r below t, the state at t; half of the rows here have r above t, so that its sampler
        # can be put right without training again, and a quarter has r = t.
        r, t = torch.rand(2, batch, generator=fresh)
        r = torch.where(torch.rand(batch, generator=fresh) < 0.25, t, r)
        z, v = (1 - t[:, None]) * noise + t[:, None] * data, data - noise
        if recipe.right_derivative:
            u, du_dt = jvp(net, (z, r, t), (v, None, torch.ones_like(t)))
        else:
            u, du_dt = summed_gradient(net, z, r, t, v)
        target = formulas.meanflow_target(v, du_dt.detach(), r[:, None], t[:, None])
        loss = (u - target).square().sum(-1).mean()
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * schedule(step, config)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        average.update_parameters(net)
    return average.module.eval()


def sample_recipe(recipe: Recipe, net: Callable[..., Any], noise: Any) -> Any:
    """One-step samples: from the state at time 0 over the interval to 1, anchored at 0 or (wrongly) at 1."""
    import torch

    zero, one = torch.zeros(len(noise)), torch.ones(len(noise))
    r, t = (one, zero) if recipe.right_anchor else (zero, one)
    with torch.no_grad():
        return noise + net(noise, r, t)


def main(arguments: Sequence[str]) -> int:
    """``train recipes``: run the four, print the table, write it and the figure."""
    import torch

    from meanflow_ref.files import write_atomic
    from meanflow_ref.train import figures
    from meanflow_ref.train.data.fields import ring
    from meanflow_ref.train.distances import discrepancy, perfect_floor
    from meanflow_ref.train.random import generator

    parser = argparse.ArgumentParser(prog="python -m meanflow_ref.train recipes")
    parser.add_argument("--steps", type=int, default=2500, help="of each run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4000, help="judged (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    if min(options.steps, options.batch) < 1 or options.samples < 2:
        raise ParameterError(
            f"--steps {options.steps}, --batch {options.batch}, --samples {options.samples}.",
            "at least 1 step and row, at least 2 samples",
            "",
        )
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    fresh = generator(options.seed, "recipes", "judge")
    data = ring(8, 2.0, 0.3).sample_data(options.samples, fresh).float()
    noise = torch.randn(options.samples, 2, generator=fresh)
    floor = perfect_floor(data, options.samples, fresh)
    rows, panels = {}, {"data": data}
    print(f"energy distance of one-step samples to the data; a perfect sampler is below {floor:.5f} with 0.99")
    for recipe in RECIPES:
        net = train_recipe(recipe, steps=options.steps, batch=options.batch, seed=options.seed)
        panels[recipe.name] = sample_recipe(recipe, net, noise)
        rows[recipe.name] = discrepancy(panels[recipe.name], data).to_dict()
        print(f"  {recipe.name:18s} {rows[recipe.name]['value']:9.5f}", flush=True)
    numbers = {"steps": options.steps, "batch": options.batch, "seed": options.seed, "floor": floor, "energy": rows}
    write_atomic(options.out / "recipes.json", json.dumps(numbers, indent=1) + "\n")
    write_atomic(options.out / "recipes.png", figures.to_png(figures.samples_figure(panels)))
    print(f"written to {options.out}")
    return 0
