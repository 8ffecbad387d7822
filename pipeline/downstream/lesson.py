"""What a downstream job learns from: its source opened and checked, and where its results go."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.downstream.codes import (
    ResidentBatches,
    Space,
    StreamedBatches,
    choose,
    finite_rows,
    refuse_too_few,
    selection_options,
    space_of,
)
from pipeline.downstream.dataset import RowDataset, RowStream
from pipeline.downstream.features import load_classifier
from pipeline.downstream.statistics import Normalization, normalization_of
from pipeline.evaluate.opened import OpenedStore, open_store
from pipeline.storage import Objects, open_objects
from pipeline.store import store_hash
from schemas.downstream import PriorJob
from schemas.store import PRIVATE

logger = logging.getLogger("fieldmill")

PART = 4_096
"""Rows of a part when all rows are passed through."""


class JobFiles:
    """Where training keeps state and result: below the job's store, by identity."""

    def __init__(self, objects: Objects, identity: str):
        self.objects, self.prefix = objects, f"{PRIVATE}/train/{identity[:16]}"

    def put(self, name: str, data: bytes) -> None:
        self.objects.put(f"{self.prefix}/{name}", data)

    def get(self, name: str) -> bytes | None:
        try:
            return self.objects.get(f"{self.prefix}/{name}")
        except FileNotFoundError:
            return None

    def finish(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Writes the result; the note that it is complete comes last."""
        from safetensors.torch import save

        data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        self.put("model.safetensors", data)
        note = {**note, "sha256": hashlib.sha256(data).hexdigest()}
        self.put("done.json", json.dumps(note, indent=1).encode())

    def done(self) -> dict[str, Any] | None:
        data = self.get("done.json")
        return None if data is None else json.loads(data)

    def result(self) -> dict[str, Tensor]:
        """The tensors that `finish` wrote; a damaged file raises."""
        from safetensors.torch import load

        note, data = self.done(), self.get("model.safetensors")
        if note is None or data is None:
            raise RuntimeError(f"{self.objects.location.url}: training has not finished")
        if hashlib.sha256(data).hexdigest() != note["sha256"]:
            raise RuntimeError(
                f"{self.objects.location.url}: {self.prefix}/model.safetensors is damaged (sha256 "
                "differs); delete the folder and run again"
            )
        return load(data)


@dataclass
class Lesson:
    """An opened source and what is to be learned from it."""

    job: PriorJob
    dataset: RowDataset
    """Rows that are learned from."""
    space: Space
    source_hash: str
    classes: int
    """Classes that are told apart; 0: none."""

    @cached_property
    def parent(self) -> OpenedStore:
        return open_store(self.job.source)

    @cached_property
    def objects(self) -> Objects:
        return open_objects(self.job.store)

    @cached_property
    def files(self) -> JobFiles:
        return JobFiles(self.objects, self.job.train_identity(self.source_hash))

    @property
    def row_bytes(self) -> int:
        return self.space.size * 4

    @property
    def resident(self) -> bool:
        return len(self.dataset) * self.row_bytes <= self.job.source.resident_bytes

    @cached_property
    def values(self) -> Tensor:
        """All rows as stored, checked; only where they are resident."""
        batch = self.dataset.load()
        return finite_rows(batch.values.float(), batch.row, self.job.source.url)

    @cached_property
    def labels(self) -> Tensor:
        """Class of each row, -1 where classes are not told apart."""
        labels = torch.from_numpy(self.dataset.selection.labels)
        return labels if self.classes else torch.full_like(labels, -1)

    def parts(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """All rows as stored with their numbers, in order, a part at a time."""
        rows = self.dataset.selection.rows
        if self.resident:
            for start in range(0, len(rows), PART):
                yield self.values[start : start + PART], rows[start : start + PART]
            return
        stream = self.stream(batch_size=PART, shuffle=False, rank=0, world=1)
        for batch in stream:
            found = finite_rows(batch.values.float(), batch.row, self.job.source.url)
            yield found, batch.row.numpy()

    def stream(self, **options: Any) -> RowStream:
        source = self.job.source
        return RowStream(source, source.array, **{**selection_options(source), **options})

    @cached_property
    def normalization(self) -> Normalization:
        """Statistics of the rows: read if they are there, else computed and kept."""
        data = self.files.get("normalization.safetensors")
        if data is None:
            how = self.job.method.normalize
            if how == "auto":
                how = "channels" if self.space.kind == "grid" else "entries"
            parts = (values for values, _ in self.parts())
            found = normalization_of(parts, self.space.shape, how, self.job.method.components)
            data = found.save()
            self.files.put("normalization.safetensors", data)
        return Normalization.load(data)

    def batches(self, rank: int, world: int, device: str) -> ResidentBatches | StreamedBatches:
        """This rank's batches of normalized rows."""
        learning, seed = self.job.train, self.job.seed
        normalization = self.normalization.to(device)
        if self.resident:
            values = torch.cat(
                [normalization.forth(part.to(device)) for part in self.values.split(PART)]
            )
            labels = self.labels.to(device)
            return ResidentBatches(
                values, labels, batch=learning.batch, seed=seed, rank=rank, world=world
            )
        stream = self.stream(
            batch_size=max(learning.batch // world, 1),
            drop_last=True,
            seed=seed,
            rank=rank,
            world=world,
        )
        return StreamedBatches(
            stream, normalization.forth, labelled=bool(self.classes), device=device
        )


def open_lesson(job: PriorJob) -> Lesson:
    """Opens and checks a source; raises ValueError for what nothing can be learned from."""
    dataset = choose(job.source)
    refuse_too_few(len(dataset), job.source)
    space = space_of(dataset.selection)
    source_hash = store_hash(open_objects(job.source))
    labelled = bool((dataset.selection.labels >= 0).all()) and len(space.classes) > 1
    conditional = job.method.conditional
    if conditional and not labelled:
        without = int((dataset.selection.labels < 0).sum())
        raise ValueError(
            f"method.conditional: {job.source.url} has {len(space.classes)} classes, and {without} "
            f"of {len(dataset)} rows without a label; a condition needs two classes and every row "
            "labelled"
        )
    if conditional is None:
        conditional = labelled
    classes = len(space.classes) if conditional else 0
    if job.sample.guidance != 1 and not classes:
        raise ValueError(
            "sample.guidance has no effect on a prior that learns no classes; remove it, or see "
            "method.conditional"
        )
    for name in job.sample.classes:
        if name not in space.classes[:classes]:
            known = ", ".join(space.classes) if classes else "none: it learns no classes"
            raise ValueError(f"sample.classes: no class '{name}'; the prior has {known}")
    lesson = Lesson(job, dataset, space, source_hash, classes)
    _check_features(lesson, labelled)
    return lesson


def _check_features(lesson: Lesson, labelled: bool) -> None:
    """Raises ValueError where pictures are to be compared by features that cannot be had."""
    options, opened = lesson.job.evaluate, lesson.parent
    if options.features == "pca" or not (options.rows and options.decoded):
        return
    if opened.quantity != "color" or opened.dims != 2:
        raise ValueError(
            f"evaluate.features: {options.features} has no effect: {lesson.job.source.url} holds "
            "no pictures; remove it"
        )
    if options.features != "classifier":
        takes = load_classifier(options.features).net[0].in_channels
        have = opened.spec.output["channels"]
        if takes != have:
            raise ValueError(
                f"evaluate.features: {options.features} takes pictures of {takes} channels, those "
                f"of {lesson.job.source.url} have {have}"
            )
    elif not labelled:
        raise ValueError(
            "evaluate.features: a classifier needs two classes and a label for every row; use pca"
        )
