"""The loop on a problem whose answer is known, its schedule, its guard, and a polite Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from meanflow_ref.errors import NonFiniteError
from meanflow_ref.train.interrupt import interruptible
from meanflow_ref.train.loop import Batch, Report, schedule, train


def problem(decay: float = 0.0) -> tuple[nn.Linear, AveragedModel]:
    torch.manual_seed(0)
    net = nn.Linear(1, 1)
    averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return net, AveragedModel(net, multi_avg_fn=averaging)


def weight_of(average: AveragedModel) -> Tensor:
    net = average.module
    assert isinstance(net, nn.Linear)
    return net.weight


def batch() -> Batch:
    x = torch.linspace(-1, 1, 8)[:, None]
    return x, x, x[:, 0], x[:, 0]


def fit_a_line(net: nn.Module, batch: Batch) -> Tensor:
    """Least squares towards ``3 x - 1``."""
    squared: Tensor = (net(batch[0]) - (3 * batch[0] - 1)).square()
    return squared.mean()


def test_it_finds_the_known_line() -> None:
    net, average = problem()
    reports = list(train(net, average, batch, fit_a_line, steps=400, learning_rate=0.1, warmup=10))
    assert [report.step for report in reports] == list(range(1, 401))
    assert reports[-1].loss < 1e-6
    assert net.weight.item() == pytest.approx(3, abs=1e-3)
    assert net.bias.item() == pytest.approx(-1, abs=1e-3)
    # Decay 0: the average is the last network.
    assert torch.equal(weight_of(average), net.weight)


def test_the_average_is_the_recursion() -> None:
    decay = 0.9
    net, average = problem(decay)
    expected = torch.empty(0)
    for report in train(net, average, batch, fit_a_line, steps=20, learning_rate=0.1, warmup=1):
        weight = net.weight.detach().clone()
        expected = weight if report.step == 1 else decay * expected + (1 - decay) * weight
        torch.testing.assert_close(weight_of(average), expected, rtol=1e-6, atol=0)


def test_reports_come_step_by_step_and_may_be_abandoned() -> None:
    net, average = problem()
    before = net.weight.detach().clone()
    reports = train(net, average, batch, fit_a_line, steps=100, learning_rate=0.1, warmup=1)
    assert torch.equal(net.weight, before), "nothing happens before the first report is asked for"
    first = next(reports)
    assert isinstance(first, Report)
    after = net.weight.detach().clone()
    reports.close()  # type: ignore[attr-defined]
    assert torch.equal(net.weight, after)
    assert not torch.equal(after, before)


def test_schedule_rises_peaks_and_falls_to_zero() -> None:
    rates = [schedule(step, 100, 10) for step in range(1, 101)]
    assert rates[0] < 0.11
    assert max(rates) == rates[9] > 0.97
    assert all(a <= b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert 0 < rates[-1] < 1e-3


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights() -> None:
    net, average = problem()
    calls = 0

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return fit_a_line(net, batch) * (float("nan") if calls == 3 else 1.0)

    reports = train(net, average, batch, loss, steps=10, learning_rate=0.1, warmup=1)
    next(reports), next(reports)
    good = net.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="step 3"):
        next(reports)
    assert torch.equal(net.weight, good)


def test_the_first_interrupt_is_a_wish_and_the_second_an_order() -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt_twice(asked: list[bool]) -> None:
        with interruptible() as asked_to_stop:
            asked.append(asked_to_stop())
            os.kill(os.getpid(), signal.SIGINT)
            asked.append(asked_to_stop())
            os.kill(os.getpid(), signal.SIGINT)

    asked: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice(asked)
    assert asked == [False, True]
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_it_asks_for_nothing() -> None:
    asked: list[bool] = []

    def work() -> None:
        with interruptible() as asked_to_stop:
            asked.append(asked_to_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
