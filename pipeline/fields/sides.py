"""On which side of the surface the cells without codes lie: one bit a cell, found from points.

A table knows the field near the surface only. What lies further is all on one side within a cell,
so a bit says it; the bits of a sample are stored beside its table (16 a number).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.fields.latent import IntegerLatent

BITS = 16
"""Cells of one stored number: it stays exact as float32, in which lanes carry it."""


def side_latent(cells: int, name: str) -> IntegerLatent:
    """Room for one bit a cell."""
    meaning = {
        "bit": f"cell k is inside if bit k % {BITS} of entry k // {BITS} is 1; cells without codes",
        "table": f"latents/{name}",
    }
    return IntegerLatent((-(-cells // BITS),), dims=(f"{name}_words",), attributes=meaning)


def packed(inside: Bool[Tensor, "n k"]) -> Int[Tensor, "n w"]:
    """Bits as they are stored."""
    spare = -inside.shape[1] % BITS
    bits = F.pad(inside.to(torch.int32), (0, spare)).unflatten(1, (-1, BITS))
    return (bits << torch.arange(BITS, dtype=torch.int32, device=bits.device)).sum(
        -1, dtype=torch.int32
    )


def is_inside(words: Int[Tensor, "n w"], key: Int[Tensor, "n q"]) -> Bool[Tensor, "n q"]:
    """The bits of cells."""
    word = words.gather(1, torch.div(key, BITS, rounding_mode="floor").to(torch.int64))
    return (word >> (key % BITS).to(word.dtype)) & 1 == 1


def votes(key: Int[Tensor, "n q"], vote: Float[Tensor, "n q"], cells: int) -> Float[Tensor, "n k"]:
    """Sums of votes by cell; keys from `cells` on are left out. Whole votes add up exactly."""
    total = torch.zeros(len(key), cells + 1, device=vote.device)
    return total.scatter_add(1, key.clamp(max=cells).to(torch.int64), vote)[:, :cells]


def spread(
    votes: Float[Tensor, "n k"], free: Bool[Tensor, "n k"], side: int
) -> Float[Tensor, "n k"]:
    """Signs of the votes (1 outside), from where there are some to free cells without: from
    neighbor to neighbor through free cells. 0 where nothing arrives."""
    room = free.reshape(-1, 1, side, side, side)
    sign = torch.sign(votes).reshape(room.shape) * room
    for _ in range(3 * side):
        around = torch.sign(_neighbors_sum(sign))
        sign = torch.where((sign == 0) & room, around, sign)
    return sign.flatten(1)


def open_to_the_box(free: Bool[Tensor, "n k"], side: int) -> Bool[Tensor, "n k"]:
    """Free cells that a path of free cells joins to the faces of the box."""
    room = free.reshape(-1, 1, side, side, side)
    border = torch.ones_like(room)
    border[..., 1:-1, 1:-1, 1:-1] = False
    reached = (room & border).to(torch.float32)
    for _ in range(3 * side):
        reached = ((_neighbors_sum(reached) + reached) > 0).to(torch.float32) * room
    return reached.flatten(1) > 0


def _neighbors_sum(grid: Float[Tensor, "n 1 x y z"]) -> Float[Tensor, "n 1 x y z"]:
    """Sum over the six cells that share a face."""
    total = torch.zeros_like(grid)
    for axis in (2, 3, 4):
        size = grid.shape[axis]
        if size > 1:
            low, high = grid.narrow(axis, 0, size - 1), grid.narrow(axis, 1, size - 1)
            total.narrow(axis, 0, size - 1).add_(high)
            total.narrow(axis, 1, size - 1).add_(low)
    return total
