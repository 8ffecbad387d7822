"""Where a shape lies in the box [-1, 1]^3, and how coordinates are rounded there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

from schemas.samples import Code, RejectedSample

STEPS = 65535
"""Steps of a compact coordinate across the box."""
SPHERE_MARGIN = 1.03
"""DeepSDF preprocessing: the farthest vertex lies at 1 / 1.03."""


@dataclass(frozen=True)
class Normalization:
    """original = coords / scale + center."""

    center: Float64[np.ndarray, "3"]
    scale: float

    def to_box(self, points: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, "p 3"]:
        return (points - self.center) * self.scale


def normalization(
    points: Float64[np.ndarray, "p 3"], rule: Literal["sphere", "box", "none"]
) -> Normalization:
    """The normalization of a shape with these (used, finite) vertices.

    Raises:
        RejectedSample: the points have no extent, or `none` finds them outside [-1, 1].
    """
    low, high = points.min(0), points.max(0)
    if rule == "none":
        if low.min() < -1 or high.max() > 1:
            raise RejectedSample(
                Code.DEGENERATE,
                f"coordinates run from {low.min():.6g} to {high.max():.6g} and ingest.normalize "
                "is none, which takes [-1, 1]; set ingest.normalize: sphere",
            )
        return Normalization(np.zeros(3), 1.0)
    with np.errstate(over="ignore"):
        extent = float((high - low).max())
    if not np.isfinite(extent) or not np.isfinite(4 / max(extent, 1e-320)):
        raise RejectedSample(
            Code.DEGENERATE, f"the largest extent is {extent:.3g}: too small or too large to scale"
        )
    center = low + (high - low) / 2
    if rule == "box":
        return Normalization(center, 1 / extent)
    unit = (points - center) / extent
    radius = float(np.sqrt(np.einsum("pi,pi->p", unit, unit).max()))
    return Normalization(center, 1 / (SPHERE_MARGIN * radius * extent))


def rounded(
    coords: Float64[np.ndarray, "p 3"], precision: Literal["compact", "float32"]
) -> tuple[np.ndarray, Float64[np.ndarray, "p 3"]]:
    """Coordinates as stored, and the exact values that those stand for."""
    if precision == "float32":
        stored = coords.astype("<f4")
        return stored, stored.astype(np.float64)
    stored = np.rint((np.clip(coords, -1, 1) + 1) * (STEPS / 2)).astype("<u2")
    return stored, from_steps(stored)


def from_steps(stored: np.ndarray) -> Float64[np.ndarray, "p 3"]:
    """Coordinates of compact (uint16) steps."""
    return stored.astype(np.float64) * (2 / STEPS) - 1
