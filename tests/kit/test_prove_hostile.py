"""How could wrong code be called PROVED? Each way that we thought of, tried."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.prove import LossError, ProofReport, prove_loss

Net = Callable[..., Tensor]
# torch's type also allows for three results.
jvp = cast(Callable[..., tuple[Tensor, Tensor]], torch.func.jvp)
ONE_SHAPE: dict[str, Any] = {"shapes": [(2, 3)]}


def column(time: Tensor) -> Tensor:
    return time[:, None]


def parts(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """``u`` and the detached target."""
    z, v = (1 - column(t)) * x + column(t) * eps, eps - x
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return u, (v - column(t - r) * du).detach()


def right(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    u, target = parts(net, x, eps, r, t)
    return ((u - target) ** 2).sum(1).mean()


def drawn(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.rand(x.shape[0])
    return torch.randn_like(x), t * torch.rand(x.shape[0]), t


def refused(loss: Callable[..., Any], reason: str, line: str = "test_prove_hostile.py", **options: Any) -> ProofReport:
    """The report of a loss that must be NOT_EXACT, for this reason, on a line of this file."""
    report = prove_loss(loss, **{**ONE_SHAPE, **options})
    assert report.verdict == "NOT_EXACT", str(report)
    assert reason in report.value.why + report.gradient.why, str(report)
    assert line in report.value.where + report.gradient.where, str(report)
    return report


def not_proved(loss: Callable[..., Any], **options: Any) -> ProofReport:
    report = prove_loss(loss, **{**ONE_SHAPE, **options})
    assert report.verdict == "REFUTED", str(report)
    return report


def test_the_loss_that_the_others_spoil_is_proved() -> None:
    assert prove_loss(right).verdict == "PROVED"
    assert prove_loss(lambda net, x: right(net, x, *drawn(x))).verdict == "PROVED"


# ---------------------------------------------------------------- values that leave the trace


def test_item_is_refused() -> None:
    refused(lambda net, x, eps, r, t: right(net, x, eps, r, t) * t.mean().item(), "a value is asked for")


def test_a_branch_on_data_is_refused() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps, r, t) if bool((t > r).all()) else right(net, x, eps, t, t)

    refused(loss, "a value is asked for")


def test_numpy_of_an_input_is_refused() -> None:
    refused(lambda net, x, eps, r, t: right(net, x, eps, r, t) * float(t.numpy().mean()), "")


def test_tolist_is_refused() -> None:
    refused(lambda net, x, eps, r, t: right(net, x, eps, r, t) * t.tolist()[0], "")


def test_rows_picked_by_a_mask_are_refused() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        keep = t > r
        return right(net, x[keep], eps[keep], r[keep], t[keep])

    refused(loss, "a shape depends on data")


def test_numbers_from_numpy_are_refused() -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        _, r, t = drawn(x)
        return right(net, x, torch.from_numpy(np.random.randn(*x.shape)).float(), r, t)  # noqa: NPY002

    refused(loss, "drawn with numpy", line="")


def test_numbers_from_python_are_refused() -> None:
    refused(lambda net, x: right(net, x, *drawn(x)) * random.random(), "drawn with Python's `random`", line="")


def test_numbers_from_a_generator_of_their_own_are_refused() -> None:
    source = np.random.default_rng()
    refused(lambda net, x: right(net, x, *drawn(x)) + 0 * torch.tensor(source.random()), "not the same function twice")


def test_a_cache_is_refused() -> None:
    kept: list[Tensor] = []

    def loss(net: Net, x: Tensor) -> Tensor:
        eps, r, t = drawn(x)
        kept.append(eps)
        return right(net, x, kept[0], r, t)

    report = prove_loss(loss, **ONE_SHAPE)
    assert report.verdict == "NOT_EXACT", str(report)


def test_a_counter_is_refused() -> None:
    calls = [0]

    def loss(net: Net, x: Tensor) -> Tensor:
        calls[0] += 1
        return right(net, x, *drawn(x)) * (1.0 + calls[0])

    refused(loss, "not the same function twice")


# ---------------------------------------------------------------- precision and operations without meaning


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lossy_cast_is_refused(dtype: torch.dtype) -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x.to(dtype).float(), eps, r, t)

    refused(loss, "loses more than rounding")


def test_a_cast_to_integers_is_refused() -> None:
    refused(lambda net, x, eps, r, t: right(net, x, eps, (r * 999).long() / 999, t), "loses more than rounding")


def test_autocast_is_refused() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            u, target = parts(net, x, eps, r, t)
            return (torch.eye(2) @ (u - target)).square().sum(1).mean()

    refused(loss, "bfloat16")


def test_an_unknown_operation_is_refused() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        return torch.cumsum((u - target) ** 2, 1)[:, -1].mean()

    refused(loss, "aten.cumsum")


def test_dropout_is_refused() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        return nn.functional.dropout(u - target, 0.5).square().sum(1).mean()

    # Dropout is a product with coins over their probability: exact, and not the formula.
    assert prove_loss(loss, **ONE_SHAPE).verdict != "PROVED"


def test_memory_that_was_never_written_is_refused() -> None:
    refused(lambda net, x, eps, r, t: right(net, x, eps, r, t) + 0 * torch.empty(()), "")


def test_infinity_is_refused() -> None:
    refused(lambda net, x, eps, r, t: right(net, x, eps, r, t) + 0 * torch.full((), float("inf")), "not a number")


def test_data_in_random_order_is_refused() -> None:
    refused(lambda net, x: right(net, x[torch.randperm(x.shape[0])], *drawn(x)), "an index that is no constant")


# ---------------------------------------------------------------- memory


def test_a_write_through_a_view_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        first = target[0]
        first.mul_(2)
        return ((u - target) ** 2).sum(1).mean()

    not_proved(loss)


def test_a_write_after_the_network_was_called_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        _, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        z[:, 0] += 1
        return ((net(z, r, t) - (v - column(t - r) * du).detach()) ** 2).sum(1).mean()

    not_proved(loss)


def test_writes_that_cancel_are_proved() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        for row in target.unbind(0):
            row.mul_(2).div_(2)
        return ((u - target) ** 2).sum(1).mean()

    assert prove_loss(loss).verdict == "PROVED"


def test_a_mask_written_in_place_is_no_list_of_indices() -> None:
    # r[mask] = 0 where the mask is constant: its 0 and 1 must not be taken for row numbers.
    def loss(net: Net, x: Tensor) -> Tensor:
        eps, r, t = drawn(x)
        r[torch.tensor([False] * (x.shape[0] - 1) + [True])] = 0.0
        return right(net, x, eps, r, t)

    assert prove_loss(loss).verdict == "PROVED"


# ---------------------------------------------------------------- shapes


def test_a_constant_that_happens_to_be_one_over_b_is_no_mean() -> None:
    report = prove_loss(lambda net, *a: right(net, *a) * a[0].shape[0] * 0.5, inputs="x, eps, r, t")
    assert report.verdict == "PROVED"
    assert "sum over the batch; times 1/2" in report.formula


def test_a_sum_over_rows_for_one_over_components_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        error = ((u - target) ** 2).sum(0)
        return (error / (error + 1e-3).detach()).mean()

    assert prove_loss(loss).verdict == "REFUTED"
    # At B = d both sums have one shape, and still differ.
    assert prove_loss(loss, shapes=[(2, 2)]).verdict == "REFUTED"


def test_a_factor_that_is_neither_sum_nor_mean_is_refuted() -> None:
    report = prove_loss(lambda net, *a: right(net, *a) * (1 + a[0].shape[1]), inputs="x, eps, r, t")
    assert report.faults == ("REDUCTION",)


def test_one_row_hides_a_broadcast_and_says_its_shape() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        return ((u - (v - (t - r) * du).detach()) ** 2).sum(1).mean()

    report = prove_loss(loss, shapes=[(1, 3)])
    assert report.verdict == "PROVED"
    assert "(1, 3)" in str(report)
    assert prove_loss(loss).verdict != "PROVED"


# ---------------------------------------------------------------- the network


def test_other_points_are_other_symbols() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        _, target = parts(net, x, eps, r, t)
        z = (1 - column(t)) * x + column(t) * eps
        return ((net(z, r, t + 1e-6) - target) ** 2).sum(1).mean()

    assert prove_loss(loss, **ONE_SHAPE).verdict != "PROVED"


def test_the_same_point_reached_otherwise_is_the_same_symbol() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        _, target = parts(net, x, eps, r, t)
        z = x + column(t) * (eps - x)
        return ((net(z, r + t - t, t) - target) ** 2).sum(1).mean()

    assert prove_loss(loss).verdict == "PROVED"


def test_other_parameters_are_another_network() -> None:
    def loss(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        moved = {name: 0.99 * parameter for name, parameter in net.named_parameters()}
        u, _ = parts(net, x, eps, r, t)
        _, target = parts(lambda *a: functional_call(net, moved, a), x, eps, r, t)
        return ((u - target) ** 2).sum(1).mean()

    assert prove_loss(loss, **ONE_SHAPE).verdict != "PROVED"


def test_parameters_moved_in_place_are_another_network() -> None:
    def loss(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(0.99)
        return right(net, x, eps, r, t)

    assert prove_loss(loss, **ONE_SHAPE).verdict != "PROVED"


def test_an_option_of_an_operation_on_draws_counts() -> None:
    # Sorted up and sorted down are two functions of the same draws.
    def loss(net: Net, x: Tensor) -> Tensor:
        pair = torch.rand(x.shape[0], 2)
        up, down = (torch.sort(pair, dim=1, descending=flag, stable=True).values for flag in (False, True))
        eps, t = torch.randn_like(x), up[:, 1]
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        u, du = jvp(net, (z, up[:, 0], t), (v, torch.zeros_like(t), torch.ones_like(t)))
        return ((u - (v - column(t - down[:, 0]) * du).detach()) ** 2).sum(1).mean()

    not_proved(loss)


def test_another_label_is_another_network() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        u, _ = parts(lambda *a: net(*a, y), x, eps, r, t)
        _, target = parts(lambda *a: net(*a, torch.zeros_like(y)), x, eps, r, t)
        return ((u - target) ** 2).sum(1).mean()

    not_proved(loss, call="z, r, t, y", inputs="x, eps, r, t, y")


def test_the_label_of_another_row_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return right(lambda *a: net(*a, y.flip(0)), x, eps, r, t)

    assert "LABEL_OF_ANOTHER_ROW" in not_proved(loss, call="z, r, t, y", inputs="x, eps, r, t, y").faults


def test_labels_that_never_arrive_are_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return right(lambda *a: net(*a, torch.zeros_like(y)), x, eps, r, t)

    assert "LABEL_UNUSED" in not_proved(loss, call="z, r, t, y", inputs="x, eps, r, t, y").faults


def test_one_entry_of_the_data_for_all_is_seen() -> None:
    assert prove_loss(lambda net, x: right(net, x[:, :1].expand_as(x), *drawn(x)), **ONE_SHAPE).verdict != "PROVED"


def test_equal_times_are_flow_matching() -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        eps, _, t = drawn(x)
        return right(net, x, eps, t, t)

    assert not_proved(loss).faults == ("NEVER_R_NEQ_T",)


def test_a_time_that_never_changes_is_seen() -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        return right(net, x, torch.randn_like(x), torch.rand(x.shape[0]) / 2, torch.full((x.shape[0],), 0.5))

    assert not_proved(loss).faults == ("TIMES_CONSTANT",)


# ---------------------------------------------------------------- gradients


class HalfBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / 2


def test_a_backward_of_the_users_own_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        halved: Tensor = HalfBack.apply(u)  # type: ignore[no-untyped-call]
        return ((halved - target) ** 2).sum(1).mean()

    report = not_proved(loss)
    assert (report.value.verdict, report.gradient.verdict) == ("PROVED", "REFUTED")


def test_a_hook_on_the_gradient_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        u.register_hook(lambda g: 2 * g)  # type: ignore[no-untyped-call]
        return ((u - target) ** 2).sum(1).mean()

    report = not_proved(loss)
    assert (report.value.verdict, report.gradient.verdict) == ("PROVED", "REFUTED")


def test_another_term_in_the_loss_is_seen() -> None:
    def loss(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps, r, t) + 1e-4 * sum(p.square().sum() for p in net.parameters() if p.dim() > 1)

    # The network of the trace has one parameter, of one dimension: nothing may depend on that.
    refused(loss, "goes through its network's parameters")


def test_where_on_data_counts_both_branches() -> None:
    def wrong(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        return torch.where(x > 0, (u - target) ** 2, torch.zeros_like(u)).sum(1).mean()

    def harmless(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u, target = parts(net, x, eps, r, t)
        return torch.where(x > 0, (u - target) ** 2, (target - u) ** 2).sum(1).mean()

    not_proved(wrong)
    assert prove_loss(harmless, **ONE_SHAPE).verdict == "PROVED"


def test_a_difference_as_small_as_rounding_is_left_open() -> None:
    report = prove_loss(lambda net, *a: right(net, *a) * (1 + 1e-13), inputs="x, eps, r, t", **ONE_SHAPE)
    assert report.verdict == "NOT_EXACT"


def test_a_third_derivative_leaves_the_value_proved() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        def inner(t: Tensor) -> Tensor:
            return jvp(lambda s: net(x, r, s), (t,), (torch.ones_like(t),))[1]

        second = jvp(inner, (t,), (torch.ones_like(t),))[1]
        return right(net, x, eps, r, t) + 0 * second.sum()

    report = prove_loss(loss, **ONE_SHAPE)
    assert report.value.verdict == "PROVED", str(report)
    assert report.gradient.verdict == "NOT_EXACT"
    assert "third derivative" in report.gradient.why


# ---------------------------------------------------------------- bad input


def test_a_loss_that_returns_no_scalar() -> None:
    with pytest.raises(LossError, match=r"shape \(2, 3\)"):
        prove_loss(lambda net, x, eps, r, t: parts(net, x, eps, r, t)[0], **ONE_SHAPE)
    with pytest.raises(LossError, match=r"\[0\]"):
        prove_loss(lambda net, x, eps, r, t: (right(net, x, eps, r, t), {}), **ONE_SHAPE)


def test_a_loss_that_never_calls_its_network() -> None:
    with pytest.raises(LossError, match="never calls the network"):
        prove_loss(lambda net, x: x.square().mean())


def test_a_loss_that_raises() -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        raise ValueError("no such dataset")

    refused(loss, "ValueError: no such dataset")


def test_a_compiled_loss() -> None:
    refused(
        torch.compile(right), "hand over the function that was given to torch.compile", line="", inputs="x, eps, r, t"
    )


def test_a_loss_that_maps_over_rows() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        rows: Tensor = torch.func.vmap(lambda *row: right(net, *(entry[None] for entry in row)))(x, eps, r, t)
        return rows.mean()

    refused(loss, "with vmap: call the network on the whole batch")


def test_a_loss_that_asks_the_network_for_what_it_lacks() -> None:
    refused(lambda net, x: right(net.module, x, *drawn(x)), "`.module`")


def test_a_call_that_does_not_fit() -> None:
    refused(lambda net, x: right(lambda z, r, t: net(z, t), x, *drawn(x)), "a call with 2 positional arguments")


def test_inputs_that_cannot_be_read() -> None:
    with pytest.raises(ParameterError, match="3 arguments"):
        prove_loss(lambda net, x, r, t: x)
    with pytest.raises(ParameterError, match="inputs="):
        prove_loss(right, inputs="x, noise, r, t")
    with pytest.raises(ParameterError, match="shapes="):
        prove_loss(right, shapes=[(4,)])
    with pytest.raises(ParameterError, match="at most 64"):
        prove_loss(right, shapes=[(8, 3, 32, 32)])
    with pytest.raises(ParameterError, match="dtype"):
        prove_loss(right, dtype=torch.bfloat16)


def test_a_loss_with_the_wrong_number_of_arguments() -> None:
    refused(lambda net, x, *, scale: right(net, x, *drawn(x)), "scale", line="")
