"""Segmentation from few labels: a linear head on the features of fitted fields, beside a network
that is trained from scratch on the same labels (after Kohli et al. 2020, "Semantic Implicit Neural
Scene Representations with Semi-Supervised Training").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.classify import moments, perceptron
from pipeline.downstream.codes import selection_options
from pipeline.downstream.course import ALONE
from pipeline.downstream.field_features import (
    last_layer,
    row_features,
    row_latent,
    untrained_features,
)
from pipeline.downstream.part_labels import (
    IGNORED,
    Labeled,
    LabeledSamples,
    mask_labels,
    part_labels,
)
from pipeline.downstream.raw_data import prepared_beside
from pipeline.downstream.selection import Selection, select
from pipeline.draw import Draw
from pipeline.evaluate.opened import OpenedStore, open_store
from pipeline.ingest.prepared import open_prepared
from pipeline.storage import open_objects
from pipeline.store import store_hash
from schemas.probing import SegmentJob

Told = Callable[[str], None]
OURS, WITH_LATENT = "linear on features", "linear on features and latent"
SCRATCH, SCRATCH_LATENT = "from scratch: coordinates", "from scratch: coordinates and latent"
RANDOM, RAW, MAJORITY = "linear on untrained features", "linear on coordinates", "largest class"
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
    labeled = [
        (int(row), str(split))
        for row, split, sample in zip(
            chosen.rows, index["split"].to_pylist(), index["sample_id"].to_pylist()
        )
        if sample in found.samples
    ]
    pool = [row for row, split in labeled if split in job.source.split]
    if len(pool) < job.labelled:
        raise ValueError(
            f"labelled: {job.labelled} samples are asked for, but {url} has {len(pool)} with "
            f"labels in split {', '.join(job.source.split)}; lower labelled, or widen source.split"
        )
    order = np.random.default_rng(job.seed).permutation(len(pool))[: job.labelled]
    known = tuple(sorted(pool[i] for i in order))
    tests = tuple(row for row, split in labeled if split in job.test and row not in known)
    if not tests:
        raise ValueError(
            f"test: {url} has no other labeled rows of split {', '.join(job.test)} to measure; "
            "widen test (rows that are learned from are always left out)"
        )
    return known, tests


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
    features.
    """
    from safetensors.torch import save

    task = open_segment(job)
    objects, identity = open_objects(job.store), job.result_identity(task.source_hash)
    if objects.size("segment.json") is not None:
        known = json.loads(objects.get("segment.json"))
        if known.get("identity") == identity:
            return known
    found, head = measure_segment(task, told)
    report = {"identity": identity, **found}
    objects.put("head.safetensors", save(head))
    objects.put("segment.txt", report_text(report).encode())
    objects.put("segment.json", json.dumps(report, indent=1).encode())
    return report


def measure_segment(
    task: Task, told: Told = lambda line: None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The report, and the tensors of the linear head on features."""
    job = task.job
    head: dict[str, Tensor] = {}
    table: dict[str, Any] = {}
    for name, inputs, linear in _readings(task):
        rows = {row: inputs(row, task.points[row].coords) for row in (*task.known, *task.tests)}
        model = trained_head(
            torch.cat([rows[row] for row in task.known]),
            torch.cat([task.points[row].classes for row in task.known]),
            len(task.classes),
            job,
            linear=linear,
        )
        guessed = {row: model(rows[row]).argmax(1) for row in task.tests}
        table[name] = {"numbers": len(next(iter(rows.values()))[0]), **_measured(task, guessed)}
        told(f"{name}: mIoU {table[name]['class_miou']:.3f}")
        if name == OURS:
            head = {k: v.contiguous() for k, v in model.state_dict().items()}
    known = torch.cat([task.points[row].classes for row in task.known])
    largest = int(torch.bincount(known, minlength=len(task.classes)).argmax())
    always = {row: torch.full_like(task.points[row].classes, largest) for row in task.tests}
    table[MAJORITY] = {"numbers": 0, **_measured(task, always)}
    counts = torch.bincount(known, minlength=len(task.classes)).tolist()
    report = {
        "name": job.name,
        "source": job.source.url,
        "learned": len(task.known),
        "test": len(task.tests),
        "classes": dict(zip(task.classes, counts)),
        "table": table,
        "notes": list(task.notes),
    }
    return report, head


Inputs = Callable[[int, Float[Tensor, "p d"]], Float[Tensor, "p f"]]


def _readings(task: Task) -> Iterator[tuple[str, Inputs, bool]]:
    """Name, inputs of points, and whether a linear head reads them."""
    opened, seed = task.opened, task.job.seed

    def with_latent(inputs: Inputs) -> Inputs:
        def both(row: int, x: Float[Tensor, "p d"]) -> Float[Tensor, "p f"]:
            latent = row_latent(opened, row).expand(len(x), -1)
            return torch.cat([inputs(row, x), latent], 1)

        return both

    def fitted(row: int, x: Float[Tensor, "p d"]) -> Float[Tensor, "p f"]:
        return row_features(opened, row, x)

    def raw(row: int, x: Float[Tensor, "p d"]) -> Float[Tensor, "p f"]:
        return x

    def untrained(row: int, x: Float[Tensor, "p d"]) -> Float[Tensor, "p f"]:
        return untrained_features(opened, row, x, seed + 1)

    latent = len(row_latent(opened, task.known[0]))
    shared = any(not a.rows and a.name.endswith("weight") for a in opened.plan.arrays)
    yield OURS, fitted, True
    if latent:
        yield WITH_LATENT, with_latent(fitted), True
    yield SCRATCH, raw, False
    if latent:
        yield SCRATCH_LATENT, with_latent(raw), False
    if shared:
        yield RANDOM, untrained, True
    yield RAW, raw, True


class Head(nn.Module):
    """Standardized inputs, then a linear layer or a network."""

    def __init__(self, mean: Tensor, scale: Tensor, net: nn.Module):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.net = net

    def forward(self, x: Float[Tensor, "p f"]) -> Float[Tensor, "p k"]:
        return self.net((x - self.mean) / self.scale)


def trained_head(
    inputs: Float[Tensor, "p f"],
    classes: Int[Tensor, "p"],
    count: int,
    job: SegmentJob,
    *,
    linear: bool,
) -> Head:
    """A head trained by cross-entropy on labeled points; rare classes weigh more (one over the root
    of their number)."""
    weight = 1 / torch.bincount(classes, minlength=count).clamp(min=1).float().sqrt()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        width = inputs.shape[1]
        net = nn.Linear(width, count) if linear else perceptron(width, job.width, count)
        model = Head(*moments(inputs), net)

        def loss(index: Int[Tensor, "b"], draw: Draw) -> Float[Tensor, ""]:
            return F.cross_entropy(model(inputs[index]), classes[index], weight=weight)

        ALONE.learn(model, loss, len(inputs), **job.train.descent(), name="head", seed=job.seed)
    return model.requires_grad_(False)


def _measured(task: Task, guessed: dict[int, Int[Tensor, "p"]]) -> dict[str, Any]:
    wanted = {row: task.points[row].classes for row in guessed}
    return intersection_over_union(wanted, guessed, task.classes)


def intersection_over_union(
    wanted: dict[int, Int[Tensor, "p"]],
    guessed: dict[int, Int[Tensor, "p"]],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """The two conventions of mIoU.

    `class_miou`: for each class the intersection and union are summed over all samples, and the
    mean is over classes that some sample has. `sample_miou`: in each sample the mean over the
    classes that are in it or were guessed there (an absent class is skipped, not counted 1), then
    the mean over samples.
    """
    both, either = torch.zeros(len(classes)), torch.zeros(len(classes))
    there = torch.zeros(len(classes), dtype=torch.bool)
    each, right, total = [], 0, 0
    for row, true in wanted.items():
        found = guessed[row]
        hit = torch.bincount(true[true == found], minlength=len(classes)).float()
        of_true = torch.bincount(true, minlength=len(classes)).float()
        union = of_true + torch.bincount(found, minlength=len(classes)).float() - hit
        each.append(float((hit[union > 0] / union[union > 0]).mean()))
        both, either, there = both + hit, either + union, there | (of_true > 0)
        right, total = right + int((true == found).sum()), total + len(true)
    of_class = both / either.clamp(min=1)
    return {
        "class_miou": float(of_class[there].mean()),
        "sample_miou": float(np.mean(each)),
        "accuracy": right / total,
        "classes": {c: float(of_class[i]) for i, c in enumerate(classes) if there[i]},
    }


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
    ours = [f"{c} {v:.3f}" for c, v in report["table"][OURS]["classes"].items()]
    notes = [f"note: {note}" for note in report["notes"]]
    return "\n".join([head, *rows, f"IoU, {OURS}: {', '.join(ours)}", *notes]) + "\n"
