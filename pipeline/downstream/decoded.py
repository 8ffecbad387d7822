"""What rows decode to, for comparing sets of them: pictures, or points on surfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.evaluate.mesh_metrics import sample_surface
from pipeline.evaluate.meshing import NoSurface
from pipeline.evaluate.opened import OpenedStore


@dataclass(frozen=True)
class Pictures:
    """Rows as pictures of one size."""

    values: Float[Tensor, "n c h w"]
    """In [0, 1]."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Surfaces:
    """Rows as points on their surfaces; rows without a surface are left out."""

    points: Float[Tensor, "n p 3"]
    empty: int
    """Rows without a surface."""

    def __len__(self) -> int:
        return len(self.points)


def decode(
    opened: OpenedStore,
    rows: list[int],
    *,
    resolution: int,
    points: int,
    told: Callable[[int], None] = lambda done: None,
) -> Pictures | Surfaces:
    """Decodes rows of an opened store.

    Args:
        resolution: Pixels of the longer side, or cells an axis of a mesh.
        points: Points on each surface.
        told: Called with the number of rows that are done.
    """
    if opened.quantity == "color" and opened.dims == 2:
        return Pictures(_pictures(opened, rows, resolution, told))
    if opened.quantity in ("sdf", "occupancy") and opened.dims == 3:
        return _surfaces(opened, rows, resolution, points, told)
    raise ValueError(
        f"'{opened.plan.name}' holds fields of '{opened.quantity}' in {opened.dims} axes: they are "
        "neither pictures nor surfaces; set evaluate.decoded=false"
    )


def decodable(opened: OpenedStore) -> bool:
    """Whether `decode` knows what rows of a store are."""
    pictures = opened.quantity == "color" and opened.dims == 2
    return pictures or (opened.quantity in ("sdf", "occupancy") and opened.dims == 3)


def _pictures(
    opened: OpenedStore, rows: list[int], resolution: int, told: Callable[[int], None]
) -> Float[Tensor, "n c h w"]:
    found, size = [], None
    for done, row in enumerate(rows):
        if size is None:
            size = opened.render(row, resolution).color.shape[:2]
        color = opened.render(row, size).color
        found.append(torch.from_numpy(np.ascontiguousarray(color)).movedim(-1, 0))
        told(done + 1)
    return torch.stack(found)


def _surfaces(
    opened: OpenedStore, rows: list[int], resolution: int, points: int, told: Callable[[int], None]
) -> Surfaces:
    found, empty = [], 0
    for done, row in enumerate(rows):
        try:
            mesh = opened.mesh(row, resolution, original_units=False)
        except NoSurface:
            empty += 1
        else:
            random = np.random.default_rng(done)
            places, _ = sample_surface(mesh, points, random)
            found.append(torch.from_numpy(places.astype(np.float32)))
        told(done + 1)
    return Surfaces(torch.stack(found) if found else torch.zeros(0, points, 3), empty)
