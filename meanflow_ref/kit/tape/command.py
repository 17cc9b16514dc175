"""``meanflow-ref tape init FILE`` writes the question, ``tape check FILE`` judges the answer. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanflow_ref.files import require_writable
from meanflow_ref.kit.plain import add_format_options, emit


def add_options(parser: argparse.ArgumentParser) -> None:
    """The two subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = actions.add_parser("init", help="write the network and the data that a recorder loads")
    init.add_argument("file", type=Path, metavar="FILE")
    init.add_argument("--dim", type=int, default=6, help="dimension of a state (default: %(default)s)")
    init.add_argument("--batch", type=int, default=64, help="rows of data (default: %(default)s)")
    init.add_argument("--seed", type=int, default=0)
    check = actions.add_parser("check", help="judge a recording; numpy is enough")
    check.add_argument("file", type=Path, metavar="FILE")
    add_format_options(check)


def tape(arguments: argparse.Namespace) -> int:
    """Run either; returns the exit code."""
    if arguments.action == "init":
        from meanflow_ref.kit.tape.asking import write_question

        write_question(arguments.file, arguments.dim, arguments.batch, arguments.seed)
        print(f"{arguments.file}: a network and two batches. docs/tape.md says what to record.")
        return 0
    from meanflow_ref.kit.tape.judge import judge
    from meanflow_ref.kit.tape.reading import read_tape

    if arguments.out is not None:
        require_writable(arguments.out)
    return emit(judge(read_tape(arguments.file), str(arguments.file)), arguments)
