"""The same random numbers twice, for a network with dropout that one loss evaluates more than once."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def replayed_rng(*near: Tensor) -> AbstractContextManager[None]:
    """Context after which torch's global generators are as they were before it.

    What is evaluated inside and what is evaluated right after draw the same numbers.

    Args:
        near: Tensors whose devices' generators are kept, besides the CPU's.

    """
    devices = sorted({tensor.device.index for tensor in near if tensor.device.type != "cpu"})
    kinds = {tensor.device.type for tensor in near if tensor.device.type != "cpu"}
    return torch.random.fork_rng(devices, device_type=kinds.pop() if kinds else "cuda")
