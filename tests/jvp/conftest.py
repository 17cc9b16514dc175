"""A fixed seed for torch's global generator, which networks are initialised from."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20250513)
