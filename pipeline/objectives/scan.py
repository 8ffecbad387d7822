"""Losses of a signed distance on what a scan of a surface says (DeepSDF sec. 6.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.objectives.distance import clamped_l1
from pipeline.objectives.photometric import weighted_mean
from pipeline.samples import Points


def scan_l1(
    field: Callable[[Tensor], Tensor], points: Points, eta: float, clamp: float
) -> dict[str, Tensor]:
    """Surface points say +eta before them and -eta behind; points before the surface, free space.

    `sdf`: the clamped error at the points moved by eta along their normals. `free`: how far the
    field is below 0 at the points of `points.coords` that lie outside; their distances are not
    used, as a camera that looks through them does not know these.
    """
    moved = eta * points.normals
    sides = torch.cat([points.surface + moved, points.surface - moved], 1)
    weight = points.surface_weight.repeat(1, 2)
    wanted = torch.full_like(points.surface_weight, eta)
    sdf = field(torch.cat([sides, points.coords], 1))[..., 0]
    near, free = sdf.split([sides.shape[1], points.coords.shape[1]], 1)
    outside = points.weight * (points.distance > 0)
    return {
        "sdf": clamped_l1(near, torch.cat([wanted, -wanted], 1), weight, clamp),
        "free": weighted_mean((-free).clamp(0, clamp), outside),
    }
