"""What the rows of a store were fitted to, as plain vectors: pixels, or points of surfaces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.ingest.prepared import Prepared
from pipeline.ragged import decode_coords
from pipeline.storage import open_objects
from schemas.base import Location

PART = 1024
"""Prepared rows that are read at once."""


@dataclass(frozen=True)
class RawData:
    """Samples in the order that was asked for."""

    name: str
    """What a row is, in words."""
    values: Float[Tensor, "n d"]
    points: Float[Tensor, "n p 3"] | None = None
    """Of shapes and clouds: points on surfaces."""
    pictures: Float[Tensor, "n c h w"] | None = None
    """Of images: the values, unflattened."""


def raw_data(
    prepared: Prepared, ids: Sequence[str], *, side: int, cells: int, points: int
) -> RawData:
    """The raw data of samples by id, each as often as it is named.

    Args:
        side: Longest side of pictures; larger ones are reduced, and all have one size.
        cells: Cells an axis into which surface points are counted.
        points: Surface points that are kept of a sample.
    """
    if prepared.meta.kind == "images":
        columns = ["pixels", "height", "width", "channels", "dtype"]
        found = dict(_pictures(prepared, set(ids), columns, side))
        values = torch.stack([found[name] for name in _all_known(ids, found, prepared)])
        height, width = values.shape[-2:]
        return RawData(f"pixels, {height} x {width}", values.flatten(1), pictures=values)
    if prepared.meta.kind in ("audio", "video"):
        raise ValueError(
            f"{prepared.location.url} holds {prepared.meta.kind}: raw data are compared of images, "
            "shapes and points; set raw: false"
        )
    found = dict(_surfaces(prepared, set(ids)))
    clouds = [found[name] for name in _all_known(ids, found, prepared)]
    counted = torch.stack([_counts(cloud, cells) for cloud in clouds])
    chosen = torch.stack([cloud[torch.arange(points) % len(cloud)] for cloud in clouds])
    return RawData(f"occupied cells, {cells}^3", counted, chosen)


def tables(prepared: Prepared, ids: set[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Prepared rows of these samples, some at a time."""
    for start in range(0, prepared.meta.rows, PART):
        stop = min(start + PART, prepared.meta.rows)
        inside = prepared.rows(start, stop, columns=[])["sample_id"].to_pylist()
        wanted = np.array([name in ids for name in inside], bool)
        if wanted.any():
            yield prepared.rows(start, stop, columns).filter(pa.array(wanted))


def prepared_beside(store: Location) -> Location | None:
    """NAME.prepared beside NAME.zarr, where a finished one is."""
    stem = store.url.rstrip("/").removesuffix(".zarr")
    location = Location(**{**store.location_fields(), "url": stem + ".prepared"})
    try:
        return None if open_objects(location).size("prepared.json") is None else location
    except OSError:
        return None


def _all_known(ids: Sequence[str], found: dict[str, Tensor], prepared: Prepared) -> Sequence[str]:
    missing = sorted(set(ids) - found.keys())
    if missing:
        raise ValueError(
            f"{prepared.location.url} lacks {len(missing)} of the store's samples, e.g. "
            f"'{missing[0]}': it is not what the store was made from; set prepared, or raw: false"
        )
    return ids


def _pictures(
    prepared: Prepared, ids: set[str], columns: list[str], side: int
) -> Iterator[tuple[str, Float[Tensor, "c h w"]]]:
    size = None
    for table in tables(prepared, ids, columns):
        for line in table.to_pylist():
            shape = line["height"], line["width"], line["channels"]
            values = np.frombuffer(line["pixels"], line["dtype"]).reshape(shape)
            picture = torch.from_numpy(values / float(np.iinfo(values.dtype).max)).float()
            picture = picture.movedim(-1, 0)
            if size is None:
                scale = min(1.0, side / max(shape[:2]))
                size = tuple(max(round(s * scale), 1) for s in shape[:2])
            if picture.shape[1:] != size:
                picture = F.interpolate(picture[None], size, mode="area")[0]
            yield line["sample_id"], picture


def _surfaces(prepared: Prepared, ids: set[str]) -> Iterator[tuple[str, Float[Tensor, "p 3"]]]:
    for table in tables(prepared, ids, ["surface_coords", "precision"]):
        for line in table.to_pylist():
            points = coords(line["surface_coords"], line["precision"])
            if not len(points):
                raise ValueError(
                    f"{prepared.location.url}: sample '{line['sample_id']}' has no surface points; "
                    "set ingest.surface, or raw: false"
                )
            yield line["sample_id"], points


def coords(data: bytes, precision: str) -> Float[Tensor, "p 3"]:
    """Points of a prepared column."""
    kind = np.int16 if precision == "compact" else np.float32
    return decode_coords(torch.from_numpy(np.frombuffer(data, kind).reshape(-1, 3).copy()))


def _counts(points: Float[Tensor, "p 3"], cells: int) -> Float[Tensor, "d"]:
    """Share of the points in each cell of [-1, 1]^3, square root."""
    at = ((points + 1) / 2 * cells).long().clamp(0, cells - 1)
    place = (at[:, 0] * cells + at[:, 1]) * cells + at[:, 2]
    return torch.bincount(place, minlength=cells**3).div(len(points)).sqrt()
