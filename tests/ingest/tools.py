"""Pictures with known pixels, and whole ingests, for the tests of this folder."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.ingest.fold import fold
from pipeline.ingest.listing import units_to_do, write_listing
from pipeline.ingest.prepared import Prepared, open_prepared
from pipeline.ingest.unit import ingest_unit
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import Dataset, ImageIngest
from schemas.samples import IngestOutcome

SMALL = ImageIngest(unit_objects=7, held_out=0.1, timeout_s=20)


def picture(number: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    """Random pixels, different for each number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(flat).save(sink, kind, **options)
    return sink.getvalue()


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, written by hand (Pillow cannot)."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        check = struct.pack(">I", zlib.crc32(name + data))
        parts.append(struct.pack(">I", len(data)) + name + data + check)
    return b"".join(parts)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def put(location: Location, files: dict[str, bytes]) -> None:
    objects = open_objects(location)
    for name, data in files.items():
        objects.put(name, data)


def images(location: Location | Path | str, **keys) -> Dataset:
    """A dataset of images at a location."""
    if not isinstance(location, Location):
        location = Location(url=str(location))
    return Dataset(**{"kind": "images", **location.location_fields(), **keys})


def run_units(
    dataset: Dataset, prepared: Location, ingest: ImageIngest = SMALL, **options
) -> list[IngestOutcome]:
    objects = open_objects(prepared)
    write_listing(dataset, ingest, objects, **options)
    return [ingest_unit(dataset, ingest, prepared, unit, "a") for unit in units_to_do(objects)]


def run_ingest(
    dataset: Dataset, prepared: Location, ingest: ImageIngest = SMALL, **options
) -> Prepared:
    run_units(dataset, prepared, ingest, **options)
    fold(dataset, ingest, prepared)
    return open_prepared(prepared)


def lines(prepared: Prepared) -> dict[str, dict]:
    """The manifest by sample id."""
    rows = [row for batch in prepared.manifest() for row in batch.to_pylist()]
    assert len({row["sample_id"] for row in rows}) == len(rows)
    return {row["sample_id"]: row for row in rows}


def pixels_of(prepared: Prepared) -> dict[str, np.ndarray]:
    """All pictures by sample id."""
    return {row["sample_id"]: grid(row) for row in table_rows(prepared.rows(0, prepared.meta.rows))}


def table_rows(table: pa.Table) -> list[dict]:
    return table.to_pylist()


def grid(row: dict) -> np.ndarray:
    shape = (row["height"], row["width"], row["channels"])
    return np.frombuffer(row["pixels"], row["dtype"]).reshape(shape)


def contents(location: Location) -> dict[str, bytes]:
    """Everything that lies at a location."""
    objects = open_objects(location)
    return {entry.key: objects.get(entry.key) for entry in objects.list()}
