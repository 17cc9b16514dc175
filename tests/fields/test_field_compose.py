"""Products and rotations against the mixture with all combinations of modes, and against conjugated normal data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from meanflow_ref.errors import DtypeError, NoClosedFormError, ParameterError, ShapeError
from meanflow_ref.fields import Affine, Gaussian, GaussianMixture, Product
from meanflow_ref.paths import LINEAR, TRIGONOMETRIC


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def factors() -> tuple[GaussianMixture, GaussianMixture, GaussianMixture]:
    return (
        GaussianMixture(tensor(0.5, 0.5), tensor(-1.0, 1.2), tensor(0.3, 0.4)),
        GaussianMixture(tensor(0.7, 0.3), tensor(0.5, -1.5), tensor(0.2, 0.6)),
        GaussianMixture(tensor(1.0), tensor(0.3), tensor(0.8)),
    )


def all_combinations() -> GaussianMixture:
    """The product's law as one mixture of 2 x 2 x 1 components."""
    parts = [list(zip(f.weights.tolist(), f.means.tolist(), f.stds.tolist(), strict=True)) for f in factors()]
    combined = list(itertools.product(*parts))
    weights = tensor(*(math.prod(w for w, _, _ in combination) for combination in combined))
    means = torch.stack([tensor(*(m for _, m, _ in combination)) for combination in combined])
    stds = torch.stack([tensor(*(s for _, _, s in combination)) for combination in combined])
    return GaussianMixture(weights, means, stds)


def draw(n: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(2, n, dtype=torch.float64, generator=generator)
    return torch.randn(n, 3, dtype=torch.float64, generator=generator), times.amin(0), times.amax(0)


def test_product_is_the_mixture_of_all_combinations() -> None:
    product, mixture = Product(factors()), all_combinations()
    z, _, t = draw()
    # Softmax weights over four components against two: exponents up to 100, each rounded.
    assert float((product.velocity(z, t) - mixture.velocity(z, t)).abs().max()) < 1e-12
    assert float((product.log_density(z, t) - mixture.log_density(z, t)).abs().max()) < 1e-12
    scale = 1 + mixture.velocity_covariance(z, t).abs().amax((1, 2), keepdim=True)
    residual = product.velocity_covariance(z, t) - mixture.velocity_covariance(z, t)
    assert float((residual.abs() / scale).max()) < 1e-12
    assert product.exact_flow
    assert not mixture.exact_flow


def test_rotated_gaussian_is_gaussian() -> None:
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
    mean, spectrum, shift = tensor(0.3, -1.0, 0.5), tensor(0.2, 1.0, 3.0), tensor(1.0, -2.0, 0.5)
    inner = Gaussian(mean, torch.diag(spectrum))
    affine = Affine(inner, rotation, shift)
    direct = Gaussian(rotation @ mean + shift, rotation @ torch.diag(spectrum) @ rotation.mT)
    z, r, t = draw()
    for name, arguments in (
        ("velocity", (z, t)),
        ("average_velocity", (z, r, t)),
        ("flow_map", (z, t, r)),
        ("jacobian", (z, r, t)),
        ("log_density", (z, t)),
        ("velocity_covariance", (z, t)),
    ):
        one, other = getattr(affine, name)(*arguments), getattr(direct, name)(*arguments)
        # Two products with an orthogonal matrix, in different places.
        assert float(((one - other).abs() / (1 + other.abs())).max()) < 1e-13, name
    x = affine.sample_data(20000, generator)
    # Moments to 5 standard errors: false alarms 6e-7 for each of 12 numbers.
    assert float(((x.mean(0) - direct.mean) / (direct.covariance.diagonal() / 20000).sqrt()).abs().max()) < 5
    variances = direct.covariance.diagonal()
    errors = ((variances[:, None] * variances + direct.covariance**2) / 20000).sqrt()
    assert float(((torch.cov(x.mT) - direct.covariance) / errors).abs().max()) < 5


def test_factors_without_a_flow_have_none_together() -> None:
    plane = GaussianMixture(tensor(0.5, 0.5), tensor(0.0, 1.0, 1.0, 0.0).reshape(2, 2), tensor(1.0, 1.0))
    product = Product((factors()[0], plane))
    assert not product.exact_flow
    with pytest.raises(NoClosedFormError):
        product.flow_map(torch.zeros(1, 3, dtype=torch.float64), 1.0, 0.0)


def test_parameters_are_checked() -> None:
    one = factors()[0]
    with pytest.raises(ParameterError, match="one path"):
        Product((one, GaussianMixture(one.weights, one.means, one.stds, TRIGONOMETRIC)))
    with pytest.raises(ParameterError, match="empty"):
        Product(())
    with pytest.raises(DtypeError, match="one dtype"):
        Product((one, one.to(dtype=torch.float32)))
    product = Product(factors())
    with pytest.raises(ParameterError, match=r"stretches by 1 \+ 0\.5"):
        Affine(product, torch.diag(tensor(1.0, 1.5, 1.0)), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ShapeError, match="rotation"):
        Affine(product, torch.eye(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(DtypeError, match="one dtype"):
        Affine(product, torch.eye(3), torch.zeros(3))
    assert product.path == LINEAR
