"""``meanflow-ref bench``: what a MeanFlow step costs on your network and your device."""

from __future__ import annotations

import argparse
import sys

import torch

from meanflow_ref.bench.allocator import keep_freed_memory
from meanflow_ref.bench.measure import Outcome, measure, prepare
from meanflow_ref.bench.methods import COMPILED, METHODS, Method
from meanflow_ref.bench.own import own_scenario
from meanflow_ref.bench.scenarios import SCENARIOS
from meanflow_ref.bench.table import finding, legend, save, to_markdown
from meanflow_ref.errors import ParameterError


def bench(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if not 0 < arguments.share <= 1:
        raise ParameterError(f"--share {arguments.share}.", "a share in (0, 1]", "--share 0.25")
    own = arguments.network
    scenarios = [own_scenario(own, arguments.shape, arguments.batch)] if own else list(SCENARIOS.values())
    methods = methods_for(arguments.share, compiled=arguments.compiled)
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        outcomes: list[Outcome] = []
        for scenario in scenarios:
            print(f"measuring {scenario.name}: {scenario.about}", file=sys.stderr)
            prepared = prepare(scenario, methods, device=arguments.device, share=arguments.share)
            for refusal in prepared.refusals.values():
                print(f"  without {refusal.method}: {refusal.reason}", file=sys.stderr)
            outcomes += measure(prepared, rounds=arguments.rounds, budget=arguments.budget)
            outcomes += prepared.refusals.values()
        # While the number of threads is that of the run, which the record tells.
        said = (to_markdown(outcomes), finding(outcomes), finding(outcomes, "stopgrad"), legend(outcomes))
        print("\n\n".join(text for text in said if text))
        if arguments.out is not None:
            print(f"\nwritten: {', '.join(map(str, save(outcomes, arguments.out)))}")
    finally:
        torch.set_num_threads(before)
    return 0


def methods_for(share: float, *, compiled: bool) -> dict[str, Method]:
    """Methods that differ at this share of rows with r != t: with all of them there is nothing to take apart."""
    methods = METHODS | COMPILED if compiled else METHODS
    return {name: method for name, method in methods.items() if share < 1 or not method.on_rows}
