"""Time features: values, speed, and the float32 path."""

from __future__ import annotations

import math

import pytest
import torch

from meanflow_ref.errors import ParameterError
from meanflow_ref.models import TIME_SCALE, Conditioning, TimeEmbedding, time_features


def test_features_are_cosines_and_sines_of_geometric_frequencies() -> None:
    t = torch.tensor([0.3], dtype=torch.float64)
    values = time_features(t, 6, scale=8.0, base=4.0)[0]
    expected = [f(w * 0.3) for f in (math.cos, math.sin) for w in (8.0, 4.0, 2.0)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("scale", [TIME_SCALE, 1000.0])
def test_speed_is_the_norm_of_the_frequencies_at_every_time(scale: float) -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    _, speed = torch.func.jvp(lambda s: time_features(s, 64, scale=scale), (t,), (torch.ones_like(t),))[:2]
    frequencies = [scale * 16.0 ** (-k / 31) for k in range(32)]
    expected = math.sqrt(sum(w * w for w in frequencies))
    torch.testing.assert_close(speed.norm(dim=-1), torch.full_like(t, expected), rtol=1e-12, atol=0)


def test_the_inherited_embedding_is_153_times_stiffer() -> None:
    """The number in the module's text: scale 1000 and base 10000 on 64 features, exponents k/32."""
    ours = math.sqrt(sum((TIME_SCALE * 16 ** (-k / 31)) ** 2 for k in range(32)))
    inherited = math.sqrt(sum((1000 * 10_000 ** (-k / 32)) ** 2 for k in range(32)))
    assert round(inherited / ours) == 153


def test_bfloat16_times_are_embedded_in_float32() -> None:
    t = torch.tensor([0.75, 0.5], dtype=torch.bfloat16)  # both exact in bfloat16
    assert time_features(t, 8).dtype == torch.float32
    assert torch.equal(time_features(t, 8), time_features(t.float(), 8))


def test_the_difference_of_times_is_taken_before_rounding() -> None:
    """A bfloat16 network told t - r = 1e-3 near t = 1 must tell it from 0, where bfloat16 times could not."""
    torch.manual_seed(0)
    net = Conditioning(8).bfloat16()
    durations: list[torch.Tensor] = []
    net.duration.register_forward_pre_hook(lambda _, args: durations.append(args[0]))
    t = torch.tensor([0.999])
    net(t - 1e-3, t)
    assert durations[0].dtype == torch.float32
    # t and r are each rounded to 6e-8 of float32.
    assert float(durations[0]) == pytest.approx(1e-3, abs=2e-7)


@pytest.mark.parametrize("features", [0, 3])
def test_odd_features_are_refused(features: int) -> None:
    with pytest.raises(ParameterError, match="even number"):
        TimeEmbedding(8, features=features)
