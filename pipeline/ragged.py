"""Sets of points and pixels of many samples end to end, as they are stored, and drawn in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw, sample_keys
from schemas.samples import GRIDS, FormSpec


@dataclass(frozen=True)
class Ragged:
    """One set of every sample, end to end: named columns of `[total, ...]`."""

    columns: dict[str, Tensor]
    starts: Int[Tensor, "n"]
    counts: Int[Tensor, "n"]
    """On the CPU, as `starts`: shapes are decided there."""

    def block(
        self, index: Int[Tensor, "m"], taken: int, draw: Draw, tag: str
    ) -> tuple[Int[Tensor, "m p"], Float[Tensor, "m p"]]:
        """Places in `columns` of what a step takes (see `shape_classes`), and their weights.

        Successive draws take successive blocks; each pass over the set starts at another offset.
        """
        device = draw.step.device
        counts = self.counts[index].to(device)[:, None]
        filled = counts.clamp(min=1)
        if taken > 0:
            place = torch.arange(taken, device=device).expand(len(index), taken)
            weight = (place < counts).to(torch.float32)
            place = torch.minimum(place, filled - 1)
        else:
            passes = torch.div(draw.step * -taken, filled[:, 0], rounding_mode="floor")
            offset = draw.at(passes).integers(tag, filled[:, 0]) + draw.step * -taken
            place = (offset[:, None] + torch.arange(-taken, device=device)) % filled
            weight = (counts > 0).to(torch.float32).expand(len(index), -taken)
        return place + self.starts[index].to(device)[:, None], weight


def decode_color(stored: Tensor) -> Float[Tensor, "..."]:
    """Colors in [0, 1]; divided, so that 8 bits beside a 16-bit sample (times 257) come out the
    same to the last bit as alone."""
    if stored.dtype == torch.uint8:
        return stored.to(torch.float32).div_(255)
    return stored.to(torch.int32).bitwise_and_(0xFFFF).to(torch.float32).div_(65535)


def decode_coords(stored: Tensor) -> Float[Tensor, "..."]:
    if stored.dtype == torch.float32:
        return stored
    steps = stored.to(torch.int32).bitwise_and_(0xFFFF)
    return steps.to(torch.float32).mul_(2 / 65535).sub_(1)


def has_all(name: str, table: pa.Table) -> bool:
    return name in table.column_names and table[name].null_count == 0


def grid_sets(table: pa.Table, form: FormSpec) -> tuple[dict[str, Ragged], Tensor]:
    """What is fitted ("context") and what is held out ("query") of grids, and their sides."""
    sizes = np.stack([table[name].to_numpy() for name in GRIDS[form.kind]], 1).astype(np.int64)
    wrong = np.flatnonzero(table["channels"].to_numpy() != form.channels)
    if len(wrong):
        raise ValueError(
            f"sample {table['sample_id'][int(wrong[0])].as_py()!r} has "
            f"{table['channels'][int(wrong[0])].as_py()} channels, others {form.channels}; "
            + ("set ingest.channels: mono" if form.kind == "audio" else "set ingest.color: rgb")
        )
    depths = set(table["dtype"].to_pylist())
    wide = depths != {"uint8"}
    raster: dict[str, list] = {"context": [], "query": []}
    color: dict[str, list] = {"context": [], "query": []}
    keys = sample_keys(table["sample_id"].to_pylist()).numpy().view(np.uint64)
    pixels, held, depth = table["pixels"], table["held_out"], table["dtype"].to_pylist()
    for i in range(table.num_rows):
        count = int(sizes[i].prod())
        values = np.frombuffer(pixels[i].as_buffer(), dtype=depth[i]).reshape(count, form.channels)
        if wide and depth[i] == "uint8":
            values = values.astype(np.uint16) * 257
        mask = np.unpackbits(np.frombuffer(held[i].as_buffer(), np.uint8), count=count).astype(bool)
        order = np.random.Generator(np.random.Philox(key=keys[i])).permutation(count)
        for role, members in (("context", order[~mask[order]]), ("query", order[mask[order]])):
            raster[role].append(members.astype(np.int32))
            color[role].append(values[members])
    sets = {}
    for role in raster:
        stored = np.concatenate(color[role])
        stored = stored.view(np.int16) if wide else stored
        columns = {
            "raster": torch.from_numpy(np.concatenate(raster[role])),
            "color": torch.from_numpy(stored),
        }
        sets[role] = _ragged(columns, [len(r) for r in raster[role]])
    return sets, torch.from_numpy(sizes)


def point_sets(table: pa.Table, form: FormSpec) -> dict[str, Ragged]:
    precisions = set(table["precision"].to_pylist())
    if len(precisions) != 1:
        raise ValueError(
            f"rows of different precision {sorted(precisions)} cannot be loaded together"
        )
    compact = precisions == {"compact"}
    types = {
        "coords": (np.int16 if compact else np.float32, 3),
        "distance": (np.float16 if compact else np.float32, 1),
        "unsigned_distance": (np.float16 if compact else np.float32, 1),
        "normals": (np.float16, 3),
        "color": (np.uint8, 3),
    }
    sets = {}
    for prefix in ("", "held_"):
        for name in ("near", "uniform", "surface"):
            columns, counts = {}, None
            for column, (dtype, width) in types.items():
                full = f"{prefix}{name}_{column}"
                if not has_all(full, table):
                    continue
                flat, lengths = _bytes_of(table[full])
                values = flat.view(dtype)
                columns[column.removeprefix("unsigned_")] = torch.from_numpy(
                    values.reshape(-1, width) if width > 1 else values
                )
                counts = lengths // (np.dtype(dtype).itemsize * width)
            if columns:
                sets[prefix + name] = _ragged(columns, counts)
    return sets


def _bytes_of(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """All values of a binary column end to end, and the length of each, in bytes."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    dtype = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype)[array.offset : array.offset + len(array) + 1]
    flat = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]].copy()
    return flat, np.diff(ends)


def _ragged(columns: dict[str, Tensor], counts) -> Ragged:
    counts = torch.as_tensor(np.asarray(counts, np.int64))
    return Ragged(columns, torch.cumsum(counts, 0) - counts, counts)
