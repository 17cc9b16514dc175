"""What each mistake in a loss costs, as measured by ``python -m meanflow_ref.kit.loss_effects --write``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("loss_effects.json")


@cache
def _measured() -> dict[str, str]:
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {}


def effect(name: str) -> str:
    """The measured effect of a mistake, in one sentence."""
    return _measured().get(name, "")
