"""Small networks with one obstacle each, and relatives without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from meanflow_ref.kit.mutants.case import Case
from meanflow_ref.models.embedding import time_features
from meanflow_ref.models.mlp import MLP

_checkpoint: Callable[..., Tensor] = checkpoint


class Small(nn.Module):
    """A perceptron on four numbers; the parts that its children replace are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet, self.middle, self.outlet = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.time = nn.Linear(16, 16)

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """Vector of the times."""
        features: Tensor = self.time(torch.cat([time_features(t, 8), time_features(t - r, 8)], 1).to(r.dtype))
        return features

    def body(self, h: Tensor) -> Tensor:
        """The hidden layer."""
        return functional.silu(self.middle(h))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Return u."""
        u: Tensor = self.outlet(self.body(functional.silu(self.inlet(z) + self.embed(r, t))))
        return u


# ------------------------------------------------------------ obstacles


class FusedAttention(Small):
    """Attention by the fused kernel."""

    def body(self, h: Tensor) -> Tensor:
        """Two heads."""
        q = super().body(h).view(len(h), 2, 4, 2)
        return functional.scaled_dot_product_attention(q, q, q).reshape(h.shape)


class InnerAttention(Small):
    """The same one level down, beside innocent modules."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(16, 16), _Heads(), nn.LayerNorm(16))

    def body(self, h: Tensor) -> Tensor:
        """Three blocks."""
        out: Tensor = self.blocks(h)
        return out


class _Heads(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        """Attend over pairs."""
        q = h.view(len(h), 1, 8, 2)
        return functional.scaled_dot_product_attention(q, q, q).reshape(h.shape)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """2 x."""
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """2 g."""
        return 2 * gradient


class CustomFunction(Small):
    """A custom function without jvp."""

    def body(self, h: Tensor) -> Tensor:
        """Doubled."""
        out: Tensor = _Doubled.apply(super().body(h))  # type: ignore[no-untyped-call]
        return out


class TimeTable(Small):
    """Times as steps of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 16)

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """Two rows of the table."""
        out: Tensor = self.table((999 * t).long()) + self.table((999 * r).long())
        return out


class TimeDetached(Small):
    """Times outside the graph."""

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """Of detached times."""
        return super().embed(r, t.detach())


class HalfDead(Small):
    """t - r alive, t dead."""

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """A cosine of detached t beside the rest."""
        return super().embed(r, t) + torch.cos(3 * t.detach())[:, None]


class TimeIgnored(Small):
    """No times at all."""

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """Constant."""
        return super().embed(0 * r, 0 * t)


class StartIgnored(Small):
    """r is not used."""

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """Of t alone."""
        return super().embed(0 * r, t)


class Thousandfold(Small):
    """The sinusoids of diffusion transformers."""

    def embed(self, r: Tensor, t: Tensor) -> Tensor:
        """1000 t in base 10000."""
        rates = 1000 * 10000 ** (-torch.arange(4, dtype=t.dtype, device=t.device) / 4)
        a, b = t[:, None] * rates, (t - r)[:, None] * rates
        features: Tensor = self.time(torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], 1))
        return features


class FrozenPart(Small):
    """A part under no_grad."""

    def body(self, h: Tensor) -> Tensor:
        """Features without a graph."""
        with torch.no_grad():
            features = torch.tanh(self.middle(h))
        return features + h


class DetachedPart(Small):
    """A branch that is detached."""

    def body(self, h: Tensor) -> Tensor:
        """Hidden layer of detached input, beside a skip connection."""
        return super().body(h.detach()) + h


class Normalised(Small):
    """BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def body(self, h: Tensor) -> Tensor:
        """Normalised over the batch."""
        out: Tensor = self.norm(super().body(h))
        return out


class Centred(Small):
    """The batch's mean taken off."""

    def body(self, h: Tensor) -> Tensor:
        """Centred."""
        return super().body(h) - h.mean(0)


class Reentrant(Small):
    """A reentrant checkpoint."""

    def body(self, h: Tensor) -> Tensor:
        """Checkpointed."""
        return _checkpoint(super().body, h, use_reentrant=True)


class Recomputed(Small):
    """A checkpoint that is not reentrant: the JVP runs, the backward pass does not."""

    def body(self, h: Tensor) -> Tensor:
        """Checkpointed."""
        return _checkpoint(super().body, h, use_reentrant=False)


class _Kernel(torch.autograd.Function):
    """2 x by code that leaves the graph, as a kernel does, with rules that are right. Dynamo drops the jvp."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """2 x."""
        return 2 * x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """2 g."""
        return 2 * gradient

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """2 dx."""
        return 2 * tangent


class CustomKernel(Small):
    """A kernel with rules."""

    def body(self, h: Tensor) -> Tensor:
        """Doubled."""
        out: Tensor = _Kernel.apply(super().body(h))  # type: ignore[no-untyped-call]
        return out


class Dropped(Small):
    """Dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def body(self, h: Tensor) -> Tensor:
        """With dropout."""
        out: Tensor = self.drop(super().body(h))
        return out


MUTANTS = (
    Case("fused attention", FusedAttention, "ATTENTION_NO_FORWARD_AD"),
    Case("fused attention, one level down", InnerAttention, "ATTENTION_NO_FORWARD_AD"),
    Case("custom function", CustomFunction, "CUSTOM_FUNCTION_NO_JVP"),
    Case("integer time table", TimeTable, "TIME_DERIVATIVE_DEAD"),
    Case("detached t", TimeDetached, "TIME_DERIVATIVE_DEAD"),
    Case("t half dead", HalfDead, "TIME_DERIVATIVE_DEAD"),
    Case("no times", TimeIgnored, "TIME_DERIVATIVE_DEAD"),
    Case("no r", StartIgnored, "TIME_DERIVATIVE_DEAD"),
    Case("times x 1000 in bfloat16", Thousandfold, "TIME_STIFFNESS", {"dtype": torch.bfloat16}),
    Case("no_grad inside", FrozenPart, "NO_GRAD_IN_FORWARD"),
    Case("detach inside", DetachedPart, "NO_GRAD_IN_FORWARD"),
    Case("BatchNorm", Normalised, "BATCH_COUPLING"),
    Case("mean over the batch", Centred, "BATCH_COUPLING"),
    Case("reentrant checkpoint", Reentrant, "CHECKPOINT_REENTRANT"),
    Case("checkpoint, one pass", Recomputed, "CHECKPOINT_REENTRANT"),
)

# The compiled check takes seconds: it has a test of its own.
COMPILED = Case("custom jvp, compiled", CustomKernel, "COMPILED_NEQ_EAGER", {"compiled": True})


# ------------------------------------------------------------ no obstacle


class WrittenAttention(Small):
    """Attention as softmax."""

    def body(self, h: Tensor) -> Tensor:
        """Two heads."""
        q = super().body(h).view(len(h), 2, 4, 2)
        return (torch.softmax(q @ q.mT / 2**0.5, -1) @ q).reshape(h.shape)


class Grouped(Small):
    """GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 16)

    def body(self, h: Tensor) -> Tensor:
        """Normalised within a row."""
        out: Tensor = self.norm(super().body(h))
        return out


class Asleep(Small):
    """Zero at the start, as adaLN-zero."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)


class Kinked(Small):
    """ReLU."""

    def body(self, h: Tensor) -> Tensor:
        """Rectified."""
        return functional.relu(self.middle(h))


def frozen_by_flag() -> Small:
    """Parameters frozen by requires_grad_, the right way."""
    net = Small()
    net.middle.requires_grad_(False)
    return net


def evaluated_norm() -> nn.Module:
    """BatchNorm with frozen statistics."""
    return Normalised().eval()


CORRECT = (
    Case("perceptron", Small),
    Case("the library's perceptron", lambda: MLP(4, width=32, depth=2)),
    Case("written attention", WrittenAttention),
    Case("GroupNorm", Grouped),
    Case("zero at the start", Asleep),
    Case("ReLU", Kinked),
    Case("custom function with jvp", CustomKernel),
    Case("frozen by requires_grad_", frozen_by_flag),
    Case("BatchNorm in evaluation", evaluated_norm),
    Case("bfloat16", Small, options={"dtype": torch.bfloat16}),
    Case("dropout", Dropped, "DROPOUT_MISMATCH", note=True),
    Case("times x 1000 in float32", Thousandfold, "TIME_STIFFNESS", note=True),
)
