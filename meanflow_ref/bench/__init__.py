"""What a MeanFlow step costs beside a flow-matching step: counters, interleaved timing, methods and scenarios."""

from __future__ import annotations
