"""A toy run for store tests: made-up values that depend on the row alone, and a driver loop."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa

from pipeline.storage import Objects, open_objects
from pipeline.store import (
    UnitResult,
    create_store,
    finalize,
    merge_unit,
    progress,
    publish_unit,
    rows_to_fit,
    store_hash,
    write_unit,
)
from schemas.base import Location
from schemas.store import (
    ArraySpec,
    ColumnSpec,
    FieldSpec,
    Plan,
    RowStatus,
    Segment,
    unit_columns,
)

ARRAYS = (
    ArraySpec(name="params", shape=(50,), dims=("param",), attributes={"table": {"w": [0, [50]]}}),
    ArraySpec(name="latents/code", shape=(3, 4), dims=("z", "c"), dtype="float16"),
    ArraySpec(name="latents/code_keys", shape=(4,), dims=("z",), dtype="int32"),
    ArraySpec(name="shared/net.0.weight", shape=(6, 4), dims=("out", "in"), rows=False),
    ArraySpec(name="shared/net.1.weight", shape=(2, 6), dims=("out", "in"), rows=False),
    ArraySpec(name="shared/scale", shape=(), dims=(), rows=False),
)
SHARED = {
    "net.0.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
    "net.1.weight": -np.arange(12, dtype=np.float32).reshape(2, 6),
    "scale": np.float32(0.5),
}
COLUMNS = (ColumnSpec(name="psnr", dtype="float32", description="made up, in dB"),)
SPEC = FieldSpec(
    method="toy",
    config={},
    layers=[],
    coords={},
    output={},
    init={"start": "own", "seed": 0},
    groups={"rows": ["w"], "shared": ["net.0.weight"]},
    dataset_fingerprint="f" * 64,
    versions={},
)


def make_plan(
    segments: tuple[int, ...] = (10,),
    unit_rows: int = 4,
    arrays: tuple[ArraySpec, ...] = ARRAYS,
    keys: dict | None = None,
) -> Plan:
    """A plan with segments of so many rows; keys are what its identity is made of."""
    keys = keys or {"method": {"name": "toy"}, "seed": 0}
    placed, prepared, store = [], 0, 0
    for rows in segments:
        placed.append(Segment(prepared=prepared, store=store, rows=rows))
        prepared += rows
        end = store + rows
        store = -(-end // unit_rows) * unit_rows
    return Plan(
        name="toy",
        fit_identity=str(sorted(keys.items())),
        fit_keys=keys,
        numerics=1,
        prepared_fingerprint="f" * 64,
        rows=end,
        unit_rows=unit_rows,
        segments=tuple(placed),
        arrays=arrays,
        columns=COLUMNS,
        field=SPEC,
        lanes=4,
        compiled=False,
    )


def values_of(spec: ArraySpec, rows: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """Values of some rows, all different between rows, entries and arrays."""
    size = int(np.prod(spec.shape))
    flat = rows[:, None] * 1000.0 + np.arange(size) + len(spec.name) + shift
    return (flat if spec.dtype != "float16" else flat / 64).astype(spec.dtype).reshape(
        len(rows), *spec.shape
    )  # fmt: skip


def result_of(
    plan: Plan, rows: np.ndarray, failed: tuple[int, ...] = (), shift: float = 0.0
) -> UnitResult:
    """What a fit of these rows gives; `failed` rows are NaN with a code."""
    bad = np.isin(rows, failed)
    arrays = {}
    for spec in plan.arrays:
        if spec.rows:
            arrays[spec.name] = values_of(spec, rows, shift)
            arrays[spec.name][bad] = np.nan if spec.dtype.startswith("float") else 0
    columns = {
        "sample_id": [f"folder/ä {row}.png" for row in rows],
        "label": [f"class {row % 3}" for row in rows],
        "split": ["train"] * len(rows),
        "status": np.where(bad, int(RowStatus.FAILED), int(RowStatus.OK)),
        "code": np.where(bad, "NAN_LOSS", ""),
        "message": np.where(bad, "the loss was not finite", ""),
        "steps": rows + 100,
        "loss": rows * 0.5,
        "copy": rows * 0,
        "origin": ["inferred"] * len(rows),
        "psnr": np.where(bad, np.nan, 30 + shift + rows),
    }
    schema = unit_columns(plan.columns)
    batch = pa.record_batch(
        [pa.array(list(columns[f.name]), f.type) for f in schema], schema=schema
    )
    return UnitResult(arrays, batch, "Traceback: made up" if bad.any() else None)


def fit_unit(
    objects: Objects,
    plan: Plan,
    unit: int,
    generation: int = 0,
    *,
    failed: tuple[int, ...] = (),
    shift: float = 0.0,
    attempt: str | None = None,
):
    """Fits one unit as an actor does: the rows asked for, the others kept."""
    first, last = plan.unit_range(unit)
    rows = rows_to_fit(objects, plan, unit, generation)
    if rows is None:
        result = result_of(plan, np.arange(first, last), failed, shift)
    else:
        part = result_of(plan, np.array(rows), failed, shift)
        result = merge_unit(objects, plan, unit, generation, rows, part)
    return write_unit(objects, plan, unit, generation, result, attempt or uuid.uuid4().hex)


def drive(objects: Objects, plan: Plan, *, failed: tuple[int, ...] = (), shift: float = 0.0) -> str:
    """The driver's loop in one process: create or join, fit, publish, finalize."""
    plan = create_store(objects, plan, SHARED)
    state = progress(objects, plan)
    for unit, generation in state.to_publish:
        publish_unit(objects, plan, unit, generation)
    for unit, generation in state.to_fit:
        fit_unit(objects, plan, unit, generation, failed=failed, shift=shift)
    return finalize(objects, plan).hash


def finished(location: Location, plan: Plan | None = None, **options) -> str:
    """A finished toy store at a location; returns its hash."""
    objects = open_objects(location)
    digest = drive(objects, plan or make_plan(), **options)
    assert digest == store_hash(objects)
    return digest
