"""The verdict of a run in a few lines."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from meanflow_ref.train.config import Config


def print_summary(summary: dict[str, Any], config: Config, console: Console) -> None:
    """Print what a run reached, each number beside what it is held against."""
    for line in lines(summary):
        console.print(line, highlight=False)
    console.print(f"written to {config.out}", highlight=False)


def lines(summary: dict[str, Any]) -> list[str]:
    """The verdict, a line each."""
    out = [f"{summary['status']}: {summary['steps']} steps, {summary['seconds']:.0f} s of training here"]
    names = {"anywhere": "over (z, r, t)", "one_step": "at (z, 0, 1)"}
    for name, about in names.items():
        if name in summary.get("u", {}):
            row = summary["u"][name]
            out.append(f"E|u_theta - u|^2 {about:15s} {_interval(row['error'])}   (E|u|^2 = {row['size']:.3f})")
    laws = [name for name in ("identity", "semigroup") if name in summary.get("u", {})]
    out += [f"{name} residual, squared    {_interval(summary['u'][name]['square'])}" for name in laws]
    if "samples" in summary:
        out += _sample_lines(summary["samples"])
    if "classes" in summary:
        row = summary["classes"]["ways"]["1"]
        out.append(
            f"one step: classifier {row['accuracy']:.1%} right, {row['nearest_accuracy']:.1%} nearest to their class "
            f"(least class {row['least_class_nearest_accuracy']:.1%}); on held-out data the classifier has "
            f"{summary['classes']['classifier_on_held_out_data']:.1%}"
        )
    return out


def _sample_lines(samples: dict[str, Any]) -> list[str]:
    floor = samples["floor"]
    out = [
        f"samples against {samples['n']} of the data; a perfect sampler is below the floor with {samples['quantile']:g}"
    ]
    for name in floor:
        for how, way in samples["ways"].items():
            value = way[name] if isinstance(way[name], float) else way[name]["value"]
            inside = "inside" if value <= floor[name] else "OUTSIDE"
            out.append(f"  {name:12s} {how:>9s}  {value:9.5f}   floor {floor[name]:.5f}  {inside}")
    return out


def _interval(row: dict[str, float]) -> str:
    return f"{row['value']:.5f} [{row['low']:.5f}, {row['high']:.5f}]"
