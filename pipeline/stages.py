"""What each task of a run does, without Ray: plain functions of the run file, safe to run again.

The driver maps them: `prepare` -> `ingest_shard` for each unit -> `fold_prepared` -> `train_shared`
-> `plan_fit` -> `Fitter.fit` for each unit -> `finish` -> `evaluate_rows` -> `evaluate_finish`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import resource
import threading
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import methods
from pipeline.ingest import fold as folding
from pipeline.ingest import listing
from pipeline.ingest.prepared import Prepared, open_prepared
from pipeline.ingest.unit import ingest_unit
from pipeline.storage import Objects, open_objects
from pipeline import store as stores
from schemas.base import Location
from schemas.run import Run
from schemas.samples import PreparedMeta
from schemas.store import (
    PRIVATE,
    SHARD_BYTES,
    USABLE,
    ColumnSpec,
    Plan,
    RowStatus,
    Segment,
    unit_columns,
)

NUMERICS = 1
"""Raised by hand when a change of the code changes fitted numbers: old stores then refuse to resume."""

FIT_SECONDS = 120.0
UNITS_PER_WORKER = 20

NORMALIZATION = (
    ColumnSpec(name="center_x", dtype="float64", description="original = coords / scale + center"),
    ColumnSpec(name="center_y", dtype="float64", description="original = coords / scale + center"),
    ColumnSpec(name="center_z", dtype="float64", description="original = coords / scale + center"),
    ColumnSpec(name="scale", dtype="float64", description="normalised units per original unit"),
    ColumnSpec(name="doubt", dtype="float32", description="share of ambiguous winding numbers"),
)
PICTURE = (
    ColumnSpec(name="height", dtype="int32", description="rows of the picture that was fitted"),
    ColumnSpec(name="width", dtype="int32", description="columns of the picture that was fitted"),
)
SOURCE_COLUMNS = {"shapes": NORMALIZATION, "points": NORMALIZATION[:4], "images": PICTURE}
"""What a row must carry of its sample so that it can be used with the source gone."""


def dump(run: Run) -> str:
    """A run as JSON, for sending it to a task; holds no credential."""
    return run.model_dump_json()


def load(text: str) -> Run:
    return Run.model_validate_json(text)


# --- ingest ---------------------------------------------------------------------------------


def prepare(run: Run, *, update: bool = False) -> list[int]:
    """Lists the dataset once (or again, to append) and returns the ingest units still to do."""
    prepared = open_objects(run.prepared_location)
    listing.write_listing(run.dataset, run.ingest, prepared, update=update)
    return listing.units_to_do(prepared)


def ingest_shard(run: Run, unit: int, attempt: str) -> dict[str, Any]:
    """Decodes one ingest unit into a prepared shard and commits it."""
    outcome = ingest_unit(run.dataset, run.ingest, run.prepared_location, unit, attempt)
    return {**asdict(outcome), "unit": unit, "peak_bytes": peak_bytes()}


def fold_prepared(run: Run) -> PreparedMeta:
    """Gives duplicates, splits and row numbers; raises NoUsableSample when no row is left."""
    return folding.fold(run.dataset, run.ingest, run.prepared_location)


# --- train ----------------------------------------------------------------------------------


def prepared_of(run: Run) -> Prepared:
    """The finished prepared dataset of a run."""
    return open_prepared(run.prepared_location)


def row_count(run: Run, meta: PreparedMeta) -> int:
    """Prepared rows that the run takes."""
    return meta.rows if run.limit is None else min(run.limit, meta.rows)


def build_method(run: Run, prepared: Prepared) -> Any:
    """The method of a run, built for the form its prepared samples have."""
    from pipeline.samples import form_of

    config = methods.configure(run.method.name, run.method.preset, run.method.settings())
    form = form_of(prepared.rows(0, min(4, prepared.meta.rows)), prepared.meta.kind)
    return methods.load(run.method.name).build(config, form)


def needs_training(run: Run, method: Any) -> bool:
    """Whether shared parameters have to be trained: there are phases, and no store gives them."""
    return bool(method.train) and run.method.shared_from is None


class TrainFiles:
    """Where training keeps its checkpoints and its result: below the store, by identity."""

    def __init__(self, run: Run):
        self.objects = open_objects(run.store)
        self.prefix = f"{PRIVATE}/train/{run.stage_identity('train')[:16]}"

    def save_checkpoint(self, data: bytes) -> None:
        self.objects.put(f"{self.prefix}/checkpoint.safetensors", data)

    def checkpoint(self) -> bytes | None:
        return self._get("checkpoint.safetensors")

    def finish(
        self, shared: dict[str, Any], rows: dict[str, Any], prepared_rows: list[int], log
    ) -> None:
        """Writes the result; the note that it is complete comes last."""
        from safetensors.torch import save

        parts = {"shared": save(shared), "rows": save(rows)}
        for name, data in parts.items():
            self.objects.put(f"{self.prefix}/{name}.safetensors", data)
        note = {
            "prepared_rows": prepared_rows,
            "log": log,
            "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
        }
        self.objects.put(f"{self.prefix}/done.json", json.dumps(note).encode())

    def done(self) -> dict[str, Any] | None:
        data = self._get("done.json")
        return json.loads(data) if data else None

    def result(self, part: str) -> dict[str, Any]:
        """`shared` or `rows` as training left them; a damaged file raises."""
        from safetensors.torch import load as load_tensors

        note = self.done()
        if note is None:
            raise RuntimeError(
                f"{self.objects.location.url}: training has not finished; run `train` first"
            )
        data = self.objects.get(f"{self.prefix}/{part}.safetensors")
        if hashlib.sha256(data).hexdigest() != note["sha256"][part]:
            raise RuntimeError(
                f"{self.objects.location.url}: {self.prefix}/{part}.safetensors is damaged "
                "(sha256 differs); delete the folder and train again"
            )
        return load_tensors(data)

    def _get(self, name: str) -> bytes | None:
        try:
            return self.objects.get(f"{self.prefix}/{name}")
        except FileNotFoundError:
            return None


def trained(run: Run) -> bool:
    """Whether nothing is left to train: the method has no phases for it, or they are done."""
    method = build_method(run, prepared_of(run))
    return not needs_training(run, method) or TrainFiles(run).done() is not None


def training_rows(run: Run, prepared: Prepared) -> list[int]:
    """Prepared rows in the splits that train, in order."""
    rows = prepared.rows(0, row_count(run, prepared.meta), columns=[])
    chosen = [
        row
        for row, split in zip(rows["row"].to_pylist(), rows["split"].to_pylist())
        if split in run.train.splits
    ]
    if not chosen:
        raise ValueError(
            f"no sample is in the splits {list(run.train.splits)} that train; "
            f"the prepared dataset has {prepared.meta.splits}"
        )
    return chosen


def train_shared(run: Run, rank: int = 0, world: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Trains the shared parameters; each of `world` ranks owns every `world`-th sample.

    Ranks meet through torch.distributed, which the caller has initialised when `world` > 1.
    Continues from the last checkpoint. Rank 0 writes the result. Returns a small record.
    """
    from pipeline.fitting import train
    from pipeline.samples import load_samples

    files, prepared = TrainFiles(run), prepared_of(run)
    method = build_method(run, prepared)
    if files.done() is not None:
        return {"steps": 0, "seconds": 0.0, "samples": 0}
    started = time.monotonic()
    rows = training_rows(run, prepared)
    samples = load_samples(take_rows(prepared, rows[rank::world]), prepared.meta.kind, device)
    result = train(
        method,
        samples,
        seed=run.seed,
        rank=rank,
        world=world,
        checkpoint=files.save_checkpoint,
        checkpoint_s=run.train.checkpoint_s,
        resume=files.checkpoint(),
    )
    if rank == 0:
        files.finish(result.shared, result.rows, result.row_numbers, result.log)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "samples": len(rows), "log": result.log, "peak_bytes": peak_bytes()}


def take_rows(prepared: Prepared, rows: list[int]) -> pa.Table:
    """Any ascending rows of a prepared dataset, read as consecutive ranges."""
    parts, start = [], 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            parts.append(prepared.rows(rows[start], rows[i - 1] + 1))
            start = i
    return pa.concat_tables(parts)


# --- fit ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitTodo:
    """What `plan_fit` left to do."""

    plan: Plan
    to_fit: list[tuple[int, int]]
    """(unit, generation) of units without a commit."""
    to_publish: list[tuple[int, int]]
    """(unit, generation) of units committed but not published."""


def plan_fit(run: Run, workers: int = 1) -> FitTodo:
    """Creates the store, or joins it when it was made by the same keys; returns what is left."""
    prepared, objects = prepared_of(run), open_objects(run.store)
    plan = stores.load_plan(objects)
    if plan is None:
        plan, shared = new_plan(run, prepared, workers)
        stores.create_store(objects, plan, shared)
    else:
        require_same_fit(run, plan)
        grown = grow(plan, row_count(run, prepared.meta), prepared.meta)
        if grown is not plan:
            stores.extend_store(objects, grown)
            plan = grown
    state = stores.progress(objects, plan)
    return FitTodo(plan, state.to_fit, state.to_publish)


def require_same_fit(run: Run, plan: Plan) -> None:
    """Refuses to continue a store that other keys or another numerics made; names what differs."""
    stores.require_same_keys(plan, run.stage_identity("fit"), run.stage_keys("fit"), run.store.url)
    if plan.numerics != NUMERICS:
        raise ValueError(
            f"{run.store.url} was fitted by code whose numerics number is {plan.numerics}, this is "
            f"{NUMERICS}: rows would differ; write to another store"
        )


def grow(plan: Plan, rows: int, meta: PreparedMeta) -> Plan:
    """The plan with the prepared rows that came after it, from the next shard boundary on."""
    known = sum(segment.rows for segment in plan.segments)
    if rows == known and meta.fingerprint == plan.prepared_fingerprint:
        return plan
    if rows < known or known not in meta.segments:
        raise ValueError(
            f"the prepared dataset has {rows} rows in segments starting at {list(meta.segments)}, "
            f"the store was planned for {known}: it is another dataset; write to another store"
        )
    first = plan.units * plan.unit_rows
    added = Segment(prepared=known, store=first, rows=rows - known)
    return plan.model_copy(
        update={
            "rows": first + added.rows,
            "segments": (*plan.segments, added),
            "prepared_fingerprint": meta.fingerprint,
        }
    )


def new_plan(run: Run, prepared: Prepared, workers: int) -> tuple[Plan, dict[str, np.ndarray]]:
    """The plan of a new store and the values of its shared arrays."""
    from pipeline import fitting
    from pipeline.evaluate.metrics import cheap_metrics

    method = build_method(run, prepared)
    shared = shared_tensors(run, method)
    arrays, rows = fitting.row_arrays(method), row_count(run, prepared.meta)
    lanes = run.fit.lanes or fitting.default_lanes(method)
    spec = fitting.describe(
        method,
        seed=run.seed,
        dataset_fingerprint=prepared.meta.fingerprint,
        versions=versions(),
    )
    row_bytes = max(
        (int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in arrays if a.rows), default=1
    )
    plan = Plan(
        name=run.name,
        fit_identity=run.stage_identity("fit"),
        fit_keys=run.stage_keys("fit"),
        numerics=NUMERICS,
        prepared_fingerprint=prepared.meta.fingerprint,
        rows=rows,
        unit_rows=run.fit.unit_rows
        or unit_rows(rows, row_bytes, fitting.estimate_seconds(method), workers),
        segments=(Segment(prepared=0, store=0, rows=rows),),
        arrays=arrays,
        columns=(*SOURCE_COLUMNS[prepared.meta.kind], *cheap_metrics(prepared.meta.kind)),
        field=spec,
        lanes=lanes,
        compiled=run.fit.compile == "always",
    )
    return plan, {name: value.numpy() for name, value in shared.items()}


def unit_rows(rows: int, row_bytes: int, row_seconds: float, workers: int) -> int:
    """Largest power of two of rows whose shard and time are bounded and that keeps workers busy."""
    most = min(
        SHARD_BYTES / max(row_bytes, 1),
        FIT_SECONDS / max(row_seconds, 1e-9),
        rows / (UNITS_PER_WORKER * max(workers, 1)),
    )
    return 2 ** max(int(np.log2(max(most, 1))), 0)


def shared_tensors(run: Run, method: Any) -> dict[str, Any]:
    """Shared parameters of a run: an earlier store's, trained ones, or the method's start."""
    from pipeline import fitting

    if run.method.shared_from is not None:
        return shared_of_store(run.method.shared_from, method)
    if method.train:
        return TrainFiles(run).result("shared")
    return fitting.start_shared(method, run.seed)


def shared_of_store(location: Location, method: Any) -> dict[str, Any]:
    """Shared parameters of a finished store, checked against what the method expects."""
    import torch

    from pipeline import fitting

    found = stores.open_arrays(location).shared()
    wanted = fitting.start_shared(method, 0)
    for name, tensor in wanted.items():
        if name not in found:
            raise ValueError(
                f"{location.url} has no shared '{name}'; it holds {sorted(found)[:8]}: "
                "give the method of that store the same settings here"
            )
        if tuple(found[name].shape) != tuple(tensor.shape):
            raise ValueError(
                f"shared '{name}' of {location.url} has shape {list(found[name].shape)}, this "
                f"method wants {list(tensor.shape)}: use the settings that store was made with"
            )
    return {name: torch.from_numpy(np.array(found[name])) for name in wanted}


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    names = ("fieldmill", "torch", "numpy", "zarr", "libigl")
    known = {}
    for name in names:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
            known[name] = "unknown"
    return known


class Fitter:
    """Fits units of one run, one after the other; lives as long as its actor.

    `fit` may be called from two threads: while one unit is staged and published, the next one is
    read and fitted. Only one fits at a time.
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
        self.computing = threading.Lock()

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

    def check(self, nonce: str) -> None:
        """Raises RuntimeError when this node sees another store, or no prepared dataset."""
        stores.check_nonce(self.objects, nonce)
        self.prepared.rows(0, 1, columns=[])

    def fit(self, unit: int, generation: int, attempt: str | None = None) -> dict[str, Any]:
        """Fits, stages, commits and publishes one unit; returns a small record."""
        started = time.monotonic()
        table = self.read(unit)
        read = time.monotonic()
        with self.computing:
            began = time.monotonic()
            result, record = self.compute(unit, table)
            fitted = time.monotonic()
        outcome = stores.write_unit(
            self.objects, self.plan, unit, generation, result, attempt or uuid.uuid4().hex
        )
        return {
            **record,
            "unit": unit,
            "generation": generation,
            "won": outcome.won,
            "bytes": outcome.bytes,
            "read_s": read - started,
            "fit_s": fitted - began,
            "write_s": time.monotonic() - fitted,
            "peak_bytes": peak_bytes(),
        }

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

    def compute(self, unit: int, table: pa.Table) -> tuple[Any, dict[str, Any]]:
        """Fits and measures the samples of a unit; nothing is written."""
        from pipeline import fitting
        from pipeline.evaluate.metrics import cheap_metrics, measure
        from pipeline.samples import load_samples

        samples = load_samples(table, self.prepared.meta.kind, self.device)
        fitted = fitting.fit_rows(
            self.method,
            self.shared,
            samples,
            seed=self.run.seed,
            lanes=self.plan.lanes,
            device=self.device,
            compiled=self.plan.compiled,
            kept={i: self.kept[r] for i, r in enumerate(samples.rows) if r in self.kept},
        )
        kind = self.prepared.meta.kind
        metrics = measure(kind, self.method, self.shared, fitted.rows, samples, table)
        first, last = self.plan.unit_range(unit)
        size = last - first
        columns = {
            "sample_id": table["sample_id"].to_pylist(),
            "label": [label or "" for label in table["label"].to_pylist()],
            "split": table["split"].to_pylist(),
            "status": [int(status) for status in fitted.status],
            "code": [str(code.value) for code in fitted.code],
            "message": list(fitted.message),
            "steps": fitted.steps.tolist(),
            "loss": fitted.loss.tolist(),
            "copy": [0] * len(samples),
            "origin": ["trained" if r in self.kept else "inferred" for r in samples.rows],
            **source_columns(kind, table),
            **{spec.name: metrics[spec.name].tolist() for spec in cheap_metrics(kind)},
        }
        schema = unit_columns(self.plan.columns)
        arrays = {
            name: padded(value, size)
            for name, value in fitting.pack(self.method, fitted.rows).items()
        }
        bad = ~np.isin(columns["status"], [int(s) for s in USABLE])
        for name, value in arrays.items():
            if np.issubdtype(value.dtype, np.floating):
                value[: len(samples)][bad] = np.nan
        result = stores.UnitResult(
            arrays=arrays,
            columns=padded_columns(columns, schema, size),
            traceback=None,
        )
        counts = dict(Counter(RowStatus(s).name.lower() for s in columns["status"]))
        return result, {"rows": counts, "steps": int(sum(columns["steps"]))}


def source_columns(kind: str, table: pa.Table) -> dict[str, list[Any]]:
    """The values of `SOURCE_COLUMNS`."""
    if kind == "images":
        return {name: table[name].to_pylist() for name in ("height", "width")}
    centers = np.array(table["center"].to_pylist(), float).reshape(-1, 3)
    columns = {f"center_{axis}": centers[:, i].tolist() for i, axis in enumerate("xyz")}
    columns["scale"] = table["scale"].to_pylist()
    if kind == "shapes":
        columns["doubt"] = table["doubt"].to_pylist()
    return columns


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


# --- finish and evaluate --------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a finished store holds."""

    rows: dict[str, int]
    """Rows by status."""
    metrics: dict[str, tuple[float, float, float]]
    """Median, worst and best of each metric over usable rows."""
    rejected: dict[str, int]
    """Samples that have no row, by status."""


def finish(run: Run) -> Summary:
    """Writes what makes a store readable as a whole; needs every unit published."""
    objects = open_objects(run.store)
    plan = stores.load_plan(objects)
    stores.finalize(objects, plan)
    return summarize(run)


def summarize(run: Run) -> Summary:
    """Counts and quantiles of a finished store."""
    reader = stores.open_arrays(run.store)
    index = reader.index
    status = index["status"].to_numpy()
    usable = np.isin(status, [int(s) for s in USABLE])
    metrics = {}
    for column in reader.plan.columns:
        if column in (*NORMALIZATION, *PICTURE) or column.dtype not in ("float32", "float64"):
            continue
        values = index[column.name].to_numpy()[usable]
        values = values[~np.isnan(values)]
        if len(values):
            metrics[column.name] = (
                float(np.median(values)),
                float(values.min()),
                float(values.max()),
            )
    meta = prepared_of(run).meta
    rows = dict(Counter(RowStatus(int(s)).name.lower() for s in status))
    rows.pop("absent", None)
    rejected = {k: v for k, v in meta.counts.items() if k != "accepted"}
    return Summary(rows, metrics, rejected)


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
