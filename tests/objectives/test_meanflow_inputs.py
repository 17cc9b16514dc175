"""Bad input to the loss: each has its own clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.convention import Convention
from meanflow_ref.errors import (
    DtypeError,
    ForwardADError,
    MeanFlowError,
    NetworkError,
    NonFiniteError,
    ParameterError,
    ShapeError,
    TimeError,
)
from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at

NAN, INF = float("nan"), float("inf")


def poisoned(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[2] = value
    return x


BAD: dict[str, tuple[Callable[[Any], tuple[Any, ...]], type[Exception], str]] = {
    "r > t": (lambda b: (b.x, b.eps, b.t, b.r), TimeError, r"r > t in 6 of 8 rows"),
    "t above 1": (lambda b: (b.x, b.eps, b.r, b.t + 1), TimeError, r"time `t` ranges over \[1"),
    "r below 0": (lambda b: (b.x, b.eps, b.r - 1, b.t), TimeError, r"time `r` ranges over \[-"),
    "NaN in t": (lambda b: (b.x, b.eps, b.r, poisoned(b.t, NAN)), TimeError, r"time `t` has NaN"),
    "NaN in r": (lambda b: (b.x, b.eps, poisoned(b.r, NAN), b.t), TimeError, r"time `r` has NaN"),
    "integer t": (
        lambda b: (b.x, b.eps, b.r, (999 * b.t).long()),
        TimeError,
        r"`t` has dtype torch\.int64; an integer",
    ),
    "t a number": (lambda b: (b.x, b.eps, b.r, 0.5), TimeError, r"time `t` is float"),
    "NaN in x": (lambda b: (poisoned(b.x, NAN), b.eps, b.r, b.t), NonFiniteError, r"`x` has 1 NaN or infinite"),
    "infinity in eps": (
        lambda b: (b.x, poisoned(b.eps, INF), b.r, b.t),
        NonFiniteError,
        r"`eps` has 1 NaN or infinite",
    ),
    "shapes of x, eps": (lambda b: (b.x, b.eps[:, :2], b.r, b.t), ShapeError, r"`eps` has shape \(8, 2\), `x` has"),
    "eps broadcasts": (lambda b: (b.x, b.eps[:1], b.r, b.t), ShapeError, r"`eps` has shape \(1, 3\)"),
    "too few times": (lambda b: (b.x, b.eps, b.r[:4], b.t), ShapeError, r"time `r` has shape \(4,\).*\n.*shape \(8,\)"),
    "a column of times": (lambda b: (b.x, b.eps, b.r, b.t[:, None]), ShapeError, r"(?s)time `t`.*t\.reshape\(8\)"),
    "one time": (lambda b: (b.x, b.eps, b.r, b.t[0]), ShapeError, r"time `t` has shape \(\)"),
    "dtypes of x, eps": (lambda b: (b.x, b.eps.float(), b.r, b.t), DtypeError, r"eps is torch\.float32"),
    "dtypes of x, t": (lambda b: (b.x, b.eps, b.r, b.t.float()), DtypeError, r"time t is torch\.float32"),
    "dtypes of r, t": (
        lambda b: (b.x.half(), b.eps.half(), b.r.half(), b.t.float()),
        DtypeError,
        r"time `r` is torch\.float16, time `t` is torch\.float32",
    ),
    "integer x": (lambda b: (b.x.long(), b.eps, b.r, b.t), DtypeError, r"`x` has dtype torch\.int64"),
    "x a list": (lambda b: ([1.0], b.eps, b.r, b.t), DtypeError, r"`x` is list"),
    "empty batch": (lambda b: (b.x[:0], b.eps[:0], b.r[:0], b.t[:0]), ShapeError, r"\(0, 3\): nothing in it"),
    "a scalar": (lambda b: (b.x[0, 0], b.eps[0, 0], b.r[0], b.t[0]), ShapeError, r"`x` has no dimension"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_its_own_error(name: str, batch: Any, net: nn.Module) -> None:
    make, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        meanflow_loss(net, *make(batch))
    assert "Wanted: " in str(caught.value)


def test_a_bad_velocity_is_called_by_its_name(batch: Any, net: nn.Module) -> None:
    with pytest.raises(NonFiniteError, match="`v` has 1 NaN"):
        meanflow_loss_at(net, batch.x, poisoned(batch.eps, NAN), batch.r, batch.t)
    with pytest.raises(ShapeError, match="`v` has shape"):
        meanflow_loss_at(net, batch.x, batch.eps[:, :1], batch.r, batch.t)


def test_labels_are_one_a_row(batch: Any) -> None:
    with pytest.raises(ShapeError, match=r"`label` has shape \(3,\)"):
        meanflow_loss(lambda z, r, t, y: z, *batch.args, label=torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jvp": "fun"}, 'jvp="func"'),
        ({"norm": "l2"}, "norm='l2'"),
        ({"weight_power": -1.0}, "weight_power"),
        ({"weight_eps": 0.0}, "weight_eps"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, batch: Any, net: nn.Module) -> None:
    with pytest.raises(ParameterError, match=message):
        meanflow_loss(net, *batch.args, **options)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda z: z[:, :2], r"returned shape \(8, 2\).*\n.*\(8, 3\)"),
        (lambda z: z.sum(), r"returned shape \(\)"),
        (lambda z: z[:1], r"returned shape \(1, 3\)"),
        (lambda z: (z, z), r'(?s)returned tuple \(Tensor, Tensor\).*returns="u, v"'),
        (lambda z: None, "returned NoneType"),
        (lambda z: z.long(), r"returned torch\.int64"),
        (lambda z: z.float(), r"returned torch\.float32 for a float64 state"),
    ],
)
@pytest.mark.parametrize("two_pass", [False, True])
def test_outputs_that_are_no_average_velocity(
    output: Callable[[Tensor], Any], message: str, two_pass: bool, batch: Any
) -> None:
    with pytest.raises(NetworkError, match=message):
        meanflow_loss(lambda z, r, t: output(z), *batch.args, two_pass=two_pass)


def test_a_tuple_that_is_declared_is_read(batch: Any, net: nn.Module) -> None:
    expected = meanflow_loss(net, *batch.args)
    for returns, outputs in (("u, v", (0, 1)), ("v, u", (1, 0)), ("_, _, u", (2, 2, 0))):

        def several(z: Tensor, r: Tensor, t: Tensor, outputs: tuple[int, ...] = outputs) -> tuple[Tensor, ...]:
            return tuple(net(z, r, t) if i == 0 else z for i in outputs)

        terms = meanflow_loss(several, *batch.args, convention=Convention(returns=returns))
        assert torch.equal(terms.loss, expected.loss)
    with pytest.raises(NetworkError, match=r"(?s)returned Tensor.*a tuple of 2"):
        meanflow_loss(net, *batch.args, convention=Convention(returns="u, v"))
    with pytest.raises(NetworkError, match="returned tuple of 3"):
        meanflow_loss(lambda z, r, t: (z, z, z), *batch.args, convention=Convention(returns="u, v"))


class Detached(nn.Module):
    """A network whose output is cut from its parameters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(z, r, t)
        return out.detach()


@pytest.mark.parametrize("two_pass", [False, True])
def test_a_loss_that_would_train_nothing_is_refused(two_pass: bool, batch: Any, net: nn.Module) -> None:
    cut = Detached(net)
    for network in (cut, Convention().adapt(cut)):
        with pytest.raises(NetworkError, match="no graph to the network's parameters"):
            meanflow_loss(network, *batch.args, two_pass=two_pass)
    # Where no gradient is asked for, none is missed.
    with torch.no_grad():
        assert not meanflow_loss(cut, *batch.args, two_pass=two_pass).loss.requires_grad
    meanflow_loss(cut.requires_grad_(False), *batch.args, two_pass=two_pass)


def test_an_operation_without_forward_mode_names_its_module(batch: Any) -> None:
    class Attention(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            q = z[None, None]
            return nn.functional.scaled_dot_product_attention(q, q, q)[0, 0]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(nn.Linear(3, 3), Attention())

        def forward(self, z: Tensor, h: Tensor) -> Tensor:
            out: Tensor = self.blocks(z) * h[:, None]
            return out

    with pytest.raises(ForwardADError, match=r"module `blocks\.1` \(Attention\) uses .*flash_attention"):
        meanflow_loss(Network().double(), *batch.args, convention=Convention("z, h"), jvp="func")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"net": lambda z, t: z}, "can be called as net"),
        ({"net": 3}, "the network is int"),
        ({"path": "linear"}, "a path of meanflow_ref.paths"),
        ({"convention": "z, r, t"}, "a Convention"),
        ({"guidance": 2.0}, "a meanflow_ref.Guidance"),
        ({"weight_power": None}, "weight_power=None"),
        ({"weight_eps": "1e-3"}, "weight_eps='1e-3'"),
        ({"label": [0] * 8}, "`label` is list"),
    ],
)
def test_a_call_that_cannot_work_is_one_clear_error(change: dict[str, object], says: str, batch: Any) -> None:
    arguments: dict[str, object] = {"net": lambda z, r, t: z, **change}
    with pytest.raises(MeanFlowError, match=says):
        meanflow_loss(arguments.pop("net"), *batch.args, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("jvp", ["func", "finite_difference"])
def test_gradients_of_single_samples_by_vmap_are_those_of_the_batch(jvp: str, batch: Any, net: nn.Module) -> None:
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], *row: Tensor) -> Tensor:
        def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(net, parameters, (z, r, t))
            return out

        return meanflow_loss(u, *(x[None] for x in row), jvp=jvp).loss

    single = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *batch.args)
    torch.autograd.backward(meanflow_loss(net, *batch.args).loss)
    for name, p in net.named_parameters():
        assert p.grad is not None
        # 1e-8 for the finite difference; the others agree to rounding.
        torch.testing.assert_close(single[name].mean(0), p.grad, rtol=0, atol=1e-8 if "finite" in jvp else 1e-13)
