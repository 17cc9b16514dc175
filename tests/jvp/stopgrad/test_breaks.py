"""Under torch.compile: what breaks the graph, what no rule covers, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanflow_ref.errors import ForwardADError
from meanflow_ref.jvp.stopgrad import register_rule, seen_tangent, stopgrad_jvp
from meanflow_ref.jvp.stopgrad.table import RULES

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


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


def test_a_write_breaks_the_graph_and_is_followed() -> None:
    """Without fullgraph the network runs in the dispatch form, which follows writes."""
    x, d = data()
    u, du_dt = compiled(written, fullgraph=False)(x, d)
    torch.testing.assert_close(u, 2 * x + 1)
    torch.testing.assert_close(du_dt, 2 * d)


def asks_for_its_type(x: Tensor) -> Tensor:
    return x * x if isinstance(x, Tensor) else x


def asks_among_types(x: Tensor) -> Tensor:
    return x if isinstance(x, int | float) else x.exp() if isinstance(x, (list, Tensor)) else x.sin()


def asks_torch(x: Tensor) -> Tensor:
    return x * x.cos() if torch.is_tensor(x) else torch.cos(x)


def asks_after_a_break(x: Tensor) -> Tensor:
    return asks_for_its_type(x * number(x))


def through_complex_numbers(x: Tensor) -> Tensor:
    out: Tensor = torch.fft.irfft(torch.fft.rfft(x) * 2, n=x.shape[-1]) * torch.view_as_real(torch.polar(x, x))[..., 0]
    return out


def without_a_channel(x: Tensor) -> Tensor:
    return F.dropout1d(x[:, None], 0.5)[:, 0] * x


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize(
    "net", [asks_for_its_type, asks_among_types, asks_torch, asks_after_a_break, through_complex_numbers,
            without_a_channel],
)  # fmt: skip
def test_what_was_once_lost_without_a_word(net: Callable[[Tensor], Tensor], fullgraph: bool) -> None:
    """A pair is no tensor to Python; complex results; random numbers drawn once for the value, once for the tangent."""
    if net is asks_after_a_break and fullgraph:
        pytest.skip("it breaks the graph")
    x, d = data()
    torch.manual_seed(0)
    expected = stopgrad_jvp(net, (x,), (d,))
    torch.manual_seed(0)
    for found, wanted in zip(compiled(net, fullgraph)(x, d), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


def again(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A layer on something that is read once more after it."""

    def net(x: Tensor) -> Tensor:
        y = x * 1
        return layer(y) + y

    return net


# Options by keyword, in place by position, complex numbers, `out=`, questions to a tensor: once silently wrong.
RIGHT_OR_LOUD: dict[str, Callable[[Tensor], Tensor]] = {
    "one keyword of two": lambda x: F.hardtanh(x, max_val=0.3) + F.softplus(4 * x, threshold=3),
    "elu in place": again(nn.ELU(1.0, True)),
    "leaky relu in place": again(nn.LeakyReLU(0.2, True)),
    "hardtanh in place": again(nn.Hardtanh(-1, 1, True)),
    "dropout in place": again(nn.Dropout(0.5, True)),
    "relu6, selu, celu": lambda x: F.relu6(x) + F.selu(x) * F.celu(x, 0.7),
    "complex tanh": lambda x: torch.view_as_real(torch.complex(x, x / 2).tanh())[..., 0],
    "complex sigmoid": lambda x: torch.view_as_real(torch.complex(x, x / 2).sigmoid())[..., 1],
    "out=": lambda x: torch.cumsum(x, 1, out=torch.zeros_like(x)) * x,
    "type": lambda x: x * x if type(x) is Tensor else x,
    "hasattr": lambda x: x * x if hasattr(x, "sort") else x,
    "getattr": lambda x: x if getattr(x, "is_nested", True) else x * x,
    "seen_tangent": lambda x: x if seen_tangent(x) is None else x * x,
}


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("name", RIGHT_OR_LOUD)
def test_right_or_loud(name: str, fullgraph: bool) -> None:
    (x, d), net = data(), RIGHT_OR_LOUD[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = stopgrad_jvp(net, (x,), (d,))
        torch.manual_seed(0)
        try:
            found = compiled(net, fullgraph)(x, d)
        except torch._dynamo.exc.Unsupported:
            assert fullgraph, "without it, what cannot be traced runs in the dispatch form"
            return
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "net", [lambda x: F.alpha_dropout(x, 0.5, True), lambda x: F.rrelu(x, training=True), F.gumbel_softmax,
            lambda x: F.fractional_max_pool2d(x[None], 2, 3)],
)  # fmt: skip
def test_random_operations_of_unknown_mask_are_refused(net: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="its mask is not known"):
        compiled(net, fullgraph=True)(*data())


def test_what_is_random_in_training_alone_runs_in_evaluation() -> None:
    x, d = data()
    u, du_dt = compiled(lambda x: F.alpha_dropout(x.sin(), 0.5, False), fullgraph=True)(x, d)
    torch.testing.assert_close(u, x.sin())
    torch.testing.assert_close(du_dt, x.cos() * d)


EARLIER = """
import torch
class Other: pass
def before(x):
    return 2 * x if isinstance(Other(), torch.Tensor) else 3 * x
assert torch.compile(before, backend="eager", fullgraph=True)(torch.ones(1)) == 3
from meanflow_ref.jvp.stopgrad import stopgrad_jvp
def net(x):
    return x * x if isinstance(x, torch.Tensor) else x
jvp = torch.compile(lambda x, d: stopgrad_jvp(net, (x,), (d,)), backend="eager", fullgraph=True)
assert jvp(torch.full((1,), 3.0), torch.ones(1))[1] == 6
"""


def test_dynamo_forgets_how_it_asked_for_types_before() -> None:
    """In a fresh process, where something was compiled before the rules were loaded."""
    run = subprocess.run([sys.executable, "-c", EARLIER], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
