"""Somebody's function by its address, ``pkg.mod:name``."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from meanflow_ref.errors import ParameterError


def load_target(address: str) -> Any:
    """The object at ``pkg.mod:name`` or ``file.py:name``.

    The working directory is looked in first, or the folder of a file that lies elsewhere.

    Args:
        address: Module and name; the name may have dots (``pkg.mod:Trainer.loss``).

    Raises:
        ParameterError: If the address cannot be read, the module not imported or the name not found.

    """
    module_name, colon, name = address.partition(":")
    if not (colon and module_name and name):
        raise ParameterError(f"`{address}` is no address.", "module and name, as in pkg.mod:loss", "pkg.mod:loss")
    folder = Path.cwd()
    if module_name.endswith(".py"):
        path = Path(module_name)
        if path.is_absolute() or ".." in path.parts:
            # As `python file.py` does: what lies beside the file can be imported too.
            folder, path = path.resolve().parent, Path(path.name)
        module_name = ".".join(path.with_suffix("").parts)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        target: Any = import_module(module_name)
    except Exception as error:
        raise ParameterError(
            f"`{module_name}` cannot be imported: {type(error).__name__}: {error}",
            "a module on the path, or below the working directory",
            "run the command in the project's root",
        ) from error
    for part in name.split("."):
        if not hasattr(target, part):
            near = get_close_matches(part, dir(target), n=1)
            raise ParameterError(f"`{module_name}` has no `{name}`.", "", f"{module_name}:{near[0]}" if near else "")
        target = getattr(target, part)
    return target
