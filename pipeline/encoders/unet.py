"""U-Nets of pictures and of volumes (Ronneberger et al. 2015; Cicek et al. 2016)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.encoders.alone import alone
from pipeline.fields.initializers import Constant, Normal


class UNet(nn.Module):
    """Two 3-wide convolutions a level; halving by maxima on the way down, doubling on the way up,
    with what the way down saw concatenated; a 1-wide convolution at the end.

    Resolutions must be multiples of 2^(levels - 1). Without group normalization (`groups` 0) a cell
    depends on those within `radius` only, and a shift of the input by 2^(levels - 1) cells shifts
    the output.

    Args:
        dims: 2 or 3.
        width: Channels of the first level; they double with each level.
        groups: Of group normalization before each convolution (Convolutional Occupancy Networks:
            8 in volumes, none in planes).
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, *, width: int, levels: int, groups: int = 0
    ):
        super().__init__()
        self.dims, self.levels = dims, levels
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        widths = [width * 2**i for i in range(levels)]
        self.down = nn.ModuleList(
            _Pair(conv, inputs if i == 0 else widths[i - 1], widths[i], groups)
            for i in range(levels)
        )
        self.up = nn.ModuleList(
            _Pair(conv, widths[i] + widths[i + 1], widths[i], groups) for i in range(levels - 1)
        )
        self.last = _started(conv(width, outputs, 1))

    @property
    def step(self) -> int:
        """Cells of the coarsest level's cell."""
        return 2 ** (self.levels - 1)

    @property
    def radius(self) -> int:
        """Farthest cell along an axis that an output depends on."""
        pairs = sum(2 * 2**i for i in range(self.levels))
        pairs += sum(2 * 2**i for i in range(self.levels - 1))
        return pairs + self.step - 1  # a maximum may reach to the far end of its coarse cell

    def forward(self, x: Float[Tensor, "n c *r"]) -> Float[Tensor, "n d *r"]:
        return alone(self._all, x, self.training)

    def _all(self, x: Tensor) -> Tensor:
        seen = []
        for i, pair in enumerate(self.down):
            x = pair(halved(x, self.dims) if i else x)
            seen.append(x)
        for i in reversed(range(self.levels - 1)):
            x = self.up[i](torch.cat([seen[i], doubled(x, self.dims)], 1))
        return self.last(x)

    def describe(self, prefix: str) -> dict[str, Any]:
        return {"kind": "u-net", "dims": self.dims, "levels": self.levels, "weights": prefix}


class _Pair(nn.Module):
    """Twice: group normalization (optional), convolution, relu."""

    def __init__(self, conv: type[nn.Module], inputs: int, outputs: int, groups: int):
        super().__init__()
        self.convs = nn.ModuleList(
            _started(conv(a, outputs, 3, padding=1)) for a in (inputs, outputs)
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(math.gcd(groups, a), a) for a in (inputs, outputs) if groups
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = conv(self.norms[i](x) if len(self.norms) else x).relu()
        return x


def _started(conv: nn.Module) -> nn.Module:
    """Xavier's normal start, zero bias."""
    area = math.prod(conv.kernel_size)
    std = math.sqrt(2 / (area * (conv.in_channels + conv.out_channels)))
    conv.initializers = {"weight": Normal(std), "bias": Constant(0.0)}
    return conv


def halved(x: Float[Tensor, "n c *r"], dims: int) -> Float[Tensor, "n c *s"]:
    """Maxima of 2^dims cells; equal ones share the gradient, in a fixed order on every device."""
    shape = list(x.shape[:2])
    for side in x.shape[2:]:
        shape += [side // 2, 2]
    return x.reshape(shape).amax(tuple(range(3, 3 + 2 * dims, 2)))


def doubled(x: Float[Tensor, "n c *r"], dims: int) -> Float[Tensor, "n c *s"]:
    """Each cell as 2^dims equal ones."""
    shape, repeats = list(x.shape[:2]), list(x.shape[:2])
    for side in x.shape[2:]:
        shape += [side, 1]
        repeats += [side, 2]
    return x.reshape(shape).expand(repeats).reshape(*x.shape[:2], *(2 * s for s in x.shape[2:]))
