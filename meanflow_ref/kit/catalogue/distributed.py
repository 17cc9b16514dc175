"""Training on several devices: found by ``check_distributed``, with two processes on this machine."""

from __future__ import annotations

from meanflow_ref.kit.catalogue.page import Page
from meanflow_ref.kit.catalogue.sister_effects import effect

PAGES = (
    Page(
        name="GRADIENTS_NOT_SYNCED",
        part="gradient",
        title="The ranks do not share one gradient",
        symptom="No error. Every rank trains a model of its own; rank 0's is saved. Or the learning rate seems off by "
        "the number of devices.",
        wrong="u, du_dt = torch.func.jvp(ddp.module, ...); loss.backward()",
        right="the JVP inside the wrapped module, or two passes: the second through ddp(z, r, t)",
        cause="torch.func.jvp does not run on a DistributedDataParallel object in all versions of torch, and "
        "`ddp.module` goes round its hooks: nothing averages the gradients. Seen in public code; the official PyTorch "
        "code warns of it.",
        remedy="class Loss(nn.Module):                       # wrap the loss\n"
        "    def forward(self, x): ...              # torch.func.jvp(self.net, ...) in here\n"
        "ddp = DistributedDataParallel(Loss(net)); ddp(x).backward()",
        effect=effect("GRADIENTS_NOT_SYNCED"),
    ),
)
