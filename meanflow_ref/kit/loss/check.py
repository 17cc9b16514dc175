"""``check_loss``: measure somebody's loss, judge it, say what is wrong and where."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from meanflow_ref.convention.grammar import parse_call, parse_returns
from meanflow_ref.errors import NetworkError, ParameterError
from meanflow_ref.kit.calling import describe, require_callable
from meanflow_ref.kit.diagnosis import ORACLE, CheckResult, Report
from meanflow_ref.kit.expect import apply_xfail
from meanflow_ref.kit.finding import conclude, finding
from meanflow_ref.kit.loss.formula import (
    Judgement,
    is_x_prediction,
    judge_guidance,
    judge_path,
    judge_target,
    judge_velocity,
)
from meanflow_ref.kit.loss.gradient import derivative_leak, leak_of, masks_of
from meanflow_ref.kit.loss.guess import fit_data, guess_call, with_spec
from meanflow_ref.kit.loss.masked import Masked, judge_mask, takes_labels
from meanflow_ref.kit.loss.measure import Measured, measure
from meanflow_ref.kit.loss.numerics import clipping, replay
from meanflow_ref.kit.loss.probe import Setting
from meanflow_ref.kit.loss.run import Target, run
from meanflow_ref.kit.loss.seen_times import judge_times
from meanflow_ref.kit.loss.weight import WeightFit, fit_weight
from meanflow_ref.kit.names import LOSS_CHECKS

# A loss that could not be measured here is not passed.
ESSENTIAL = {"path", "velocity", "tangent", "target", "weight"}


def make_target(
    loss: Callable[..., Any],
    call: str | None = None,
    *,
    returns: str | None = None,
    shape: tuple[int, ...] | None = None,
    labels: bool | None = None,
    attributes: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Target, dict[str, Any]]:
    """A loss ready to be measured, and what was guessed: the call, the outputs, the shape of the data."""
    require_callable(loss, "the loss", "loss(model, x) or loss(model, x, labels)")
    names, is_tuple = parse_returns(returns) if returns else (("u",), False)
    wanted = None if returns is None else (len(names) if is_tuple else 1)
    target, outputs, recorder = fit_data(loss, shape, labels, dtype, attributes or {}, seed, wanted)
    if returns is None and outputs == 2:
        names, is_tuple = ("u", "v"), True
    facts: dict[str, Any] = {"shape": list(target.event)}
    if call is None:
        spec, text = guess_call(target, outputs, recorder)
        facts["call_guessed"] = text
    else:
        spec = parse_call(call)
    if returns is None and is_tuple:
        facts["returns_guessed"] = "u, v"
    return with_spec(target, spec, names, is_tuple), facts


def check_loss(
    loss: Callable[..., Any],
    call: str | None = None,
    *,
    returns: str | None = None,
    shape: tuple[int, ...] | None = None,
    labels: bool | None = None,
    mask: tuple[int, ...] | None = None,
    attributes: Mapping[str, Any] | None = None,
    equal_share: float | None = None,
    weight_power: float | None = None,
    dropout: bool = False,
    xfail: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    oracle: int = ORACLE,
) -> Report:
    r"""Whether a MeanFlow loss is right, and what is wrong with it, measured from outside.

    The kit supplies the network and a batch, seeds the global generators and measures what the loss does. The target of
    a correct loss is

    .. math:: u_{\mathrm{tgt}} = v - (t-r)\,(v\,\partial_z u + \partial_t u)

    Source: mf:10, mf:11, mf:22.

    Args:
        loss: ``loss(model, x)`` or ``loss(model, x, labels)``; returns the loss, a tuple that starts with it, or a dict.
        call: How the loss calls its network, as in :class:`meanflow_ref.Convention`; guessed if not given.
        returns: What the network returns, ``"u"`` or ``"u, v"``; guessed if not given.
        shape: Shape of one datum; a few are tried if not given.
        labels: Whether the loss takes labels; by its signature if not given.
        mask: For ``loss(model, x, mask)`` or ``loss(model, x, labels, mask)``: shape of one datum's mask, bool and true
            where the data count, such as ``(1, 5)``; elements that it drops must have no gradient.
        attributes: What else the loss asks its network for, by name.
        equal_share: P(r = t) as it is meant to be, in [0, 1].
        weight_power: Adaptive weight's power as it is meant to be.
        dropout: Whether the network that will be trained has random layers; two passes must then draw alike.
        xfail: Diagnoses that are expected, each with its reason; one that does not show is a failure.
        dtype: Of the data.
        seed: Of the batch and the loss's own draws.
        oracle: Number of the frozen set of checks.

    Returns:
        :class:`meanflow_ref.kit.diagnosis.Report`.

    Raises:
        NetworkError: If the network is not called, or in another way than ``call`` says, or without a seedable draw.
        NonFiniteError: If the loss is not finite.
        ParameterError: If the loss raises, an option cannot be read, or the call cannot be guessed.

    """
    start = time.perf_counter()
    if oracle != ORACLE:
        raise ParameterError(f"oracle={oracle!r}.", f"one that this version has: {ORACLE}", "")
    if equal_share is not None and not 0 <= equal_share <= 1:
        raise ParameterError(f"equal_share={equal_share!r}.", "the probability of r = t, in [0, 1]", "")
    taken = loss
    if mask is not None:
        require_callable(loss, "the loss", "loss(model, x, mask) or loss(model, x, labels, mask)")
        labels = takes_labels(loss) if labels is None else labels
        taken = Masked(loss, tuple(mask))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        target, guessed = make_target(
            taken, call, returns=returns, shape=shape, labels=labels, attributes=attributes, dtype=dtype, seed=seed
        )
        out = Judgement(facts=guessed)
        detached = _trained(target, out)
        margin = None if detached else _judge(target, out, equal_share, weight_power, dropout)
        if mask is not None and not detached:
            judge_mask(target, out)
    finally:
        torch.set_num_threads(before)
    report = _report(describe(loss), out, margin, time.perf_counter() - start)
    return apply_xfail(report, xfail or {})


def _trained(target: Target, out: Judgement) -> bool:
    """Record PREDICTION_DETACHED if the loss has no gradient at the network's output."""
    trace = run(target, Setting(tanh=True))
    if trace.mains:
        return False
    through = derivative_leak(trace)
    seen = "the target has a gradient and the prediction none" if through > 1e-9 else "no gradient reaches the network"
    out.find("prediction", "PREDICTION_DETACHED", seen, "dL/du at the prediction", trace.calls[-1].where)
    return True


def _judge(
    target: Target, out: Judgement, equal_share: float | None, weight_power: float | None, dropout: bool
) -> float | None:
    m = measure(target)
    has_r = len({"r", "h", "-h"} & set(target.spec.letters)) > 0
    _facts(m, out)
    _untrained_rows(m, out)
    omega = judge_path(m, out)
    known = omega is not None
    omega = torch.ones_like(m.t) if omega is None else omega
    if not is_x_prediction(m, out):
        good = judge_velocity(m, omega, out) if known else True
        if good or not known:
            judge_target(m, omega, out)
            judge_guidance(m, omega, out)
        elif any(d.name == "VELOCITY_SIGN" for d in out.diagnoses):
            judge_target(m, omega, out)
    _gradients(m, out, dropout)
    _weight(m, out, weight_power)
    margin = _numerics(m, out, omega)
    judge_times(m, out, equal_share, has_r)
    return margin


def _facts(m: Measured, out: Judgement) -> None:
    call = m.derivative_call()
    engine = call.engine if call else ""
    beside = [k for k, main in m.layout.near.items() if main is not None and k not in m.layout.mains]
    if not engine and any(not torch.equal(m.trace.calls[k].z, m.trace.calls[m.layout.near[k]].z) for k in beside):  # type: ignore[index]
        engine = "finite difference"
    separate = any(m.trace.calls[k].engine for k in beside)
    out.facts |= {
        "engine": engine or "none", "network_calls": m.layout.calls, "passes": 2 if separate else 1,
        "tangent_dtype": str(call.dtype if call else m.main.dtype).removeprefix("torch."),
        "returns_per_sample": m.trace.per_sample, "line": call.where if call else m.main.where,
    }  # fmt: skip


def _untrained_rows(m: Measured, out: Judgement) -> None:
    """Rows with an interval that the loss evaluates and does not train."""
    calls = m.trace.calls
    evaluated = any(
        bool((call.t - call.r).abs().gt(0.02).any()) and not call.engine
        for k, call in enumerate(calls) if m.layout.near[k] is not None
    )  # fmt: skip
    if evaluated and not bool(m.long.any()) and all(calls[k].rows == calls[0].rows for k in m.layout.mains):
        out.find(
            "prediction", "PREDICTION_DETACHED", "rows with r != t have no gradient at the prediction",
            "dL/du on every row", m.main.where,
        )  # fmt: skip
    else:
        out.details["prediction"] = f"{len(m.layout.units)} rows have a gradient"


def _gradients(m: Measured, out: Judgement, dropout: bool) -> None:
    leak = leak_of(m)
    out.facts["leak"] = float(f"{leak.size:.3g}")
    call = m.derivative_call()
    where = call.where if call else m.main.where
    if leak.size > 1e-6 + m.tolerance / 10:
        out.find(
            "stop-gradient", "TARGET_NOT_DETACHED", f"{leak.size:.2g} of the gradient flows {leak.way}",
            "0: the target behind .detach()", where,
        )  # fmt: skip
    else:
        out.details["stop-gradient"] = f"leak {leak.size:.0e}"
    masks = masks_of(m)
    if masks.differ:
        out.find(
            "dropout", "DROPOUT_MISMATCH", "random layers draw other numbers in the derivative than in the prediction",
            "the same numbers in both passes", where, severity="wrong" if dropout else "note",
        )  # fmt: skip
    else:
        out.details["dropout"] = (
            "one pass"
            if not masks.two_passes
            else "two passes, " + ("the derivative in eval mode" if masks.eval_mode else "the same draws")
        )


def _weight(m: Measured, out: Judgement, wanted: float | None) -> None:
    fit = fit_weight(m)
    where = m.main.where
    size = m.z.shape[1]
    if fit.family is None:
        out.unmeasured["weight"] = f"the weight follows no known law (best misfit {fit.misfit:.1g})"
        return
    if fit.family in {"power", "attached", "squared twice", "norm"}:
        out.facts |= {
            "weight_power": round(fit.power, 4), "weight_eps": float(f"{fit.eps:.4g}"), "reduction": fit.reduction,
            "weight_detached": fit.detached or abs(fit.power) < 1e-3,
        }  # fmt: skip
    out.details["weight"] = f"{fit.family}, p = {fit.power:.3g}, c = {fit.eps:.3g}, {fit.reduction}"
    _name_weight(out, fit, wanted, where, size)


def _name_weight(out: Judgement, fit: WeightFit, wanted: float | None, where: str, size: int) -> None:
    if fit.family == "batch":
        out.find("weight", "WEIGHT_BATCH_COUPLED", "the gradient of a row depends on the error of the others",
                 "one weight a row, of that row alone", where)  # fmt: skip
    elif fit.family == "per element" and fit.detached:
        out.find("weight", "WEIGHT_PER_ELEMENT", "the weight differs between the elements of a row",
                 "one weight a row, of its summed squared error", where)  # fmt: skip
    elif fit.family == "per element":
        out.find("weight", "WEIGHT_PER_ELEMENT", "a metric that is not the squared norm (L1, Huber): its minimiser is no mean",
                 "the squared norm", where, severity="note")  # fmt: skip
    elif fit.family == "squared twice":
        out.find("weight", "WEIGHT_SQUARED_TWICE", f"the squared norm S enters as S^2 / (S^2 + c)^p, p = {fit.power:.3g}: "
                 f"far above c that is power {2 * fit.power - 1:.3g}", "S / (S + c)^p", where)  # fmt: skip
    elif fit.family == "norm":
        out.find("weight", "WEIGHT_POWER", f"the weight is (|u - target| + c)^-{fit.power:.3g}, of the norm and not its square",
                 "(|u - target|^2 + c)^-p", where)  # fmt: skip
    elif fit.family == "attached":
        weak = fit.power < 0.999
        out.find("weight", "WEIGHT_NOT_DETACHED", f"the weight has a gradient (p = {fit.power:.3g})",
                 "the weight behind .detach()", where, severity="note" if weak else "wrong")  # fmt: skip
    elif fit.power < -1e-3:
        out.find("weight", "WEIGHT_POWER", f"the weight grows with the error: power {fit.power:.3g}",
                 "(S + c)^-p with p >= 0", where)  # fmt: skip
    if wanted is not None and fit.family == "power" and abs(fit.power - wanted) > 1e-2:
        out.find("weight", "WEIGHT_POWER", f"p = {fit.power:.4g}", f"p = {wanted:.4g}, as asked for", where)
    if fit.reduction == "mean":
        out.find("weight", "REDUCTION_MEAN", f"mean over the {size} elements: c acts as {size} c of the summed norm",
                 "the sum, as in the paper", where, severity="note")  # fmt: skip


def _numerics(m: Measured, out: Judgement, omega: Tensor) -> float | None:
    lost = clipping(m)
    where = m.main.where
    if lost is None:
        out.unmeasured["clipping"] = "the loss does not run on values 200 times larger, or its weight is no scalar"
    elif lost > 0.01:
        out.find(
            "clipping", "TARGET_CLIPPED", f"{100 * lost:.0f} % of the target is cut off far out", "no clamp", where
        )
    else:
        out.details["clipping"] = f"linear to 200 times the data ({lost:.0e})"
    call = m.derivative_call()
    if call is not None and call.dtype in {torch.bfloat16, torch.float16}:
        out.find("precision", "TARGET_LOW_PRECISION", f"the derivative runs in {out.facts['tangent_dtype']}",
                 "the derivative in float32", call.where)  # fmt: skip
        return None
    if any(d.severity == "wrong" and d.name not in _REPLAYED_ALL_THE_SAME for d in out.diagnoses):
        out.unmeasured["precision"] = "the formula is wrong already"
        return None
    if call is not None and call.autocast:
        # Autocast leaves double precision alone: look again in single.
        single = measure(replace(m.target, dtype=torch.float32))
        seen = replay(single, out, torch.ones_like(single.t)) if not m.reads else None
    else:
        seen = replay(m, out, omega)
    if seen is None:
        out.unmeasured["precision"] = f"no replay for {out.formula or 'this formula'}"
        return None
    out.facts |= {
        "replay_error": float(f"{seen.error:.2g}"),
        "nearest_bug": seen.nearest_name,
        "nearest_bug_error": float(f"{seen.nearest:.2g}"),
    }
    worst = max(seen.error, *(out.errors or [0.0]), 1e-17)
    margin = seen.nearest / worst
    out.details["precision"] = f"gradient to {seen.error:.0e}; nearest bug ({seen.nearest_name}) at {seen.nearest:.1g}"
    _name_precision(m, out, seen.error, where)
    return margin


_REPLAYED_ALL_THE_SAME = {
    "TARGET_NOT_DETACHED", "DROPOUT_MISMATCH", "WEIGHT_POWER", "WEIGHT_SQUARED_TWICE", "WEIGHT_NOT_DETACHED", "TARGET_CLIPPED",
    "WEIGHT_BATCH_COUPLED",
}  # fmt: skip


def _name_precision(m: Measured, out: Judgement, error: float, where: str) -> None:
    call = m.derivative_call()
    autocast = call is not None and call.autocast
    if call is not None and autocast and error > 1e-4:
        out.find("precision", "TARGET_LOW_PRECISION", f"the derivative runs under autocast: error {error:.1g}",
                 "the derivative in float32, outside autocast", call.where)  # fmt: skip
        return
    if error <= max(5e-4 if out.facts["engine"] == "finite difference" else 0.0, 10 * m.tolerance):
        return
    if out.facts["engine"] == "finite difference":
        out.find("precision", "FINITE_DIFFERENCE_COARSE", f"the difference quotient is off by {error:.1g}",
                 "below 5e-4: a central difference with a smaller step, or a JVP", call.where if call else where)  # fmt: skip
    elif _elsewhere(m):
        out.find("tangent", "R_DERIVATIVE_AT_WRONG_POINT", "the derivative is taken at another (z, r, t) than the prediction",
                 "one point for both", call.where if call else where)  # fmt: skip
    elif error < 0.03:
        out.find("precision", "TARGET_LOW_PRECISION", f"the target is off by {error:.1g}", "rounding errors", where)
    else:
        out.find("target", "UNKNOWN_FORMULA", f"a tanh network's gradient departs from the formula by {error:.1g}",
                 "v - (t - r) du/dt at the point of the prediction", where)  # fmt: skip


def _elsewhere(m: Measured) -> bool:
    calls = m.trace.calls
    inside = [call for call in calls if call.engine and call.rows == m.main.rows]
    return bool(inside) and all(
        float((call.t - m.main.t).abs().max()) > 1e-6 or float((call.r - m.main.r).abs().max()) > 1e-6
        or float((call.z - m.main.z).abs().max()) > 1e-6
        for call in inside
    )  # fmt: skip


def _why_not(check: str, out: Judgement) -> str:
    wrong = next((d.name for d in out.diagnoses if d.severity == "wrong"), "")
    if check == "guidance":
        return "no guided term was seen"
    return f"hidden by {wrong}" if wrong else f"does not apply to {out.formula or 'this loss'}"


# What explains other findings comes first; the rest as found.
_GRAVE = ("TARGET_LOW_PRECISION", "TIMES_OUT_OF_RANGE", "TARGET_CLIPPED", "VELOCITY_SIGN", "R_AND_T_SWAPPED")


def _report(name: str, out: Judgement, margin: float | None, seconds: float) -> Report:
    blamed = {d.name: d for d in out.diagnoses}
    essential = sorted(ESSENTIAL & set(out.unmeasured))
    if essential:
        reasons = "; ".join(f"{check}: {out.unmeasured[check]}" for check in essential)
        out.diagnoses.append(finding("INCONCLUSIVE", reasons, "every essential check measured", severity="note"))
    out.diagnoses.sort(key=lambda one: _GRAVE.index(one.name) if one.name in _GRAVE else len(_GRAVE))
    checks = []
    for check, names in LOSS_CHECKS.items():
        found = [blamed[n] for n in names if n in blamed]
        wrong = any(d.severity == "wrong" for d in found)
        detail = found[0].observed if found else out.details.get(check, "")
        if found:
            checks.append(CheckResult(check, "failed" if wrong else "noted", detail))
        elif check in out.unmeasured:
            checks.append(CheckResult(check, "skipped", out.unmeasured[check]))
        elif not detail:
            # Nothing was measured because something before it is wrong already, or does not apply.
            checks.append(CheckResult(check, "skipped", _why_not(check, out)))
        else:
            checks.append(CheckResult(check, "passed", detail, margin if check == "precision" else None))
    if margin is not None:
        out.facts["margin"] = float(f"{margin:.3g}")
    variant = out.formula != "meanflow" or out.facts.get("path") != "linear"
    return conclude(
        name, "loss", checks, out.diagnoses, variant=variant, inconclusive=bool(essential), formula=out.formula,
        measured=out.facts, seconds=seconds,
    )  # fmt: skip


__all__ = ["NetworkError", "check_loss", "make_target"]
