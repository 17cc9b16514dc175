r"""Energy distance and maximum mean discrepancy between two samples, and what perfect samples would show.

Both are :math:`E k(a,a') + E k(b,b') - 2 E k(a,b)` with a kernel k: :math:`-|x-y|` for the energy distance, a Gaussian
for the MMD. The estimate is unbiased, so that for samples of one law its mean is 0 and it may be negative. Its law is
then that of :math:`\frac{2}{n}\sum_i \lambda_i (W_i^2 - 1)`, with W standard normal and :math:`\lambda_i` the
eigenvalues of the centred kernel under the law: the floor is a quantile of it, for any n, from a sample of a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow_ref.errors import ParameterError
from meanflow_ref.train.metrics import _Z95, Estimate

# (n, d) and (m, d) to (n, m).
Kernel = Callable[[Tensor, Tensor], Tensor]

# Rows of a kernel matrix that are in memory at once.
_ROWS = 500
# Points of the sample whose spectrum stands for the law's, and draws of the weighted chi-squares.
_SPECTRUM, _DRAWS = 1000, 20_000


def distance_kernel(a: Tensor, b: Tensor) -> Tensor:
    """``-|x - y|``; its discrepancy is the energy distance."""
    return -torch.cdist(a, b)


@dataclass(frozen=True)
class GaussianKernel:
    """``exp(-|x - y|^2 / (2 width^2))``."""

    width: float

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """The kernel of each pair."""
        return torch.exp(-torch.cdist(a, b).square() / (2 * self.width**2))


def median_kernel(data: Tensor) -> GaussianKernel:
    """The Gaussian whose width is the median distance of (at most 500) data points."""
    few = data[:500].double()
    return GaussianKernel(float(torch.pdist(few).median()))


def discrepancy(a: Tensor, b: Tensor, kernel: Kernel = distance_kernel, *, within_b: Tensor | None = None) -> Estimate:
    """Unbiased ``E k(a,a') + E k(b,b') - 2 E k(a,b)`` of samples ``(n, d)`` and ``(m, d)``, with its 95 % interval.

    The interval is the first-order one, from each point's influence; between two samples of one law, where that
    vanishes, it is too narrow and the floor is what to compare with.

    Args:
        a: One sample.
        b: The other.
        kernel: The kernel.
        within_b: :func:`within` of ``b``, where several samples are compared with it.

    """
    n, m = a.shape[0], b.shape[0]
    if min(n, m) < 2:
        raise ParameterError(f"samples of {n} and {m} points.", "at least 2 points each")
    a, b = a.double(), b.double()
    aa, bb = within(a, kernel), within(b, kernel) if within_b is None else within_b
    ab, ba = _sums(a, b, kernel)
    ab, ba = ab / m, ba / n
    value = float(aa.mean() + bb.mean() - ab.mean() - ba.mean())
    spread = (2 * (aa - ab)).var() / n + (2 * (bb - ba)).var() / m
    half = _Z95 * float(spread) ** 0.5
    return Estimate(value, value - half, value + half)


def within(a: Tensor, kernel: Kernel = distance_kernel) -> Tensor:
    """Mean kernel of each point with the others of its sample, ``(n,)``."""
    a = a.double()
    # Without each point's pair with itself, which both kernels give one value everywhere.
    own = kernel(a[:1], a[:1])[0, 0]
    return (_sums(a, a, kernel)[0] - own) / (a.shape[0] - 1)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased energy distance ``2 E|a - b| - E|a - a'| - E|b - b'|`` between two samples."""
    return discrepancy(a, b).value


def perfect_floor(
    perfect: Tensor, n: int, generator: torch.Generator, *, kernel: Kernel = distance_kernel, quantile: float = 0.99
) -> float:
    """Quantile of the discrepancy between two perfect samples of ``n`` points each.

    Args:
        perfect: A sample of the law, ``(m, d)``; at most 1000 of it are used.
        n: Size of the samples that will be compared.
        generator: Of the quantile's Monte Carlo.
        kernel: The kernel.
        quantile: Its level: a perfect sampler exceeds the floor with one minus this probability.

    """
    points = perfect[:_SPECTRUM].double()
    matrix = kernel(points, points)
    means = matrix.mean(0)
    centred = matrix - means[:, None] - means[None, :] + means.mean()
    eigenvalues = torch.linalg.eigvalsh(centred / points.shape[0]).flip(0)
    kept = eigenvalues[: min(200, len(eigenvalues))].clamp(min=0)
    normal = torch.randn(_DRAWS, len(kept), generator=generator, dtype=torch.float64)
    draws = 2 / n * (kept * (normal.square() - 1)).sum(-1)
    return float(draws.quantile(quantile))


def _sums(a: Tensor, b: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Sums of the rows and of the columns of the kernel matrix."""
    rows, columns = [], torch.zeros(b.shape[0], dtype=b.dtype)
    for i in range(0, a.shape[0], _ROWS):
        part = kernel(a[i : i + _ROWS], b)
        rows.append(part.sum(1))
        columns += part.sum(0)
    return torch.cat(rows), columns
