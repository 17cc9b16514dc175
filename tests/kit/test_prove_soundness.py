"""More ways to be called PROVED wrongly: draws, times, ends of the path, memory, r = t, and what a network shows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.prove import ProofReport, prove_loss

Net = Callable[..., Tensor]
Loss = Callable[..., Tensor]
# torch's type also allows for three results.
jvp = cast(Callable[..., tuple[Tensor, Tensor]], torch.func.jvp)
GIVEN = "x, eps, r, t"


def column(time: Tensor) -> Tensor:
    return time[:, None]


def on_path(net: Net, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """The right loss for a state and its velocity."""
    u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    return ((u - (v - column(t - r) * du).detach()) ** 2).sum(1).mean()


def right(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
    return on_path(net, (1 - column(t)) * x + column(t) * eps, eps - x, r, t)


def prove(loss: Loss, **options: Any) -> ProofReport:
    return prove_loss(loss, **{"shapes": [(2, 3)], **options})


def times(x: Tensor) -> tuple[Tensor, Tensor]:
    t = torch.rand(x.shape[0])
    return t * torch.rand(x.shape[0]), t


# ---------------------------------------------------------------- draws that repeat

OWN = torch.Generator()


def _seeds_torch(net: Net, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return right(net, x, torch.randn_like(x), *times(x))


def _new_generator(net: Net, x: Tensor) -> Tensor:
    return right(net, x, torch.randn(x.shape, generator=torch.Generator()), *times(x))


def _new_generator_seeded(net: Net, x: Tensor) -> Tensor:
    return right(net, x, torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), *times(x))


def _own_generator_seeded(net: Net, x: Tensor) -> Tensor:
    return right(net, x, torch.randn(x.shape, generator=OWN.manual_seed(3)), *times(x))


@pytest.mark.parametrize("loss", [_seeds_torch, _new_generator, _new_generator_seeded, _own_generator_seeded])
def test_draws_that_repeat_are_refuted(loss: Loss) -> None:
    report = prove(loss)
    assert report.faults == ("DRAWS_REPEAT",), str(report)


def test_a_generator_that_runs_on_is_proved_and_left_as_it_was() -> None:
    own = torch.Generator().manual_seed(5)
    state, default = own.get_state(), torch.get_rng_state()
    report = prove(lambda net, x: right(net, x, torch.randn(x.shape, generator=own), *times(x)))
    assert report.verdict == "PROVED", str(report)
    assert torch.equal(state, own.get_state())
    assert torch.equal(default, torch.get_rng_state())


def test_a_generator_seeded_from_entropy_is_proved() -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        fresh = torch.Generator()
        fresh.seed()
        return right(net, x, torch.randn(x.shape, generator=fresh), *times(x))

    assert prove(loss).verdict == "PROVED"


def test_noise_that_is_drawn_although_it_is_given() -> None:
    report = prove(lambda net, x, eps, r, t: right(net, x, torch.randn_like(x), r, t))
    assert report.faults == ("NOISE_NOT_GIVEN",), str(report)


# ---------------------------------------------------------------- times


def _times_of_the_data(net: Net, x: Tensor) -> Tensor:
    t = torch.rand(x.shape[0])
    return right(net, x, torch.randn_like(x), t * torch.sigmoid(x.mean(1)), t)


def test_times_that_follow_the_data_are_refuted() -> None:
    assert prove(_times_of_the_data).faults == ("TIMES_TIED_TO_DATA",)


def test_times_beyond_one_are_refuted() -> None:
    report = prove(lambda net, x: right(net, x, torch.randn_like(x), *(2 * time for time in times(x))))
    assert report.faults == ("TIMES_OUT_OF_RANGE",), str(report)


def test_times_in_the_wrong_order_are_noted() -> None:
    report = prove(lambda net, x: right(net, x, torch.randn_like(x), *torch.rand(2, x.shape[0])))
    assert report.verdict == "PROVED", str(report)
    assert any("r > t occurs" in note for note in report.notes), str(report)


def test_a_division_by_the_interval_is_not_proved() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        h = column(t - r)
        z = (1 - column(t)) * x + column(t) * eps
        return on_path(net, z, (eps - x) * h / h, r, t)

    report = prove(loss)
    assert report.verdict == "NOT_EXACT", str(report)
    assert "0 where r = t" in report.value.why
    # Where times are drawn apart, r = t has probability 0.
    assert prove(lambda net, x: loss(net, x, torch.randn_like(x), *times(x))).verdict == "PROVED"

    def some_equal(net: Net, x: Tensor) -> Tensor:
        r, t = times(x)
        return loss(net, x, torch.randn_like(x), torch.where(torch.rand(x.shape[0]) < 0.5, t, r), t)

    assert prove(some_equal).verdict == "NOT_EXACT"


def test_another_target_at_r_equals_t_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        target = torch.where(column(r == t), -v, v - column(t - r) * du)
        return ((u - target.detach()) ** 2).sum(1).mean()

    assert prove(loss).verdict != "PROVED"


# ---------------------------------------------------------------- the path


def test_a_path_that_ends_in_other_noise_is_not_proved() -> None:
    def scaled(factor: float) -> Loss:
        return lambda net, x, eps, r, t: right(net, x, factor * eps, r, t)

    assert prove(scaled(1.0)).verdict == "PROVED"
    assert prove(scaled(1.04)).verdict != "PROVED"


def test_noise_whose_size_depends_on_the_data_is_not_proved() -> None:
    # At the witness the condition holds or it does not; for other data it is the other way round.
    for sign in (1, -1):

        def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, sign: int = sign) -> Tensor:
            size = torch.where(sign * x > 0, 1.0, 3.0)
            return right(net, x, size * eps, r, t)

        assert prove(loss).verdict != "PROVED"


def test_a_path_that_bends_with_the_draw_of_its_time_is_not_proved() -> None:
    def loss(net: Net, x: Tensor) -> Tensor:
        a, b = torch.rand(2, x.shape[0])
        t, r, eps = torch.maximum(a, b), torch.minimum(a, b), torch.randn_like(x)
        c, s = column(a), column(t)
        z = (1 - s) * x + s * eps + s * (1 - s) * c
        return on_path(net, z, eps - x + (1 - 2 * s) * c, r, t)

    assert prove(loss).verdict != "PROVED"


# ---------------------------------------------------------------- memory and bits


def test_bits_read_as_another_dtype_are_refused() -> None:
    def integers(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps.view(torch.int32).float(), r, t)

    def there_and_back(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps.view(torch.int32).view(torch.float32), r, t)

    report = prove(integers)
    assert report.verdict == "NOT_EXACT", str(report)
    assert "bits" in report.value.why
    assert prove(there_and_back).verdict == "PROVED"


def test_a_write_through_data_is_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        u = u.clone()
        u.data.mul_(2)
        return ((u - (v - column(t - r) * du).detach()) ** 2).sum(1).mean()

    assert prove(loss).verdict != "PROVED"


def test_transposed_rows_and_columns_are_seen() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        return ((u - (v - column(t - r) * du.T.contiguous().view_as(du)).detach()) ** 2).sum(1).mean()

    assert prove(loss).verdict != "PROVED"


def test_a_strided_copy_is_read_by_its_strides() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x.T.contiguous().T, torch.stack([eps, eps], 2)[..., 1], r, t)

    assert prove(loss).verdict == "PROVED"


# ---------------------------------------------------------------- what a network shows


def test_the_number_of_parameters_is_not_known() -> None:
    def loss(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps, r, t) * len(list(net.parameters()))

    def of_state(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps, r, t) * len(net.state_dict())

    assert prove(loss).verdict == prove(of_state).verdict == "NOT_EXACT"


def test_the_device_of_the_first_parameter_may_be_asked_for() -> None:
    def loss(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        device = next(net.parameters()).device
        return right(net, x.to(device), eps, r, t)

    assert prove(loss).verdict == "PROVED"


def test_a_copy_of_the_network_is_a_teacher() -> None:
    # The target from a copy has no gradient without being detached.
    def loss(net: nn.Module, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        teacher = copy.deepcopy(net)
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        _, du = jvp(teacher, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        error: Tensor = net(z, r, t) - (v - column(t - r) * du)
        return error.square().sum(1).mean()

    assert prove(loss).verdict != "REFUTED"


# ---------------------------------------------------------------- eager code is what is proved


def test_code_for_the_compiler_is_not_taken_for_the_code() -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps, r, t) if torch.compiler.is_compiling() else right(net, x, eps, t, r)

    def by_name(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return right(net, x, eps, r, t) if is_compiling() else right(net, x, eps, t, r)

    def checks(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and bool((r > t).any()):
            return x.sum()
        return right(net, x, eps, r, t)

    assert prove(loss).verdict != "PROVED"
    assert prove(by_name).verdict != "PROVED"
    assert prove(checks).verdict == "NOT_EXACT"


# ---------------------------------------------------------------- labels, guidance, inputs


def guided(omega: float, kappa: float, told: Callable[[Tensor], Tensor]) -> Loss:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        y = told(y)
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        with torch.no_grad():
            null = net(z, t, t, torch.full_like(y, 9))
            mixed = omega * v + kappa * net(z, t, t, y) + (1 - omega - kappa) * null
        return on_path(lambda z, r, t: net(z, r, t, y), z, mixed, r, t)

    return loss


def test_kappa_must_be_below_one() -> None:
    options: dict[str, Any] = {"call": "z, r, t, y", "inputs": "x, eps, r, t, y"}
    assert prove(guided(0.5, 0.75, lambda y: y), **options).verdict == "PROVED"
    assert prove(guided(0.5, 1.25, lambda y: y), **options).faults == ("KAPPA_TOO_LARGE",)


def test_a_label_that_is_changed_on_the_way_is_noted() -> None:
    report = prove(guided(0.5, 0.25, lambda y: y + 1), call="z, r, t, y", inputs="x, eps, r, t, y")
    assert any("told the label" in note for note in report.notes), str(report)


def test_a_velocity_without_its_state_is_no_question() -> None:
    with pytest.raises(ParameterError, match="velocity without its state"):
        prove_loss(on_path, inputs="x, v, r, t")


# ---------------------------------------------------------------- factors


def test_an_odd_factor_is_a_factor() -> None:
    report = prove(lambda net, *inputs: 0.123456789 * right(net, *inputs), inputs=GIVEN)
    assert report.verdict == "PROVED", str(report)
    assert "times" in report.formula
    assert prove(lambda net, *inputs: -0.123456789 * right(net, *inputs), inputs=GIVEN).verdict == "REFUTED"


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_gradient_that_is_a_multiple_of_the_right_one_is_named(share: float) -> None:
    def loss(net: Net, x: Tensor, eps: Tensor, r: Tensor, t: Tensor) -> Tensor:
        z, v = (1 - column(t)) * x + column(t) * eps, eps - x
        u, du = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
        moved = u.detach() + share * (u - u.detach())
        return ((moved - (v - column(t - r) * du).detach()) ** 2).sum(1).mean()

    report = prove(loss)
    assert (report.value.verdict, report.gradient.verdict) == ("PROVED", "REFUTED"), str(report)
    assert report.faults == ("GRADIENT_SCALED",), str(report)
