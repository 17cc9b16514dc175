"""PyTorch's database of operations, whole: right or refused by name, never silently wrong."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from meanflow_ref.jvp.stopgrad import compiled, rowwise
from meanflow_ref.jvp.stopgrad.table import RULES

# Beside conftest's pythonpath: shared with no other room.
from sweep import judge, name_of, operations  # isort: skip

# The measure: at least 485 of the 490 that PyTorch 2.13 has.
RIGHT = 485
# By the rules of the compile form; half of the others are refused for their in-place forms alone.
RIGHT_OF_PAIRS = 330
# A tenth of them, for the everyday run.
FAST = ("add", "addmm", "bmm", "cat", "chunk", "cumsum", "div", "expand", "fft.fft", "gather", "index_put", "mul",
        "pow", "nn.functional.conv2d", "nn.functional.gelu", "nn.functional.group_norm", "nn.functional.layer_norm",
        "nn.functional.pad", "nn.functional.scaled_dot_product_attention", "nn.functional.silu", "norm", "prod",
        "scatter_add", "softmax", "sub", "sum", "var", "where", "as_strided", "linalg.matrix_power", "masked_fill",
        "nn.functional.dropout", "polygamma", "squeeze", "transpose", "sort", "topk", "linalg.inv",
        "copysign")  # fmt: skip
# Those with a line for rows, by the names of the database.
ROWWISE_TOO = ("add", "addmm", "baddbmm", "bmm", "cat", "chunk", "clone", "div", "expand", "masked_fill", "matmul",
               "mean", "mm", "mul", "nn.functional.avg_pool2d", "nn.functional.conv2d", "nn.functional.dropout",
               "nn.functional.gelu", "nn.functional.group_norm", "nn.functional.interpolate",
               "nn.functional.layer_norm", "nn.functional.linear", "nn.functional.pad", "nn.functional.pixel_shuffle",
               "nn.functional.scaled_dot_product_attention", "nn.functional.silu", "permute", "pow", "reshape", "rsub",
               "select", "softmax", "split", "squeeze", "stack", "sub", "sum", "t", "transpose", "unbind", "unsqueeze",
               "view", "where", "einsum", "narrow", "log_softmax", "softmax", "cumsum", "roll")  # fmt: skip


@pytest.mark.slow
def test_the_whole_database() -> None:
    verdicts = {name_of(op): judge(op) for op in operations()}
    wrong = {name: v for name, v in verdicts.items() if v not in ("right", "refused", "no oracle")}
    assert not wrong
    counts = Counter(verdicts.values())
    if torch.__version__.startswith("2.13"):
        assert counts["right"] >= RIGHT, counts
    assert counts["refused"] <= 5, [name for name, v in verdicts.items() if v == "refused"]


def test_a_tenth_of_the_database() -> None:
    verdicts = {name_of(op): judge(op) for op in operations() if op.name in FAST}
    assert len(verdicts) >= len(FAST)
    assert not {name: v for name, v in verdicts.items() if v != "right"}


def test_a_tenth_of_the_database_where_some_rows_move() -> None:
    verdicts = {name_of(op): judge(op, rows=True) for op in operations() if op.name in ROWWISE_TOO}
    assert not {name: v for name, v in verdicts.items() if v != "right"}


@pytest.mark.slow
def test_the_whole_database_where_some_rows_move() -> None:
    verdicts = {name_of(op): judge(op, rows=True) for op in operations()}
    assert not {name: v for name, v in verdicts.items() if v not in ("right", "refused", "no oracle")}


def test_the_whole_database_by_the_rules_of_the_compile_form() -> None:
    """Whatever is not refused is right: 332 of torch 2.13's, and none in place."""
    verdicts = {name_of(op): judge(op, pairs=True) for op in operations()}
    assert not {name: v for name, v in verdicts.items() if v not in ("right", "refused", "no oracle")}
    if torch.__version__.startswith("2.13"):
        assert Counter(verdicts.values())["right"] >= RIGHT_OF_PAIRS


def assert_right_in_layout(layout: str, pairs: bool, only: tuple[str, ...] | None) -> int:
    """How many are right; a kernel that wants its numbers to lie otherwise may say so in its own words."""
    verdicts = {
        name_of(op): judge(op, pairs=pairs, layout=layout) for op in operations() if not only or op.name in only
    }
    said = (
        "right",
        "refused",
        "no oracle",
        "RuntimeError: view size is not compatible",
        "RuntimeError: Expected X.is_",
    )
    assert not {name: v for name, v in verdicts.items() if not v.startswith(said)}
    return Counter(verdicts.values())["right"]


@pytest.mark.parametrize("pairs", [False, True], ids=["dispatch", "pairs"])
@pytest.mark.parametrize("layout", ["transposed", "stepped"])
def test_a_tenth_of_the_database_in_other_layouts(layout: str, pairs: bool) -> None:
    assert assert_right_in_layout(layout, pairs, FAST) >= len(FAST) - 12 * pairs


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [False, True], ids=["dispatch", "pairs"])
@pytest.mark.parametrize("layout", ["transposed", "stepped"])
def test_the_whole_database_in_other_layouts(layout: str, pairs: bool) -> None:
    assert assert_right_in_layout(layout, pairs, None) >= (RIGHT_OF_PAIRS if pairs else RIGHT) - 10


def test_the_sweep_sees_a_pair_without_its_tangent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.RULES, torch.sin, compiled.constant)
    (entry,) = (op for op in operations() if op.name == "sin")
    assert judge(entry, pairs=True) == "silent zero"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mul", lambda d, op, out, x, y: d(x)),
        ("nn.functional.silu", lambda d, op, out, x: torch.ops.aten.sigmoid_backward(d(x), out)),
        ("sin", lambda d, op, out, x: None),
    ],
)
def test_the_sweep_sees_a_wrong_rule(name: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker checked: a lost term, another function's kernel, a forgotten tangent."""
    (entry,) = (op for op in operations() if op.name == name)
    packet = getattr(torch.ops.aten, name.rpartition(".")[2])
    assert judge(entry) == "right"
    for overload in packet.overloads():
        op = getattr(packet, overload)
        if op in RULES:
            monkeypatch.setitem(RULES, op, wrong)
    assert judge(entry).startswith("silent")


@pytest.mark.parametrize(
    ("name", "overload", "wrong"),
    [
        ("softmax", "_softmax.default", rowwise.placewise),  # along the rows too
        (
            "sum",
            "sum.dim_IntList",
            lambda call: rowwise.summed(call) and (call.op(call.tangent(call.args[0]), *call.args[1:]), 0),
        ),
        ("unbind", "unbind.int", lambda call: [(x, 0) for x in call.tangent(call.args[0]).unbind(*call.args[1:])]),
        ("mul", "mul.Tensor", lambda call: (call.tangent(call.args[0]) * 1, call.dim(call.args[0]))),
    ],
)
def test_the_sweep_sees_a_wrong_line(name: str, overload: str, wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = (op for op in operations() if name_of(op) == name)
    assert judge(entry, rows=True) == "right"
    packet, _, o = overload.partition(".")
    monkeypatch.setitem(rowwise.ROWWISE, getattr(getattr(torch.ops.aten, packet), o), wrong)
    assert judge(entry, rows=True) not in ("right", "no oracle", "refused")
