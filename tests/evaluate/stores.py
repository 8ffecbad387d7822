"""Real stores of small fits, made without a driver: pictures by SIREN, spheres by DeepSDF."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline import fitting
from pipeline.evaluate.metrics import cheap_metrics, measure
from pipeline.fields.bind import Tensors
from pipeline.methods import build, configure
from pipeline.samples import form_of, load_samples
from pipeline.stages.plan import SOURCE_COLUMNS, source_columns
from pipeline.storage import open_objects
from pipeline.store import UnitResult, create_store, finalize, write_unit
from schemas.base import Location
from schemas.store import USABLE, Plan, Segment, unit_columns


def fitted_store(
    location: Location,
    table: pa.Table,
    kind: str,
    name: str,
    settings: dict,
    *,
    unit_rows: int = 4,
    finish: bool = True,
    seed: int = 0,
) -> Plan:
    """Trains where the method does, fits all rows of the table, writes and finalizes a store."""
    method = build(name, configure(name, "default", settings), form_of(table, kind))
    samples = load_samples(table, kind)
    shared: Tensors = fitting.start_shared(method, seed)
    if getattr(method, "train", ()):
        shared = fitting.train(method, samples, seed=seed).shared
    arrays = (*fitting.row_arrays(method), *fitting.shared_arrays(shared))
    plan = Plan(
        name=f"small {kind}",
        fit_identity="i" * 64,
        fit_keys={},
        numerics=fitting.NUMERICS,
        prepared_fingerprint="p" * 64,
        rows=table.num_rows,
        unit_rows=unit_rows,
        segments=(Segment(prepared=0, store=0, rows=table.num_rows),),
        arrays=tuple({array.name: array for array in arrays}.values()),
        columns=(*SOURCE_COLUMNS[kind], *cheap_metrics(kind)),
        field=fitting.describe(method, seed=seed),
        lanes=4,
        compiled=False,
    )
    objects = open_objects(location)
    create_store(objects, plan, fitting.pack_shared(shared))
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        part = table.slice(first, last - first)
        result = _fit(method, shared, part, kind, plan, seed)
        write_unit(objects, plan, unit, 0, result, f"attempt{unit}")
    if finish:
        finalize(objects, plan)
    return plan


def _fit(method, shared, part, kind, plan, seed) -> UnitResult:
    samples = load_samples(part, kind)
    fitted = fitting.fit_rows(method, shared, samples, seed=seed, lanes=plan.lanes)
    metrics = measure(kind, method, shared, fitted.rows, samples, part)
    columns = {
        "sample_id": part["sample_id"].to_pylist(),
        "label": part["label"].to_pylist(),
        "split": part["split"].to_pylist(),
        "status": [int(s) for s in fitted.status],
        "code": [c.value for c in fitted.code],
        "message": fitted.message,
        "steps": fitted.steps.tolist(),
        "loss": fitted.loss.tolist(),
        "copy": [0] * len(part),
        "origin": ["inferred"] * len(part),
        **source_columns(kind, part),
        **{k: v.tolist() for k, v in metrics.items()},
    }
    schema = unit_columns(plan.columns)
    arrays = fitting.pack(method, fitted.rows)
    bad = ~np.isin(columns["status"], [int(s) for s in USABLE])
    for values in arrays.values():
        values[bad] = np.nan if values.dtype.kind == "f" else 0
    batch = pa.record_batch([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    return UnitResult(arrays, batch, None)
