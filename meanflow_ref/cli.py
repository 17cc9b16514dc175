"""The command ``meanflow-ref``. Starting it imports neither torch nor sympy; each command brings what it needs.

Exit codes: 0 holds, 1 a check failed, 2 could not run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

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


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.kit:
        from meanflow_ref.kit.matrix import verify_kit

        return verify_kit(arguments)
    from meanflow_ref.verify.command import verify

    return verify(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from meanflow_ref.kit.command import check

    return check(arguments)


def _explain(arguments: argparse.Namespace) -> int:
    from meanflow_ref.kit.command import explain

    return explain(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from meanflow_ref.kit.command import list_checks

    return list_checks(arguments)


def _train(arguments: argparse.Namespace) -> int:
    from meanflow_ref.train.__main__ import main as train

    return train(arguments.arguments)


def _preflight(arguments: argparse.Namespace) -> int:
    from meanflow_ref.kit.network.command import preflight

    return preflight(arguments)


def _tape(arguments: argparse.Namespace) -> int:
    from meanflow_ref.kit.tape.command import tape

    return tape(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from meanflow_ref.doctor import doctor

    return doctor()


def _cite(arguments: argparse.Namespace) -> int:
    from meanflow_ref.doctor import BIBTEX

    print(BIBTEX)
    return 0


COMMANDS = {
    "verify": (_verify, "the main job: proofs, exact truth, the reference loss held against it, and its mutants"),
    "check": (_check, "somebody's loss, measured from outside: is it right, and what is wrong with it"),
    "explain": (_explain, "one diagnosis's page: symptom, cause, remedy, measured effect"),
    "list": (_list, "all diagnoses of the oracle"),
    "train": (_train, "the compact reference trainer (same as python -m meanflow_ref.train)"),
    "preflight": (_preflight, "will this network survive a JVP? names the module, the cause, the fix"),
    "tape": (_tape, "judge a loss of any framework by a recording (npz); needs numpy alone"),
    "doctor": (_doctor, "versions, devices and optional packages found"),
    "cite": (_cite, "BibTeX for this library and the paper"),
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
    for name, (_, text) in COMMANDS.items():
        # The trainer has its own parser, help included.
        child = commands.add_parser(name, help=text, description=text, add_help=name != "train")
        if name == "verify":
            _add_verify_options(child)
        if name == "tape":
            from meanflow_ref.kit.tape.command import add_options as add_tape_options

            add_tape_options(child)
        if name == "preflight":
            from meanflow_ref.kit.network.command import add_options as add_preflight_options

            add_preflight_options(child)
        if name == "check":
            from meanflow_ref.kit.command import add_check_options

            add_check_options(child)
        if name == "list":
            child.add_argument("--markdown", type=Path, metavar="FILE", help="write all pages there as one document")
        if name == "explain":
            child.add_argument("name", metavar="NAME")
        if name == "train":
            child.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", type=Path, default=Path("meanflow-ref-report.html"), metavar="FILE",
                        help="where the HTML report goes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--no-report", action="store_true", help="write no HTML report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the checks whose group or name contains TEXT")
    parser.add_argument("--list", action="store_true", help="print the checks and their bounds, run none")
    parser.add_argument("--jobs", type=int, metavar="N", help="worker processes (default: the cores, 4 at most)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write the figures as PNG files")
    parser.add_argument("--kit", action="store_true", help="run the kit on its own mutants instead: a confusion matrix")
    parser.add_argument(
        "--cases", type=int, default=0, metavar="N", help="with --kit: N randomly composed losses as well"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="with --kit: also write the matrix into FILE")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also write the table of oracles into FILE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        # argparse would take the trainer's options for its own.
        parsed = argparse.Namespace(command="train", arguments=arguments[1:])
    else:
        parsed = build_parser().parse_args(arguments)
    try:
        return COMMANDS[parsed.command][0](parsed)
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
