"""The exact executor against torch itself: what an operation means, value and gradient, in float64."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from meanflow_ref.kit.prove.deciding import is_zero
from meanflow_ref.kit.prove.errors import NotExactError
from meanflow_ref.kit.prove.execute import Executor
from meanflow_ref.kit.prove.jets import Sites
from meanflow_ref.kit.prove.ring import Ring

F = torch.nn.functional
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def gather_back(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a[1], b[0]]).index_select(0, torch.tensor([1, 0, 1]))


def written(a: Tensor, b: Tensor) -> Tensor:
    """Writes through views of views, with strides and offsets."""
    c = a.clone()
    c.t()[1].mul_(3)
    c[:, 1:].add_(b[:, 1:])
    c.view(-1)[4] = 2
    d = c.expand(2, 2, 3)[1].transpose(0, 1)
    c[0].copy_(b[1])
    return d


def put(a: Tensor, b: Tensor) -> Tensor:
    c = a.clone()
    c[torch.tensor([1, 0]), torch.tensor([2, 0])] = b[0, :2]
    c[torch.tensor([[True, False, False], [False, False, True]])] = 7.0
    return c


PI = 3.141592653589793
# a, b have shape (2, 3) and entries in (0, 1), s has none. One line an operation or a family of them.
CASES: dict[str, Function] = {
    "arithmetic": lambda a, b, s: torch.rsub(a, b, alpha=2) + a.add(b, alpha=3) * s - a.sub(b, alpha=0.5) / (1 + b),
    "addcmul": lambda a, b, s: torch.addcmul(a, a, b, value=0.25) + torch.addcdiv(a, b, 1 + a, value=2),
    "lerp": lambda a, b, s: torch.lerp(a, b, 0.25) + torch.lerp(a, b, b) + torch.lerp(a, b, s),
    "powers": lambda a, b, s: a.pow(3) + (a + b).pow(-2) + (a * a + 1).pow(-0.75) + a.square() + (a + 1).reciprocal(),
    "roots": lambda a, b, s: (a * b + 1).sqrt() + (a + s).rsqrt() + (a**2 + b**2).sqrt() + 2 ** torch.tensor(3.0),
    "functions": lambda a, b, s: a.sin() + (a * b).cos() + a.exp() + b.expm1() + a.log() + b.log1p() + a.tanh(),
    "circles": lambda a, b, s: torch.sin(torch.pi / 2 * (1 - a)) - torch.cos(torch.pi * (b - 3)) + torch.sin(-a),
    "sigmoid and erf": lambda a, b, s: torch.sigmoid(a - b) + torch.special.erf(b).detach(),
    "signs": lambda a, b, s: (a - b).abs() + torch.sign(a - b) * b + F.relu(a - 0.5),
    "extremes": lambda a, b, s: torch.maximum(a, b) + torch.minimum(a, s) + a.clamp(0.2, 0.7) + b.clamp_min(s),
    "sums": lambda a, b, s: a.sum() + a.sum(0) + b.sum(1, keepdim=True) + (a * b).mean(-1)[:, None] + b.mean(),
    "norms": lambda a, b, s: a.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(b),
    "matrices": lambda a, b, s: (a @ b.t()).sum() + torch.einsum("bi,bi->b", a, b)[:, None] + a.mv(b[0])[:, None],
    "batched matrices": lambda a, b, s: torch.bmm(a[None], b.t()[None])[0] @ a,
    "mse": lambda a, b, s: F.mse_loss(a, b) + F.mse_loss(a, b, reduction="sum") * F.mse_loss(a, b, reduction="none"),
    "comparisons": lambda a, b, s: (
        torch.where((a < b) & (a > 0.1) | (b >= s), a, 2 * b) + (a != b) * a + torch.eq(a, a) * b
    ),
    "logic": lambda a, b, s: torch.where(~(a <= b) ^ (b > s), a, b) + a.masked_fill(a > b, 3.0),
    "logic of numbers": lambda a, b, s: a * torch.logical_and(a, b) + b * torch.logical_not(a - a) + (a > b).double(),
    "sums of truth values": lambda a, b, s: torch.where((a > b) + (b > s), a, b) + torch.where((a > b) * (b > s), a, b),
    "any and all": lambda a, b, s: torch.where((a > b).any(1, keepdim=True), a, b) + torch.where((a > 0).all(), a, s),
    "joins": lambda a, b, s: torch.cat([a, b], 1).reshape(4, 3)[1:3] + torch.stack([a, b], 1)[:, 1] * s,
    "shapes": lambda a, b, s: a.repeat(2, 2)[1:3, 2:5] + b.flip(1) + a.roll(1, 1) + b.permute(1, 0).reshape(2, 3),
    "views": lambda a, b, s: a.unsqueeze(0).expand(4, 2, 3)[2] + b.t().contiguous().t() + a.view(3, 2).reshape(2, 3),
    "splits": lambda a, b, s: (
        torch.cat([x * (k + 1) for k, x in enumerate(torch.split(a, 2, dim=1))], 1) + b.unbind(0)[1]
    ),
    "indices": lambda a, b, s: gather_back(a, b)[:2] + a[torch.tensor([1, 0])],
    "makers": lambda a, b, s: torch.zeros_like(a) + torch.ones(3) * a + torch.full_like(b, 0.3) + torch.arange(3) * b,
    "constants": lambda a, b, s: a * torch.tensor([0.1, 1 / 3, PI], dtype=torch.float64) + b * 1e-3 + 0.7 * s,
    "casts": lambda a, b, s: a.to(torch.float64) + (a > b).to(torch.int64) * b + (a < b).float() * a,
    "writes": lambda a, b, s: written(a, b).t() + a,
    "puts": lambda a, b, s: put(a, b) + b,
    "detached": lambda a, b, s: a * b.detach() + (a * s).detach() * b + torch.nan_to_num(a) + torch.isfinite(a) * b,
}


def scalar(function: Function) -> Callable[..., Tensor]:
    """A weighted sum over all entries, so that no two of them can be exchanged unseen."""

    def weighted(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        out = function(a, b, s)
        return (out * torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()

    return weighted


def with_gradient(function: Function) -> Callable[..., tuple[Tensor, Tensor]]:
    """The weighted sum and that of its gradients in a and b."""

    def both(a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        value = scalar(function)(a, b, s)
        slopes = torch.autograd.grad(value, (a, b))
        weights = torch.linspace(1, 2, 6, dtype=a.dtype).reshape(2, 3)
        return value.detach(), (weights * slopes[0]).sum() + (weights.flip(0) * slopes[1]).sum()

    return both


def executed(function: Callable[..., tuple[Tensor, Tensor]]) -> tuple[list[float], list[Tensor]]:
    """What the executor computes at its witness, and the witness."""
    ring = Ring(seed=5)
    unit = (Fraction(0), Fraction(1))
    arrays = []
    for name, shape in (("a", (2, 3)), ("b", (2, 3)), ("s", ())):
        array = np.empty(shape, dtype=object)
        for index in np.ndindex(*shape):
            array[index] = ring.symbol(f"{name}{index}", "input", bounds=unit)
        arrays.append(array)
    witness = [
        torch.tensor([float(x.value()) for x in array.reshape(-1)], dtype=torch.float64).reshape(array.shape)
        for array in arrays
    ]
    module = make_fx(function, tracing_mode="fake")(*(torch.zeros_like(x) for x in witness))
    numbers = Executor(ring, Sites(ring), module).run(arrays)
    return [float(number.value()) for number in numbers], witness


@pytest.mark.parametrize("name", CASES)
def test_an_operation_means_what_torch_computes(name: str) -> None:
    function = with_gradient(CASES[name])
    seen, witness = executed(function)
    wanted = [float(x) for x in function(*witness)]
    # float64 torch against 50 digits: sums of at most some hundred terms of size 1.
    assert seen == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_the_comparison_sees_a_wrong_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    from meanflow_ref.kit.prove.table import MEANINGS

    monkeypatch.setitem(MEANINGS, "aten.sub", MEANINGS["aten.add"])
    with pytest.raises(AssertionError):
        test_an_operation_means_what_torch_computes("arithmetic")


REFUSED: dict[str, Function] = {
    "cumsum": lambda a, b, s: a.cumsum(0),
    "floor": lambda a, b, s: a.floor() + b,
    "rounding division": lambda a, b, s: torch.div(a, b, rounding_mode="floor"),
    "half": lambda a, b, s: a.half().double(),
    "integer": lambda a, b, s: a.long() * b,
    "power of a power": lambda a, b, s: a**b,
    "infinity": lambda a, b, s: a * torch.tensor(float("inf")),
    "unwritten memory": lambda a, b, s: a + torch.empty_like(a),
    "item": lambda a, b, s: a * b.sum().item(),
    "division by zero": lambda a, b, s: a / (b - b),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_without_meaning_is_refused(name: str) -> None:
    with pytest.raises(NotExactError):
        executed(lambda a, b, s: (scalar(REFUSED[name])(a, b, s), s))


def test_functions_of_draws_alone_become_symbols_and_stay_consistent() -> None:
    def function(a: Tensor, b: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        pair = torch.rand(5, 2)
        low, high = pair.sort(1).values.unbind(1)
        # Not known to be zero, since sorting means nothing here; but the same symbol each time.
        return (pair.sort(1).values[:, 0] - low).sum() + s, (high - pair.max(1).values).sum() + s

    ring = Ring()
    module = make_fx(function, tracing_mode="fake")(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(()))
    arrays = [np.array(ring.symbol(name, "input"), dtype=object) for name in "abs"]
    first, second = Executor(ring, Sites(ring), module).run(
        [np.full((2, 3), arrays[0].item()), np.full((2, 3), arrays[1].item()), arrays[2]]
    )
    assert is_zero(first - arrays[2].item())
    assert not is_zero(second - arrays[2].item())
    # Their values at the witness are those of the real operations on the drawn values.
    assert float((second - arrays[2].item()).value()) == pytest.approx(0, abs=1e-15)
