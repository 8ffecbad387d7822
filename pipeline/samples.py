"""Prepared samples in memory, and the batches that fitting, training and metrics draw from them.

Samples stay as compact as they are stored (uint8 pixels, uint16 coordinates, float16 distances) and
are decoded when drawn. Every set of points or pixels lies in a seeded random order, so a contiguous
block of it is an unbiased draw: a batch costs one random number a sample. What is held out is
drawn for the role "query" only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.draw import Draw, sample_keys
from pipeline.observations import (
    StoredViews,
    StoredVoxels,
    Views,
    Voxels,
    load_views,
    load_voxels,
    view_sizes,
    voxel_resolution,
)
from schemas.samples import POINT_SETS, FormSpec

Role = Literal["context", "query"]
ALL = -1
"""As a size: everything the sample has for the role."""


@dataclass(frozen=True)
class Size:
    """What one step draws from each sample; `ALL` takes everything, once, in a fixed order."""

    pixels: int = ALL
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


@dataclass(frozen=True)
class Pixels:
    """Pixels of images. `weight` is 0 where a sample has fewer pixels than its batch mates."""

    coords: Float[Tensor, "n p 2"]
    """x (right) and y (down), pixel centres at (2 i + 1) / size - 1."""
    color: Float[Tensor, "n p c"]
    """In [0, 1]."""
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


def require(form: FormSpec, size: Size) -> None:
    """Raises ValueError where a size asks for what a dataset of this form does not hold."""
    wanted = {name: getattr(size, name) for name in POINT_SETS}
    if form.kind == "images":
        wanted = {}
    elif size.picture:
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


@dataclass(frozen=True)
class Samples:
    """Some rows of a prepared dataset, resident on one device."""

    form: FormSpec
    ids: list[str]
    rows: np.ndarray
    labels: list[str]
    splits: list[str]
    keys: Int[Tensor, "n"]
    """`sample_keys` of the ids."""
    sets: dict[str, Ragged]
    """Images: "context" and "query"; shapes and clouds: the point sets of the schema."""
    sizes: Int[Tensor, "n 2"]
    """Height and width of images (CPU); zero otherwise."""
    heights: Int[Tensor, "n"] = field(repr=False)
    widths: Int[Tensor, "n"] = field(repr=False)
    """As `sizes`, on the device."""
    voxels: StoredVoxels | None = field(default=None, repr=False)
    views: StoredViews | None = field(default=None, repr=False)
    classes: dict = field(default_factory=dict, repr=False, compare=False)
    """Known results of `shape_classes`."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def parts(self, role: Role, size: Size) -> dict[str, int]:
        """The sets that a role draws from, with what a step takes of each."""
        if self.form.kind == "images":
            return {role: size.pixels} if size.pixels else {}
        prefix = "held_" if role == "query" else ""
        wanted = {"near": size.near, "uniform": size.uniform, "surface": size.surface}
        return {prefix + name: count for name, count in wanted.items() if count}

    def shape_classes(self, role: Role, size: Size) -> Int[Tensor, "n k"]:
        """What a draw takes of each set: samples of equal rows may share a batch.

        A positive number is the capacity of a whole set, a negative one a draw of that many.
        """
        known = self.classes.get((role, size))
        if known is None:
            require(self.form, size)
            columns = [
                [_taken(c, count, size.most) for c in self._set(name).counts.tolist()]
                for name, count in self.parts(role, size).items()
            ]
            if size.views:  # a draw of some views differs from step to step
                every = size.views in (ALL, self.form.views)
                columns.append([self.form.views if every else -size.views] * len(self))
            if size.picture:
                columns += [self.sizes.prod(1).tolist(), self.sizes[:, 1].tolist()]
            known = torch.tensor(columns, dtype=torch.int64).reshape(len(columns), len(self)).T
            self.classes[role, size] = known
        return known

    def _set(self, name: str) -> Ragged:
        if name not in self.sets or not self.sets[name].counts.any():
            there = sorted(n for n, s in self.sets.items() if s.counts.any())
            key = "held_out" if name.startswith(("held_", "query")) else name
            raise ValueError(
                f"these {self.form.kind} have nothing in the set {name!r}, only in {there}; "
                f"set ingest.{key}"
            )
        return self.sets[name]

    def draw(self, index: Int[Tensor, "m"], role: Role, size: Size, draw: Draw) -> Batch:
        """Decodes a batch: `size` of each sample at `index` (CPU), as of `draw.step`.

        The samples must be of one shape class (`shape_classes`) where a size is `ALL`.
        """
        classes = self.shape_classes(role, size)[index]
        if (classes != classes[:1]).any():
            raise ValueError(
                f"samples {self.ids[int(index[0])]!r} and others differ in size "
                f"({classes.tolist()[:4]}...); draw a fixed number, or group by shape_classes"
            )
        taken = dict(zip(self.parts(role, size), classes[0].tolist()))
        if self.form.kind == "images":
            return Batch(
                grid=self._pixels(index, role, taken[role], draw) if taken else None,
                picture=self._picture(index) if size.picture else None,
            )
        views = None
        if size.views:
            views = self.views.take(index, abs(int(classes[0, -1])), draw)
        return Batch(
            points=self._points(index, taken, draw),
            voxels=self.voxels.take(index, size.voxels) if size.voxels else None,
            views=views,
        )

    def _pixels(self, index: Tensor, role: Role, taken: int, draw: Draw) -> Pixels:
        pixels = self.sets[role]
        place, weight = pixels.block(index, taken, draw, "pixels")
        raster = pixels.columns["raster"][place]
        on_device = index.to(self.device)
        height, width = self.heights[on_device][:, None], self.widths[on_device][:, None]
        y = torch.div(raster, width, rounding_mode="floor")
        x = raster - y * width
        coords = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        return Pixels(coords, _decode_color(pixels.columns["color"][place]), weight)

    def _picture(self, index: Tensor) -> Picture:
        height, width = self.sizes[index[0]].tolist()
        size = height * width  # one more place takes what pads the shorter sets
        color = torch.zeros(len(index), size + 1, self.form.channels, device=self.device)
        seen = torch.zeros(len(index), size + 1, device=self.device)
        for role, pixels in self.sets.items():
            counts = pixels.counts[index].to(self.device)[:, None]
            place = torch.arange(int(pixels.counts[index].max()), device=self.device)
            there = place < counts
            place = (place * there) + pixels.starts[index].to(self.device)[:, None] * there
            raster = torch.where(there, pixels.columns["raster"][place].long(), size)
            values = _decode_color(pixels.columns["color"][place])
            color.scatter_(1, raster[..., None].expand_as(values), values)
            if role == "context":
                seen.scatter_(1, raster, 1.0)
        shape = len(index), height, width
        return Picture(color[:, :size].reshape(*shape, -1), seen[:, :size].reshape(shape))

    def _points(self, index: Tensor, taken: dict[str, int], draw: Draw) -> Points:
        coords, distance, weights = [], [], []
        surface = normals = color = surface_weight = None
        for name, count in taken.items():
            points = self.sets[name]
            place, weight = points.block(index, count, draw, name)
            at = decode_coords(points.columns["coords"][place])
            if "distance" in points.columns:
                coords.append(at)
                distance.append(points.columns["distance"][place].to(torch.float32))
                weights.append(weight)
            else:
                surface, surface_weight = at, weight
                if "normals" in points.columns:
                    normals = points.columns["normals"][place].to(torch.float32)
                if "color" in points.columns:
                    color = _decode_color(points.columns["color"][place])
        return Points(
            coords=torch.cat(coords, 1) if coords else None,
            distance=torch.cat(distance, 1) if distance else None,
            weight=torch.cat(weights, 1) if weights else None,
            surface=surface,
            normals=normals,
            color=color,
            surface_weight=surface_weight,
        )


def _taken(count: int, wanted: int, most: int | None) -> int:
    """An entry of `shape_classes`: capacity of a whole set, or minus the number drawn of it."""
    if wanted != ALL:
        return -wanted
    return -most if most is not None and count > most else capacity(count)


def _decode_color(stored: Tensor) -> Float[Tensor, "..."]:
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


def form_of(table: pa.Table, kind: str) -> FormSpec:
    """What a method needs to know of a prepared dataset, from any of its rows."""
    if table.num_rows == 0:
        raise ValueError(f"the table of {kind} has no rows")
    if kind == "images":
        return FormSpec(kind=kind, channels=int(table["channels"][0].as_py()), dims=2)
    names = set(table.column_names)
    views, view_size = view_sizes(table)
    return FormSpec(
        kind=kind,
        channels=None,
        dims=3,
        signed="near_distance" in names,
        distances="near_distance" in names or "near_unsigned_distance" in names,
        normals=_has("surface_normals", table),
        color=_has("surface_color", table),
        voxels=voxel_resolution(table),
        views=views,
        view_size=view_size,
        sets=tuple(
            name
            for name in POINT_SETS
            if f"{name}_coords" in names
            and pc.sum(pc.binary_length(table[f"{name}_coords"])).as_py()
        ),
    )


def _has(name: str, table: pa.Table) -> bool:
    return name in table.column_names and table[name].null_count == 0


def load_samples(table: pa.Table, kind: str, device: str | torch.device = "cpu") -> Samples:
    """Makes prepared rows (`IDENTITY` and the columns of the form) resident on a device."""
    form = form_of(table, kind)
    if kind == "images":
        sets, sizes = _load_images(table, form)
    elif kind in ("shapes", "points"):
        sets, sizes = _load_points(table, form), torch.zeros(table.num_rows, 2, dtype=torch.int64)
    else:
        raise ValueError(f"no samples of kind {kind!r}; images, shapes and points can be loaded")
    ids = table["sample_id"].to_pylist()
    names = table.column_names
    blank = [""] * len(ids)
    device = torch.device(device)
    return Samples(
        form=form,
        ids=ids,
        rows=np.asarray(table["row"].to_numpy()) if "row" in names else np.arange(len(ids)),
        labels=[v or "" for v in table["label"].to_pylist()] if "label" in names else blank,
        splits=[v or "" for v in table["split"].to_pylist()] if "split" in names else blank,
        keys=sample_keys(ids).to(device),
        sets={
            name: Ragged({k: v.to(device) for k, v in s.columns.items()}, s.starts, s.counts)
            for name, s in sets.items()
        },
        sizes=sizes,
        heights=sizes[:, 0].to(device),
        widths=sizes[:, 1].to(device),
        voxels=None if (voxels := load_voxels(table)) is None else voxels.to(device),
        views=None if (views := load_views(table)) is None else views.to(device),
    )


def _load_images(table: pa.Table, form: FormSpec) -> tuple[dict[str, Ragged], Tensor]:
    heights, widths = table["height"].to_numpy(), table["width"].to_numpy()
    wrong = np.flatnonzero(table["channels"].to_numpy() != form.channels)
    if len(wrong):
        raise ValueError(
            f"sample {table['sample_id'][int(wrong[0])].as_py()!r} has "
            f"{table['channels'][int(wrong[0])].as_py()} channels, others {form.channels}; "
            "set ingest.color to rgb or gray"
        )
    depths = set(table["dtype"].to_pylist())
    wide = depths != {"uint8"}
    raster: dict[str, list] = {"context": [], "query": []}
    color: dict[str, list] = {"context": [], "query": []}
    keys = sample_keys(table["sample_id"].to_pylist()).numpy().view(np.uint64)
    pixels, held, depth = table["pixels"], table["held_out"], table["dtype"].to_pylist()
    for i in range(table.num_rows):
        count = int(heights[i]) * int(widths[i])
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
    return sets, torch.from_numpy(np.stack([heights, widths], 1).astype(np.int64))


def _load_points(table: pa.Table, form: FormSpec) -> dict[str, Ragged]:
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
                if not _has(full, table):
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
