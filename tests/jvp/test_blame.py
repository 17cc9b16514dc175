"""A network that cannot be differentiated: who is named, and that the way out is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from meanflow_ref.errors import ForwardADError, SecondDerivativeError
from meanflow_ref.jvp import get_backend

FORWARD = ("func", "forward_ad")


class Square(torch.autograd.Function):
    """A square in the old style: no setup_context, no jvp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 2 * x * grad[0]
        return slope


class SquareOnce(Square):
    """A square that says it can be differentiated once."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 2 * x * grad[0]
        return slope


class SquareKernel(Square):
    """A square whose backward is a kernel that torch cannot see into."""

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.detach().numpy() * grad[0].detach().numpy())


class Apply(nn.Module):
    """A module around a function."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fn(x)
        return out


class Block(nn.Module):
    """A residual block around a module called ``attn``."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attn(x)
        return out


class Net(nn.Module):
    """A stem and two blocks; the culprit sits in the second."""

    def __init__(self, culprit: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList([Block(nn.Tanh()), Block(culprit)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def attention(x: Tensor) -> Tensor:
    q = x[None, None]
    return torch.nn.functional.scaled_dot_product_attention(q, q, q)[0, 0]


def blamed(name: str, net: Any) -> str:
    x = torch.randn(5, 4)
    with pytest.raises(ForwardADError) as caught:
        get_backend(name)(net, (x,), (torch.ones_like(x),))
    assert caught.value.__cause__ is not None
    return str(caught.value)


@pytest.mark.parametrize("name", FORWARD)
def test_fused_attention_is_named_with_its_module(name: str) -> None:
    message = blamed(name, Net(Apply(attention)))
    assert "module `blocks.1.attn` (Apply)" in message
    assert "flash_attention" in message
    assert "SDPBackend.MATH" in message


@pytest.mark.parametrize("name", FORWARD)
def test_the_way_out_of_fused_attention_is_one(name: str) -> None:
    net = Net(Apply(attention)).double()
    x, d = torch.randn(2, 5, 4, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        _, du_dt = get_backend(name)(net, (x,), (d,))
    _, quotient = get_backend("finite_difference")(net, (x,), (d,))
    # Central differences in float64 are right to 1e-10 or so (their module's table).
    torch.testing.assert_close(du_dt.detach(), quotient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", FORWARD)
def test_a_custom_function_is_named_with_its_module(name: str) -> None:
    message = blamed(name, Net(Apply(Square.apply)))
    assert "module `blocks.1.attn` (Apply)" in message
    assert "autograd.Function `Square`" in message
    assert "double_backward" in message


def test_the_way_out_of_a_custom_function_is_one() -> None:
    net = Net(Apply(Square.apply)).double()
    plain = Net(Apply(torch.square)).double()
    plain.load_state_dict(net.state_dict())
    x, d = torch.randn(2, 5, 4, dtype=torch.float64)
    _, du_dt = get_backend("double_backward")(net, (x,), (d,))
    _, expected = get_backend("func")(plain, (x,), (d,))
    torch.testing.assert_close(du_dt, expected.detach(), rtol=1e-13, atol=1e-13)


def test_where_the_culprit_stands() -> None:
    assert blamed("func", Apply(Square.apply)).startswith("the network itself (Apply) uses")
    assert blamed("func", Square.apply).startswith("the network uses")
    hidden = Apply(Square.apply)
    assert blamed("func", Apply(hidden.__call__)).startswith("a module (Apply) uses")


def test_a_running_statistic_is_named_as_what_it_is() -> None:
    message = blamed("func", Net(nn.BatchNorm1d(4)))
    assert "module `blocks.1.attn` (BatchNorm1d)" in message
    assert ".eval()" in message


def test_reentrant_checkpointing_is_named_as_what_it_is() -> None:
    inner = nn.Linear(4, 4)
    message = blamed("func", Net(Apply(lambda x: checkpoint(inner, x, use_reentrant=True))))
    assert "CheckpointFunction" in message
    assert "use_reentrant=False" in message


@pytest.mark.parametrize(
    ("culprit", "named"),
    [(attention, "_scaled_dot_product_flash_attention"), (lambda x: torch.cdist(x, x)[:, :4], "_cdist_backward")],
)
def test_a_backward_that_cannot_be_differentiated_is_named(culprit: Any, named: str) -> None:
    x = torch.randn(5, 4)
    with pytest.raises(SecondDerivativeError, match=named):
        get_backend("double_backward")(Net(Apply(culprit)), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("function", [SquareOnce, SquareKernel])
def test_a_backward_that_drops_out_in_silence_is_noticed(function: type[Square]) -> None:
    """torch gives no error for either: the branch through the function just adds nothing to the derivative."""
    x = torch.randn(5, 4)
    with pytest.raises(SecondDerivativeError, match=r"contradict|once-differentiable"):
        get_backend("double_backward")(Net(Apply(function.apply)), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("name", ["func", "forward_ad", "double_backward"])
def test_other_errors_pass_unchanged(name: str) -> None:
    def broken(x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)

    x = torch.randn(5, 4)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes") as caught:
        get_backend(name)(broken, (x,), (x,))
    assert not isinstance(caught.value, ForwardADError | SecondDerivativeError)
