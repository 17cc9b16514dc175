"""The tape: recordings of right and wrong losses judged with numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanflow_ref.cli import main
from meanflow_ref.errors import MeanFlowError, NonFiniteError, ParameterError, ShapeError
from meanflow_ref.kit.diagnosis import Report
from meanflow_ref.kit.tape.asking import question
from meanflow_ref.kit.tape.judge import judge
from meanflow_ref.kit.tape.network import PARAMETERS, Array, TanhNetwork
from meanflow_ref.kit.tape.reading import read_tape, tape_of

ASKED = question()
NET = TanhNetwork(*(ASKED[name] for name in PARAMETERS))
STEP = 1e-4


def quotient(z: Array, r: Array, t: Array, dz: Any, dr: float, dt: float) -> Array:
    """Fourth-order difference quotient of the network along a direction: no closed form of the judge's."""

    def at(s: float) -> Array:
        return NET.u(z + s * STEP * np.asarray(dz), r + s * STEP * dr, t + s * STEP * dt)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * STEP)


def jacobian_transposed(z: Array, r: Array, t: Array, v: Array) -> Array:
    """J^T v by difference quotients along every axis."""
    axes = np.eye(z.shape[1])
    columns = np.stack([quotient(z, r, t, axis + 0 * z, 0, 0) for axis in axes], 2)
    return np.asarray(np.einsum("bij,bi->bj", columns, v))


def loss(
    x: Array, *, target: str = "", power: float = 1.0, eps: float = 1e-3, mean: bool = False, weight: str = "",
    path: str = "linear", leak: float = 0.0, factor: float = 1.0, offset: float = 0.0, never: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """One recording of a loss, with at most one thing wrong."""
    rng = np.random.default_rng(3)
    a, b = rng.random((2, len(x)))
    r, t = np.minimum(a, b), np.maximum(a, b)
    r[: len(x) // 4] = t[: len(x) // 4]
    r = t.copy() if never else r
    e = rng.normal(size=x.shape)
    x = factor * x + offset
    column, h = t[:, None], (t - r)[:, None]
    half = np.pi / 2
    z, v = {
        "linear": ((1 - column) * x + column * e, e - x),
        "reversed": (column * x + (1 - column) * e, x - e),
        "trigonometric": (
            np.cos(half * column) * x + np.sin(half * column) * e,
            half * (np.cos(half * column) * e - np.sin(half * column) * x),
        ),
    }[path]
    if target == "straight v":
        v = e - x
    v = -v if target == "-v" else v
    one, zero = 1.0, 0.0
    tangents: dict[str, Any] = {
        "swapped": (v, one, zero), "r moves": (v, one, one), "no space": (zero, zero, one), "no time": (v, zero, zero),
        "tangent -v": (-v, zero, one), "tangent z": (z, zero, one), "improved": (NET.u(z, t, t), zero, one),
    }  # fmt: skip
    du = quotient(z, r, t, *tangents.get(target, (v, zero, one)))
    if target == "transposed":
        du = jacobian_transposed(z, r, t, v) + quotient(z, r, t, zero, zero, one)
    factors = {"sign": -h, "no interval": 1 + 0 * h, "t for t - r": column, "half": 0.5 * h, "absent": 0 * h}
    wanted = v - factors.get(target, h) * du
    if target == "strange":
        wanted = v - h**2 * du - 0.3 * z
    delta = NET.u(z, r, t) - wanted
    s = (delta**2).mean(1) if mean else (delta**2).sum(1)
    size = (s + eps) ** -power
    if weight == "attached":
        size = eps / (s + eps) ** 2
    if weight == "twice":
        size = s / (s**2 + eps) ** power
    if weight == "own":
        size = np.exp(-s / 50)
    g = 2 * size[:, None] * delta / len(x) / (x.shape[1] if mean else 1)
    if weight == "element":
        g = 2 * delta / (delta**2 + eps) / len(x)
    if target == "detached":
        g = 0 * g
    grads = {f"grad_{name}": (1 + leak) * value for name, value in NET.gradients(z, r, t, g).items()}
    return {"z": z, "r": r, "t": t, "g": g, **grads}


def recording(**kwargs: Any) -> dict[str, Any]:
    return {**ASKED, **loss(ASKED["x"], **kwargs), "z_other": loss(ASKED["x_other"], **kwargs)["z"]}


def judged(**kwargs: Any) -> Report:
    return judge(tape_of(recording(**kwargs)), "tape")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"target": "swapped"}, "R_AND_T_SWAPPED"),
    ({"target": "r moves"}, "R_MOVES"),
    ({"target": "no space"}, "SPATIAL_TANGENT_MISSING"),
    ({"target": "no time"}, "TIME_TANGENT_MISSING"),
    ({"target": "tangent -v"}, "TANGENT_NOT_VELOCITY"),
    ({"target": "tangent z"}, "TANGENT_NOT_VELOCITY"),
    ({"target": "transposed"}, "TRANSPOSED_JACOBIAN"),
    ({"target": "sign"}, "INTERVAL_SIGN"),
    ({"target": "no interval"}, "INTERVAL_NOT_T_MINUS_R"),
    ({"target": "t for t - r"}, "INTERVAL_NOT_T_MINUS_R"),
    ({"target": "half"}, "COEFFICIENT"),
    ({"target": "absent"}, "COEFFICIENT"),
    ({"target": "-v"}, "VELOCITY_SIGN"),
    ({"target": "straight v", "path": "trigonometric"}, "PATH_TANGENT_MISMATCH"),
    ({"target": "strange"}, "UNKNOWN_FORMULA"),
    ({"target": "detached"}, "PREDICTION_DETACHED"),
    ({"weight": "attached"}, "WEIGHT_NOT_DETACHED"),
    ({"weight": "twice"}, "WEIGHT_SQUARED_TWICE"),
    ({"weight": "element"}, "WEIGHT_PER_ELEMENT"),
    ({"leak": 0.05}, "TARGET_NOT_DETACHED"),
    ({"never": True}, "NEVER_R_NEQ_T"),
    ({"target": "swapped", "factor": 2.0, "offset": -1.0}, "R_AND_T_SWAPPED"),
]


@pytest.mark.parametrize(("kwargs", "name"), WRONG, ids=str)
def test_a_wrong_loss_is_named(kwargs: dict[str, Any], name: str) -> None:
    report = judged(**kwargs)
    assert report.verdict == "wrong"
    assert [one.name for one in report.diagnoses] == [name]


RIGHT: list[tuple[dict[str, Any], str, str]] = [
    ({}, "correct", "meanflow"),
    ({"power": 0.0}, "correct", "meanflow"),
    ({"power": 0.75, "eps": 1e-2}, "correct", "meanflow"),
    ({"power": 0.5, "mean": True, "eps": 1e-2}, "correct", "meanflow"),
    ({"target": "improved"}, "correct", "improved-meanflow"),
    ({"path": "trigonometric"}, "correct", "meanflow"),
    ({"path": "reversed"}, "variant", "meanflow"),
    ({"weight": "own"}, "variant", "meanflow"),
    ({"factor": 2.0, "offset": -1.0}, "correct", "meanflow"),
    ({"factor": 1.3, "offset": 0.4}, "correct", "meanflow"),
    ({"factor": 0.5}, "correct", "meanflow"),
]


@pytest.mark.parametrize(("kwargs", "verdict", "formula"), RIGHT, ids=str)
def test_a_legal_loss_is_not_flagged(kwargs: dict[str, Any], verdict: str, formula: str) -> None:
    report = judged(**kwargs)
    assert (report.verdict, report.formula) == (verdict, formula), report.diagnoses
    assert all(one.severity == "note" for one in report.diagnoses)


def test_the_weight_is_measured() -> None:
    measured = judged(power=0.75, eps=1e-2).measured
    assert measured["weight_power"] == pytest.approx(0.75, abs=1e-3)
    assert measured["weight_eps"] == pytest.approx(1e-2, rel=1e-2)
    measured = judged(power=0.5, eps=1e-2, mean=True).measured
    assert (measured["reduction"], measured["weight_eps"]) == ("mean", pytest.approx(1e-2, rel=1e-2))


def test_float32_recordings_are_judged_too() -> None:
    for kwargs, name in ({}, ""), ({"target": "swapped"}, "R_AND_T_SWAPPED"):
        narrow = {
            key: value.astype(np.float32) if key in {"z", "r", "t", "g", "z_other"} else value
            for key, value in recording(**kwargs).items()
        }
        report = judge(tape_of(narrow), "tape")
        assert [one.name for one in report.diagnoses] == ([name] if name else [])


def test_rows_may_come_in_parts_and_in_any_order() -> None:
    full = recording()
    order = np.random.default_rng(0).permutation(64)[:50]
    part = {key: value for key, value in full.items() if not key.startswith("grad_")}
    part |= {key: full[key][order] for key in ("z", "r", "t", "g", "z_other")} | {"row": order}
    report = judge(tape_of(part), "tape")
    assert report.diagnoses == ()
    # Without the parameters' gradients a leak cannot be seen, and nothing unseen passes.
    assert report.verdict == "inconclusive"


def test_the_network_has_the_derivatives_of_torch() -> None:
    """The closed forms against autograd, an independent derivative."""
    import torch

    z, r, t = ASKED["x"][:5], np.linspace(0, 0.4, 5), np.linspace(0.5, 1, 5)
    weights = {name: torch.tensor(ASKED[name], requires_grad=True) for name in PARAMETERS}

    def u(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(torch.cat([z, r[:, None], t[:, None]], 1) @ weights["W1"].T + weights["b1"])
        return hidden @ weights["W2"].T + weights["b2"]

    at = torch.tensor(z), torch.tensor(r), torch.tensor(t)
    v, ones, zeros = at[0].flip(1), torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    pair = torch.func.jvp(u, at, (v, zeros, ones))
    value, derivative = pair[0], pair[1]
    np.testing.assert_allclose(NET.u(z, r, t), value.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(NET.derivative(z, r, t, v.numpy(), 0, 1), derivative.detach().numpy(), atol=1e-13)
    (transposed,) = torch.func.vjp(lambda z: u(z, at[1], at[2]), at[0])[1](v)
    np.testing.assert_allclose(NET.transposed(z, r, t, v.numpy()), transposed.detach().numpy(), atol=1e-13)
    (u(*at) * v).sum().backward()  # type: ignore[no-untyped-call]
    for name, gradient in NET.gradients(z, r, t, v.numpy()).items():
        np.testing.assert_allclose(gradient, weights[name].grad, atol=1e-13)  # type: ignore[arg-type]


def test_the_judge_imports_neither_torch_nor_scipy(tmp_path: Path) -> None:
    file = tmp_path / "tape.npz"
    np.savez(file, **recording())
    code = (
        "import sys; from meanflow_ref.cli import main; "
        f"assert main(['tape', 'check', {str(file)!r}]) == 0; "
        "assert not {'torch', 'scipy', 'jax', 'sympy', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "CORRECT (meanflow)" in done.stdout


def test_the_command_says_wrong_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tape.npz"
    np.savez(file, **recording(target="sign"))
    assert main(["tape", "check", str(file)]) == 1
    assert "INTERVAL_SIGN" in capsys.readouterr().out
    assert main(["tape", "check", str(file), "--format", "markdown"]) == 1
    assert "INTERVAL_SIGN" in capsys.readouterr().out
    part = {key: value for key, value in recording().items() if not key.startswith("grad_")}
    np.savez(file, **part)
    assert main(["tape", "check", str(file)]) == 2


def test_init_writes_the_question_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "probe.npz"
    assert main(["tape", "init", str(file), "--dim", "4"]) == 0
    with np.load(file) as arrays:
        assert arrays["W1"].shape == (24, 6)
    assert main(["tape", "check", str(file)]) == 2
    assert "lacks z, r, t, g, z_other" in capsys.readouterr().err
    assert main(["tape", "init", str(tmp_path / "none" / "x.npz")]) == 2
    assert main(["tape", "init", str(file), "--dim", "1"]) == 2


def changed(**changes: Any) -> dict[str, Any]:
    return {**recording(), **changes}


@pytest.mark.parametrize(
    ("arrays", "error", "text"),
    [
        (changed(tape=np.int64(2)), ParameterError, "version"),
        (changed(extra=np.zeros(1)), ParameterError, "extra"),
        (changed(g=np.full((64, 6), np.nan)), NonFiniteError, "`g` has 384 NaN"),
        (changed(g=np.zeros((64, 5))), ShapeError, "`g` has shape"),
        (changed(W1=np.zeros((24, 7))), ShapeError, "W1"),
        (changed(row=np.full(64, 99)), ShapeError, "row"),
        (changed(t=np.zeros(3)), ShapeError, "`t`"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else getattr(value, "__name__", str(value)),
)
def test_a_bad_tape_is_one_clear_error(arrays: dict[str, Any], error: type[MeanFlowError], text: str) -> None:
    with pytest.raises(error, match=text):
        tape_of(arrays)


def test_a_file_that_is_no_tape(tmp_path: Path) -> None:
    file = tmp_path / "tape.npz"
    with pytest.raises(ParameterError, match="no file"):
        read_tape(file)
    file.write_bytes(b"not a zip")
    with pytest.raises(ParameterError, match="cannot be read"):
        read_tape(file)


def test_an_unknown_path_is_inconclusive() -> None:
    arrays = recording()
    arrays["z"] = arrays["z"] + 0.1 * ASKED["x"] ** 2
    arrays["z_other"] = arrays["z_other"] + 0.1 * ASKED["x_other"] ** 2
    assert judge(tape_of(arrays), "tape").verdict == "inconclusive"
