"""Every row of the ledger is settled by something that could have failed, and the page says what was found."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from proofs import claims
from proofs.__main__ import main
from proofs.language import ProofError
from proofs.ledger import claim as rules
from proofs.ledger import paper
from proofs.ledger.claim import Claim, Finding, Verdict, beyond, claim, false_step, quoted, shortcomings, step, within
from proofs.ledger.page import PATH, page

IDS = [row.id for row in claims.claims()]


@cache
def settled(id: str) -> claims.Settled:
    """A row's outcome, once a session."""
    return claims.settle(claims.CLAIMS[id])


# ---------------------------------------------------------------- the rows


@pytest.mark.parametrize("id", IDS)
def test_row_is_settled(id: str) -> None:
    result = settled(id)
    assert result.failures == ()
    assert result.findings


@pytest.mark.parametrize("id", IDS)
def test_every_finding_decides(id: str) -> None:
    """A row falls with any one of its findings: none is there for show, and none keeps a bound that all keep."""
    result = settled(id)
    for place, f in enumerate(result.findings):
        wrong = f.bound + 1 if f.sense == "<=" else f.bound - 1
        for value in (wrong, float("nan")):
            findings = [*result.findings]
            findings[place] = replace(f, value=value)
            assert shortcomings(result.claim, findings), (id, f.text)


def test_the_ledger_is_complete() -> None:
    wanted = [f"{document}.{n}" for document, rows in claims.ROWS.items() for n in range(1, rows + 1)]
    assert wanted == IDS
    assert len(IDS) == 99
    assert set(claims.DOCUMENTS) == set(claims.ROWS)
    assert sum(claims.counts(claims.claims()).values()) == 99


def test_rows_say_what_is_claimed_and_who_settles_it() -> None:
    rows = claims.claims()
    assert len({row.where for row in rows}) == len(rows)
    for row in rows:
        assert row.text.endswith(".")
        assert row.settle.__doc__
        assert row.where.startswith(f"document_{row.document}.")
        # What is wrong about a claim, or why it cannot be settled, is said.
        assert row.remark or row.verdict not in ("refuted", "out of reach")


def test_few_rows_rest_on_quoted_figures_alone() -> None:
    """Statements about publications, which no computation decides."""
    alone = [id for id in IDS if {f.kind for f in settled(id).findings} == {"quoted"}]
    assert len(alone) <= 8, alone


# ---------------------------------------------------------------- the rules


def row(verdict: Verdict, remark: str = "") -> Claim:
    """A row whose function is not called."""
    return Claim("000.1", verdict, "A claim.", remark, lambda: [])


GOOD, BAD = within("error", 1e-14, 1e-12), beyond("error of the wrong one", 1.0, 0.5)
ONE_STEP = Finding("step", "a step", 0.0, "<=", 0.0)


@pytest.mark.parametrize("verdict", claims.VERDICTS)
def test_nothing_settles_nothing(verdict: Verdict) -> None:
    assert shortcomings(row(verdict, "remark"), [])


@pytest.mark.parametrize(
    ("verdict", "findings"),
    [
        ("proved", [GOOD, BAD]),
        ("proved", [ONE_STEP]),
        ("verified numerically", [GOOD]),
        ("verified numerically", [BAD]),
        ("refuted", [BAD]),
        ("refuted", [GOOD]),
        ("refuted", [ONE_STEP, GOOD]),
        ("out of reach", [GOOD]),
        ("factual", [within("trivial", 0.0, float("inf"))]),
        ("factual", [beyond("trivial", 0.0, 0.0)]),
        ("verified numerically", [GOOD, beyond("infinite", float("inf"), 1.0)]),
    ],
)
def test_one_sided_evidence_is_not_enough(verdict: Verdict, findings: Sequence[Finding]) -> None:
    assert shortcomings(row(verdict), findings)


@pytest.mark.parametrize(
    ("verdict", "findings"),
    [
        ("proved", [ONE_STEP, Finding("step", "a false step", 1.0, ">=", 1.0)]),
        ("verified numerically", [GOOD, BAD]),
        ("refuted", [GOOD, BAD]),
        ("factual", [quoted("a figure", 2.0, 1.0)]),
    ],
)
def test_two_sided_evidence_is(verdict: Verdict, findings: Sequence[Finding]) -> None:
    assert shortcomings(row(verdict), findings) == []


def test_an_exception_leaves_a_row_unsettled() -> None:
    def stops() -> Sequence[Finding]:
        raise ZeroDivisionError("here")

    result = claims.settle(Claim("000.1", "proved", "A claim.", "", stops))
    assert not result.ok
    assert "ZeroDivisionError: here" in result.failures[0]


def test_steps_are_decided_by_the_engine() -> None:
    from proofs.notation import r, t

    assert step("true", (t - r) * (t + r), t**2 - r**2).ok
    assert not step("false", (t - r) * (t + r), t**2 + r**2).ok
    assert false_step("false", t, r).ok
    assert not false_step("true", t, t).ok


def test_a_row_falls_with_the_theorem_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_failures_of", lambda id: ("a step is UNKNOWN",))
    result = claims.settle(claims.CLAIMS["000.6"])
    assert not result.ok


@pytest.mark.parametrize(
    ("formula", "wrong", "rows"),
    [
        ("meanflow_target", lambda v, du_dt, r, t: v + (t - r) * du_dt, ["001.3", "001.11", "004.9"]),
        ("step", lambda z, u, r, t: z + (t - r) * u, ["001.17", "003.12", "003.14"]),
        ("guided_velocity", lambda a, b, w: w * b + (1 - w) * a, ["001.12", "001.13", "002.17"]),
        ("consistency_residual", lambda a, b, c, r, s, t: (t - r) * a - (t - s) * b - (s - r) * c, ["000.4"]),
        ("adaptive_weight", lambda q, p, c: (q + c) ** (-2 * p), ["001.10"]),
        ("discrete_target", lambda v, n, u, r, t, tn: v - (t - r) * (n - u) / (tn - t), ["004.4"]),
    ],
)
def test_a_mistake_in_the_library_unsettles_rows(
    formula: str, wrong: Callable[..., object], rows: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"meanflow_ref.formulas.{formula}", wrong)
    # Theorems are kept as they are: the measurements must see the mistake by themselves.
    monkeypatch.setattr(rules, "_failures_of", lambda id: ())
    for id in rows:
        assert not claims.settle(claims.CLAIMS[id]).ok, id


def test_the_mistakes_are_seen_to_be_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the right rule in the place of the wrong one there is no counter-example, and the row is not settled."""
    from proofs.ledger import mistakes

    monkeypatch.setattr(mistakes, "read_at_the_start", mistakes.read_at_the_end)
    for id in ("003.12", "003.14", "003.18", "004.11"):
        assert not claims.settle(claims.CLAIMS[id]).ok, id


def test_quoted_figures_agree_among_themselves() -> None:
    """The tables share runs: the default (61.06) stands in six of them, scale 2 without kappa in two."""
    for table in (paper.RATIO, paper.TANGENT, paper.EMBEDDING, paper.TIME_LAW, paper.WEIGHT_POWER, paper.OMEGA):
        assert 61.06 in table.values()
    assert paper.KAPPA[0.0] == paper.OMEGA[2.0]
    for best in (paper.RATIO, paper.TANGENT, paper.EMBEDDING, paper.TIME_LAW, paper.WEIGHT_POWER):
        assert min(best.values()) == 61.06


def test_one_id_one_row() -> None:
    with pytest.raises(ProofError, match=r"two rows are called 000\.1"):
        claim("000.1", "proved", "Again.")(lambda: [])
    with pytest.raises(ProofError, match="verdict"):
        claim("000.99", "true", "Unknown verdict.")(lambda: [])  # type: ignore[arg-type]


# ---------------------------------------------------------------- page and command line

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def test_page_is_up_to_date() -> None:
    """Words exactly, figures to 2 %: `python -m proofs --claims --write` renews it."""
    written = PATH.read_text(encoding="utf-8")
    now = page([settled(id) for id in IDS], claims.DOCUMENTS)
    assert _NUMBER.sub("#", written) == _NUMBER.sub("#", now)
    assert [float(x) for x in _NUMBER.findall(written)] == pytest.approx(
        [float(x) for x in _NUMBER.findall(now)], rel=0.02
    )


def test_page_links_to_theorems_that_are_there() -> None:
    anchors = set(re.findall(r'<a id="([\w-]+)">', PATH.with_name("DERIVATIONS.md").read_text(encoding="utf-8")))
    linked = set(re.findall(r"DERIVATIONS\.md#([\w-]+)", PATH.read_text(encoding="utf-8")))
    assert linked
    assert linked <= anchors


def test_every_table_line_has_its_cells() -> None:
    for line in PATH.read_text(encoding="utf-8").splitlines():
        if re.match(r"\| \d{3}\.\d", line):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5, line


def test_page_shows_what_is_unsettled() -> None:
    broken = replace(settled("000.1"), failures=("a reason",))
    text = page([broken], {"000": "a note"})
    assert "**UNSETTLED** a reason" in text
    assert "0 of 1" in text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--claims", "004.2", "001.13", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 claims settled: 1 proved, 0 verified numerically, 1 refuted" in out
    assert "mean speed less size of the mean velocity" in out
    assert main(["--claims", "--list", "003"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == claims.ROWS["003"]


def test_command_line_names_the_nearest_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--claims", "003.112"]) == 2
    assert "003.11" in capsys.readouterr().err


def test_command_line_fails_with_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(paper.OMEGA, 2.0, 10.0)
    before = PATH.read_bytes()
    assert main(["--claims", "002.26", "--write"]) == 1
    out = capsys.readouterr().out
    assert "Unsettled: 002.26" in out
    assert "not written" in out
    assert PATH.read_bytes() == before


def test_the_ledger_is_listed_without_torch() -> None:
    code = "import sys; from proofs.__main__ import main; main(['--claims', '--list']); main(['quotient-rule'])"
    code += "; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
