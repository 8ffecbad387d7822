"""IM-Net's voxel encoder: strided convolutions down to 4^3, then one that takes all of it."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.initializers import Constant, Uniform


class VoxelPyramid(nn.Module):
    """Occupied voxels to a code in (0, 1): 4^3 convolutions of stride 2, each followed by instance
    normalization and a leaky rectifier, then a valid 4^3 convolution and a sigmoid.

    Nothing crosses samples: instance normalization has no running statistics, and outside training
    every sample is convolved by itself, so that its bits do not depend on the batch.

    Args:
        resolution: Voxels along an axis: 8, 16, 32 or 64.
        code: Entries of the code.
        channels: Channels of the first convolution; each next one has twice as many.
    """

    def __init__(self, resolution: int, code: int, channels: int, *, slope: float = 0.02):
        super().__init__()
        halvings = int(math.log2(resolution)) - 2
        if halvings < 1 or 4 * 2**halvings != resolution:
            raise ValueError(f"voxels: {resolution} along an axis; must be 8, 16, 32, 64 or 128")
        widths = [1, *(channels * 2**i for i in range(halvings))]
        self.slope = slope
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, 4, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.head = nn.Conv3d(widths[-1], code, 4)
        xavier = {f"convs.{i}.weight": Uniform(_xavier(conv)) for i, conv in enumerate(self.convs)}
        self.initializers = {
            **xavier,
            "head.weight": Uniform(_xavier(self.head)),
            "head.bias": Constant(0.0),
        }

    def forward(self, occupancy: Float[Tensor, "n r r r"]) -> Float[Tensor, "n z"]:
        if self.training:
            return self._codes(occupancy)
        return torch.cat([self._codes(sample) for sample in occupancy.split(1)])

    def _codes(self, occupancy: Tensor) -> Tensor:
        x = occupancy.unsqueeze(1)
        for conv in self.convs:
            x = F.leaky_relu(F.instance_norm(conv(x)), self.slope)
        return torch.sigmoid(self.head(x).flatten(1))


def _xavier(conv: nn.Conv3d) -> float:
    """Bound of a uniform start after Glorot & Bengio 2010."""
    field = math.prod(conv.kernel_size)
    return math.sqrt(6 / ((conv.in_channels + conv.out_channels) * field))
