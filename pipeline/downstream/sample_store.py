"""Rows that were made, not fitted, as a store of their own: same fields, same shared parameters.

Everything that reads a store (rendering, meshing, metrics, export, training) reads these as well.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import store as stores
from pipeline.evaluate.opened import OpenedStore
from pipeline.stages.fit import padded_columns
from pipeline.storage import Objects
from schemas.store import ArraySpec, ColumnSpec, Plan, RowStatus, Segment, unit_columns

ORIGIN = "sampled"
"""Of rows that a prior gave."""
PICTURE_SIZE = ("height", "width")
COLUMNS = (
    ColumnSpec(
        name="nearest_row",
        dtype="int64",
        description="row of the parent, of those learned from, that is nearest when normalized",
    ),
    ColumnSpec(
        name="nearest_distance",
        dtype="float32",
        description="Euclidean distance to it, of normalized rows; compare with held-out rows",
    ),
    ColumnSpec(
        name="log_density",
        dtype="float32",
        description="log-density under the prior in nats, of rows as stored; NaN where unknown",
    ),
)


@dataclass(frozen=True)
class Made:
    """Samples in order, without those that are not finite (they are DIVERGED)."""

    values: np.ndarray
    """`[n, *shape]` as stored."""
    labels: tuple[str, ...]
    nearest_row: np.ndarray
    nearest_distance: np.ndarray
    log_density: np.ndarray


def fixed_rows(parent: OpenedStore, array: str, rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Arrays of the parent besides `array` that each row needs: they must be the same in all rows.

    Raises:
        ValueError: Another array differs from row to row: a prior of one array is no prior of rows.
    """
    found = {}
    for spec in parent.plan.arrays:
        if not spec.rows or spec.name in (array, *observations(parent.plan)):
            continue
        some = list(rows)[:64]
        values = parent.reader.array(spec.name, some)
        if not all(np.array_equal(values[0], value) for value in values):
            raise ValueError(
                f"'{parent.plan.name}' also holds '{spec.name}' for each row, and it differs from "
                f"row to row: samples of '{array}' alone are no fields; learn from a store whose "
                "rows are one array"
            )
        found[spec.name] = values[0]
    return found


def observations(plan: Plan) -> tuple[str, ...]:
    """Arrays of inputs, which samples do not have."""
    return tuple(s.name for s in plan.arrays if s.rows and s.name.startswith("observations/"))


def sample_plan(
    parent: OpenedStore,
    *,
    name: str,
    count: int,
    unit_rows: int,
    identity: str,
    keys: dict[str, Any],
    parent_hash: str,
) -> Plan:
    """The plan of a store of samples: the parent's fields, rows of its own."""
    plan = parent.plan
    field = plan.field.model_copy(
        update={"init": {**plan.field.init, "parent": plan.name, "parent_hash": parent_hash}}
    )
    known = {column.name: column for column in plan.columns}
    size = tuple(known[n] for n in PICTURE_SIZE if n in known)
    return plan.model_copy(
        update={
            "name": name,
            "fit_identity": identity,
            "fit_keys": keys,
            "prepared_fingerprint": parent_hash,
            "rows": count,
            "unit_rows": min(unit_rows, count),
            "segments": (Segment(prepared=0, store=0, rows=count),),
            "arrays": tuple(a for a in plan.arrays if a.name not in observations(plan)),
            "columns": (*size, *COLUMNS),
            "field": field,
        }
    )


def write_samples(
    objects: Objects,
    plan: Plan,
    parent: OpenedStore,
    array: str,
    fixed: dict[str, np.ndarray],
    draw_unit: Callable[[int, int], Made],
) -> None:
    """Creates the store or goes on with it: draws each unit that is not there, then finalizes.

    Args:
        draw_unit: Gives rows [first, last); the same for the same range.
    """
    shared = parent.reader.shared()
    plan = stores.create_store(objects, plan, shared)
    state = stores.progress(objects, plan)
    for unit, generation in state.to_publish:
        stores.publish_unit(objects, plan, unit, generation)
    spec = next(spec for spec in plan.arrays if spec.name == array)
    size = typical_size(parent)
    for unit, generation in state.to_fit:
        first, last = plan.unit_range(unit)
        result = _result(plan, spec, fixed, first, draw_unit(first, last), size)
        stores.write_unit(objects, plan, unit, generation, result, uuid.uuid4().hex)
    stores.finalize(objects, plan)


def typical_size(parent: OpenedStore) -> dict[str, int]:
    """Height and width that most pictures of the parent have."""
    if any(name not in parent.index.column_names for name in PICTURE_SIZE):
        return {}
    pairs = np.stack([parent.index[name].to_numpy() for name in PICTURE_SIZE], 1)
    known, counts = np.unique(pairs, axis=0, return_counts=True)
    return dict(zip(PICTURE_SIZE, map(int, known[counts.argmax()])))


def _result(
    plan: Plan,
    spec: ArraySpec,
    fixed: dict[str, np.ndarray],
    first: int,
    made: Made,
    size: dict[str, int],
) -> stores.UnitResult:
    count = len(made.values)
    good = np.isfinite(made.values.reshape(count, -1)).all(1)
    values = np.where(good.reshape(-1, *(1 for _ in spec.shape)), made.values, np.nan)
    arrays = {spec.name: values.astype(spec.dtype)}
    for name, value in fixed.items():
        arrays[name] = np.repeat(value[None], count, 0)
        if arrays[name].dtype.kind == "f":
            arrays[name][~good] = np.nan
    columns: dict[str, Any] = {
        "sample_id": [f"sample-{row:06d}" for row in range(first, first + count)],
        "label": list(made.labels),
        "split": ["train"] * count,
        "status": np.where(good, int(RowStatus.OK), int(RowStatus.DIVERGED)).tolist(),
        "code": ["" if ok else "NAN_LOSS" for ok in good],
        "message": ["" if ok else "the sample is not finite" for ok in good],
        "steps": [0] * count,
        "loss": [float("nan")] * count,
        "copy": [0] * count,
        "origin": [ORIGIN] * count,
        "nearest_row": made.nearest_row.tolist(),
        "nearest_distance": made.nearest_distance.tolist(),
        "log_density": made.log_density.tolist(),
        **{name: [value] * count for name, value in size.items()},
    }
    batch = padded_columns(columns, unit_columns(plan.columns), count)
    return stores.UnitResult(arrays, batch, None)


# --- rows in memory ---------------------------------------------------------------------------


class MemoryRows:
    """Rows that are in no store, for `OpenedStore`: rendered and meshed like any other."""

    def __init__(
        self,
        parent: OpenedStore,
        array: str,
        values: np.ndarray,
        fixed: dict[str, np.ndarray] | None = None,
    ):
        self.plan, self._parent = parent.plan, parent
        self._arrays = (
            {name: np.repeat(v[None], len(values), 0) for name, v in fixed.items()} if fixed else {}
        )
        self._arrays[array] = np.asarray(values, np.float32)
        count = len(values)
        columns = {
            "row": np.arange(count),
            "sample_id": [f"row {i}" for i in range(count)],
            "label": [""] * count,
            "split": ["train"] * count,
            "status": np.full(count, int(RowStatus.OK), np.uint8),
            "code": [""] * count,
            "message": [""] * count,
        }
        self.index = pa.table(columns | {n: [v] * count for n, v in typical_size(parent).items()})

    def array(self, name: str, rows: Sequence[int]) -> np.ndarray:
        return self._arrays[name][list(rows)]

    def shared(self) -> dict[str, np.ndarray]:
        return self._parent.reader.shared()


def opened_rows(
    parent: OpenedStore, array: str, values: np.ndarray, fixed: dict[str, np.ndarray] | None = None
) -> OpenedStore:
    """Rows in memory, opened like a store of the parent's fields."""
    opened = OpenedStore(MemoryRows(parent, array, values, fixed), parent.device)
    opened.__dict__["shared"] = parent.shared  # read once
    opened.__dict__["method"] = parent.method
    return opened


def png(image: Any) -> bytes:
    """A picture as the bytes of a PNG."""
    sink = io.BytesIO()
    image.save(sink, "png")
    return sink.getvalue()
