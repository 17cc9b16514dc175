"""The random composer against the check: recall for each bug, and false alarms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from meanflow_ref.errors import MeanFlowError
from meanflow_ref.kit.loss.check import check_loss
from meanflow_ref.kit.mutants.composer import Recipe, draw_recipe


@dataclass
class Tally:
    """What a sweep found: by wanted diagnosis, the names that were put first; and every case that went wrong."""

    named: Counter[tuple[str, str]] = field(default_factory=Counter)
    misses: list[tuple[int, str, str]] = field(default_factory=list)
    clean: int = 0
    false_alarms: int = 0

    @property
    def cases(self) -> int:
        """How many were run."""
        return sum(self.named.values())

    def recall(self) -> dict[str, tuple[int, int]]:
        """Named and total by diagnosis."""
        wanted = sorted({want for want, _ in self.named if want})
        return {
            name: (self.named[name, name], sum(n for (want, _), n in self.named.items() if want == name)) for name in wanted
        }


def outcome(recipe: Recipe) -> str:
    """The names that the check calls wrong, or ``""``; ``INCONCLUSIVE`` or an error's type where it did not decide."""
    try:
        report = check_loss(recipe.build(), recipe.spec, shape=(2, 3, 5), labels=recipe.guided)
    except MeanFlowError as error:
        return f"error: {error.seen}"
    wrong = [one.name for one in report.diagnoses if one.severity == "wrong"]
    if not wrong and report.verdict == "inconclusive":
        return "INCONCLUSIVE"
    return " ".join(wrong)


def sweep(seeds: Iterable[int]) -> Tally:
    """Run the composer for these seeds."""
    tally = Tally()
    for seed in seeds:
        recipe = draw_recipe(seed)
        got, want = outcome(recipe), recipe.diagnosis
        tally.named[want, want if want and want in got.split() else got] += 1
        if not want:
            tally.clean += 1
            tally.false_alarms += bool(got)
        if got != want:
            tally.misses.append((seed, recipe.bug, got))
    return tally
