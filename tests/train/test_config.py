"""Options: each law is checked, with the option's own name in the message."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from meanflow_ref.errors import ParameterError
from meanflow_ref.train.config import ToyConfig

BAD: list[dict[str, Any]] = [
    {"steps": 0},
    {"batch": 0},
    {"width": 0},
    {"depth": 0},
    {"warmup": 0},
    {"modes": 0},
    {"threads": 0},
    {"points": 1},
    {"samples": 1},
    {"learning_rate": 0.0},
    {"learning_rate": float("nan")},
    {"radius": float("inf")},
    {"std": -1.0},
    {"ema": 1.0},
    {"equal": 1.5},
    {"seed": -1},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_option_is_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ParameterError, match=f"--{name.replace('_', '-')} is"):
        ToyConfig(**bad)


def test_every_number_has_a_law() -> None:
    numbers = {item.name for item in dataclasses.fields(ToyConfig) if item.type in ("int", "float")}
    assert numbers == {name for bad in BAD for name in bad}


def test_options_survive_json() -> None:
    config = ToyConfig(out=Path("a/b"), steps=7)
    read = json.loads(json.dumps(config.to_dict()))
    assert ToyConfig(**(read | {"out": Path(read["out"])})) == config
