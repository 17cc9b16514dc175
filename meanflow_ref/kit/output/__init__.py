"""Formats of a report; all derive from :class:`meanflow_ref.kit.diagnosis.Report`, without torch."""

from __future__ import annotations

from meanflow_ref.kit.output.formats import FORMATS, badge, render

__all__ = ["FORMATS", "badge", "render"]
