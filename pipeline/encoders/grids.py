"""The encoder of Convolutional Occupancy Networks: observation -> cells -> U-Net -> features."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.draw import Draw
from pipeline.encoders.local import (
    LocalPointNet,
    LocalVoxelNet,
    plane_cells,
    to_planes,
    to_volume,
    voxel_centers,
    window_volume,
)
from pipeline.encoders.unet import UNet
from pipeline.fields.planes import cell_coords, cells

ANYWHERE = 0.25
"""Share of training windows that lie anywhere; the others hold a point of the surface."""


class GridEncoder(nn.Module):
    """Surface points or voxels to planes `[n, 3, c, r, r]` and a volume `[n, c, r, r, r]`.

    With a `window` the volume is made of windows of so many cells an axis. Each is the middle of a
    volume that reaches so much farther that the U-Net does not see its border: what comes out does
    not depend on where windows lie. Training looks at one window a sample.
    """

    def __init__(
        self,
        kind: Literal["points", "voxels"],
        width: int,
        blocks: int,
        outputs: int,
        *,
        planes: int,
        volume: int,
        unet_width: int,
        unet_levels: int,
        window: int = 0,
    ):
        super().__init__()
        self.kind, self.planes, self.volume, self.window = kind, planes, volume, window
        if kind == "points":
            self.local = LocalPointNet(width, outputs, blocks, cell=volume if window else 0)
        else:
            self.local = LocalVoxelNet(outputs)
        settings = {"width": unet_width, "levels": unet_levels}
        self.planes_net = UNet(2, outputs, outputs, **settings) if planes else None
        self.volume_net = None
        if volume:
            groups = 0 if window else 8
            self.volume_net = UNet(3, outputs, outputs, groups=groups, **settings)

    def forward(
        self, seen: Float[Tensor, "..."], window: Int[Tensor, "n 3"] | None = None
    ) -> dict[str, Tensor]:
        """Grids by name, after the U-Nets.

        Args:
            seen: Points `[n, s, 3]`, or occupancy `[n, r, r, r]`.
            window: First cell of one window a sample; the rest of the volume stays 0.
        """
        if self.kind == "points":
            points = seen
        else:
            points = voxel_centers(seen.shape[-1], seen)
        on_planes = plane_cells(points, self.planes) if self.planes else ()
        in_volume = (cells(points, self.volume),) if self.volume else ()
        if self.kind == "points":
            features = self.local(points, (*on_planes, *in_volume))
        else:
            features = self.local(seen)
        found = {}
        if self.planes:
            planes = to_planes(features, on_planes, self.planes)
            found["planes"] = self.planes_net(planes.flatten(0, 1)).unflatten(0, (-1, 3))
        if self.volume and not self.window:
            found["volume"] = self.volume_net(to_volume(features, *in_volume, self.volume))
        elif self.volume:
            place = cell_coords(points, self.volume).floor().long().clamp(0, self.volume - 1)
            parts = [window] if window is not None else self._lattice(place)
            found["volume"] = self._slid(features, place, parts)
        return found

    @property
    def halo(self) -> int:
        """Cells around a window that the U-Net must see: a multiple of its coarsest cell."""
        step = self.volume_net.step
        return -(-(self.volume_net.radius + 1) // step) * step

    def _lattice(self, place: Int[Tensor, "n s 3"]) -> list[Int[Tensor, "n 3"]]:
        """First cells of all windows."""
        starts = range(0, self.volume, self.window)
        each = [torch.tensor(at, device=place.device) for at in product(starts, repeat=3)]
        return [at.expand(len(place), 3) for at in each]

    def _slid(
        self,
        features: Float[Tensor, "n s c"],
        place: Int[Tensor, "n s 3"],
        windows: list[Int[Tensor, "n 3"]],
    ) -> Float[Tensor, "n c r r r"]:
        """The volume, window by window; each with a rim of one cell, which reads may touch."""
        side, padded = self.window + 2 * self.halo, self.volume + 2
        whole = features.new_zeros(len(features), features.shape[-1], padded, padded, padded)
        rim = slice(self.halo - 1, self.halo + self.window + 1)
        for window in windows:
            grid = window_volume(features, place, window - self.halo, side)
            grid = self.volume_net(grid)[:, :, rim, rim, rim]
            for i, at in enumerate(window.tolist()):
                x, y, z = (slice(a, a + self.window + 2) for a in at)
                whole[i, :, x, y, z] = grid[i]
        return whole[:, :, 1:-1, 1:-1, 1:-1]

    def windows(self, points: Float[Tensor, "n s 3"], draw: Draw) -> Int[Tensor, "n 3"]:
        """A window for each sample and step: one that holds a point, at times any."""
        count = self.volume // self.window
        chosen = draw.integers("window point", points.shape[1])
        point = points[torch.arange(len(points), device=points.device), chosen]
        place = cell_coords(point, self.volume).floor().long().clamp(0, self.volume - 1)
        free = draw.uniform("window free")[:, None] < ANYWHERE
        anywhere = draw.integers("window", count, 3)
        return torch.where(free, anywhere, place // self.window) * self.window

    def in_windows(
        self, coords: Float[Tensor, "n p 3"], window: Int[Tensor, "n 3"]
    ) -> Float[Tensor, "n p"]:
        """1 where a point lies in its sample's window, else 0."""
        place = cell_coords(coords, self.volume) - window[:, None]
        return ((place >= 0) & (place < self.window)).all(-1).to(coords.dtype)

    def describe(self, prefix: str) -> dict[str, Any]:
        nets = {"planes_net": self.planes_net, "volume_net": self.volume_net}
        return {
            "kind": "grid encoder",
            "local": self.local.describe(f"{prefix}.local"),
            **{n: net.describe(f"{prefix}.{n}") for n, net in nets.items() if net is not None},
            "window": self.window,
        }
