"""``meanflow-ref sample RUN --n 64 --steps 1 --label 3 --out grid.png``: samples of a trained run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from meanflow_ref.errors import ParameterError

if TYPE_CHECKING:
    import torch

    from meanflow_ref.train.config import Config


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--n", type=int, default=64, help="number of samples (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=1, help="evaluations of the network a sample (default: %(default)s)"
    )
    parser.add_argument("--label", type=int, help="class (default: all classes in turn)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE",
                        help="a .png figure, or .npy or .safetensors data (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: %(default)s)")


def sample_command(options: argparse.Namespace) -> int:
    """Generate with the averaged weights, and write one file; 0 if it is written."""
    from meanflow_ref.files import require_writable
    from meanflow_ref.train.distributed import find_device

    for name in ("n", "steps"):
        if getattr(options, name) < 1:
            raise ParameterError(f"--{name} is {getattr(options, name)}.", "at least 1", "")
    if options.out.suffix not in (".png", ".npy", ".safetensors"):
        raise ParameterError(f"--out {options.out}: ending {options.out.suffix!r}.", ".png, .npy or .safetensors", "")
    require_writable(options.out)
    samples, step = generate_from(
        options.run, options.n, options.steps, options.label, options.seed, find_device(options.device)
    )
    _write(options.out, samples, options)
    evaluations = f"{options.steps} evaluation{'s' if options.steps > 1 else ''} each"
    print(f"{options.n} samples of step {step}, {evaluations}: {options.out}")
    return 0


def generate_from(
    run: Path, n: int, steps: int, label: int | None, seed: int, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Samples of a run's averaged weights, ``(n, *shape)`` on the CPU, and the step they were taken at.

    A guided run was trained on the guided velocity, so that a step is one evaluation, with the label alone.

    Raises:
        ParameterError: If the run, its checkpoint or the label is not there.

    """
    import torch

    from meanflow_ref.train import checkpoint
    from meanflow_ref.train.evaluate import generate
    from meanflow_ref.train.networks import make_network
    from meanflow_ref.train.random import generator
    from meanflow_ref.train.run import CHECKPOINTS

    config, shape, classes = read_run(run)
    if label is not None and classes is None:
        raise ParameterError(f"--label {label} of a run without classes.", "no label", "leave it out")
    if label is not None and classes is not None and not 0 <= label < classes:
        raise ParameterError(f"--label is {label}.", f"a class from 0 to {classes - 1}", "")
    found, _ = checkpoint.load_newest(run / CHECKPOINTS)
    if found is None:
        raise ParameterError(f"{run} has no checkpoint yet.", "a run that wrote one", "see --checkpoint-every")
    net = make_network(config, shape, classes)
    net.load_state_dict(found.tensors["ema"])
    net.to(device).eval()
    noise = torch.randn(n, *shape, generator=generator(seed, "sample"))
    labels = None
    if classes is not None:
        labels = torch.arange(n) % classes if label is None else torch.full((n,), label)
    return generate(net, noise, labels, str(steps), device=device), found.step


def read_run(run: Path) -> tuple[Config, tuple[int, ...], int | None]:
    """Config, shape of a sample and number of classes of a run.

    Raises:
        ParameterError: If the folder holds no run.

    """
    from meanflow_ref.train.config import Config

    try:
        resolved = json.loads((run / "config.json").read_text())
        return Config.from_dict(resolved["config"]), tuple(resolved["shape"]), resolved["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{run} holds no run that this version can read ({type(error).__name__}: {error}).",
            "the folder of a run",
            "the --out of `meanflow-ref train`",
        ) from error


def _write(out: Path, samples: torch.Tensor, options: argparse.Namespace) -> None:
    import io

    import numpy as np

    from meanflow_ref.files import write_atomic
    from meanflow_ref.train import figures
    from meanflow_ref.train.checkpoint import dump_tensors
    from meanflow_ref.train.judge import as_images

    if out.suffix == ".safetensors":
        write_atomic(out, dump_tensors({"x": samples}))
        return
    if out.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, samples.numpy(), allow_pickle=False)
        write_atomic(out, buffer.getvalue())
        return
    _, shape, classes = read_run(options.run)
    if shape == (1,):
        figure = figures.histogram_figure({"samples": samples})
    elif len(shape) == 1 and classes is None:
        figure = figures.samples_figure({f"{options.n} samples": samples[:, :2]})
    else:
        figure = figures.images_figure(as_images(samples), columns=max(1, round(options.n**0.5)))
    write_atomic(out, figures.to_png(figure))
