"""A fitted store: finalize, summarize, and metrics that need a reconstructed surface."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import store as stores
from pipeline.ingest.prepared import Prepared
from pipeline.stages.common import peak_bytes, prepared_of
from pipeline.stages.plan import SOURCE_COLUMNS
from pipeline.storage import Objects, open_objects
from schemas.base import identity
from schemas.run import Run
from schemas.store import PRIVATE, USABLE, Plan, RowStatus

CHUNK = 8
"""Rows whose meshes one task measures."""


@dataclass(frozen=True)
class Summary:
    """What a finished store holds."""

    rows: dict[str, int]
    """Rows by status."""
    metrics: dict[str, tuple[float, float, float]]
    """Median, smallest and largest value of each metric over usable rows."""
    rejected: dict[str, int]
    """Samples that have no row, by status."""


def finish(run: Run) -> Summary:
    """Writes what makes a store readable as a whole; needs every unit published."""
    objects = open_objects(run.store)
    stores.finalize(objects, stores.load_plan(objects))
    return summarize(run)


def summarize(run: Run) -> Summary:
    """Counts and quantiles of a finished store, its evaluation included."""
    reader = stores.open_arrays(run.store)
    index = reader.index
    status = index["status"].to_numpy()
    usable = np.isin(status, [int(s) for s in USABLE])
    metrics = {}
    of_sources = {column.name for columns in SOURCE_COLUMNS.values() for column in columns}
    for column in reader.plan.columns:
        if column.name in of_sources or column.dtype not in ("float32", "float64"):
            continue
        metrics[column.name] = index[column.name].to_numpy()[usable]
    done = Evaluation.of(run, reader.objects).result()
    metrics |= {k: v for k, v in (done or {}).items() if k != "row"}
    meta = prepared_of(run).meta
    rows = dict(Counter(RowStatus(int(s)).name.lower() for s in status))
    rows.pop("absent", None)
    rejected = {k: v for k, v in meta.counts.items() if k != "accepted"}
    return Summary(rows, {k: q for k, v in metrics.items() if (q := quantiles(v))}, rejected)


def quantiles(values: np.ndarray) -> tuple[float, float, float] | None:
    """Median, smallest and largest of the numbers that are not NaN; None without any."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return float(np.median(values)), float(values.min()), float(values.max())


@dataclass(frozen=True)
class Evaluation:
    """Where one evaluation of a store lies: chunks as they come, then arrays joined by row."""

    run: Run
    objects: Objects
    name: str
    """Differs for every other choice of rows, resolution, points, and for other fitted values."""

    @classmethod
    def of(cls, run: Run, objects: Objects) -> Evaluation:
        """The evaluation that a run file asks for, of the finished store as it is now."""
        keys = run.evaluate.model_dump(mode="json")
        name = identity([stores.store_hash(objects), run.seed, keys])[:12]
        return cls(run, objects, f"mesh-{name}")

    @property
    def prefix(self) -> str:
        return f"{PRIVATE}/evaluations/{self.name}"

    def rows(self) -> list[int]:
        """The rows that are measured: all usable ones, or a choice seeded by the run."""
        index = stores.open_arrays(self.run.store).index
        usable = np.isin(index["status"].to_numpy(), [int(s) for s in USABLE])
        rows = index["row"].to_numpy()[usable].tolist()
        if len(rows) <= self.run.evaluate.rows:
            return rows
        # Ranked by a hash of the row: growing a store keeps most of the choice.
        seed = self.run.seed
        ranked = sorted(rows, key=lambda r: hashlib.blake2b(f"{seed}/{r}".encode()).digest())
        return sorted(ranked[: self.run.evaluate.rows])

    def chunk(self, number: int) -> bytes | None:
        try:
            return self.objects.get(f"{self.prefix}/chunk-{number}.arrow")
        except FileNotFoundError:
            return None

    def result(self) -> dict[str, np.ndarray] | None:
        """Columns of the finished evaluation, `row` first; None before it is finished."""
        import zarr

        if self.objects.size(f"{self.prefix}/done.json") is None:
            return None
        group = zarr.open_group(
            self.objects.zarr(read_only=True), path=f"evaluations/{self.name}", mode="r"
        )
        return {name: np.asarray(array[:]) for name, array in group.arrays()}


def plan_evaluate(run: Run) -> list[int]:
    """Chunks of rows still to measure; empty for kinds without a surface, or when it is done."""
    objects = open_objects(run.store)
    plan = stores.load_plan(objects)
    if not has_surface(plan):
        return []
    evaluation = Evaluation.of(run, objects)
    if objects.size(f"{evaluation.prefix}/done.json") is not None:
        return []
    rows = evaluation.rows()
    key = f"{evaluation.prefix}/rows.json"
    if not objects.create(key, json.dumps(rows).encode()):
        rows = json.loads(objects.get(key))
    known = {entry.key.rsplit("/", 1)[-1] for entry in objects.list(evaluation.prefix)}
    return [c for c in range(-(-len(rows) // CHUNK)) if f"chunk-{c}.arrow" not in known]


def has_surface(plan: Plan) -> bool:
    """Whether the fields of a store bound a solid in space."""
    field = plan.field
    return field.output["quantity"] in ("sdf", "occupancy") and len(field.coords["axes"]) == 3


class Evaluator:
    """Measures chunks of rows of one store; lives as long as its actor."""

    def __init__(self, run: Run, device: str = "cpu"):
        import torch

        from pipeline.evaluate.opened import open_store

        if device == "cpu":
            torch.set_num_threads(run.resources.cores)
        self.run = run
        self.objects = open_objects(run.store)
        self.plan = stores.load_plan(self.objects)
        self.evaluation = Evaluation.of(run, self.objects)
        self.opened = open_store(run.store, device=device)
        self.prepared = prepared_of(run)
        self.all_rows = json.loads(self.objects.get(f"{self.evaluation.prefix}/rows.json"))

    def measure(self, chunk: int) -> dict[str, Any]:
        """Meshes the rows of a chunk, compares them with the held-out surface points, writes."""
        from pipeline.evaluate.mesh_metrics import mesh_metric_columns, mesh_metrics

        started = time.monotonic()
        rows = self.all_rows[chunk * CHUNK : (chunk + 1) * CHUNK]
        names = [spec.name for spec in mesh_metric_columns()]
        lines: list[dict[str, Any]] = []
        for row in rows:
            values = mesh_metrics(
                self.opened,
                row,
                line_of_row(self.prepared, self.plan, row),
                resolution=self.run.evaluate.resolution,
                points=self.run.evaluate.points,
                seed=self.run.seed,
            )
            lines.append({"row": row, **{name: values[name] for name in names}})
        sink = io.BytesIO()
        table = pa.Table.from_pylist(lines)
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self.objects.create(f"{self.evaluation.prefix}/chunk-{chunk}.arrow", sink.getvalue())
        return {
            "unit": chunk,
            "rows": {"measured": len(rows)},
            "seconds": time.monotonic() - started,
            "peak_bytes": peak_bytes(),
        }


def line_of_row(prepared: Prepared, plan: Plan, row: int) -> pa.Table:
    """The prepared line that a store row was fitted to."""
    for segment in plan.segments:
        if segment.store <= row < segment.store + segment.rows:
            at = row - segment.store + segment.prepared
            return prepared.rows(at, at + 1)
    raise ValueError(f"row {row} of '{plan.name}' is padding")


def prepared_line(run: Run, row: int) -> pa.Table:
    """The prepared line of a row of the run's store."""
    return line_of_row(prepared_of(run), stores.load_plan(open_objects(run.store)), row)


def evaluate_finish(run: Run) -> Summary:
    """Joins the chunks of an evaluation into arrays of their own, once all are there."""
    import zarr

    objects = open_objects(run.store)
    plan = stores.load_plan(objects)
    if not has_surface(plan):
        return summarize(run)
    evaluation = Evaluation.of(run, objects)
    done = f"{evaluation.prefix}/done.json"
    rows = json.loads(objects.get(f"{evaluation.prefix}/rows.json"))
    if not rows or objects.size(done) is not None:
        return summarize(run)
    tables = []
    for number in range(-(-len(rows) // CHUNK)):
        data = evaluation.chunk(number)
        if data is None:
            raise RuntimeError(f"{run.store.url}: chunk {number} of the evaluation is missing")
        tables.append(pa.ipc.open_file(data).read_all())
    table = pa.concat_tables(tables)
    group = zarr.open_group(objects.zarr(), path=f"evaluations/{evaluation.name}", mode="w")
    group.attrs.update(run.evaluate.model_dump(mode="json"))
    for name in table.column_names:
        group.create_array(name, data=table[name].to_numpy(), dimension_names=["evaluated"])
    objects.put(done, json.dumps({"rows": len(rows)}).encode())
    return summarize(run)
