"""The Zarr side of a store: metadata of every array and group of a plan, and the root columns."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.store.shards import chunk_shape, fill_value, shard_bytes
from schemas.store import (
    BASE_COLUMNS,
    LAYOUT_VERSION,
    ArraySpec,
    ColumnSpec,
    Plan,
    RowStatus,
    unit_columns,
)

COLUMN_CHUNK = 16_384
"""Rows of a chunk of a root column."""
SHARED_CHUNK_BYTES = 64 * 2**20
MAX_SHARD_BYTES = 5 * 10**9
"""What S3 copies in one request."""
RESERVED = ("params", "latents", "observations", "shared", "row", "evaluations")


def row_arrays(plan: Plan) -> tuple[ArraySpec, ...]:
    return tuple(spec for spec in plan.arrays if spec.rows)


def shared_arrays(plan: Plan) -> tuple[ArraySpec, ...]:
    return tuple(spec for spec in plan.arrays if not spec.rows)


def root_columns(plan: Plan) -> tuple[ColumnSpec, ...]:
    return (*BASE_COLUMNS, *plan.columns)


def shard_key(spec: ArraySpec, unit: int) -> str:
    """Key of a unit's shard of an array."""
    return "/".join([spec.name, "c", str(unit), *("0" for _ in spec.shape)])


def check_plan(plan: Plan) -> None:
    """Raises ValueError for a plan that cannot be laid out."""
    names = [spec.name for spec in plan.arrays] + [spec.name for spec in root_columns(plan)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the plan has '{name}' twice; give one of them another name")
    for column in plan.columns:
        if column.name in RESERVED:
            raise ValueError(f"a column cannot be named '{column.name}'; choose another name")
    for spec in plan.arrays:
        if spec.rows == spec.name.startswith("shared/"):
            raise ValueError(f"array '{spec.name}': shared arrays, and only they, have no rows")
        if len(spec.dims) != len(spec.shape):
            raise ValueError(f"array '{spec.name}' has shape {spec.shape} but dims {spec.dims}")
        if 0 in spec.shape:
            raise ValueError(f"array '{spec.name}' has shape {spec.shape}, which holds nothing")
        if spec.rows and shard_bytes(spec, plan.unit_rows) > MAX_SHARD_BYTES:
            raise ValueError(
                f"a shard of '{spec.name}' would have {shard_bytes(spec, plan.unit_rows)} bytes "
                f"(at most {MAX_SHARD_BYTES}); set fit.unit_rows below {plan.unit_rows}"
            )
    end = 0
    for segment in plan.segments:
        if segment.store < end or segment.store % plan.unit_rows or segment.rows < 1:
            raise ValueError(
                f"segment {segment} must start at a multiple of unit_rows = {plan.unit_rows}, "
                f"not before row {end}, and have rows"
            )
        if segment.store - end >= plan.unit_rows:
            raise ValueError(f"segment {segment} leaves whole units empty after row {end}")
        end = segment.store + segment.rows
    if end != plan.rows:
        raise ValueError(f"the segments end at row {end}, the plan has {plan.rows} rows")


def metadata(plan: Plan) -> dict[str, bytes]:
    """`zarr.json` of every group and array by key; the root's holds all others (consolidated)."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    nodes: dict[str, dict[str, Any]] = {}
    dims = dimension_names(plan)
    for spec in row_arrays(plan):
        shape = (plan.rows, *spec.shape)
        nodes[spec.name] = _array_json(
            shape=shape,
            chunks=chunk_shape(spec, plan.unit_rows),
            shards=(plan.unit_rows, *spec.shape),
            dtype=spec.dtype,
            fill_value=fill_value(spec.dtype),
            compressors=(Crc32cCodec(),),
            dimension_names=("row", *dims[spec.name]),
            attributes=spec.attributes,
        )
    for spec in shared_arrays(plan):
        nodes[spec.name] = _array_json(
            shape=spec.shape,
            chunks=shared_chunk(spec),
            dtype=spec.dtype,
            fill_value=fill_value(spec.dtype),
            compressors=(Crc32cCodec(),),
            dimension_names=dims[spec.name],
            attributes=spec.attributes,
        )
    for column in root_columns(plan):
        nodes[column.name] = _array_json(
            shape=(plan.rows,),
            chunks=(COLUMN_CHUNK,),
            dtype=column.dtype,
            fill_value=column_fill(column),
            compressors=(ZstdCodec(level=3), Crc32cCodec()),
            dimension_names=("row",),
            attributes={"description": column.description},
        )
    for group in {name.split("/")[0] for name in nodes if "/" in name}:
        nodes[group] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    root = {
        "attributes": root_attributes(plan),
        "zarr_format": 3,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(sorted(nodes.items())),
        },
        "node_type": "group",
    }
    found = {f"{name}/zarr.json": _json(node) for name, node in sorted(nodes.items())}
    return {**found, "zarr.json": _json(root)}


def root_attributes(plan: Plan) -> dict[str, Any]:
    """What a reader needs besides the arrays: the fields' specification, statuses, segments."""
    return {
        "fieldmill_layout": LAYOUT_VERSION,
        "name": plan.name,
        "field": plan.field.model_dump(mode="json"),
        "statuses": {status.name.lower(): int(status) for status in RowStatus},
        "unit_rows": plan.unit_rows,
        "segments": [segment.model_dump() for segment in plan.segments],
        "prepared_fingerprint": plan.prepared_fingerprint,
    }


def dimension_names(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Dimension names of each array, without `row`; xarray wants one size for one name.

    A name that has several sizes gets its size appended, a repeated one its number.
    """
    sizes: dict[str, set[int]] = {"row": {plan.rows, -1}}
    for spec in plan.arrays:
        for name, size in zip(spec.dims, spec.shape):
            sizes.setdefault(name, set()).add(size)
    found = {}
    for spec in plan.arrays:
        names: list[str] = []
        for dim, size in zip(spec.dims, spec.shape):
            name = f"{dim}_{size}" if len(sizes[dim]) > 1 else dim
            repeats = sum(n == name or n.startswith(name + "__") for n in names)
            names.append(f"{name}__{repeats + 1}" if repeats else name)
        found[spec.name] = tuple(names)
    return found


def shared_chunk(spec: ArraySpec) -> tuple[int, ...]:
    """Chunks of a shared array: whole, or cut along the first axis when very large."""
    size = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    if not spec.shape or size <= SHARED_CHUNK_BYTES:
        return spec.shape
    return (max(1, spec.shape[0] * SHARED_CHUNK_BYTES // size), *spec.shape[1:])


def column_fill(column: ColumnSpec) -> Any:
    """Value of padding rows: ABSENT, '' or NaN."""
    if column.dtype == "string":
        return ""
    if column.dtype == "bool":
        return False
    return fill_value(column.dtype)


def column_table(plan: Plan, batches: dict[int, pa.RecordBatch]) -> pa.Table:
    """The small columns of all rows, padding included; units without a batch are padding."""
    schema = unit_columns(plan.columns)
    tables = []
    for unit in range(plan.units):
        end = min((unit + 1) * plan.unit_rows, plan.rows)
        rows = end - unit * plan.unit_rows
        if unit in batches:
            tables.append(pa.Table.from_batches([batches[unit]]))
            rows -= batches[unit].num_rows
        if rows:
            columns = [
                pa.array([column_fill(column)] * rows, schema.field(column.name).type)
                for column in root_columns(plan)
            ]
            tables.append(pa.table(columns, schema=schema))
    return pa.concat_tables(tables)


def encode_array(node: bytes, values: np.ndarray) -> dict[str, bytes]:
    """Chunk objects (key relative to the array -> bytes) of an array without shards."""
    from zarr.storage import MemoryStore, StorePath

    chunks: dict[str, Any] = {}
    array = open_zarr_array(node, StorePath(MemoryStore(chunks)))
    array[...] = values
    return {key: value.to_bytes() for key, value in chunks.items()}


def open_zarr_array(node: bytes, path: Any) -> Any:
    """The zarr array at a store path by this `zarr.json`, whatever the store has; no request."""
    import zarr
    from zarr.core.metadata import ArrayV3Metadata

    metadata = ArrayV3Metadata.from_dict(json.loads(node))
    config = {"write_empty_chunks": True, "order": "C"}
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=path, config=config))


def decode_array(node: bytes, chunks: dict[str, bytes]) -> np.ndarray:
    """The values of an array from its metadata and chunk objects."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore, StorePath

    buffer = default_buffer_prototype().buffer
    items = {key: buffer.from_bytes(value) for key, value in chunks.items()}
    return np.asarray(open_zarr_array(node, StorePath(MemoryStore(items)))[...])


def column_values(column: ColumnSpec, values: pa.ChunkedArray) -> np.ndarray:
    """A column as numpy; strings as numpy's variable-width strings."""
    if column.dtype == "string":
        return np.array(values.to_pylist(), dtype=np.dtypes.StringDType())
    return values.to_numpy()


def _array_json(**options: Any) -> dict[str, Any]:
    import zarr
    from zarr.storage import MemoryStore

    store: dict[str, Any] = {}
    zarr.create_array(MemoryStore(store), zarr_format=3, filters=None, **options)
    return json.loads(store["zarr.json"].to_bytes())


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False).encode()
