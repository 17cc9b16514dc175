"""Fine-tuning starts from the flow-matching field; mixed precision keeps what it says it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meanflow_ref.errors import ParameterError
from meanflow_ref.models import MLP, DiT, UNet
from meanflow_ref.models.embedding import Conditioning
from meanflow_ref.train.checkpoint import dump_tensors
from meanflow_ref.train.data.fields import ring
from meanflow_ref.train.networks import make_network, read_weights, start_from_flow_matching
from meanflow_ref.train.objective import Step, objective_of
from meanflow_ref.train.precision import autocast_primal, rounding_errors
from meanflow_ref.train.presets import preset

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(5, 16, 2, 3), (5,)),
    "dit": (lambda: DiT(4, 2, 2, 16, 2, 2, 3), (2, 4, 4)),
    "unet": (lambda: UNet(2, 8, (1, 2), 3, groups=4, blocks=2), (2, 8, 8)),
}


def make(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A network with no zero left in it, and a batch with r < t."""
    build, shape = MODELS[name]
    generator = torch.Generator().manual_seed(3)
    net = build()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    z = torch.randn(4, *shape, generator=generator)
    r, t = torch.rand(2, 4, generator=generator).sort(0).values
    return net, z, r, t, torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("with_duration", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_u_starts_as_the_flow_matching_v_for_every_r(name: str, with_duration: bool) -> None:
    teacher, z, r, t, label = make(name)
    v = teacher(z, t, t, label).detach()
    weights = {k: x for k, x in teacher.state_dict().items() if with_duration or "duration" not in k}
    if not with_duration:
        with torch.no_grad():
            for k, x in teacher.named_parameters():
                if "duration.out" in k:
                    x.zero_()
        v = teacher(z, t, t, label).detach()
    student = MODELS[name][0]()
    start_from_flow_matching(student, weights)
    for end in (t, r, torch.zeros_like(t)):
        # The constant of t - r = 0 is added to a bias: one rounding.
        torch.testing.assert_close(student(z, end, t, label), v, rtol=1e-4, atol=1e-5)
    loss = (student(z, r, t, label) - 1).square().sum()
    torch.autograd.backward(loss)
    gradients = {k: float(p.grad.abs().max()) for k, p in student.named_parameters() if p.grad is not None}
    assert all(g > 0 for k, g in gradients.items() if "duration.out" in k), "and the embedding of t - r learns"


def test_without_the_fold_it_would_not() -> None:
    teacher, z, r, t, label = make("mlp")
    student = MODELS["mlp"][0]()
    student.load_state_dict(teacher.state_dict())
    moved = (student(z, r, t, label) - teacher(z, t, t, label)).detach()
    assert float(moved.abs().max()) > 1e-3


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    teacher, *_ = make("mlp")
    with pytest.raises(ParameterError, match=r"inlet.weight has shape \(16, 5\)"):
        start_from_flow_matching(MLP(6, 16, 2, 3), teacher.state_dict())
    with pytest.raises(ParameterError, match=r"(?s)missing hidden.2.*the same --model"):
        start_from_flow_matching(MLP(5, 16, 3, 3), teacher.state_dict())
    with pytest.raises(ParameterError, match=r"not of this network: hidden\.1"):
        start_from_flow_matching(MLP(5, 16, 1, 3), teacher.state_dict())
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ParameterError, match="never loaded"):
        read_weights(tmp_path / "a.pt")
    with pytest.raises(ParameterError, match="no such file"):
        read_weights(tmp_path / "b.safetensors")
    path = tmp_path / "c.safetensors"
    path.write_bytes(dump_tensors(teacher.state_dict())[:-10])
    with pytest.raises(ParameterError, match="no whole safetensors"):
        read_weights(path)


def test_the_network_is_the_seeds_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    a, b, c = (make_network(preset("toy", seed=seed), (2,), None) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = list(zip(a.parameters(), b.parameters(), c.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y, _ in pairs)
    assert not all(torch.equal(x, y) for x, _, y in pairs)


# ---------------------------------------------------------------- bfloat16


def batch(z: Tensor, r: Tensor, t: Tensor, label: Tensor) -> tuple[Any, ...]:
    return z, torch.randn(z.shape, generator=torch.Generator().manual_seed(1)), r, t, label


@pytest.mark.parametrize("name", MODELS)
def test_bf16_rounds_u_and_not_du_dt(name: str) -> None:
    net, *inputs = make(name)
    config = preset("toy", jvp="func", label_dropout=0.1)
    errors = {}
    for precision in ("fp32", "bf16"):
        step = Step(net, preset("toy", jvp="func", precision=precision), 3, None)
        errors[precision] = rounding_errors(net, step.terms, batch(*inputs))
    assert config.precision == "fp32"
    # float32 has 24 bits, bfloat16 8: relative errors of some 1e-7 and 1e-3.
    assert errors["fp32"]["rounding_u"] < 1e-5
    assert 1e-4 < errors["bf16"]["rounding_u"] < 3e-2
    # The same pass, though without a graph: at most other kernels.
    assert errors["bf16"]["rounding_du_dt"] < max(2 * errors["fp32"]["rounding_du_dt"], 1e-6) < 1e-4
    assert errors["bf16"]["rounding_target"] < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_bf16_all_rounds_both_in_one_pass(name: str) -> None:
    """u is that of bf16, and du/dt is off as u is: more than in float32, by no more than bfloat16 explains."""
    net, *inputs = make(name)
    errors, passes = {}, []
    net.register_forward_hook(lambda *_: passes.append(1))
    for precision in ("bf16", "bf16-all"):
        step = Step(net, preset("toy", precision=precision), 3, None)
        passes.clear()
        terms = step(*batch(*inputs))
        assert len(passes) == {"bf16": 2, "bf16-all": 1}[precision]
        assert terms.loss.dtype == torch.float32
        errors[precision] = rounding_errors(net, step.terms, batch(*inputs))
    assert errors["bf16-all"]["rounding_u"] == pytest.approx(errors["bf16"]["rounding_u"], rel=0.5)
    assert errors["bf16"]["rounding_du_dt"] < 1e-4
    assert 1e-3 < errors["bf16-all"]["rounding_du_dt"] < 5e-2


def test_a_derivative_under_autocast_would_be_seen() -> None:
    """The mutant: the whole loss under autocast."""
    net, *inputs = make("mlp")
    step = Step(net, preset("toy", jvp="func"), 3, None)

    def under_autocast(net: nn.Module, *args: Any, exact: bool = False) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            return step.terms(net, *args, exact=exact)

    assert rounding_errors(net, under_autocast, batch(*inputs))["rounding_du_dt"] > 1e-3


def test_the_time_embedding_stays_in_float32_under_autocast() -> None:
    conditioning = Conditioning(16, classes=3)
    r, t = torch.tensor([0.1]), torch.tensor([0.7003])
    with torch.autocast("cpu", torch.bfloat16):
        low = conditioning(r, t, torch.tensor([1]))
    assert low.dtype == torch.float32
    assert torch.equal(low, conditioning(r, t, torch.tensor([1])))


def test_bf16_gradients_point_where_float32_ones_do() -> None:
    net, *inputs = make("mlp")
    gradients = []
    for precision in ("fp32", "bf16"):
        net.zero_grad()
        step = Step(net, preset("toy", jvp="func", precision=precision), 3, None)
        torch.autograd.backward(step(*batch(*inputs)).loss)
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        assert gradients[-1].dtype == torch.float32
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.999


def test_dropout_draws_the_same_numbers_for_u_and_its_derivative() -> None:
    net = nn.Sequential(nn.Dropout(0.5))
    x = torch.ones(1, 1000)
    backend = autocast_primal(objective_backend())
    u, du = backend(net, (x,), (x,))
    assert torch.equal(u, du)
    assert 0 < int((u == 0).sum()) < 1000


def objective_backend() -> Any:
    from meanflow_ref.jvp import get_backend

    return get_backend("func")


# ---------------------------------------------------------------- objectives by name


def test_objectives_and_backends_by_name() -> None:
    net, *inputs = make("mlp")
    flow = Step(net, preset("toy", objective="flow-matching"), 3, None)(*batch(*inputs))
    rows = batch(*inputs)
    meanflow = Step(net, preset("toy"), 3, None)(rows[0], rows[1], rows[3], rows[3], rows[4])
    # Flow matching is MeanFlow on rows with r = t.
    torch.testing.assert_close(flow.loss, meanflow.loss, rtol=1e-5, atol=0)
    own = objective_of("meanflow_ref.objectives.meanflow:meanflow_loss")
    assert own is objective_of("meanflow")
    with pytest.raises(ParameterError, match="--objective meanflow"):
        objective_of("meanflo")
    with pytest.raises(ParameterError, match='jvp="double_backward"'):
        Step(net, preset("toy", jvp="double_backwards"), 3, None)
    with pytest.raises(ParameterError, match="--velocity marginal"):
        Step(net, preset("toy", velocity="marginal", objective="flow-matching"), None, ring(2, 1, 1))
