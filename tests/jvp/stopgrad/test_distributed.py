"""Two processes on this machine: gradients equal to one process, whichever wrapper holds the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")

# Run by each rank; a script of its own, since a spawned child would import the test session.
RANK = """
import sys, datetime, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from meanflow_ref.objectives.meanflow import meanflow_loss
from meanflow_ref.models import MLP

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=240))

def build():
    torch.manual_seed(0)
    return MLP(4, 16, 2).double()

def data(rank):
    g = torch.Generator().manual_seed(10 + rank)
    x, eps = torch.randn(2, 8, 4, dtype=torch.float64, generator=g)
    times = torch.rand(2, 8, dtype=torch.float64, generator=g).sort(0).values
    return x, eps, times[0], times[1]

def gradients(net):
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in net.parameters()]

# One process: the mean over both ranks' batches.
alone, expected = build(), None
for k in range(2):
    meanflow_loss(alone, *data(k), jvp="func", weight_power=0.0).loss.backward()
expected = [p.grad / 2 for p in alone.parameters()]

def check(name, net):
    # A static graph is learned in the first iteration, and is that of one form.
    for jvp in ("stopgrad",) * 2 + ("stopgrad_traced",) * 2:
        net.zero_grad(set_to_none=True)
        meanflow_loss(net, *data(rank), weight_power=0.0, jvp=jvp).loss.backward()
        worst = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(gradients(net), expected))
        assert worst < 1e-12, f"{name}, {jvp}: {worst}"

class Whole(nn.Module):
    # The loss as the wrapped module: what is inside is no wrapper, and is recorded.
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, *batch):
        return meanflow_loss(self.net, *batch, weight_power=0.0, jvp="stopgrad_traced").loss

whole = DDP(Whole(build()))
for _ in range(2):
    whole.zero_grad(set_to_none=True)
    whole(*data(rank)).backward()
from meanflow_ref.jvp.stopgrad.traced import why_untraced
assert not why_untraced(whole.module.net)
worst = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(gradients(whole), expected))
assert worst < 1e-12, f"the loss wrapped: {worst}"

for options in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
    check(str(options), DDP(build(), **options))
try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    fully_shard = None
if fully_shard is not None:
    from torch.distributed.device_mesh import init_device_mesh
    mesh = init_device_mesh("cpu", (2,))
    net = build()
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    check("fully_shard", fully_shard(net, mesh=mesh))
dist.barrier()
dist.destroy_process_group()
print("agreed")
"""


@pytest.mark.timeout(300)
def test_gradients_of_two_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    script, store = tmp_path / "rank.py", tmp_path / "store"
    script.write_text(RANK)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(store)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=270)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    if any("Unable to find address for" in out for out in outputs):
        pytest.skip("no loopback interface for gloo here")
    # A line of its own, not the last: at exit a thread of gloo can outlive its owner, and C++ says so.
    assert all("agreed" in out.splitlines() for out in outputs), "\n".join(outputs)
