"""The catalogue of diagnoses: one page a name, one module a part; ``meanflow-ref explain NAME`` prints a page.

To add a part, write a module with ``PAGES`` and add its name to ``PARTS``.
"""

from __future__ import annotations

from meanflow_ref.kit.catalogue.page import Page

# Modules of this package, in the order of the book.
PARTS: tuple[str, ...] = ("losses", "sampler", "times", "guidance", "network", "distributed")

__all__ = ["PARTS", "Page"]
