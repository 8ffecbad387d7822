"""Which lattice cells the level set of a field crosses, found by evaluating few lattice points.

A cell is dropped when its corners lie on one side and, by a bound on the field's slope, no point of
it can lie on the other. So the result is that of the dense lattice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ScalarField = Callable[[Float[Tensor, "p 3"]], Float[Tensor, "p"]]
Box = tuple[tuple[float, float, float], tuple[float, float, float]]

BLOCK = 64
"""Cells an axis that are held densely at a time."""
COARSE = 32
"""Most cells an axis of the first lattice, which is evaluated everywhere."""
SAFETY = 1.1
"""Factor on the steepest slope seen, because only some points are seen."""
CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])

# Largest possible distance, in diagonals of the cell, from a point of a cell to: its farthest
# corner; its corners, on average (attained at a corner of a cube); two opposite corners, in sum.
TO_FARTHEST = 1.0
TO_CORNERS = (3**0.5 + 6**0.5 + 1) / 8
TO_OPPOSITE = 2**0.5


class Lattice:
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


def blocks(lattice: Lattice, stride: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Origin, values (NaN = not yet evaluated) and a first guess of the slope of every block.

    With a stride, one coarse lattice is evaluated first and each block starts with its part.
    """
    cells = -(-lattice.resolution // stride)
    coarse, typical = np.zeros(0), 0.0
    if stride > 1:
        axis = np.arange(cells + 1) * stride
        points = _product(axis, axis, axis)
        coarse = lattice.at(points)
        typical = _slope_near_surface(lattice, points, coarse)
        coarse = coarse.reshape((cells + 1,) * 3)
    steps = BLOCK // stride
    for block in np.ndindex(*(-(-cells // steps),) * 3):
        first = np.array(block) * steps
        shape = np.minimum(steps, cells - first)
        origin = first * stride
        if stride == 1:
            axes = [o + np.arange(n + 1) for o, n in zip(origin, shape)]
            values = lattice.at(_product(*axes)).reshape(shape + 1)
            yield origin, values, 0.0
            continue
        part = coarse[tuple(slice(f, f + n + 1) for f, n in zip(first, shape))]
        values = np.full(shape * stride + 1, np.nan, np.float32)
        values[::stride, ::stride, ::stride] = part
        yield origin, values, typical


def _slope_near_surface(lattice: Lattice, points: np.ndarray, values: np.ndarray) -> float:
    """90th percentile of the slope over one fine cell, at the coarse points nearest the level."""
    nearest = np.argsort(np.abs(values), kind="stable")[:512]
    ahead = lattice.at((points[nearest][:, None] + np.eye(3, dtype=int)).reshape(-1, 3))
    slopes = (ahead.reshape(-1, 3) - values[nearest][:, None]) / lattice.spacing
    return float(np.quantile(np.linalg.norm(slopes, axis=1), 0.9))


class Slopes:
    """Bounds on the slope of the field in one block, for each stride of refinement.

    A cell's rule needs the slope within that cell only, so a stride's bound covers the cells that
    are looked at there: it falls towards the surface, and may be small although the field is steep
    elsewhere in the block. Taken from the steepest slope seen, unless a bound is given.
    """

    def __init__(self, given: float | None, least: float):
        self.given = given
        self.least = least
        self.floor: dict[int, float] = {}
        self.used: dict[int, float] = {}
        self.seen: dict[int, float] = {}

    def bound(self, stride: int, seen: float) -> float:
        """The bound for cells of a stride, whose steepest slope is at least `seen`."""
        if self.given is not None:
            return self.given
        bound = max(SAFETY * max(self.least, seen), self.floor.get(stride, 0.0))
        self.used[stride] = min(bound, self.used.get(stride, np.inf))
        return bound

    def were_enough(self) -> bool:
        """Whether no finer stride showed a steeper slope; otherwise raises the bounds."""
        steepest, enough = 0.0, True
        for stride in sorted(self.used):
            steepest = max(steepest, self.seen.get(stride, 0.0))
            if steepest > self.used[stride]:
                self.floor[stride], enough = SAFETY * steepest, False
        self.used.clear()
        return enough


def refine_until_sure(
    lattice: Lattice, values: np.ndarray, origin: np.ndarray, stride: int, slopes: Slopes
) -> np.ndarray:
    """Refines a block, again if need be, with bounds that hold for all that was seen."""
    while True:
        active = _refine(lattice, values, origin, stride, slopes)
        if slopes.given is not None or slopes.were_enough():
            return active


def _refine(
    lattice: Lattice, values: np.ndarray, origin: np.ndarray, stride: int, slopes: Slopes
) -> np.ndarray:
    """Halves the cells that may hold the surface down to single cells, filling in `values`.

    Returns the flat indices of the cells that the surface crosses.
    """
    flat, weights = values.reshape(-1), np.array(values.strides) // values.itemsize
    corners = CORNERS @ weights
    cells = _product(*(np.arange(0, n - 1, stride) for n in values.shape)) @ weights
    while True:
        at_corners = flat[cells[:, None] + stride * corners]
        slopes.seen[stride] = _steepest(at_corners, lattice.spacing * stride)
        diagonal = float(np.linalg.norm(lattice.spacing * stride))
        keep = _may_cross(at_corners, slopes.bound(stride, slopes.seen[stride]), diagonal)
        cells, at_corners = cells[keep], at_corners[keep]
        if not len(cells):
            return cells
        near = slopes.bound(stride // 2, _steepest(at_corners, lattice.spacing * stride))
        if stride == 2:
            cells = _last_halving(lattice, values, origin, cells, near)
            slopes.seen[1] = _steepest(flat[cells[:, None] + corners], lattice.spacing)
            return cells
        centers = cells + stride // 2 * corners[-1]
        _fill(lattice, flat, centers, origin, weights)
        outer = cells[:, None] + stride * corners
        pair = np.stack((flat[outer], np.broadcast_to(flat[centers][:, None], outer.shape)), -1)
        keep = (pair[..., 0] > 0) != (pair[..., 1] > 0)
        size, reach = np.abs(pair), near * diagonal / 2
        keep |= ~((size.max(-1) > TO_FARTHEST * reach) | (size.sum(-1) > TO_OPPOSITE * reach))
        stride //= 2
        cells = (cells[:, None] + stride * corners)[keep]
        _fill(lattice, flat, (cells[:, None] + stride * corners).reshape(-1), origin, weights)


def _last_halving(
    lattice: Lattice, values: np.ndarray, origin: np.ndarray, cells: np.ndarray, bound: float
) -> np.ndarray:
    """From cells of two to single cells that the surface crosses.

    Here only the side of each lattice point matters. A point whose side follows from a neighbour's
    value and the bound is not evaluated unless a crossed cell needs its value.
    """
    flat, weights = values.reshape(-1), np.array(values.strides) // values.itemsize
    corners = CORNERS @ weights
    cube = _product(*[np.arange(3)] * 3)
    nodes = np.zeros(len(flat), bool)
    nodes[(cells[:, None] + cube @ weights).reshape(-1)] = True
    side = np.where(np.isnan(flat), 0, np.where(flat > 0, 1, -1)).astype(np.int8)
    index = np.flatnonzero(nodes & (side == 0))
    place = np.stack(np.unravel_index(index, values.shape), -1)
    odd = place % 2
    last = np.array(values.shape) - 1
    for count, steps in ((3, _steps(3)), (2, _steps(2)), (1, _steps(1))):
        chosen = odd.sum(1) == count
        points, where = index[chosen], place[chosen]
        found = np.zeros(len(points), np.int8)
        for step in steps:
            target = where + step
            fits = ((target >= 0) & (target <= last)).all(1)
            known = flat[np.where(fits, points + step @ weights, points)]
            reach = bound * float(np.linalg.norm(step * lattice.spacing))
            sure = fits & (np.abs(known) > reach)
            found[sure] = np.where(known[sure] > 0, 1, -1)
        side[points] = found
        open_points = points[found == 0]
        _fill(lattice, flat, open_points, origin, weights)
        side[open_points] = np.where(flat[open_points] > 0, 1, -1)
    single = (cells[:, None] + corners).reshape(-1)
    inside = np.stack(np.unravel_index(single, values.shape), -1)
    single = single[(inside < lattice.resolution - origin).all(-1)]
    sides = side[single[:, None] + corners]
    single = single[(sides > 0).any(1) & (sides < 0).any(1)]
    _fill(lattice, flat, (single[:, None] + corners).reshape(-1), origin, weights)
    return single


def _steps(odd: int) -> np.ndarray:
    """Steps to the known neighbours of a point with so many odd coordinates, nearest last."""
    every = _product(*[np.arange(-1, 2)] * 3)
    length = np.abs(every).sum(1)
    wanted = {3: (3,), 2: (2, 1), 1: (1,)}[odd]
    return np.concatenate([every[length == n] for n in wanted])


def _may_cross(at_corners: np.ndarray, bound: float, diagonal: float) -> np.ndarray:
    """Whether the surface may pass a cell with these 8 corner values."""
    above = at_corners > 0
    crosses = above.any(1) != above.all(1)
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
    lattice: Lattice, flat: np.ndarray, nodes: np.ndarray, origin: np.ndarray, weights: np.ndarray
) -> None:
    """Evaluates the nodes of a block that are still unknown."""
    wanted = np.zeros(len(flat), bool)
    wanted[nodes] = True
    wanted &= np.isnan(flat)
    index = np.flatnonzero(wanted)
    rest, z = np.divmod(index, weights[1])
    x, y = np.divmod(rest, weights[0] // weights[1])
    flat[index] = lattice.at(np.stack((x, y, z), -1) + origin)


def crossed_cells(values: np.ndarray) -> np.ndarray:
    """Flat indices of the cells of a fully evaluated block that the surface crosses."""
    above = (values > 0).astype(np.uint8)
    for axis in range(3):
        above = np.take(above, range(above.shape[axis] - 1), axis) + np.take(
            above, range(1, above.shape[axis]), axis
        )
    crossed = np.zeros(values.shape, bool)
    crossed[:-1, :-1, :-1] = (above > 0) & (above < 8)
    return np.flatnonzero(crossed)


def _product(*axes: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
