"""Prepared shards: Arrow files whose record batches are read by byte range, and their writer."""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.storage import Objects
from schemas.base import Schema

OPTIONAL = ("surface_normals", "surface_color", "held_surface_normals", "held_surface_color")
"""Columns that methods see in every row or in none."""
BATCH_BYTES = 4 * 2**20
"""A record batch is closed when it holds this much."""
PIECE_BYTES = 256 * 2**20
"""A shard is closed when it holds this much: bounds the memory of a unit of large samples."""


class Piece(Schema):
    """One shard of a unit, as its commit record names it."""

    name: str
    """Key is `shards/<name>.arrow`; ends in the first digits of its sha256."""
    rows: int
    bytes: int
    sha256: str
    batches: tuple[tuple[int, int, int, int], ...]
    """Byte offset, byte length, rows and crc32 of each record batch."""
    missing: tuple[str, ...] = ()
    """Columns of `OPTIONAL` that a row lacks."""


@dataclass
class ShardWriter:
    """Collects decoded samples of one unit and uploads a shard whenever one is full.

    A shard's name contains its hash, so two attempts that made the same bytes write the same
    object, and others do not touch each other's.
    """

    objects: Objects
    unit: int
    schema: pa.Schema
    piece_rows: int

    def __post_init__(self):
        self.pieces: list[Piece] = []
        self.rows = 0
        self._start()

    def _start(self) -> None:
        self.sink = io.BytesIO()
        self.file = pa.ipc.new_file(self.sink, self.schema)
        self.columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        self.held, self.piece_held, self.batches = 0, 0, []
        self.missing: set[str] = set()

    def add(self, columns: dict[str, Any]) -> int:
        """Takes one sample; returns its position among the unit's samples."""
        unknown = set(columns) - set(self.schema.names)
        assert not unknown, f"decoder gave columns {sorted(unknown)} that its form does not have"
        for name, values in self.columns.items():
            value = columns.get(name)
            values.append(value)
            if value is None and name in OPTIONAL:
                self.missing.add(name)
            self.held += len(value) if isinstance(value, bytes | memoryview) else 8
        self.rows += 1
        if self.held >= BATCH_BYTES:
            self._close_batch()
        full = self.piece_held + self.held >= PIECE_BYTES
        if full or self.rows - sum(p.rows for p in self.pieces) >= self.piece_rows:
            self._close_piece()
        return self.rows - 1

    def _close_batch(self) -> None:
        rows = len(next(iter(self.columns.values())))
        if not rows:
            return
        arrays = [pa.array(self.columns[field.name], field.type) for field in self.schema]
        # the schema message is only written with the first batch: flush it to know the offset
        start = self.sink.tell()
        self.file.write_batch(pa.record_batch(arrays, schema=self.schema))
        if not self.batches:
            start = _first_batch_offset(self.sink)
        end = self.sink.tell()
        with self.sink.getbuffer() as buffer:
            check = zlib.crc32(buffer[start:end])
        self.batches.append((start, end - start, rows, check))
        self.piece_held += self.held
        self.columns, self.held = {name: [] for name in self.schema.names}, 0

    def _close_piece(self) -> None:
        self._close_batch()
        if not self.batches:
            return
        self.file.close()
        data = self.sink.getbuffer()  # the sink is dropped below: no copy is needed
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{self.unit:06d}-{len(self.pieces):04d}-{sha256[:16]}"
        self.objects.put(f"shards/{name}.arrow", data)
        self.pieces.append(
            Piece(
                name=name,
                rows=sum(batch[2] for batch in self.batches),
                bytes=len(data),
                sha256=sha256,
                batches=tuple(self.batches),
                missing=tuple(sorted(self.missing)),
            )
        )
        self._start()

    def close(self) -> list[Piece]:
        """Uploads what is left; the unit's shards in order."""
        self._close_piece()
        return self.pieces


def _first_batch_offset(sink: io.BytesIO) -> int:
    """Where the first record batch begins: after the magic bytes and the schema message."""
    buffer = pa.py_buffer(sink.getbuffer()[8:])
    reader = pa.BufferReader(buffer)
    pa.ipc.read_message(reader)
    return 8 + reader.tell()


def read_batches(
    objects: Objects, piece: Piece, schema: pa.Schema, start: int, stop: int
) -> list[pa.RecordBatch]:
    """Positions [start, stop) of a shard, by one ranged read of the batches that hold them."""
    first, wanted = 0, []
    for offset, length, rows, check in piece.batches:
        if first < stop and first + rows > start:
            wanted.append((first, offset, length, rows, check))
        first += rows
    if not wanted:
        return []
    begin, end = wanted[0][1], wanted[-1][1] + wanted[-1][2]
    data = objects.get_range(f"shards/{piece.name}.arrow", begin, end - begin)
    batches = []
    for first, offset, length, rows, check in wanted:
        message = pa.py_buffer(memoryview(data)[offset - begin : offset - begin + length])
        if zlib.crc32(message) != check:
            raise RuntimeError(
                f"{objects.location.url}: shards/{piece.name}.arrow is damaged (bytes "
                f"{offset}-{offset + length}); prepare the dataset again at another location"
            )
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)
        batches.append(
            batch.slice(max(start - first, 0), min(stop, first + rows) - max(start, first))
        )
    return batches
