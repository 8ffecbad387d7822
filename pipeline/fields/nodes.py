"""A code a grid node, decoded from all corners of a cell and mixed (Local Implicit Grids)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.fields.bind import Bound
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


class NodeField(nn.Module):
    """A code a grid node, decoded from all eight around a point (Local Implicit Grids).

    Nodes lie on the corners of `resolution` cells an axis; the part of a node reaches to its
    neighbors, so parts overlap by half. Each of the corners' codes is decoded in the frame of its
    node (the part is [-1, 1]^d) and the **values** are mixed, each by how near its node is; so the
    field is continuous. It is a logit that is positive outside.

    Args:
        empty: What a cell gives of which not all corners have codes: "outside", or the "nearest"
            complete cell's value at its nearest point to the cell's center.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        resolution: int,
        capacity: int,
        code: int,
        std: float,
        empty: Literal["outside", "nearest"] = "nearest",
    ):
        super().__init__()
        self.resolution, self.empty = resolution, empty
        parts = table_latents("nodes", side=resolution + 1, capacity=capacity, width=code, std=std)
        for name, latent in parts.items():
            self.add_module(name, latent)
        self.net = net

    def forward(self, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p"]:
        """Only cells with all codes are decoded: how many depends on data, so this is to read."""
        keys, side = self.nodes_keys(), self.resolution
        cell = cell_at(coords, side)
        slot, found = corner_slots(keys, cell, side)
        complete = found.all(-1)
        codes = self.nodes()
        values = []
        for row in range(len(coords)):
            own = slice(row, row + 1)
            value = torch.full(coords.shape[1:2], OUTSIDE, device=coords.device)
            at = torch.nonzero(complete[row])[:, 0]
            if len(at):
                part = coords[own, at], cell[own, at], slot[own, at]
                value = value.index_put((at,), mixed(self, codes[own], *part)[0])
            at = torch.nonzero(~complete[row])[:, 0]
            if self.empty == "nearest" and len(at):
                beyond = self._beyond(codes[own], keys[own], cell[row, at])
                value = value.index_put((at,), beyond)
            values.append(value)
        return torch.stack(values)

    def _beyond(
        self, codes: Float[Tensor, "1 k c"], keys: Int[Tensor, "1 k"], cell: Int[Tensor, "p d"]
    ) -> Float[Tensor, "p"]:
        """Values of incomplete cells: of the complete one nearest to each, where it is nearest."""
        side, dims = self.resolution, cell.shape[-1]
        low = cell_of(keys.to(torch.int64), side + 1, dims)
        slots, found = corner_slots(keys, low, side)
        usable = found.all(-1) & filled(keys, (side + 1) ** dims)
        if not bool(usable.any()):
            return torch.full((len(cell),), OUTSIDE, device=cell.device)
        unique, back = torch.unique(key_of(cell, side), return_inverse=True)
        here = cell_of(unique, side, dims)
        best = nearest(keys, usable, here[None], side + 1)
        own = low.gather(1, best[..., None].expand(-1, -1, dims))
        place = torch.minimum(torch.maximum(here[None] + 0.5, own), own + 1)
        chosen = slots.gather(1, best[..., None].expand(-1, -1, slots.shape[-1]))
        return mixed(self, codes, place * (2 / side) - 1, own, chosen)[0, back]

    def describe(self) -> list[dict[str, Any]]:
        names, side = ("nodes", "nodes_keys", "nodes_count"), self.resolution + 1
        look_up = {
            "kind": "nodes",
            "resolution": self.resolution,
            "tables": [getattr(self, name).describe(name) for name in names],
            "key": f"of each of a cell's eight corners: (x * {side} + y) * {side} + z",
            "empty": self.empty,
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
