"""Everything random in a run, as a function of (seed, purpose, step, part).

No generator is carried from step to step. A batch depends on nothing but these numbers, so that a run resumes exactly
from its step, and the parts of a batch are the same whether one process draws them in turn or several ranks at once.
"""

from __future__ import annotations

import hashlib

import torch


def seed_of(seed: int, *purpose: int | str) -> int:
    """A seed below 2^63 for a purpose; different purposes give unrelated seeds."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A generator on the CPU, so that every device sees the same numbers."""
    return torch.Generator().manual_seed(seed_of(seed, *purpose))
