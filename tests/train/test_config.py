"""Options: each law is checked, with the option's own name in the message; the presets are the paper's."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from meanflow_ref.errors import ParameterError
from meanflow_ref.models import DiT
from meanflow_ref.train.config import Config
from meanflow_ref.train.networks import make_network, parameters_of
from meanflow_ref.train.objective import times_of
from meanflow_ref.train.presets import GUIDANCE, PRESETS, TRANSFORMERS, kappa, preset

BAD: list[dict[str, Any]] = [
    *({name: 0} for name in ("steps", "batch", "accumulate", "width", "depth", "heads", "patch", "groups", "modes")),
    *({name: 0} for name in ("threads", "keep", "rank_timeout", "most_skips")),
    *({name: -1} for name in ("warmup", "checkpoint_every", "measure_every", "seed")),
    *({name: 1} for name in ("points", "samples")),
    *({name: 0.0} for name in ("learning_rate", "time_std", "weight_eps", "data_scale", "time_scale", "std")),
    {"learning_rate": float("nan")},
    {"radius": float("inf")},
    *({name: -0.5} for name in ("weight_power", "spike", "clip")),
    {"omega": float("nan")},
    {"time_mean": float("inf")},
    {"kappa": 1.0},
    *({name: 1.0} for name in ("ema", "dropout", "beta1", "beta2", "quantile")),
    *({name: 1.5} for name in ("equal", "label_dropout", "guided_from", "guided_to")),
    {"multipliers": ()},
    {"precision": "fp16"},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_option_is_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ParameterError, match=f"--{name.replace('_', '-')} is"):
        Config(**bad)


def test_every_number_has_a_law_and_every_option_a_sentence() -> None:
    numbers = {item.name for item in dataclasses.fields(Config) if item.type in ("int", "float")}
    assert numbers <= {name for bad in BAD for name in bad}
    lines = inspect.getsource(Config).splitlines()
    for item in dataclasses.fields(Config):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {item.name}: "))
        assert lines[at + 1].strip().startswith('"""'), item.name


def test_float16_is_refused_with_the_reason() -> None:
    with pytest.raises(ParameterError, match="65504"):
        Config(precision="fp16")


def test_pairs_of_options_that_contradict_each_other() -> None:
    with pytest.raises(ParameterError, match="guided-from"):
        Config(guided_from=0.8, guided_to=0.2)
    with pytest.raises(ParameterError, match="--resume"):
        Config(resume=True, overwrite=True)


@pytest.mark.parametrize("name", PRESETS)
def test_options_survive_json(name: str) -> None:
    config = preset(name, seed=3)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_options_of_another_version_are_named() -> None:
    with pytest.raises(ParameterError, match="colour"):
        Config.from_dict({"colour": 1})
    with pytest.raises(ParameterError, match="digits"):
        preset("digit")


# ---------------------------------------------------------------- the paper, numbers typed from its tables by hand


def test_imagenet_b4_has_the_papers_numbers() -> None:
    c = preset("imagenet-b4")
    assert (c.depth, c.width, c.patch, c.heads) == (12, 768, 4, 12)
    assert (c.steps, c.batch, c.learning_rate, c.decay, c.beta1, c.beta2) == (400_000, 256, 1e-4, "constant", 0.9, 0.95)
    assert (c.ema, c.dropout, c.weight_power, c.norm) == (0.9999, 0.0, 1.0, "sum")
    assert (c.times, c.time_mean, c.time_std) == ("logit-normal", -0.4, 1.0)
    # "25 % of r != t".
    assert 1 - times_of(c).equal_share == 0.25
    assert (c.omega, c.kappa, c.label_dropout) == (1.0, 0.0, 0.1)


def test_cifar10_has_the_papers_numbers() -> None:
    c = preset("cifar10")
    assert (c.steps, c.batch, c.learning_rate, c.beta1, c.beta2) == (800_000, 1024, 6e-4, 0.9, 0.999)
    assert (c.warmup, c.dropout, c.ema, c.weight_power) == (10_000, 0.2, 0.99995, 0.75)
    assert (c.times, c.time_mean, c.time_std, 1 - c.equal) == ("logit-normal", -2.0, 2.0, 0.75)
    assert c.flip


@pytest.mark.parametrize(
    ("name", "millions", "depth", "width"),
    [
        ("B/4", 131, 12, 768),
        ("B/2", 131, 12, 768),
        ("M/2", 308, 16, 1024),
        ("L/2", 459, 24, 1024),
        ("XL/2", 676, 28, 1152),
    ],
)
def test_transformers_have_the_papers_size(name: str, millions: int, depth: int, width: int) -> None:
    layers, channels, heads, patch = TRANSFORMERS[name]
    assert (layers, channels) == (depth, width)
    assert name.endswith(str(patch))
    # No memory is taken on the meta device.
    with torch.device("meta"):
        net = DiT(32, 4, patch, channels, layers, heads, 1000)
    # The paper prints whole millions; its time embeddings are wider by 0.15 million each.
    assert parameters_of(net) / 1e6 == pytest.approx(millions, abs=0.8)


def test_the_preset_is_that_transformer() -> None:
    c = preset("imagenet-b4")
    with torch.device("meta"):
        assert parameters_of(make_network(c, (4, 32, 32), 1000)) / 1e6 == pytest.approx(131, abs=0.8)


def test_the_cifar_net_has_the_papers_size() -> None:
    with torch.device("meta"):
        net = make_network(preset("cifar10"), (3, 32, 32), None)
    assert parameters_of(net) / 1e6 == pytest.approx(55, rel=0.05)


def test_the_papers_guidance() -> None:
    for name, effective in (("B/2", 2.0), ("M/2", 2.0), ("L/2", 2.5), ("XL/2", 2.5)):
        omega = GUIDANCE[name][0]
        assert omega / (1 - kappa(name)) == pytest.approx(effective, rel=1e-12)
    assert GUIDANCE["L/2"][2:] == (0.0, 0.8)
    assert GUIDANCE["XL/2"][2:] == (0.0, 0.75)


def test_paths_are_paths() -> None:
    assert preset("toy", data_path=Path("a")).to_dict()["data_path"] == "a"
