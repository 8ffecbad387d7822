"""The verbs on a finished store: verify, repair, retry, export."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

import numpy as np

from jobs import text
from jobs.errors import GateFailed
from jobs.pool import RayPool
from jobs.show import open_existing, target_of
from jobs.units import Done, Task, stopping
from pipeline.storage import Objects
from schemas.run import Resources
from schemas.store import RowStatus

SHOWN = 20
"""Damaged objects that are printed."""


def do_verify(arguments: argparse.Namespace) -> int:
    """Compares a store with its records; damage is exit code 3."""
    from pipeline import store as stores

    location, _ = target_of(arguments)
    objects = open_existing(location)
    if arguments.workers and not arguments.full:
        raise ValueError("--workers has an effect with --full only")
    if arguments.workers:
        report = verify_with_ray(objects, arguments.workers)
    else:
        report = stores.verify(objects, full=arguments.full)
    tell(report)
    if not report.ok:
        error = GateFailed(f"{location.url}: {len(report.damaged)} objects are damaged")
        error.recover = shlex.join(["fieldmill", "repair", *options(arguments)])
        raise error
    return 0


def verify_with_ray(objects: Objects, workers: int) -> Any:
    """`verify --full`, with the bytes of each unit read by some worker."""
    from dataclasses import replace

    from jobs.cluster import connect
    from jobs.workers import VerifyWorker
    from pipeline import store as stores
    from pipeline.store.verify import Damage

    report = stores.verify(objects, full=True, shard_bytes=False)
    plan = stores.load_plan(objects)
    tasks = [Task(unit, action="verify") for unit in range(plan.units)]
    resources = Resources(workers=workers)
    damaged, read = list(report.damaged), report.bytes
    known = {d.key for d in damaged}
    ours = connect(resources)
    import ray

    try:
        with stopping() as stop:
            args = (objects.location.model_dump_json(),)
            size = min(workers, len(tasks))
            with RayPool(VerifyWorker, args, resources, stop, size=size) as pool:
                for event in pool.map(tasks):
                    if not isinstance(event, Done):
                        last = event.traceback.strip().splitlines()[-1]
                        raise RuntimeError(f"unit {event.task.unit} cannot be verified: {last}")
                    read += event.record["bytes"]
                    found = [Damage(**item) for item in event.record["damaged"]]
                    damaged += [damage for damage in found if damage.key not in known]
    finally:
        if ours:
            ray.shutdown()
    return replace(report, damaged=tuple(damaged), bytes=read)


def tell(report: Any) -> None:
    """A verification in words."""
    what = "all bytes" if report.full else "sizes and records"
    text.say(
        f"compared {what}: {report.objects} objects, {text.size(report.bytes)} read, "
        f"{len(report.damaged)} damaged"
    )
    for note in report.notes:
        text.say(f"  note: {note}")
    for damage in report.damaged[:SHOWN]:
        where = f" (unit {damage.unit})" if damage.unit is not None else ""
        text.say(f"  {damage.key}{where}: {damage.reason}")
    if len(report.damaged) > SHOWN:
        text.say(f"  ... and {len(report.damaged) - SHOWN} more")


def do_repair(arguments: argparse.Namespace) -> int:
    """Finds damage by reading all bytes and opens the damaged units for another fit."""
    from pipeline import store as stores

    location, _ = target_of(arguments)
    objects = open_existing(location)
    report = stores.verify(objects, full=True)
    tell(report)
    if report.ok:
        return 0
    done = stores.repair(objects, report)
    if done.rewritten and not done.to_fit:
        text.say(f"written again from the records: {len(done.rewritten)} objects")
    if done.lost:
        raise GateFailed(
            f"shared arrays are damaged and cannot be made from the store: {', '.join(done.lost)}; "
            "make the store again with the same run file"
        )
    if done.to_fit:
        units = ", ".join(str(unit) for unit, _ in done.to_fit[:SHOWN])
        text.say(f"{len(done.to_fit)} units will be fitted again ({units})")
        keys = stores.load_plan(objects).fit_keys
        verb = "run"
        if "sample" in keys:
            verb = "gan" if keys["method"]["name"] == "wgan_gp" else "prior"
        text.say(f"  continue with: fieldmill {verb} RUN.yaml   (the run file of this store)")
        return 5
    return 0


def do_retry(arguments: argparse.Namespace) -> int:
    """Reopens failed rows and runs the fit and evaluation again."""
    from jobs.driver import Driver
    from jobs.run import conclude, execute, run_of
    from pipeline import store as stores

    if not (arguments.failed or arguments.below_target):
        raise ValueError("say which rows: --failed, --below-target")
    run = run_of(arguments)
    objects = open_existing(run.store)
    plan = stores.load_plan(objects)
    if plan is None:
        raise ValueError(f"{run.store.url} holds no store yet; use 'run'")
    wanted = [RowStatus.FAILED, RowStatus.DIVERGED] if arguments.failed else []
    if arguments.below_target:
        wanted.append(RowStatus.BELOW_TARGET)
    with stopping() as stop:
        driver = Driver(run, stop)
        driver.refuse_other_run()
        units = stores.retry_rows(objects, plan, where=lambda columns: chosen(columns, wanted))
        text.say(f"{len(units)} units hold such rows and are fitted again")
        try:
            summary = execute(driver, ("fit", "evaluate"))
        finally:
            driver.disconnect()
    return conclude(run, driver.figures, summary, arguments)


def chosen(columns: Any, wanted: list[RowStatus]) -> np.ndarray:
    """Which lines of a unit's columns have one of the statuses."""
    return np.isin(columns["status"].to_numpy(), [int(status) for status in wanted])


EXPORTS = (
    *(".ply", ".obj", ".glb", ".png", ".npy", ".npz"),
    *(".wav", ".flac", ".gif", ".webp", ".mp4"),
)


def do_export(arguments: argparse.Namespace) -> int:
    """Writes one sample as a mesh, a picture, a sound or a video."""
    suffix = os.path.splitext(arguments.to)[1].lower()
    if suffix not in EXPORTS:
        raise ValueError(
            f"--to {arguments.to}: must end in {', '.join(EXPORTS[:-1])} or {EXPORTS[-1]}"
        )
    location, _ = target_of(arguments)
    open_existing(location)
    from pipeline.evaluate.export import export

    export(location, arguments.sample, arguments.to, resolution=arguments.resolution)
    text.say(f"wrote {arguments.to}")
    return 0


def options(arguments: argparse.Namespace) -> list[str]:
    """The words that name the store of a verb, for a command that continues."""
    words = [arguments.target]
    for name in ("endpoint", "region", "profile"):
        if getattr(arguments, name):
            words += [f"--{name}", getattr(arguments, name)]
    return [*words, "--anonymous"] if arguments.anonymous else words
