"""Masked data: what the mask drops must not be learned from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from meanflow_ref.cli import main
from meanflow_ref.errors import ParameterError
from meanflow_ref.kit.loss.check import check_loss
from meanflow_ref.kit.loss.masked import mask_of


def error_of(net: Any, x: Tensor) -> Tensor:
    """Squared error of MeanFlow by element."""
    pair = torch.rand(len(x), 2, dtype=x.dtype).sort(1).values
    r, t = torch.where(torch.rand(len(x)) < 0.5, pair[:, 1], pair[:, 0]), pair[:, 1]
    r_, t_, eps = r[:, None, None], t[:, None, None], torch.randn_like(x)
    z, v = (1 - t_) * x + t_ * eps, eps - x
    pushed: Any = jvp(net, (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    u, du_dt = pushed
    error: Tensor = torch.square(u - (v - (t_ - r_) * du_dt).detach())
    return error


def masked(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The mask where it belongs."""
    return ((error_of(net, x) * mask).flatten(1).sum(1) / mask.expand_as(x).flatten(1).sum(1)).mean()


def masked_late(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The mask after the scalar: every element counts."""
    return (error_of(net, x).mean() * mask).sum() / mask.sum()


def forgotten(net: Any, x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """A mask that is taken and not used."""
    return error_of(net, x).mean()


MASK = (1, 5)


def test_masked_elements_are_left_out() -> None:
    report = check_loss(masked, mask=MASK, shape=(4, 5))
    assert report.ok
    assert report.measured["gradient_of_masked"] == 0
    assert report.formula == "meanflow"


@pytest.mark.parametrize("loss", [masked_late, forgotten])
def test_masked_elements_that_count_are_seen(loss: Any) -> None:
    report = check_loss(loss, mask=MASK, shape=(4, 5))
    assert report.verdict == "wrong"
    (found,) = [one for one in report.diagnoses if one.severity == "wrong"]
    assert found.name == "UNKNOWN_FORMULA"
    assert "at elements that the mask drops" in found.observed
    assert "test_loss_masked.py" in found.where
    # Three elements of five are dropped, and no other loss is wrong in anything else.
    assert 0.3 < report.measured["gradient_of_masked"] < 0.9


def test_a_mask_drops_some_and_keeps_some_in_every_row() -> None:
    for shape in ((5,), (1, 5), (2,), (4, 5)):
        kept = mask_of(24, shape).flatten(1).sum(1)
        assert int(kept.min()) >= 1
        assert bool((kept < mask_of(24, shape)[0].numel()).all())
    assert mask_of(4, (1, 1)).flatten().tolist() == [True, False, True, False]


def test_a_mask_of_another_shape_is_said() -> None:
    with pytest.raises(ParameterError, match=r"mask=\(3,\) does not broadcast against a datum of shape \(4, 5\)"):
        check_loss(lambda net, x, mask: error_of(net, x).mean(), mask=(3,), shape=(4, 5))


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    here = "tests.kit.test_loss_masked"
    assert main(["check", f"{here}:masked", "--mask", "1,5", "--shape", "4,5", "--call", "z, r, t"]) == 0
    assert main(["check", f"{here}:masked_late", "--mask", "1,5", "--shape", "4,5", "--call", "z, r, t"]) == 1
    assert "at elements that the mask drops" in " ".join(capsys.readouterr().out.split())
