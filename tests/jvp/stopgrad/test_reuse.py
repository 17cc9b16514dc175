"""Memory of tangents used again: the same numbers, inputs and results left alone, nothing that somebody still reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from meanflow_ref.jvp.stopgrad.reuse import reuse_memory

F64 = torch.float64
Fn = Callable[[Tensor, Tensor], Any]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def graph_of(fn: Fn, *inputs: Tensor) -> fx.GraphModule:
    """What Dynamo records of a function."""
    found: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    torch.compile(fn, backend=backend, fullgraph=True)(*inputs)
    return found[0]


def inputs() -> tuple[Tensor, Tensor]:
    a, b = torch.rand(2, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0)) + 1
    return a, b


def twice_read(a: Tensor, b: Tensor) -> Any:
    p = a * b
    return p + a, p * b


def seen_as_a_view(a: Tensor, b: Tensor) -> Any:
    p = a * b
    return p.t(), p + a


def detached(a: Tensor, b: Tensor) -> Any:
    p = a * b
    return p.detach(), p - a


def returned(a: Tensor, b: Tensor) -> Any:
    p = a * b
    return p, -p


def normed(a: Tensor, b: Tensor) -> Any:
    _, mean, rstd = torch.native_layer_norm(a, [4], None, None, 1e-5)
    back: Any = torch.ops.aten.native_layer_norm_backward
    return back(b, a, [4], mean, rstd, None, None, [True, False, False])[0] * b


# The function, and how many of its operations may write over their first operand.
CASES: dict[str, tuple[Fn, int]] = {
    "a sum": (lambda a, b: a * b + a, 1),
    "a chain": (lambda a, b: -((torch.matmul(a, b) - a) / b), 3),
    "of a written tensor": (lambda a, b: (a * b).addcmul_(a, b) + b, 1),
    "of a layer": (lambda a, b: torch.add(F.linear(a, b), b, alpha=2), 1),
    "one of several": (normed, 1),
    "two readers": (twice_read, 0),
    "a view of it": (seen_as_a_view, 0),
    "an alias of it": (detached, 0),
    "a result": (returned, 0),
    "an input": (lambda a, b: a + b, 0),
    "a view of an input": (lambda a, b: a.t() + b, 0),
    "an input that was written": (lambda a, b: a.mul_(b) + b, 0),
    "a view of what is new": (lambda a, b: (a * b).t() + b, 0),
    "a smaller operand": (lambda a, b: a[:1] * b[:1] + a, 0),
    "a narrower dtype": (lambda a, b: a.float() * b.float() + a, 0),
    "a number first": (lambda a, b: (2 - a) * b, 1),
    "a difference": (lambda a, b: torch.sub(a * b, b, alpha=2), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers_from_less_memory(name: str) -> None:
    fn, expected = CASES[name]
    with torch.no_grad():
        graph = graph_of(fn, *inputs())
        plain, ours = inputs(), inputs()
        wanted = graph(*plain)
        assert reuse_memory(graph.graph, grad_enabled=False) == expected
        graph.recompile()
        graph.graph.lint()
        found = graph(*ours)
    for x, y in zip((*found, *ours), (*wanted, *plain), strict=True):
        assert torch.equal(x, y)


def test_where_autograd_is_on_nothing_is_written_over() -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        kept, seen, written = a * b + a, a * b, a * b
        with torch.no_grad():
            free = a * b + a
            # Of what autograd has seen: the result would keep its graph.
            still = seen * 2
            still_too = written.mul_(2) + a
        return (kept * kept + b) * free + still - still_too

    graph = graph_of(fn, *(x.requires_grad_() for x in inputs()))
    assert reuse_memory(graph.graph, grad_enabled=True) == 1
    graph.recompile()
    a, b = (x.requires_grad_() for x in inputs())
    for x, y in zip(
        torch.autograd.grad(graph(a, b)[0].sum(), (a, b)), torch.autograd.grad(fn(a, b).sum(), (a, b)), strict=True
    ):
        torch.testing.assert_close(x, y)


def test_a_batch_of_unknown_size() -> None:
    def fn(a: Tensor, b: Tensor) -> Tensor:
        return a * b + a

    with torch.no_grad():
        a, b = inputs()
        torch._dynamo.mark_dynamic(a, 0)
        torch._dynamo.mark_dynamic(b, 0)
        graph = graph_of(fn, a, b)
        assert reuse_memory(graph.graph, grad_enabled=False) == 1
