"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels in 10 classes, installed with the package."""

from __future__ import annotations

import torch

from meanflow_ref.errors import MissingExtraError
from meanflow_ref.train.data.base import Arrays


class Digits(Arrays):
    """Digits as vectors of 64 pixels in [-1, 1]."""

    def __init__(self, seed: int) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as missing:
            raise MissingExtraError("scikit-learn", "train", "--data digits") from missing
        pixels, target = load_digits(return_X_y=True)
        # Pixels count black dots, 0 to 16.
        super().__init__(torch.as_tensor(pixels, dtype=torch.float32) / 8 - 1, torch.as_tensor(target).long(), seed)
