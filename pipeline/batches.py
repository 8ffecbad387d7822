"""What is drawn of samples: the size of a draw, and batches with one member a prepared form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.observations import Views, Voxels
from pipeline.problems import Problems
from schemas.samples import GRIDS, POINT_SETS, FormSpec

Role = Literal["context", "query"]
ALL = -1
"""As a size: everything the sample has for the role."""


@dataclass(frozen=True)
class Size:
    """What one step draws from each sample; `ALL` takes everything, once, in a fixed order."""

    pixels: int = ALL
    """Of images, time steps of sounds, voxels of videos."""
    near: int = 0
    uniform: int = 0
    surface: int = 0
    most: int | None = None
    """Where a set has more than this, `ALL` draws this many of it instead."""
    voxels: int = 0
    """Cells an axis of the grid, a divisor of the stored one's (any-occupied pooling); 0: none."""
    views: int = 0
    """Views, drawn anew each step where it is not all of them (`ALL`)."""
    picture: bool = False
    """Images as whole pictures too; samples of other heights and widths are other batches."""
    least: tuple[int, int] = (1, 1)
    """Fewest rows and columns of a picture; a sample of less gets no row, and trains nothing."""
    places: int = 0
    """Of equations: points that the loss itself draws in a step, for planning."""


@dataclass(frozen=True)
class Pixels:
    """Places of a regular grid: pixels of images, time steps of sounds, voxels of videos.

    `weight` is 0 where a sample has fewer than its batch mates.
    """

    coords: Float[Tensor, "n p d"]
    """Of images x (right) and y (down), of sounds t, of videos t, y and x; the centre of place i of
    a side lies at (2 i + 1) / size - 1."""
    color: Float[Tensor, "n p c"]
    """In [0, 1]; of sounds (amplitude + 1) / 2."""
    weight: Float[Tensor, "n p"]


@dataclass(frozen=True)
class Picture:
    """Whole images, for encoders and for measurements of the whole (projections, frequencies)."""

    color: Float[Tensor, "n h w c"]
    """In [0, 1], held-out pixels included: a loss or encoder on pixels leaves out `seen` = 0."""
    seen: Float[Tensor, "n h w"]
    """1 at pixels of the context, 0 at those held out."""


@dataclass(frozen=True)
class Points:
    """Points of shapes and clouds, in the normalized box [-1, 1]^3; absent sets are None."""

    coords: Float[Tensor, "n p 3"] | None
    """Near-surface points, then uniform ones."""
    distance: Float[Tensor, "n p"] | None
    """Distance at `coords`: negative inside where the form is `signed`, else without sign."""
    weight: Float[Tensor, "n p"] | None
    surface: Float[Tensor, "n s 3"] | None
    normals: Float[Tensor, "n s 3"] | None
    color: Float[Tensor, "n s 3"] | None
    surface_weight: Float[Tensor, "n s"] | None


@dataclass(frozen=True)
class Batch:
    """What is drawn of some samples: one optional member a prepared form, sample axis first."""

    grid: Pixels | None = None
    picture: Picture | None = None
    points: Points | None = None
    voxels: Voxels | None = None
    views: Views | None = None
    problem: Problems | None = None


def require(form: FormSpec, size: Size) -> None:
    """Raises ValueError where a size asks for what a dataset of this form does not hold."""
    wanted = {name: getattr(size, name) for name in POINT_SETS}
    if form.kind in GRIDS:
        wanted = {}
    if size.picture and form.kind != "images":
        raise ValueError(f"whole pictures are needed; this dataset has {form.kind}")
    for name, count in wanted.items():
        if count and form.sets is not None and name not in form.sets:
            raise ValueError(
                f"points of the set '{name}' are needed and this dataset of {form.kind} has none; "
                f"set ingest.{name}"
            )
    if size.voxels and not form.voxels:
        raise ValueError(
            f"voxels of {size.voxels}^3 are needed and this dataset of {form.kind} has none; "
            "set ingest.voxels (dataset.kind: shapes)"
        )
    if size.voxels and form.voxels % size.voxels:
        raise ValueError(
            f"voxels of {size.voxels}^3 cannot be pooled from {form.voxels}^3: take a divisor of "
            f"{form.voxels}, or another ingest.voxels"
        )
    if size.views > form.views or (size.views == ALL and not form.views):
        raise ValueError(
            f"{'views' if size.views == ALL else f'{size.views} views a sample'} are needed and "
            f"this dataset of {form.kind} has {form.views or 'none'}; set ingest.views "
            "(dataset.kind: shapes)"
        )


def grid_coords(raster: Int[Tensor, "n p"], sizes: Int[Tensor, "n k"]) -> Float[Tensor, "n p k"]:
    """Coordinates of places of grids with these sides, by number in row-major order.

    Images have x before y; sounds (t) and videos (t, y, x) have their axes in the grid's order.
    """
    places = []
    for axis in reversed(range(sizes.shape[1])):
        side, above = sizes[:, axis, None], raster
        if axis:
            above = torch.div(raster, side, rounding_mode="floor")
            raster = raster - above * side
        places.append((2 * raster + 1) / side - 1)
        raster = above
    return torch.stack(places if len(places) == 2 else places[::-1], -1)


def pixel_coords(height: int, width: int) -> Float[Tensor, "p 2"]:
    """Coordinates of all pixel centres of a picture in row-major order (x right, y down)."""
    y = (torch.arange(height) * 2 + 1) / height - 1
    x = (torch.arange(width) * 2 + 1) / width - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1).reshape(-1, 2)


def capacity(count: int) -> int:
    """The next rung of a ladder that is 1/8 apart: few batch shapes, at most 1/8 of padding."""
    if count <= 16:
        return max(count, 1)
    rung = 2 ** (math.floor(math.log2(count - 1)) - 3)
    return -(-count // rung) * rung


def join(parts: Sequence[tuple[Int[Tensor, "k"], Batch]]) -> Batch:
    """One batch of several; each part brings the positions that its samples take."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.cat([positions for positions, _ in parts]).argsort()

    def members(name: str) -> object | None:
        values = [getattr(batch, name) for _, batch in parts]
        if values[0] is None:
            return None
        kind = type(values[0])
        columns = {}
        for key in kind.__dataclass_fields__:
            tensors = [getattr(v, key) for v in values]
            columns[key] = (
                None if tensors[0] is None else torch.cat(tensors)[order.to(tensors[0].device)]
            )
        return kind(**columns)

    return Batch(**{name: members(name) for name in Batch.__dataclass_fields__})
