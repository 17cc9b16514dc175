"""Recordings in which the first rows move alone: right for networks that treat rows alike, found out for others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow_ref.bench.counters import count_flops_compiled
from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.jvp.stopgrad import StopgradJvp, UntracedWarning, first_rows, stopgrad_jvp, traced
from meanflow_ref.jvp.stopgrad.front import stopgrad_jvp_of_rows
from meanflow_ref.jvp.stopgrad.rehearsal import NotRecorded
from meanflow_ref.jvp.stopgrad.reuse import name_of
from meanflow_ref.jvp.stopgrad.traced import why_untraced
from meanflow_ref.models import MLP
from meanflow_ref.objectives.meanflow import meanflow_loss

# Beside conftest's pythonpath: shared with no other room.
from hidden_state import F64, WIDTH, HiddenState, inputs  # isort: skip

TRACED = StopgradJvp(traced=True)


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(HiddenState):
    """With what its function may write into, and a label."""

    table: Tensor
    norm: nn.BatchNorm1d
    place: int

    def __init__(self, middle: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__(middle)
        self.made, self.frozen = list[int](), False
        self.register_buffer("table", torch.zeros(()))
        self.double()

    def forward(self, z: Tensor, r: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.hidden(z, r, t)
        if label is not None:
            x = x * F.embedding(label, self.last.weight)
        out: Tensor = self.last(self.middle(self, x))
        return out


def everything(u: Tensor, du_dt: Tensor, net: nn.Module) -> list[Tensor]:
    return [u.detach(), du_dt, *torch.autograd.grad(u.square().sum(), list(net.parameters()), allow_unused=True)]


def assert_alike(found: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def steady(net: Net, x: Tensor) -> Tensor:
    if not net.frozen:
        net.table.add_(1)
    return x * net.table


def lazy(net: Net, x: Tensor) -> Tensor:
    if not net.made:
        net.made.append(1)
    return x * x.sin()


def without_graph(_: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.sin()
    return y * x


def images(_: Net, x: Tensor) -> Tensor:
    y = F.pad(x.reshape(-1, 1, 2, 3), (1, 1, 1, 1))
    return F.group_norm(F.avg_pool2d(y, 2, 1)[:, :, :2, :3], 1).reshape(x.shape)


def attention(_: Net, x: Tensor) -> Tensor:
    q = x.reshape(-1, 1, 3, 2)
    return F.scaled_dot_product_attention(q, 2 * q, q + 1).reshape(x.shape)


def halves(_: Net, x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * b.sigmoid(), torch.stack([a, b], 1).amax(1)], -1)


# They treat rows alike.
ROWWISE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "arithmetic": lambda _, x: (1 - x) * x / (2 + x * x) + x.detach() * x.sin() + x**3,
    "norms": lambda net, x: F.layer_norm(x, (WIDTH,), net.time.bias) + F.normalize(x, dim=-1),
    "forward mode": lambda _, x: F.rms_norm(x, (WIDTH,)) * torch.logsumexp(x, -1, keepdim=True) * x.clamp(-1, 1),
    "parts": halves,
    "images": images,
    "attention": attention,
    "sizes": lambda _, x: x.view(x.size(0) * 2, -1).cumsum(-1).reshape(x.shape[0], WIDTH) * len(x[0]),
    "rows last": lambda _, x: x.t().reshape(2, 3, -1).softmax(1).reshape(WIDTH, -1).t().contiguous() * x,
    "complex numbers": lambda _, x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=WIDTH) * x,
    "without a graph": without_graph,
    "a buffer that is written": steady,
    "made at the first call": lazy,
    "one label for all": lambda net, x: x * F.embedding(torch.full((len(x),), 3), net.last.weight),
    "a choice": lambda _, x: torch.where(x > 0, x, 0.1 * x) + x.abs().amax(-1, keepdim=True),
    "a constant of their number": lambda _, x: x * torch.arange(len(x), dtype=F64).cos()[:, None],
}


@pytest.mark.parametrize("name", ROWWISE)
def test_the_first_rows_alone_have_the_derivative_that_they_have_by_themselves(name: str) -> None:
    """Against forward mode on these rows, and against the network itself on all."""
    net, other = Net(ROWWISE[name]), Net(ROWWISE[name])
    for batch, moving in ((5, 2), (5, 2), (7, 4), (4, 3), (3, 2)):
        primals, tangents = inputs(batch)
        z, r, t = (x[:moving] for x in primals)
        u, du_dt = TRACED.of_rows(net, primals, tangents, moving)
        assert not du_dt.requires_grad
        found, plain = everything(u, du_dt, net), other(*primals)
        other.frozen = True
        with sdpa_kernel(SDPBackend.MATH):
            expected = jvp(lambda z, t, r=r: other(z, r, t), (z, t), (tangents[0][:moving], tangents[2][:moving]))[1]
        other.frozen = False
        assert_alike(found, everything(plain, torch.cat([expected.detach(), torch.zeros_like(plain[moving:])]), other))
    assert not why_untraced(net)
    assert torch.equal(net.table, other.table)


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_a_quarter_of_the_rows_costs_a_quarter_of_the_tangent(scenario: str) -> None:
    """FLOPs of a replay, counted: forward and backward on all rows, a tangent on a quarter."""
    small = SMALL_SCENARIOS[scenario].resized(8)
    net, data = small.network(dtype=F64), small.data(dtype=F64, share=0.25)

    def flops(**options: Any) -> int:
        def step() -> None:
            net.zero_grad(set_to_none=True)
            torch.autograd.backward(meanflow_loss(net, *data, **options).loss)

        step()
        return count_flops_compiled(step)

    none = flops(rows="all", jvp=lambda fn, at, along: (fn(*at), torch.zeros_like(at[0])))
    tangent = flops(rows="all", jvp="stopgrad_traced") - none
    assert tangent > 0.3 * none
    assert flops(rows="moving", jvp="stopgrad_traced") - none == tangent / 4
    assert not why_untraced(net)


@pytest.mark.parametrize("kind", ["elements", "channels"])
def test_dropout_has_the_mask_of_all_rows(kind: str) -> None:
    def middle(net: Net, x: Tensor) -> Tensor:
        if kind == "elements":
            return F.dropout(x, 0.5, net.training) * x
        return F.dropout1d(x[:, None], 0.5, net.training)[:, 0] * x

    nets, found = (Net(middle), Net(middle)), []
    for net, jvp_of_rows in zip(nets, (TRACED.of_rows, stopgrad_jvp_of_rows), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for _ in range(2):
                results = everything(*jvp_of_rows(net, *inputs(6), 3), net)
            found.append([*results, torch.rand(1)])
    assert_alike(*found)
    assert not why_untraced(nets[0])


def test_what_nobody_reads_is_drawn_and_written() -> None:
    def middle(net: Net, x: Tensor) -> Tensor:
        net.table.add_((torch.rand(3, dtype=F64) * 2)[0])
        _ = torch.rand(3) * 2
        return x * x.sin()

    states, tables = [], []
    for jvp_of_rows in (TRACED.of_rows, stopgrad_jvp_of_rows):
        net = Net(middle)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            for _ in range(2):
                jvp_of_rows(net, *inputs(6), 3)
            states.append(torch.get_rng_state())
            tables.append(net.table)
        assert not why_untraced(net)
    assert torch.equal(*states)
    assert torch.equal(*tables)
    assert tables[0] > 0


@pytest.mark.parametrize("name", ["batch norm", "a bit", "uniform numbers"])
def test_a_write_whose_result_nobody_reads(name: str) -> None:
    """Kernels of norms do not say that they write, and operators write under many names."""
    bits = [torch.zeros(2, dtype=torch.bool) for _ in range(2)]

    def middle(net: Net, x: Tensor) -> Tensor:
        if name == "batch norm":
            _ = net.norm(x.detach())[0] * 2
        elif name == "a bit":
            bit = bits[net.place]
            bit |= torch.ones(2, dtype=torch.bool)
            _ = bit[0]
        else:
            _ = torch.empty(3).uniform_()[0] * 2
        return x * x.sin()

    found = []
    for place, jvp_of_rows in enumerate((TRACED.of_rows, stopgrad_jvp_of_rows)):
        net = Net(middle)
        net.norm, net.place = nn.BatchNorm1d(WIDTH, dtype=F64), place
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            results = [everything(*jvp_of_rows(net, *inputs(6), 3), net)[:2] for _ in range(2)]
            found.append([*results[1], *net.norm.buffers(), bits[place], torch.rand(1)])
        assert not why_untraced(net)
    assert_alike(*found)


@pytest.mark.parametrize("gate", [1e-6, 0.0])
def test_what_mixes_rows_is_found_behind_a_gate_that_is_nearly_shut(gate: float) -> None:
    """Values of all operations are compared, each by its own size: a layer scale opens later."""
    net = Net(lambda net, x: x + net.table * F.batch_norm(x.sin(), None, None, training=True))
    net.table.fill_(gate)
    net.float()
    (z, r, t), (v, _, one) = inputs()
    with pytest.warns(UntracedWarning, match="rows of the batch are not treated alike"):
        TRACED.of_rows(net, (z.float(), r.float(), t.float()), (v.float(), None, one.float()), 2)


def test_rows_that_change_places() -> None:
    net, (v, _, one) = Net(lambda _, x: x.sin()), inputs()[1]

    def by_time(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        out: Tensor = net(z[t.argsort()], r, t)
        return out

    z, rising = inputs()[0][0], torch.linspace(0.1, 0.9, 5, dtype=F64)
    with pytest.warns(UntracedWarning, match="index|not treated alike"):
        TRACED.of_rows(by_time, (z, rising / 2, rising.flip(0)), (v, None, one), 2)
    net = Net(lambda _, x: x.sin())
    TRACED.of_rows(by_time, (z, rising / 2, rising), (v, None, one), 2)  # they keep them in this batch
    with pytest.raises(IndexError) as caught:
        TRACED.of_rows(by_time, (z, rising / 2, rising.flip(0)), (v, None, one), 2)
    assert 'rows="all"' in str(getattr(caught.value, "__notes__", ""))


def mixed(_: Net, x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0) + 1).sqrt()


# They do not treat rows alike, or lay them otherwise.
OTHERS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "batch statistics": mixed,
    "batch norm": lambda net, x: F.batch_norm(x, None, None, training=True),
    "neighbours": lambda _, x: x * x.roll(1, 0),
    "rows vary fastest": lambda _, x: x.t().reshape(-1).cumsum(0).reshape(WIDTH, -1).t() * x,
    "turned round": lambda _, x: x.flip(0).sin() + x,
    "turned round and back": lambda _, x: x.flip(0).sin().flip(0) + x,
    "odd and even": lambda _, x: torch.cat([x[::2].sin(), x[1::2].cos()])[: len(x)],
    "more for more": lambda _, x: x * x.sin() if len(x) > 4 else x,
    "their number": lambda _, x: x * x / len(x),
    "a mean of constants": lambda net, x: x * x + (x.detach().mean() + torch.ones_like(x).cumsum(0)) * x,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_right_too(name: str) -> None:
    """Recorded or not, against the dispatch form of all rows with a direction that is 0 on the others."""
    net, other = Net(OTHERS[name]), Net(OTHERS[name])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for batch, moving in ((6, 2), (6, 2), (8, 5)):
            primals, (v, _, one) = inputs(batch)
            found = everything(*TRACED.of_rows(net, primals, (v, None, one), moving), net)
            first = torch.arange(batch) < moving
            wanted = stopgrad_jvp(other, primals, (v * first[:, None], None, one * first))
            assert_alike(found, everything(*wanted, other))
    assert {warning.category for warning in said} <= {UntracedWarning}
    assert bool(why_untraced(net)) == bool(said)
    assert len(said) <= 1
    if name in ("batch statistics", "neighbours", "rows vary fastest", "turned round", "more for more"):
        assert "where some rows move" in str(said[0].message)
        assert 'rows="all" records it' in str(said[0].message)


def test_batch_statistics_are_those_of_the_whole_batch_in_the_loss() -> None:
    """Two calls, of the rows that move and of the others, would change u without a word."""
    net = Net(mixed)
    (z, r, t), (v, _, _) = inputs(6)
    batch = z, v, torch.where(torch.arange(6) % 2 == 0, r, t), t
    whole = meanflow_loss(net, *batch, rows="all", jvp="stopgrad_traced")
    with pytest.warns(UntracedWarning, match="where some rows move"):
        some = meanflow_loss(net, *batch, rows="moving", jvp="stopgrad_traced")
    torch.testing.assert_close(some.u, whole.u, rtol=1e-12, atol=1e-13)


def test_labels_go_with_their_rows() -> None:
    net, label = MLP(WIDTH, 16, 2, classes=4).double(), torch.tensor([0, 3, 1, 2, 2, 0])
    for p in net.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    (z, r, t), (v, _, _) = inputs(6)
    batch = z, v, torch.where(torch.arange(6) % 2 == 0, r, t), t
    for order in (label, label.flip(0)):
        found = meanflow_loss(net, *batch, label=order, rows="moving", jvp="stopgrad_traced")
        wanted = meanflow_loss(net, *batch, label=order, rows="all", jvp="func")
        torch.testing.assert_close(found.target, wanted.target, rtol=1e-12, atol=1e-13)
    assert not why_untraced(net)


def test_one_object_in_several_places() -> None:
    net, (z, r, _) = Net(ROWWISE["arithmetic"]), inputs()[0]
    one = torch.ones_like(r)
    found = TRACED.of_rows(lambda z, r, t: net(z, r, 2 * t), (z, r, r), (z, None, one), 2)
    wanted = stopgrad_jvp_of_rows(lambda z, r, t: net(z, r, 2 * t), (z, r, r), (z, None, one), 2)
    assert_alike(everything(*found, net), everything(*wanted, net))
    assert not why_untraced(net)


def test_a_single_row_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (primals, tangents) = Net(ROWWISE["arithmetic"]), inputs()
    monkeypatch.setattr(traced, "_traced", None)
    found, wanted = (f(net, primals, tangents, 1) for f in (TRACED.of_rows, stopgrad_jvp_of_rows))
    assert_alike(everything(*found, net), everything(*wanted, net))


def test_lists_are_changed_once_a_call() -> None:
    def middle(net: Net, x: Tensor) -> Tensor:
        net.made.append(len(net.made))
        return x * x

    net, (primals, tangents) = Net(middle), inputs()
    for _ in range(3):
        TRACED.of_rows(net, primals, tangents, 2)
    with pytest.warns(UntracedWarning, match="changes objects of Python"):
        TRACED.of_rows(net, primals, tangents, 2)
    for _ in range(2):
        TRACED.of_rows(net, primals, tangents, 2)
    assert net.made == list(range(6))


def test_autocast_and_half_precision() -> None:
    small = SMALL_SCENARIOS["dit"].resized(6)
    net, data = small.network(), small.data()
    primals, tangents = (data.x, data.r, data.t), (data.eps, None, torch.ones_like(data.t))
    with torch.autocast("cpu", torch.bfloat16):
        found = TRACED.of_rows(net, primals, tangents, 3)
        wanted = stopgrad_jvp_of_rows(net, primals, tangents, 3)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
    assert float((found[1] - wanted[1]).norm() / wanted[1].norm()) < 1e-2
    half = StopgradJvp(torch.bfloat16, traced=True).of_rows(net, primals, tangents, 3)[1]
    exact = TRACED.of_rows(net, primals, tangents, 3)[1]
    assert 1e-4 < float((half - exact).norm() / exact.norm()) < 3e-2
    assert torch.equal(TRACED.of_rows(net, primals, tangents, 3)[1], exact)
    assert not why_untraced(net)


class Images(nn.Module):
    """A convolution, a norm, and attention over places."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
        self.double()

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        x = F.group_norm(self.first(z * (t - r)[:, None, None, None].sin()), 2)
        tokens = x.reshape(x.shape[0], 4, -1).transpose(1, 2)[:, None]
        x = x + F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].transpose(1, 2).reshape(x.shape)
        out: Tensor = self.last(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0))
        return out


def test_other_resolutions_and_batches() -> None:
    """Dynamo's sizes are letters then, others in each half."""
    net, generator = Images(), torch.Generator().manual_seed(0)
    for batch, moving, width in ((5, 2, 8), (5, 2, 12), (6, 3, 16), (7, 2, 8)):
        z, v = torch.randn(2, batch, 2, width, width, generator=generator, dtype=F64)
        t = torch.rand(batch, generator=generator, dtype=F64)
        given = (z, t / 2, t), (v, None, torch.ones_like(t)), moving
        assert_alike(*(everything(*f(net, *given), net) for f in (TRACED.of_rows, stopgrad_jvp_of_rows)))
    assert not why_untraced(net)


# ---------------------------------------------------------------- the graph itself


def merge(fn: Callable[..., Tensor], moving: int = 2) -> tuple[list[str], fx.Graph]:
    """Operations of both halves, and the graph that becomes of them.

    Raises:
        NotRecorded: As ``FirstRows`` and its ``merge``.

    """
    (z, r, t), (v, _, one) = inputs()
    found: list[Any] = []

    def backend(graph: fx.GraphModule, _: Any) -> Any:
        found.append(names(graph.graph))
        both = first_rows.FirstRows(graph)

        def run(*args: Any) -> Any:
            before = torch.get_rng_state()
            both.merge(args, grad_enabled=torch.is_grad_enabled())
            assert torch.equal(before, torch.get_rng_state())
            found.append(graph.graph)
            graph.recompile()
            return graph.forward(*args)

        return run

    jvp = torch.compile(traced._with_first_rows, backend=backend, fullgraph=True)
    some, along = (z[:moving], r[:moving], t[:moving]), (v[:moving], None, one[:moving])
    try:
        jvp(fn, (z, r, t), (v, None, one), some, along)
    except BackendCompilerFailed as error:
        raise error.inner_exception from None
    return found[0], found[1]


def names(graph: fx.Graph) -> list[str]:
    return [name_of(node) for node in graph.nodes if node.op.startswith("call")]


def test_what_is_left_of_two_halves() -> None:
    before, graph = merge(lambda z, r, t: torch.logsumexp(z, -1)[:, None] * t[:, None] + z.sin())
    after = names(graph)
    assert before.count("logsumexp") == 4, "the value and its derivative, in each half"
    assert after.count("logsumexp") == 2
    assert after.count("sin") == 1
    for switch in first_rows._SWITCHES - {"_maybe_load_decompositions"}:
        assert 2 * after.count(switch) == before.count(switch) > 0
    assert "narrow" in after


def test_results_of_several_tensors_are_computed_once() -> None:
    """A norm's statistics, which u does not read, are the whole batch's first."""
    _, graph = merge(lambda z, r, t: F.layer_norm(z, (WIDTH,)) * t[:, None])
    assert names(graph).count("native_layer_norm") == 1


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda z, r, t: z * z if len(z) > 4 else z.sin(), "does other things"),
        (lambda z, r, t: z.reshape(-1, 2)[: 8 - len(z)].sin().sum() * z, "other numbers of rows"),
        (lambda z, r, t: torch.matmul(z, z.t()).sin().sum(-1, keepdim=True) * z, "numbers of rows"),
        (lambda z, r, t: torch.func.grad(lambda x: x.pow(3).sum())(r)[:, None] * z, "transforms of torch.func"),
        (lambda z, r, t: z, "no result"),
        (lambda z, r, t: z * (1 + len(z) // 4), "does other things"),
        (lambda z, r, t: z + 1e-6 * z.mean(0), "not treated alike"),
        # Whose first rows are those of some rows by themselves; a small factor would hide it from u and du/dt.
        (lambda z, r, t: z + 1e-9 * z.cumsum(0), "tangents of some rows reach others"),
        (lambda z, r, t: z - 1e-9 * z[:1], "tangents of some rows reach others"),
        (lambda z, r, t: z - 1e-9 * F.pad(z, (0, 0, 1, 0))[:-1], "tangents of some rows reach others"),
        (lambda z, r, t: z + 0 * F.batch_norm(z, None, None, training=True), "not treated alike"),
        (lambda z, r, t: z.flip(0).relu().flip(0), "not treated alike"),
        (lambda z, r, t: z[t.argsort(descending=True)] * 1, "not treated alike|out of bounds"),
    ],
)
def test_halves_that_cannot_be_made_one(fn: Callable[..., Tensor], reason: str) -> None:
    with pytest.raises(NotRecorded, match=reason):
        merge(fn)


def test_autograd_ends_as_it_began() -> None:
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            _, graph = merge(lambda z, r, t: z * t[:, None].sin())
            modes = [node.args[0] for node in graph.nodes if node.target is torch._C._set_grad_enabled]
            assert not modes or modes[-1] == enabled
