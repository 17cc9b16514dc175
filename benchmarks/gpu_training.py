"""What a training step of DiT-B/4 on ImageNet latents costs: time, memory, the JVP's share, model FLOP utilisation.

    python -m benchmarks.gpu_training --out benchmarks/results/DEVICE        # on a GPU: B/4, batch 256, bf16, compiled
    python -m benchmarks.gpu_training                                        # on the CPU: the same, small; it says so

Steps of MeanFlow and of flow matching run in turn, on one network and one batch; times are medians, the ratio is the
median over rounds of the ratio within a round. FLOPs are counted (matrix products and convolutions), never estimated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from meanflow_ref.bench.counters import count_cost
from meanflow_ref.errors import MeanFlowError
from meanflow_ref.files import write_atomic
from meanflow_ref.train.batches import Batch
from meanflow_ref.train.config import Config
from meanflow_ref.train.distributed import find_device
from meanflow_ref.train.networks import make_network, parameters_of
from meanflow_ref.train.objective import Step, times_of
from meanflow_ref.train.presets import preset
from meanflow_ref.train.random import generator

# Dense bfloat16 peak of a device by a part of its name, FLOP/s, from its maker's data sheet.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
CLASSES = 1000


def settings(
    device: torch.device, batch: int | None, precision: str = "bf16", compile_: bool = True
) -> tuple[Config, tuple[int, ...], str]:
    """Options, shape of a latent, and what they are."""
    full = preset("imagenet-b4")
    if device.type == "cuda":
        return (
            preset("imagenet-b4", batch=batch or full.batch, precision=precision, compile=compile_),
            (4, 32, 32),
            "DiT-B/4, 32 x 32 x 4 latents, 1000 classes",
        )
    small = {"width": 96, "depth": 2, "heads": 3, "batch": batch or 8, "compile": False, "precision": "fp32"}
    return (
        preset("imagenet-b4", **small),
        (4, 16, 16),
        "SMALL STAND-IN ON THE CPU: DiT of width 96 and depth 2, 16 x 16 x 4 latents; its numbers say nothing of a GPU",
    )


def batch_of(config: Config, shape: tuple[int, ...], device: torch.device) -> Batch:
    """A batch of noise in the place of latents: what is in it changes no cost."""
    fresh = generator(0, "benchmark")
    x, eps = (torch.randn(config.batch, *shape, generator=fresh).to(device) for _ in range(2))
    r, t = (time_.to(device) for time_ in times_of(config).sample(config.batch, fresh))
    return Batch(x, eps, r, t, torch.randint(CLASSES, (config.batch,), generator=fresh).to(device))


def step_of(config: Config, shape: tuple[int, ...], objective: str, device: torch.device) -> Callable[[], None]:
    """One training step without its data: loss, gradients, Adam."""
    from dataclasses import replace

    net = make_network(config, shape, CLASSES).to(device).train()
    loss = Step(net, replace(config, objective=objective), CLASSES, None)
    if config.compile:
        loss.compile()
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    batch = batch_of(config, shape, device)
    autocast = objective == "flow-matching" and config.precision.startswith("bf16")

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        # MeanFlow's backend goes to bf16 by itself, and only where it may.
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            terms = loss(*batch)
        torch.autograd.backward(terms.loss)
        optimiser.step()

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Wall-clock seconds of one step, the device awaited."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(step: Callable[[], None], device: torch.device) -> int | None:
    """Most memory that tensors take in one step on a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    _wait(device)
    return torch.cuda.max_memory_allocated(device)


def measure(
    device: torch.device, batch: int | None, rounds: int, precision: str = "bf16", compile_: bool = True
) -> dict[str, Any]:
    """The table's numbers."""
    config, shape, about = settings(device, batch, precision, compile_)
    objectives = ("flow-matching", "meanflow")
    steps = {name: step_of(config, shape, name, device) for name in objectives}
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in objectives}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    # Counted eagerly and on few rows: FLOPs are proportional to the batch, and compiled graphs hide them.
    from dataclasses import replace

    few = replace(config, compile=False, batch=2)
    flops = {name: count_cost(step_of(few, shape, name, device)).flops * config.batch // 2 for name in objectives}
    name_ = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((value for part, value in PEAKS.items() if part in name_), None)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [b / a for a, b in zip(times["flow-matching"], times["meanflow"], strict=True)]
    return {
        "device": name_,
        "torch": torch.__version__,
        "about": about,
        "full_size": device.type == "cuda",
        "parameters": parameters_of(make_network(config, shape, CLASSES)),
        "batch": config.batch,
        "precision": config.precision,
        "compiled": config.compile,
        "jvp": f"{config.jvp}{', two passes' if config.two_pass else ''}",
        "rounds": rounds,
        "seconds": medians,
        "ratio": statistics.median(ratios),
        "flops": flops,
        "peak_bytes": {name: peak_bytes(step, device) for name, step in steps.items()},
        "utilisation": {name: flops[name] / medians[name] / peak if peak else None for name in objectives},
    }


def table(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"{numbers['about']}. {numbers['device']}, torch {numbers['torch']}, batch {numbers['batch']}, "
        f"{numbers['precision']}{', compiled' if numbers['compiled'] else ''}, {numbers['parameters'] / 1e6:.1f} M "
        f"parameters, JVP: {numbers['jvp']}. Medians of {numbers['rounds']} interleaved rounds.",
        "",
        "| step | ms | TFLOP counted | peak GiB | FLOP utilisation |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, value in numbers["seconds"].items():
        peak, used = numbers["peak_bytes"][name], numbers["utilisation"][name]
        lines.append(
            f"| {name} | {1e3 * value:.1f} | {numbers['flops'][name] / 1e12:.4f} | "
            f"{'not measured' if peak is None else f'{peak / 2**30:.2f}'} | "
            f"{'not known' if used is None else f'{used:.1%}'} |"
        )
    share = numbers["ratio"] - 1
    lines += ["", f"A MeanFlow step takes {numbers['ratio']:.2f} of a flow-matching step: the JVP adds {share:.0%}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the table where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_training")
    parser.add_argument("--device", default="auto", help="cuda, cpu, ... (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="rows (default: 256 on a GPU, 8 on the CPU)")
    parser.add_argument("--precision", default="bf16", help="of a GPU's run: bf16 or bf16-all (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="a GPU's run without torch.compile")
    parser.add_argument("--rounds", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for training.md and training.json")
    options = parser.parse_args(arguments)
    try:
        numbers = measure(
            find_device(options.device), options.batch, options.rounds, options.precision, not options.eager
        )
    except (MeanFlowError, torch.OutOfMemoryError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table(numbers))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out / "training.json", json.dumps(numbers, indent=1) + "\n")
        write_atomic(options.out / "training.md", table(numbers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
