r"""Is a run like the reference runs? Bands over several seeds, and a comparison with anybody's log.

A band is, for each quantity and each of twelve stretches of the run, the mean and the spread over seeds of the
logarithm of the stretch's mean. A log lies inside if every logarithm is within :math:`q\, s\sqrt{1 + 1/n}` of the mean,
with q Student's quantile for n - 1 degrees of freedom at the level that makes a false alarm 1 % over all comparisons
(Bonferroni): so says the theory for normal logarithms, and a right run of another seed is called wrong that rarely.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from meanflow_ref.errors import ParameterError

WINDOWS = 12
FALSE_ALARMS = 0.01
# What a band is made of; a stranger's log needs `step` and at least one of them.
QUANTITIES = ("raw_loss", "equal_loss", "tangent_ratio", "gradient_norm", "u_error")
# A spread below this share is taken for this share: bands of five seeds can be narrow by accident.
_LEAST_SPREAD = 0.02

Line = dict[str, Any]
Band = dict[str, Any]


def stretches(log: Sequence[Line], quantity: str, steps: int) -> list[float | None]:
    """Logarithm of the mean of a quantity over each stretch of the run; None where there is none."""
    sums: list[list[float]] = [[] for _ in range(WINDOWS)]
    for line in log:
        value = line.get(quantity)
        if isinstance(value, int | float) and math.isfinite(value) and 1 <= line["step"] <= steps:
            sums[min(WINDOWS - 1, (line["step"] - 1) * WINDOWS // steps)].append(float(value))
    means = [sum(values) / len(values) if values else None for values in sums]
    return [math.log(mean) if mean is not None and mean > 0 else None for mean in means]


def make_band(logs: Sequence[Sequence[Line]], steps: int, about: dict[str, Any]) -> Band:
    """The band of several logs."""
    quantities = {}
    for quantity in QUANTITIES:
        columns = list(zip(*(stretches(log, quantity, steps) for log in logs), strict=True))
        if all(None not in column for column in columns):
            means = [sum(column) / len(column) for column in columns]
            spreads = [
                max(math.sqrt(sum((x - m) ** 2 for x in column) / (len(column) - 1)), _LEAST_SPREAD)
                for column, m in zip(columns, means, strict=True)
            ]
            quantities[quantity] = {"mean": means, "spread": spreads}
    return {"about": about, "steps": steps, "seeds": len(logs), "windows": WINDOWS, "quantities": quantities}


def compare(log: Sequence[Line], band: Band) -> list[tuple[str, int, float, float, float, bool]]:
    """``(quantity, stretch, value, low, high, inside)`` for everything that the log and the band have in common."""
    from scipy.stats import t as student

    n, steps = band["seeds"], band["steps"]
    found = {name: stretches(log, name, steps) for name in band["quantities"]}
    comparisons = sum(x is not None for values in found.values() for x in values)
    if not comparisons:
        return []
    q = float(student.ppf(1 - FALSE_ALARMS / comparisons / 2, n - 1)) * math.sqrt(1 + 1 / n)
    rows = []
    for name, values in found.items():
        at = band["quantities"][name]
        for i, x in enumerate(values):
            if x is not None:
                low, high = at["mean"][i] - q * at["spread"][i], at["mean"][i] + q * at["spread"][i]
                rows.append((name, i, math.exp(x), math.exp(low), math.exp(high), low <= x <= high))
    return rows


def read_band(name: str) -> Band:
    """A committed band by its preset's name, or a file.

    Raises:
        ParameterError: If there is none.

    """
    folder = files("meanflow_ref.train") / "reference"
    known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    if name in known:
        text = (folder / f"{name}.json").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise ParameterError(f"no band {name!r}.", f"one of {', '.join(known)}, or a file", "")
    try:
        band: Band = json.loads(text)
        if band["windows"] != WINDOWS:
            raise ValueError(f"{band['windows']} stretches")
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(f"{name} is no band: {error}.", "a file that `train bands` wrote", "") from error
    return band


def main(arguments: Sequence[str]) -> int:
    """``train --compare RUN.jsonl``: 0 inside, 1 outside, 2 nothing to compare."""
    from meanflow_ref.train.watch import read_log

    parser = argparse.ArgumentParser(prog="python -m meanflow_ref.train --compare")
    parser.add_argument("log", type=Path, metavar="RUN.jsonl", help="one JSON object a line, with `step`")
    parser.add_argument("--band", default="toy", help="preset, or a file of `train bands` (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not options.log.is_file():
        raise ParameterError(f"{options.log}: no such file.", "a log of a run, log.jsonl", "")
    band, log = read_band(options.band), read_log(options.log)
    rows = compare(log, band)
    if not rows:
        raise ParameterError(
            f"{options.log} has nothing in common with the band.",
            f"lines with `step` (1 to {band['steps']}) and one of {', '.join(band['quantities'])}",
            'rename: {"step": 1, "raw_loss": ...}; raw_loss is the mean of |u - target|^2, unweighted',
        )
    last = max(line["step"] for line in log)
    print(f"band `{options.band}`: {band['seeds']} seeds, {band['steps']} steps; the log has {last}")
    if last > band["steps"]:
        print(f"  the reference runs end at step {band['steps']}, their learning rate too: --steps {band['steps']}")
    for name in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == name]
        outside = [row for row in mine if not row[5]]
        print(f"  {name:14s} {len(mine) - len(outside):2d} of {len(mine)} stretches inside")
        for _, i, value, low, high, _ in outside:
            first = -(-i * band["steps"] // WINDOWS) + 1
            print(f"    from step {first}: {value:.4g}, band {low:.4g} to {high:.4g}")
    missing = [name for name in band["quantities"] if name not in {row[0] for row in rows}]
    if missing:
        print(f"  not in the log: {', '.join(missing)}")
    inside = all(row[5] for row in rows)
    print("INSIDE the band" if inside else "OUTSIDE the band", f"({FALSE_ALARMS:.0%} of right runs are outside)")
    return 0 if inside else 1


def make_bands(arguments: Sequence[str]) -> int:
    """``train bands PRESET``: run it with several seeds and write its band."""
    from rich.console import Console

    from meanflow_ref.files import write_atomic
    from meanflow_ref.train.presets import preset
    from meanflow_ref.train.run import run
    from meanflow_ref.train.watch import LOG, read_log

    parser = argparse.ArgumentParser(prog="python -m meanflow_ref.train bands")
    parser.add_argument("preset")
    parser.add_argument("--seeds", type=int, default=8, help="runs, seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="instead of the preset's")
    parser.add_argument("--out", type=Path, default=Path("bands"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--band", type=Path, help="file of the band (default: OUT/PRESET.json)")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        raise ParameterError(f"--seeds is {options.seeds}.", "at least 2", "")
    # Points and samples are for the verdict, which a band has little use for.
    changes: dict[str, Any] = {"points": 256, "samples": 500} | (
        {} if options.steps is None else {"steps": options.steps}
    )
    config = preset(options.preset, checkpoint_every=0, **changes)
    logs, summaries = [], []
    for seed in range(options.seeds):
        out = options.out / f"{options.preset}-{seed}"
        one = preset(options.preset, seed=seed, out=out, overwrite=True, checkpoint_every=0, **changes)
        summary = run(one, Console())
        if summary["status"] != "done":
            print(f"{summary['status']} at seed {seed}: no band is written")
            return 130 if summary["status"] == "interrupted" else 0
        summaries.append(summary)
        logs.append(read_log(out / LOG))
    about = {"preset": options.preset, "config": config.to_dict(), "verdicts": [_short(s) for s in summaries]}
    target = options.band or options.out / f"{options.preset}.json"
    write_atomic(target, json.dumps(make_band(logs, config.steps, about), indent=1) + "\n")
    print(f"band of {options.seeds} seeds: {target}")
    return 0


def _short(summary: dict[str, Any]) -> dict[str, float]:
    """The numbers of a verdict that a reader looks for first."""
    short = {f"energy, {how}": way["energy"]["value"] for how, way in summary["samples"]["ways"].items()}
    short["energy, floor"] = summary["samples"]["floor"]["energy"]
    if "u" in summary:
        short |= {f"u error, {name}": summary["u"][name]["error"]["value"] for name in ("anywhere", "one_step")}
    return short
