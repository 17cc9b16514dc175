"""An outside attention kernel in the place of the shipped rule: when it is called, with what, and when it is refused.

The kernel here keeps the contract of ``jvp_flash_attention`` 0.14 by differences. The real one is interpreted
where it is installed, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError
from meanflow_ref.jvp.stopgrad import stopgrad_jvp, use_jvp_flash_attention
from meanflow_ref.jvp.stopgrad.attention import attention_rule
from meanflow_ref.jvp.stopgrad.table import RULES

H = 1e-5


def written_out(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf)
    return scores.softmax(-1) @ v


class Kernel:
    """Contract of ``JVPAttn.forward``: what it takes, and ``(out, (tangent, logsumexp, ...))``."""

    def __init__(self, wrong: str = "") -> None:
        self.calls, self.wrong = 0, wrong

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, mask: Any, dropout: float,
        causal: bool, scale: float | None, warps: bool, tma: bool, verify: bool,
    ) -> tuple[Tensor, tuple[Any, ...]]:  # fmt: skip
        self.calls += 1
        six = (q, k, v, dq, dk, dv)
        assert len({x.shape for x in six}) == len({x.dtype for x in six}) == 1
        assert all(x.is_contiguous() for x in six)
        assert mask is None
        assert dropout == 0.0
        assert q.shape[-2] % 32 == 0
        assert q.shape[-1] in (32, 64, 128, 256)
        if self.wrong == "raises":
            raise NotImplementedError("Block pointers have been removed")
        dk = dk * 0 if self.wrong == "no dk" else dk
        causal = causal and self.wrong != "not causal"
        # A central difference in float64: it runs below autograd, where there is no forward mode.
        values = []
        for step in (H, -H):
            at = [x.double() + step * d.double() for x, d in zip((q, k, v), (dq, dk, dv), strict=True)]
            values.append(written_out(at[0], at[1], at[2], causal, scale))
        ahead, behind = values
        tangent = ((ahead - behind) / (2 * H)).to(q.dtype) * (math.nan if self.wrong == "nan" else 1)
        return written_out(q, k, v, causal, scale), (tangent, torch.empty(q.shape[:-1]), None, q.shape[-1])


def install(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> Kernel:
    package, module = ModuleType("jvp_flash_attention"), ModuleType("jvp_flash_attention.jvp_attention")
    module.JVPAttn = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return kernel


@pytest.fixture(autouse=True)
def _rules_as_they_were() -> Iterator[None]:
    before = dict(RULES)
    yield
    assert {op for op in before if op not in RULES} == set()
    RULES.update(before)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = install(monkeypatch, Kernel())
    use_jvp_flash_attention(device="cpu")
    kernel.calls = 0
    return kernel


def draw(*shape: int, count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).unbind(0))


OPTIONS: list[dict[str, Any]] = [{}, {"is_causal": True}, {"scale": 0.3}]


@pytest.mark.parametrize("missing", [(), (0,), (1, 2), (0, 2)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernel_computes_what_the_shipped_rule_does(
    options: dict[str, Any], missing: tuple[int, ...], kernel: Kernel
) -> None:
    q, k, v, *along = draw(2, 3, 64, 32, count=6)
    tangents = tuple(None if i in missing else d for i, d in enumerate(along))

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)

    u, du_dt = stopgrad_jvp(fn, (q, k, v), tangents)
    assert kernel.calls == 1
    assert torch.equal(u, fn(q, k, v))
    use_jvp_flash_attention(False)
    _, expected = stopgrad_jvp(fn, (q, k, v), tangents)
    assert kernel.calls == 1
    torch.testing.assert_close(du_dt, expected, rtol=1e-4, atol=1e-5)


def test_in_a_network_whose_heads_are_views(kernel: Kernel) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(64, 192)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4).unbind(0)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    block = Block()
    x, d = draw(2, 32, 64, count=2)
    u, du_dt = stopgrad_jvp(block, (x,), (d,))
    assert kernel.calls == 1
    assert u.requires_grad
    use_jvp_flash_attention(False)
    torch.testing.assert_close(du_dt, stopgrad_jvp(block, (x,), (d,))[1], rtol=1e-4, atol=1e-5)


NOT_TAKEN: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], torch.dtype]] = {
    "tokens no multiple of 32": ((2, 2, 50, 32), (2, 2, 50, 32), {}, torch.float32),
    "narrow heads": ((2, 2, 64, 16), (2, 2, 64, 16), {}, torch.float32),
    "cross-attention": ((2, 2, 32, 32), (2, 2, 64, 32), {}, torch.float32),
    "grouped heads": ((2, 4, 32, 32), (2, 2, 32, 32), {"enable_gqa": True}, torch.float32),
    "a mask": ((2, 2, 32, 32), (2, 2, 32, 32), {"attn_mask": torch.linspace(-1, 1, 1024).view(32, 32)}, torch.float32),
    "a Boolean mask": ((2, 2, 32, 32), (2, 2, 32, 32), {"attn_mask": torch.eye(32) < 1}, torch.float32),
    "float64": ((2, 2, 32, 32), (2, 2, 32, 32), {}, torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_it_does_not_take_stays_with_the_shipped_rule(case: str, kernel: Kernel) -> None:
    of_q, of_k, options, dtype = NOT_TAKEN[case]
    q, dq = (x.to(dtype) for x in draw(*of_q, count=2))
    k, v, dk, dv = (x.to(dtype) for x in draw(*of_k, count=4, seed=1))

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)

    _, found = stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))
    use_jvp_flash_attention(False)
    _, expected = stopgrad_jvp(fn, (q, k, v), (dq, dk, dv))
    assert kernel.calls == 0
    # The same rule ran: but for grouped heads, which torch itself repeats into equal ones, the same bits.
    assert torch.equal(found, expected)


def test_tensors_of_another_device_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = install(monkeypatch, Kernel())
    use_jvp_flash_attention(device="cpu")
    for rule in RULES.values():
        if hasattr(rule, "device"):
            monkeypatch.setattr(rule, "device", "cuda")
    kernel.calls = 0
    six = draw(2, 2, 32, 32, count=6)
    stopgrad_jvp(F.scaled_dot_product_attention, tuple(six[:3]), tuple(six[3:]))
    assert kernel.calls == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("no dk", r"is off by \de[-+]\d\d\."),
        ("not causal", r"is off by .* with a causal mask"),
        ("nan", r"is off by nan"),
        ("raises", r"fails: NotImplementedError: Block pointers"),
    ],
)
def test_a_wrong_kernel_is_refused_and_changes_nothing(wrong: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(RULES)
    install(monkeypatch, Kernel(wrong))
    with pytest.raises(ParameterError, match=f"(?s){says}.*leave the call out"):
        use_jvp_flash_attention(device="cpu")
    assert before == RULES


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jvp_flash_attention", None)
    monkeypatch.delitem(sys.modules, "jvp_flash_attention.jvp_attention", raising=False)
    with pytest.raises(ParameterError, match=r"(?s)cannot be had.*pip install --no-deps jvp_flash_attention"):
        use_jvp_flash_attention()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Kernel())
    with pytest.raises(ParameterError, match="on cuda, fails"):
        use_jvp_flash_attention()


def test_on_and_off_leaves_the_table_as_it_was_and_a_rule_of_ones_own_alone(kernel: Kernel) -> None:
    use_jvp_flash_attention(device="cpu")
    fused = [op for op, rule in RULES.items() if hasattr(rule, "kernel")]
    assert fused
    RULES[fused[0]] = mine = lambda *args: None
    use_jvp_flash_attention(False)
    assert RULES[fused[0]] is mine
    assert all(RULES[op] is attention_rule for op in fused[1:])


REAL = """
import torch, torch.nn.functional as F
from meanflow_ref.jvp.stopgrad import stopgrad_jvp, use_jvp_flash_attention
for tokens, width, options in ((64, 32, {}), (96, 64, {"is_causal": True}), (64, 128, {"scale": 0.3})):
    six = torch.randn(6, 1, 2, tokens, width, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = []
    for on in (True, False):
        use_jvp_flash_attention(on, device="cpu")
        attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)
        found.append(stopgrad_jvp(attend, six[:3], (six[3], None, six[5]))[1])
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
print("agree")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jvp_flash_attention") is None or importlib.util.find_spec("triton") is None,
    reason="jvp_flash_attention and triton are not installed",
)
def test_the_real_kernel_interpreted() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.stdout.strip() == "agree", run.stderr[-2000:]
