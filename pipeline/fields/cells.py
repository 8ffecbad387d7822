"""A code a cell, looked up by the cell that holds a point (Deep Local Shapes)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.fields.bind import Bound
from pipeline.fields.sides import is_inside, side_latent
from pipeline.fields.tables import (
    OUTSIDE,
    cell_at,
    cell_of,
    filled,
    find,
    gather,
    key_of,
    nearest,
    table_latents,
)


class CellField(nn.Module):
    """A code a cell, read by hard look-up (Deep Local Shapes): the value of the containing cell.

    The network sees the point in the cell's frame (the cell is [-1, 1]^3) and gives distances in
    sides of a cell. Where a cell has no code, the nearest one that has tells how far the surface
    is: its value at its nearest point and the distance to there; a bit of the cell tells the side.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        resolution: int,
        capacity: int,
        code: int,
        std: float,
        max_norm: float | None = None,
    ):
        super().__init__()
        self.resolution = resolution
        parts = table_latents(
            "cells",
            side=resolution,
            capacity=capacity,
            width=code,
            std=std,
            max_norm=max_norm,
        )
        for name, latent in parts.items():
            self.add_module(name, latent)
        self.cells_sides = side_latent(resolution**3, "cells")
        self.net = net

    def forward(self, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p"]:
        keys, side = self.cells_keys(), self.resolution
        empty = side ** coords.shape[-1]
        cell = cell_at(coords, side)
        key = key_of(cell, side)
        slot, found = find(keys, key, empty)
        if not bool(found.all()):
            other = nearest(keys, filled(keys, empty), cell, side)
            slot = torch.where(found, slot, other)
            own = cell_of(keys.gather(1, slot).to(torch.int64), side, coords.shape[-1])
            cell = torch.where(found[..., None], cell, own)
        low = cell * (2 / side) - 1
        point = torch.minimum(torch.maximum(coords, low), low + 2 / side)
        value = cell_values(self, point, cell, slot)
        beyond = value.abs() + (coords - point).square().sum(-1).sqrt()
        beyond = torch.where(self.cells_count()[:, None] > 0, beyond, OUTSIDE)
        inside = is_inside(self.cells_sides(), key)
        return torch.where(found, value, torch.where(inside, -beyond, beyond))

    def describe(self) -> list[dict[str, Any]]:
        names = ("cells", "cells_keys", "cells_count", "cells_sides")
        look_up = {
            "kind": "cells",
            "resolution": self.resolution,
            "tables": [getattr(self, name).describe(name) for name in names],
            "key": f"of the containing cell: (x * {self.resolution} + y) * {self.resolution} + z",
            "empty": "nearest cell with a code: its value at its nearest point, plus the distance; "
            "negative where the bit of the cell is 1",
            "local": "(x - center) * resolution: the cell is [-1, 1]^3",
            "scale": 2 / self.resolution,
        }
        first = {"kind": "concat", "parts": [{"kind": "cell code"}, {"kind": "local coords"}]}
        return [look_up, first, *self.net.describe("net")]


def cell_values(
    field: CellField | Bound,
    coords: Float[Tensor, "n p d"],
    cell: Int[Tensor, "n p d"],
    slot: Int[Tensor, "n p"],
) -> Float[Tensor, "n p"]:
    """Distances at points as the codes in `slot` see them, which belong to `cell`."""
    side = field.resolution
    local = (coords + 1) * side - (2 * cell + 1)
    codes = field.cells()
    codes = codes if codes.shape[-2] == 1 else gather(codes, slot)  # one: multiplied once
    return field.net(codes, local)[..., 0] * (2 / side)


def neighbors(
    coords: Float[Tensor, "n p d"],
    resolution: int,
    radius: float,
    choice: Int[Tensor, "n p o"] | None = None,
) -> Int[Tensor, "n p o d"]:
    """Cells with a center within `radius` sides of each point along every axis.

    Where the radius is no multiple of half a side, some cells of the block that is looked at are
    further away; they are returned as -1, outside the grid.

    Args:
        choice: Which of the `ceil(2 radius) ** d` cells of the block; absent: all.
    """
    count, dims = math.ceil(2 * radius), coords.shape[-1]
    if choice is None:
        choice = torch.arange(count**dims, device=coords.device).expand(*coords.shape[:2], -1)
    place = (coords + 1) * (resolution / 2)
    first = torch.ceil(place - 0.5 - radius).to(torch.int64)
    cell = first[:, :, None] + cell_of(choice, count, dims)
    near = ((cell + 0.5 - place[:, :, None]).abs() <= radius).all(-1, keepdim=True)
    return torch.where(near, cell, -1)


def cells_near(
    coords: Float[Tensor, "n p d"], valid: Bool[Tensor, "n p"], resolution: int
) -> Int[Tensor, "n p"]:
    """Keys of the cells that hold the valid points, `resolution ** d` elsewhere."""
    key = key_of(cell_at(coords, resolution), resolution)
    return torch.where(valid, key, resolution ** coords.shape[-1])
