"""The stop-gradient JVP: the derivative of a MeanFlow step at the price it must have, and no more.

- :mod:`front`: the entry, :func:`stopgrad_jvp`.
- :mod:`rules`: the table, one rule a line; :mod:`table`: how rules are kept and registered; :mod:`attention`: theirs;
  :mod:`flash`: an outside kernel in its place.
- :mod:`mode`: the dispatch form, below autograd; :mod:`tangents`, :mod:`writes`: whose tangent is whose, under views
  and writes; :mod:`fallback`: one operation by PyTorch's forward mode; :mod:`rowwise`: tangents of some rows.
- :mod:`backend`, :mod:`products`: products of tangents in half precision, on request.
- :mod:`compiled`: pairs that ``torch.compile`` can trace; :mod:`dynamo`: what it must be told; :mod:`traced`: the same
  recorded once, without a compiler; :mod:`rehearsal`: how a recording is held against the dispatch form; :mod:`reuse`:
  how it is made to need less memory; :mod:`first_rows`: how one of all rows and one of some become one.
"""

from __future__ import annotations

from meanflow_ref.jvp.stopgrad.backend import StopgradJvp, stopgrad_bf16_jvp, stopgrad_traced_jvp
from meanflow_ref.jvp.stopgrad.flash import use_jvp_flash_attention
from meanflow_ref.jvp.stopgrad.front import require_graph, seen_tangent, stopgrad_jvp, stopgrad_jvp_of_rows
from meanflow_ref.jvp.stopgrad.table import register_rule
from meanflow_ref.jvp.stopgrad.traced import UntracedWarning

__all__ = [
    "StopgradJvp",
    "UntracedWarning",
    "register_rule",
    "require_graph",
    "seen_tangent",
    "stopgrad_bf16_jvp",
    "stopgrad_jvp",
    "stopgrad_jvp_of_rows",
    "stopgrad_traced_jvp",
    "use_jvp_flash_attention",
]
