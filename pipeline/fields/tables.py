"""Sparse tables of codes on a grid over the box [-1, 1]^d: which cells a sample has, and look-ups.

A table has a capacity that the configuration fixes: keys in ascending order, then empty entries. A
key is the number of a cell (or node) in row-major order. Which keys a sample has is found from its
own points; nothing here loops over cells, and no shape depends on data.

Axis letters beside the usual: `k` entries of a table, `q` look-ups.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.draw import GOLDEN, Draw, scramble
from pipeline.fields.bind import Tensors
from pipeline.fields.latent import IntegerLatent, Latent

MOST_KEYS = 2**24
"""Keys stay exact as float32, in which lanes carry them."""
PAIRS = 2**22
"""Distances held at a time when the nearest entries are sought."""
OUTSIDE = 1.0
"""Value where there is nothing near: outside, in logits (LIG's extraction) and in distances."""


class TableOverflow(ValueError):
    """Samples of a batch that need more entries than a table has, by position in the batch."""

    def __init__(self, reasons: dict[int, str]):
        self.reasons = reasons
        super().__init__("; ".join(f"sample {i} {why}" for i, why in reasons.items()))


# --- numbers of cells -----------------------------------------------------------------------


def key_of(cell: Int[Tensor, "*q d"], side: int) -> Int[Tensor, "*q"]:
    """Number of a cell in row-major order; `side ** d`, which no cell has, outside the grid."""
    dims = cell.shape[-1]
    key = cell[..., 0]
    for axis in range(1, dims):
        key = key * side + cell[..., axis]
    inside = ((cell >= 0) & (cell < side)).all(-1)
    return torch.where(inside, key, side**dims)


def cell_of(key: Int[Tensor, "*q"], side: int, dims: int) -> Int[Tensor, "*q d"]:
    """The cell with this number."""
    parts = []
    for _ in range(dims):
        parts.append(key % side)
        key = torch.div(key, side, rounding_mode="floor")
    return torch.stack(parts[::-1], -1)


def cell_at(coords: Float[Tensor, "*q d"], resolution: int) -> Int[Tensor, "*q d"]:
    """The cell that holds a point; points beyond the box count to the outermost cells."""
    place = torch.floor((coords + 1) * (resolution / 2)).to(torch.int64)
    return place.clamp(0, resolution - 1)


# --- tables ---------------------------------------------------------------------------------


def allocate(
    wanted: Int[Tensor, "n q"], capacity: int, empty: int, *, what: str, key: str
) -> tuple[Int[Tensor, "n k"], Int[Tensor, "n"]]:
    """Keys and counts of tables that hold each sample's distinct `wanted` keys, in order.

    Args:
        wanted: Keys, `empty` where there is none.
        what: The entries in words, for the message.
        key: The configuration key that gives the capacity.

    Raises:
        TableOverflow: Samples that want more than `capacity` keys.
    """
    ordered = wanted.sort(1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= ordered < empty
    count = first.sum(1)
    over = torch.nonzero(count > capacity)[:, 0].tolist()
    if over:
        raise TableOverflow(
            {
                i: f"needs {int(count[i])} {what}, {key} is {capacity}: raise {key}, or lower "
                "the resolution"
                for i in over
            }
        )
    place = torch.where(first, torch.cumsum(first, 1) - 1, capacity)
    keys = torch.full((len(wanted), capacity + 1), empty, device=wanted.device)
    keys.scatter_(1, place, torch.where(first, ordered, empty))
    keys[:, capacity] = empty
    return keys[:, :capacity].to(torch.int32), count.to(torch.int32)


def find(
    keys: Int[Tensor, "n k"], wanted: Int[Tensor, "n q"], empty: int
) -> tuple[Int[Tensor, "n q"], Bool[Tensor, "n q"]]:
    """Entries of a table with these keys, and whether there are such."""
    wanted = wanted.to(keys.dtype)
    slot = torch.searchsorted(keys.contiguous(), wanted.contiguous()).clamp(max=keys.shape[1] - 1)
    return slot, (keys.gather(1, slot) == wanted) & (wanted < empty)


def gather(table: Float[Tensor, "n k c"], slot: Int[Tensor, "n q"]) -> Float[Tensor, "n q c"]:
    """Entries by number."""
    n, k, c = table.shape
    at = (slot + torch.arange(n, device=slot.device)[:, None] * k).flatten()
    return table.reshape(n * k, c).index_select(0, at).reshape(n, -1, c)


def filled(keys: Int[Tensor, "n k"], empty: int) -> Bool[Tensor, "n k"]:
    """Which entries of a table are in use."""
    return keys < empty


def held(keys: Int[Tensor, "n k"], empty: int) -> Bool[Tensor, "n q"]:
    """Of all cells, those that a table has."""
    found = torch.zeros(len(keys), empty + 1, dtype=torch.bool, device=keys.device)
    return found.scatter(1, keys.to(torch.int64), True)[:, :empty]


def start_codes(
    draw: Draw, keys: Int[Tensor, "n k"], width: int, std: float, empty: int
) -> Float[Tensor, "n k c"]:
    """Normal codes, each a function of sample and cell alone; 0 in empty entries."""
    own = scramble(draw.keys[:, None] + (keys.to(torch.int64) + 1) * GOLDEN)
    cells = Draw(own.flatten(), draw.step[:, None].expand(own.shape).flatten())
    codes = cells.normal("cell", width).reshape(*keys.shape, width) * std
    return torch.where(filled(keys, empty)[..., None], codes, 0.0)


def nearest(
    keys: Int[Tensor, "n k"], usable: Bool[Tensor, "n k"], cell: Int[Tensor, "n q d"], side: int
) -> Int[Tensor, "n q"]:
    """The usable entry nearest to each cell (the first of several); 0 where none is usable.

    Whole distances stay exact in float32. Equal cells are looked up once, so the number of
    distances depends on data: for reading, not for fitting.
    """
    dims = cell.shape[-1]
    slots = torch.zeros(cell.shape[:2], dtype=torch.int64, device=cell.device)
    for row in range(len(cell)):
        entries = torch.nonzero(usable[row])[:, 0]
        if not len(entries):
            continue
        unique, back = torch.unique(key_of(cell[row], side), return_inverse=True)
        here = cell_of(unique, side, dims).to(torch.float32)
        there = cell_of(keys[row, entries].to(torch.int64), side, dims).to(torch.float32)
        size = there.square().sum(1)
        found = [
            (size - 2 * part @ there.T).argmin(1)
            for part in here.split(max(PAIRS // len(entries), 1))
        ]
        slots[row] = entries[torch.cat(found)][back]
    return slots


def table_latents(
    name: str, *, side: int, capacity: int, width: int, std: float, max_norm: float | None = None
) -> dict[str, Latent]:
    """The three latents of a table, by the names under which a field should own them."""
    if side**3 > MOST_KEYS:
        raise ValueError(f"{side}^3 {name} have numbers beyond {MOST_KEYS}; use a coarser grid")
    meaning = {
        "key": f"(x * {side} + y) * {side} + z",
        "side": side,
        "empty": side**3,
        "order": "ascending, empty entries last",
        "codes": f"latents/{name}",
        "count": f"latents/{name}_count",
    }
    return {
        name: Latent(
            (capacity, width),
            std,
            max_norm=max_norm,
            dims=(name, f"{name}_code"),
            attributes={"keys": f"latents/{name}_keys", "default": True},
        ),
        f"{name}_keys": IntegerLatent((capacity,), dims=(name,), attributes=meaning),
        f"{name}_count": IntegerLatent((), attributes={"of": f"latents/{name}"}),
    }


def tables_of(
    name: str, keys: Int[Tensor, "n k"], count: Int[Tensor, "n"], codes: Float[Tensor, "n k c"]
) -> Tensors:
    """A table's entries as rows by parameter name."""
    return {
        f"{name}.value": codes,
        f"{name}_keys.value": keys,
        f"{name}_count.value": count,
    }
