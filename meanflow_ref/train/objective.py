"""The loss of a batch as a module. This, and not the network, is what is compiled, replicated and sharded."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from meanflow_ref import formulas
from meanflow_ref.errors import ParameterError
from meanflow_ref.fields import AbstractDataField
from meanflow_ref.jvp import get_backend
from meanflow_ref.objectives.guidance import Guidance
from meanflow_ref.objectives.meanflow import MeanFlowTerms, meanflow_loss, meanflow_loss_at
from meanflow_ref.objectives.times import AbstractTimePair, LogitNormalPair, UniformPair
from meanflow_ref.objectives.weighting import adaptive_weight, squared_norm
from meanflow_ref.train.config import Config
from meanflow_ref.train.precision import backend_of, whole_autocast

# net, x, eps, r, t and the keywords of `meanflow_loss`, to its terms.
Objective = Callable[..., MeanFlowTerms]


def flow_matching(
    net: Callable[..., Tensor],
    x: Tensor,
    eps: Tensor,
    r: Tensor,
    t: Tensor,
    *,
    label: Tensor | None = None,
    guidance: Guidance | None = None,
    weight_power: float = 1.0,
    weight_eps: float = 1e-3,
    norm: str = "sum",
    **unused: Any,
) -> MeanFlowTerms:
    """Regression of ``u(z, t, t)`` on the velocity of the sample; r is not looked at. Source: fm:conditional-velocity.

    What a MeanFlow loss is on its rows with r = t, without a JVP: the pretraining that ``--init`` starts from.
    """
    t_ = t.reshape(-1, *[1] * (x.dim() - 1))
    z, v = (1 - t_) * x + t_ * eps, eps - x
    labels = () if label is None else (label,)
    if guidance is not None and label is not None:
        v = guidance.sample_velocity(net, z, v, t, label)
    u = net(z, t, t, *labels)
    squared_error = squared_norm(u.to(v.dtype) - v, norm)
    weight = adaptive_weight(squared_error, weight_power, weight_eps)
    per_sample = weight * squared_error
    return MeanFlowTerms(per_sample.mean(), per_sample, squared_error, weight, u, v, torch.zeros_like(v), v, z)


OBJECTIVES: dict[str, Objective] = {"meanflow": meanflow_loss, "flow-matching": flow_matching}


def objective_of(name: str) -> Objective:
    """The objective of that name, or the function ``pkg.mod:name`` that is called as ``meanflow_loss`` is."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError) as error:
        raise ParameterError(f"--objective {name}: {error}.", "pkg.mod:function", "") from error
    if not callable(found):
        from difflib import get_close_matches

        near = get_close_matches(name, OBJECTIVES, n=1)
        raise ParameterError(
            f"--objective is {name!r}.",
            f"one of {', '.join(OBJECTIVES)}, or pkg.mod:function",
            f"--objective {near[0]}" if near else "",
        )
    objective: Objective = found
    return objective


def times_of(config: Config) -> AbstractTimePair:
    """The law of (r, t)."""
    if config.times == "uniform":
        return UniformPair(equal=config.equal)
    return LogitNormalPair(config.time_mean, config.time_std, equal=config.equal)


class Step(nn.Module):
    """``x, eps, r, t, label`` to the loss and its terms, by the options of a run.

    The JVP runs inside ``forward``, so that a wrapper around this module (DistributedDataParallel, FSDP)
    sees one ordinary forward pass and its hooks reduce every gradient. Around the network alone it would not: a JVP
    of ``ddp.module`` skips the reduction, without an error.

    Args:
        net: The network.
        config: The options.
        classes: Number of classes; the null label. None for data without.
        field: The exact field, for ``velocity="marginal"``.

    """

    def __init__(self, net: nn.Module, config: Config, classes: int | None, field: AbstractDataField | None) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.objective = objective_of(config.objective)
        self.backend = backend_of(config.jvp, config.precision)
        self.guidance = None
        if config.guided:
            assert classes is not None
            interval = (config.guided_from, config.guided_to)
            self.guidance = Guidance(config.omega, config.kappa, null_label=classes, interval=interval)
        self.field = field if config.velocity == "marginal" else None
        if self.field is not None and config.objective != "meanflow":
            raise ParameterError(
                f"--velocity marginal with --objective {config.objective}.", "--objective meanflow", "leave it out"
            )

    def forward(self, x: Tensor, eps: Tensor, r: Tensor, t: Tensor, label: Tensor | None) -> MeanFlowTerms:
        """The terms of a batch."""
        return self.terms(self.net, x, eps, r, t, label)

    def terms(
        self,
        net: Callable[..., Any],
        x: Tensor,
        eps: Tensor,
        r: Tensor,
        t: Tensor,
        label: Tensor | None,
        *,
        exact: bool = False,
    ) -> MeanFlowTerms:
        """The same of another network; ``exact`` takes the backend as it is, without autocast."""
        c = self.config
        options = {
            "label": label,
            "guidance": self.guidance,
            "weight_power": c.weight_power,
            "weight_eps": c.weight_eps,
            "norm": c.norm,
            "jvp": get_backend(c.jvp) if exact else self.backend,
            # The mixed-precision backend makes two passes of its own.
            "two_pass": c.two_pass and c.precision != "bf16",
        }
        with whole_autocast("fp32" if exact else c.precision, x.device):
            if self.field is None:
                return self.objective(net, x, eps, r, t, **options)
            path, t_ = self.field.path, t[:, None]
            z = formulas.interpolant(x, eps, path.alpha(t_), path.sigma(t_))
            v = self.field.to(dtype=z.dtype, device=z.device).velocity(z, t)
            return meanflow_loss_at(net, z, v, r, t, **options)  # type: ignore[arg-type]
