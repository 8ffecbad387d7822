"""Polygons of a mesh file cut into triangles; concave ones by clipping ears."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64


def triangulated(
    vertices: Float64[np.ndarray, "v 3"],
    corners: Int64[np.ndarray, "c"],
    counts: Int64[np.ndarray, "g"],
) -> tuple[Int64[np.ndarray, "f 3"], Int64[np.ndarray, "f"]]:
    """Cuts polygons into triangles of the same orientation.

    Args:
        corners: Vertex numbers (all valid) of all polygons, one after the other.
        counts: Corners of each polygon; those with fewer than three are dropped.

    Returns:
        Positions in `corners` of each triangle's corners, and the polygon each belongs to.
    """
    starts = np.cumsum(counts) - counts
    if len(counts) and (counts == 3).all():
        return np.arange(len(corners)).reshape(-1, 3), np.arange(len(counts))
    pieces = np.maximum(counts - 2, 0)
    polygon = np.repeat(np.arange(len(counts)), pieces)
    step = np.arange(len(polygon)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[polygon]
    fans = np.stack([first, first + step + 1, first + step + 2], axis=1)
    concave = _concave(vertices, corners, counts, starts)
    if concave.any():
        fans[concave[polygon]] = np.concatenate(
            [starts[g] + _ears(vertices[corners[starts[g] : starts[g] + counts[g]]])
             for g in np.flatnonzero(concave)]
        )  # fmt: skip
    return fans, polygon


def _concave(vertices, corners, counts, starts):
    """Whether a polygon has a corner that turns against its (Newell) normal."""
    concave = np.zeros(len(counts), bool)
    for size in np.unique(counts[counts > 3]):
        group = np.flatnonzero(counts == size)
        points = vertices[corners[starts[group][:, None] + np.arange(size)]]
        points = points - points[:, :1]
        with np.errstate(all="ignore"):  # not finite: refused later, with its own message
            following = np.roll(points, -1, axis=1)
            normal = np.cross(points, following).sum(1)
            edges = following - points
            turns = np.einsum("gki,gi->gk", np.cross(np.roll(edges, 1, axis=1), edges), normal)
            concave[group] = (turns < -1e-12 * np.abs(turns).max(1, keepdims=True)).any(1)
    return concave


def _ears(points: Float64[np.ndarray, "k 3"]) -> Int64[np.ndarray, "t 3"]:
    """Triangles of one simple polygon by ear clipping, in the plane that it spans best."""
    points = points - points[0]
    normal = np.cross(points, np.roll(points, -1, axis=0)).sum(0)
    axis = int(np.abs(normal).argmax())
    plane = np.delete(points, axis, axis=1)
    if (normal[axis] < 0) != (axis == 1):
        plane = plane * np.array([1.0, -1.0])
    left = list(range(len(plane)))
    triangles = []
    while len(left) > 3:
        ring = plane[left]
        for k in range(len(left)):
            a, b, c = ring[k - 1], ring[k], ring[(k + 1) % len(left)]
            if _turn(a, b, c) <= 0:
                continue
            inside = (_turn(a, b, ring) >= 0) & (_turn(b, c, ring) >= 0) & (_turn(c, a, ring) >= 0)
            corners = (ring == a).all(1) | (ring == b).all(1) | (ring == c).all(1)
            if not (inside & ~corners).any():
                break
        else:  # crosses itself or has no area: any corner will do
            k = 0
        triangles.append((left[k - 1], left[k], left[(k + 1) % len(left)]))
        del left[k]
    triangles.append(tuple(left))
    return np.array(triangles, np.int64)


def _turn(a, b, c):
    """Twice the signed area of the triangle a b c."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (
        c[..., 0] - a[..., 0]
    )
