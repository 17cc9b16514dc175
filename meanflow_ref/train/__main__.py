"""``python -m meanflow_ref.train toy --steps 1000``: the command line of the trainer.

Exit codes: 0 done (or checkpointed at a SIGTERM), 1 the training diverged or a log lies outside its band, 2 could not
run, 130 interrupted (what there was is written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from meanflow_ref.errors import MeanFlowError, MissingExtraError, NonFiniteError


def train(name: str, arguments: Sequence[str]) -> int:
    """Run a preset, with what the arguments change."""
    config = _parse(name, arguments)

    from rich.console import Console

    from meanflow_ref.train.run import run
    from meanflow_ref.train.summary import print_summary

    console = Console()
    summary = run(config, console)
    if "samples" in summary or summary["status"] == "terminated":
        print_summary(summary, config, console)
    return 130 if summary["status"] == "interrupted" else 0


def _compare(arguments: Sequence[str]) -> int:
    from meanflow_ref.train.compare import main as compare

    return compare(arguments)


def _bands(arguments: Sequence[str]) -> int:
    from meanflow_ref.train.compare import make_bands

    return make_bands(arguments)


def _recipes(arguments: Sequence[str]) -> int:
    from meanflow_ref.train.recipes import main as recipes

    return recipes(arguments)


# Beside the presets.
COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "--compare": (_compare, "RUN.jsonl: whether a log lies inside the band of the reference runs"),
    "bands": (_bands, "PRESET --seeds N: run a preset with several seeds and write its band"),
    "recipes": (_recipes, "a published wrong recipe beside the right one, on one toy"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the trainer and return the exit code."""
    from meanflow_ref.train.presets import PRESETS

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    known = [*PRESETS, *COMMANDS]
    if not arguments or arguments[0] not in known:
        typed = arguments[0] if arguments else ""
        near = get_close_matches(typed, known, n=1)
        print(f"no command {typed!r}. " if typed else "which command? ", end="", file=sys.stderr)
        print(f"Did you mean `{near[0]}`?\n{_usage()}" if near else _usage(), file=sys.stderr)
        return 2
    name, rest = arguments[0], arguments[1:]
    try:
        return COMMANDS[name][0](rest) if name in COMMANDS else train(name, rest)
    except NonFiniteError as error:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except (MeanFlowError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def command(arguments: argparse.Namespace) -> int:
    """``meanflow-ref train``."""
    return main(arguments.arguments)


def _usage() -> str:
    from meanflow_ref.train.presets import PRESETS

    lines = [f"  {name:12s} {about}" for name, (_, about) in PRESETS.items()]
    lines += [f"  {name:12s} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: python -m meanflow_ref.train COMMAND [options]; COMMAND --help lists them", *lines])


def _parse(name: str, arguments: Sequence[str]) -> Any:
    """The preset with the options of the command line; a wrong option ends the program with 2 and a message."""
    from meanflow_ref.train.config import Config
    from meanflow_ref.train.presets import preset

    try:
        import tyro
    except ImportError as missing:
        raise MissingExtraError("tyro", "train", "The trainer's command line") from missing
    return tyro.cli(Config, default=preset(name), args=arguments, prog=f"python -m meanflow_ref.train {name}")


if __name__ == "__main__":
    raise SystemExit(main())
