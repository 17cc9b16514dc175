"""The JAX adapter: right and wrong losses under jit and grad, and the calls that it cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meanflow_ref.errors import MeanFlowError, NetworkError, ParameterError

jax = pytest.importorskip("jax")
jnp = jax.numpy

from meanflow_ref.kit.adapters.jax import check_loss  # noqa: E402


def make(
    tangent: Callable[..., Any] = lambda v, zero, one: (v, zero, one),
    interval: Callable[..., Any] = lambda r, t: t - r,
    stop: Callable[[Any], Any] = jax.lax.stop_gradient,
    network: Callable[..., Any] = lambda net: net,
    output: Callable[..., Any] = lambda loss: loss,
) -> Callable[..., Any]:
    """A loss with one thing changed."""

    def loss(net: Any, x: Any, key: Any) -> Any:
        times, noise = jax.random.split(key)
        pair = jnp.sort(jax.random.uniform(times, (len(x), 2)), 1)
        r, t, e = pair[:, 0], pair[:, 1], jax.random.normal(noise, x.shape)
        wide = (-1,) + (1,) * (x.ndim - 1)
        z, v = (1 - t).reshape(wide) * x + t.reshape(wide) * e, e - x
        u, du_dt = jax.jvp(network(net), (z, r, t), tangent(v, jnp.zeros_like(r), jnp.ones_like(t)))
        delta = u - stop(v - interval(r, t).reshape(wide) * du_dt)
        squares = (delta**2).reshape(len(x), -1).sum(1)
        return output((squares / jax.lax.stop_gradient(squares + 1e-3)).mean())

    return loss


WRONG = {
    "R_AND_T_SWAPPED": make(tangent=lambda v, zero, one: (v, one, zero)),
    "R_MOVES": make(tangent=lambda v, zero, one: (v, one, one)),
    "SPATIAL_TANGENT_MISSING": make(tangent=lambda v, zero, one: (0 * v, zero, one)),
    "INTERVAL_SIGN": make(interval=lambda r, t: r - t),
    "INTERVAL_NOT_T_MINUS_R": make(interval=lambda r, t: t),
    "COEFFICIENT": make(interval=lambda r, t: 0.5 * (t - r)),
    "TARGET_NOT_DETACHED": make(stop=lambda target: target),
}


# Each compiles for seconds: one in the default run (and the README's example), all in the long one.
QUICK = [("TARGET_NOT_DETACHED", True)]
LONG = [(name, jit) for name in WRONG for jit in (True, False) if (name, jit) not in QUICK]


@pytest.mark.parametrize(("name", "jit"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in LONG)])
def test_a_wrong_loss_is_named_at_its_line(name: str, jit: bool) -> None:
    report = check_loss(WRONG[name], jit=jit)
    assert report.verdict == "wrong"
    assert [one.name for one in report.diagnoses] == [name]
    assert "test_jax_adapter.py:" in report.diagnoses[0].where


def split(net: Any, x: Any, key: Any) -> Any:
    """r = t rows by a call of their own, without a derivative."""
    times, noise = jax.random.split(key)
    pair = jnp.sort(jax.random.uniform(times, (len(x), 2)), 1)
    r, t, e = pair[:, 0], pair[:, 1], jax.random.normal(noise, x.shape)
    z, v, n = (1 - t)[:, None] * x + t[:, None] * e, e - x, len(x) // 2
    total = ((net(z[:n], t[:n], t[:n]) - v[:n]) ** 2).sum()
    at = z[n:], r[n:], t[n:]
    u, du_dt = jax.jvp(net, at, (v[n:], 0 * r[n:], 1 + 0 * t[n:]))
    target = jax.lax.stop_gradient(v[n:] - (t - r)[n:, None] * du_dt)
    return (total + ((u - target) ** 2).sum()) / len(x)


def keyworded(net: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, r, t: net(z, (t, t - r))


def head(net: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, r, t: net(z, r, t)[0]


RIGHT: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "plain": (make(), {}),
    "not jitted": (make(), {"jit": False}),
    "z, (t, h)": (make(network=keyworded), {"call": "z, (t, h)"}),
    "two heads": (make(network=head), {"returns": "u, v"}),
    "images": (make(), {"shape": (2, 2, 1)}),
    "loss with aux": (make(output=lambda value: (value, {"loss": value})), {}),
    "split rows": (split, {}),
}


@pytest.mark.parametrize(
    "title",
    [title if title == "split rows" else pytest.param(title, marks=pytest.mark.slow) for title in RIGHT],
)
def test_a_right_loss_is_not_flagged(title: str) -> None:
    loss, options = RIGHT[title]
    report = check_loss(loss, **options)
    assert (report.verdict, report.formula) == ("correct", "meanflow"), report.diagnoses
    assert report.measured["misfit"] < 1e-6
    if title == "plain":
        assert (report.measured["mean dr"], report.measured["mean dt"]) == (0.0, 1.0)


def no_call(net: Any, x: Any, key: Any) -> Any:
    return (x**2).sum()


def mapped(net: Any, x: Any, key: Any) -> Any:
    return jax.vmap(lambda row: (net(row, jnp.zeros(()), jnp.ones(())) ** 2).sum())(x).mean()


@pytest.mark.parametrize(
    ("loss", "options", "error", "text"),
    [
        (no_call, {}, NetworkError, "never called"),
        (mapped, {}, NetworkError, "vmap"),
        (make(output=lambda value: value[None]), {}, ParameterError, "shape"),
        (make(), {"call": "z, (t, h)"}, NetworkError, "2 positional"),
        (make(), {"shape": (1,)}, ParameterError, "dim"),
        (lambda net, x: x, {}, ParameterError, "TypeError"),
        (7, {}, ParameterError, "int"),
    ],
)
def test_bad_input_is_one_clear_error(
    loss: Any, options: dict[str, Any], error: type[MeanFlowError], text: str
) -> None:
    with pytest.raises(error, match=text):
        check_loss(loss, **options)
