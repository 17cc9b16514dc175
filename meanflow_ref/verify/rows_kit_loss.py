"""The loss check, checked: a few wrong losses named, a few lawful ones left alone. All of them: ``verify --kit``."""

from __future__ import annotations

from functools import partial

from meanflow_ref.verify.check import Check

GROUP = "Kit: losses"

# Wrong losses of three parts of a loss: tangent, guidance, clamp.
MUTANTS = ("h held fixed in a (z, t, h) network", "guidance lost where r = t", "du/dt clamped")
NEIGHBOURS = ("vectors, columns of times, (z, t, h)", "guided, both branches stacked", "network of h alone")


def mistaken(title: str) -> float:
    """1 if the check says of a case what it must not, else 0."""
    from meanflow_ref.kit.loss.check import check_loss
    from meanflow_ref.kit.mutants.losses import HAND_MUTANTS, HAND_NEIGHBOURS

    case = next(case for case in (*HAND_MUTANTS, *HAND_NEIGHBOURS) if case.title == title)
    report = check_loss(case.target, **case.options)
    wrong = [one.name for one in report.diagnoses if one.severity == "wrong"]
    right = report.verdict == "wrong" and wrong[:1] == [case.name] if case.name else report.ok and not wrong
    return float(not right)


def checks() -> list[Check]:
    """One row a case."""
    rows = [Check(GROUP, f"wrong, not named: {title}", partial(mistaken, title), 0.0) for title in MUTANTS]
    return rows + [Check(GROUP, f"lawful, flagged: {title}", partial(mistaken, title), 0.0) for title in NEIGHBOURS]
