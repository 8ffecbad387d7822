"""Point sets and voxels to planes and volumes of features (Convolutional Occupancy Networks)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.encoders.alone import alone
from pipeline.fields.blocks import ResidualBlock
from pipeline.fields.linear import Linear
from pipeline.fields.planes import (
    AXES,
    cells,
    flat_cells,
    in_cell,
    max_of_cells,
    mean_of_cells,
    ranks,
)


class LocalPointNet(nn.Module):
    """Features of points: residual blocks, with the largest value in each point's cell between.

    Points -> 2 h; blocks 2 h -> h, after each of which the maxima over the cells of every grid are
    added up and concatenated (Peng et al. 2020, sec. 3.1: five blocks, h = 32).

    Args:
        cell: Resolution of the grid whose cells points are relative to; 0: points as they are.
    """

    def __init__(self, width: int, outputs: int, blocks: int = 5, *, cell: int = 0):
        super().__init__()
        self.cell = cell
        self.lift = Linear(3, 2 * width)
        self.blocks = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(blocks))
        self.head = Linear(width, outputs)

    def forward(
        self, points: Float[Tensor, "n s 3"], grids: tuple[Int[Tensor, "n s"], ...]
    ) -> Float[Tensor, "n s c"]:
        """`grids`: the cell of each point, in each grid."""
        numbered = [ranks(grid) for grid in grids]
        x = self.blocks[0](self.lift(in_cell(points, self.cell)))
        for block in self.blocks[1:]:
            pooled = sum(max_of_cells(x, rank) for rank in numbered)
            x = block(x, pooled)
        return self.head(x.relu())

    def describe(self, prefix: str) -> dict[str, Any]:
        return {
            "kind": "local pointnet",
            "cell": self.cell,
            "lift": self.lift.describe(f"{prefix}.lift"),
            "blocks": [b.describe(f"{prefix}.blocks.{i}") for i, b in enumerate(self.blocks)],
            "head": self.head.describe(f"{prefix}.head"),
        }


class LocalVoxelNet(nn.Module):
    """Features of voxels by one 3-wide convolution and a relu (Peng et al. 2020, supplement)."""

    def __init__(self, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(1, outputs, 3, padding=1)

    def forward(self, occupancy: Float[Tensor, "n r r r"]) -> Float[Tensor, "n s c"]:
        """One line a voxel, x slowest."""
        grid = alone(self.conv, occupancy[:, None], self.training).relu()
        return grid.flatten(2).transpose(1, 2)

    def describe(self, prefix: str) -> dict[str, Any]:
        return {"kind": "voxel convolution", "conv": f"{prefix}.conv"}


def voxel_centers(resolution: int, like: Tensor) -> Float[Tensor, "n s 3"]:
    """Centres of the voxels, in the order of `LocalVoxelNet`, once a sample."""
    axis = (torch.arange(resolution, device=like.device) * 2 + 1) / resolution - 1
    centers = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3)
    return centers.expand(len(like), -1, -1).to(like.dtype)


def plane_cells(points: Float[Tensor, "n s 3"], resolution: int) -> tuple[Tensor, ...]:
    """Cells of the points in each of the three planes."""
    return tuple(cells(points[..., list(axes)], resolution) for axes in AXES)


def to_planes(
    features: Float[Tensor, "n s c"], grids: tuple[Int[Tensor, "n s"], ...], resolution: int
) -> Float[Tensor, "n 3 c r r"]:
    """Mean of the features in each cell of three planes."""
    found = [mean_of_cells(features, grid, resolution**2).transpose(1, 2) for grid in grids]
    return torch.stack(found, 1).unflatten(-1, (resolution, resolution))


def to_volume(
    features: Float[Tensor, "n s c"], grid: Int[Tensor, "n s"], resolution: int
) -> Float[Tensor, "n c r r r"]:
    """Mean of the features in each cell of a volume."""
    found = mean_of_cells(features, grid, resolution**3).transpose(1, 2)
    return found.unflatten(-1, (resolution,) * 3)


def window_volume(
    features: Float[Tensor, "n s c"],
    place: Int[Tensor, "n s 3"],
    origin: Int[Tensor, "n 3"],
    side: int,
) -> Float[Tensor, "n c w w w"]:
    """`to_volume` of a window of `side` cells from `origin` on; what lies outside is left out."""
    inside = place - origin[:, None]
    outside = ((inside < 0) | (inside >= side)).any(-1)
    number = flat_cells(inside.clamp(0, side - 1), side).masked_fill(outside, side**3)
    found = mean_of_cells(features, number, side**3 + 1)[:, :-1].transpose(1, 2)
    return found.unflatten(-1, (side,) * 3)
