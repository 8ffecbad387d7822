"""The verbs probe and segment: what can be read off a finished store, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from jobs import text
from jobs.config import load_run
from jobs.downstream import ensure_source, load_job, work
from jobs.units import Stop, stopping
from schemas.probing import ProbeJob, SegmentJob

AnyJob = TypeVar("AnyJob", ProbeJob, SegmentJob)


def do_probe(arguments: argparse.Namespace) -> int:
    job = _with_prepared(load_job(arguments.run_file, arguments.overrides, ProbeJob))
    with stopping() as stop:
        _refuse_store_of_rows(job)
        ensure_source(job, stop)
        from pipeline.downstream.probe import HEADER, open_probe, report_lines, run_probe

        pupil = open_probe(job)
        text.say(
            f"{job.name}: {', '.join(pupil.classifiers)} on {len(pupil.known)} rows of "
            f"{pupil.selection.source.spec.name} {list(pupil.selection.source.spec.shape)}, "
            f"{len(pupil.selection.classes)} classes, {len(pupil.tests)} test rows"
        )
        report = _worked(job, run_probe, stop)
    text.say(text.table(list(report_lines(report)), header=HEADER))
    text.say(f"always the largest class: {report['majority']:.3f}")
    _finish(report, f"{job.store.url.rstrip('/')}/probe.json")
    return 0


def do_segment(arguments: argparse.Namespace) -> int:
    job = _with_prepared(load_job(arguments.run_file, arguments.overrides, SegmentJob))
    with stopping() as stop:
        _refuse_store_of_rows(job)
        ensure_source(job, stop)
        from pipeline.downstream.segment import HEADER, open_segment, report_lines, run_segment

        task = open_segment(job)
        text.say(
            f"{job.name}: {len(task.classes)} classes ({', '.join(task.classes)}) from "
            f"{len(task.known)} labeled samples, measured on {len(task.tests)} others"
        )
        report = _worked(job, run_segment, stop)
    text.say(text.table(list(report_lines(report)), header=HEADER))
    _finish(report, f"{job.store.url.rstrip('/')}/segment.json")
    return 0


def _refuse_store_of_rows(job: AnyJob) -> None:
    """Raises ValueError where a report would lie inside a store of rows."""
    from jobs.driver import exists
    from pipeline.storage import open_objects
    from pipeline.store import load_plan

    if exists(job.store) and load_plan(open_objects(job.store)) is not None:
        raise ValueError(
            f"store: {job.store.url} is a store of rows; a report needs a folder of its own"
        )


def _worked(job: AnyJob, task: Callable[..., dict[str, Any]], stop: Stop) -> dict[str, Any]:
    """The report; a signal leaves a checkpoint and ends the program."""
    from pipeline.downstream.training import Interrupted

    try:
        return work(job, task, stop)
    except Interrupted as error:
        text.say(f"{error}; the same command goes on from there")
        stop.raise_if_set()
        raise


def _with_prepared(job: AnyJob) -> AnyJob:
    """The job with the prepared dataset of the run that makes its source."""
    if job.prepared is not None or job.source.run is None:
        return job
    location = load_run(job.source.run).prepared_location
    return job.model_copy(update={"prepared": location})


def _finish(report: dict, place: str) -> None:
    for note in report["notes"]:
        text.warn(f"note: {note}")
    text.say(f"report: {place}")
