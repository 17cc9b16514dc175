"""The network of a run, and how it starts from a flow-matching network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError
from meanflow_ref.models import MLP, Conditioning, DiT, UNet
from meanflow_ref.train.config import Config
from meanflow_ref.train.random import seed_of


class Flattened(nn.Module):
    """A perceptron on samples of any shape."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net

    @property
    def conditioning(self) -> Conditioning:
        """The perceptron's."""
        return self.net.conditioning

    def forward(self, z: Tensor, r: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return ``u``, of ``z``'s shape."""
        u: Tensor = self.net(z.flatten(1), r, t, label)
        return u.reshape(z.shape)


def make_network(config: Config, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    """The network that the options describe for samples of ``shape``, initialised by the seed.

    Raises:
        ParameterError: If the network cannot have samples of this shape.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "network"))
        return _build(config, shape, classes)


def _build(c: Config, shape: tuple[int, ...], classes: int | None) -> nn.Module:
    if c.model == "mlp":
        net = MLP(math.prod(shape), c.width, c.depth, classes, scale=c.time_scale)
        return net if len(shape) == 1 else Flattened(net)
    if len(shape) != 3:
        raise ParameterError(f"--model {c.model} of samples of shape {shape}.", "images", "--model mlp")
    if c.model == "dit":
        if shape[1] != shape[2]:
            raise ParameterError(f"--model dit of images of shape {shape}.", "square images", "--model unet")
        return DiT(shape[1], shape[0], c.patch, c.width, c.depth, c.heads, classes, scale=c.time_scale)
    return UNet(
        shape[0],
        c.width,
        c.multipliers,
        classes,
        groups=c.groups,
        blocks=c.depth,
        dropout=c.dropout,
        scale=c.time_scale,
    )


def parameters_of(net: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def conditioning_of(net: nn.Module) -> tuple[str, Conditioning]:
    """The name and the module of a network's conditioning."""
    for name, module in net.named_modules():
        if isinstance(module, Conditioning):
            return name, module
    raise ParameterError(f"{type(net).__name__} has no Conditioning.", "a network of meanflow_ref.models", "")


@torch.no_grad()
def start_from_flow_matching(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load a flow-matching network, so that ``u(z, r, t) = v(z, t)`` for every r, hence ``u(z, t, t) = v``.

    The embedding of ``t - r`` starts at zero. Where the weights have one (it was trained at t - r = 0 alone), its
    value there is a constant and moves into the embedding of t; where they have none, nothing changes.

    Args:
        net: A network of :mod:`meanflow_ref.models`.
        weights: Its weights by name, with or without the embedding of ``t - r``.

    Raises:
        ParameterError: If names or shapes do not fit.

    """
    prefix, conditioning = conditioning_of(net)
    prefix = f"{prefix}." if prefix else ""
    ours, duration = net.state_dict(), f"{prefix}duration."
    missing = [name for name in ours if name not in weights and not name.startswith(duration)]
    extra = [name for name in weights if name not in ours]
    if missing or extra:
        raise ParameterError(
            f"--init: missing {_few(missing)}; not of this network: {_few(extra)}.",
            "the weights of the same network, trained by flow matching",
            "the same --model, --width, --depth, ... as theirs",
        )
    for name, value in weights.items():
        if value.shape != ours[name].shape:
            raise ParameterError(
                f"--init: {name} has shape {tuple(value.shape)}.", f"{tuple(ours[name].shape)}", "the same sizes"
            )
    net.load_state_dict(dict(weights), strict=False)
    if any(name.startswith(duration) for name in weights):
        bias = conditioning.time.out.bias
        bias.add_(conditioning.duration(torch.zeros(1, device=bias.device))[0])
    nn.init.zeros_(conditioning.duration.out.weight)
    nn.init.zeros_(conditioning.duration.out.bias)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a safetensors file.

    Raises:
        ParameterError: If the file is not there, is broken, or is a pickle.

    """
    from meanflow_ref.train.checkpoint import load_tensors

    if not path.is_file():
        raise ParameterError(f"--init {path}: no such file.", "a .safetensors file of weights", "")
    if path.suffix != ".safetensors":
        raise ParameterError(
            f"--init {path} is no .safetensors file.", "safetensors; a pickle can run code and is never loaded", ""
        )
    return load_tensors(path)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") if names else "nothing"
