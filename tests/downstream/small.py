"""Small real stores of known codes: fields of a decoder that nothing trained, rows as asked for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline import fitting
from pipeline.methods import build, configure
from pipeline.storage import open_objects
from pipeline.store import UnitResult, create_store, finalize, write_unit
from schemas.base import Location
from schemas.samples import FormSpec
from schemas.store import ColumnSpec, Plan, Segment, unit_columns

FORM = FormSpec(kind="shapes", dims=3, signed=True)


def ring(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Points on circles of radius 1, 2, ... with a little noise; the circle is the class."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, classes, count)
    angle = random.uniform(0, 2 * np.pi, count)
    place = np.stack([np.cos(angle), np.sin(angle)], 1) * (1 + kind)[:, None]
    return (place + random.normal(0, 0.05, place.shape)).astype(np.float32), kind


def rings(count: int, seed: int, size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Circles about three centers, turned into a space of more axes: no normal distribution, but
    of few dimensions, as codes are. The center is the class."""
    random, fixed = np.random.default_rng(seed), np.random.default_rng(123)
    centers = fixed.normal(0, 0.6, (3, size))
    plane = np.linalg.qr(fixed.normal(size=(size, size)))[0][:2]
    angle, kind = random.uniform(0, 2 * np.pi, count), random.integers(0, 3, count)
    place = np.stack([np.cos(angle), np.sin(angle)], 1) @ plane + centers[kind]
    return (place + random.normal(0, 0.03, place.shape)).astype(np.float32), kind


def code_store(
    location: Location,
    codes: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    unit_rows: int = 64,
    held_out: float = 0.25,
    settings: dict | None = None,
) -> Plan:
    """A finished DeepSDF store of these codes; the last rows are of the test split."""
    settings = {"code": codes.shape[1], "width": 16, "depth": 2, **(settings or {})}
    method = build("deepsdf", configure("deepsdf", "default", settings), FORM)
    shared = fitting.start_shared(method, 0)
    count = len(codes)
    plan = Plan(
        name="known codes",
        fit_identity="i" * 64,
        fit_keys={},
        numerics=fitting.NUMERICS,
        prepared_fingerprint="p" * 64,
        rows=count,
        unit_rows=unit_rows,
        segments=(Segment(prepared=0, store=0, rows=count),),
        arrays=fitting.row_arrays(method),
        columns=(ColumnSpec(name="radius", dtype="float32", description="length of the code"),),
        field=fitting.describe(method, seed=0),
        lanes=4,
        compiled=False,
    )
    columns = {
        "sample_id": [f"s{i}" for i in range(count)],
        "label": [""] * count if labels is None else [f"ring{k}" for k in labels],
        "split": ["test" if i >= count * (1 - held_out) else "train" for i in range(count)],
        "status": [1] * count,
        "code": [""] * count,
        "message": [""] * count,
        "steps": [1] * count,
        "loss": [0.0] * count,
        "copy": [0] * count,
        "origin": ["inferred"] * count,
        "radius": np.linalg.norm(codes, axis=1).tolist(),
    }
    objects, schema = open_objects(location), unit_columns(plan.columns)
    create_store(objects, plan, fitting.pack_shared(shared))
    table = pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
    for unit in range(plan.units):
        first, last = plan.unit_range(unit)
        batch = table.slice(first, last - first).combine_chunks().to_batches()[0]
        result = UnitResult({"latents/code": codes[first:last]}, batch, None)
        write_unit(objects, plan, unit, 0, result, f"attempt{unit}")
    finalize(objects, plan)
    return plan
