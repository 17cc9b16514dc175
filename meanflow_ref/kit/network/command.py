"""``meanflow-ref preflight pkg.mod:net``."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meanflow_ref.errors import ParameterError
from meanflow_ref.files import require_writable
from meanflow_ref.kit.plain import add_format_options, emit


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the network is and how it is called. Imports no torch."""
    parser.add_argument("target", metavar="MODULE:NAME", help="a network, or what makes one without arguments")
    parser.add_argument("--shape", default="4", help="shape of one event, as 3,32,32 (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="rows (default: %(default)s)")
    parser.add_argument("--call", help='how it is called, as "z, r, t" (default) or "z, (t, h), y"')
    parser.add_argument("--returns", default="u", help='what it returns, as "u, v" (default: %(default)s)')
    parser.add_argument("--classes", type=int, help="number of classes, if it takes labels")
    parser.add_argument("--data-at-one", action="store_true", help="its noise is at t = 0")
    parser.add_argument("--time-shape", default="(B,)", choices=("(B,)", "(B, 1)", "broadcast"))
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16"))
    parser.add_argument("--compile", metavar="BACKEND", help="also compare with torch.compile, e.g. eager or inductor")
    parser.add_argument("--seed", type=int, default=0)
    add_format_options(parser)


def preflight(arguments: argparse.Namespace) -> int:
    """Check a network; returns the exit code."""
    import torch

    from meanflow_ref.kit.network.check import check_network
    from meanflow_ref.kit.target import load_target

    if arguments.out is not None:
        require_writable(arguments.out)
    shape = _shape(arguments.shape)
    if arguments.batch < 1:
        raise ParameterError(f"--batch {arguments.batch}", "at least 1 row", "")
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(arguments.seed)
    net = _made(load_target(arguments.target), arguments.target)
    if isinstance(net, torch.nn.Module):
        net = net.to(dtype)
    generator = torch.Generator().manual_seed(arguments.seed)
    z = torch.randn(arguments.batch, *shape, generator=generator).to(dtype)
    times = torch.rand(2, arguments.batch, generator=generator).sort(0).values
    # Times stay in float32 beside a half-precision state, as they should in training.
    times = times.to(torch.promote_types(dtype, torch.float32))
    label = None
    if arguments.classes is not None:
        label = torch.randint(arguments.classes, (arguments.batch,), generator=generator)
    report = check_network(
        net,
        z,
        times[0],
        times[1],
        label=label,
        call=arguments.call,
        returns=arguments.returns,
        time_direction="data_at_one" if arguments.data_at_one else "noise_at_one",
        time_shape=arguments.time_shape,
        compiled=arguments.compile or False,
        seed=arguments.seed,
    )
    report = replace(report, target=arguments.target)
    return emit(report, arguments, _modules(report.measured.get("modules", [])))


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ParameterError(f"--shape {text}", "positive integers, as 3,32,32", "")
    return shape


def _made(target: Any, address: str) -> Callable[..., Any]:
    """The network itself, or what a factory makes."""
    from torch import nn

    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise ParameterError(f"{address} is {type(target).__name__}.", "a network, or a function that makes one", "")
    needed = [
        p.name
        for p in inspect.signature(target).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not needed:
        return target()  # type: ignore[no-any-return]
    if inspect.isclass(target):
        raise ParameterError(
            f"{address} needs {', '.join(needed)}.",
            "a network, or a function or class without arguments",
            f"write a function: def net(): return {target.__name__}(...)",
        )
    return target  # type: ignore[no-any-return]


def _modules(rows: list[dict[str, Any]]) -> str:
    """A table of the modules in which u moves most with t."""
    if not rows:
        return ""
    shown = sorted(rows, key=lambda row: -row["time"] / max(row["value"], 1e-12))[:12]
    width = max(len(row["module"] or "u") for row in shown)
    lines = ["", f"{'module':{width}}  {'|value|':>9} {'spatial':>9} {'time':>9} {'error':>9}"]
    for row in shown:
        error = "" if row["error"] is None else f"{row['error']:9.1e}"
        numbers = f"{row['value']:9.2e} {row['spatial']:9.2e} {row['time']:9.2e} {error}"
        lines.append(f"{row['module'] or 'u':{width}}  {numbers}".rstrip())
    lines.append("(du/dt along (v, 0, 1): its spatial and its time part, and its error against float64)")
    return "\n".join(lines) + "\n"
