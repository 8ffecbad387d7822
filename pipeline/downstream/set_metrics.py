"""How like two sets are: measures of samples against real ones, each defined once.

All take distances or features, so that they serve codes, pictures and shapes alike. `made` are
samples, `real` the reference. No single one suffices: a Gaussian of pixels beats generators on the
Frechet distance, a copy of the training set is perfect on all but the distance to it.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import sqrtm
from torch import Tensor


def one_nearest_accuracy(
    made: Float[Tensor, "n n"], across: Float[Tensor, "n m"], real: Float[Tensor, "m m"]
) -> float:
    """Share of rows whose nearest other row is of their own set (Lopez-Paz and Oquab 2017).

    0.5 when the sets cannot be told apart, 1 when they are apart, less when samples are copies.

    Args:
        made, across, real: Distances among samples, from samples to real rows, among real rows.
    """
    if len(made) != len(real):
        raise ValueError(f"{len(made)} samples against {len(real)} real rows: take equally many")
    own, other = _off_diagonal(made), across
    hits = (own.amin(1) < other.amin(1)).double().mean()
    back = (_off_diagonal(real).amin(1) < across.amin(0)).double().mean()
    return float((hits + back) / 2)


def _off_diagonal(square: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return square + torch.diag(torch.full((len(square),), torch.inf, dtype=square.dtype))


def coverage_of_nearest(across: Float[Tensor, "n m"]) -> float:
    """COV: share of real rows that are nearest to some sample (Achlioptas et al. 2018)."""
    return len(across.argmin(1).unique()) / across.shape[1]


def minimum_matching_distance(across: Float[Tensor, "n m"]) -> float:
    """MMD: mean distance from a real row to the nearest sample (Achlioptas et al. 2018)."""
    return float(across.amin(0).double().mean())


def fidelity(across: Float[Tensor, "n m"]) -> float:
    """Mean distance from a sample to the nearest real row."""
    return float(across.amin(1).double().mean())


def density_and_coverage(
    across: Float[Tensor, "n m"], real: Float[Tensor, "m m"], neighbors: int
) -> tuple[float, float]:
    """Density and coverage of balls about real rows that reach to their k-th real neighbour.

    Density: how many such balls a sample lies in, over k (may exceed 1); coverage: share of balls
    with a sample in them (Naeem et al. 2020).
    """
    if not 1 <= neighbors < len(real):
        raise ValueError(f"{neighbors} neighbours of each of {len(real)} real rows")
    radius = _off_diagonal(real).kthvalue(neighbors, 1).values
    inside = across < radius[None]
    return float(inside.double().sum(1).mean() / neighbors), float(inside.any(0).double().mean())


def frechet_distance(made: Float[Tensor, "n f"], real: Float[Tensor, "m f"]) -> float:
    """Squared Frechet distance of normal distributions fitted to features (Heusel et al. 2017)."""
    a, b = made.double().cpu().numpy(), real.double().cpu().numpy()
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    cov_a, cov_b = np.cov(a.T).reshape(a.shape[1], -1), np.cov(b.T).reshape(a.shape[1], -1)
    root = sqrtm(cov_a @ cov_b)
    return float(shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root.real))


def kernel_distance(made: Float[Tensor, "n f"], real: Float[Tensor, "m f"]) -> float:
    """KID: unbiased squared distance of means under the kernel (x y / f + 1)^3 (Binkowski 2018).

    May be a little below 0 for sets that are alike.
    """
    made, real = made.double(), real.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def among(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(among(made) + among(real) - 2 * kernel(made, real).mean())


def spread_ratio(made: Float[Tensor, "n f"], real: Float[Tensor, "m f"]) -> float:
    """Root mean square deviation of samples over that of real rows."""
    return float((made.double().var(0).sum() / real.double().var(0).sum()).sqrt())


def chamfer_distances(a: Float[Tensor, "n p 3"], b: Float[Tensor, "m p 3"]) -> Float[Tensor, "n m"]:
    """Chamfer distance of each pair of point sets: mean squared distance to the nearest point, sum
    of both directions (PointFlow, Yang et al. 2019)."""
    found = torch.zeros(len(a), len(b))
    step = max(1, 2**23 // (a.shape[1] * b.shape[1]))
    for i in range(len(a)):
        for start in range(0, len(b), step):
            part = b[start : start + step]
            square = torch.cdist(a[i][None].expand(len(part), -1, -1), part).square()
            both = square.amin(1).mean(1) + square.amin(2).mean(1)
            found[i, start : start + step] = both
    return found


def compare(
    made: Float[Tensor, "n n"],
    across: Float[Tensor, "n m"],
    real: Float[Tensor, "m m"],
    neighbors: int,
) -> dict[str, float]:
    """All measures that need distances only; samples and real rows equally many."""
    density, coverage = density_and_coverage(across, real, min(neighbors, len(real) - 1))
    return {
        "one_nn": one_nearest_accuracy(made, across, real),
        "cov": coverage_of_nearest(across),
        "mmd": minimum_matching_distance(across),
        "fidelity": fidelity(across),
        "density": density,
        "coverage": coverage,
    }
