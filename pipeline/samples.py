"""Prepared samples in memory, and the batches that fitting, training and metrics draw from them.

Samples stay as compact as they are stored (uint8 pixels, uint16 coordinates, float16 distances) and
are decoded when drawn. Every set of points or pixels lies in a seeded random order, so a contiguous
block of it is an unbiased draw: a batch costs one random number a sample. What is held out is
drawn for the role "query" only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.batches import ALL as ALL
from pipeline.batches import Batch as Batch
from pipeline.batches import Picture as Picture
from pipeline.batches import Pixels as Pixels
from pipeline.batches import Points as Points
from pipeline.batches import Role as Role
from pipeline.batches import Size as Size
from pipeline.batches import capacity as capacity
from pipeline.batches import grid_coords as grid_coords
from pipeline.batches import join as join
from pipeline.batches import pixel_coords as pixel_coords
from pipeline.batches import require as require
from pipeline.draw import Draw, sample_keys
from pipeline.observations import (
    StoredViews,
    StoredVoxels,
    load_views,
    load_voxels,
    view_sizes,
    voxel_resolution,
)
from pipeline.problems import Problems, form_of_problems, load_problems
from pipeline.ragged import Ragged as Ragged
from pipeline.ragged import decode_color, grid_sets, has_all, point_sets
from pipeline.ragged import decode_coords as decode_coords
from schemas.samples import GRIDS, POINT_SETS, FormSpec


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
    """Grids: "context" and "query"; shapes and clouds: the point sets of the schema."""
    sizes: Int[Tensor, "n k"]
    """Sides of the grids (CPU), of images height and width; zero otherwise."""
    sides: Int[Tensor, "n k"] = field(repr=False)
    """As `sizes`, on the device."""
    voxels: StoredVoxels | None = field(default=None, repr=False)
    views: StoredViews | None = field(default=None, repr=False)
    problems: Problems | None = field(default=None, repr=False)
    classes: dict = field(default_factory=dict, repr=False, compare=False)
    """Known results of `shape_classes`."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def parts(self, role: Role, size: Size) -> dict[str, int]:
        """The sets that a role draws from, with what a step takes of each."""
        if self.form.kind in GRIDS:
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
            if self.problems is not None:
                columns.append([size.places or 1] * len(self))
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
        if self.problems is not None:
            return Batch(problem=self.problems.take(index))
        taken = dict(zip(self.parts(role, size), classes[0].tolist()))
        if self.form.kind in GRIDS:
            return Batch(
                grid=self._pixels(index, role, taken[role], draw) if taken else None,
                picture=self._picture(index, size.least) if size.picture else None,
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
        coords = grid_coords(raster, self.sides[index.to(self.device)])
        return Pixels(coords, decode_color(pixels.columns["color"][place]), weight)

    def _picture(self, index: Tensor, least: tuple[int, int]) -> Picture:
        height, width = self.sizes[index[0]].tolist()
        if height < least[0] or width < least[1]:
            raise ValueError(
                f"sample {self.ids[int(index[0])]!r} has {height} x {width} pixels; "
                f"{least[0]} x {least[1]} at least are needed"
            )
        size = height * width  # one more place takes what pads the shorter sets
        color = torch.zeros(len(index), size + 1, self.form.channels, device=self.device)
        seen = torch.zeros(len(index), size + 1, device=self.device)
        for role, pixels in self.sets.items():
            counts = pixels.counts[index].to(self.device)[:, None]
            place = torch.arange(int(pixels.counts[index].max()), device=self.device)
            there = place < counts
            place = (place * there) + pixels.starts[index].to(self.device)[:, None] * there
            raster = torch.where(there, pixels.columns["raster"][place].long(), size)
            values = decode_color(pixels.columns["color"][place])
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
                    color = decode_color(points.columns["color"][place])
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


def form_of(table: pa.Table, kind: str) -> FormSpec:
    """What a method needs to know of a prepared dataset, from any of its rows."""
    if table.num_rows == 0:
        raise ValueError(f"the table of {kind} has no rows")
    if kind in GRIDS:
        channels = int(table["channels"][0].as_py())
        return FormSpec(kind=kind, channels=channels, dims=len(GRIDS[kind]))
    if kind == "equations":
        return form_of_problems(table)
    names = set(table.column_names)
    views, view_size = view_sizes(table)
    return FormSpec(
        kind=kind,
        channels=None,
        dims=3,
        signed="near_distance" in names,
        distances="near_distance" in names or "near_unsigned_distance" in names,
        normals=has_all("surface_normals", table),
        color=has_all("surface_color", table),
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


def load_samples(table: pa.Table, kind: str, device: str | torch.device = "cpu") -> Samples:
    """Makes prepared rows (`IDENTITY` and the columns of the form) resident on a device."""
    form = form_of(table, kind)
    if kind in GRIDS:
        sets, sizes = grid_sets(table, form)
    elif kind == "equations":
        sets, sizes = {}, torch.zeros(table.num_rows, 2, dtype=torch.int64)
    elif kind in ("shapes", "points"):
        sets, sizes = point_sets(table, form), torch.zeros(table.num_rows, 2, dtype=torch.int64)
    else:
        known = ", ".join((*GRIDS, "shapes", "points"))
        raise ValueError(f"no samples of kind {kind!r}; {known} can be loaded")
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
        sides=sizes.to(device),
        voxels=None if (voxels := load_voxels(table)) is None else voxels.to(device),
        views=None if (views := load_views(table)) is None else views.to(device),
        problems=load_problems(table).to(device) if kind == "equations" else None,
    )
