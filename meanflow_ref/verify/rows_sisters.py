"""The checks beside the loss check, checked: every mutant named, no right neighbour flagged."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.verify.check import Check

GROUP = "Kit: samplers, times, networks"


def _report(part: str, case: Case) -> Any:
    import torch

    options = dict(case.options)
    if part == "samplers":
        from meanflow_ref.kit.sampler import check_sampler

        return check_sampler(case.target, **options)
    if part == "times":
        from meanflow_ref.kit.times import check_times

        return check_times(case.target, **options)
    if part == "guidance":
        from meanflow_ref.kit.guidance.check import check_guidance

        return check_guidance(case.target, **options)
    from meanflow_ref.kit.network.check import check_network

    torch.manual_seed(0)
    dtype = options.pop("dtype", torch.float32)
    times = torch.rand(2, 6).sort(0).values.to(dtype)
    return check_network(case.target().to(dtype), torch.randn(6, 4).to(dtype), times[0], times[1], **options)


def right(part: str, case: Case) -> bool:
    """Whether the check says of a case what it must."""
    report = _report(part, case)
    wrong = [one.name for one in report.diagnoses if one.severity == "wrong"]
    notes = [one.name for one in report.diagnoses if one.severity == "note"]
    if case.name is None or case.note:
        return bool(report.ok) and not wrong and (not case.note or notes == [case.name])
    return report.verdict == "wrong" and wrong[:1] == [case.name]


def mistakes(part: str, kind: str) -> float:
    """How many cases the check gets wrong."""
    module = import_module(f"meanflow_ref.kit.mutants.{part}")
    return float(sum(not right(part, case) for case in getattr(module, kind)))


def checks() -> list[Check]:
    """The rows; what takes longer (guidance, healthy networks) is left to the tests."""
    rows = []
    titles = {"MUTANTS": "mutants, not named", "CORRECT": "right ones, flagged"}
    for part in ("samplers", "times", "networks"):
        module = import_module(f"meanflow_ref.kit.mutants.{part}")
        for kind, title in titles.items():
            if (part, kind) != ("networks", "CORRECT"):
                name = f"{part}: of {len(getattr(module, kind))} {title}"
                rows.append(Check(GROUP, name, partial(mistakes, part, kind), 0.0))
    return rows
