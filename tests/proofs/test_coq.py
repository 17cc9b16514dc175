"""The Coq layer: the source by itself, and, where ``coqc`` is installed, the kernel's verdict on it and on mutants."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from meanflow_ref.sources import EQUATIONS
from proofs.coq import check as coq

SOURCE = (coq.HERE / coq.SOURCE).read_text(encoding="utf-8")
STATEMENT = re.compile(r"\(\*\*((?:(?!\*\)).)*?)\*\)\s*\nTheorem\s+(\w+)", re.S)


@pytest.fixture(scope="module")
def verdict() -> coq.CoqResult:
    result = coq.check()
    if not result.available:
        pytest.skip(result.message)
    return result


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in (coq.SOURCE, coq.RECORD):
        shutil.copy(coq.HERE / name, tmp_path)
    return tmp_path


# ---------------------------------------------------------------- the source, without Coq


def test_nothing_is_assumed_in_the_text() -> None:
    assert coq.forbidden_words(SOURCE) == []


@pytest.mark.parametrize(
    "cheat", ["Admitted.", "Axiom a : False.", "Parameter p : 0 = 1.", "admit.", "Conjecture c : 0 = 1."]
)
def test_the_text_check_sees(cheat: str) -> None:
    (word,) = coq.forbidden_words(f"(* Admitted, (* nested *) Axiom *)\nLemma l : True.\n{cheat}")
    assert word.startswith(cheat.rstrip(".").partition(" ")[0])
    assert word.endswith("(line 3)")


def test_every_theorem_is_explained_with_an_equation_of_the_registry() -> None:
    explained = {name: text for text, name in STATEMENT.findall(SOURCE)}
    names = coq.theorem_names(SOURCE)
    assert set(explained) == set(names)
    for name, text in explained.items():
        assert re.search(r"Source: (?:mf|fm|fmm):", text), name
        assert set(re.findall(r"\b(?:mf|fm|fmm):[\w-]+", text)) <= set(EQUATIONS), name


def test_the_record_lists_every_theorem_and_only_classical_axioms() -> None:
    record = coq.read_record((coq.HERE / coq.RECORD).read_text(encoding="utf-8"))
    assert tuple(record) == coq.theorem_names(SOURCE)
    assert frozenset().union(*record.values()) <= coq.ALLOWED.keys()
    assert coq.read_record(coq.write_record(record, "some version")) == record


def test_without_coq_it_says_so_and_how_to_get_it() -> None:
    done = subprocess.run(
        [sys.executable, str(coq.HERE / "check.py")], env={"PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "not on the PATH" in done.stdout
    assert coq.INSTALL in done.stdout


# ---------------------------------------------------------------- the kernel's verdict


def test_every_theorem_holds(verdict: coq.CoqResult) -> None:
    assert verdict.ok, verdict.message
    assert verdict.exit_code == 0
    assert verdict.theorems == coq.theorem_names(SOURCE)
    assert set(verdict.axioms) <= coq.ALLOWED.keys()


def test_an_axiom_too_many_is_seen(verdict: coq.CoqResult, copy: Path) -> None:
    """A theorem of a false hypothesis: no forbidden word, so that only the kernel's answer can tell."""
    (copy / coq.SOURCE).write_text(
        SOURCE.split("(** ** 1.")[0]
        + "Hypothesis absurd : 0 = 1.\nTheorem displacement : 1 = 2.\nProof. generalize absurd; lra. Qed.\n",
        encoding="utf-8",
    )
    (copy / coq.RECORD).write_text("displacement: sig_forall_dec sig_not_dec classic\n", encoding="utf-8")
    result = coq.check(folder=copy)
    assert not result.ok
    assert result.exit_code == 1
    assert "absurd" in result.message


def test_a_theorem_that_rests_on_more_than_recorded_is_seen(verdict: coq.CoqResult, copy: Path) -> None:
    """Excluded middle is allowed, and is an axiom too many all the same where the record does not have it."""
    (copy / coq.SOURCE).write_text(
        "From Coq Require Import Classical.\nTheorem middle (P : Prop) : P \\/ ~ P.\nProof. apply classic. Qed.\n",
        encoding="utf-8",
    )
    (copy / coq.RECORD).write_text("middle: classic\n", encoding="utf-8")
    assert coq.check(folder=copy).axioms == ("classic",)
    (copy / coq.RECORD).write_text("middle:\n", encoding="utf-8")
    result = coq.check(folder=copy)
    assert not result.ok
    assert "classic is used and not recorded" in result.message


def test_a_theorem_that_is_not_recorded_is_seen(copy: Path) -> None:
    with (copy / coq.SOURCE).open("a", encoding="utf-8") as file:
        file.write("Theorem unrecorded : True.\nProof. exact I. Qed.\n")
    result = coq.check(folder=copy)
    assert not result.ok
    assert "unrecorded" in result.message or not result.available


# ---------------------------------------------------------------- mutants


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the statement of ``theorem``; the proof that stands must no longer prove it."""

    theorem: str
    old: str
    new: str


MUTANTS = {
    "sign of a piece": Mutant("consistency", "(s - r) [*]", "(r - s) [*]"),
    "sign of the identity": Mutant("meanflow_identity", "w t [-]", "w t [+]"),
    "velocity at the wrong end": Mutant("meanflow_identity", "= w t", "= w r"),
    "factor of the identity": Mutant("meanflow_identity", "(t - r) [*] du.", "(2 * (t - r)) [*] du."),
    "times swapped, Lagrangian": Mutant("lagrangian_identity", "= w r [+]", "= w t [+]"),
    "limit without t <> r": Mutant("limit_end_to_start", "(around a b r)", "(near a b r)"),
    "converse without the limit": Mutant(
        "converse_after", "filterlim (fun s => (s - r) [*] u s) (at_right r) (locally (zero : V))", "True"
    ),
    "converse, limit at the wrong side": Mutant("converse_after", "(at_right r)", "(at_left r)"),
    "bound on (s - r) u alone": Mutant("converse_bounded", "norm (u s)", "norm ((s - r) [*] u s)"),
    "sampling, sign": Mutant("sampling", "z t [-]", "z t [+]"),
    "tangent (v, 1, 0)": Mutant("total_derivative_is_jvp", "(0, 1)", "(1, 0)"),
    "tangent (v, 1, 1)": Mutant("total_derivative_is_jvp", "(0, 1)", "(1, 1)"),
    "sufficiency without the residual": Mutant("zero_residual_is_average", "residual_is_zero z U (DU s) r s", "True"),
    "noise schedule reversed": Mutant("conditional_average", "(sigma t - sigma r)", "(sigma r - sigma t)"),
    "the true sign refuted": Mutant("refuted_wrong_sign", "w t [+]", "w t [-]"),
    "the wrong end right after all": Mutant(
        "refuted_start_point_sampler", "0 1 <> linear_state 1", "0 1 = linear_state 1"
    ),
}


def _statement(theorem: str) -> tuple[int, int]:
    """Where a theorem's statement begins and where its proof ends."""
    start = re.search(rf"^Theorem {theorem}\b", SOURCE, re.M)
    assert start is not None
    return start.start(), SOURCE.index("Qed.", start.start()) + len("Qed.")


def _mutate(mutant: Mutant) -> tuple[str, int, int]:
    """The file up to the mutated theorem's end, with the first and last line of that theorem."""
    start, end = _statement(mutant.theorem)
    proof = SOURCE.index("Proof.", start)
    assert SOURCE.count(mutant.old, start, proof) == 1, "the mutant must name one place of the statement"
    text = SOURCE[:start] + SOURCE[start:proof].replace(mutant.old, mutant.new) + SOURCE[proof:end]
    return text + "\n", SOURCE.count("\n", 0, start) + 1, text.count("\n") + 1


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutated_statement_falls(name: str, verdict: coq.CoqResult, tmp_path: Path) -> None:
    """Coq must stop inside the mutated theorem, neither before it (a broken file) nor after it (a survivor)."""
    text, first, last = _mutate(MUTANTS[name])
    (tmp_path / coq.SOURCE).write_text(text, encoding="utf-8")
    done = coq.coqc(coq.SOURCE, tmp_path)
    assert done.returncode != 0
    where = re.search(r"line (\d+), characters [\d-]+:\s*Error", done.stderr)
    assert where is not None, done.stderr
    assert first <= int(where.group(1)) <= last, done.stderr
    assert "Syntax error" not in done.stderr


def test_the_mutation_harness_lets_the_truth_pass(verdict: coq.CoqResult, tmp_path: Path) -> None:
    """Cut off after an unmutated theorem, and with its section closed, the file compiles."""
    _, end = _statement("meanflow_identity")
    (tmp_path / coq.SOURCE).write_text(SOURCE[:end] + "\nEnd Average.\n", encoding="utf-8")
    done = coq.coqc(coq.SOURCE, tmp_path)
    assert done.returncode == 0, done.stderr
