"""How good a prior's samples are, against held-out rows: always beside what other real rows and
normal distributions with full covariance score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.downstream.codes import choose, finite_rows
from pipeline.downstream.decoded import Pictures, Surfaces, decodable, decode
from pipeline.downstream.distribution import Prior
from pipeline.downstream.features import (
    class_measures,
    classifier_features,
    load_classifier,
    pca_features,
    train_classifier,
)
from pipeline.downstream.latents import distances
from pipeline.downstream.lesson import Lesson
from pipeline.downstream.mixture import Mixture
from pipeline.downstream.prior import draw_rows, nearest_learned
from pipeline.downstream.sample_store import fixed_rows, opened_rows
from pipeline.downstream.set_metrics import (
    chamfer_distances,
    compare,
    frechet_distance,
    kernel_distance,
    spread_ratio,
)
from pipeline.draw import Draw, sample_keys
from schemas.downstream import Gaussian, Sampling

FEWEST = 8
"""Held-out rows below which nothing is compared."""
SETS = ("real", "prior", "gaussian", "by_class")
"""Columns: other real rows, the prior, a normal distribution of all rows, one of each class."""
DESCRIBED = {
    "one_nn": "accuracy of telling samples from real rows by the nearest other one; 0.5 is best",
    "cov": "share of real rows that are nearest to some sample",
    "mmd": "mean distance from a real row to the nearest sample",
    "fidelity": "mean distance from a sample to the nearest real row",
    "density": "balls of real rows that a sample lies in, over their expected number",
    "coverage": "share of balls of real rows with a sample in them",
    "spread": "deviation of samples over that of real rows",
    "frechet": "squared Frechet distance of features",
    "kid": "squared kernel distance of features (x 1000)",
    "confidence": "mean probability of a classifier's answer",
    "class_shift": "share of samples in classes that are too frequent, as a classifier sees them",
    "nearest_learned": "mean distance to the nearest row learned from; far below real: copies",
    "nll": "mean negative log-density of held-out rows, in nats",
    "rarest": "share of the rarest class among the nearest rows learned from; 0: a class is lost",
    "empty": "share of samples without a surface",
}


@dataclass
class Quality:
    """Measures by space (`code`, `decoded`) and set (`real`, `prior`, `gaussian`)."""

    table: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    rows: int = 0
    """Rows compared a set."""
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    """Stored rows that were compared, by set: for a look."""

    def note(self) -> dict[str, Any]:
        return {"rows": self.rows, "table": self.table, "notes": self.notes}


def baselines(lesson: Lesson) -> dict[str, Mixture]:
    """Normal distributions with full covariance: of all rows, and where the prior knows classes
    also one of each class, which uses the labels as the prior does."""
    rows, labels = fitting_rows(lesson)
    found = {}
    for name, classes in (("gaussian", 0), ("by_class", lesson.classes)):
        if name == "by_class" and not classes:
            continue
        prior = Mixture(Gaussian(), lesson.space, tuple(rows.shape[1:]), classes)
        try:
            prior.fit(rows, labels, lesson.job.seed)
        except ValueError:  # a class with too few rows
            continue
        found[name] = prior
    return found


def measure(
    lesson: Lesson, prior: Prior, told: Callable[[str], None] = lambda line: None
) -> Quality:
    """Compares the prior's samples, other real rows, and a normal distribution with held-out rows.

    Samples of quality are drawn for the purpose: other ones than the store's, as many as there are
    held-out rows, of the classes that are as frequent as among the rows learned from.
    """
    options = lesson.job.evaluate
    quality = Quality()
    if not options.rows:
        return quality
    held = held_out(lesson)
    if held is None or len(held[0]) < FEWEST:
        found = 0 if held is None else len(held[0])
        quality.notes.append(
            f"{found} rows of split {', '.join(options.split)}: at least {FEWEST} are needed to "
            "compare samples with; fit more samples, or set evaluate.split"
        )
        return quality
    values, labels = held
    learned, learned_labels = some_learned(lesson, len(values))
    count = min(len(values), len(learned))
    quality.rows = count
    values, labels = values[:count], labels[:count]
    normal = lesson.normalization
    normals = baselines(lesson)
    with torch.no_grad():
        sets = {
            "real": normal.forth(learned[:count]),
            "prior": draw_rows(prior, lesson, 0, count, stage="quality")[0].float().cpu(),
            **{name: _draw_plain(normal, lesson, count) for name, normal in normals.items()},
        }
    reference = normal.forth(values)
    quality.table["code"] = _compare_codes(
        lesson, sets, reference, labels, {"prior": prior, **normals}
    )
    stored = {name: normal.back(rows) for name, rows in sets.items()}
    quality.pictures = {"held-out": values, **stored}
    if options.decoded and decodable(lesson.parent):
        told(f"decoding {(1 + len(stored)) * count} rows for comparison")
        quality.table["decoded"] = _compare_decoded(
            lesson, stored, values, learned_labels[:count], quality
        )
    return quality


def held_out(lesson: Lesson) -> tuple[Tensor, Tensor] | None:
    """Rows that were not learned from and their classes; None where there are none."""
    options, source = lesson.job.evaluate, lesson.job.source
    known = set(lesson.parent.index["split"].unique().to_pylist())
    overlap = set(options.split) & set(source.split)
    if overlap:
        raise ValueError(
            f"evaluate.split: {', '.join(sorted(overlap))} is learned from; compare with others"
        )
    wanted = [name for name in options.split if name in known]
    if not wanted:
        return None
    dataset = choose(source, split=wanted)
    places = spread(len(dataset), options.rows)
    batch = dataset.take(places)
    values = finite_rows(batch.values.float(), batch.row, source.url)
    names = dataset.classes
    number = {name: i for i, name in enumerate(lesson.space.classes)}
    renamed = [number.get(names[i], -1) if i >= 0 else -1 for i in batch.label.tolist()]
    labels = torch.tensor(renamed) if lesson.classes else torch.full((len(values),), -1)
    return values, labels


def spread(count: int, most: int) -> np.ndarray:
    """At most so many places, spread evenly: rows are in hashed order, so any are a fair draw."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def some_learned(lesson: Lesson, most: int) -> tuple[Tensor, Tensor]:
    """Some of the rows learned from, as stored, with the number of their label (-1: none)."""
    places = spread(len(lesson.dataset), most)
    batch = lesson.dataset.take(places)
    return batch.values.float(), batch.label


def fitting_rows(lesson: Lesson, most: int = 20_000) -> tuple[Tensor, Tensor]:
    """Normalized rows that the baseline is fitted to, and their classes."""
    places = spread(len(lesson.dataset), most)
    batch = lesson.dataset.take(places)
    labels = batch.label if lesson.classes else torch.full_like(batch.label, -1)
    return lesson.normalization.forth(batch.values.float()), labels


def _draw_plain(prior: Mixture, lesson: Lesson, count: int) -> Tensor:
    keys = sample_keys([str(i) for i in range(count)])
    draw = Draw.of(keys, seed=lesson.job.seed, stage="baseline")
    return prior.sample(draw, torch.full((count,), -1), Sampling())


def _compare_codes(
    lesson: Lesson,
    sets: dict[str, Tensor],
    reference: Tensor,
    labels: Tensor,
    priors: dict[str, Prior],
) -> dict[str, dict[str, float]]:
    real = distances(reference, reference)
    found: dict[str, dict[str, float]] = {}
    for name, rows in sets.items():
        measures = compare(
            distances(rows, rows), distances(rows, reference), real, lesson.job.evaluate.neighbors
        )
        measures["spread"] = spread_ratio(rows.flatten(1), reference.flatten(1))
        other = reference if name == "real" else rows  # learned rows are their own nearest
        numbers, distance = nearest_learned(lesson, other)
        measures["nearest_learned"] = float(distance.mean())
        if len(lesson.space.classes) > 1:
            measures["rarest"] = rarest_share(lesson, numbers)
        prior = priors.get(name)
        if prior is not None and prior.exact:
            with torch.no_grad():
                device = next(iter(prior.state_dict().values())).device
                density = prior.log_prob(reference.to(device), labels.to(device)).cpu()
            measures["nll"] = float(-density.double().mean() + lesson.normalization.log_volume())
        found[name] = measures
    return found


def rarest_share(lesson: Lesson, numbers: np.ndarray) -> float:
    """Share of the rarest class among rows learned from, given by their numbers."""
    chosen = lesson.dataset.selection
    labels = chosen.labels[np.searchsorted(chosen.rows, numbers)]
    counts = np.bincount(labels[labels >= 0], minlength=len(lesson.space.classes))
    return float(counts.min() / max(len(labels), 1))


def _compare_decoded(
    lesson: Lesson,
    stored: dict[str, Tensor],
    reference: Tensor,
    learned_labels: Int[Tensor, "n"],
    quality: Quality,
) -> dict[str, dict[str, float]]:
    options, parent, array = lesson.job.evaluate, lesson.parent, lesson.space.array
    fixed = fixed_rows(parent, array, lesson.dataset.selection.rows)

    def decoded(rows: Tensor) -> Pictures | Surfaces:
        opened = opened_rows(parent, array, rows.numpy(), fixed)
        return decode(
            opened, list(range(len(rows))), resolution=options.resolution, points=options.points
        )

    real = decoded(reference)
    sets = {name: decoded(rows) for name, rows in stored.items()}
    if isinstance(real, Pictures):
        return _compare_pictures(lesson, sets, real, learned_labels)
    return _compare_surfaces(lesson, sets, real, quality)


def _compare_pictures(
    lesson: Lesson, sets: dict[str, Any], real: Pictures, labels: Int[Tensor, "n"]
) -> dict[str, dict[str, float]]:
    options = lesson.job.evaluate
    learned, model = sets["real"].values, None
    if options.features == "pca":
        extract = pca_features(learned, options.dimensions)
    elif options.features == "classifier":
        if len(lesson.space.classes) < 2 or bool((labels < 0).any()):
            raise ValueError(
                "evaluate.features: a classifier needs labels, which the rows lack; use pca"
            )
        model = train_classifier(learned, labels, len(lesson.space.classes), seed=lesson.job.seed)
    else:
        model = load_classifier(options.features)
    if model is not None:
        extract = classifier_features(model)
    reference = extract(real.values)
    among = distances(reference, reference)
    found = {}
    for name, pictures in sets.items():
        features = extract(pictures.values)
        found[name] = compare(
            distances(features, features), distances(features, reference), among, options.neighbors
        )
        found[name]["frechet"] = frechet_distance(features, reference)
        found[name]["kid"] = 1000 * kernel_distance(features, reference)
        if model is not None:
            found[name] |= class_measures(model, pictures.values, real.values)
    return found


def _compare_surfaces(
    lesson: Lesson, sets: dict[str, Any], real: Surfaces, quality: Quality
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, surfaces in sets.items():
        count = min(len(surfaces), len(real))
        empty = surfaces.empty / max(len(surfaces) + surfaces.empty, 1)
        if count <= lesson.job.evaluate.neighbors:
            quality.notes.append(f"{name}: {surfaces.empty} rows have no surface")
            found[name] = {"empty": empty}
            continue
        made, other = surfaces.points[:count], real.points[:count]
        found[name] = compare(
            chamfer_distances(made, made),
            chamfer_distances(made, other),
            chamfer_distances(other, other),
            lesson.job.evaluate.neighbors,
        )
        found[name]["empty"] = empty
    return found
