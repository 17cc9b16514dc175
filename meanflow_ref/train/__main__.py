"""``python -m meanflow_ref.train toy --steps 1000``: the command line of the trainer.

Exit codes: 0 done, 1 the training diverged, 2 could not run, 130 interrupted (what there was is written).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from meanflow_ref.errors import MeanFlowError, MissingExtraError, NonFiniteError


def toy(arguments: Sequence[str]) -> int:
    """Run ``toy``."""
    from meanflow_ref.train.config import ToyConfig

    config: ToyConfig = _parse(ToyConfig, arguments, "toy")

    import torch
    from rich.console import Console

    from meanflow_ref.train.toy import Toy

    console = Console()
    torch.set_num_threads(config.threads)
    summary = Toy(config).run(console)
    console.print(
        f"{summary.steps} steps in {summary.seconds:.0f} s{', interrupted' if summary.interrupted else ''}\n"
        f"E|u_theta - u|^2 over (z, r, t)  {summary.u_error:.4f}   (E|u|^2 = {summary.u_size:.3f})\n"
        f"E|u_theta - u|^2 at (z, 0, 1)    {summary.one_step_error:.4f}   (E|u|^2 = {summary.one_step_size:.3f})\n"
        f"energy distance to the data      {summary.energy:.4f}   (perfect: up to {summary.energy_floor:.4f})\n"
        f"written to {config.out}",
        highlight=False,
    )
    return 130 if summary.interrupted else 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "toy": (toy, "a ring of normal laws in the plane, held against its exact average velocity"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the trainer and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        typed = arguments[0] if arguments else ""
        near = get_close_matches(typed, COMMANDS, n=1)
        print(f"no command {typed!r}. " if typed else "which command? ", end="", file=sys.stderr)
        print(f"Did you mean `{near[0]}`?\n{_usage()}" if near else _usage(), file=sys.stderr)
        return 2
    try:
        return COMMANDS[arguments[0]][0](arguments[1:])
    except NonFiniteError as error:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except (MeanFlowError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def _usage() -> str:
    lines = (f"  {name:8s} {about}" for name, (_, about) in COMMANDS.items())
    return "\n".join(["usage: python -m meanflow_ref.train COMMAND [options]; COMMAND --help lists them", *lines])


def _parse(config: type[Any], arguments: Sequence[str], command: str) -> Any:
    """The options of a command; a wrong option ends the program with 2 and a message."""
    try:
        import tyro
    except ImportError as missing:
        raise MissingExtraError("tyro", "train", "The trainer's command line") from missing
    return tyro.cli(config, args=arguments, prog=f"python -m meanflow_ref.train {command}")


if __name__ == "__main__":
    raise SystemExit(main())
