"""What a run is told, checked before anything is computed or written.

One flat table: every option has a default, its unit or range, and one sentence. :mod:`meanflow_ref.train.presets`
holds the named settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meanflow_ref.errors import ParameterError

FORMAT = 1
"""Version of the run folder: config, checkpoints and log. A run of another version is not resumed."""


@dataclass(frozen=True)
class Config:
    """Options of a run. The defaults are those of the preset `toy`."""

    # ---------------------------------------------------------------- the run

    out: Path = Path("runs/toy")
    """Folder for the log, the checkpoints, the figures and the summary."""
    overwrite: bool = False
    """Replace a run that is already there."""
    resume: bool = False
    """Go on from the newest checkpoint in `out`; bit for bit what the run would have done, on one device."""
    init: Path | None = None
    """Weights of a flow-matching network (safetensors) to start from; the embedding of t - r then starts at zero."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Where to train: cpu, cuda, cuda:1, ...; auto takes CUDA where there is one."""
    threads: int = 1
    """CPU threads; a small network runs slower on two."""

    # ---------------------------------------------------------------- data

    data: str = "ring"
    """Exact fields `ring`, `checkerboard`, `line`, `gaussian`, `shell`, pkg.mod:field; `digits`, `images`, `array`."""
    data_path: Path | None = None
    """Folder of images, or an .npz, .npy or .safetensors file."""
    data_scale: float = 1.0
    """Factor on data read from a file; latents of a Stable Diffusion autoencoder want 0.18215."""
    flip: bool = False
    """Mirror images left to right, each with probability 1/2."""
    modes: int = 8
    """Modes on the ring."""
    radius: float = 2.0
    """Radius of the ring."""
    std: float = 0.3
    """Standard deviation of a mode."""

    # ---------------------------------------------------------------- network

    model: Literal["mlp", "dit", "unet"] = "mlp"
    """Perceptron on vectors, transformer or convolutional net on images."""
    width: int = 128
    """Width of the hidden layers, of a token, or channels of the finest level."""
    depth: int = 3
    """Hidden layers, transformer blocks, or residual blocks a level."""
    heads: int = 4
    """Attention heads (dit)."""
    patch: int = 2
    """Height and width of a patch, in pixels (dit)."""
    multipliers: tuple[int, ...] = (1, 2)
    """Channels of each level in units of the width, finest first (unet)."""
    groups: int = 8
    """Groups of the group norms (unet)."""
    dropout: float = 0.0
    """Probability that a feature is dropped, in [0, 1) (unet)."""
    time_scale: float = 4.0
    """Highest angular frequency of the time features, in radians over [0, 1]; large ones make du/dt stiff."""

    # ---------------------------------------------------------------- objective

    objective: str = "meanflow"
    """`meanflow`, `flow-matching` (r = t in every row, no JVP), or pkg.mod:function of the same call."""
    jvp: str = "stopgrad"
    """Backend that computes du/dt, by name; the exact ones give one gradient. `stopgrad_bf16`: tangents in bfloat16."""
    two_pass: bool = False
    """JVP without a graph, then a forward pass with one: the memory of flow matching for one more forward pass."""
    velocity: Literal["conditional", "marginal"] = "conditional"
    """Velocity in target and tangent: of the sample, or its exact mean given the state (exact fields alone). Both have
    the same fixed point; the second is free of the noise that limits the first."""
    weight_power: float = 0.0
    """Power p of the adaptive weight, at least 0; 0 is the plain squared error, whose fixed point alone is exact."""
    weight_eps: float = 1e-3
    """Constant c of the adaptive weight, positive."""
    norm: Literal["sum", "mean"] = "sum"
    """Squared error of a sample: sum over its entries (the paper) or their mean."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """Law of the two draws of which t is the larger and r the smaller."""
    time_mean: float = -0.4
    """Mean of the logit (logit-normal)."""
    time_std: float = 1.0
    """Standard deviation of the logit (logit-normal)."""
    equal: float = 0.5
    """Share of rows with r = t, in [0, 1]. The paper quotes the share of r != t: its 25 % is 0.75."""
    omega: float = 1.0
    """Guidance: weight of the sample velocity; 1 with kappa 0 is none."""
    kappa: float = 0.0
    """Guidance: weight of the network's own conditional velocity, below 1; the scale is omega / (1 - kappa)."""
    guided_from: float = 0.0
    """Least t that is guided."""
    guided_to: float = 1.0
    """Greatest t that is guided."""
    label_dropout: float = 0.0
    """Probability that a label is dropped, each row for itself and independently of r = t."""

    # ---------------------------------------------------------------- optimiser

    steps: int = 2500
    """Training steps."""
    batch: int = 512
    """Samples of a step, over all ranks and accumulated parts."""
    accumulate: int = 1
    """Parts into which a rank cuts its share of the batch, one backward pass each."""
    learning_rate: float = 2e-3
    """Highest learning rate of Adam."""
    beta1: float = 0.9
    """Adam: decay of the mean gradient, in [0, 1)."""
    beta2: float = 0.999
    """Adam: decay of the mean squared gradient, in [0, 1)."""
    warmup: int = 100
    """Steps over which the learning rate rises; 0 starts at the highest."""
    decay: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does afterwards."""
    clip: float = 0.0
    """Largest norm of the gradient, beyond which it is scaled down; 0 never clips."""
    ema: float = 0.99
    """Decay of the moving average of the weights, which is what is evaluated and sampled; in [0, 1)."""
    precision: Literal["fp32", "bf16", "bf16-all", "fp16"] = "fp32"
    """bf16: u under autocast, the time embedding and du/dt in float32. bf16-all: du/dt under autocast too, which is off
    by about 1 % then, in one pass at the price of bfloat16. fp16 is refused."""
    compile: bool = False
    """torch.compile of the loss, network and JVP included."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: replicate the weights, or shard them."""
    rank_timeout: int = 300
    """Seconds after which a rank that waits for the others gives up."""

    # ---------------------------------------------------------------- safety

    checkpoint_every: int = 500
    """Steps between checkpoints; 0 writes one at the end alone."""
    keep: int = 2
    """Checkpoints that stay, newest first."""
    on_trouble: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite, or a spike: stop with the last good weights, or leave the step out."""
    spike: float = 0.0
    """A gradient norm above this many medians of the last 100 is a spike; 0 takes none for one."""
    most_skips: int = 10
    """Steps left out in a row after which the run stops all the same."""

    # ---------------------------------------------------------------- watching and judging

    measure_every: int = 0
    """Steps between measurements (error of u, precision, time split, figures); 0 makes twenty in a run."""
    tensorboard: bool = False
    """Also write for TensorBoard, if it is installed."""
    points: int = 1024
    """Points at which u is compared with the truth."""
    samples: int = 2000
    """Samples that are judged at the end."""
    quantile: float = 0.99
    """Level of the floor of perfect samples: a perfect sampler exceeds it with one minus this probability."""

    def __post_init__(self) -> None:
        for names, holds, wanted in _LAWS:
            for name in names:
                value = getattr(self, name)
                if not holds(value):
                    raise ParameterError(f"--{name.replace('_', '-')} is {value}.", wanted)
        if not self.multipliers or min(self.multipliers) < 1:
            raise ParameterError(f"--multipliers is {self.multipliers}.", "at least one level, each at least 1")
        if not 0 <= self.guided_from <= self.guided_to <= 1:
            raise ParameterError(
                f"--guided-from is {self.guided_from}, --guided-to is {self.guided_to}.", "0 <= from <= to <= 1"
            )
        if self.precision == "fp16":
            raise ParameterError(
                "--precision is fp16.",
                "fp32, bf16 or bf16-all",
                "take bf16: du/dt and the error's square pass 65504, the largest number of float16, in ordinary runs; "
                "a loss scale that keeps the tangent finite loses the gradient, and public runs in fp16 end in NaN",
            )
        if self.resume and self.overwrite:
            raise ParameterError("--resume beside --overwrite.", "one or the other")

    @property
    def guided(self) -> bool:
        """Whether the target is guided at all."""
        return self.omega != 1 or self.kappa != 0

    @property
    def measure_steps(self) -> int:
        """Steps between measurements."""
        return self.measure_every or max(1, self.steps // 20)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON knows them."""
        return {key: str(x) if isinstance(x, Path) else x for key, x in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Config:
        """Options read from JSON.

        Raises:
            ParameterError: If an option is unknown, as in the folder of another version.

        """
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(options) - known):
            raise ParameterError(f"unknown options {', '.join(unknown)}.", "options of this version", "")
        read = dict(options)
        for name in ("out", "data_path", "init"):
            if read.get(name) is not None:
                read[name] = Path(read[name])
        if "multipliers" in read:
            read["multipliers"] = tuple(read["multipliers"])
        return cls(**read)


_Law = tuple[tuple[str, ...], Callable[[Any], bool], str]

_LAWS: tuple[_Law, ...] = (
    (
        (
            *("steps", "batch", "accumulate", "width", "depth", "heads", "patch", "groups", "modes", "threads"),
            *("keep", "rank_timeout", "most_skips"),
        ),
        lambda x: x >= 1,
        "at least 1",
    ),
    (("warmup", "checkpoint_every", "measure_every"), lambda x: x >= 0, "at least 0"),
    # The energy distance compares pairs of samples.
    (("points", "samples"), lambda x: x >= 2, "at least 2"),
    (
        ("learning_rate", "radius", "std", "time_scale", "time_std", "weight_eps", "data_scale"),
        lambda x: 0 < x < math.inf,
        "positive and finite",
    ),
    (("weight_power", "spike", "clip"), lambda x: 0 <= x < math.inf, "at least 0 and finite"),
    (("omega", "time_mean"), math.isfinite, "finite"),
    (("kappa",), lambda x: -math.inf < x < 1, "below 1, where guidance has a fixed point"),
    (("ema", "dropout", "beta1", "beta2"), lambda x: 0 <= x < 1, "in [0, 1)"),
    (("equal", "label_dropout", "guided_from", "guided_to"), lambda x: 0 <= x <= 1, "in [0, 1]"),
    (("quantile",), lambda x: 0 < x < 1, "between 0 and 1"),
    (("seed",), lambda x: 0 <= x < 2**63, "in [0, 2^63)"),
)
