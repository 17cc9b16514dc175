"""What a run is told, checked before anything is computed or written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meanflow_ref.errors import ParameterError


@dataclass(frozen=True)
class ToyConfig:
    """Mixture of normal laws on a ring in the plane, learned by a perceptron, held against its exact average velocity.

    The loss is the plain squared error (weight power 0). An adaptive weight looks at the error of a single sample,
    noise of the conditional velocity included, so that its fixed point is not the conditional mean: in two dimensions
    it moves u by more than training leaves.
    """

    out: Path = Path("runs/toy")
    """Folder for the log, the figures and the summary."""
    overwrite: bool = False
    """Replace a run that is already there."""
    steps: int = 2500
    """Training steps."""
    batch: int = 512
    """Samples of a step."""
    width: int = 128
    """Width of the perceptron."""
    depth: int = 3
    """Hidden layers of the perceptron."""
    learning_rate: float = 2e-3
    """Highest learning rate of Adam; it rises over the first steps and falls to zero on a cosine."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    ema: float = 0.99
    """Decay of the moving average of the weights, which is what is evaluated."""
    equal: float = 0.5
    """Share of rows with r = t, where the target is the velocity itself."""
    velocity: Literal["conditional", "marginal"] = "conditional"
    """Velocity in target and tangent: of the sample, as in practice, or its exact mean given the state. Both have the
    same fixed point; the second, known only where the field is, is free of the noise that limits the first."""
    modes: int = 8
    """Modes on the ring."""
    radius: float = 2.0
    """Radius of the ring."""
    std: float = 0.3
    """Standard deviation of a mode."""
    points: int = 1024
    """Points at which u is compared with the truth."""
    samples: int = 2000
    """Samples of which the energy distance to the data is taken."""
    jvp: Literal["stopgrad", "func", "forward_ad", "double_backward", "finite_difference"] = "stopgrad"
    """How du/dt is computed: the exact ways give one gradient."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, ...; auto takes CUDA where there is one."""
    threads: int = 1
    """CPU threads; a network this small runs slower on two."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "width", "depth", "warmup", "modes", "threads")
        _require({name: getattr(self, name) for name in counts}, lambda x: x >= 1, "at least 1")
        # The energy distance compares pairs of samples.
        _require({"points": self.points, "samples": self.samples}, lambda x: x >= 2, "at least 2")
        positive = ("learning_rate", "radius", "std")
        _require({name: getattr(self, name) for name in positive}, lambda x: 0 < x < math.inf, "positive and finite")
        _require({"ema": self.ema}, lambda x: 0 <= x < 1, "in [0, 1)")
        _require({"equal": self.equal}, lambda x: 0 <= x <= 1, "in [0, 1]")
        _require({"seed": self.seed}, lambda x: 0 <= x < 2**63, "in [0, 2^63)")

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON knows them."""
        return {key: str(x) if isinstance(x, Path) else x for key, x in dataclasses.asdict(self).items()}


def _require(options: dict[str, Any], holds: Any, wanted: str) -> None:
    for name, value in options.items():
        if not holds(value):
            raise ParameterError(f"--{name.replace('_', '-')} is {value}.", wanted)
