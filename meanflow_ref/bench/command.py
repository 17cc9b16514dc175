"""``meanflow-ref bench``: what a MeanFlow step costs on your network and your device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meanflow_ref.bench.measure import Row, measure
from meanflow_ref.bench.methods import BASELINE, METHODS, YARDSTICK, Method
from meanflow_ref.bench.scenarios import SCENARIOS, Scenario
from meanflow_ref.bench.table import finding, legend, save, to_markdown
from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError


def bench(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if not 0 < arguments.share <= 1:
        raise ParameterError(f"--share {arguments.share}.", "a share in (0, 1]", "--share 0.25")
    scenarios = [_own(arguments)] if arguments.network else list(SCENARIOS.values())
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        rows: list[Row] = []
        for scenario in scenarios:
            print(f"measuring {scenario.name}: {scenario.about}", file=sys.stderr)
            rows += measure(
                scenario, usable(scenario, arguments), device=arguments.device, rounds=arguments.rounds,
                budget=arguments.budget, share=arguments.share,
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    print(f"{to_markdown(rows)}\n\n{finding(rows)}\n{finding(rows, 'stopgrad')}\n\n{legend()}")
    if arguments.out is not None:
        print(f"\nwritten: {', '.join(map(str, save(rows, arguments.out)))}")
    return 0


def usable(scenario: Scenario, arguments: argparse.Namespace) -> dict[str, Method]:
    """Methods that the network can be trained with; of the others it is said why not."""
    net = scenario.network(device=arguments.device)
    batch = scenario.resized(min(2, scenario.batch)).data(device=arguments.device)
    found: dict[str, Method] = {}
    for name, method in METHODS.items():
        if name == "stopgrad_rows" and arguments.share == 1:
            continue
        try:
            method.step(net, batch)()
        except (MeanFlowError, RuntimeError, TypeError) as error:
            if name == YARDSTICK:
                raise NetworkError(
                    f"{scenario.name} cannot be called or trained: {error}",
                    f"a network called net(z, r, t), z of shape (batch, {', '.join(map(str, scenario.event))})",
                    "give the shape of a sample by --shape, and a function that returns the network",
                ) from error
            print(f"  without {name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        found[name] = method
    if BASELINE not in found:
        # The ratio to the baseline is then that to the yardstick.
        found = {BASELINE: METHODS[YARDSTICK], **found}
    return found


def _own(arguments: argparse.Namespace) -> Scenario:
    build = _load(arguments.network)
    try:
        event = tuple(int(n) for n in arguments.shape.replace("x", ",").split(","))
    except ValueError:
        raise ParameterError(
            f"--shape {arguments.shape!r}.", "the shape of one sample", "--shape 4,32,32, or --shape 64"
        ) from None
    about = f"{arguments.network}, batch {arguments.batch} of {'x'.join(map(str, event))}"
    return Scenario(arguments.network.rpartition(":")[2], build, event, arguments.batch, about)


def _load(target: str) -> Callable[[], nn.Module]:
    module, colon, name = target.partition(":")
    if not colon:
        raise ParameterError(f"{target!r} has no colon.", "module:attribute", f"{target}:net")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ParameterError(f"{target!r} cannot be imported: {error}.", "module:attribute", "") from error
    finally:
        sys.path.pop(0)
    if isinstance(found, nn.Module):
        return lambda: found
    if callable(found):
        return found  # type: ignore[no-any-return]
    raise ParameterError(f"{target!r} is {type(found).__name__}.", "an nn.Module, or a function that returns one", "")
