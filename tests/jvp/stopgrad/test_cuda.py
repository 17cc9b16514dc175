"""On a GPU: attention's fused kernels, products in bfloat16, and the outside kernel. Skipped where there is none."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow_ref.bench.scenarios import SMALL_SCENARIOS
from meanflow_ref.jvp.stopgrad import stopgrad_jvp, use_jvp_flash_attention
from meanflow_ref.objectives.meanflow import meanflow_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def draw(tokens: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(6, 2, 3, tokens, width, generator=generator).to("cuda", dtype).unbind(0))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("grad", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("width", [32, 64, 128])
@pytest.mark.parametrize("kernel", KERNELS)
def test_fused_kernels(kernel: str, width: int, causal: bool, grad: bool) -> None:
    q, k, v, *along = draw(96, width, torch.bfloat16)
    q.requires_grad_(grad)

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    with sdpa_kernel(KERNELS[kernel]):
        u, du_dt = stopgrad_jvp(fn, (q, k, v), tuple(along))
    wide = [x.detach().double() for x in (q, k, v, *along)]
    with sdpa_kernel(SDPBackend.MATH):
        value, expected = torch.func.jvp(fn, tuple(wide[:3]), tuple(wide[3:]))[:2]
    # A few units of bfloat16, 2^-8; a wrong formula is off by tens of per cent.
    assert relative(u.detach(), value) < 0.02
    assert relative(du_dt, expected) < 0.02


@pytest.mark.parametrize("scenario", SMALL_SCENARIOS)
def test_products_in_bfloat16(scenario: str) -> None:
    small = SMALL_SCENARIOS[scenario]
    exact = meanflow_loss(
        small.network(dtype=torch.float64), *small.data(dtype=torch.float64), jvp="double_backward"
    ).du_dt
    net, batch = small.network(device="cuda"), small.data(device="cuda")
    assert 1e-3 < relative(meanflow_loss(net, *batch, jvp="stopgrad_bf16").du_dt.cpu(), exact) < 2e-2


@pytest.mark.skipif(importlib.util.find_spec("jvp_flash_attention") is None, reason="needs jvp_flash_attention")
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_the_outside_kernel(width: int, causal: bool) -> None:
    six = draw(96, width, torch.bfloat16)

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    _, expected = stopgrad_jvp(fn, tuple(six[:3]), tuple(six[3:]))
    use_jvp_flash_attention()
    try:
        _, found = stopgrad_jvp(fn, tuple(six[:3]), tuple(six[3:]))
    finally:
        use_jvp_flash_attention(False)
    assert not torch.equal(found, expected)
    assert relative(found, expected) < 0.02
