"""The probe: which classes can be read off the rows of a store, beside raw data and chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.downstream.classify import (
    PointNetwork,
    Scores,
    accuracy,
    kernel_ridge,
    mean_average_precision,
    neighbors,
    perceptron,
    recall,
    ridge,
    standardizer,
    train_network,
)
from pipeline.downstream.codes import finite_rows, refuse_unusable, selection_options
from pipeline.downstream.course import ALONE, Course
from pipeline.downstream.dataset import RowDataset
from pipeline.downstream.equivariant import Chain, WeightNetwork, chain_of, layer_statistics
from pipeline.downstream.lesson import JobFiles
from pipeline.downstream.raw_data import prepared_beside, raw_data
from pipeline.downstream.selection import Selection
from pipeline.draw import Draw
from pipeline.ingest.prepared import open_prepared
from pipeline.storage import open_objects
from pipeline.store import open_arrays, store_hash
from schemas.probing import ProbeJob, Reader

Told = Callable[[str], None]
DEFAULT: tuple[Reader, ...] = ("linear", "knn", "mlp")
PLAIN: tuple[Reader, ...] = (*DEFAULT, "kernel")
POINTS = "point network"
SEEN = 256
"""Points of a sample that a step of the point network sees, others in each."""
SEED = 77
"""Of shuffled labels."""


@dataclass(frozen=True)
class Pupil:
    """A source opened and checked: which rows are learned from, which are tests."""

    job: ProbeJob
    dataset: RowDataset
    known: np.ndarray
    """Positions in the selection that are learned from."""
    tests: np.ndarray
    classifiers: tuple[Reader, ...]
    chain: Chain | None
    source_hash: str
    notes: tuple[str, ...]

    @property
    def selection(self) -> Selection:
        return self.dataset.selection

    def labels(self, positions: np.ndarray) -> Tensor:
        return torch.from_numpy(self.selection.labels[positions])


def open_probe(job: ProbeJob) -> Pupil:
    """Opens a source; raises ValueError for everything that makes a probe impossible or void."""
    source, notes = job.source, []
    reader = open_arrays(source)
    plan = reader.plan
    asked = job.classifiers or DEFAULT
    mixed = "any" if "equivariant" in asked else "common"
    options = {**selection_options(source), "split": [*dict.fromkeys((*source.split, *job.test))]}
    both = sorted(set(source.split) & set(job.test))
    if both:
        raise ValueError(
            f"test: split {', '.join(both)} is learned from and measured; a probe that has seen "
            "its answers shows nothing: change source.split or test"
        )
    dataset = RowDataset(source, source.array, **options, starts=mixed)
    spec = dataset.selection.source.spec
    refuse_unusable(spec, source.url)
    chain = None
    if "equivariant" in asked:
        if spec.name != "params":
            raise ValueError(
                f"classifiers: 'equivariant' reads weights; '{spec.name}' of {source.url} are "
                "latents, whose entries have no symmetry: use linear, knn or mlp"
            )
        table = spec.attributes["table"]
        chain = chain_of(plan.field, table, int(spec.shape[0]))
        if plan.field.init.get("start", "own") == "own" and set(asked) & set(PLAIN):
            notes.append(
                "every row started from weights of its own: linear, knn and mlp are shown as "
                "controls, and can be no better than chance"
            )
    known, tests = _split(job, dataset.selection, reader.index["split"].to_pylist())
    return Pupil(
        job, dataset, known, tests, asked, chain, store_hash(open_objects(source)), tuple(notes)
    )


def _split(
    job: ProbeJob, selection: Selection, all_splits: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of learned and of test rows; refuses what a probe cannot tell anything of."""
    url, labels = job.source.url, selection.labels
    if not len(selection) or (labels < 0).all():
        raise ValueError(
            f"{url}: no row has a label, so there is nothing to read off; set dataset.label in the "
            "run file that makes the store"
        )
    if (labels < 0).any():
        raise ValueError(
            f"{url}: {int((labels < 0).sum())} of {len(labels)} rows have no label; name the "
            "classes to use in source.label"
        )
    if len(selection.classes) < 2:
        raise ValueError(
            f"{url}: all rows are of one class, '{selection.classes[0]}'; a probe tells two apart "
            "at least: widen source.label"
        )
    split = np.asarray(selection.index["split"].to_pylist(), dtype=object)
    parts = {}
    for name, splits in (("source.split", job.source.split), ("test", job.test)):
        parts[name] = np.flatnonzero(np.isin(split, splits))
        if not len(parts[name]):
            found = ", ".join(f"{s} {all_splits.count(s)}" for s in sorted(set(all_splits)))
            raise ValueError(
                f"{url}: no row is of split {', '.join(splits)} ({name}); the store has {found}. "
                "Rows get their splits from dataset.split of the run file that makes the store"
            )
    known, tests = parts["source.split"], parts["test"]
    counts = np.bincount(labels[known], minlength=len(selection.classes))
    few = [f"{c} ({n})" for c, n in zip(selection.classes, counts) if n < 2]
    if few:
        raise ValueError(
            f"{url}: fewer than 2 rows to learn from of class {', '.join(few[:8])}"
            + (f" and {len(few) - 8} others" if len(few) > 8 else "")
            + "; leave them out with source.label, or make the store with more samples"
        )
    return known, tests


# --- measuring ------------------------------------------------------------------------------


def run_probe(
    job: ProbeJob,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    told: Told = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Measures what the job asks for and keeps it as JSON; a finished one is read.

    Networks are trained by all workers together, and from their checkpoints after a stop; the rest
    is small, and each does it.
    """
    pupil = open_probe(job)
    objects, identity = open_objects(job.store), job.result_identity(pupil.source_hash)
    if objects.size("probe.json") is not None:
        known = json.loads(objects.get("probe.json"))
        if known.get("identity") == identity:
            return known
    files = JobFiles(objects, identity)
    course = Course(rank, world, device, files, stop, job.train.checkpoint_s)
    report = {"identity": identity, **measure_probe(pupil, told, course)}
    course.close()
    if rank == 0:
        objects.put("probe.txt", report_text(report).encode())
        objects.put("probe.json", json.dumps(report, indent=1).encode())
    return report


def measure_probe(
    pupil: Pupil, told: Told = lambda line: None, course: Course = ALONE
) -> dict[str, Any]:
    """Accuracies of all classifiers on rows, on raw data, and with shuffled labels."""
    job, selection = pupil.job, pupil.selection
    labels, wanted = pupil.labels(pupil.known), pupil.labels(pupil.tests)
    classes = len(selection.classes)
    batch = pupil.dataset.load()
    values = finite_rows(batch.values.float(), batch.row, job.source.url).flatten(1)
    features = {selection.source.spec.name: values}
    notes, points = list(pupil.notes), None
    if job.raw:
        location = job.prepared or prepared_beside(job.source)
        if location is None:
            notes.append("no prepared dataset was found, so raw data are not classified")
        else:
            ids = selection.index["sample_id"].to_pylist()
            raw = raw_data(open_prepared(location), ids, side=job.raw_side,
                           cells=job.raw_cells, points=job.raw_points)  # fmt: skip
            features[f"raw: {raw.name}"], points = raw.values, raw.points
    table: dict[str, Any] = {}
    for name, rows in features.items():
        known, tests = rows[pupil.known], rows[pupil.tests]
        standard = standardizer(known)
        asked = standard(tests), wanted, standard(known), labels
        table[name] = {
            "entries": rows.shape[1],
            f"mAP@{job.retrieved}": mean_average_precision(*asked, job.retrieved),
            "recall@1": recall(*asked, 1),
            f"recall@{job.retrieved}": recall(*asked, job.retrieved),
        }
        readers = pupil.classifiers if rows is values else _raw_readers(pupil.classifiers)
        for reader in readers:
            train = _trainer(pupil, reader, classes, f"{name} {reader}", course)
            table[name][reader] = _measured(train, known, labels, tests, wanted, job.shuffles)
            told(f"{name}: {reader}: {table[name][reader]['accuracy']:.3f}")
    if points is not None:
        train = _trainer(pupil, POINTS, classes, POINTS, course)
        shown, asked = points[pupil.known], points[pupil.tests]
        found = _measured(train, shown, labels, asked, wanted, job.shuffles)
        table[f"raw: points, {points.shape[1]}"] = {"entries": points[0].numel(), POINTS: found}
    counts = {
        c: {"learned": int((labels == i).sum()), "test": int((wanted == i).sum())}
        for i, c in enumerate(selection.classes)
    }
    majority = int(torch.bincount(labels, minlength=classes).argmax())
    return {
        "name": job.name,
        "source": job.source.url,
        "learned": len(labels),
        "test": len(wanted),
        "splits": {"learned": list(job.source.split), "test": list(job.test)},
        "classes": counts,
        "majority": float((wanted == majority).double().mean()),
        "features": table,
        "notes": notes,
    }


def _raw_readers(asked: tuple[Reader, ...]) -> tuple[Reader, ...]:
    return tuple(r for r in asked if r in PLAIN) or DEFAULT


def _measured(
    train: Callable[[Tensor, Tensor, str], Scores],
    known: Tensor,
    labels: Tensor,
    tests: Tensor,
    wanted: Tensor,
    shuffles: int,
) -> dict[str, float]:
    """Accuracy on test rows, the mean of the classes' own accuracies, and the mean accuracy after
    learning labels that were shuffled."""
    scores = train(known, labels, "")(tests)
    right = (scores.argmax(1) == wanted).double()
    each = [float(right[wanted == c].mean()) for c in wanted.unique()]
    random = torch.Generator().manual_seed(SEED)
    orders = [torch.randperm(len(labels), generator=random) for _ in range(shuffles)]
    by_chance = [
        accuracy(train(known, labels[order], f" shuffled {k}")(tests), wanted)
        for k, order in enumerate(orders)
    ]
    return {
        "accuracy": accuracy(scores, wanted),
        "balanced": float(np.mean(each)),
        "shuffled": float(np.mean(by_chance)),
    }


def _trainer(
    pupil: Pupil, reader: str, classes: int, name: str, course: Course
) -> Callable[[Tensor, Tensor, str], Scores]:
    """From rows, labels and an addition to `name` to a classifier of rows."""
    job = pupil.job
    learning = job.train.descent() | {"seed": job.seed, "course": course}

    def plain(known: Tensor, labels: Tensor, added: str) -> Scores:
        standard = standardizer(known)
        x = standard(known)
        if reader == "linear":
            scores = ridge(x, labels, classes)
        elif reader == "kernel":
            scores = kernel_ridge(x, labels, classes, job.seed)
        elif reader == "knn":
            scores = neighbors(x, labels, classes, job.neighbors)
        else:
            scores = train_network(
                lambda: perceptron(x.shape[1], job.width, classes),
                x, labels, name=name + added, **learning,
            )  # fmt: skip
        return lambda rows: scores(standard(rows))

    def equivariant(known: Tensor, labels: Tensor, added: str) -> Scores:
        chain = pupil.chain
        assert chain is not None
        turn = job.flips and any(chain.odd)

        def change(rows: Tensor, draw: Draw) -> Tensor:
            return chain.turn(rows, chain.drawn_signs(draw)) if turn else rows

        def network() -> WeightNetwork:
            return WeightNetwork(
                chain, classes, statistics=layer_statistics(chain, known), channels=job.channels,
                probes=job.probes if chain.activations else 0,
            )  # fmt: skip

        return train_network(network, known, labels, name=name + added, change=change, **learning)

    def points(known: Tensor, labels: Tensor, added: str) -> Scores:
        def change(clouds: Tensor, draw: Draw) -> Tensor:
            rows = torch.arange(len(clouds), device=clouds.device)[:, None]
            return clouds[rows, draw.integers("points", clouds.shape[1], SEEN)]

        return train_network(
            lambda: PointNetwork(classes), known, labels, name=name + added, change=change,
            **{**learning, "batch": 32},
        )  # fmt: skip

    return {"equivariant": equivariant, POINTS: points}.get(reader, plain)


# --- telling --------------------------------------------------------------------------------


def report_lines(report: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table: features, entries, classifier, accuracy, balanced, shuffled labels."""
    for name, found in report["features"].items():
        for reader, figures in found.items():
            if isinstance(figures, dict):
                shown = [f"{figures[k]:.3f}" for k in ("accuracy", "balanced", "shuffled")]
                yield [name, str(found["entries"]), reader, *shown]
        for key, value in found.items():
            if key.startswith(("mAP@", "recall@")):
                yield [name, str(found["entries"]), key, f"{value:.3f}", "", ""]


HEADER = ["features", "entries", "classifier", "accuracy", "balanced", "shuffled labels"]


def report_text(report: dict[str, Any]) -> str:
    """The report in words and a table."""
    lines = [HEADER, *report_lines(report)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    rows = ["  ".join(w.ljust(n) for w, n in zip(line, widths)).rstrip() for line in lines]
    splits = report["splits"]
    head = (
        f"{report['name']}: {len(report['classes'])} classes; learned from {report['learned']} "
        f"rows ({', '.join(splits['learned'])}), measured on {report['test']} "
        f"({', '.join(splits['test'])}); always the largest class: {report['majority']:.3f}"
    )
    counts = ", ".join(f"{c} {n['learned']}/{n['test']}" for c, n in report["classes"].items())
    notes = [f"note: {note}" for note in report["notes"]]
    return "\n".join([head, f"rows of each class, learned/test: {counts}", *rows, *notes]) + "\n"
