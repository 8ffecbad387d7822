"""One prior job on one worker: train, draw the store of samples, report. Safe to run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline import store as stores
from pipeline.downstream.decoded import decodable
from pipeline.downstream.distribution import Prior
from pipeline.downstream.events import Events
from pipeline.downstream.lesson import Lesson, open_lesson
from pipeline.downstream.prior import (
    draw_rows,
    load_prior,
    new_prior,
    note_job,
    train_prior,
    trained,
    write_sample_store,
)
from pipeline.downstream.report import SIDE, read_report, write_report
from pipeline.downstream.sample_store import fixed_rows, opened_rows, png
from pipeline.downstream.sheet import group_sheet, pictures_of
from pipeline.downstream.training import Hooks, Interrupted
from schemas.downstream import PriorJob
from schemas.store import PRIVATE

PREVIEWED = 8
"""Samples on a preview."""


def refuse_other_samples(lesson: Lesson, *, replace: bool = False) -> None:
    """Raises ValueError when the job's store holds samples of other keys; `replace` discards them.

    What training left stays, under its own identity.
    """
    job = lesson.job
    plan = stores.load_plan(lesson.objects)
    identity = job.sample_identity(lesson.source_hash)
    if plan is None or plan.fit_identity == identity:
        return
    if not replace:
        before = plan.fit_keys.get("source", {}).get("hash", "")
        if before and plan.fit_identity == job.sample_identity(before):
            raise ValueError(
                f"{job.source.url} has changed since the samples in {job.store.url} were drawn; "
                "write to another store, or give --replace to learn and draw them anew"
            )
        keys = job.sample_keys(lesson.source_hash)
        stores.require_same_keys(plan, identity, keys, job.store.url)
    stores.discard_store(lesson.objects, keep=(f"{PRIVATE}/train/",))


def check_prior(job: PriorJob, *, replace: bool = False) -> Lesson:
    """Everything that can be wrong with a job, found before it starts; keeps the statistics."""
    lesson = open_lesson(job)
    fixed_rows(lesson.parent, lesson.space.array, lesson.dataset.selection.rows)
    refuse_other_samples(lesson, replace=replace)
    if not trained(lesson):
        new_prior(lesson)
    return lesson


def run_prior(
    job: PriorJob,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    told: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """A worker's part of a prior job; rank 0 draws and reports. Returns a small record."""
    lesson = open_lesson(job)
    if rank == 0 and not trained(lesson):
        with Events(lesson.files) as events:
            hooks = _hooks(lesson, device, events, told, stop)
            record = train_prior(lesson, rank, world, device, hooks)
    else:
        record = train_prior(lesson, rank, world, device)
    if rank:
        return record
    if record["steps"]:
        told(f"trained {record['steps']} steps on {record['rows']} rows")
    if stop():
        raise Interrupted("stopped after training, before samples were drawn")
    prior = load_prior(lesson, device)
    write_sample_store(lesson, prior)
    note_job(lesson)
    if read_report(lesson) is None:
        write_report(lesson, load_prior(lesson), told)
    return record


def _hooks(
    lesson: Lesson,
    device: str,
    events: Events,
    told: Callable[[str], None],
    stop: Callable[[], bool],
) -> Hooks:
    learning = lesson.job.train
    steps = np.linspace(0, learning.steps, learning.previews + 1)[1:].round().astype(int)
    count = max(1, learning.steps // 10)

    def scalars(step: int, values: dict[str, float]) -> None:
        events.scalars(step, values)
        if step % count < max(1, learning.steps // 100):
            shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if k != "rate")
            told(f"train: step {step} of {learning.steps}: {shown}")

    def preview(prior: Prior, step: int) -> None:
        if not decodable(lesson.parent):
            return
        fixed = fixed_rows(lesson.parent, lesson.space.array, lesson.dataset.selection.rows)
        rows, _ = draw_rows(prior, lesson, 0, PREVIEWED)
        values = lesson.normalization.back(rows.float().cpu()).numpy()
        opened = opened_rows(lesson.parent, lesson.space.array, values, fixed)
        title = f"{lesson.job.name}: samples after step {step}"
        sheet = group_sheet({title: pictures_of(opened, PREVIEWED, SIDE)}, SIDE, "preview")
        events.picture(step, "samples", np.asarray(sheet.convert("RGB")))
        lesson.files.put(f"previews/{step:07d}.png", png(sheet))
        events.upload()

    hooks = Hooks(scalars=scalars, stop=stop)
    if learning.previews:
        hooks.preview, hooks.preview_steps = preview, tuple(steps.tolist())
    return hooks
