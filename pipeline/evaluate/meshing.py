"""The level set of a field as a triangle mesh: sparse refinement, marching cubes block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from skimage.measure import marching_cubes
from torch import Tensor

ScalarField = Callable[[Float[Tensor, "p 3"]], Float[Tensor, "p"]]
Box = tuple[tuple[float, float, float], tuple[float, float, float]]

UNIT_BOX: Box = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
BLOCK = 64
"""Cells an axis that are held densely at a time."""
COARSE = 32
"""Most cells an axis of the first grid, which is evaluated everywhere."""
SAFETY = 1.1
"""Factor on the steepest slope seen, because only some points are seen."""
CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])

# Largest possible distance, in diagonals of the cell, from a point of a cell to: its farthest
# corner; its corners, on average (attained at a corner of a cube); two opposite corners, in sum.
TO_FARTHEST = 1.0
TO_CORNERS = (3**0.5 + 6**0.5 + 1) / 8
TO_OPPOSITE = 2**0.5


class NoSurface(ValueError):
    """The field does not cross the level on the grid."""


def extract_mesh(
    field: ScalarField,
    resolution: int,
    *,
    box: Box = UNIT_BOX,
    level: float = 0.0,
    lipschitz: float | Literal["auto"] | None = "auto",
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
            None evaluates the whole grid (for fields without a useful bound, as occupancy).
        chunk: Points in one call of `field`; small chunks stay in a CPU's cache.

    Raises:
        NoSurface: The field lies on one side of the level, with the range that was seen.
    """
    if resolution < 2:
        raise ValueError(f"resolution {resolution} is less than 2 cells an axis")
    grid = _Grid(field, resolution, box, level, chunk, device)
    stride = 1
    while lipschitz is not None and resolution > COARSE * stride and stride < BLOCK:
        stride *= 2
    patches: list[_Patch] = []
    for origin, values, slope in _blocks(grid, stride):
        if stride == 1:
            active = _crossing(values)
        elif lipschitz == "auto":
            active = _refine_to_steepest(grid, values, origin, stride, slope)
        else:
            active, _ = _refine(grid, values, origin, stride, lipschitz)
        if len(active):
            patches.append(_triangulate(grid, values, active, origin))
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


class _Grid:
    """Evaluates the field at lattice points, in chunks; keeps the range and the count."""

    def __init__(
        self,
        field: ScalarField,
        resolution: int,
        box: Box,
        level: float,
        chunk: int,
        device: torch.device | str,
    ):
        low, high = (np.array(corner, np.float64) for corner in box)
        if not (high > low).all():
            raise ValueError(f"box {box} has an empty side")
        self.field, self.resolution, self.level = field, resolution, level
        self.chunk, self.device = chunk, device
        self.low_corner, self.spacing = low, (high - low) / resolution
        self.low, self.high, self.evaluations = np.inf, -np.inf, 0

    def at(self, index: np.ndarray) -> np.ndarray:
        """Values minus the level at lattice indices [p, 3]."""
        coords = torch.from_numpy((self.low_corner + index * self.spacing).astype(np.float32))
        values = np.zeros(len(coords), np.float32)
        with torch.no_grad():
            for start in range(0, len(coords), self.chunk):
                part = coords[start : start + self.chunk].to(self.device)
                values[start : start + self.chunk] = self.field(part).float().cpu().numpy()
        values -= self.level
        if not np.isfinite(values).all():
            bad = coords[int(np.flatnonzero(~np.isfinite(values))[0])].tolist()
            raise ValueError(f"the field is not finite at {bad}; the row cannot be meshed")
        if len(values):
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))
            self.evaluations += len(values)
        return values


def _blocks(grid: _Grid, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Origin, values (NaN = not yet evaluated) and a first guess of the slope of every block.

    With a stride, one coarse lattice is evaluated first and each block starts with its part.
    """
    cells = -(-grid.resolution // stride)
    coarse, typical = np.zeros(0), 0.0
    if stride > 1:
        axis = np.arange(cells + 1) * stride
        points = _product(axis, axis, axis)
        coarse = grid.at(points)
        typical = _slope_near_surface(grid, points, coarse)
        coarse = coarse.reshape((cells + 1,) * 3)
    steps = BLOCK // stride
    for block in np.ndindex(*(-(-cells // steps),) * 3):
        first = np.array(block) * steps
        shape = np.minimum(steps, cells - first)
        origin = first * stride
        if stride == 1:
            lattice = [o + np.arange(n + 1) for o, n in zip(origin, shape)]
            values = grid.at(_product(*lattice)).reshape(shape + 1)
            yield origin, values, 0.0
            continue
        part = coarse[tuple(slice(f, f + n + 1) for f, n in zip(first, shape))]
        values = np.full(shape * stride + 1, np.nan, np.float32)
        values[::stride, ::stride, ::stride] = part
        yield origin, values, typical


def _slope_near_surface(grid: _Grid, points: np.ndarray, values: np.ndarray) -> float:
    """90th percentile of the slope over one fine cell, at the coarse points nearest the level."""
    nearest = np.argsort(np.abs(values), kind="stable")[:512]
    ahead = grid.at((points[nearest][:, None] + np.eye(3, dtype=int)).reshape(-1, 3))
    slopes = (ahead.reshape(-1, 3) - values[nearest][:, None]) / grid.spacing
    return float(np.quantile(np.linalg.norm(slopes, axis=1), 0.9))


def _refine_to_steepest(
    grid: _Grid, values: np.ndarray, origin: np.ndarray, stride: int, slope: float
) -> np.ndarray:
    """Refines a block until no steeper slope was seen than the bound it was refined with."""
    while True:
        bound = SAFETY * slope
        active, slope = _refine(grid, values, origin, stride, bound)
        if slope <= bound:
            return active


def _refine(
    grid: _Grid, values: np.ndarray, origin: np.ndarray, stride: int, bound: float
) -> tuple[np.ndarray, float]:
    """Halves the cells that may hold the surface down to single cells, filling in `values`.

    Returns the flat indices of the cells that the surface crosses, and the steepest slope seen.
    """
    flat, weights = values.reshape(-1), np.array(values.strides) // values.itemsize
    corners = CORNERS @ weights
    end = grid.resolution - origin
    cells = _product(*(np.arange(0, n - 1, stride) for n in values.shape)) @ weights
    at_corners = flat[cells[:, None] + stride * corners]
    steepest = _steepest(at_corners, grid.spacing * stride)
    cells = cells[_may_cross(at_corners, bound, float(np.linalg.norm(grid.spacing * stride)))]
    while stride > 1 and len(cells):
        outer = cells[:, None] + stride * corners
        stride //= 2
        diagonal = float(np.linalg.norm(grid.spacing * stride))
        centers = cells + stride * corners[-1]
        _fill(grid, flat, centers, origin, weights)
        pair = np.stack((flat[outer], np.broadcast_to(flat[centers][:, None], outer.shape)), -1)
        keep = (pair[..., 0] > 0) != (pair[..., 1] > 0)
        reach = diagonal * bound
        size = np.abs(pair)
        keep |= ~((size.max(-1) > TO_FARTHEST * reach) | (size.sum(-1) > TO_OPPOSITE * reach))
        inside = np.stack(np.unravel_index(cells, values.shape), -1)[:, None] + stride * CORNERS
        keep &= (inside < end).all(-1)
        cells = (cells[:, None] + stride * corners)[keep]
        nodes = cells[:, None] + stride * corners
        _fill(grid, flat, nodes.reshape(-1), origin, weights)
        at_corners = flat[nodes]
        steepest = max(steepest, _steepest(at_corners, grid.spacing * stride))
        cells = cells[_may_cross(at_corners, bound if stride > 1 else 0.0, diagonal)]
    return cells, steepest


def _may_cross(at_corners: np.ndarray, bound: float, diagonal: float) -> np.ndarray:
    """Whether the surface may pass a cell with these 8 corner values (a bound of 0: does cross)."""
    above = at_corners > 0
    crosses = above.any(1) != above.all(1)
    if bound == 0:
        return crosses
    size = np.abs(at_corners)
    clear = (size.max(1) > TO_FARTHEST * diagonal * bound) | (
        size.mean(1) > TO_CORNERS * diagonal * bound
    )
    return crosses | ~clear


def _steepest(at_corners: np.ndarray, sides: np.ndarray) -> float:
    """Largest mean gradient over a cell, from its 12 edges."""
    if not len(at_corners):
        return 0.0
    cube = at_corners.reshape(-1, 2, 2, 2)
    parts = [(np.diff(cube, axis=axis + 1).mean((1, 2, 3)) / sides[axis]) ** 2 for axis in range(3)]
    return float(np.sqrt(sum(parts).max()))


def _fill(
    grid: _Grid, flat: np.ndarray, nodes: np.ndarray, origin: np.ndarray, weights: np.ndarray
) -> None:
    """Evaluates the nodes of a block that are still unknown."""
    wanted = np.zeros(len(flat), bool)
    wanted[nodes] = True
    wanted &= np.isnan(flat)
    index = np.flatnonzero(wanted)
    rest, z = np.divmod(index, weights[1])
    x, y = np.divmod(rest, weights[0] // weights[1])
    flat[index] = grid.at(np.stack((x, y, z), -1) + origin)


def _crossing(values: np.ndarray) -> np.ndarray:
    """Flat indices of the cells of a fully evaluated block that the surface crosses."""
    above = (values > 0).astype(np.uint8)
    for axis in range(3):
        above = np.take(above, range(above.shape[axis] - 1), axis) + np.take(
            above, range(1, above.shape[axis]), axis
        )
    crossed = np.zeros(values.shape, bool)
    crossed[:-1, :-1, :-1] = (above > 0) & (above < 8)
    return np.flatnonzero(crossed)


def _triangulate(grid: _Grid, values: np.ndarray, active: np.ndarray, origin: np.ndarray) -> _Patch:
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


def _product(*axes: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
