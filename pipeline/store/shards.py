"""Shards of rows as Zarr defines them (`sharding_indexed`, crc32c), encoded and decoded in memory.

A shard is its chunks one after the other, each with its crc32c, then the index: offset and length
of every chunk, with a crc32c of its own. Zarr's own encoder gives the same bytes' worth of data at
a third of the speed; `tests/store/test_shards.py` holds the two equal.
"""

from __future__ import annotations

import math

import google_crc32c
import numpy as np

from schemas.store import ArraySpec

CRC_BYTES = 4
ROW_CHUNK_BYTES = 200_000
"""A row at least this large is a chunk of its own: random rows cost one small read."""
CHUNK_BYTES = 2**20
"""Smaller rows are put together up to this size."""
LARGE_ROW_BYTES = 4 * 2**20
"""Rows above this (grids, tables) are cut along their first axis."""


class DamagedShard(ValueError):
    """The bytes of a shard are not what was written."""


def fill_value(dtype: str) -> float | int:
    """NaN, or 0 for integers: what padding and unwritten rows read as."""
    return float("nan") if dtype.startswith("float") else 0


def row_bytes(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def chunk_shape(spec: ArraySpec, unit_rows: int) -> tuple[int, ...]:
    """Shape of the chunks of an array with rows; divides the shard `(unit_rows, *spec.shape)`."""
    size = max(row_bytes(spec), 1)
    if size > LARGE_ROW_BYTES and spec.shape:
        part = size // spec.shape[0]
        for count in sorted(_divisors(spec.shape[0]), reverse=True):
            if 2**16 <= count * part <= 2 * CHUNK_BYTES:
                return (1, count, *spec.shape[1:])
    if size >= ROW_CHUNK_BYTES:
        return (1, *spec.shape)
    rows = max(n for n in _divisors(unit_rows) if n == 1 or n * size <= CHUNK_BYTES)
    return (rows, *spec.shape)


def _divisors(number: int) -> set[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return {*small, *(number // n for n in small)}


def shard_bytes(spec: ArraySpec, unit_rows: int) -> int:
    """Size of every encoded shard of an array."""
    count, size = _chunks(spec, unit_rows)
    return count * (size + CRC_BYTES + 16) + CRC_BYTES


def _chunks(spec: ArraySpec, unit_rows: int) -> tuple[int, int]:
    """Number of chunks of a shard, and bytes of a chunk without its checksum."""
    chunk = chunk_shape(spec, unit_rows)
    size = math.prod(chunk) * np.dtype(spec.dtype).itemsize
    count = math.prod(n // c for n, c in zip((unit_rows, *spec.shape), chunk))
    return count, size


def encode_shard(spec: ArraySpec, unit_rows: int, values: np.ndarray) -> memoryview:
    """The bytes of a shard whose first rows are `values`; the rest is fill."""
    shape = (unit_rows, *spec.shape)
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    count, size = _chunks(spec, unit_rows)
    stride = size + CRC_BYTES
    data = np.zeros(count * (stride + 16) + CRC_BYTES, np.uint8)
    body = data[: count * stride].reshape(count, stride)
    if len(values) < unit_rows:
        whole = np.full(shape, fill_value(spec.dtype), dtype)
        whole[: len(values)] = values
        values = whole
    ordered = np.ascontiguousarray(_by_chunk(values.astype(dtype, copy=False), spec, unit_rows))
    body[:, :size] = ordered.reshape(count, -1).view(np.uint8).reshape(count, size)
    buffer = memoryview(data)
    for i in range(count):
        crc = google_crc32c.value(_raw(buffer[i * stride : i * stride + size]))
        body[i, size:] = np.frombuffer(crc.to_bytes(CRC_BYTES, "little"), np.uint8)
    index = np.zeros((count, 2), "<u8")
    index[:, 0] = np.arange(count) * stride
    index[:, 1] = stride
    tail = index.tobytes()
    tail += google_crc32c.value(tail).to_bytes(CRC_BYTES, "little")
    data[count * stride :] = np.frombuffer(tail, np.uint8)
    return buffer


def _raw(view: memoryview) -> np.ndarray:
    return np.frombuffer(view, np.uint8)


def _by_chunk(values: np.ndarray, spec: ArraySpec, unit_rows: int) -> np.ndarray:
    """Rows regrouped so that each chunk's values are together; a view where rows are whole."""
    chunk = chunk_shape(spec, unit_rows)
    if chunk[1:] == spec.shape:
        return values
    parts = spec.shape[0] // chunk[1]  # then a chunk holds one row
    return values.reshape(unit_rows, parts, chunk[1], *spec.shape[1:])


def damaged_rows(spec: ArraySpec, unit_rows: int, data: bytes) -> np.ndarray:
    """Rows of the shard (0 .. unit_rows - 1) that cannot be read from these bytes."""
    return np.flatnonzero(~decode_shard(spec, unit_rows, data)[1])


def decode_shard(spec: ArraySpec, unit_rows: int, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Values of a shard `[unit_rows, *shape]`, and which rows passed their checksums."""
    count, size = _chunks(spec, unit_rows)
    stride = size + CRC_BYTES
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    flat = np.full((count, size // dtype.itemsize), fill_value(spec.dtype), dtype)
    good = np.zeros(count, bool)
    view = memoryview(data)
    for i in range(count):  # every shard has one layout, so chunks outlive a broken index
        chunk, crc = (
            view[i * stride : i * stride + size],
            view[i * stride + size : (i + 1) * stride],
        )
        if len(crc) == CRC_BYTES and google_crc32c.value(_raw(chunk)) == int.from_bytes(
            crc, "little"
        ):
            flat[i] = np.frombuffer(chunk, dtype)
            good[i] = True
    chunk_rows = chunk_shape(spec, unit_rows)[0]
    whole = chunk_rows > 1 or count == unit_rows // chunk_rows
    readable = np.repeat(good, chunk_rows) if whole else good.reshape(unit_rows, -1).all(axis=1)
    return flat.reshape(unit_rows, *spec.shape), readable
