"""A folder of images of one size; sub-folders are classes. Decoded when asked for, never all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meanflow_ref.errors import MissingExtraError, ParameterError
from meanflow_ref.train.data.base import AbstractFinite, Rows

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ImageFolder(AbstractFinite):
    """Images as ``(3, height, width)`` or ``(1, height, width)`` in [-1, 1].

    Args:
        folder: Images, or one sub-folder of images a class, numbered in the order of their names.
        seed: Of the order.

    Raises:
        ParameterError: If there are no images, or they are not of one size and mode.

    """

    def __init__(self, folder: Path | None, seed: int) -> None:
        self._image = _pillow()
        if folder is None or not folder.is_dir():
            raise ParameterError(f"--data-path is {folder}.", "a folder of images", "--data-path FOLDER")
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not self.files:
            raise ParameterError(
                f"--data-path {folder} holds no images.", f"files ending in {', '.join(sorted(_SUFFIXES))}", ""
            )
        super().__init__(len(self.files), seed)
        self.names = sorted({path.parent.name for path in self.files if path.parent != folder})
        loose = [path for path in self.files if path.parent == folder]
        if self.names and loose:
            raise ParameterError(f"{loose[0]} lies beside sub-folders of classes.", "each image in a class", "move it")
        self.classes = len(self.names) or None
        self.shape = self._shape_of_all()

    def at(self, rows: Tensor) -> Rows:
        """Decode these images."""
        files = [self.files[i] for i in rows.tolist()]
        x = torch.stack([self._read(file) for file in files])
        if not self.names:
            return x, None
        return x, torch.tensor([self.names.index(file.parent.name) for file in files])

    def _read(self, file: Path) -> Tensor:
        try:
            with self._image.open(file) as image:
                pixels = np.asarray(image.convert("RGB" if self.shape[0] == 3 else "L"))
        except OSError as error:
            raise ParameterError(
                f"{file} cannot be read as an image: {error}.", "a whole image file", "remove it"
            ) from error
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1

    def _shape_of_all(self) -> tuple[int, int, int]:
        """The one shape of the images, from their headers alone."""
        first: tuple[tuple[int, int, int], Path] | None = None
        for file in self.files:
            try:
                with self._image.open(file) as image:
                    shape = (1 if image.mode in ("L", "1", "I", "I;16") else 3, image.height, image.width)
            except OSError as error:
                raise ParameterError(
                    f"{file} cannot be read as an image: {error}.", "a whole image file", ""
                ) from error
            first = first or (shape, file)
            if shape != first[0]:
                raise ParameterError(
                    f"images of mixed sizes: {first[1].name} is {first[0]}, {file.name} is {shape}, channels first.",
                    "one size and mode",
                    "crop and resize them first",
                )
        assert first is not None
        return first[0]


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as missing:
        raise MissingExtraError("pillow", "train", "--data images") from missing
    return Image
