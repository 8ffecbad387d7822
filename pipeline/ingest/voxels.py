"""Which cells of a grid over the box have their center inside a shape, as bits."""

from __future__ import annotations

import igl
import numpy as np
from jaxtyping import Bool, Float64, Int64


def cell_centers(resolution: int) -> Float64[np.ndarray, "r"]:
    """Centers of the cells of an axis of [-1, 1]: (2 i + 1) / r - 1."""
    return (2 * np.arange(resolution) + 1) / resolution - 1


def inside_cells(
    vertices: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"], resolution: int
) -> Bool[np.ndarray, "r r r"]:
    """Whether |winding number| > 1/2 at the center of each cell; axes x, y, z.

    A part thinner than a cell may contain no center and leave no trace. Only the cells in the
    mesh's bounding box are asked: outside of its convex hull every winding number is below 1/2.
    """
    centers = cell_centers(resolution)
    low, high = vertices.min(0), vertices.max(0)
    spans = [np.flatnonzero((centers >= a) & (centers <= b)) for a, b in zip(low, high)]
    inside = np.zeros((resolution,) * 3, bool)
    if all(len(span) for span in spans):
        axes = (centers[span] for span in spans)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        winding = igl.fast_winding_number(vertices, faces, np.ascontiguousarray(points))
        block = (np.abs(winding) > 0.5).reshape([len(span) for span in spans])
        inside[np.ix_(*spans)] = block
    return inside
