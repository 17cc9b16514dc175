"""Every theorem holds, says something, and is what the document prints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import sympy as sp

import proofs
from meanflow_ref.sources import EQUATIONS
from proofs.__main__ import main
from proofs.document import PATH, document
from proofs.theorem import REGISTRY

Runner = Callable[[str], proofs.TheoremResult]
IDS = [spec.id for spec in proofs.theorems()]


@pytest.mark.parametrize("id", IDS)
def test_theorem_holds(id: str, result_of: Runner) -> None:
    result = result_of(id)
    assert result.ok, result.failures
    verdicts = [(line.text, line.decision.verdict) for line in result.steps]
    assert [text for text, verdict in verdicts if verdict != "PROVED"] == []
    assert [line.text for line in result.controls if line.decision.verdict != "REFUTED"] == []
    # No heuristic is needed anywhere, and every proved step agreed with the independent evaluation at a point at least.
    assert {line.decision.method for line in result.steps} <= {"NF", "ALG"}
    assert [line.text for line in result.steps if line.decision.points == 0] == []
    assert result.n_restates < result.n_steps
    assert all(line.decision.witness is not None for line in result.controls)


@pytest.mark.parametrize("id", IDS)
def test_sources_exist_and_hypotheses_are_stated(id: str) -> None:
    spec = REGISTRY[id]
    assert spec.sources
    assert set(spec.sources) <= set(EQUATIONS)
    assert spec.hypotheses or spec.conditions.nonzero or spec.conditions.positive


def test_the_required_theorems_are_there() -> None:
    assert len(IDS) >= 30
    assert len(IDS) == len(set(IDS)) == len(REGISTRY)
    wanted = {"identity", "total-derivative", "consistency", "limit", "converse", "singular-family", "quotient-rule"}
    assert wanted | {"discrete", "sampling", "wrong-end"} <= set(IDS)


def test_no_state_or_field_is_assumed_positive(result_of: Runner) -> None:
    """Positivity of a state would make sqrt(z^2) = z; it is granted to parameters, weights and densities alone."""
    granted = {"sigma", "lambda", "c", "a", "b", "s", "q", "p", "k", "delta", "r_+", "t_+"}
    granted |= {f"{name}_{i}" for name in ("pi", "w", "c") for i in (1, 2, 3)}
    for id in IDS:
        for text in result_of(id).assumptions:
            assert text.split()[0] in granted, (id, text)


def test_document_is_up_to_date(result_of: Runner) -> None:
    """`python -m proofs --write` renews it. Another sympy prints differently: there only the theorems are compared."""
    written = PATH.read_text(encoding="utf-8")
    version = re.search(r"with sympy ([\d.]+)\.", written)
    assert version is not None
    now = document([result_of(id) for id in IDS])
    if version.group(1) == sp.__version__:
        assert written == now
    headings = re.compile(r"^(?:## .*|`[\w-]+`, in .*)$", re.M)
    assert headings.findall(written) == headings.findall(now)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quotient-rule", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "quotient-rule" in out
    assert "is $(v-u)/(t-r)$" in out
    assert "1 of 1 theorems hold: 3 steps (0 restate a rule), 3 false statements refuted" in out
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(IDS)


def test_command_line_names_the_nearest_theorem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gausian"]) == 2
    assert "gaussian" in capsys.readouterr().err


def test_command_line_fails_with_a_theorem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meanflow_ref.formulas.meanflow_target", lambda v, du_dt, r, t: v + (t - r) * du_dt)
    before = PATH.read_bytes()
    assert main(["quotient-rule", "--write"]) == 1
    assert "FAILS" in capsys.readouterr().out
    assert PATH.read_bytes() == before


def test_progress_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    results = proofs.run_all(lambda result, number, total: seen.append((result.id, number, total)), ["discrete"])
    # `discrete` names a theorem and the family that it shares with two others.
    assert (
        [id for id, _, _ in seen]
        == [result.id for result in results]
        == ["quotient-rule", "discrete", "discrete-limit"]
    )
    assert [number for _, number, total in seen if total == 3] == [1, 2, 3]


def test_command_line_without_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["quotient-rule"]) == 0
    assert "1 of 1 theorems hold" in capsys.readouterr().out


def test_proofs_import_no_torch() -> None:
    code = "import sys, proofs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PATH.parents[1])
