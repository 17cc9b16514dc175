"""The command ``meanflow-ref``. Starting it imports neither torch nor sympy; each command brings what it needs.

Exit codes: 0 holds, 1 a check failed, 2 could not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from meanflow_ref import __version__


class _Parser(argparse.ArgumentParser):
    """A parser whose error says the nearest thing to type."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            typed = message.split("invalid choice: ")[1].split("'")[1]
            near = get_close_matches(typed, COMMANDS, n=1)
            message = f"no command {typed!r}." + (f" Did you mean `{self.prog} {near[0]}`?" if near else "")
            message += f"\nCommands: {', '.join(COMMANDS)}"
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


@dataclass(frozen=True)
class Command:
    """One command: what it runs and what it takes, both imported when needed.

    Attributes:
        run: ``"module:function"`` under ``meanflow_ref``, from parsed arguments to the exit code.
        text: Its line in ``--help``.
        options: Adds its options to a parser; a function here, or ``"module:function"`` of a module without torch.

    """

    run: str
    text: str
    options: str | Callable[[argparse.ArgumentParser], None] | None = None

    def __call__(self, arguments: argparse.Namespace) -> int:
        """Run it and return its exit code."""
        return int(_load(self.run)(arguments))

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Fill ``parser``."""
        if self.options is not None:
            (_load(self.options) if isinstance(self.options, str) else self.options)(parser)


def _load(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(import_module(f"meanflow_ref.{module}"), name)


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("meanflow-ref-report.html"), metavar="FILE",
                        help="where the HTML report goes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-report", action="store_true", help="write no HTML report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the checks whose group or name contains TEXT")
    parser.add_argument("--list", action="store_true", help="print the checks and their bounds, run none")
    parser.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: the cores, 4 at most)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write the figures as PNG files")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also write the table of oracles into FILE")
    parser.add_argument("--kit", action="store_true", help="run the kit on its own mutants instead: a confusion matrix")
    parser.add_argument("--cases", type=int, default=0, metavar="N",
                        help="with --kit: N randomly composed losses as well")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="with --kit: also write the matrix into FILE")


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("network", nargs="?", default="", metavar="pkg.mod:net",
                        help="a module, or a function without arguments that returns one, called net(z, r, t); "
                             "without it, the networks of this library's own table")  # fmt: skip
    parser.add_argument("--shape", default="", metavar="C,H,W", help="shape of one sample, for a network of your own")
    parser.add_argument("--batch", type=int, default=8, help="samples of a step (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="share of rows with r != t (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="also under torch.compile, which takes minutes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=30.0, metavar="S", help="seconds of timing a network")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write jvp.json, jvp.md and jvp.svg there")


def _explain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a diagnosis; see meanflow-ref list")


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write all pages there as one document")


def _vectors_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to; made if need be")
    parser.add_argument("--oracle", type=int, metavar="N", help="the oracle's number (default: the newest)")


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER)


COMMANDS = {
    "verify": Command(
        "verify.command:verify",
        "the main job: proofs, exact truth, the reference loss held against it, and its mutants",
        _verify_options,
    ),
    "check": Command(
        "kit.command:check",
        "somebody's loss, measured from outside: is it right, and what is wrong with it",
        "kit.command:add_check_options",
    ),
    "prove": Command(
        "kit.prove.command:prove",
        "prove that a loss, value and gradient, is the formula; or show where it is not",
        "kit.prove.command:add_options",
    ),
    "preflight": Command(
        "kit.network.command:preflight",
        "will this network survive a JVP? names the module, the cause, the fix",
        "kit.network.command:add_options",
    ),
    "tape": Command(
        "kit.tape.command:tape",
        "judge a loss of any framework by a recording (npz); needs numpy alone",
        "kit.tape.command:add_options",
    ),
    "explain": Command(
        "kit.command:explain", "one diagnosis's page: symptom, cause, remedy, measured effect", _explain_options
    ),
    "list": Command("kit.command:list_checks", "all diagnoses of the oracle", _list_options),
    "bench": Command(
        "bench.command:bench",
        "what a MeanFlow step costs on your network and device, by way of getting du/dt",
        _bench_options,
    ),
    "train": Command(
        "train.__main__:command", "the reference trainer (same as python -m meanflow_ref.train)", _train_options
    ),
    "sample": Command(
        "train.sample_command:sample_command",
        "samples of a trained run, in one step or a few",
        "train.sample_command:add_options",
    ),
    "vectors": Command("truth.golden.command:vectors", "export the golden vectors as JSON and npz", _vectors_options),
    "cite": Command("doctor:cite", "BibTeX for this library and the paper, the oracle's number and digest"),
    "doctor": Command("doctor:doctor", "versions, devices and optional packages found"),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="meanflow-ref",
        description="Exact truth, a reference loss and proofs for MeanFlow.",
        epilog="Exit codes: 0 holds, 1 a check failed, 2 could not run.",
    )
    parser.add_argument("--version", action="version", version=f"meanflow-ref {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        # The trainer has its own parser, help included.
        child = commands.add_parser(name, help=command.text, description=command.text, add_help=name != "train")
        command.add_options(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        # argparse would take the trainer's options for its own.
        parsed = argparse.Namespace(command="train", arguments=arguments[1:])
    else:
        parsed = build_parser().parse_args(arguments)
    try:
        return COMMANDS[parsed.command](parsed)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 2
    except Exception as error:
        from meanflow_ref.errors import MeanFlowError

        if not isinstance(error, MeanFlowError | OSError):
            raise
        print(f"meanflow-ref: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
