"""``meanflow-ref prove pkg.mod:loss``."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanflow_ref.errors import ParameterError

EXIT_CODES = {"PROVED": 0, "REFUTED": 1, "NOT_EXACT": 2}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options; imports nothing heavy."""
    parser.add_argument("target", metavar="PKG.MOD:LOSS", help="the loss: loss(network, x), or more by --inputs")
    parser.add_argument("--call", default="z, r, t", metavar="SPEC", help='the network\'s call, e.g. "z, (t, h), y"')
    parser.add_argument("--returns", default="u", metavar="SPEC", help='what the network returns, e.g. "u, v"')
    parser.add_argument("--inputs", metavar="LETTERS", help='of the loss, after the network, e.g. "x, eps, r, t, y"')
    parser.add_argument("--shape", action="append", metavar="B,D", help="of the state; may be given more than once")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the trace")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there, too")


def prove(arguments: argparse.Namespace) -> int:
    """Prove a loss as the command line asks; 0 proved, 1 refuted, 2 not settled."""
    import torch

    from meanflow_ref.files import require_writable, write_atomic
    from meanflow_ref.kit.prove.prove import SHAPES, prove_loss
    from meanflow_ref.kit.target import load_target

    shapes = [_shape(text) for text in arguments.shape] if arguments.shape else SHAPES
    if arguments.out is not None:
        require_writable(arguments.out)
    report = prove_loss(
        load_target(arguments.target),
        arguments.call,
        inputs=arguments.inputs,
        returns=arguments.returns,
        shapes=shapes,
        dtype=getattr(torch, arguments.dtype),
    )
    text = report.to_json() if arguments.format == "json" else f"{report}\n"
    print(text, end="")
    if arguments.out is not None:
        write_atomic(arguments.out, text)
    return EXIT_CODES[report.verdict]


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ParameterError(f"--shape {text}", "integers with commas between, B first", "--shape 2,3") from None
