"""The times that a loss draws, gathered over many seeds: order, range, share of r = t, what a batch has in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.kit.loss.formula import Judgement
from meanflow_ref.kit.loss.measure import Measured
from meanflow_ref.kit.loss.probe import NUM_CLASSES, Setting
from meanflow_ref.kit.loss.run import run
from meanflow_ref.kit.loss.solve import layout_of

SEEDS = 16
# A right share is called wrong with at most this probability (exact binomial, two-sided).
FALSE_ALARM = 1e-7


def gather(m: Measured) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """r, t and labels of the trained rows, one tensor a seed."""
    rs, ts, ys = [], [], []
    for seed in range(SEEDS):
        done = run(m.target, Setting(tanh=True), seed=seed)
        layout = layout_of(done)
        rs.append(layout.pick(done.calls, "r"))
        ts.append(layout.pick(done.calls, "t"))
        labels = [done.calls[unit.call].y for unit in layout.units]
        rows = [None if y is None else y.reshape(-1)[u.row] for y, u in zip(labels, layout.units, strict=True)]
        ys.append(None if any(y is None for y in rows) else torch.stack([y for y in rows if y is not None]))
    return rs, ts, ys


def judge_times(m: Measured, out: Judgement, equal_share: float | None, has_r: bool) -> None:
    """Name what the times show; ``equal_share`` is what the user means P(r = t) to be."""
    rs, ts, ys = gather(m)
    r, t = torch.cat(rs), torch.cat(ts)
    unit = m.path.unit if m.path else 1.0
    r, t = r / unit, t / unit
    where = m.main.where
    equal = (t - r).abs() < 1e-9
    share = float(equal.double().mean())
    out.facts |= {"equal_share": round(share, 4), "t_mean": round(float(t.mean()), 4), "times_seen": len(t)}
    outside = ((t < -1e-9) | (t > 1 + 1e-6) | (has_r & ((r < -1e-9) | (r > 1 + 1e-6)))).double().mean()
    if float(outside) > 0:
        out.find("times range", "TIMES_OUT_OF_RANGE", f"{100 * float(outside):.2g} % of rows have a time outside [0, 1]",
                 "0 <= r, t <= 1", where)  # fmt: skip
    else:
        out.details["times range"] = f"{len(t)} rows in [0, 1]"
    _order(m, out, r, t, where)
    _shares(out, rs, equal, share, len(t), where)
    _expected_share(out, share, len(t), equal_share, where)
    _masks(out, rs, ts, ys, where)


def _order(m: Measured, out: Judgement, r: Tensor, t: Tensor, where: str) -> None:
    back = bool(m.path and m.path.reversed)
    wrong = ((t > r + 1e-9) if back else (r > t + 1e-9)).double().mean()
    right = ((t < r - 1e-9) if back else (r < t - 1e-9)).double().mean()
    if float(wrong) == 0:
        out.details["times order"] = "r on the data's side of t in every row"
        return
    if back and float(right) == 0:
        # Data at one with r < t: the interval runs to the noise, and its u takes data to noise.
        detail = "with data at t = 1 the interval must reach from the state towards 1"
    else:
        detail = "r between the data and t"
    out.find("times order", "R_GREATER_THAN_T", f"{100 * float(wrong):.2g} % of rows have r on the noise's side of t",
             detail, where)  # fmt: skip


def _shares(out: Judgement, rs: list[Tensor], equal: Tensor, share: float, n: int, where: str) -> None:
    sizes = [len(r) for r in rs]
    per_run = [part.double().mean() for part in torch.split(equal, sizes)]
    extremes = [float(p) in {0.0, 1.0} for p in per_run]
    if all(extremes) and 0 < share < 1 and min(sizes) >= 4:
        out.find("times mix", "PER_BATCH_COIN", f"in each of {len(sizes)} batches either all rows have r = t or none",
                 "a coin for each row", where)  # fmt: skip
    elif share == 1:
        out.find("times mix", "NEVER_R_NEQ_T", f"r = t in all {n} rows: this is flow matching", "some rows with r < t",
                 where)  # fmt: skip
    elif share == 0:
        out.find("times mix", "NEVER_R_EQ_T", f"r = t in none of {n} rows", "25 to 75 % of rows with r = t", where,
                 severity="note")  # fmt: skip
    else:
        out.details["times mix"] = f"r = t in {100 * share:.1f} % of {n} rows"


def _expected_share(out: Judgement, share: float, n: int, wanted: float | None, where: str) -> None:
    if wanted is None:
        return
    # Hoeffding's bound holds for independent rows and, a fortiori, for exact counts.
    bound = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * n))
    if abs(share - wanted) <= bound:
        return
    name = "RATIO_INVERTED" if abs(share - (1 - wanted)) <= bound else "RATIO_MISMATCH"
    out.find("times mix", name, f"r = t in {100 * share:.1f} % of {n} rows", f"{100 * wanted:.1f} % (within {100 * bound:.1f})",
             where)  # fmt: skip


def _masks(out: Judgement, rs: list[Tensor], ts: list[Tensor], ys: list[Any], where: str) -> None:
    """Whether rows with a dropped label have r = t more, or less, often than the others."""
    if any(y is None for y in ys):
        return
    null = torch.cat(ys) == NUM_CLASSES
    equal = (torch.cat(ts) - torch.cat(rs)).abs() < 1e-9
    if int(null.sum()) < 20 or int((~null).sum()) < 20 or not 0 < float(equal.double().mean()) < 1:
        return
    p_null, p_class = float(equal[null].double().mean()), float(equal[~null].double().mean())
    bound = math.sqrt(math.log(4 / FALSE_ALARM) / 2) * (
        1 / math.sqrt(int(null.sum())) + 1 / math.sqrt(int((~null).sum()))
    )
    if abs(p_null - p_class) > bound or (p_null in {0.0, 1.0} and abs(p_null - p_class) > bound / 2):
        out.find("times mix", "MASKS_CORRELATED", f"r = t in {100 * p_null:.0f} % of the rows without a label, "
                 f"{100 * p_class:.0f} % of the others", "independent draws", where)  # fmt: skip
