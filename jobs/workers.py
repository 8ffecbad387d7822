"""What runs inside a worker process: one class a stage, each made from a run's JSON text."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict
from typing import Any

from jobs.units import Task
from pipeline.storage import open_objects
from pipeline.store import check_nonce
from schemas.base import Location
from schemas.run import Resources, Run


def limit_threads(cores: int) -> None:
    """Sets thread pools to the cores of this worker; call it before torch is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(cores)


class IngestWorker:
    """Decodes ingest units."""

    def __init__(self, run: str, nonce: str, seen: str, limited: bool = True):
        self.run, self.nonce, self.seen = Run.model_validate_json(run), nonce, seen
        self.one = threading.Lock()  # the decoding child of a process serves one unit
        if limited:
            limit_threads(self.run.resources.cores)

    def check(self) -> None:
        check_nonce(open_objects(self.run.prepared_location), self.nonce)
        if self.seen:
            check_dataset(self.run, self.seen)

    def work(self, task: Task, attempt: str) -> dict[str, Any]:
        from pipeline import stages

        with self.one:
            return stages.ingest_shard(self.run, task.unit, attempt)


class FitWorker:
    """Fits units; holds the model and the shared parameters from one unit to the next."""

    def __init__(self, run: str, nonce: str, limited: bool = True):
        self.run, self.nonce = Run.model_validate_json(run), nonce
        if limited:
            limit_threads(self.run.resources.cores)

    def check(self) -> None:
        from pipeline import stages

        check_nonce(open_objects(self.run.store), self.nonce)
        self.fitter = stages.Fitter(self.run, device_of(self.run))
        self.fitter.check()

    def work(self, task: Task, attempt: str) -> dict[str, Any]:
        if task.action == "publish":
            return self.fitter.publish(task.unit, task.generation)
        return self.fitter.fit(task.unit, task.generation, attempt)


class EvaluateWorker:
    """Measures reconstructed surfaces, a chunk of rows at a time."""

    def __init__(self, run: str, nonce: str, limited: bool = True):
        self.run, self.nonce = Run.model_validate_json(run), nonce
        self.one = threading.Lock()
        if limited:
            limit_threads(self.run.resources.cores)

    def check(self) -> None:
        from pipeline import stages

        check_nonce(open_objects(self.run.store), self.nonce)
        self.evaluator = stages.Evaluator(self.run, device_of(self.run))

    def work(self, task: Task, attempt: str) -> dict[str, Any]:
        with self.one:
            return self.evaluator.measure(task.unit)


class VerifyWorker:
    """Reads every byte of published units and compares it with the records."""

    def __init__(self, location: str):
        self.location = Location.model_validate_json(location)

    def check(self) -> None:
        from pipeline import store

        self.objects = open_objects(self.location)
        if store.load_plan(self.objects) is None:
            raise RuntimeError(f"{self.location.url}: this worker sees no store there")

    def work(self, task: Task, attempt: str) -> dict[str, Any]:
        from pipeline import store

        report = store.verify_unit(self.objects, task.unit)
        damaged = [asdict(damage) for damage in report.damaged]
        return {"damaged": damaged, "bytes": report.bytes}


def refuse_without_gpu(resources: Resources) -> None:
    """Raises ValueError where this process is to compute on a GPU and there is none."""
    if not resources.gpus:
        return
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            f"resources.gpus: {resources.gpus:g}, but PyTorch ({torch.__version__}) finds none on "
            "this machine; set resources.gpus=0, or resources.address of a cluster that has GPUs"
        )


def device_of(run: Run) -> str:
    """Where a worker of this run computes."""
    return "cuda" if run.resources.gpus else "cpu"


def seen_sample(run: Run, unit: int) -> str:
    """One listed object that this process can read, as JSON; '' if the first ones are gone."""
    from pipeline.ingest.segments import read_entries
    from pipeline.ingest.target import find_target

    target = find_target(run.dataset)
    for entry in read_entries(open_objects(run.prepared_location), unit)[:5]:
        if entry["keys"] and not entry["status"]:
            source, key = target.resolve(entry["keys"][0], entry["uri"])
            if source.stat(key) is not None:
                return json.dumps([entry["keys"][0], entry["uri"]])
    return ""


def check_dataset(run: Run, seen: str) -> None:
    """Raises RuntimeError when this process does not see a listed object that the driver saw."""
    from pipeline.ingest.target import find_target

    try:
        target = find_target(run.dataset)
        source, key = target.resolve(*json.loads(seen))
        found = source.stat(key)
    except FileNotFoundError:
        found = None
    if found is None:
        raise RuntimeError(
            f"{run.dataset.url} is not the same place on every node ('{json.loads(seen)[0]}' is "
            f"missing on {os.uname().nodename}); use storage that all nodes share"
        )
