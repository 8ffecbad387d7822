"""Shards made in memory are those of Zarr, and damage in them is found and bounded."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from pipeline.store.layout import dimension_names, metadata, open_zarr_array
from pipeline.store.shards import (
    chunk_shape,
    damaged_rows,
    decode_shard,
    encode_shard,
    fill_value,
    shard_bytes,
)
from schemas.store import ArraySpec
from tests.store.toy import make_plan, values_of

SPECS = [
    ArraySpec(name="params", shape=(300,), dims=("param",)),
    ArraySpec(name="params", shape=(60_000,), dims=("param",)),  # a row is a chunk
    ArraySpec(name="latents/grid", shape=(24, 60_000), dims=("k", "z")),  # a row is cut
    ArraySpec(name="latents/keys", shape=(5, 2), dims=("k", "z"), dtype="int64"),
    ArraySpec(name="latents/half", shape=(7,), dims=("z",), dtype="float16"),
    ArraySpec(name="latents/scale", shape=(), dims=()),
]


def zarr_values(spec: ArraySpec, unit_rows: int, data: bytes, rows: int) -> np.ndarray:
    """What plain zarr reads from one shard of an array with so many rows."""
    from zarr.core.buffer import default_buffer_prototype

    key = "/".join(["c", "0", *("0" for _ in spec.shape)])
    plan = make_plan((rows,), unit_rows, (spec,))
    to_buffer = default_buffer_prototype().buffer.from_bytes
    node = metadata(plan)[f"{spec.name}/zarr.json"]
    store = MemoryStore({"zarr.json": to_buffer(node), key: to_buffer(bytes(data))})
    return zarr.open_array(store, mode="r")[...]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}-{s.dtype}-{s.shape}")
@pytest.mark.parametrize(("unit_rows", "rows"), [(8, 8), (8, 5), (6, 6), (1, 1)])
def test_zarr_reads_what_was_encoded(spec, unit_rows, rows):
    values = values_of(spec, np.arange(rows))
    data = encode_shard(spec, unit_rows, values)
    assert len(data) == shard_bytes(spec, unit_rows)
    np.testing.assert_array_equal(zarr_values(spec, unit_rows, data, rows), values)
    whole, readable = decode_shard(spec, unit_rows, bytes(data))
    np.testing.assert_array_equal(whole[:rows], values)
    padding = np.full((unit_rows - rows, *spec.shape), fill_value(spec.dtype), spec.dtype)
    np.testing.assert_array_equal(whole[rows:], padding)
    assert readable.all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}-{s.dtype}-{s.shape}")
def test_zarr_writes_a_shard_of_the_same_size_that_decodes_alike(spec):
    """A second implementation: the chunks may lie in another order, the content is one."""
    values = values_of(spec, np.arange(8))
    plan = make_plan((8,), 8, (spec,))
    held: dict = {}
    from zarr.storage import StorePath

    path = StorePath(MemoryStore(held))
    open_zarr_array(metadata(plan)[f"{spec.name}/zarr.json"], path)[...] = values
    (theirs,) = [value.to_bytes() for value in held.values()]
    ours = bytes(encode_shard(spec, 8, values))
    assert len(theirs) == len(ours)
    np.testing.assert_array_equal(zarr_values(spec, 8, theirs, 8), zarr_values(spec, 8, ours, 8))


def test_chunks_divide_the_shard_and_have_useful_sizes():
    def shape(row, rows, dtype="float32"):
        dims = tuple(f"d{i}" for i in range(len(row)))
        return chunk_shape(ArraySpec(name="params", shape=row, dims=dims, dtype=dtype), rows)

    assert shape((50_307,), 256) == (1, 50_307)  # 201 kB a row
    assert shape((256,), 1024) == (1024, 256)
    assert shape((10_000,), 256) == (16, 10_000)  # 0.64 MB
    assert shape((10_000,), 6) == (6, 10_000)
    assert shape((10_000,), 35) == (7, 10_000)
    assert shape((64, 64, 64, 8), 4) == (1, 16, 64, 64, 8)  # 8 MB a row
    assert shape((), 4) == (4,)


def test_a_flipped_bit_costs_the_rows_of_its_chunk_only():
    spec = ArraySpec(name="params", shape=(60_000,), dims=("param",))
    data = bytearray(encode_shard(spec, 4, values_of(spec, np.arange(4))))
    assert list(damaged_rows(spec, 4, bytes(data))) == []
    data[2 * (240_000 + 4) + 17] ^= 4
    assert list(damaged_rows(spec, 4, bytes(data))) == [2]
    with pytest.raises(ValueError, match="checksum"):
        zarr_values(spec, 4, bytes(data), 4)
    assert list(damaged_rows(spec, 4, bytes(data[:300_000]))) == [1, 2, 3]
    assert list(damaged_rows(spec, 4, b"")) == [0, 1, 2, 3]


def test_a_damaged_piece_of_a_cut_row_costs_that_row():
    spec = SPECS[2]
    data = bytearray(encode_shard(spec, 3, values_of(spec, np.arange(3))))
    data[len(data) // 2] ^= 1
    assert list(damaged_rows(spec, 3, bytes(data))) == [1]


def test_dimension_names_have_one_size_each():
    plan = make_plan((10,), 4)
    names = dimension_names(plan)
    assert names["params"] == ("param",)
    assert names["latents/code"] == ("z_3", "c")
    assert names["shared/net.0.weight"] == ("out_6", "in_4")
    square = ArraySpec(name="shared/w", shape=(4, 4), dims=("u", "u"), rows=False)
    assert dimension_names(make_plan(arrays=(square,)))["shared/w"] == ("u", "u__2")
