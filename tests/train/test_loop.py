"""The loop on a problem whose answer is known, its schedule, its guard, and a polite Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.errors import NonFiniteError
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss
from meanflow_ref.train.batches import Batch
from meanflow_ref.train.checkpoint import load_tensors
from meanflow_ref.train.config import Config
from meanflow_ref.train.distributed import Ranks
from meanflow_ref.train.interrupt import interruptible
from meanflow_ref.train.loop import Report, schedule, train
from meanflow_ref.train.objective import Step
from meanflow_ref.train.presets import preset
from meanflow_ref.train.state import State, make_state

ALONE = Ranks(0, 1, torch.device("cpu"))


class Line(nn.Module):
    """``u = a z + b``, which has a closed answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        u: Tensor = self.layer(z)
        return u


def problem(**changes: Any) -> tuple[State, Config]:
    options: dict[str, Any] = {"steps": 400, "learning_rate": 0.1, "warmup": 10, "ema": 0.0, "batch": 8}
    config = preset("toy", **(options | changes))
    torch.manual_seed(0)
    net = Line()
    return make_state(config, net, Step(net, config, None, None), ALONE), config


def batch(step: int, part: int) -> Batch:
    """Rows with r = t = 1/2 and noise ``(3 z - 1 + x)``: then z = (x + eps)/2 and v = eps - x = 3 z - 1 exactly."""
    z = torch.linspace(-1, 1, 8)[:, None]
    half = torch.full((8,), 0.5)
    v = 3 * z - 1
    return Batch(z - v / 2, z + v / 2, half, half, None)


def reports(state: State, config: Config, folder: Path, draw: Any = batch) -> Any:
    return train(state, draw, config, ALONE, evidence=folder)


def weight(state: State) -> Tensor:
    assert isinstance(state.net, Line)
    return state.net.layer.weight


def averaged_weight(state: State) -> Tensor:
    net = state.average.module
    assert isinstance(net, Line)
    return net.layer.weight


def test_it_finds_the_known_line(tmp_path: Path) -> None:
    state, config = problem()
    done = list(reports(state, config, tmp_path))
    assert [report.step for report in done] == list(range(1, 401))
    assert done[-1].raw_loss < 1e-6
    assert done[-1].equal_loss == pytest.approx(done[-1].raw_loss)
    assert done[-1].tangent_ratio == 0
    assert weight(state).item() == pytest.approx(3, abs=1e-3)
    # Decay 0: the average is the last network.
    assert torch.equal(averaged_weight(state), weight(state))


def test_the_average_is_the_recursion(tmp_path: Path) -> None:
    state, config = problem(ema=0.9, steps=20)
    expected = torch.empty(0)
    for report in reports(state, config, tmp_path):
        now = weight(state).detach().clone()
        expected = now if report.step == 1 else 0.9 * expected + 0.1 * now
        torch.testing.assert_close(averaged_weight(state), expected, rtol=1e-6, atol=0)


def test_reports_come_step_by_step_and_may_be_abandoned(tmp_path: Path) -> None:
    state, config = problem()
    before = weight(state).detach().clone()
    going = reports(state, config, tmp_path)
    assert torch.equal(weight(state), before), "nothing happens before the first report is asked for"
    assert isinstance(next(going), Report)
    after = weight(state).detach().clone()
    going.close()
    assert state.step == 1
    assert torch.equal(weight(state), after)
    assert not torch.equal(after, before)


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path) -> None:
    def halves(step: int, part: int) -> Batch:
        return Batch(*(None if x is None else x[4 * part : 4 * part + 4] for x in batch(step, 0)))  # type: ignore[arg-type]

    whole, config = problem(steps=5)
    parts, cut = problem(steps=5, accumulate=2)
    losses = [report.raw_loss for report in reports(whole, config, tmp_path)]
    assert [report.raw_loss for report in reports(parts, cut, tmp_path, halves)] == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(weight(parts), weight(whole), rtol=1e-5, atol=0)


def test_clipping_scales_the_gradient_and_reports_it_unscaled(tmp_path: Path) -> None:
    # SGD would show it plainly; Adam's first step does not depend on the scale, so the gradient itself is looked at.
    state, config = problem(steps=1, clip=0.01)
    (report,) = reports(state, config, tmp_path)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in state.net.parameters() if p.grad is not None))
    assert report.gradient_norm > 0.1
    assert norm == pytest.approx(0.01, rel=1e-5)


def test_schedule_rises_peaks_and_falls_to_zero() -> None:
    config = preset("toy", steps=100, warmup=10)
    rates = [schedule(step, config) for step in range(1, 101)]
    assert rates[0] < 0.11
    assert max(rates) == rates[9] > 0.97
    assert all(a <= b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert 0 < rates[-1] < 1e-3
    constant = preset("toy", steps=100, warmup=10, decay="constant")
    assert schedule(1, constant) == 0.1
    assert schedule(100, constant) == 1
    assert schedule(1, preset("imagenet-b4")) == 1


# ---------------------------------------------------------------- trouble


def poisoned(at: int, value: float) -> Any:
    """Batches whose row 5 is ``value`` at one step; the loss's own checks of its input are not asked."""

    def draw(step: int, part: int) -> Batch:
        b = batch(step, part)
        if step == at:
            b.x[5] = value
        return b

    return draw


def unchecked(net: Any, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, **options: Any) -> MeanFlowTerms:
    """An objective of somebody else, which does not look at its input: r = t rows by hand."""
    terms = meanflow_loss(net, torch.zeros_like(x), torch.zeros_like(eps), r, t, **options)
    u = net((x + eps) / 2, r, t)
    error = (u - (eps - x)).square().flatten(1).sum(1)
    return terms._replace(loss=error.mean(), per_sample=error, squared_error=error, u=u, target=eps - x)


def test_a_nan_stops_with_the_last_good_weights_and_the_evidence(tmp_path: Path) -> None:
    state, config = problem(objective="test_loop:unchecked")
    going = reports(state, config, tmp_path, poisoned(3, float("nan")))
    next(going), next(going)
    good = weight(state).detach().clone()
    with pytest.raises(NonFiniteError, match=r"step 3: the loss is not finite.*row 5, module layer"):
        next(going)
    assert torch.equal(weight(state), good)
    (place,) = tmp_path.iterdir()
    kept = load_tensors(place / "batch.safetensors")
    assert bool(kept["x"][5].isnan().all())
    assert {"eps", "r", "t", "squared_error", "u", "target"} <= set(kept)
    note = json.loads((place / "trouble.json").read_text())
    assert (note["step"], note["row"], note["module"]) == (3, 5, "layer")
    assert note["generators"]["seed"] == config.seed
    assert note["config"] == json.loads(json.dumps(config.to_dict()))


def test_a_nan_is_skipped_when_told_and_counted(tmp_path: Path) -> None:
    state, config = problem(steps=5, on_trouble="skip", objective="test_loop:unchecked")
    done = list(reports(state, config, tmp_path, poisoned(3, float("nan"))))
    assert [report.skipped for report in done] == [False, False, True, False, False]
    assert math.isfinite(weight(state).item())
    assert state.skipped == 0


def test_too_many_skips_stop(tmp_path: Path) -> None:
    def always(step: int, part: int) -> Batch:
        return poisoned(step, float("nan"))(step, part)  # type: ignore[no-any-return]

    state, config = problem(steps=50, on_trouble="skip", most_skips=3, objective="test_loop:unchecked")
    with pytest.raises(NonFiniteError, match="step 4"):
        list(reports(state, config, tmp_path, always))


def test_a_spike_is_seen_and_an_ordinary_batch_is_not(tmp_path: Path) -> None:
    for value, spike in ((1e4, True), (1.5, False)):
        state, config = problem(steps=130, spike=20.0, learning_rate=1e-4, objective="test_loop:unchecked")
        going = reports(state, config, tmp_path / str(spike), poisoned(120, value))
        if spike:
            with pytest.raises(NonFiniteError, match=r"step 120: a spike of .* medians.*row 5"):
                list(going)
        else:
            assert len(list(going)) == 130


# ---------------------------------------------------------------- signals


def test_the_first_interrupt_is_a_wish_and_the_second_an_order() -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt_twice(asked: list[int]) -> None:
        with interruptible() as asked_to_stop:
            asked.append(asked_to_stop())
            os.kill(os.getpid(), signal.SIGINT)
            asked.append(asked_to_stop())
            os.kill(os.getpid(), signal.SIGINT)

    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice(asked)
    assert asked == [0, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_is_a_wish() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as asked_to_stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked_to_stop() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_it_asks_for_nothing() -> None:
    asked: list[int] = []

    def work() -> None:
        with interruptible() as asked_to_stop:
            asked.append(asked_to_stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [0]
