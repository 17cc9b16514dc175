"""A fixed seed for torch's global generator, which networks are initialised from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20250513)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing compiled before, nothing left after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
