"""Under torch.compile: what breaks the graph, what no rule covers, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meanflow_ref.errors import ForwardADError, TangentError
from meanflow_ref.jvp.stopgrad import register_rule, stopgrad_jvp
from meanflow_ref.jvp.stopgrad.table import RULES


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def data() -> tuple[Tensor, Tensor]:
    x, d = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, d


def compiled(net: Callable[[Tensor], Tensor], fullgraph: bool) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(lambda x, d: stopgrad_jvp(net, (x,), (d,)), backend="eager", fullgraph=fullgraph)


def number(x: Tensor) -> float:
    """A number that is meant as a constant, and breaks the graph."""
    return float(x.detach().sum().item())


def after_one(x: Tensor) -> Tensor:
    return (x + number(x)).sin()


def methods(x: Tensor) -> Tensor:
    y = x.exp().cos() * 2 - x.sin()
    y = y * number(x)
    y = torch.softmax(x.sin().exp() + y, -1)
    parts: Tensor = x.unflatten(1, (2, 3))  # type: ignore[no-untyped-call]
    out: Tensor = 2 / (y + number(x)) - y.tanh() + torch.pow(2, x) - x**2 + parts.flatten(1).norm(dim=1, keepdim=True)
    return out


def functions(x: Tensor) -> Tensor:
    number(x)
    return torch.sin(x) * torch.exp(x) + F.silu(torch.cos(x)) - torch.matmul(x, x.T) @ x.detach()


def one_function_after_another(x: Tensor) -> Tensor:
    torch.detach(x).sum().item()
    return torch.exp(x)


def one_method_after_another(x: Tensor) -> Tensor:
    x.detach().sum().item()
    return x.exp()


BREAKS = {
    "an operation after one": after_one,
    "methods between": methods,
    "functions": functions,
    "one function after another": one_function_after_another,
    "one method after another": one_method_after_another,
}


# The break is what is tested; Dynamo reports it.
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_graph_has_the_eager_numbers(name: str) -> None:
    """Methods of one code and different closures were once taken for one another here, in u too."""
    x, d = data()
    net = BREAKS[name]
    u, du_dt = compiled(net, fullgraph=False)(x, d)
    torch.testing.assert_close(u, net(x), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(du_dt, stopgrad_jvp(net, (x,), (d,))[1], rtol=1e-13, atol=1e-13)


@torch.library.custom_op("meanflow_tests::running_sum", mutates_args=())
def running_sum(x: Tensor) -> Tensor:
    return x.cumsum(-1)


@running_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def uses_it(x: Tensor) -> Tensor:
    out: Tensor = running_sum(x * 2) + x.sin()
    return out


def test_an_operation_of_a_library_is_refused_by_name() -> None:
    """Forward mode would return zero for it, without a word."""
    x, d = data()
    with pytest.raises(Exception, match=r"meanflow_tests\.running_sum\.default, which has no rule.*register_rule"):
        compiled(uses_it, fullgraph=True)(x, d)
    torch.compiler.reset()
    with pytest.raises(ForwardADError, match=r"(?s)meanflow_tests\.running_sum\.default.*register_rule"):
        compiled(uses_it, fullgraph=False)(x, d)


def test_a_registered_rule_holds_under_compile_too() -> None:
    x, d = data()
    name = "meanflow_tests::running_sum"
    try:
        register_rule(name, lambda d, op, out, x: op(d(x)))
        for fullgraph in (True, False):
            _, du_dt = compiled(uses_it, fullgraph)(x, d)
            torch.testing.assert_close(du_dt, 2 * d.cumsum(-1) + x.cos() * d, rtol=1e-14, atol=1e-14)
    finally:
        RULES.pop(torch.ops.meanflow_tests.running_sum.default, None)


def written(x: Tensor) -> Tensor:
    y = x * 2
    y += 1
    return y


SAID: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "augmented": (written, "writes in place.*write x = x \\+ y"),
    "a number": (lambda x: x * x.sum().item(), "takes a Python number.*torch\\.compile"),
    "the matrix operator": (lambda x: torch.eye(4, dtype=x.dtype) @ x, "operator @.*torch\\.matmul"),
    "dropout in attention": (
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5),
        "dropout_p",
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_refused_says_why(name: str) -> None:
    net, says = SAID[name]
    x, d = data()
    with pytest.raises(Exception, match=f"(?s){says}"):
        compiled(net, fullgraph=True)(x, d)


def test_without_fullgraph_it_is_the_error_itself() -> None:
    with pytest.raises(TangentError, match="writes in place"):
        compiled(written, fullgraph=False)(*data())
