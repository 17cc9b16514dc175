"""Ways to compute ``u`` and its total derivative ``du/dt`` together, one backend a file.

A backend is called as ``u, du_dt = backend(fn, primals, tangents)`` (:class:`meanflow_ref._typing.JvpBackend`), where
a tangent may be ``None`` for zero. To add one, write its file and its row in :data:`BACKENDS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from meanflow_ref.errors import ParameterError

if TYPE_CHECKING:
    from meanflow_ref._typing import JvpBackend

# Name -> "module:attribute", imported on first use.
BACKENDS: dict[str, str] = {
    "stopgrad": "meanflow_ref.jvp.stopgrad:stopgrad_jvp",
    "func": "meanflow_ref.jvp.func:func_jvp",
    "forward_ad": "meanflow_ref.jvp.forward_ad:forward_ad_jvp",
    "double_backward": "meanflow_ref.jvp.double_backward:double_backward_jvp",
    "finite_difference": "meanflow_ref.jvp.finite_difference:finite_difference_jvp",
}
# Backends at other options: names to ask for, none that a proof or a comparison runs over.
VARIANTS: dict[str, str] = {
    "stopgrad_traced": "meanflow_ref.jvp.stopgrad:stopgrad_traced_jvp",
    "stopgrad_bf16": "meanflow_ref.jvp.stopgrad:stopgrad_bf16_jvp",
}
_LOADED: dict[str, JvpBackend] = {}


def get_backend(backend: str | JvpBackend) -> JvpBackend:
    """Backend by name, or the callable itself.

    Raises:
        ParameterError: If the name is unknown; it names the nearest.

    """
    if not isinstance(backend, str):
        if callable(backend):
            return backend
        raise ParameterError(f"jvp={backend!r} is {type(backend).__name__}.", _wanted(), "")
    if backend not in _LOADED:
        _LOADED[backend] = _load(backend)
    return _LOADED[backend]


def _load(name: str) -> JvpBackend:
    known = BACKENDS | VARIANTS
    if name not in known:
        from difflib import get_close_matches

        near = get_close_matches(name, known, n=1, cutoff=0.3)
        raise ParameterError(f"jvp={name!r} is no backend.", _wanted(), f'jvp="{near[0]}"' if near else "")
    module, attribute = known[name].split(":")
    backend: JvpBackend = getattr(import_module(module), attribute)
    return backend


def _wanted() -> str:
    return f"one of {', '.join(map(repr, BACKENDS | VARIANTS))}, or a callable (fn, primals, tangents) -> (u, du_dt)"
