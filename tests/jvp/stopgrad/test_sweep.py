"""PyTorch's database of operations, whole: right or refused by name, never silently wrong."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from meanflow_ref.jvp.stopgrad.table import RULES

# Beside conftest's pythonpath: shared with no other room.
from sweep import judge, name_of, operations  # isort: skip

# The measure: at least 485 of the 490 that PyTorch 2.13 has.
RIGHT = 485
# A tenth of them, for the everyday run.
FAST = ("add", "addmm", "bmm", "cat", "chunk", "cumsum", "div", "expand", "fft.fft", "gather", "index_put", "mul",
        "pow", "nn.functional.conv2d", "nn.functional.gelu", "nn.functional.group_norm", "nn.functional.layer_norm",
        "nn.functional.pad", "nn.functional.scaled_dot_product_attention", "nn.functional.silu", "norm", "prod",
        "scatter_add", "softmax", "sub", "sum", "var", "where", "as_strided", "linalg.matrix_power", "masked_fill",
        "nn.functional.dropout", "polygamma", "squeeze", "transpose", "sort", "topk", "linalg.inv",
        "copysign")  # fmt: skip


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
