"""Where the data of a run come from: exact fields, arrays in memory, files."""

from __future__ import annotations

from meanflow_ref.train.config import Config
from meanflow_ref.train.data.base import AbstractSource, Arrays, Fresh

__all__ = ["AbstractSource", "Arrays", "Fresh", "open_source"]


def open_source(config: Config) -> AbstractSource:
    """The source that the options name.

    Raises:
        ParameterError: If there is none of that name, or it cannot serve these options.

    """
    from meanflow_ref.train.data.fields import FIELDS, named_field

    if config.data == "digits":
        from meanflow_ref.train.data.digits import Digits

        source: AbstractSource = Digits(config.seed)
    elif config.data == "images":
        from meanflow_ref.train.data.images import ImageFolder

        source = ImageFolder(config.data_path, config.seed)
    elif config.data == "array":
        from meanflow_ref.train.data.files import array_file

        source = array_file(config.data_path, config.data_scale, config.seed)
    elif config.data in FIELDS or ":" in config.data:
        source = Fresh(named_field(config))
    else:
        _unknown(config.data, [*FIELDS, "digits", "images", "array"])
    source.require(config)
    return source


def _unknown(name: str, names: list[str]) -> None:
    from difflib import get_close_matches

    from meanflow_ref.errors import ParameterError

    near = get_close_matches(name, names, n=1)
    remedy = f"--data {near[0]}" if near else "--data pkg.mod:field for a field of your own"
    raise ParameterError(f"--data is {name!r}.", f"one of {', '.join(names)}", remedy)
