"""The level set of a field without a useful bound on its slope (occupancy), by multiresolution.

Multiresolution isosurface extraction (Occupancy Networks, sec. 3.4): a coarse lattice is evaluated
everywhere, cells whose corners lie on both sides are halved down to single cells. At the end the
surface is followed through the faces of cells, so what is found of it is what the dense lattice
has: no holes where it runs through coarse cells that showed one side only. A part that no coarse
lattice point meets is not found, unless that is all there is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.evaluate.refinement import BLOCK, COARSE, CORNERS, Lattice

SIDES = [(axis, side) for axis in range(3) for side in (0, 1)]
FACES = np.array([np.flatnonzero(CORNERS[:, axis] == side) for axis, side in SIDES])
"""Corners of each face of a cell: low x, high x, low y, ..."""
ACROSS = np.array([np.eye(3, dtype=np.int64)[axis] * (2 * side - 1) for axis, side in SIDES])
"""Step to the cell behind each face."""
FINER = 64
"""Where the coarse lattice shows no surface, finer ones are tried, up to one with so many cells."""
SEGMENTS = 8
"""Tables of lattice points that are searched before they are joined."""


def crossing_blocks(lattice: Lattice) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Origin, values (NaN = not evaluated) and flat indices of crossed cells, block by block.

    Memory goes with the number of lattice points near the surface, and one block.
    """
    nodes, stride = _Nodes(lattice), 1
    while lattice.resolution > COARSE * stride:
        stride *= 2
    cells = _coarse(nodes, stride)
    while not len(cells) and stride > 1 and lattice.resolution < FINER * stride:
        stride //= 2
        cells = _coarse(nodes, stride)
    while stride > 1:
        stride //= 2
        cells = (cells[:, None] + stride * CORNERS).reshape(-1, 3)
        cells = cells[(cells < lattice.resolution).all(1)]
        cells = cells[_crossed(nodes.values(cells[:, None] + stride * CORNERS))]
    cells = _followed(nodes, cells, lattice.resolution)
    numbers = cells // BLOCK
    order = np.lexsort(numbers.T[::-1])
    cells, numbers = cells[order], numbers[order]
    ends = np.flatnonzero((np.diff(numbers, axis=0) != 0).any(1)) + 1
    for part in np.split(cells, ends):
        if not len(part):
            continue
        origin = part[0] // BLOCK * BLOCK
        side = np.minimum(BLOCK, lattice.resolution - origin) + 1
        values = np.full(side, np.nan, np.float32)
        at = part[:, None] + CORNERS
        values[tuple((at - origin).reshape(-1, 3).T)] = nodes.values(at).reshape(-1)
        yield origin, values, np.ravel_multi_index(tuple((part - origin).T), tuple(side))


def _coarse(nodes: _Nodes, stride: int) -> np.ndarray:
    """The crossed ones of all cells of a stride, slab by slab."""
    axis = np.arange(0, nodes.lattice.resolution, stride)
    found = []
    for x in axis:
        cells = np.stack(np.meshgrid([x], axis, axis, indexing="ij"), -1).reshape(-1, 3)
        found.append(cells[_crossed(nodes.values(cells[:, None] + stride * CORNERS))])
    return np.concatenate(found)


def _followed(nodes: _Nodes, cells: np.ndarray, resolution: int) -> np.ndarray:
    """The crossed cells, and all that the surface reaches from them through faces."""
    done = nodes.keys(cells)
    done.sort()
    every, front = [cells], cells
    while len(front):
        corners = nodes.values(front[:, None] + CORNERS)
        mixed = _crossed(corners[:, FACES])
        behind = (front[:, None] + ACROSS)[mixed]
        behind = behind[((behind >= 0) & (behind < resolution)).all(1)]
        keys, first = np.unique(nodes.keys(behind), return_index=True)
        new = ~_among(keys, done)
        front = behind[first[new]]
        every.append(front)
        done = np.union1d(done, keys[new])
    return np.concatenate(every)


def _crossed(values: np.ndarray) -> np.ndarray:
    """Whether values along the last axis lie on both sides."""
    above = values > 0
    return above.any(-1) != above.all(-1)


def _among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


class _Nodes:
    """Lattice points that were evaluated: sorted segments of keys, joined as they grow many."""

    def __init__(self, lattice: Lattice):
        self.lattice = lattice
        self.side = 2 * max(lattice.resolution, COARSE) + 2
        self.segments: list[tuple[np.ndarray, np.ndarray]] = []

    def keys(self, places: np.ndarray) -> np.ndarray:
        """One number for each place `[..., 3]`."""
        places = places.astype(np.int64)
        return (places[..., 0] * self.side + places[..., 1]) * self.side + places[..., 2]

    def values(self, places: np.ndarray) -> np.ndarray:
        """Values at places `[..., 3]`, evaluated where they are not known."""
        keys, back = np.unique(self.keys(places), return_inverse=True)
        values = np.full(len(keys), np.nan, np.float32)
        unknown = np.ones(len(keys), bool)
        for known, stored in self.segments:
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found = known[at] == keys
            values[found] = stored[at[found]]
            unknown &= ~found
        if unknown.any():
            missing = keys[unknown]
            rest, z = np.divmod(missing, self.side)
            x, y = np.divmod(rest, self.side)
            new = self.lattice.at(np.stack((x, y, z), -1))
            values[unknown] = new
            self._add(missing, new)
        return values[back].reshape(places.shape[:-1])

    def _add(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.segments.append((keys, values))
        if len(self.segments) > SEGMENTS:
            keys = np.concatenate([segment[0] for segment in self.segments])
            values = np.concatenate([segment[1] for segment in self.segments])
            order = keys.argsort()
            self.segments = [(keys[order], values[order])]
