"""The traced form: the dispatch form's numbers from a recording, or the dispatch form itself, and a word about it."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.errors import ForwardADError, NetworkError, ShapeError, TangentError
from meanflow_ref.jvp import get_backend
from meanflow_ref.jvp.stopgrad import StopgradJvp, UntracedWarning, compiled, stopgrad_jvp, traced
from meanflow_ref.jvp.stopgrad.rehearsal import _autocast_depth, distance
from meanflow_ref.jvp.stopgrad.table import RULES
from meanflow_ref.jvp.stopgrad.traced import network_of, why_untraced
from meanflow_ref.objectives.meanflow import meanflow_loss

# Beside conftest's pythonpath: shared with no other room.
from hidden_state import F64, WIDTH, HiddenState, inputs  # isort: skip

TRACED = get_backend("stopgrad_traced")


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(HiddenState):
    """With what its function may keep."""

    name = ""
    seen: Tensor
    last_kept: Tensor

    def __init__(self, middle: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__(middle)
        self.kept = list[Tensor]()
        self.register_buffer("seen", torch.zeros(()))
        self.double()


def everything(backend: Any, net: Net, batch: int = 5) -> list[Tensor]:
    """u, du/dt and the gradients of the parameters, from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        u, du_dt = backend(net, *inputs(batch))
        assert not du_dt.requires_grad
        gradients = torch.autograd.grad(u.square().sum(), list(net.parameters()))
    return [u.detach(), du_dt, *gradients]


def assert_agree(net: Net, other: Net | None = None, batch: int = 5) -> None:
    found, wanted = everything(TRACED, net, batch), everything(stopgrad_jvp, other or net, batch)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x: Tensor
        (x,) = ctx.saved_tensors
        return gradients[0] * x.cos()


def written(_: Net, x: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(2)
    y[:, 0] = x[:, 1]
    return y


def asks_for_tensor(_: Net, x: Tensor) -> Tensor:
    return x * x if isinstance(x, Tensor) else x


def asks_torch(_: Net, x: Tensor) -> Tensor:
    return x * x.cos() if torch.is_tensor(x) else torch.cos(x)


def counts(net: Net, x: Tensor) -> Tensor:
    net.seen.add_(1)
    return x * net.seen


def keeps(net: Net, x: Tensor) -> Tensor:
    net.kept.append(x)
    net.last_kept = x.sin()
    return x * net.last_kept


def checkpointed(net: Net, x: Tensor) -> Tensor:
    out: Tensor = checkpoint(net.last, x, use_reentrant=False)
    return out.sin()


def without_graph(_: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x.sin()
    return y * x


def in_inference_mode(_: Net, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = x.sin()
    return y.clone() * x


def attention(_: Net, x: Tensor) -> Tensor:
    q = x.reshape(-1, 1, 3, 2)
    return F.scaled_dot_product_attention(q, 2 * q, q + 1).reshape(x.shape)


RECORDED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "arithmetic": lambda _, x: (1 - x) * x / (2 + x * x) + x.detach() * x.data.sin(),
    "dropout": lambda net, x: F.dropout(x, 0.3, net.training) * x,
    "dropout of channels": lambda net, x: F.dropout1d(x[:, None], 0.5, net.training)[:, 0] * x,
    "complex numbers": lambda _, x: torch.fft.irfft(torch.fft.rfft(x) * 2, n=WIDTH) * x,
    "attention": attention,
    "without a graph": without_graph,
    "isinstance": asks_for_tensor,
    "is_tensor": asks_torch,
    "forward mode": lambda _, x: torch.logsumexp(x, -1, keepdim=True) * x.clamp(-1, 1),
    "numbers of constants": lambda net, x: x * float(net.time.bias.detach().sum()),
    "a buffer that is written": counts,
}
NOT_RECORDED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "written in place": written,
    "a branch on values": lambda _, x: x * x if bool(x.detach().sum() > 0) else -x,
    "an autograd.Function": lambda _, x: Sine.apply(x) * x,  # type: ignore[no-untyped-call]
    "the matrix operator": lambda _, x: torch.eye(len(x), dtype=F64) @ x,
    "random numbers of unknown use": lambda net, x: F.alpha_dropout(x, 0.5, net.training) * x,
    "activations kept": keeps,
    "activations checkpointed": checkpointed,
    "inference mode": in_inference_mode,
    "a graph break": lambda _, x: (torch._dynamo.graph_break(), x * x)[1],
}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_has_the_numbers_of_the_dispatch_form(name: str) -> None:
    net, other = Net(RECORDED[name]), Net(RECORDED[name])
    for batch in (5, 5, 3, 4):
        assert_agree(net, other, batch)
    assert not why_untraced(net)
    assert torch.equal(net.seen, other.seen), "the rehearsal leaves no trace in buffers"


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_cannot_be_recorded_runs_in_the_dispatch_form_and_says_so_once(name: str) -> None:
    net = Net(NOT_RECORDED[name])
    with pytest.warns(UntracedWarning, match="runs in the dispatch form"):
        TRACED(net, *inputs())
    assert why_untraced(net)
    assert_agree(net)  # warnings are errors here


def test_what_a_network_keeps_are_tensors() -> None:
    """Hooks that collect features, for one: found before the recording runs at all."""
    net = Net(keeps)
    net.time.register_forward_hook(lambda _, __, out: net.kept.append(out))
    with pytest.warns(UntracedWarning, match="keeps a tensor"):
        TRACED(net, *inputs())
    assert [type(x) for x in (*net.kept, net.last_kept)] == [Tensor] * 3


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_the_loss_of_each_shipped_network(scenario: str) -> None:
    net, batch = SMALL_SCENARIOS[scenario].network(), SMALL_SCENARIOS[scenario].data(share=0.5)
    for rows in ("all", "moving"):
        plain = meanflow_loss(net, *batch, rows=rows)
        terms = meanflow_loss(net, *batch, rows=rows, jvp="stopgrad_traced")
        torch.testing.assert_close(terms.u, plain.u)
        moving = batch.r != batch.t
        torch.testing.assert_close(terms.du_dt[moving], plain.du_dt[moving])
        torch.testing.assert_close(terms.loss, plain.loss)
    assert not why_untraced(net)


def test_the_tangent_against_forward_mode() -> None:
    """Beside the dispatch form, which shares its rules."""
    net = Net(RECORDED["arithmetic"])
    net.middle = lambda _, x: F.layer_norm(F.silu(x) * x, (WIDTH,)) + F.softmax(x, -1)
    (z, r, t), (v, _, one) = inputs()
    _, du_dt = TRACED(net, (z, r, t), (v, None, one))
    expected: Tensor = jvp(lambda z, t: net(z, r, t), (z, t), (v, one))[1]
    torch.testing.assert_close(du_dt, expected, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------- the rehearsal


def lost(_: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A rule that forgets the tangent."""
    return torch.cos(compiled.value_of(x))


@pytest.mark.parametrize("last", ["as it is", "zero", "zero, in a list"])
def test_a_wrong_recording_is_found_before_it_counts(last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a last layer of zeros too, where value and derivative are 0 whatever is wrong with them."""
    monkeypatch.setitem(compiled.RULES, torch.cos, lost)
    net = Net(lambda _, x: torch.cos(x) + 0.1 * x)
    if last != "as it is":
        nn.init.zeros_(net.last.weight)
        nn.init.zeros_(net.last.bias)
    before, nets = copy.deepcopy(net.state_dict()), [net]
    with pytest.warns(UntracedWarning, match="du/dt is off by"):
        TRACED(net if last != "zero, in a list" else lambda *args: 1 * nets[0](*args), *inputs())
    if last != "zero, in a list":
        assert_agree(net)
    assert all(torch.equal(x, before[key]) for key, x in net.state_dict().items())


def test_the_rehearsal_draws_no_random_numbers() -> None:
    net = Net(RECORDED["dropout"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        TRACED(net, *inputs())
        state = torch.get_rng_state()
        torch.manual_seed(0)
        stopgrad_jvp(net, *inputs())
        assert torch.equal(state, torch.get_rng_state())


def test_the_rehearsal_spoils_no_graph_that_is_still_alive() -> None:
    """A second batch size is recorded between a loss and its backward pass, which has saved a buffer."""
    net = Net(lambda net, x: x * net.seen)
    first, _ = TRACED(net, *inputs(5))
    TRACED(net, *inputs(3))
    torch.autograd.backward(first.sum())


def noisy_and_lazy(net: Net, x: Tensor) -> Tensor:
    """Makes something at its first call, which is recorded anew then; draws numbers and counts in a buffer."""
    if net.name != "ready":
        net.name = "ready"
        net.last_kept = torch.arange(WIDTH, dtype=F64)
    net.seen.add_(1)
    return x * net.last_kept + torch.randn(WIDTH, dtype=F64) * x.sin()


def test_a_network_that_makes_things_lazily_draws_and_counts_once_a_call() -> None:
    nets = Net(noisy_and_lazy), Net(noisy_and_lazy)
    found = []
    for net, backend in zip(nets, (TRACED, stopgrad_jvp), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append([backend(net, *inputs())[0].detach() for _ in range(4)])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)
    assert nets[0].seen == nets[1].seen == 4
    assert not why_untraced(nets[0])


def test_an_error_in_the_first_replay_leaves_nothing_to_put_back() -> None:
    """What a call leaves unfinished must not be put back by the next one, over a checkpoint that was loaded since."""
    labels = torch.tensor([0, 1, 7])

    def middle(net: Net, x: Tensor) -> Tensor:
        net.seen.add_(1)
        return x * F.embedding(labels, net.last.weight)

    net = Net(middle)
    with pytest.raises(IndexError):
        TRACED(net, *inputs(3))
    labels.fill_(2)
    net.seen.fill_(100)
    TRACED(net, *inputs(3))
    assert net.seen == 101
    assert_agree(net, batch=3)


def test_a_network_that_the_dispatch_form_refuses_is_refused_again() -> None:
    net = Net(lambda _, x: x)
    net.forward = lambda z, r, t: net.last(F.leaky_relu(z, 0.2, True))  # type: ignore[method-assign]
    (z, r, t), tangents = inputs()
    before = z.clone()
    for _ in range(2):
        with pytest.raises(NetworkError, match="writes into its input"):
            TRACED(net, (z, r, t), tangents)
        assert torch.equal(z, before)


def test_all_that_a_rehearsal_writes_is_put_back() -> None:
    """Buffers of a second network, a tensor that is no buffer, a write that bumps no version."""
    nets = [Net(counts), Net(counts), Net(lambda net, x: x * net.last_kept.add_(1)), Net(data_counts)]
    nets[2].last_kept = torch.zeros((), dtype=F64)
    for net in nets:
        TRACED(lambda *args, net=net: nets[0](*args) + net(*args), *inputs())
    assert [float(net.seen) for net in nets[1:]] == [1, 0, 1]
    assert nets[0].seen == 4 + 1
    assert nets[2].last_kept == 1


def data_counts(net: Net, x: Tensor) -> Tensor:
    net.seen.data.add_(1)
    return x * net.seen


def test_an_error_inside_forward_mode_leaves_none_on() -> None:
    """Of an operation whose missing formula shows with real tensors alone, after a graph has entered forward mode."""
    target = torch.zeros(5, dtype=torch.int64)
    net = Net(lambda _, x: x * F.multi_margin_loss(x, target))
    with pytest.raises(ForwardADError, match="multi_margin_loss"):
        TRACED(net, *inputs())
    x = torch.ones(3, dtype=F64)
    torch.testing.assert_close(jvp(torch.sin, (x,), (x,))[1], x.cos())
    assert_agree(Net(RECORDED["forward mode"]))


def test_a_place_for_the_result_under_no_grad() -> None:
    """Memory that the network names is written by name, and not where a tangent was."""
    weight, place = torch.arange(1.0, WIDTH + 1, dtype=F64), torch.zeros(WIDTH, dtype=F64)
    net = Net(lambda _, x: x * torch.add(weight * 2, 1.0, out=place))
    with torch.no_grad():
        for x, y in zip(TRACED(net, *inputs()), stopgrad_jvp(net, *inputs()), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)
    assert not why_untraced(net)


def test_a_state_that_is_no_number_stays() -> None:
    """Expanded, so that nothing could be written back."""
    net, ((z, r, t), (v, _, one)) = Net(lambda _, x: x * x), inputs()
    nan = torch.full((1, WIDTH), float("nan"), dtype=F64).expand(len(z), WIDTH)
    with pytest.warns(UntracedWarning, match="is off by nan"):
        u, du_dt = TRACED(net, (nan, r, t), (v, None, one))
    assert u.isnan().all()
    assert du_dt.isnan().all()


def test_a_network_that_writes_its_parameters_is_not_recorded() -> None:
    def middle(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            net.last.bias.mul_(0.5)
        return x * x

    net, other = Net(middle), Net(middle)
    with pytest.warns(UntracedWarning, match="writes into a parameter"):
        TRACED(net, *inputs())
    stopgrad_jvp(other, *inputs())
    assert torch.equal(net.last.bias, other.last.bias)


def test_results_share_no_memory_with_the_arguments() -> None:
    (z, r, t), (v, _, one) = inputs()
    for fn in (lambda z, r, t: z, lambda z, r, t: z.view(-1, WIDTH)):
        u, du_dt = TRACED(fn, (z, r, t), (v, None, one))
        assert u.untyped_storage().data_ptr() != z.untyped_storage().data_ptr()
        assert du_dt.untyped_storage().data_ptr() != v.untyped_storage().data_ptr()


# ---------------------------------------------------------------- guards


def doubled(_: nn.Module, gradients: Any, __: Any) -> Any:
    return (2 * gradients[0],)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "of all modules"])
def test_hooks_that_come_later_are_seen(kind: str) -> None:
    """Dynamo's guards leave them out by default."""
    net = Net(RECORDED["arithmetic"])
    assert_agree(net)
    if kind == "of all modules":
        handle = nn.modules.module.register_module_forward_hook(lambda _, __, out: 2 * out)
    elif kind == "forward_pre_hook":
        handle = net.last.register_forward_pre_hook(lambda _, args: (3 * args[0],))
    elif kind == "forward_hook":
        handle = net.time.register_forward_hook(lambda _, __, out: 2 * out)
    else:
        handle = net.last.register_full_backward_hook(doubled)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntracedWarning)  # of backward hooks
            everything(TRACED, net)
        assert_agree(net)
    finally:
        handle.remove()
    assert_agree(net)


def a_module_with_a_hook() -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH, dtype=F64)
    linear.register_forward_hook(lambda _, __, out: 3 * out)
    return linear


def test_hooks_of_modules_that_come_later_are_seen() -> None:
    """Of one that takes another's place, of one that is found in a list, or by a name of the whole module."""
    first, second, elsewhere = nn.Linear(WIDTH, WIDTH, dtype=F64), Net(RECORDED["arithmetic"]), [a_module_with_a_hook()]
    net = Net(lambda _, x: elsewhere[0](first(x)).sin())
    both = lambda z, r, t: net(z, r, t) + second(z, r, t)  # noqa: E731

    def assert_right() -> None:
        for x, y in zip(TRACED(both, *inputs()), stopgrad_jvp(both, *inputs()), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-14)

    assert_right()
    net.last = a_module_with_a_hook()
    assert_right()
    for module in (net.last, second.last, first, elsewhere[0]):
        module.register_forward_hook(lambda _, __, out: 2 * out)
        assert_right()
    assert not why_untraced(net)


def test_a_row_of_attention_that_sees_nothing_in_a_later_call() -> None:
    mask = torch.ones(3, 3, dtype=torch.bool)

    def middle(_: Net, x: Tensor) -> Tensor:
        q = x.reshape(-1, 1, 3, 2)
        return F.scaled_dot_product_attention(q, 2 * q, q + 1, attn_mask=mask).reshape(x.shape)

    net = Net(middle)
    assert_agree(net)
    mask[0] = False
    assert_agree(net)
    assert everything(TRACED, net)[1].isfinite().all()


def test_a_norm_in_bfloat16_with_weights_in_float32() -> None:
    """CPU autocast makes one: its backward kernel wants one dtype."""
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    x, d = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    exact: Tensor = jvp(net, (x,), (d,))[1]
    with torch.autocast("cpu", torch.bfloat16):
        for backend in (stopgrad_jvp, TRACED):
            u, du_dt = backend(net, (x,), (d,))
            assert u.dtype == torch.bfloat16
            assert distance(du_dt, exact.detach()) < 0.05


def test_modes_are_told_apart() -> None:
    net = Net(RECORDED["dropout"])
    assert_agree(net)
    net.eval()
    assert_agree(net)
    with torch.no_grad():
        u, _ = TRACED(net, *inputs())
        assert not u.requires_grad
    u, _ = TRACED(net, *inputs())
    assert u.requires_grad
    primals, tangents = ([None if x is None else x.float() for x in side] for side in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        for backend in (TRACED, stopgrad_jvp):
            u, _ = backend(net.float(), tuple(primals), tuple(tangents))  # type: ignore[arg-type]
            assert u.dtype == torch.bfloat16


def test_parameters_are_read_at_every_call() -> None:
    net = Net(RECORDED["arithmetic"])
    assert_agree(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-1.5)
    assert_agree(net)
    net.last.weight = nn.Parameter(net.last.weight.detach() + 1)
    assert_agree(net)


def test_functions_of_one_code_are_told_apart() -> None:
    """What a closure holds is part of what was recorded."""

    def through(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda x: function(x) * x

    x, d = torch.randn(2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    for function in (torch.exp, torch.sin, torch.exp, torch.tanh):
        found = TRACED(through(function), (x,), (d,))
        torch.testing.assert_close(found, jvp(through(function), (x,), (d,)))


def test_more_networks_than_dynamo_keeps_recordings_of() -> None:
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        net = Net(RECORDED["arithmetic"])
        assert_agree(net)
        assert not why_untraced(net)


def test_a_network_that_is_recorded_too_often_falls_back() -> None:
    net = Net(lambda net, x: x * len(net.name))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(torch._dynamo.config.recompile_limit + 3):
            net.name = "n" * i
            assert_agree(net)
    assert sum(issubclass(w.category, UntracedWarning) for w in said) == 1


def test_a_recording_dies_with_its_network() -> None:
    net = Net(counts)
    everything(TRACED, net)
    reference, before = weakref.ref(net), len(traced._RECORDINGS)
    del net
    gc.collect()
    assert reference() is None
    assert len(traced._RECORDINGS) == before - 1


# ---------------------------------------------------------------- where it steps aside


def test_under_other_modes_and_transforms_the_dispatch_form_runs() -> None:
    net = Net(RECORDED["arithmetic"])
    with FlopCounterMode(display=False) as counter:
        TRACED(net, *inputs())
    assert counter.get_total_flops() > 0
    with torch.inference_mode():
        assert not TRACED(net, *inputs())[0].requires_grad
    assert net not in traced._RECORDINGS
    with pytest.raises(TangentError, match="transform"):
        torch.func.vmap(lambda z: TRACED(torch.sin, (z,), (z,))[0])(torch.ones(2, 3))


def test_inside_a_compiled_loss_it_is_the_compile_form() -> None:
    scenario = SMALL_SCENARIOS["mlp"]
    net, batch = scenario.network(), scenario.data()
    loss = torch.compile(
        lambda *data: meanflow_loss(net, *data, jvp="stopgrad_traced").loss, backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(loss(*batch), meanflow_loss(net, *batch).loss)
    assert net not in traced._RECORDINGS


def test_an_error_of_the_network_is_its_own() -> None:
    net, batch = SMALL_SCENARIOS["mlp"].network(), SMALL_SCENARIOS["mlp"].data()
    with pytest.raises(ShapeError, match="`z` has shape"):
        meanflow_loss(net, batch.x[:, :3], batch.eps[:, :3], batch.r, batch.t, jvp="stopgrad_traced")
    assert not why_untraced(net), "a wrong call is no reason to give the network up"
    meanflow_loss(net, *batch, jvp="stopgrad_traced")
    assert not why_untraced(net)


@torch.library.custom_op("meanflow_tests::fragile", mutates_args=())
def fragile(x: Tensor, broken: Tensor) -> Tensor:
    if bool(broken):
        raise ValueError("the kernel failed")
    return x.clone()


@fragile.register_fake
def _(x: Tensor, broken: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_error_in_a_replay_leaves_autograd_and_autocast_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, both are switched by plain operations: an error between them would leave autograd off for good."""

    def rule(d: Any, op: Any, out: Tensor, x: Tensor, broken: Tensor) -> Any:
        return fragile(d(x), broken)

    monkeypatch.setitem(RULES, torch.ops.meanflow_tests.fragile.default, rule)

    def middle(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = fragile(x.detach() * net.seen, net.seen < 0) + fragile(x, net.seen > 1).double()
        return out

    net = Net(middle)
    TRACED(net, *inputs())
    assert not why_untraced(net)
    depth = _autocast_depth()
    for broken in (-1.0, 2.0):
        net.seen.fill_(broken)
        with pytest.raises(ValueError, match="the kernel failed"):
            TRACED(net, *inputs())
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert _autocast_depth() == depth
    assert not why_untraced(net)


def test_products_in_half_precision_are_recorded_too() -> None:
    net, batch = SMALL_SCENARIOS["dit"].network(), SMALL_SCENARIOS["dit"].data()
    both = StopgradJvp(torch.bfloat16, traced=True)
    assert pickle.loads(pickle.dumps(both)) == both
    exact = meanflow_loss(net, *batch, rows="all").du_dt
    low, full = (meanflow_loss(net, *batch, jvp=jvp, rows="all").du_dt for jvp in (both, "stopgrad_traced"))
    assert distance(full, exact) < 1e-5
    assert 1e-4 < distance(low, exact) < 0.02


def test_the_network_is_found_behind_functions() -> None:
    net = Net(RECORDED["arithmetic"])

    class Holder:
        def __init__(self) -> None:
            self.net = net

        def __call__(self, z: Tensor) -> Tensor:
            return z

        def method(self, z: Tensor) -> Tensor:
            return z

    def outer() -> Callable[..., Any]:
        inner = Holder()
        return lambda z: (inner(z), 0)[0]

    for fn in (net, net.forward, Holder(), Holder().method, outer(), functools.partial(torch.add, other=net)):
        assert network_of(fn) is net
    assert network_of(test_a_recording_dies_with_its_network).co_name == "test_a_recording_dies_with_its_network"
    assert network_of(torch.sin) is type(torch.sin)
