"""Training points from voxels, level by level: most of them where a coarse grid has its surface.

IM-Net (Chen & Zhang 2019) samples a shape at 16^3, then 32^3, then 64^3. At each level it takes
first the cells whose 3^3 neighborhood is mixed, then random others, up to a fixed number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.draw import Draw


def pooled(fine: Float[Tensor, "n r r r"], level: int) -> Float[Tensor, "n l l l"]:
    """A coarse grid: a cell is occupied if any voxel in it is."""
    return F.max_pool3d(fine[:, None], fine.shape[-1] // level)[:, 0]


def mixed_cells(grid: Float[Tensor, "n l l l"]) -> Bool[Tensor, "n l l l"]:
    """Cells with both occupied and empty ones among their 3^3 neighbors within the grid."""
    occupied = grid > 0.5
    return _spread(occupied) & _spread(~occupied)


def _spread(cells: Bool[Tensor, "n l l l"]) -> Bool[Tensor, "n l l l"]:
    """Cells that have one of `cells` among their neighbors or are one: axis by axis."""
    for axis in (1, 2, 3):
        end = cells.shape[axis] - 1
        wider = cells.clone()
        wider.narrow(axis, 1, end).logical_or_(cells.narrow(axis, 0, end))
        wider.narrow(axis, 0, end).logical_or_(cells.narrow(axis, 1, end))
        cells = wider
    return cells


def draw_cells(
    fine: Float[Tensor, "n r r r"],
    level: int,
    points: int,
    pool: int,
    draw: Draw,
    *,
    inside: bool,
) -> tuple[Float[Tensor, "n p 3"], Float[Tensor, "n p"]]:
    """Points of a level and their values (1 inside), as if drawn from the authors' `pool` of cells.

    The pool of a shape is never listed: a point is of a mixed cell with probability
    min(1, mixed / pool), else of another cell, both uniformly and with replacement. With as many
    points as cells, every cell is taken once.

    Args:
        fine: Voxels at a multiple of `level`; a coarse cell is occupied if any voxel in it is.
        inside: Points at a random voxel center that has its cell's value, within the cell (the
            authors' later release); else at the cell's center (the first).
    """
    grid = pooled(fine, level).flatten(1)
    count = level**3
    if points >= count:
        cells = torch.arange(count, device=fine.device).expand(len(fine), count)
    else:
        mixed = mixed_cells(grid.unflatten(1, (level,) * 3)).flatten(1)
        cells = _pick(mixed, points, min(pool, count), draw)
    value = grid.gather(1, cells)
    factor = fine.shape[-1] // level
    at = torch.stack(
        [torch.div(cells, level**2, rounding_mode="floor"), cells // level % level, cells % level],
        -1,
    )
    if not inside or factor == 1:
        return (2 * at + 1) / level - 1, value
    blocks = fine.unflatten(1, (level, factor)).unflatten(3, (level, factor))
    blocks = blocks.unflatten(5, (level, factor)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    block = blocks.flatten(1, 3).gather(1, cells[..., None].expand(-1, -1, factor**3))
    right = torch.cumsum(block == value[..., None], -1)
    wanted = draw.uniform("voxel", cells.shape[1]) * right[..., -1]
    place = (right <= wanted[..., None]).sum(-1)
    inner = torch.stack(
        [place // factor**2, place // factor % factor, place % factor],
        -1,
    )
    return (2 * (at * factor + inner) + 1) / fine.shape[-1] - 1, value


def _pick(mixed: Bool[Tensor, "n c"], points: int, pool: int, draw: Draw) -> Int[Tensor, "n p"]:
    """Cells by number: mixed ones with probability min(1, mixed / pool), then others."""
    many = mixed.sum(1, keepdim=True)
    chosen = draw.uniform("mixed", points) < (many / pool)
    rank = draw.uniform("cell", points)
    ranks = []
    for members, total in ((mixed, many), (~mixed, mixed.shape[1] - many)):
        order = torch.cumsum(members, 1, dtype=torch.int32)
        wanted = (rank * total).floor().to(order.dtype) + 1
        ranks.append(torch.searchsorted(order, torch.minimum(wanted, total.clamp(min=1))))
    return torch.where(chosen, *ranks).clamp(max=mixed.shape[1] - 1)
