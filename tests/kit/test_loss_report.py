"""What a report says: measured facts, guessed calls, clear errors, expected failures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from meanflow_ref.cli import main
from meanflow_ref.errors import MeanFlowError, NetworkError, NonFiniteError, ParameterError
from meanflow_ref.kit.loss.check import check_loss
from meanflow_ref.kit.mutants.composer import Recipe
from meanflow_ref.kit.mutants.losses import guided_stacked, huber, predicts_data, single
from meanflow_ref.kit.names import LOSS_CHECKS
from meanflow_ref.objectives.meanflow import meanflow_loss


def right(net: Any, x: Tensor) -> Tensor:
    """The library's own loss, tested against exact truth elsewhere: an independent witness."""
    pair = torch.rand(len(x), 2, dtype=x.dtype).sort(1).values
    r = torch.where(torch.rand(len(x)) < 0.5, pair[:, 1], pair[:, 0])
    return meanflow_loss(net, x, torch.randn_like(x), r, pair[:, 1], weight_power=0.75, weight_eps=0.01).loss


def test_facts_of_the_reference_loss() -> None:
    report = check_loss(right)
    assert (report.verdict, report.formula, report.diagnoses) == ("correct", "meanflow", ())
    m = report.measured
    assert m["call_guessed"] == "z, r, t"
    assert m["weight_power"] == pytest.approx(0.75, abs=1e-3)
    assert m["weight_eps"] == pytest.approx(0.01, rel=1e-3)
    assert (m["reduction"], m["engine"], m["passes"], m["network_calls"]) == ("sum", "stop-gradient JVP", 1, 1)
    assert m["equal_share"] == pytest.approx(0.5, abs=0.12)
    assert m["replay_error"] < 1e-6
    assert m["margin"] > 1e3
    assert [check.name for check in report.checks] == list(LOSS_CHECKS)


def library_loss(net: Any, x: Tensor) -> Tensor:
    """This library's own loss with its default engine, in the hands of a user; r = 0 in every row."""
    t = torch.rand(len(x), dtype=x.dtype)
    return meanflow_loss(net, x, torch.randn_like(x), torch.zeros_like(t), t, weight_power=0.0).loss


def test_the_stop_gradient_jvp_is_seen_with_its_tangents_and_the_users_line() -> None:
    report = check_loss(library_loss)
    assert report.ok
    assert (report.measured["engine"], report.measured["call_guessed"]) == ("stop-gradient JVP", "z, r, t")
    wheres = [found.where for found in report.diagnoses if found.where]
    assert wheres
    assert all("test_loss_report.py" in where for where in wheres)


@pytest.mark.parametrize(
    ("recipe", "facts"),
    [
        (Recipe(engine="forward_ad"), {"engine": "forward AD"}),
        (Recipe(engine="double_backward"), {"engine": "double backward"}),
        (Recipe(engine="difference"), {"engine": "finite difference", "network_calls": 3}),
        (Recipe(engine="two_pass"), {"passes": 2}),
        (Recipe(path="reversed"), {"path": "linear", "time": "data_at_one"}),
        (Recipe(path="scaled"), {"data_scale": 2.0, "data_offset": -1.0}),
        (Recipe(path="trigonometric"), {"path": "trigonometric"}),
        (Recipe(path="sigma_min"), {"sigma_min": 0.01}),
        (Recipe(reduction="mean", power=0.5), {"reduction": "mean", "weight_power": 0.5}),
        (Recipe(omega=2.0, kappa=0.5), {"guidance_omega": 2.0, "guidance_kappa": 0.5, "guidance_scale": 4.0}),
    ],
    ids=str,
)
def test_facts(recipe: Recipe, facts: dict[str, Any]) -> None:
    report = check_loss(recipe.build(), recipe.spec, shape=(2, 3, 5), labels=recipe.guided)
    assert report.ok
    assert {key: report.measured[key] for key in facts} == pytest.approx(facts)


@pytest.mark.parametrize("call", ["z, r, t", "z, t, r", "z, t, h", "z, (t, h)", "x=z, start=r, end=t", "z, t, -h"])
def test_the_call_is_guessed(call: str) -> None:
    report = check_loss(Recipe(call=call).build())
    assert report.measured["call_guessed"] == call
    assert report.verdict == "correct"


@pytest.mark.parametrize("told", [None, "z, (t, r)"])
def test_two_times_in_one_tensor(told: str | None) -> None:
    """``net(z, torch.stack([t, r], 1))``, guessed and told; and with r and t mixed up inside."""

    def stacked(net: Any, mixed_up: bool) -> Any:
        def inner(z: Tensor, r: Tensor, t: Tensor) -> Any:
            return net(z, torch.stack([r, t] if mixed_up else [t, r], 1))

        return inner

    report = check_loss(lambda net, x: right(stacked(net, False), x), told)
    assert report.verdict == "correct"
    assert report.measured.get("call_guessed", told) == "z, (t, r)"
    # Told that t comes first, the check finds a derivative along the wrong one.
    assert check_loss(lambda net, x: right(stacked(net, True), x), "z, (t, r)").verdict == "wrong"


def test_formulas_and_notes() -> None:
    assert check_loss(predicts_data).formula == "meanflow (x-prediction)"
    assert check_loss(huber).diagnoses[0].severity == "note"
    assert check_loss(single).measured["tangent_dtype"] == "float32"
    assert [one.name for one in check_loss(Recipe(path="reversed").build()).diagnoses] == ["TIME_REVERSED"]
    assert "REDUCTION_MEAN" in {one.name for one in check_loss(Recipe(reduction="mean", power=0.5).build()).diagnoses}
    assert check_loss(guided_stacked).measured["guidance_scale"] == pytest.approx(2.0)


def shuffled(net: Any, x: Tensor) -> Tensor:
    """Data that are coupled to each other: no path of one datum."""
    return right(net, x + x.flip(0) * x.roll(1, 0))


def test_what_cannot_be_measured_is_not_passed() -> None:
    report = check_loss(shuffled, "z, r, t")
    assert report.verdict == "inconclusive"
    assert not report.ok
    assert report.diagnoses[-1].name == "INCONCLUSIVE"
    assert report.diagnoses[-1].observed


def test_an_expected_failure_needs_a_reason_and_must_show() -> None:
    wrong = Recipe(bug="plus sign").build()
    report = check_loss(wrong, xfail={"INTERVAL_SIGN": "our u points the other way"})
    assert report.ok
    assert "our u points the other way" in report.diagnoses[0].cause
    stale = check_loss(right, xfail={"INTERVAL_SIGN": "fixed since"})
    assert stale.verdict == "wrong"
    assert "remove the xfail" in stale.checks[-1].detail
    with pytest.raises(ParameterError, match="no reason"):
        check_loss(right, xfail={"INTERVAL_SIGN": " "})
    with pytest.raises(ParameterError, match="INTERVAL_SIGN"):
        check_loss(right, xfail={"INTERVAL_SIGNS": "typo"})


# ---------------------------------------------------------------- bad input


def test_a_loss_that_raises() -> None:
    def loss(net: Any, x: Tensor) -> Tensor:
        raise ValueError("no such key: latents")

    with pytest.raises(ParameterError, match="no such key: latents"):
        check_loss(loss)


def test_a_loss_that_never_calls_its_network() -> None:
    with pytest.raises(NetworkError, match="never calls"):
        check_loss(lambda net, x: x.sum())


def test_a_loss_that_is_nan() -> None:
    with pytest.raises(NonFiniteError, match="nan"):
        check_loss(lambda net, x: right(net, x) * float("nan"), "z, r, t")


def test_a_loss_that_cannot_be_seeded() -> None:
    generator = torch.Generator().manual_seed(0)

    def loss(net: Any, x: Tensor) -> Any:
        t = torch.rand(len(x), generator=generator, dtype=x.dtype)
        return (net(x, 0 * t, t) ** 2).mean()

    with pytest.raises(NetworkError, match="generator"):
        check_loss(loss, "z, r, t")


def on_meta(net: Any, x: Tensor) -> Any:
    """A loss with a device of its own; the meta device is another one on every machine."""
    x = x.to("meta")
    r, t = torch.rand(2, len(x), dtype=x.dtype, device="meta").sort(0).values
    v = torch.randn_like(x) - x
    z = x + t[:, None] * v
    return (net(z, r, t) - v).square().mean()


def result_on_meta(net: Any, x: Tensor) -> Tensor:
    """Only what it returns lies elsewhere."""
    return right(net, x).to("meta")


@pytest.mark.parametrize("loss", [on_meta, result_on_meta])
@pytest.mark.parametrize("call", [None, "z, r, t"])
def test_a_loss_that_moves_its_data(loss: Any, call: str | None) -> None:
    with pytest.raises(NetworkError, match=r"moves its data to meta; .*CPU"):
        check_loss(loss, call)


def test_a_loss_that_moves_its_data_ends_with_2_and_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{__file__}:on_meta"]) == 2
    said = capsys.readouterr().err.strip()
    assert "moves its data to meta" in said
    assert "device=x.device" in said
    assert "Traceback" not in said
    assert "\n\n" not in said


def test_an_attribute_that_the_probe_lacks() -> None:
    def loss(net: Any, x: Tensor) -> Any:
        return right(net, x) * net.loss_scale

    with pytest.raises(NetworkError, match="loss_scale"):
        check_loss(loss)
    assert check_loss(loss, attributes={"loss_scale": 1.0}).ok


def test_a_call_that_does_not_fit() -> None:
    with pytest.raises(NetworkError, match="call="):
        check_loss(right, "z, (t, h)")
    with pytest.raises(ParameterError, match="z, r, t"):
        check_loss(right, "z, r, q")


def test_options_out_of_range() -> None:
    with pytest.raises(MeanFlowError):
        check_loss(right, equal_share=1.5)
    with pytest.raises(MeanFlowError):
        check_loss(right, oracle=99)
    with pytest.raises(MeanFlowError):
        check_loss("right")  # type: ignore[arg-type]
