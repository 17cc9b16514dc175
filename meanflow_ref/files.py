"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def require_writable(path: Path) -> None:
    """Raise ``OSError`` now, before any work is done, if ``path`` cannot be written later."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; make it first (mkdir -p {folder})")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"no permission to write in {folder}")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` beside ``path`` and move it there, so that a reader never meets half a file."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; a report is not private. The umask is read by setting it.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
