"""The level set of a field as a triangle mesh: sparse refinement, marching cubes block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes

from pipeline.evaluate.crossings import crossing_blocks
from pipeline.evaluate.refinement import (
    BLOCK,
    COARSE,
    Box,
    Lattice,
    ScalarField,
    Slopes,
    blocks,
    crossed_cells,
    refine_until_sure,
)

UNIT_BOX: Box = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))


class NoSurface(ValueError):
    """The field does not cross the level on the grid."""


def extract_mesh(
    field: ScalarField,
    resolution: int,
    *,
    box: Box = UNIT_BOX,
    level: float = 0.0,
    lipschitz: float | Literal["auto", "crossings"] | None = "auto",
    chunk: int = 2048,
    device: torch.device | str = "cpu",
) -> trimesh.Trimesh:
    """Mesh `field == level`, which is smaller inside, on a grid of `resolution` cells an axis.

    Gives the mesh of the dense grid while evaluating only points near the surface: a cell is
    dropped when its corners lie on one side and, by the field's Lipschitz constant, no point of it
    can lie on the other. The surface is closed where it does not touch the box; triangles face
    outwards. Memory is bounded by one block of 64^3 cells and the mesh.

    Args:
        field: Signed distance, or any function that is smaller inside.
        lipschitz: Bound on the slope of `field`. "auto" takes it, block by block, from the
            steepest slope seen, and refines a block again if a finer grid shows a steeper one.
            "crossings" is for fields without a useful bound, as occupancy: cells of a lattice of
            at most 32 an axis whose corners lie on both sides, and all that the surface reaches
            from there. None evaluates the whole grid.
        chunk: Points in one call of `field`; small chunks stay in a CPU's cache.

    Raises:
        NoSurface: The field lies on one side of the level, with the range that was seen.
    """
    if resolution < 2:
        raise ValueError(f"resolution {resolution} is less than 2 cells an axis")
    grid = Lattice(field, resolution, box, level, chunk, device)
    found = crossing_blocks(grid) if lipschitz == "crossings" else _bounded(grid, lipschitz)
    patches = [
        _triangulate(grid, values, active, origin)
        for origin, values, active in found
        if len(active)
    ]
    if not patches:
        side = "outside" if grid.low > 0 else "inside"
        raise NoSurface(
            f"the field has no surface at {resolution} cells an axis: it lies {side} everywhere, "
            f"its values are {grid.low + level:.4g} to {grid.high + level:.4g}, level {level:g}"
        )
    vertices, faces = _join(patches)
    mesh = trimesh.Trimesh(grid.low_corner + vertices * grid.spacing, faces, process=False)
    mesh.metadata["evaluations"] = grid.evaluations
    return mesh


def _bounded(
    grid: Lattice, lipschitz: float | Literal["auto"] | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Origin, values and flat indices of crossed cells of every block, by a bound on the slope."""
    stride = 1
    while lipschitz is not None and grid.resolution > COARSE * stride and stride < BLOCK:
        stride *= 2
    for origin, values, slope in blocks(grid, stride):
        if stride == 1:
            yield origin, values, crossed_cells(values)
        else:
            slopes = Slopes(None if lipschitz == "auto" else lipschitz, slope)
            yield origin, values, refine_until_sure(grid, values, origin, stride, slopes)


def _triangulate(
    grid: Lattice, values: np.ndarray, active: np.ndarray, origin: np.ndarray
) -> _Patch:
    """Marching cubes (Lewiner) over the active cells of a block.

    The library is given |v|^(1/8) with the sign of v. That leaves its tests of ambiguous faces
    (a * c > b * d) as they are and keeps every vertex well inside its lattice edge, so that the
    edge is read off exactly; the vertex is then placed by the true values. A lattice value of
    exactly 0 would otherwise merge the vertices of several edges and tear the surface.
    """
    cells = np.stack(np.unravel_index(active, values.shape), -1)
    low, high = cells.min(0), cells.max(0) + 2
    mask = np.zeros(high - low, bool)
    mask[tuple((cells - low + 1).T)] = True  # the library looks a cell up at its high corner
    window = np.nan_to_num(values[tuple(slice(a, b) for a, b in zip(low, high))], nan=1.0)
    size = np.maximum(np.abs(window) / np.abs(window).max(), 1e-12)
    flattened = np.where(window > 0, 1, -1) * np.sqrt(np.sqrt(np.sqrt(size)))
    places, faces, _, _ = marching_cubes(flattened.astype(np.float32), 0.0, mask=mask)

    places = places.astype(np.float64)
    node = np.floor(places + 1e-3).astype(np.int64)
    along = places - node > 1e-3
    on_edge = along.sum(1) == 1  # else the extra vertex inside a cell
    axis = np.where(on_edge, along.argmax(1), 3)
    first, second = node[on_edge], node[on_edge] + along[on_edge]
    a, b = (window[tuple(end.T)].astype(np.float64) for end in (first, second))
    places[on_edge] = first + along[on_edge] * (a / (a - b))[:, None]
    shift = origin + low
    count = grid.resolution + BLOCK + 1
    flat = ((node + shift) @ np.array((count * count, count, 1))) * 4 + axis
    return _Patch(flat, places + shift, faces)


@dataclass(frozen=True)
class _Patch:
    """The mesh of one block."""

    keys: np.ndarray
    """Number of the lattice edge (or cell) of each vertex, the same in every block."""
    vertices: np.ndarray
    """In cells."""
    faces: np.ndarray


def _join(patches: list[_Patch]) -> tuple[np.ndarray, np.ndarray]:
    """One mesh of the blocks' meshes: vertices of the same lattice edge become one."""
    offsets = np.cumsum([0] + [len(patch.keys) for patch in patches])
    keys = np.concatenate([patch.keys for patch in patches])
    vertices = np.concatenate([patch.vertices for patch in patches])
    faces = np.concatenate([patch.faces + offset for patch, offset in zip(patches, offsets)])
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return vertices[first], place[faces]
