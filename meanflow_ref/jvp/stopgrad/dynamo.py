"""What Dynamo has to be told so that the compile form is right or refused; all that touches its insides is here.

Loading this module loads Dynamo, which takes a second: only :mod:`meanflow_ref.jvp.stopgrad.compiled` does.
"""

from __future__ import annotations

from types import CodeType
from typing import Any, get_args

import torch
from torch._dynamo import config
from torch._dynamo.exc import Unsupported
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables import VariableTracker, functions
from torch._dynamo.variables.base import AttributeMutationExisting, ValueMutationExisting
from torch._dynamo.variables.builtin import BuiltinVariable
from torch._dynamo.variables.misc import AutogradFunctionVariable
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch._dynamo.variables.user_defined import UserDefinedObjectVariable


def types_as_of_values(pair: type, of_pairs: CodeType) -> None:
    """In traces, answer ``isinstance(x, torch.Tensor)``, ``torch.is_tensor(x)``, ``type(x)`` of a pair as of its value.

    ``x.__class__`` and ``tree_map_only(torch.Tensor, ...)`` too. Code that tells tensors from numbers by them would
    otherwise take the other way without a word.

    Args:
        pair: The class; its instances have their tensor in ``_paired_value``.
        of_pairs: The code that calls the network with pairs.

    """
    of_class, handlers = BuiltinVariable.call_isinstance, TorchInGraphFunctionVariable._get_handlers()
    of_type, attribute = BuiltinVariable.call_type, UserDefinedObjectVariable.var_getattr
    tree: Any = getattr(functions, "TreeMapOnlyFunctionVariable", None)  # not in earlier torch
    of_tree = getattr(tree, "_matches_allowed_type", None)
    of_tensor = handlers[torch.is_tensor]

    of_function = AutogradFunctionVariable.call_apply

    def is_pair(x: Any) -> bool:
        return isinstance(x, UserDefinedObjectVariable) and x.python_type() is pair

    def value_in(tx: Any, x: Any) -> Any:
        # While it is being made it has no value yet.
        is_made = is_pair(x) and tx.output.side_effects.has_pending_mutation_of_attr(x, "_paired_value")
        return x.var_getattr(tx, "_paired_value") if is_made else x

    def call_isinstance(self: Any, tx: Any, x: Any, kind: Any) -> Any:
        return of_class(self, tx, x if _names(kind, pair) else value_in(tx, x), kind)

    def is_tensor(self: Any, tx: Any, x: Any) -> Any:
        return of_tensor(self, tx, value_in(tx, x))

    # With no more arguments than theirs: Dynamo binds a call to the signature to see whether a handler fits.
    def call_type(self: Any, tx: Any, obj: Any) -> Any:
        return of_type(self, tx, value_in(tx, obj))

    def var_getattr(self: Any, tx: Any, name: str) -> Any:
        value = value_in(tx, self) if name == "__class__" else self
        return attribute(self, tx, name) if value is self else call_type(BuiltinVariable(type), tx, value)

    def matches(self: Any, node: Any) -> bool:
        if is_pair(node):
            return any(issubclass(torch.Tensor, kind) for kind in self.allowed_types)
        return bool(of_tree and of_tree(self, node))

    def call_apply(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        found: list[Any] = []
        VariableTracker.visit(lambda x: found.append(x) if is_pair(x) else None, (list(args), dict(kwargs)))
        # What an object holds is not seen; in a network of pairs it may be one.
        objects = any(isinstance(x, UserDefinedObjectVariable) for x in (*args, *kwargs.values()))
        if found or (objects and _inside(tx, of_pairs)):
            # Traced through its forward, where a detach() is nothing, and would be taken for a stop-gradient.
            raise Unsupported(
                f"an autograd.Function ({self.fn_cls.__name__}) of a tensor that has a tangent, under torch.compile. "
                "Wanted: operations of torch. What to do: write it in these, or run this network's loss without "
                "torch.compile"
            )
        return of_function(self, tx, args, kwargs)

    AutogradFunctionVariable.call_apply = call_apply  # type: ignore[method-assign]
    UserDefinedObjectVariable.var_getattr = var_getattr  # type: ignore[method-assign]
    if tree is not None:
        tree._matches_allowed_type = matches
    BuiltinVariable.call_type = call_type  # type: ignore[method-assign]
    BuiltinVariable.call_isinstance = call_isinstance  # type: ignore[method-assign, assignment]
    handlers[torch.is_tensor] = is_tensor
    # What was compiled before has bound the method as it was.
    BuiltinVariable.call_function_handler_cache.clear()


def _inside(tx: Any, code: CodeType) -> bool:
    """Whether what is traced is called by this code."""
    while tx is not None and tx.f_code is not code:
        tx = getattr(tx, "parent", None)
    return tx is not None


def _names(kind: Any, wanted: type) -> bool:
    kinds = kind.as_python_constant()
    return wanted in (kinds if isinstance(kinds, tuple) else get_args(kinds) or (kinds,))


def leaves_behind(kind: type) -> bool:
    """Whether what Dynamo compiles now leaves an object of this class: in an attribute, or in a hook's list."""
    effects = InstructionTranslator.current_tx().output.side_effects
    return any(
        isinstance(x, UserDefinedObjectVariable) and x.python_type() is kind for x in effects.id_to_variable.values()
    )


class guarded_hooks:
    """Context in which what Dynamo compiles is compiled anew when a module that it has seen gets a hook.

    Torch leaves these guards out, to save microseconds.
    """

    def __enter__(self) -> None:
        self.before = config.skip_nnmodule_hook_guards
        config.skip_nnmodule_hook_guards = False

    def __exit__(self, *error: object) -> None:
        config.skip_nnmodule_hook_guards = self.before


def changes_objects() -> bool:
    """Whether what Dynamo compiles now changes an object of Python that was there before: an attribute, a list."""
    effects = InstructionTranslator.current_tx().output.side_effects
    there = (ValueMutationExisting, AttributeMutationExisting)
    return any(isinstance(x.mutation_type, there) for x in effects._get_modified_vars())


def never_first(code: CodeType) -> None:
    """Let Dynamo inline this code into what it traces, and start neither with it nor with what it calls.

    Where a network breaks the graph, Python runs what called it, and so the network in the dispatch form: pairs live
    inside a graph alone.
    """
    try:
        from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
    except ImportError:  # an earlier torch
        from torch._dynamo.decorators import skip_code  # type: ignore[attr-defined]

        skip_code(code)
    else:
        set_code_exec_strategy(code, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
