"""Distances to a point cloud, without sign: what sign-agnostic methods and IGR learn from."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from scipy.spatial import cKDTree

from pipeline.ingest.normalize import rounded
from pipeline.ingest.sampling import jittered, morton, stored_distance, stream
from schemas.run import PointIngest
from schemas.samples import Code, RejectedSample

NEIGHBOUR = 50
"""Noise near the cloud has the distance to this neighbour (SAL sec. 4; IGR's code)."""


def distance_sets(
    points: Float64[np.ndarray, "p 3"], held: int, ingest: PointIngest, seed_key: str
) -> dict[str, bytes]:
    """Sets near and uniform of a cloud in the box, with distances to its points.

    Near: every point, then again from the first, moved by noise of the distance to its
    `NEIGHBOUR`th neighbour in space (SAL's and IGR's code measure it in position and normal
    together where the file has both). What is fitted knows nothing of the held-out points: their
    distances are to the others. The held-out sets measure to the whole cloud.

    Args:
        points: In seeded random order; the first `held` are held out.

    Raises:
        RejectedSample: too few points to have such a neighbour.
    """
    fitted = points[held:]
    if ingest.near and len(fitted) <= NEIGHBOUR:
        raise RejectedSample(
            Code.EMPTY,
            f"{len(fitted)} points after {held} were held out: the noise of points near the cloud "
            f"is the distance to the {NEIGHBOUR}th neighbour; set ingest.near: 0",
        )
    columns: dict[str, bytes] = {}
    sizes = {"": (ingest.near, ingest.uniform, fitted, fitted)}
    few = ingest.held_out if held else 0
    sizes["held_"] = (few * bool(ingest.near), few * bool(ingest.uniform), points[:held], points)
    for prefix, (near, uniform, around, cloud) in sizes.items():
        tree = cKDTree(cloud)
        for name, count in (("near", near), ("uniform", uniform)):
            rng = stream(seed_key, ingest.seed, f"{prefix}{name}")
            if name == "near":
                start = around[:count]
                std = distance_to(tree, start, NEIGHBOUR + 1)
                pick = rng.permutation(np.resize(np.arange(len(start)), count))
                moved = jittered(rng, start[pick], std[pick], "the distance to neighbours")
            else:
                moved = rng.uniform(-1, 1, (count, 3))
            stored, exact = rounded(moved, ingest.precision)
            distance = distance_to(tree, exact, 1)
            columns[f"{prefix}{name}_coords"] = stored.tobytes()
            columns[f"{prefix}{name}_unsigned_distance"] = stored_distance(
                distance, ingest.precision
            ).tobytes()
    return columns


def distance_to(
    tree: cKDTree, points: Float64[np.ndarray, "p 3"], which: int
) -> Float64[np.ndarray, "p"]:
    """Distance to the nearest point of the tree, the second nearest, ..."""
    distance = np.zeros(len(points))
    if len(points):
        order = np.argsort(morton(points))  # neighbors find the tree's nodes in the cache
        distance[order] = tree.query(points[order], [which])[0][:, 0]
    return distance
