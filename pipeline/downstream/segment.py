"""Segmentation from few labels: heads on the features of fitted fields, beside networks that are
trained from scratch on the same labels (after Kohli et al. 2020, "Semantic Implicit Neural Scene
Representations with Semi-Supervised Training").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.downstream.codes import selection_options
from pipeline.downstream.course import ALONE, Course
from pipeline.downstream.field_features import last_layer
from pipeline.downstream.lesson import JobFiles
from pipeline.downstream.miou import intersection_over_union
from pipeline.downstream.part_labels import (
    IGNORED,
    Labeled,
    LabeledSamples,
    mask_labels,
    part_labels,
)
from pipeline.downstream.raw_data import prepared_beside, raw_data
from pipeline.downstream.readings import (
    FEATURES,
    WHOLE,
    Head,
    Parts,
    inputs_of,
    parts_of,
    readings,
    trained_head,
)
from pipeline.downstream.scratch import class_weights, segmented_pictures
from pipeline.downstream.selection import Selection, select
from pipeline.evaluate.opened import OpenedStore, open_store
from pipeline.ingest.prepared import open_prepared
from pipeline.storage import open_objects
from pipeline.store import store_hash
from schemas.probing import SegmentJob

Told = Callable[[str], None]
MAJORITY = "largest class"
HEADER = ["read from", "numbers", "mIoU of classes", "mIoU of samples", "accuracy"]


@dataclass(frozen=True)
class Task:
    """A source opened and checked: labeled rows to learn from, and labeled rows to measure."""

    job: SegmentJob
    opened: OpenedStore
    known: tuple[int, ...]
    """Row numbers."""
    tests: tuple[int, ...]
    points: dict[int, Labeled]
    """Of both, at most `job.points` a row."""
    classes: tuple[str, ...]
    source_hash: str
    notes: tuple[str, ...]


def open_segment(job: SegmentJob) -> Task:
    """Opens a source and its labels; raises ValueError for what nothing can be learned from."""
    source = job.source
    opened = open_store(source)
    last_layer(opened.method)
    splits = [*dict.fromkeys((*source.split, *job.test))]
    chosen = select(source, source.array, **{**selection_options(source), "split": splits})
    ids = chosen.index["sample_id"].to_pylist()
    found = _labels(job, ids)
    if len(found.classes) < 2:
        raise ValueError(
            f"{source.url}: all labeled points are of one class, '{', '.join(found.classes)}'; "
            "segmentation tells two apart at least: see labels.names, labels.ignore, source.label"
        )
    known, tests = _divided(job, chosen, found)
    sample_of = dict(zip(chosen.rows.tolist(), ids))
    points = {
        row: _some(found.samples[sample_of[row]], job.points, job.seed + row)
        for row in (*known, *tests)
    }
    seen = _present(points[row] for row in known)
    notes = []
    if unseen := [c for i, c in enumerate(found.classes) if i not in seen]:
        notes.append(
            f"no labeled sample that is learned from has {', '.join(unseen)}: an IoU of 0 there "
            "counts in the means"
        )
    if len(seen) < 2:
        raise ValueError(
            f"{source.url}: the {len(known)} samples that are learned from have points of one "
            "class only; raise labelled, or set another seed"
        )
    return Task(
        job, opened, known, tests, points, found.classes, store_hash(open_objects(source)),
        tuple(notes),
    )  # fmt: skip


def _labels(job: SegmentJob, ids: list[str]) -> LabeledSamples:
    if job.labels.masks is not None:
        return mask_labels(job.labels.masks, ids, job.labels.ignore)
    location = job.prepared or prepared_beside(job.source)
    if location is None:
        raise ValueError(
            f"labels: {job.source.url} has no prepared dataset beside it to read parts from; set "
            "prepared, or source.run"
        )
    return part_labels(open_prepared(location), ids, job.labels)


def _divided(
    job: SegmentJob, chosen: Selection, found: LabeledSamples
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows to learn from, drawn by the seed, and all other labeled rows of the test splits."""
    url = job.source.url
    index = chosen.index
    columns = (index[name].to_pylist() for name in ("split", "sample_id", "label"))
    labeled = [
        (int(row), str(split), label)
        for row, split, sample, label in zip(chosen.rows, *columns)
        if sample in found.samples
    ]
    pool = [(row, label) for row, split, label in labeled if split in job.source.split]
    if len(pool) < job.labelled:
        raise ValueError(
            f"labelled: {job.labelled} samples are asked for, but {url} has {len(pool)} with "
            f"labels in split {', '.join(job.source.split)}; lower labelled, or widen source.split"
        )
    random = np.random.default_rng(job.seed)
    pool = [pool[i] for i in random.permutation(len(pool))]
    if job.spread:
        pool = _in_turn(pool)
    known = tuple(sorted(row for row, _ in pool[: job.labelled]))
    tests = [row for row, split, _ in labeled if split in job.test and row not in known]
    if not tests:
        raise ValueError(
            f"test: {url} has no other labeled rows of split {', '.join(job.test)} to measure; "
            "widen test (rows that are learned from are always left out)"
        )
    kept = sorted(random.permutation(len(tests))[: job.measured])
    return known, tuple(tests[i] for i in kept)


def _in_turn(pool: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """One of each label in turn, in the order of the pool."""
    rounds: dict[Any, int] = {}
    numbered = []
    for place, (row, label) in enumerate(pool):
        rounds[label] = rounds.get(label, -1) + 1
        numbered.append((rounds[label], place, row, label))
    return [(row, label) for _, _, row, label in sorted(numbered, key=lambda n: n[:2])]


def _some(labeled: Labeled, most: int, seed: int) -> Labeled:
    """A seeded part of a sample's points that count."""
    places = torch.nonzero(labeled.classes != IGNORED)[:, 0]
    random = torch.Generator().manual_seed(seed)
    chosen = places[torch.randperm(len(places), generator=random)[:most]]
    return Labeled(labeled.coords[chosen], labeled.classes[chosen])


def _present(samples: Iterator[Labeled]) -> set[int]:
    return {int(c) for labeled in samples for c in labeled.classes.unique()}


# --- measuring ------------------------------------------------------------------------------


def run_segment(
    job: SegmentJob,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    told: Told = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Learns and measures what the job asks for and keeps it; a finished one is read.

    Beside the report lies `head.safetensors`: mean, scale, weight and bias of the linear head on
    features. Heads are trained by all workers together, and from their checkpoints after a stop.
    """
    from safetensors.torch import save

    task = open_segment(job)
    objects, identity = open_objects(job.store), job.result_identity(task.source_hash)
    if objects.size("segment.json") is not None:
        known = json.loads(objects.get("segment.json"))
        if known.get("identity") == identity:
            return known
    files = JobFiles(objects, identity)
    course = Course(rank, world, device, files, stop, job.train.checkpoint_s)
    found, head = measure_segment(task, told, course)
    report = {"identity": identity, **found}
    course.close()
    if rank == 0:
        objects.put("head.safetensors", save(head))
        objects.put("segment.txt", report_text(report).encode())
        objects.put("segment.json", json.dumps(report, indent=1).encode())
    return report


def measure_segment(
    task: Task, told: Told = lambda line: None, course: Course = ALONE
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The report, and the tensors of the linear head on features."""
    job, count = task.job, len(task.classes)
    chosen = readings(task.opened, task.known[0], job.surroundings, whole=job.whole)

    def parts(row: int) -> Parts:
        return parts_of(task.opened, row, task.points[row].coords, chosen, job)

    shown = [parts(row) for row in task.known]
    known = torch.cat([task.points[row].classes for row in task.known])
    heads, numbers = {}, {MAJORITY: 0}
    for reading in chosen:
        heads[reading] = trained_head(shown, known, count, job, course, reading)
        numbers[reading.name] = inputs_of(reading, shown[0]).shape[1]
    guessed: dict[str, dict[int, Tensor]] = {reading.name: {} for reading in chosen}
    for row in task.tests:
        of_row = parts(row)
        for reading, head in heads.items():
            guessed[reading.name][row] = head(inputs_of(reading, of_row)).argmax(1)
    if (whole := _whole_pictures(task, class_weights(known, count), course)) is not None:
        guessed[WHOLE], numbers[WHOLE] = whole, 0
    largest = int(torch.bincount(known, minlength=count).argmax())
    guessed[MAJORITY] = {
        row: torch.full_like(task.points[row].classes, largest) for row in task.tests
    }
    wanted = {row: task.points[row].classes for row in task.tests}
    table = {}
    for name, of_rows in guessed.items():
        found = intersection_over_union(wanted, of_rows, task.classes)
        table[name] = {"numbers": numbers[name], **found}
        told(f"{name}: mIoU {found['class_miou']:.3f}")
    report = {
        "name": job.name,
        "source": job.source.url,
        "learned": len(task.known),
        "test": len(task.tests),
        "classes": dict(zip(task.classes, torch.bincount(known, minlength=count).tolist())),
        "table": table,
        "notes": list(task.notes),
    }
    kept = heads[FEATURES]
    assert isinstance(kept, Head)
    state = kept.state_dict()
    return report, {k: v.contiguous() for k, v in state.items()}


def _whole_pictures(task: Task, weight: Tensor, course: Course) -> dict[int, Tensor] | None:
    """Classes that a U-Net gives which learned from labels alone; nothing where no pictures are."""
    job = task.job
    location = job.prepared or prepared_beside(job.source)
    if not job.whole or location is None or task.opened.dims != 2:
        return None
    first, known = len(task.known), [task.points[row] for row in task.known]
    ids = [task.opened.line(row)["sample_id"] for row in (*task.known, *task.tests)]
    raw = raw_data(open_prepared(location), ids, side=job.raw_side, cells=1, points=1)
    assert raw.pictures is not None
    found = segmented_pictures(
        known, raw.pictures[:first], [task.points[row] for row in task.tests],
        raw.pictures[first:], weight, job.train, job.seed, course, WHOLE,
    )  # fmt: skip
    return dict(zip(task.tests, found))


# --- telling --------------------------------------------------------------------------------


def report_lines(report: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    for name, found in report["table"].items():
        shown = [f"{found[key]:.3f}" for key in ("class_miou", "sample_miou", "accuracy")]
        yield [name, str(found["numbers"]), *shown]


def report_text(report: dict[str, Any]) -> str:
    """The report in words and a table."""
    lines = [HEADER, *report_lines(report)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    rows = ["  ".join(w.ljust(n) for w, n in zip(line, widths)).rstrip() for line in lines]
    counts = ", ".join(f"{name} {count}" for name, count in report["classes"].items())
    head = (
        f"{report['name']}: labels of {report['learned']} samples, measured on {report['test']} "
        f"others; labeled points of each class: {counts}"
    )
    ours = [f"{c} {v:.3f}" for c, v in report["table"][FEATURES.name]["classes"].items()]
    notes = [f"note: {note}" for note in report["notes"]]
    return "\n".join([head, *rows, f"IoU, {FEATURES.name}: {', '.join(ours)}", *notes]) + "\n"
