"""Dense planes and volumes of features: cells of points, sums and maxima in cells, reads between.

Cell i of r along an axis covers [2 i / r - 1, 2 (i + 1) / r - 1]; features sit at its centre, so
what is written into a cell is read back at its middle. (The authors' code of Convolutional
Occupancy Networks writes like this and reads as if features sat at the cells' corners.)

All sums have a fixed order on every device, forwards and backwards, and reads may be differentiated
twice by the coordinates.
"""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

AXES = ((0, 1), (0, 2), (1, 2))
"""The axes of the three planes: xy, xz, yz."""


def cell_coords(coords: Float[Tensor, "n p d"], resolution: int) -> Float[Tensor, "n p d"]:
    """Coordinates in [-1, 1] as cells: in [0, resolution]."""
    return (coords + 1) * (resolution / 2)


def cells(coords: Float[Tensor, "n p d"], resolution: int) -> Int[Tensor, "n p"]:
    """Flat number of the cell of each point, first axis slowest; points outside count as at the
    border."""
    place = cell_coords(coords, resolution).floor().long().clamp(0, resolution - 1)
    return flat_cells(place, resolution)


def in_cell(coords: Float[Tensor, "n p 3"], resolution: int) -> Float[Tensor, "n p 3"]:
    """Coordinates within the cells of a grid, in [-1, 1); as they are for resolution 0."""
    if not resolution:
        return coords
    place = cell_coords(coords, resolution)
    return (place - place.detach().floor()) * 2 - 1


def flat_cells(place: Int[Tensor, "n p d"], resolution: int) -> Int[Tensor, "n p"]:
    """Cells by axis as flat numbers, first axis slowest."""
    number = place[..., 0]
    for axis in range(1, place.shape[-1]):
        number = number * resolution + place[..., axis]
    return number


def take(table: Float[Tensor, "n m c"], index: Int[Tensor, "n p"]) -> Float[Tensor, "n p c"]:
    """Rows of each sample's table."""
    return _Take.apply(table, index)


def add_up(
    values: Float[Tensor, "n p c"], index: Int[Tensor, "n p"], count: int
) -> Float[Tensor, "n m c"]:
    """Sums of values by index, in the order of the points."""
    return _AddUp.apply(values, index, count)


def mean_of_cells(
    values: Float[Tensor, "n p c"], index: Int[Tensor, "n p"], count: int
) -> Float[Tensor, "n m c"]:
    """Mean of the values in each cell; 0 where there is none."""
    ones = torch.ones_like(values[..., :1])
    return add_up(values, index, count) / add_up(ones, index, count).clamp(min=1)


def ranks(index: Int[Tensor, "n p"]) -> Int[Tensor, "n p"]:
    """Cells numbered from 0 among those that a sample's points are in: below p."""
    ordered, order = index.sort(dim=1, stable=True)
    new = torch.zeros_like(ordered)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(index).scatter_(1, order, new.cumsum(1))


def max_of_cells(
    values: Float[Tensor, "n p c"], rank: Int[Tensor, "n p"]
) -> Float[Tensor, "n p c"]:
    """Largest value in the cell of each point, given the `ranks` of the cells."""
    into = rank[..., None].expand_as(values)
    top = torch.zeros_like(values).scatter_reduce(1, into, values, "amax", include_self=False)
    return take(top, rank)


def read_grid(
    grid: Float[Tensor, "n c *r"], coords: Float[Tensor, "n p d"]
) -> Float[Tensor, "n p c"]:
    """Features between the cells of planes `[n, c, r, r]` or volumes `[n, c, r, r, r]`, linear
    along each axis; beyond the outermost centres those count on."""
    resolution, dims = grid.shape[-1], coords.shape[-1]
    table = grid.flatten(2).transpose(1, 2)
    place = (cell_coords(coords, resolution) - 0.5).clamp(0, resolution - 1)
    base = place.detach().floor().clamp(max=max(resolution - 2, 0))
    share = place - base
    base = base.long()
    found = None
    for corner in product((0, 1), repeat=dims):
        at = base + torch.tensor(corner, device=base.device)
        weight = None
        for axis, high in enumerate(corner):
            part = share[..., axis] if high else 1 - share[..., axis]
            weight = part if weight is None else weight * part
        at = flat_cells(at.clamp(max=resolution - 1), resolution)
        term = weight[..., None] * take(table, at)
        found = term if found is None else found + term
    return found


def read_planes(
    planes: Float[Tensor, "n 3 c r r"], coords: Float[Tensor, "n p 3"]
) -> Float[Tensor, "n p c"]:
    """Sum of the features of the three planes (`AXES`) under each point."""
    return sum(read_grid(planes[:, k], coords[..., list(axes)]) for k, axes in enumerate(AXES))


class _Take(torch.autograd.Function):
    """Rows of tables; its gradient is `_AddUp`."""

    @staticmethod
    def forward(ctx, table, index):
        n, m, c = table.shape
        ctx.save_for_backward(index)
        ctx.count = m
        return table.reshape(n * m, c).index_select(0, _rows(index, m)).reshape(n, -1, c)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        return _AddUp.apply(gradient, index, ctx.count), None


class _AddUp(torch.autograd.Function):
    """Sums by index; its gradient is `_Take`.

    On CPUs `scatter_add_` goes through the points in order; on GPUs an accumulating `index_put_`
    sorts them first, where `scatter_add_` would add in the order in which threads arrive.
    """

    @staticmethod
    def forward(ctx, values, index, count):
        n, p, c = values.shape
        ctx.save_for_backward(index)
        rows, flat = _rows(index, count), values.reshape(n * p, c)
        total = torch.zeros(n * count, c, dtype=values.dtype, device=values.device)
        if values.device.type == "cpu":
            total.scatter_add_(0, rows[:, None].expand(-1, c), flat)
        else:
            total.index_put_((rows,), flat, accumulate=True)
        return total.reshape(n, count, c)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        return _Take.apply(gradient, index), None, None


def _rows(index: Tensor, count: int) -> Tensor:
    """Positions in the tables of all samples, end to end."""
    start = torch.arange(len(index), device=index.device)[:, None] * count
    return (index + start).flatten()
