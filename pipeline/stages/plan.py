"""Lays out a store, or joins the one that the same keys made, and says what is left to fit."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import store as stores
from pipeline.ingest.prepared import Prepared
from pipeline.stages.common import build_method, prepared_of, row_count
from pipeline.stages.train import TrainFiles, needs_training
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import Run
from schemas.samples import GRIDS, PreparedMeta
from schemas.store import SHARD_BYTES, ColumnSpec, Plan, Segment

FIT_SECONDS = 120.0
UNITS_PER_WORKER = 20
MEASURE_S = 20.0
"""Fits that take less than about this many seconds of a core get the usual number of lanes."""
GPU = 500.0
"""Rows that the kernel of GPUs fits in the time of one in a core's compiled loop, roughly."""
CPU = 16.0
"""Rows whose inner steps a core's compiled loop takes in the time of one in PyTorch, roughly."""

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
SOUND = (
    ColumnSpec(name="length", dtype="int32", description="time steps of the sound"),
    ColumnSpec(name="rate", dtype="int32", description="time steps a second"),
    ColumnSpec(name="peak", dtype="float64", description="file's amplitude = amplitude * peak"),
)
VIDEO = (
    ColumnSpec(name="frames", dtype="int32", description="frames of the video that was fitted"),
    *PICTURE,
    ColumnSpec(name="fps", dtype="float64", description="frames a second; NaN if not known"),
)
PROBLEM = (
    ColumnSpec(name="wavenumber", dtype="float64", description="k in units of fields; 0: a wave"),
    ColumnSpec(name="duration", dtype="float64", description="in units of fields; 0: no wave"),
    ColumnSpec(name="scale", dtype="float64", description="field's lengths in one of the file's"),
    ColumnSpec(name="time_scale", dtype="float64", description="the same of times; 0: no wave"),
    ColumnSpec(name="amplitude", dtype="float64", description="file's value = value * amplitude"),
    ColumnSpec(
        name="reference_error", dtype="float64", description="about, relative, of the reference"
    ),
)
SOURCE_COLUMNS = {
    "shapes": NORMALIZATION,
    "points": NORMALIZATION[:4],
    "images": PICTURE,
    "audio": SOUND,
    "video": VIDEO,
    "equations": PROBLEM,
}
"""What a row must carry of its sample so that it can be used with the source gone."""


def source_columns(kind: str, table: pa.Table) -> dict[str, list[Any]]:
    """The values of `SOURCE_COLUMNS`."""
    if kind in GRIDS:
        return {c.name: table[c.name].to_pylist() for c in SOURCE_COLUMNS[kind]}
    if kind == "equations":
        return {c.name: table[c.name].to_pylist() for c in PROBLEM}
    centers = np.array(table["center"].to_pylist(), float).reshape(-1, 3)
    columns = {f"center_{axis}": centers[:, i].tolist() for i, axis in enumerate("xyz")}
    columns["scale"] = table["scale"].to_pylist()
    if kind == "shapes":
        columns["doubt"] = table["doubt"].to_pylist()
    return columns


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
        plan = stores.create_store(objects, plan, shared)
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
    from pipeline.fitting import NUMERICS

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
    arrays = fitting.row_arrays(method)
    rows = row_count(run, prepared.meta)
    compiled = run.fit.compile == "always"
    device = "cuda" if run.resources.gpus else "cpu"
    usual = run.fit.lanes or fitting.default_lanes(method, device)
    if run.fit.compile == "never":
        fused, path = False, "plain PyTorch"
    else:
        fused, path = fitting.choose_path(method, device, compiled)
    kernel, seconds = "", fitting.estimate_seconds(method, fused)
    if device == "cuda" and run.fit.compile == "auto":
        some = partial(first_samples, prepared, device)
        kernel, path = fitting.choose_kernel(method, shared, some, run.seed)
        seconds /= GPU if kernel else 1
    elif (
        run.fit.compile == "auto"
        and rows * seconds > MEASURE_S
        and not fitting.why_not_encode(method)
    ):
        some = partial(first_samples, prepared, device)
        kernel, path = fitting.choose_encoding(method, shared, some, run.seed)
        seconds /= CPU if kernel else 1
    lanes = usual
    if run.fit.lanes is None and not (fused or kernel or compiled) and rows * seconds > MEASURE_S:
        some = partial(first_samples, prepared, device)
        lanes, _ = fitting.measured_lanes(method, shared, some, device, run.resources.cores)
    spec = fitting.describe(
        method,
        seed=run.seed,
        dataset_fingerprint=prepared.meta.fingerprint,
        versions={**versions(), "path": path},
    )
    row_bytes = max(
        (int(np.prod(a.shape)) * np.dtype(a.dtype).itemsize for a in arrays if a.rows), default=1
    )
    plan = Plan(
        name=run.name,
        fit_identity=run.stage_identity("fit"),
        fit_keys=run.stage_keys("fit"),
        numerics=fitting.NUMERICS,
        prepared_fingerprint=prepared.meta.fingerprint,
        rows=rows,
        unit_rows=run.fit.unit_rows or unit_rows(rows, row_bytes, seconds, max(workers, 1), usual),
        segments=(Segment(prepared=0, store=0, rows=rows),),
        arrays=arrays,
        columns=(*SOURCE_COLUMNS[prepared.meta.kind], *cheap_metrics(prepared.meta.kind)),
        field=spec,
        lanes=lanes,
        compiled=compiled,
        fused=fused,
        kernel=kernel,
    )
    return plan, {name: value.numpy() for name, value in shared.items()}


def first_samples(prepared: Prepared, device: str) -> Any:
    """Samples on which ways of fitting are compared."""
    from pipeline.fitting import COMPARED
    from pipeline.samples import load_samples

    table = prepared.rows(0, min(COMPARED, prepared.meta.rows))
    return load_samples(table, prepared.meta.kind, device)


def unit_rows(rows: int, row_bytes: int, row_seconds: float, workers: int, lanes: int) -> int:
    """Largest power of two of rows whose shard and time are bounded and that keeps workers busy.

    Small datasets get fewer units than `UNITS_PER_WORKER` asks for, rather than empty lanes.
    """
    share = max(rows / (UNITS_PER_WORKER * workers), min(lanes, rows / (2 * workers)))
    most = min(SHARD_BYTES / max(row_bytes, 1), FIT_SECONDS / max(row_seconds, 1e-9), share)
    return 2 ** int(np.log2(max(most, 1)))


def shared_tensors(run: Run, method: Any) -> dict[str, Any]:
    """Shared parameters of a run: an earlier store's, trained ones, or the method's start."""
    from pipeline import fitting

    if run.method.shared_from is not None:
        return shared_of_store(run.method.shared_from, method)
    if needs_training(run, method):
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
