"""Voxels to codes: strided convolutions down to 2^3 (Occupancy Networks, supplement 1.1)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.encoders.alone import alone
from pipeline.fields.linear import Linear


class VoxelEncoder(nn.Module):
    """A convolution, then one of stride 2 a halving down to 2^3, relu after each; linear to a code.

    Args:
        resolution: Cells an axis, a power of two from 4.
        width: Channels of the first convolution; they double with each halving (paper: 32 to 512).
    """

    def __init__(self, resolution: int, width: int, outputs: int):
        super().__init__()
        halvings = resolution.bit_length() - 2
        if halvings < 1 or resolution != 2 ** (halvings + 1):
            raise ValueError(f"voxels: {resolution} cells an axis; take 4, 8, 16, 32, 64, ...")
        widths = [width * 2**i for i in range(halvings + 1)]
        layers: list[nn.Module] = [nn.Conv3d(1, width, 3, padding=1), nn.ReLU()]
        for a, b in pairwise(widths):
            layers += [nn.Conv3d(a, b, 3, padding=1, stride=2), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = Linear(8 * widths[-1], outputs)

    def forward(self, occupancy: Float[Tensor, "n r r r"]) -> Float[Tensor, "n z"]:
        grid = alone(self.trunk, occupancy[:, None], self.training)
        return self.head(grid.flatten(1)[:, None])[:, 0]

    def describe(self, prefix: str) -> dict[str, Any]:
        return {"kind": "voxel encoder", "trunk": f"{prefix}.trunk", "head": f"{prefix}.head"}
