"""Partial observations: samples whose context is only what one side or one camera shows.

Completion is a choice of context. `restricted` leaves the sets of the role "query" whole and keeps,
of those of the role "context", what belongs to the seen part of the surface:

- `half`: one side of a plane with half of the surface on either side; of pictures, the pixels on
  one side of a line through the center;
- `view`: what a camera sees, by the hidden point operator of Katz et al. 2007 ("Direct Visibility
  of Point Sets") on the surface points.

A point near the surface or in the box is kept where its nearest surface point is seen: then its
distance and sign tell nothing of the unseen part (as DeepSDF sec. 6.3 makes them, at a distance
along the normals of a depth map). Directions are seeded by sample.

Any method completes: `fit: {context: half}` in a run file trains on whole samples and fits each row
from its part, while metrics compare with all that was held out. In Python:

    part = restricted(load_samples(table, "shapes"), "half", seed=0)
    fit_rows(method, shared, part, seed=0, lanes=8)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import ConvexHull, cKDTree
from torch import Tensor

from pipeline.draw import Draw
from pipeline.samples import Ragged, Samples, decode_coords
from schemas.samples import Code, RejectedSample

Context = Literal["all", "half", "view"]
FLIP = 1.5
"""Radius of the flipping sphere of the hidden point operator, of the farthest point's distance and
the root of the number of points: larger, it would see through gaps between the points."""
CAMERA = 2.5
"""Distance of the camera from the center of the box."""


def restricted(samples: Samples, context: Context, *, seed: int) -> Samples:
    """The samples with a partial context; whole voxels and views are taken away.

    Raises:
        ValueError: the samples have no surface points to be seen, or no surface at all.
    """
    if context == "all":
        return samples
    kind = samples.form.kind
    draw = Draw.of(samples.keys, seed=seed, stage=f"context/{context}")
    directions = draw.normal("direction", 2 if kind == "images" else 3).double().cpu().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if kind == "images":
        if context == "view":
            raise ValueError("context: view is of shapes and points; images have context: half")
        kept = {"context": _pixels_before(samples, directions)}
    else:
        kept = _points_seen(samples, context, directions)
    return replace(
        samples,
        form=samples.form.model_copy(update={"voxels": 0, "views": 0, "view_size": 0}),
        sets={
            name: filtered(points, kept[name], name, samples.ids) if name in kept else points
            for name, points in samples.sets.items()
        },
        voxels=None,
        views=None,
        classes={},
    )


def filtered(points: Ragged, kept: Bool[np.ndarray, "total"], name: str, ids: list[str]) -> Ragged:
    """A set of every sample without the points that are not kept."""
    counts = np.add.reduceat(np.append(kept, False).astype(np.int64), points.starts.numpy())
    counts = torch.from_numpy(np.where(points.counts.numpy() > 0, counts, 0))
    lost = torch.nonzero((counts == 0) & (points.counts > 0))
    if len(lost):
        words = f"sample {ids[int(lost[0])]!r}: nothing of the set '{name}' is seen"
        raise RejectedSample(Code.DEGENERATE, words)
    mask = torch.from_numpy(kept)
    columns = {k: v[mask.to(v.device)] for k, v in points.columns.items()}
    return Ragged(columns, torch.cumsum(counts, 0) - counts, counts)


def seen_from(
    points: Float[np.ndarray, "p 3"], camera: Float[np.ndarray, "3"]
) -> Bool[np.ndarray, "p"]:
    """Which points of a surface a camera sees: those on the hull of the points turned inside out
    about it (Katz et al. 2007). Careful: it passes over some of what is seen at a slant or in a
    hollow, rather than seeing what is hidden."""
    rays = points - camera
    length = np.linalg.norm(rays, axis=1, keepdims=True)
    radius = FLIP * np.sqrt(len(points)) * length.max()
    flipped = rays + 2 * (radius - length) * rays / length
    seen = np.zeros(len(points) + 1, bool)
    seen[ConvexHull(np.concatenate([flipped, np.zeros((1, 3))])).vertices] = True
    return seen[:-1]


def _points_seen(samples: Samples, context: Context, directions) -> dict[str, np.ndarray]:
    """Of each set of the context, which points belong to the seen part of the surface."""
    names = [name for name in ("near", "uniform", "surface") if name in samples.sets]
    surface = samples.sets.get("surface")
    if surface is None or not bool((surface.counts > 3).all()):
        raise ValueError(f"a context of {context} needs surface points to see; set ingest.surface")
    coords = {n: _coords(samples.sets[n]) for n in names}
    kept = {n: np.zeros(len(c), bool) for n, c in coords.items()}
    for i in range(len(samples)):
        mine = {n: _range(samples.sets[n], i) for n in names}
        on = coords["surface"][mine["surface"]]
        if context == "view":
            seen = seen_from(on, CAMERA * directions[i])
        else:
            height = on @ directions[i]
            seen = height > np.median(height)
        tree = cKDTree(on)
        for name in names:
            if name == "surface":
                kept[name][mine[name]] = seen
            else:
                kept[name][mine[name]] = seen[tree.query(coords[name][mine[name]])[1]]
    return kept


def _coords(points: Ragged) -> np.ndarray:
    return decode_coords(points.columns["coords"]).double().cpu().numpy()


def _range(points: Ragged, i: int) -> slice:
    return slice(int(points.starts[i]), int(points.starts[i] + points.counts[i]))


def _pixels_before(samples: Samples, directions) -> Bool[np.ndarray, "total"]:
    """Which pixels of the context lie before the line through the center."""
    pixels = samples.sets["context"]
    kept = np.zeros(len(pixels.columns["raster"]), bool)
    raster: Tensor = pixels.columns["raster"].cpu()
    for i in range(len(samples)):
        height, width = samples.sizes[i].tolist()
        place = raster[_range(pixels, i)].numpy()
        x, y = (2 * (place % width) + 1) / width - 1, (2 * (place // width) + 1) / height - 1
        kept[_range(pixels, i)] = x * directions[i, 0] + y * directions[i, 1] > 0
    return kept
