"""One unit of rows: read, fit, measure, stage, commit, publish."""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import Counter
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import store as stores
from pipeline.stages.common import build_method, peak_bytes, prepared_of, refused
from pipeline.stages.plan import source_columns
from pipeline.stages.train import TrainFiles, needs_training
from pipeline.storage import StorageError, open_objects
from schemas.run import Run
from schemas.samples import Code, RejectedSample
from schemas.store import USABLE, RowStatus, unit_columns

RETRY_STRIDE = 1_000_003
"""Added to the run's seed for every generation that retries failed rows."""


class Fitter:
    """Fits units of one run; lives as long as its actor.

    `fit` may be called from two threads: while one unit is measured, staged and published, the next
    one is read and fitted, and its rows take the lanes that the last rows of the first leave free.
    """

    def __init__(self, run: Run, device: str = "cpu"):
        import torch

        self.run, self.device = run, device
        if device == "cpu":
            torch.set_num_threads(run.resources.cores)
        self.prepared = prepared_of(run)
        self.objects = open_objects(run.store)
        plan = stores.load_plan(self.objects)
        if plan is None:
            raise RuntimeError(f"{run.store.url} has no plan: this node does not see the store")
        self.plan = plan
        self.method = build_method(run, self.prepared)
        # A bound module holds its tensors while it computes: measuring has one of its own.
        self.measured = build_method(run, self.prepared)
        self.starting, self.measuring = threading.Lock(), threading.Lock()

    @cached_property
    def together(self) -> Any:
        """The stream that all calls of `fit` share."""
        from pipeline import fitting

        stream = fitting.Stream(
            self.method,
            self.shared,
            lanes=self.plan.lanes,
            device=self.device,
            compiled=self.plan.compiled,
            fused=self.plan.fused,
            kernel=self.plan.kernel,
        )
        return fitting.Together(stream)

    @cached_property
    def shared(self) -> dict[str, Any]:
        import torch

        arrays = stores.open_arrays(self.run.store, partial=True).shared()
        return {k: torch.from_numpy(np.array(v)).to(self.device) for k, v in arrays.items()}

    @cached_property
    def kept(self) -> dict[int, dict[str, Any]]:
        """Rows that training left, by prepared row, when the run keeps them."""
        if self.run.fit.trained_rows != "keep" or not needs_training(self.run, self.method):
            return {}
        files = TrainFiles(self.run)
        note, tensors = files.done(), files.result("rows")
        return {
            row: {name: tensor[i] for name, tensor in tensors.items()}
            for i, row in enumerate(note["prepared_rows"])
        }

    def check(self) -> None:
        """Raises when this node cannot read the prepared dataset."""
        self.prepared.rows(0, 1, columns=[])

    def fit(self, unit: int, generation: int, attempt: str | None = None) -> dict[str, Any]:
        """Fits, stages, commits and publishes one unit; returns a small record.

        A generation that was opened for some rows only (`retry`, `repair`) fits these and keeps
        all others byte for byte.
        """
        started = time.monotonic()
        rows = stores.rows_to_fit(self.objects, self.plan, unit, generation)
        table = self.read(unit)
        if rows is not None:
            table = table.take(np.array(rows) - self.plan.unit_range(unit)[0])
        with self.starting:  # once, whoever comes first
            self.together, self.kept  # noqa: B018
        spent = Counter(read_s=time.monotonic() - started)
        first, last = self.plan.unit_range(unit)
        size = last - first if rows is None else len(rows)
        result, record = self.compute(table, size, self.retry_seed(unit, generation), spent)
        fitted = time.monotonic()
        if rows is not None:
            result = stores.merge_unit(self.objects, self.plan, unit, generation, rows, result)
        outcome = stores.write_unit(
            self.objects, self.plan, unit, generation, result, attempt or uuid.uuid4().hex
        )
        return {
            **record,
            "unit": unit,
            "generation": generation,
            "won": outcome.won,
            "bytes": outcome.bytes,
            **spent,
            "write_s": time.monotonic() - fitted,
            "peak_bytes": peak_bytes(),
        }

    def retry_seed(self, unit: int, generation: int) -> int:
        """The seed of a generation: `retry` starts from other draws, `repair` from the same."""
        if stores.is_retry(self.objects, unit, generation):
            return self.run.seed + RETRY_STRIDE * generation
        return self.run.seed

    def publish(self, unit: int, generation: int) -> dict[str, Any]:
        """Finishes a unit that was committed by somebody who then died."""
        stores.publish_unit(self.objects, self.plan, unit, generation)
        return {"unit": unit, "generation": generation, "rows": {}}

    def read(self, unit: int) -> pa.Table | None:
        """The prepared rows of a unit, None if it is all padding."""
        first, last = self.plan.unit_range(unit)
        parts = []
        for segment in self.plan.segments:
            a, b = max(first, segment.store), min(last, segment.store + segment.rows)
            if a < b:
                shift = segment.prepared - segment.store
                parts.append(self.prepared.rows(a + shift, b + shift))
        return pa.concat_tables(parts) if parts else None

    def compute(
        self, table: pa.Table, size: int, seed: int, spent: Counter[str]
    ) -> tuple[Any, dict[str, Any]]:
        """Fits and measures samples, padded to `size` rows; nothing is written.

        Samples that the method cannot take are FAILED rows. If the others cannot be fitted
        together, each is tried by itself, and the ones that raise become FAILED rows too. When all
        of them raise it is no sample's fault, and the error goes on. Seconds of fitting and
        measuring are added to `spent`.
        """
        reasons = refused(self.run, self.method, table)
        parts = [self.failed(table.slice(i, 1), reasons[i]) for i in reasons]
        rest = [i for i in range(table.num_rows) if i not in reasons]
        traces: list[str] = []
        if rest:
            some = table.take(rest) if reasons else table
            try:
                parts.append(self.fit_samples(some, seed, spent))
            except (MemoryError, StorageError):
                raise
            except Exception as error:
                fitted, traces = self.one_by_one(some, seed, spent, error)
                parts += fitted
        arrays, columns = joined(parts, np.argsort([*reasons, *rest]))
        bad = ~np.isin(columns["status"], [int(s) for s in USABLE])
        arrays = {name: padded(value, size) for name, value in arrays.items()}
        for value in arrays.values():
            if np.issubdtype(value.dtype, np.floating):
                value[: len(bad)][bad] = np.nan
        result = stores.UnitResult(
            arrays=arrays,
            columns=padded_columns(columns, unit_columns(self.plan.columns), size),
            traceback="\n".join(traces) or None,
        )
        counts = dict(Counter(RowStatus(s).name.lower() for s in columns["status"]))
        return result, {"rows": counts, "steps": int(sum(columns["steps"]))}

    def fit_samples(
        self, table: pa.Table, seed: int, spent: Counter[str]
    ) -> tuple[dict[str, Any], dict[str, list]]:
        """Arrays and columns of samples that are fitted side by side."""
        from pipeline import fitting
        from pipeline.contexts import restricted
        from pipeline.evaluate.metrics import cheap_metrics, measure
        from pipeline.samples import load_samples

        kind = self.prepared.meta.kind
        samples = load_samples(table, kind, self.device)
        samples = restricted(samples, self.run.fit.context, seed=self.run.seed)
        kept = {i: self.kept[r] for i, r in enumerate(samples.rows) if r in self.kept}
        fitted, seconds = self.together.fit(samples, seed, kept)
        with self.measuring:
            began = time.monotonic()
            metrics = measure(kind, self.measured, self.shared, fitted.rows, samples, table)
            spent.update(fit_s=seconds, measure_s=time.monotonic() - began)
        columns = {
            **self.known_columns(table),
            "status": [int(status) for status in fitted.status],
            "code": [str(code.value) for code in fitted.code],
            "message": list(fitted.message),
            "steps": fitted.steps.tolist(),
            "loss": fitted.loss.tolist(),
            **{spec.name: metrics[spec.name].tolist() for spec in cheap_metrics(kind)},
        }
        return fitting.pack(self.measured, fitted.rows), columns

    def known_columns(self, table: pa.Table) -> dict[str, list]:
        """What is known of samples before they are fitted."""
        rows = table["row"].to_pylist()
        return {
            "sample_id": table["sample_id"].to_pylist(),
            "label": [label or "" for label in table["label"].to_pylist()],
            "split": table["split"].to_pylist(),
            "copy": [0] * len(rows),
            "origin": ["trained" if row in self.kept else "inferred" for row in rows],
            **source_columns(self.prepared.meta.kind, table),
        }

    def one_by_one(
        self, table: pa.Table, seed: int, spent: Counter[str], error: Exception
    ) -> tuple[list[tuple[dict[str, Any], dict[str, list]]], list[str]]:
        """As `fit_samples`, each by itself; those that raise are FAILED, with their traceback.

        `RejectedSample` is the sample's own fault; anything else that all the others raise is not.
        """
        parts, traces, rejected = [], [], 0
        for i in range(table.num_rows):
            line = table.slice(i, 1)
            try:
                parts.append(self.fit_samples(line, seed, spent))
            except (MemoryError, StorageError):
                raise
            except RejectedSample as own:
                rejected += 1
                parts.append(self.failed(line, own.message, own.code))
            except Exception as own:
                sample = line["sample_id"][0].as_py()
                traces.append(f"{sample}\n{traceback.format_exc()}")
                parts.append(self.failed(line, f"{type(own).__name__}: {own}"))
        if traces and len(traces) + rejected == table.num_rows:
            raise error
        return parts, traces

    def failed(
        self, line: pa.Table, message: str, code: Code = Code.FIT_ERROR
    ) -> tuple[dict[str, Any], dict[str, list]]:
        """Arrays and columns of one sample that has no field."""
        from pipeline.evaluate.metrics import cheap_metrics

        names = [spec.name for spec in cheap_metrics(self.prepared.meta.kind)]
        shapes = {spec.name: spec for spec in self.plan.arrays if spec.rows}
        columns = {
            **self.known_columns(line),
            "status": [int(RowStatus.FAILED)],
            "code": [code.value],
            "message": [message],
            "steps": [0],
            "loss": [float("nan")],
            **{name: [float("nan")] for name in names},
        }
        return {k: np.zeros((1, *s.shape), s.dtype) for k, s in shapes.items()}, columns


def joined(
    parts: list[tuple[dict[str, Any], dict[str, list]]], order: np.ndarray
) -> tuple[dict[str, Any], dict[str, list]]:
    """Arrays and columns of several parts, one after the other, in this order."""
    if len(parts) == 1:
        return parts[0]
    arrays = {k: np.concatenate([part[k] for part, _ in parts])[order] for k in parts[0][0]}
    columns = {k: [v for _, part in parts for v in part[k]] for k in parts[0][1]}
    return arrays, {k: [values[i] for i in order] for k, values in columns.items()}


def padded(values: np.ndarray, size: int) -> np.ndarray:
    """Rows up to `size`; what is added is NaN, or 0 in integer arrays."""
    fill = np.nan if np.issubdtype(values.dtype, np.floating) else 0
    rest = np.full((size - len(values), *values.shape[1:]), fill, values.dtype)
    return np.concatenate([values, rest])


def padded_columns(columns: dict[str, list[Any]], schema: pa.Schema, size: int) -> pa.RecordBatch:
    """Columns of a unit; rows past the last sample are ABSENT and empty."""
    arrays = []
    for column in schema:
        empty: Any = "" if pa.types.is_string(column.type) else 0
        if pa.types.is_floating(column.type):
            empty = float("nan")
        values = [empty if v is None else v for v in columns[column.name]]
        arrays.append(pa.array(values + [empty] * (size - len(values)), column.type))
    return pa.record_batch(arrays, schema=schema)
