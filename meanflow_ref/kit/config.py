"""``[tool.meanflow-ref]`` of a project: what to check there, and what is expected to fail. Imports no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.diagnosis import ORACLE


@dataclass(frozen=True)
class Settings:
    """One loss and what belongs to it; the keys of a table in ``[[tool.meanflow-ref.loss]]``."""

    target: str | None = None
    call: str | None = None
    returns: str | None = None
    shape: tuple[int, ...] | None = None
    labels: bool | None = None
    mask: tuple[int, ...] | None = None
    dropout: bool = False
    equal_share: float | None = None
    weight_power: float | None = None
    sampler: str | None = None
    times: str | None = None
    law: str | None = None
    guided: tuple[float, ...] | None = None
    xfail: Mapping[str, str] = field(default_factory=dict)
    oracle: int = ORACLE
    seed: int = 0

    def loss_options(self) -> dict[str, Any]:
        """Arguments of ``check_loss``."""
        names = (
            "call",
            "returns",
            "shape",
            "labels",
            "mask",
            "dropout",
            "equal_share",
            "weight_power",
            "xfail",
            "oracle",
            "seed",
        )
        return {name: getattr(self, name) for name in names}


def parse_xfail(items: Iterable[str]) -> dict[str, str]:
    """``NAME=reason`` items as a mapping.

    Raises:
        ParameterError: If an item has no reason.

    """
    result = {}
    for item in items:
        name, _, reason = item.partition("=")
        reason = reason.strip().strip('"')
        if not reason:
            raise ParameterError(
                f"--xfail {item!r} has no reason.", 'NAME="why it is meant to be so"', f'--xfail {name}="..."'
            )
        result[name.strip()] = reason
    return result


def read_config(folder: Path) -> list[Settings]:
    """The tables of ``[tool.meanflow-ref]`` in the nearest pyproject.toml at or above ``folder``; none if there is none.

    Raises:
        ParameterError: If a key is unknown or a value has the wrong type.

    """
    for place in (folder, *folder.parents):
        path = place / "pyproject.toml"
        if path.is_file():
            try:
                tool = tomllib.loads(path.read_text()).get("tool", {}).get("meanflow-ref", {})
            except tomllib.TOMLDecodeError as error:
                raise ParameterError(f"{path.name} cannot be read: {error}.") from None
            return _tables(tool)
    return []


def _tables(tool: Mapping[str, Any]) -> list[Settings]:
    unknown = sorted(set(tool) - {"loss", "oracle", "seed"})
    if unknown:
        raise ParameterError(
            f"[tool.meanflow-ref] has the key {unknown[0]!r}.",
            "loss (tables), oracle, seed",
            "[[tool.meanflow-ref.loss]]",
        )
    shared = {key: tool[key] for key in ("oracle", "seed") if key in tool}
    tables = tool.get("loss", [])
    return [_settings({**shared, **table}) for table in ([tables] if isinstance(tables, Mapping) else tables)]


def _settings(table: Mapping[str, Any]) -> Settings:
    names = [item.name for item in fields(Settings)]
    values: dict[str, Any] = {}
    for raw, value in table.items():
        key = raw.replace("-", "_")
        if key not in names:
            near = get_close_matches(key, names, n=1)
            raise ParameterError(
                f"[[tool.meanflow-ref.loss]] has the key {raw!r}.", ", ".join(names), near[0] if near else ""
            )
        values[key] = tuple(value) if isinstance(value, list) else int(value) if key == "oracle" else value
    if not any(values.get(key) for key in ("target", "sampler", "times")):
        raise ParameterError(
            "a table of [[tool.meanflow-ref.loss]] names nothing to check.", "", 'target = "pkg.mod:loss"'
        )
    return Settings(**values)
