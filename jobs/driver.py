"""Runs the stages of a run file: plans, maps units over workers, keeps what failed, reports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs import cluster, text
from jobs.pool import RayPool
from jobs.units import Done, LocalPool, Quarantined, Stop, Task
from jobs.workers import EvaluateWorker, FitWorker, IngestWorker, seen_sample
from pipeline.storage import Objects, local_folder, open_objects
from schemas.base import Location
from schemas.run import LAYOUT_OF_FIT, Run
from schemas.samples import PreparedMeta
from schemas.store import PRIVATE

SLOW_S = 3600.0
"""A CPU run that takes longer is told which keys shorten it."""


NOTE_S = 10.0
"""Seconds between notes of the pace, which `status` reads."""


class Incomplete(RuntimeError):
    """Units are missing; the same command tries them again."""


@dataclass
class Driver:
    """One invocation of the command line on one run."""

    run: Run
    stop: Stop
    update: bool = False
    """List the dataset again and append what is new."""
    replace: bool = False
    """Discard the rows of another run that lie in the store."""
    connected: bool = False
    quarantined: list[Quarantined] = field(default_factory=list)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By stage: samples, seconds, samples a second, peak memory."""

    @property
    def local(self) -> bool:
        """Whether everything happens in this process."""
        places = (self.run.store, self.run.dataset, self.run.prepared_location)
        return self.run.resources.workers == 0 or any(p.scheme == "memory" for p in places)

    def pool(
        self, make: type, args: Sequence[Any], tasks: Sequence[Task], *, gpus: float
    ) -> LocalPool | RayPool:
        """Workers for the tasks of a stage; started when the pool is entered."""
        if self.local:
            return LocalPool(make, (*args, False), self.stop)
        self.connect()
        size = cluster.worker_count(self.run.resources, len(tasks), gpus=gpus)
        return RayPool(make, args, self.run.resources, self.stop, size=size, gpus=gpus)

    def connect(self) -> None:
        """Joins or starts the cluster, once."""
        if not self.connected and not self.local:
            self.connected = cluster.connect(self.run.resources)
            self.stop.install()  # ray.init has put its own handlers there

    def disconnect(self) -> None:
        """Leaves the cluster; one that this process started ends."""
        if self.connected:
            import ray

            ray.shutdown()
            self.connected = False

    def workers(self) -> int:
        """Workers to plan for."""
        if self.local:
            return 1
        if isinstance(self.run.resources.workers, int):
            return self.run.resources.workers
        self.connect()
        return cluster.worker_count(self.run.resources, 2**31, gpus=self.run.resources.gpus)

    def refuse_other_run(self) -> None:
        """Raises before anything starts when the store holds rows of other keys."""
        from pipeline import store as stores

        if not exists(self.run.store):
            return
        plan = stores.load_plan(open_objects(self.run.store))
        if plan is None or plan.fit_identity == self.run.stage_identity("fit"):
            return
        if not self.replace:
            keys = self.run.stage_keys("fit")
            stores.require_same_keys(plan, self.run.stage_identity("fit"), keys, self.run.store.url)

    def discard_other_run(self) -> None:
        """Deletes the rows of another run; what training left is kept under its own identity."""
        from pipeline import store as stores

        objects = open_objects(self.run.store)
        plan = stores.load_plan(objects)
        if not self.replace or plan is None:
            return
        if plan.fit_identity == self.run.stage_identity("fit"):
            return
        stores.discard_store(objects, keep=(f"{PRIVATE}/train/",))
        text.say(f"{self.run.store.url}: the rows of another run were discarded")

    # --- stages -------------------------------------------------------------------------------

    def ingest(self) -> PreparedMeta:
        """Dataset -> prepared dataset; returns at once when that is done."""
        from pipeline import stages

        units = stages.prepare(self.run, update=self.update)
        if units:
            tasks = [Task(unit, action="ingest") for unit in units]
            self.map("ingest", tasks, IngestWorker, open_objects(self.run.prepared_location), 0.0)
            self.refuse_missing("ingest")
        return stages.fold_prepared(self.run)

    def train(self) -> None:
        """Trains shared parameters where the method has any and they are not there yet."""
        from pipeline import stages

        if stages.trained(self.run):
            return
        if self.run.train.workers > 1:
            from jobs.train import train_together

            self.connect()
            record = train_together(self.run)
        else:
            record = self._train_alone()
        if "diverged" in record:
            raise ValueError(f"{record['diverged']} ({', '.join(rates(self.run))})")
        samples, seconds = record.get("samples", 0), record["seconds"]
        self.figures["train"] = {
            "samples": samples,
            "seconds": seconds,
            "samples_s": samples / max(seconds, 1e-9),
            "peak_bytes": record.get("peak_bytes", 0),
        }
        text.say(f"train: {samples} samples, {text.duration(seconds)}")
        if record.get("left_out"):
            text.warn(f"  note: {record['left_out']}")

    def _train_alone(self) -> dict[str, Any]:
        """Trains with one worker; returns its record: samples, seconds, peak memory."""
        from jobs.train import TrainWorker
        from pipeline.store import leave_nonce

        objects, task = open_objects(self.run.store), Task(0, action="train")
        with leave_nonce(objects) as nonce:
            args = (self.run.model_dump_json(), nonce)
            gpus = min(self.run.resources.gpus, 1.0)
            with self.pool(TrainWorker, args, [task], gpus=gpus) as pool:
                for event in pool.map([task]):
                    if isinstance(event, Done):
                        return event.record
                    self.quarantine("train", event, objects)
        self.refuse_missing("train")
        raise AssertionError("one task gives one event")

    def fit(self) -> Any:
        """Prepared dataset -> rows of the store; returns the summary of the finished store."""
        from pipeline import stages
        from pipeline.store import load_plan

        self.discard_other_run()
        planned = load_plan(open_objects(self.run.store)) is not None
        todo = stages.plan_fit(self.run, 1 if planned else self.workers())
        for name in LAYOUT_OF_FIT:
            wanted, standing = getattr(self.run.fit, name), getattr(todo.plan, name)
            if wanted not in (None, standing):
                text.warn(f"fit.{name}={wanted} has no effect: the store was begun with {standing}")
        plan = todo.plan
        if not planned:
            lanes = "" if plan.fused or plan.kernel else f", {plan.lanes} lanes"
            path = plan.field.versions.get("path", "")
            text.say(f"fit: {plan.units} units of {plan.unit_rows} rows; {path}{lanes}")
        tasks = [Task(unit, g, "publish") for unit, g in todo.to_publish]
        tasks += [Task(unit, g, "fit") for unit, g in todo.to_fit]
        if tasks:
            gpus = self.run.resources.gpus
            self.map("fit", tasks, FitWorker, open_objects(self.run.store), gpus)
            self.refuse_missing("fit")
        return stages.finish(self.run)

    def evaluate(self) -> Any:
        """Metrics of reconstructed surfaces; returns the summary of the store with them."""
        from pipeline import stages

        tasks = [Task(chunk, action="evaluate") for chunk in stages.plan_evaluate(self.run)]
        if tasks:
            gpus = self.run.resources.gpus
            self.map("evaluate", tasks, EvaluateWorker, open_objects(self.run.store), gpus)
            self.refuse_missing("evaluate")
        return stages.evaluate_finish(self.run)

    def refuse_missing(self, stage: str) -> None:
        """Ends the run when units of the stage were given up; the next stage needs them all."""
        if self.quarantined:
            units = sorted(q.task.unit for q in self.quarantined)
            shown = ", ".join(map(str, units[:20])) + (" ..." if len(units) > 20 else "")
            raise Incomplete(f"{stage}: {len(units)} units were given up: {shown}")

    # --- mapping ------------------------------------------------------------------------------

    def map(
        self, stage: str, tasks: Sequence[Task], make: type, objects: Objects, gpus: float
    ) -> None:
        """Runs the tasks; prints a line for each, keeps tracebacks of those given up."""
        from pipeline.store import leave_nonce, probe_storage

        if objects.location.scheme != "memory":
            probe_storage(objects)
        with leave_nonce(objects) as nonce:
            args: tuple[Any, ...] = (self.run.model_dump_json(), nonce)
            if make is IngestWorker:
                args += ("" if self.local else seen_sample(self.run, tasks[0].unit),)
            with self.pool(make, args, tasks, gpus=gpus) as pool:
                meter = text.Meter(stage, len(tasks), pool.size)
                self.follow(stage, pool.map(tasks), meter, objects)
        self.figures[stage] = meter.figures()

    def follow(
        self,
        stage: str,
        events: Iterable[Done | Quarantined],
        meter: text.Meter,
        objects: Objects,
    ) -> None:
        """Tells of each unit as it ends, and notes the pace now and then."""
        noted = 0.0
        for event in events:
            if isinstance(event, Done):
                self.see(meter, event)
            else:
                meter.done += 1
                self.quarantine(stage, event, objects)
            if time.monotonic() - noted > NOTE_S:
                noted = time.monotonic()
                objects.put(text.PACE, json.dumps(meter.pace()).encode())

    def see(self, meter: text.Meter, event: Done) -> None:
        """Prints the progress line of a unit; after the first one, what to expect."""
        record = event.record
        found: dict[str, int] = record.get("rows") or record.get("counts") or {}
        seconds = record.get("seconds") or sum(
            record.get(name, 0.0) for name in ("read_s", "fit_s", "measure_s", "write_s")
        )
        if isinstance(seconds, dict):
            seconds = seconds["total"]
        written = record.get("bytes") or record.get("written_bytes") or 0
        meter.add(sum(found.values()), seconds, written, record.get("peak_bytes", 0))
        text.say(meter.line(event.task.unit, text.counts(found), seconds))
        if meter.done == 1 and meter.eta() > SLOW_S and not self.run.resources.gpus:
            text.say(shorten(self.run, meter.stage))

    def quarantine(self, stage: str, event: Quarantined, objects: Objects) -> None:
        """Keeps the traceback of a unit that was given up."""
        self.quarantined.append(event)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        key = f"{PRIVATE}/tracebacks/{stage}-{event.task.unit}-{event.task.generation}-{stamp}.txt"
        objects.put(key, text.redact(event.traceback).encode())
        last = event.traceback.strip().splitlines()[-1]
        place = objects.location.url.rstrip("/")
        text.warn(f"{stage}: unit {event.task.unit} given up: {last} (traceback: {place}/{key})")


def exists(location: Location) -> bool:
    """Whether a local folder is there: opening one for looking must not make it."""
    return location.scheme != "file" or local_folder(location).is_dir()


def rates(run: Run) -> list[str]:
    """The learning rates of training among a run's keys."""
    from pipeline import methods

    fields = methods.load(run.method.name).Config.model_fields
    found = [name for name in fields if name.rpartition("_")[2] == "rate"]
    return [f"method.{name}" for name in found if not name.startswith("fit_")]


def shorten(run: Run, stage: str) -> str:
    """Which keys make a long CPU run shorter."""
    keys = ["resources.workers (more machines: resources.address)", "resources.gpus=1", "limit"]
    if stage == "fit":
        from pipeline import methods

        fields = methods.load(run.method.name).Config.model_fields
        known = ("steps", "width", "depth", "resolution", "points")
        keys += [f"method.{name}" for name in known if name in fields]
        if run.dataset.kind == "images":
            keys.append("ingest.resolution")
    return "  shorter with: " + ", ".join(keys)
