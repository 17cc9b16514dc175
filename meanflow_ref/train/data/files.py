"""Arrays and latents from one file: .npy, .npz or .safetensors, with ``x`` and perhaps ``label``."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanflow_ref.errors import MissingExtraError, ParameterError
from meanflow_ref.train.data.base import Arrays

# Names under which other people's files keep samples and labels.
_SAMPLES = ("x", "latents", "images", "data", "arr_0")
_LABELS = ("label", "labels", "y", "arr_1")


def array_file(path: Path | None, scale: float, seed: int) -> Arrays:
    """Samples of a file; .npy and .safetensors are mapped, so that only the rows in use are read.

    Images of bytes, ``(N, height, width, channels)``, become ``(channels, height, width)`` in [-1, 1].

    Raises:
        ParameterError: If the file is not there, is broken, or has no samples.

    """
    if path is None or not path.is_file():
        raise ParameterError(f"--data-path is {path}.", "an .npy, .npz or .safetensors file", "--data-path FILE")
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise ParameterError(f"--data-path {path}: ending {path.suffix!r}.", f"one of {', '.join(readers)}", "")
    try:
        x, label = readers[path.suffix](path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ParameterError(f"--data-path {path} cannot be read: {error}.", "a whole file", "") from error
    if x.dtype in (np.uint8, torch.uint8):
        x, scale = _bytes_to_images(x), 1.0
    return Arrays(x, label, seed, scale=scale)


def _npy(path: Path) -> tuple[Any, Tensor | None]:
    # allow_pickle is off, here and below: an array file is data, never code.
    return np.load(path, mmap_mode="r", allow_pickle=False), None


def _npz(path: Path) -> tuple[Any, Tensor | None]:
    # Opened here, since np.load leaves a broken file open.
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        x, label = _named(list(file), path)
        return file[x], None if label is None else torch.as_tensor(file[label].astype(np.int64))


def _safetensors(path: Path) -> tuple[Any, Tensor | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as missing:
        raise MissingExtraError("safetensors", "train", "reading .safetensors") from missing
    try:
        # Memory-mapped: get_tensor copies nothing until rows are indexed.
        with safe_open(path, framework="pt") as file:
            x, label = _named(list(file.keys()), path)
            return file.get_tensor(x), None if label is None else file.get_tensor(label).long()
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _named(found: list[str], path: Path) -> tuple[str, str | None]:
    samples = [name for name in _SAMPLES if name in found]
    if not samples:
        raise ParameterError(f"{path} holds {', '.join(found) or 'nothing'}.", f"one of {', '.join(_SAMPLES)}", "")
    return samples[0], next((name for name in _LABELS if name in found), None)


def _bytes_to_images(x: Any) -> Tensor:
    images = torch.as_tensor(np.ascontiguousarray(x))
    if images.dim() == 4 and images.shape[-1] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    return images.float() / 127.5 - 1
