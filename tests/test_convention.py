"""Conventions: the grammar, the round trip, and that reversed time means what its derivation says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from meanflow_ref.convention import TIME_SHAPES, TIMES, Adapted, Convention
from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError
from meanflow_ref.fields import Gaussian
from meanflow_ref.objectives.meanflow import meanflow_loss, meanflow_loss_at

ARGUMENTS = (
    "z, r, t",
    "z, t, r",
    "r, t, z",
    "z, t, h",
    "z, h, r",
    "z, (t, h)",
    "(z, (r, t))",
    "z, t, -h",
    "x=z, start=r, end=t",
    "z, span=(t, h)",
    "z, t, h, r",
)
RETURNS = ("u", "u, v", "v, u", "u, _", "_, v, u", "u,")
# Conventions that can be expressed: h alone does not tell r and t.
ALL = [
    Convention(arguments, returns, time, shape)  # type: ignore[arg-type]
    for arguments, returns, time, shape in product(ARGUMENTS, RETURNS, TIMES, TIME_SHAPES)
]


def field() -> Gaussian:
    return Gaussian(
        torch.tensor([1.0, -2.0], dtype=torch.float64),
        torch.tensor([[2.0, 0.5], [0.5, 0.7]], dtype=torch.float64),
    )


def inputs(seed: int, n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    r, t = torch.rand(2, n, dtype=torch.float64, generator=generator).sort(0).values
    r[0] = t[0]
    return z, r, t


# ---------------------------------------------------------------- both ways


@given(convention=st.sampled_from(ALL), seed=st.integers(0, 2**32 - 1))
def test_expressed_and_adapted_a_field_is_itself(convention: Convention, seed: int) -> None:
    u = field().average_velocity
    z, r, t = inputs(seed)
    there_and_back = convention.adapt(convention.express(u))
    # 1 - (1 - t) and t - (t - r) are off by 1e-16; u has slopes of ten or so.
    torch.testing.assert_close(there_and_back(z, r, t), u(z, r, t), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("convention", ALL[:: len(ALL) // 40], ids=str)
def test_every_convention_has_the_exact_loss_zero(convention: Convention) -> None:
    """The JVP goes through the adapter: its derivative must be that of the paper's u, sign and all."""
    gaussian = field()
    z, r, t = inputs(3)
    terms = meanflow_loss_at(
        convention.express(gaussian.average_velocity), z, gaussian.velocity(z, t), r, t, convention=convention
    )
    torch.testing.assert_close(terms.u, terms.target, rtol=0, atol=1e-13)


def test_another_convention_than_the_networks_own_is_noticed() -> None:
    gaussian = field()
    z, r, t = inputs(3)
    for own, taken in (
        (Convention("z, r, t"), Convention("z, t, r")),
        (Convention("z, t, h"), Convention("z, t, -h")),
        (Convention("z, t, h"), Convention("z, t, r")),
        (Convention(), Convention(time="data_at_one")),
        (Convention("z, t, h", time="data_at_one"), Convention("z, t, -h", time="data_at_one")),
    ):
        terms = meanflow_loss_at(
            own.express(gaussian.average_velocity), z, gaussian.velocity(z, t), r, t, convention=taken
        )
        assert float((terms.u - terms.target).abs().max()) > 0.1


@pytest.mark.parametrize("arguments", ["z, r, t", "z, t, h", "z, t, -h"])
def test_reversed_time_means_displacement_over_their_own_time(arguments: str) -> None:
    """Their sampler, from their s0 up to s1, knows nothing of ours: z(s1) = z(s0) + (s1 - s0) u'."""
    gaussian = field()
    z, _, _ = inputs(5)
    start, end = 0.2, 0.7
    s0, s1 = (torch.full((8,), s, dtype=torch.float64) for s in (start, end))
    theirs = Convention(arguments, time="data_at_one").express(gaussian.average_velocity)
    times = {"z, r, t": (s1, s0), "z, t, h": (s0, s0 - s1), "z, t, -h": (s0, s1 - s0)}[arguments]
    moved = z + (end - start) * theirs(z, *times)
    torch.testing.assert_close(moved, gaussian.flow_map(z, 1 - start, 1 - end), rtol=1e-13, atol=1e-13)


def test_an_expressed_v_is_the_velocity() -> None:
    gaussian = field()
    z, r, t = inputs(6)
    _, v = Convention(returns="u, v").express(gaussian.average_velocity)(z, r, t)
    torch.testing.assert_close(v, gaussian.velocity(z, t), rtol=1e-13, atol=1e-13)
    _, v = Convention(returns="u, v", time="data_at_one").express(gaussian.average_velocity)(z, 1 - r, 1 - t)
    torch.testing.assert_close(v, -gaussian.velocity(z, t), rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------- what the network sees


def seen(convention: Convention, label: Tensor | None = None, dim: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with which the network is called for r = 1/4, t = 1."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def net(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        return z

    z = torch.zeros(3, *[2] * (dim - 1))
    convention.adapt(net)(z, torch.full((3,), 0.25), torch.ones(3), label)
    return calls[0]


def test_arguments_arrive_where_the_convention_puts_them() -> None:
    def value(x: Any) -> Any:
        return tuple(map(value, x)) if isinstance(x, tuple) else x.flatten()[0].item()

    table = {
        Convention("z, t, r"): (0.0, 1.0, 0.25),
        Convention("z, (t, h)"): (0.0, (1.0, 0.75)),
        Convention("z, -h"): (0.0, -0.75),
        Convention("z, r, t", time="data_at_one"): (0.0, 0.75, 0.0),
        Convention("z, t, h", time="data_at_one"): (0.0, 0.0, -0.75),
        Convention("z, t, -h", time="data_at_one"): (0.0, 0.0, 0.75),
    }
    for convention, expected in table.items():
        assert value(seen(convention)[0]) == expected
    args, kwargs = seen(Convention("x=z, start=r, end=t"))
    assert args == ()
    assert {name: value(x) for name, x in kwargs.items()} == {"x": 0.0, "start": 0.25, "end": 1.0}


@pytest.mark.parametrize(("shape", "dims"), [("(B,)", (3,)), ("(B, 1)", (3, 1)), ("broadcast", (3, 1, 1, 1))])
def test_times_arrive_in_their_shape(shape: Any, dims: tuple[int, ...]) -> None:
    args, _ = seen(Convention("z, r, (t, h)", time_shape=shape), dim=4)
    assert args[1].shape == args[2][0].shape == args[2][1].shape == dims


def test_labels_arrive_as_they_are() -> None:
    label = torch.tensor([4, 5, 6])
    assert seen(Convention("y, z, h"), label)[0][0] is label
    assert seen(Convention("z, h, cls=y"), label)[1]["cls"] is label
    assert seen(Convention("z, h, cls=y"))[1]["cls"] is None
    with pytest.raises(ParameterError, match=r'(?s)no place for it.*arguments="z, h, y"'):
        seen(Convention("z, h"), label)


# ---------------------------------------------------------------- differentiation


class Net(nn.Module):
    """A network called ``net(z, (t, h))`` whose times have shape (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, z: Tensor, times: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        return torch.tanh(self.linear(torch.cat([z, *times], 1))), None


def test_an_adapted_module_trains_and_its_loss_is_that_of_the_same_network_written_out() -> None:
    torch.manual_seed(0)
    net = Net().double()
    convention = Convention("z, (t, h)", "u, _", "data_at_one", "(B, 1)")

    def written_out(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return -torch.tanh(net.linear(torch.cat([z, (1 - t)[:, None], (r - t)[:, None]], 1)))

    x, r, t = inputs(7)
    eps, _, _ = inputs(8)
    losses = (
        meanflow_loss(net, x, eps, r, t, convention=convention).loss,
        meanflow_loss(convention.adapt(net), x, eps, r, t).loss,
        meanflow_loss(written_out, x, eps, r, t).loss,
    )
    gradients = [[loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))] for loss in losses]
    for other in gradients[:2]:
        torch.testing.assert_close(other, gradients[2], rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": "z, r, T"}, r"`T` is none of z, r, t, h, -h, y.*\n.*\n.*arguments=\"z, r, t\""),
        ({"arguments": "z, (t, h"}, r"does not read as arguments.*\n.*\n.*arguments=\"z, \(t, h\)\""),
        ({"arguments": "z t r"}, r"does not read as arguments"),
        ({"arguments": "r, t"}, r"the state `z` is missing"),
        ({"arguments": ""}, r"the state `z` is missing"),
        ({"arguments": "z, t"}, r"needs both r and t, or h"),
        ({"arguments": "z, t, t, r"}, r"`t` stands twice"),
        ({"arguments": "z, t, h, -h"}, r"`h` stands twice"),
        ({"arguments": "z, end=t, end=r"}, "a keyword stands twice"),
        ({"arguments": "z)(z, r, t"}, "it is not a list of arguments"),
        ({"arguments": "z, -t, r"}, r"`-t` is none of"),
        ({"arguments": "z, *t"}, r"`\*t` is none of"),
        ({"arguments": "z, **t"}, r"not a list of arguments"),
        ({"arguments": "z) + (r, t"}, r"not a list of arguments"),
        ({"arguments": "z, 0.5, t"}, r"`0\.5` is none of"),
        ({"arguments": None}, r"NoneType, not a string"),
        ({"returns": "v"}, r"`u` stands 0 times"),
        ({"returns": "u, u"}, r"`u` stands 2 times"),
        ({"returns": "u, logvar"}, r"only u, v and _.*\n.*\n.*returns=\"u, v\""),
        ({"returns": "u["}, r"does not read"),
        ({"returns": 1}, r"int, not a string"),
        ({"time": "noise_at_zero"}, r"no such direction.*\n.*\n.*time=\"noise_at_one\""),
        ({"time_shape": "(B,1)"}, r"no such shape.*\n.*\n.*time_shape=\"\(B, 1\)\""),
    ],
)
def test_what_cannot_be_read_says_so_and_names_the_nearest(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        Convention(**options)
    (name, value), *_ = options.items()
    assert f"Convention({name}={value!r})" in str(caught.value)


@given(st.text(alphabet="zrthyuv_ ,()=-*[]1", max_size=12))
def test_any_text_is_read_or_refused_with_our_own_error(text: str) -> None:
    for options in ({"arguments": text}, {"returns": text}):
        with contextlib.suppress(MeanFlowError):
            assert Convention(**options) == Convention(**options)  # type: ignore[arg-type]


def test_conventions_are_values() -> None:
    assert Convention("z, t, h") == Convention("z, t, h")
    assert hash(Convention("z, t, h")) == hash(Convention("z, t, h"))
    assert Convention("z, t, h") != Convention("z, t, r")
    assert repr(Convention()) == (
        "Convention(arguments='z, r, t', returns='u', time='noise_at_one', time_shape='(B,)')"
    )


def test_what_cannot_be_expressed() -> None:
    with pytest.raises(ParameterError, match="h alone"):
        Convention("z, h").express(field().average_velocity)


@pytest.mark.parametrize("call", [lambda f, z: f(z, z), lambda f, z: f(z, z, z, z), lambda f, z: f(z, z, t=z)])
def test_a_call_in_another_way_than_the_convention(call: Callable[..., Any]) -> None:
    with pytest.raises(NetworkError, match="3 positional arguments and keywords"):
        call(Convention("z, r, t").express(field().average_velocity), torch.zeros(2, 2))


def test_an_adapted_network_has_a_hash_before_it_is_built() -> None:
    """Dynamo of torch 2.11 asks for it while it traces the construction."""
    assert isinstance(hash(object.__new__(Adapted)), int)
