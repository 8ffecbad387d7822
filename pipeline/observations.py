"""Voxels and views of samples: what encoders may see beside points, resident as they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from pipeline.draw import Draw


@dataclass(frozen=True)
class Voxels:
    """What is inside, as grids over the box [-1, 1]^3."""

    occupancy: Float[Tensor, "n r r r"]
    """1 where a cell is inside, else 0; axes x, y, z, centers (2 i + 1) / r - 1."""


@dataclass(frozen=True)
class Views:
    """Pictures of samples and the cameras that took them, in axes x right, y down, z forward."""

    color: Float[Tensor, "n v h w c"]
    """In [0, 1]; white where nothing is seen."""
    mask: Float[Tensor, "n v h w"]
    """1 where the sample is seen, else 0."""
    camera_to_world: Float[Tensor, "n v 4 4"]
    """From the camera's axes to the normalized box."""
    intrinsics: Float[Tensor, "n v 3 3"]
    """Pinhole matrix in pixels: (column, row) of pixel centers are whole numbers plus 1/2."""


@dataclass(frozen=True)
class StoredVoxels:
    """Grids of some samples, eight cells a byte."""

    bits: UInt8[Tensor, "n b"]
    resolution: int

    def take(self, index: Int[Tensor, "m"], resolution: int) -> Voxels:
        """Grids of `resolution` cells an axis: a cell is inside where any of its cells is."""
        whole, step = self.resolution, self.resolution // resolution
        shifts = torch.arange(7, -1, -1, device=self.bits.device, dtype=torch.uint8)
        cells = (self.bits[index.to(self.bits.device)][..., None] >> shifts) & 1
        cells = cells.reshape(len(index), whole, whole, whole)
        if step > 1:
            split = (resolution, step) * 3
            cells = cells.reshape(len(index), *split).amax((2, 4, 6))
        return Voxels(cells.to(torch.float32))

    def to(self, device: torch.device) -> StoredVoxels:
        return StoredVoxels(self.bits.to(device), self.resolution)


@dataclass(frozen=True)
class StoredViews:
    """Pictures of some samples in 8 bits, and their cameras."""

    color: UInt8[Tensor, "n v h w c"]
    mask: UInt8[Tensor, "n v h w"]
    camera_to_world: Float32[Tensor, "n v 4 4"]
    intrinsics: Float32[Tensor, "n v 3 3"]

    def take(self, index: Int[Tensor, "m"], count: int, draw: Draw) -> Views:
        """`count` different views a sample, of the draw's step; all of them in stored order."""
        index = index.to(self.color.device)[:, None]
        views = self.color.shape[1]
        if count == views:
            pick = torch.arange(views, device=index.device)[None]
        else:
            pick = draw.uniform("views", views).argsort(dim=1, stable=True)[:, :count]
        return Views(
            color=self.color[index, pick].to(torch.float32).div_(255),
            mask=self.mask[index, pick].to(torch.float32),
            camera_to_world=self.camera_to_world[index, pick],
            intrinsics=self.intrinsics[index, pick],
        )

    def to(self, device: torch.device) -> StoredViews:
        names = self.__dataclass_fields__
        return StoredViews(**{name: getattr(self, name).to(device) for name in names})


def voxel_resolution(table: pa.Table) -> int:
    """Cells an axis of the stored grids of a prepared table; 0 without."""
    if "voxels" not in table.column_names:
        return 0
    return round((8 * len(table["voxels"][0].as_buffer())) ** (1 / 3))


def view_sizes(table: pa.Table) -> tuple[int, int]:
    """Views a sample of a prepared table and pixels a side; zeros without."""
    if "views_color" not in table.column_names:
        return 0, 0
    views = len(table["views_intrinsics"][0].as_buffer()) // (9 * 4)
    return views, math.isqrt(len(table["views_color"][0].as_buffer()) // (3 * views))


def load_voxels(table: pa.Table) -> StoredVoxels | None:
    """The grids of a prepared table."""
    resolution = voxel_resolution(table)
    if not resolution:
        return None
    return StoredVoxels(torch.from_numpy(_stacked(table, "voxels", "u1")), resolution)


def load_views(table: pa.Table) -> StoredViews | None:
    """The views of a prepared table."""
    views, size = view_sizes(table)
    if not views:
        return None
    packed = _stacked(table, "views_mask", "u1")
    mask = np.unpackbits(packed, axis=1, count=views * size * size)
    shapes = {
        "color": (_stacked(table, "views_color", "u1"), (size, size, 3)),
        "mask": (mask, (size, size)),
        "camera_to_world": (_stacked(table, "views_camera_to_world", "<f4"), (4, 4)),
        "intrinsics": (_stacked(table, "views_intrinsics", "<f4"), (3, 3)),
    }
    return StoredViews(
        **{
            name: torch.from_numpy(values.reshape(-1, views, *shape))
            for name, (values, shape) in shapes.items()
        }
    )


def _stacked(table: pa.Table, name: str, dtype: str) -> np.ndarray:
    """A column of equally long bytes as an array of `[rows, ...]`."""
    rows = [np.frombuffer(value.as_buffer(), dtype) for value in table[name]]
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"samples differ in the size of '{name}' ({sorted(lengths)} values): they were "
            "prepared with other keys of ingest and cannot be loaded together"
        )
    return np.stack(rows)
