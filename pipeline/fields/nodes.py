"""A code a grid node, decoded from all corners of a cell and mixed (Local Implicit Grids)."""

from __future__ import annotations

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
    find,
    gather,
    held,
    key_of,
    table_latents,
)


class NodeField(nn.Module):
    """A code a grid node, decoded from all eight around a point (Local Implicit Grids).

    Nodes lie on the corners of `resolution` cells an axis; the part of a node reaches to its
    neighbors, so parts overlap by half. Each of the corners' codes is decoded in the frame of its
    node (the part is [-1, 1]^d) and the **values** are mixed, each by how near its node is; so the
    field is continuous. It is a logit that is positive outside.

    Cells of which not all corners have codes are inside or outside as a bit says.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        resolution: int,
        capacity: int,
        code: int,
        std: float,
    ):
        super().__init__()
        self.resolution = resolution
        parts = table_latents("nodes", side=resolution + 1, capacity=capacity, width=code, std=std)
        for name, latent in parts.items():
            self.add_module(name, latent)
        self.nodes_sides = side_latent(resolution**3, "nodes")
        self.net = net

    def forward(self, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p"]:
        """Only cells with all codes are decoded: how many depends on data, so this is to read."""
        keys, side = self.nodes_keys(), self.resolution
        cell = cell_at(coords, side)
        slot, found = corner_slots(keys, cell, side)
        complete = found.all(-1)
        inside = is_inside(self.nodes_sides(), key_of(cell, side))
        values, codes = torch.where(inside, -OUTSIDE, OUTSIDE), self.nodes()
        rows = []
        for row, value in enumerate(values):
            own = slice(row, row + 1)
            at = torch.nonzero(complete[row])[:, 0]
            part = coords[own, at], cell[own, at], slot[own, at]
            rows.append(value.index_put((at,), mixed(self, codes[own], *part)[0]))
        return torch.stack(rows)

    def describe(self) -> list[dict[str, Any]]:
        names = ("nodes", "nodes_keys", "nodes_count", "nodes_sides")
        side = self.resolution + 1
        look_up = {
            "kind": "nodes",
            "resolution": self.resolution,
            "tables": [getattr(self, name).describe(name) for name in names],
            "key": f"of each of a cell's eight corners: (x * {side} + y) * {side} + z",
            "empty": f"logit {OUTSIDE:g}, or {-OUTSIDE:g} where the bit of the cell is 1",
            "local": "(x - node) * resolution / 2: the part is [-1, 1]^3",
            "mix": "values of the eight corners, trilinear",
        }
        first = {"kind": "concat", "parts": [{"kind": "node code"}, {"kind": "local coords"}]}
        return [look_up, first, *self.net.describe("net")]


def corner_slots(
    keys: Int[Tensor, "n k"], cell: Int[Tensor, "n p d"], resolution: int
) -> tuple[Int[Tensor, "n p o"], Bool[Tensor, "n p o"]]:
    """Entries of the nodes at the corners of cells, in row-major order, and which ones exist."""
    node = corners(cell)
    key = key_of(node, resolution + 1)
    slot, found = find(keys, key.flatten(1), (resolution + 1) ** cell.shape[-1])
    return slot.reshape(key.shape), found.reshape(key.shape)


def complete_cells(keys: Int[Tensor, "n k"], resolution: int) -> Bool[Tensor, "n q"]:
    """Of all cells in three axes, those whose corners all have codes."""
    dims = 3
    cell = cell_of(torch.arange(resolution**dims, device=keys.device), resolution, dims)
    node = key_of(corners(cell), resolution + 1)
    known = held(keys, (resolution + 1) ** dims)
    return known[:, node].all(-1)


def corners(cell: Int[Tensor, "*p d"]) -> Int[Tensor, "*p o d"]:
    """The nodes at the corners of cells."""
    dims = cell.shape[-1]
    steps = cell_of(torch.arange(2**dims, device=cell.device), 2, dims)
    return cell[..., None, :] + steps


def corner_values(
    field: NodeField | Bound,
    coords: Float[Tensor, "n p d"],
    cell: Int[Tensor, "n p d"],
    codes: Float[Tensor, "n p o c"],
) -> Float[Tensor, "n p o"]:
    """What the codes at a cell's corners say of a point, each by itself."""
    n, p, many = codes.shape[:3]
    local = (coords + 1)[:, :, None] * (field.resolution / 2) - corners(cell)
    flat = field.net(codes.flatten(1, 2), local.flatten(1, 2))
    return flat.reshape(n, p, many)


def corner_weights(
    coords: Float[Tensor, "n p d"], cell: Int[Tensor, "n p d"], resolution: int
) -> Float[Tensor, "n p o"]:
    """Trilinear weights of a cell's corners: 1 at the node, 0 at its neighbors."""
    away = ((coords + 1)[:, :, None] * (resolution / 2) - corners(cell)).abs()
    return (1 - away).clamp(min=0).prod(-1)


def mixed(
    field: NodeField,
    codes: Float[Tensor, "n k c"],
    coords: Float[Tensor, "n p d"],
    cell: Int[Tensor, "n p d"],
    slot: Int[Tensor, "n p o"],
) -> Float[Tensor, "n p"]:
    """The corners' values at points, mixed."""
    own = gather(codes, slot.flatten(1)).reshape(*slot.shape, codes.shape[-1])
    weights = corner_weights(coords, cell, field.resolution)
    return (corner_values(field, coords, cell, own) * weights).sum(-1)
