"""Tools on rows as points of a space: paths between them, neighbours, distances."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK_BYTES = 2**28
"""Largest table of distances that is held at once."""


def interpolate(
    first: Float[Tensor, "n *shape"],
    last: Float[Tensor, "n *shape"],
    steps: int,
    *,
    spherical: bool = False,
) -> Float[Tensor, "n steps *shape"]:
    """Rows on the way from `first` to `last`, both included.

    Args:
        spherical: Along the arc between the directions, the length changing evenly (Shoemake 1985);
            for rows that are close to a sphere about 0, as normalized ones are.
    """
    if steps < 2:
        raise ValueError(f"{steps} steps: a path has its two ends at least")
    t = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)
    t = t.reshape(1, -1, *(1 for _ in first.shape[1:]))
    a, b = first[:, None], last[:, None]
    if not spherical:
        return a + t * (b - a)
    axes = tuple(range(2, a.dim()))
    length_a, length_b = (torch.linalg.vector_norm(x, dim=axes, keepdim=True) for x in (a, b))
    unit_a, unit_b = a / length_a.clamp(min=1e-12), b / length_b.clamp(min=1e-12)
    angle = torch.acos((unit_a * unit_b).sum(axes, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    straight = sine < 1e-4  # the same direction, or opposite ones: no arc is shortest
    safe = torch.where(straight, torch.ones_like(sine), sine)
    weight_a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / safe)
    weight_b = torch.where(straight, t.expand_as(weight_a), (t * angle).sin() / safe)
    length = length_a + t * (length_b - length_a)
    return (weight_a * unit_a + weight_b * unit_b) * length


def distances(a: Float[Tensor, "n *shape"], b: Float[Tensor, "m *shape"]) -> Float[Tensor, "n m"]:
    """Euclidean distances; small ones are exact."""
    return torch.cdist(a.flatten(1), b.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")


def nearest(
    rows: Float[Tensor, "n *shape"], among: Float[Tensor, "m *shape"], count: int = 1
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances to the nearest rows `among`, ascending, and their places; in bounded memory."""
    if not 1 <= count <= len(among):
        raise ValueError(f"{count} neighbours are asked for among {len(among)} rows")
    block = max(BLOCK_BYTES // (8 * len(among)), 1)
    found = [distances(part, among).topk(count, largest=False) for part in rows.split(block)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
