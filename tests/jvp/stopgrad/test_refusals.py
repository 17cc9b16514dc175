"""What cannot be right is loud: by name, with the module and the way out; and nothing is left behind."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from meanflow_ref.errors import DtypeError, ForwardADError, NetworkError, ParameterError, ShapeError, TangentError
from meanflow_ref.jvp.stopgrad import StopgradJvp, register_rule, require_graph, stopgrad_jvp
from meanflow_ref.jvp.stopgrad.table import RULES
from meanflow_ref.objectives.meanflow import meanflow_loss


def data() -> tuple[Tensor, Tensor]:
    x, d = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, d


class OfDetached(torch.autograd.Function):
    """As reversible and implicit layers are written, and checkpoints of one's own: whether a derivative is meant?"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.detach().exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope: Tensor = y * grad[0]
        return slope


class OfDetachedInInference(OfDetached):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = x.detach().exp()
        return y.clone()


def takes_a_derivative_inside(a: Tensor) -> Tensor:
    """The JVP in the forward of a function: a stop-gradient of its network is one."""

    class Outer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return stopgrad_jvp(lambda y: y.detach() * y, (x,), (torch.ones_like(x),))[1]

        @staticmethod
        def backward(ctx: Any, *grad: Tensor) -> Tensor:
            return grad[0]

    out: Tensor = Outer.apply(a)  # type: ignore[no-untyped-call]
    return out


def test_inside_a_function_a_stop_gradient_is_one() -> None:
    x, _ = data()
    assert torch.equal(takes_a_derivative_inside(x), x)


def in_inference_mode(a: Tensor) -> Tensor:
    with torch.inference_mode():
        b = torch.einsum("ij,kj->ik", a, torch.ones(6, 6, dtype=a.dtype))
    return b.clone() + a


class Opaque(torch.autograd.Function):
    """A kernel that torch's dispatcher does not see, as a Triton or CUDA launch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out.numpy()[...] = np.sin((ctypes.c_double * x.numel()).from_address(x.data_ptr())).reshape(x.shape)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = x.cos() * grad[0]
        return slope


def swap_memory(a: Tensor) -> Tensor:
    y = a * 2
    y.data = a * 3
    return y * 1


def set_memory(a: Tensor) -> Tensor:
    y, z = a * 2, torch.zeros_like(a)
    z.set_(y.untyped_storage(), 0, y.shape, y.stride())
    return z


def resized(a: Tensor) -> Tensor:
    y = a * 2
    return y.resize_(2, 3)


def grouped_write(a: Tensor) -> Tensor:
    y = [a * 1, a * 2]
    torch._foreach_mul_(y, 2.0)
    return y[0] * y[1]


def write_behind(a: Tensor) -> Tensor:
    y = a * 2
    y.detach()[1:].mul_(3)
    return y * 1


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], type[Exception], str]] = {
    "a number": (lambda a: a * a.sum().item(), TangentError, r"takes a Python number"),
    "float()": (lambda a: a * float(a[0, 0]), TangentError, r"detach\(\)\.item\(\)"),
    "a list": (lambda a: a + torch.tensor(a.tolist(), dtype=a.dtype), TangentError, r"tolist"),
    "numpy": (lambda a: a + torch.from_numpy(a.numpy() ** 2), TangentError, r"numpy"),
    "an array": (lambda a: a + torch.from_numpy(np.sin(np.asarray(a))), TangentError, r"numpy|array"),
    "an unseen kernel": (lambda a: Opaque.apply(a * 1) * 2 + a, TangentError, r"allocated empty .*register_rule"),  # type: ignore[no-untyped-call]
    "detached inside a function": (
        lambda a: OfDetached.apply(a) + a,  # type: ignore[no-untyped-call]
        TangentError,
        r"forward of autograd\.Function `OfDetached` detaches.*checkpoint",
    ),
    "the same in inference mode": (
        lambda a: OfDetachedInInference.apply(a) + a,  # type: ignore[no-untyped-call]
        TangentError,
        r"forward of autograd\.Function `OfDetachedInInference` detaches",
    ),
    "inference mode": (in_inference_mode, ForwardADError, r"einsum.* under torch\.inference_mode.*no_grad"),
    "no formula for this argument": (
        lambda a: torch.ones_like(a).scatter_reduce(0, torch.zeros(4, 6, dtype=torch.int64), a, "prod") * a,
        ForwardADError,
        r"scatter_reduce.*no forward-mode derivative for what moves.*register_rule",
    ),
    "a norm whose statistics move": (
        lambda a: F.batch_norm(a, a.mean(0), a.var(0), training=False),
        ForwardADError,
        r"native_batch_norm.*running_mean",
    ),
    "a loss whose weight moves": (
        lambda a: F.nll_loss(a, torch.arange(4), weight=a[0]),
        ForwardADError,
        r"nll_loss_forward.*weight that moves",
    ),
    "strides by hand": (
        lambda a: torch.as_strided_copy(a.t().contiguous().t(), (2, 2), (1, 2)),
        ForwardADError,
        r"as_strided_copy.*not contiguous",
    ),
    "memory exchanged": (swap_memory, TangentError, r"memory"),
    "memory shared by hand": (set_memory, TangentError, r"aten\.set_"),
    "memory resized": (resized, TangentError, r"aten\.resize_"),
    "a grouped write": (grouped_write, TangentError, r"_foreach_mul_"),
    "a write behind detach": (write_behind, TangentError, r"aten\.mul_.*detach"),
    "bits as numbers": (lambda a: (a * 1).view(torch.int64).view(torch.float64) * 1, TangentError, r"shares memory"),
    "no forward mode": (lambda a: (a * 1).to_sparse().to_dense(), ForwardADError, r"aten\._to_sparse.*register_rule"),
    "random with noise": (lambda a: F.rrelu(a, training=True), TangentError, r"rrelu_with_noise"),
    "its input written": (lambda a: a.mul_(2), NetworkError, r"writes into its input .*aten\.mul_"),
    "a view of its input": (lambda a: a[0].zero_() + a[1], NetworkError, r"writes into its input"),
    "itself again": (lambda a: stopgrad_jvp(torch.sin, (a,), (a,))[1], TangentError, r"inside the network of another"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fn, error, says = REFUSED[name]
    x, d = data()
    before = x.clone()
    with torch.no_grad(), pytest.raises(error, match=f"(?s){says}") as caught:
        stopgrad_jvp(fn, (x,), (d,))
    assert "What to do" in str(caught.value)
    assert torch.equal(x, before), "the caller's tensor is as it was"
    # Nothing is left behind: no mode, no flag, no tangent.
    assert torch._C._len_torch_dispatch_stack() == 0
    _, du_dt = stopgrad_jvp(torch.sin, (x,), (d,))
    torch.testing.assert_close(du_dt, torch.cos(x) * d, rtol=1e-15, atol=1e-15)


def test_a_transform_inside_that_saves_tensors() -> None:
    x, d = data()

    def force(a: Tensor) -> Tensor:
        out: Tensor = torch.func.grad(lambda x: x.pow(3).sum())(a)
        return out

    with pytest.raises(TangentError, match=r'(?s)transform inside.*torch\.autograd\.grad.*jvp="func"'):
        stopgrad_jvp(force, (x,), (d,))
    with torch.no_grad():
        _, du_dt = stopgrad_jvp(force, (x,), (d,))
    torch.testing.assert_close(du_dt, 6 * x * d, rtol=1e-14, atol=1e-14)


def test_the_module_is_named() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean().item()

    net = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.SiLU(), Inner())).double()
    with pytest.raises(TangentError, match=r"in module `1\.1` \(Inner\): the network takes a Python number"):
        stopgrad_jvp(net, *[(y,) for y in data()])


def test_an_input_that_does_not_move_is_protected_too() -> None:
    x, d = data()
    r = torch.ones(6, dtype=torch.float64)
    with pytest.raises(NetworkError, match=r"primals\[1\]"):
        stopgrad_jvp(lambda a, b: a * b.add_(1), (x, r), (d, None))
    assert torch.equal(r, torch.ones_like(r))


def test_a_write_that_spoils_the_backward_pass_is_still_noticed() -> None:
    """Autograd leaves this check to the hooks that keep aliases."""
    weight = nn.Parameter(torch.ones(6, dtype=torch.float64))

    def net(a: Tensor) -> Tensor:
        y = (a * weight).exp()
        y.add_(1)
        return y

    u, _ = stopgrad_jvp(net, *[(y,) for y in data()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        u.sum().backward()  # type: ignore[no-untyped-call]


def test_an_error_of_the_networks_own_passes_unchanged() -> None:
    x, d = data()

    def broken(a: Tensor) -> Tensor:
        (a * 2).exp()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stopgrad_jvp(broken, (x,), (d,))
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_inside_transforms_it_is_refused() -> None:
    x, d = data()
    for transform in (torch.func.vmap, torch.func.grad):
        with pytest.raises(TangentError, match=r"torch\.func"):
            transform(lambda a: stopgrad_jvp(torch.sin, (a,), (a,))[1].sum())(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, d)  # type: ignore[no-untyped-call]
        with pytest.raises(TangentError, match="dual_level"):
            stopgrad_jvp(torch.sin, (dual,), (d,))


def test_du_dt_in_a_graph() -> None:
    x, d = data()
    weight = nn.Parameter(torch.ones(6, dtype=torch.float64))
    u, du_dt = stopgrad_jvp(lambda a: a * weight, (x,), (d,))
    assert u.requires_grad
    assert not du_dt.requires_grad
    with pytest.raises(TangentError, match=r'(?s)carries none.*jvp="func"'):
        require_graph(du_dt)


def test_threads_do_not_see_one_another() -> None:
    x, d = data()
    barrier = threading.Barrier(4, timeout=60)

    def work(k: int) -> bool:
        def net(a: Tensor) -> Tensor:
            barrier.wait()
            a = net_without_barrier(a, k)
            barrier.wait()
            return a

        _, du_dt = stopgrad_jvp(net, (x,), (d,))
        return torch.allclose(du_dt, expected[k - 1], rtol=1e-12, atol=1e-12)

    def net_without_barrier(a: Tensor, k: int) -> Tensor:
        for _ in range(20):
            a = torch.sinh(torch.sin(a) * k)  # a rule, and forward mode, whose level is one for the process
        return a

    expected = [torch.func.jvp(partial(net_without_barrier, k=k), (x,), (d,))[1] for k in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))
    # Torch's flags, which are of the process, would be left on: nothing could be compiled from here on.
    assert not is_in_torch_dispatch_mode()
    torch.compile(torch.sin, backend="eager", fullgraph=True)(x)


def test_work_handed_whole_to_another_thread_is_found_by_reverse_mode() -> None:
    x, d = data()

    def net(a: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.sin, a).result()

    _, du_dt = stopgrad_jvp(net, (x,), (d,))
    torch.testing.assert_close(du_dt, torch.cos(x) * d, rtol=1e-14, atol=1e-14)


# ---------------------------------------------------------------- registered rules


@torch.library.custom_op("meanflow_tests::scaled_sine", mutates_args=())
def scaled_sine(x: Tensor, c: float) -> Tensor:
    return torch.from_numpy(np.asarray(c * np.sin(x.detach().numpy())))


def test_an_operation_of_ones_own() -> None:
    x, d = data()
    with pytest.raises(ForwardADError, match=r"(?s)meanflow_tests\.scaled_sine.*register_rule"):
        stopgrad_jvp(lambda a: scaled_sine(a, 3.0), (x,), (d,))
    name = "meanflow_tests::scaled_sine"
    try:
        register_rule(name, lambda d, op, out, x, c: c * torch.cos(x) * d(x))
        _, du_dt = stopgrad_jvp(lambda a: scaled_sine(a * 2, 3.0), (x,), (d,))
    finally:
        RULES.pop(torch.ops.meanflow_tests.scaled_sine.default, None)
    torch.testing.assert_close(du_dt, 6 * torch.cos(2 * x) * d, rtol=1e-14, atol=1e-14)


def test_a_rule_for_what_does_not_exist() -> None:
    with pytest.raises(ParameterError, match="there is no operation 'aten::silly'"):
        register_rule("aten::silly", lambda *args: None)
    with pytest.raises(ParameterError, match="writes into its arguments"):
        register_rule("aten::add_", lambda *args: None)


def test_a_rule_of_the_wrong_shape_is_loud() -> None:
    x, d = data()
    op = torch.ops.aten.sinh.default
    try:
        register_rule("aten::sinh", lambda d, op, out, x: torch.ones(3, 7, dtype=x.dtype))
        with pytest.raises(RuntimeError):
            stopgrad_jvp(torch.sinh, (x,), (d,))
    finally:
        RULES.pop(op, None)


def test_the_loss_says_it_too() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6).double()

        def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.layer(z) * float(t.mean())
            return out

    x, eps = data()
    t = torch.full((4,), 0.7, dtype=torch.float64)
    with pytest.raises(TangentError, match=r"module|network itself \(Net\).*Python number"):
        meanflow_loss(Net(), x, eps, t / 2, t)


def test_a_gradient_that_reaches_a_guarded_derivative() -> None:
    x, d = data()
    weight = nn.Parameter(torch.ones(6, dtype=torch.float64))

    def net(a: Tensor) -> Tensor:
        return (a * weight).sin()

    u, du_dt = StopgradJvp(guard=True)(net, (x,), (d,))
    assert torch.equal(du_dt, stopgrad_jvp(net, (x,), (d,))[1])
    with pytest.raises(TangentError, match=r'(?s)goes through du_dt.*detach.*jvp="func"'):
        torch.autograd.grad(du_dt.sum(), weight, retain_graph=True)
    with pytest.raises(TangentError, match="goes through du_dt"):
        # A target without its stop-gradient.
        torch.autograd.backward((u - (d - 0.5 * du_dt)).square().sum(), retain_graph=True)
    # With it nothing is said, and the gradient is the unguarded one's.
    target = (d - 0.5 * du_dt).detach()
    (guarded,) = torch.autograd.grad((u - target).square().sum(), weight)
    again = net(x)
    (plain,) = torch.autograd.grad((again - target).square().sum(), weight)
    assert torch.equal(guarded, plain)


def test_the_loss_meets_no_guard() -> None:
    x, eps = data()
    t = torch.full((4,), 0.7, dtype=torch.float64)
    layer = nn.Linear(6, 6).double()
    terms = [
        meanflow_loss(lambda z, r, t: layer(z) * t[:, None], x, eps, t / 2, t, jvp=jvp)
        for jvp in ("stopgrad", StopgradJvp(guard=True))
    ]
    grads = [torch.autograd.grad(term.loss, layer.weight)[0] for term in terms]
    assert torch.equal(*grads)


def test_without_a_graph_there_is_nothing_to_guard() -> None:
    x, d = data()
    with torch.no_grad():
        assert not StopgradJvp(guard=True)(torch.sin, (x,), (d,))[1].requires_grad


def test_no_derivative_anywhere_names_the_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_sparse().to_dense()

    net = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.SiLU(), Inner())).double()
    with pytest.raises(ForwardADError, match=r"(?s)in module `1\.1` \(Inner\): .*aten\._to_sparse.*register_rule\("):
        stopgrad_jvp(net, *[(y,) for y in data()])
    operation = nn.Sequential(nn.Linear(6, 6), Own()).double()
    with pytest.raises(ForwardADError, match=r"(?s)in module `1` \(Own\): .*meanflow_tests\.scaled_sine"):
        stopgrad_jvp(operation, *[(y,) for y in data()])


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = scaled_sine(x, 3.0)
        return out


WRONG_INPUT: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "another shape": (lambda x, d: (x,), lambda x, d: (d[:2],), ShapeError, r"tangent 0 has shape \(2, 6\)"),
    "another dtype": (lambda x, d: (x,), lambda x, d: (d.float(),), DtypeError, r"tangent 0 is torch\.float32"),
    "one too many": (lambda x, d: (x,), lambda x, d: (d, d), ShapeError, "1 primals, 2 tangents"),
    "no tuples": (lambda x, d: x, lambda x, d: d, DtypeError, r"primals is Tensor.*\(primals,\)"),
    "a number for a tangent": (lambda x, d: (x,), lambda x, d: (1.0,), DtypeError, "its tangent float"),
    "a number for a primal": (lambda x, d: (x, 0.3), lambda x, d: (d, None), DtypeError, "primal 1 is float"),
    "whole numbers that move": (
        lambda x, d: (torch.arange(3),),
        lambda x, d: (torch.arange(3),),
        DtypeError,
        r"primal 0 is torch\.int64 and has a tangent",
    ),
}


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_input_that_does_not_fit(case: str) -> None:
    primals, tangents, error, says = WRONG_INPUT[case]
    with pytest.raises(error, match=f"(?s){says}"):
        stopgrad_jvp(lambda *args: args[0] * 1.0, primals(*data()), tangents(*data()))


def test_labels_that_stand_still_may_be_whole_numbers() -> None:
    x, d = data()
    table = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, du_dt = stopgrad_jvp(lambda a, label: a * table[label], (x, torch.arange(4)), (d, None))
    assert torch.equal(du_dt, d * table)
