"""The shipped losses as ``python -m proofs`` proves them, and that a wrong one among them would be seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meanflow_ref.jvp import BACKENDS
from meanflow_ref.objectives.meanflow import meanflow_loss
from proofs import ProofError, traced
from proofs.__main__ import main


def test_the_list_has_every_engine_with_one_pass_and_two() -> None:
    ids = [row.id for row in traced.shipped()]
    assert len(ids) == len(set(ids)) >= 30
    for backend in BACKENDS:
        for passes in ("one-pass", "two-pass"):
            (row,) = traced.shipped((f"{backend}-{passes}".replace("_", "-"),))
            assert row.verdict == ("REFUTED" if backend == "finite_difference" else "PROVED")


def test_a_right_loss_and_no_derivative(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--losses", "func-one-pass", "finite-difference-one-pass"]) == 0
    out = capsys.readouterr().out
    assert "1 shipped losses proved, value and gradient; 1 by finite differences refuted" in out


def test_a_wrong_loss_fails_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = traced.shipped(("func-one-pass",))
    leaking = replace(row, loss=lambda net, *inputs: meanflow_loss(net, *inputs).squared_error.square().mean())
    monkeypatch.setattr(traced, "shipped", lambda names=(): (leaking,))
    assert main(["--losses"]) == 1
    assert "Failing: func-one-pass" in capsys.readouterr().out
    # Nor does the right verdict do for another formula than the row says.
    assert not traced.prove(replace(row, says="guided")).ok


def test_list_and_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--losses", "--list"]) == 0
    assert "guided-interval" in capsys.readouterr().out
    assert main(["--losses", "fnuc"]) == 2
    with pytest.raises(ProofError, match="no shipped loss"):
        traced.shipped(("fnuc",))


@pytest.mark.slow
def test_every_shipped_loss() -> None:
    assert [result.shipped.id for result in traced.run() if not result.ok] == []
