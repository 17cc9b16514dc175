"""Named settings of a run, the paper's among them as data that a test holds to the paper's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from meanflow_ref.errors import ParameterError
from meanflow_ref.train.config import Config

# Name -> (depth, width, heads, patch) of the paper's transformers, on latents of 32 x 32 x 4 and 1000 classes.
TRANSFORMERS: dict[str, tuple[int, int, int, int]] = {
    "B/4": (12, 768, 12, 4),
    "B/2": (12, 768, 12, 2),
    "M/2": (16, 1024, 16, 2),
    "L/2": (24, 1024, 16, 2),
    "XL/2": (28, 1152, 16, 2),
}
# Name -> (omega, effective scale, first and last guided t); kappa = 1 - omega / effective scale.
GUIDANCE: dict[str, tuple[float, float, float, float]] = {
    "B/2": (1.0, 2.0, 0.0, 1.0),
    "M/2": (1.0, 2.0, 0.0, 1.0),
    "L/2": (0.2, 2.5, 0.0, 0.8),
    "XL/2": (0.2, 2.5, 0.0, 0.75),
}


def kappa(name: str) -> float:
    """The paper's kappa of a transformer, ``1 - omega / omega'``. Source: mf:20."""
    omega, effective, _, _ = GUIDANCE[name]
    return 1 - omega / effective


_PLANE = replace(Config(), steps=2500, batch=2048, ema=0.995, samples=10_000)

_IMAGENET = Config(
    out=Path("runs/imagenet-b4"),
    data="array",
    model="dit",
    depth=12,
    width=768,
    heads=12,
    patch=4,
    weight_power=1.0,
    times="logit-normal",
    time_mean=-0.4,
    time_std=1.0,
    equal=0.75,
    # Table 1 has no guidance; labels are dropped so that guidance can be switched on by omega and kappa alone.
    label_dropout=0.1,
    steps=400_000,
    batch=256,
    learning_rate=1e-4,
    beta1=0.9,
    beta2=0.95,
    warmup=0,
    decay="constant",
    ema=0.9999,
    precision="bf16",
    compile=True,
    checkpoint_every=5000,
    spike=100.0,
    measure_every=1000,
)

PRESETS: dict[str, tuple[Config, str]] = {
    "toy": (Config(), "a ring of eight normal laws in the plane, held against its exact average velocity"),
    "gaussians": (
        replace(_PLANE, out=Path("runs/gaussians")),
        "the same ring, trained until one-step samples are as good as perfect ones at n = 10 000",
    ),
    "checkerboard": (
        replace(
            _PLANE,
            out=Path("runs/checkerboard"),
            data="checkerboard",
            velocity="marginal",
            equal=0.25,
            steps=2000,
            batch=512,
            # Near an edge of a square the velocity is stiff, and the truth takes a second for every 30 points.
            points=256,
        ),
        "eight squares in the plane, learned from the exact marginal velocity and judged like the ring",
    ),
    "digits": (
        replace(
            Config(),
            out=Path("runs/digits"),
            data="digits",
            width=512,
            depth=4,
            weight_power=1.0,
            times="logit-normal",
            kappa=0.5,
            label_dropout=0.1,
            steps=1500,
            batch=256,
            learning_rate=1e-3,
            ema=0.995,
            samples=1000,
        ),
        "scikit-learn's 8 x 8 digits by class, guided, one step, judged by a classifier",
    ),
    "images": (
        replace(
            Config(),
            out=Path("runs/images"),
            data="images",
            model="unet",
            width=64,
            depth=2,
            multipliers=(1, 2, 4),
            weight_power=1.0,
            times="logit-normal",
            equal=0.75,
            label_dropout=0.1,
            steps=100_000,
            batch=128,
            learning_rate=2e-4,
            warmup=1000,
            ema=0.999,
            precision="bf16",
            flip=True,
            checkpoint_every=2000,
            samples=500,
        ),
        "a folder of images of one size, classes by sub-folder (--data-path)",
    ),
    "imagenet-b4": (
        _IMAGENET,
        "the paper's ImageNet-256 ablation: DiT-B/4 on 32 x 32 x 4 latents, no guidance (--data-path latents)",
    ),
    "cifar10": (
        Config(
            out=Path("runs/cifar10"),
            data="array",
            model="unet",
            width=128,
            depth=6,
            multipliers=(1, 2, 2, 2),
            groups=32,
            dropout=0.2,
            weight_power=0.75,
            times="logit-normal",
            time_mean=-2.0,
            time_std=2.0,
            equal=0.25,
            steps=800_000,
            batch=1024,
            learning_rate=6e-4,
            beta1=0.9,
            beta2=0.999,
            warmup=10_000,
            decay="constant",
            ema=0.99995,
            flip=True,
            compile=True,
            checkpoint_every=5000,
            spike=100.0,
            measure_every=1000,
        ),
        "the paper's CIFAR-10 optimiser and objective on a U-Net of its size (--data-path arrays of 32 x 32 x 3)",
    ),
}


def preset(name: str, **changes: Any) -> Config:
    """A preset's settings, with changes.

    Raises:
        ParameterError: If there is no preset of that name; it names the nearest.

    """
    if name not in PRESETS:
        from difflib import get_close_matches

        near = get_close_matches(name, PRESETS, n=1)
        raise ParameterError(f"no preset {name!r}.", f"one of {', '.join(PRESETS)}", near[0] if near else "")
    return replace(PRESETS[name][0], **changes)
