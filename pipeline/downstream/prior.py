"""A prior over rows of a store: train it, draw a store of samples, decode some for a look."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.downstream.distribution import Prior
from pipeline.downstream.generative import build_prior
from pipeline.downstream.latents import nearest
from pipeline.downstream.lesson import Lesson, open_lesson
from pipeline.downstream.mixture import Mixture
from pipeline.downstream.sample_store import Made, fixed_rows, sample_plan, write_samples
from pipeline.downstream.training import Hooks, train
from pipeline.draw import Draw, sample_keys
from pipeline.stages.common import peak_bytes
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.downstream import PriorJob
from schemas.store import PRIVATE

JOB = f"{PRIVATE}/prior.json"
DRAWN_TOGETHER = 256
"""Samples that are drawn side by side."""


def new_prior(lesson: Lesson, device: str = "cpu") -> Prior:
    """The untrained distribution of a job, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.job.seed)
        config, shape = lesson.job.method, lesson.normalization.shape
        prior = build_prior(config, lesson.space, shape, lesson.classes)
    return prior.to(device)


def trained(lesson: Lesson) -> bool:
    return lesson.files.done() is not None


def load_prior(lesson: Lesson, device: str = "cpu") -> Prior:
    """The trained distribution of a job."""
    prior, tensors = new_prior(lesson), lesson.files.result()
    if isinstance(prior, Mixture):
        prior.restore(tensors)
    else:
        prior.load_state_dict(tensors)
    return prior.to(device).eval()


def note_job(lesson: Lesson) -> None:
    """Keeps the job with its store, for `open_prior`."""
    lesson.objects.put(JOB, lesson.job.model_dump_json(indent=1).encode())


def open_prior(url: str | Location, device: str = "cpu") -> tuple[Lesson, Prior]:
    """The prior that made a store of samples, to draw more or to ask for densities.

        lesson, prior = open_prior("out/shape-prior.zarr")
        rows, labels = draw_rows(prior, lesson, 1000, 1100)     # samples 1,000 to 1,099
        codes = lesson.normalization.back(rows)

    The store that it learned from must be where it was, with the same rows.
    """
    location = url if isinstance(url, Location) else Location(url=url)
    try:
        data = open_objects(location).get(JOB)
    except FileNotFoundError:
        raise ValueError(f"{location.url} was not made by a prior") from None
    lesson = open_lesson(PriorJob.model_validate_json(data))
    return lesson, load_prior(lesson, device)


def train_prior(
    lesson: Lesson,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Trains, going on from the last checkpoint; rank 0 writes the result. A small record.

    Ranks meet through torch.distributed, which the caller has initialised when `world` > 1.
    """
    started = time.monotonic()
    if trained(lesson):
        return {"steps": 0, "seconds": 0.0, "rows": len(lesson.dataset)}
    hooks = hooks or Hooks()
    hooks.checkpoint = lambda data: lesson.files.put("checkpoint.safetensors", data)
    prior = new_prior(lesson, device)
    if isinstance(prior, Mixture):
        log = _fit_mixture(prior, lesson)
    else:
        prior.prepare(lesson.normalization.forth(values) for values, _ in lesson.parts())
        log = train(
            prior,
            prior.updates,
            lesson.batches(rank, world, device),
            lesson.job.train,
            seed=lesson.job.seed,
            rank=rank,
            world=world,
            hooks=hooks,
            resume=lesson.files.get("checkpoint.safetensors"),
        )
    seconds = time.monotonic() - started
    if rank == 0:
        note = {"log": log, "seconds": seconds, "rows": len(lesson.dataset)}
        lesson.files.finish(dict(prior.state_dict()), note)
    steps = 0 if isinstance(prior, Mixture) else lesson.job.train.steps
    return {
        "steps": steps,
        "seconds": seconds,
        "rows": len(lesson.dataset),
        "peak_bytes": peak_bytes(),
    }


def _fit_mixture(prior: Mixture, lesson: Lesson) -> list[dict[str, int | float]]:
    if not lesson.resident:
        raise ValueError(
            f"a mixture is fitted in memory: {len(lesson.dataset)} rows of {lesson.row_bytes} "
            f"bytes are more than source.resident_bytes = {lesson.job.source.resident_bytes}; "
            "raise it, or choose fewer rows with source.where"
        )
    rows = lesson.normalization.forth(lesson.values)
    return prior.fit(rows, lesson.labels, lesson.job.seed)


# --- samples --------------------------------------------------------------------------------


def sample_labels(
    lesson: Lesson, draw: Draw, first: int, wanted: tuple[str, ...] = ()
) -> Int[Tensor, "n"]:
    """Class of each of the samples that begin at `first`: the wanted ones in turn, or as frequent
    as among the rows learned from; -1 where the prior has none."""
    count = len(draw.keys)
    if not lesson.classes:
        return torch.full((count,), -1, device=draw.keys.device)
    if wanted:
        numbers = [
            lesson.space.classes.index(wanted[(first + i) % len(wanted)]) for i in range(count)
        ]
        return torch.tensor(numbers, device=draw.keys.device)
    shares = torch.bincount(lesson.labels, minlength=lesson.classes).double().cumsum(0)
    place = draw.uniform("class", dtype=torch.float64) * shares[-1].item()
    return torch.searchsorted(shares.to(place.device), place, right=True)


def draw_rows(
    prior: Prior, lesson: Lesson, first: int, last: int, *, stage: str = "sample"
) -> tuple[Float[Tensor, "n *shape"], Int[Tensor, "n"]]:
    """Normalized samples [first, last) with their classes: a sample is a function of its number."""
    parts = []
    sampling = lesson.job.sample
    device = next((t.device for t in prior.state_dict().values()), torch.device("cpu"))
    for start in range(first, last, DRAWN_TOGETHER):
        stop = min(start + DRAWN_TOGETHER, last)
        keys = sample_keys([str(i) for i in range(start, stop)]).to(device)
        draw = Draw.of(keys, seed=lesson.job.seed, stage=stage)
        wanted = sampling.classes if stage == "sample" else ()
        labels = sample_labels(lesson, draw, start, wanted)
        with torch.no_grad():
            parts.append((prior.sample(draw, labels, sampling), labels))
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def nearest_learned(
    lesson: Lesson, rows: Float[Tensor, "n *shape"]
) -> tuple[np.ndarray, np.ndarray]:
    """Row number of, and distance to, the nearest of the rows learned from, all normalized."""
    best = torch.full((len(rows),), torch.inf)
    found = np.zeros(len(rows), np.int64)
    for values, numbers in lesson.parts():
        distance, place = nearest(rows.cpu(), lesson.normalization.forth(values))
        closer = (distance[:, 0] < best).numpy()
        best = torch.minimum(best, distance[:, 0])
        found[closer] = numbers[place[:, 0].numpy()][closer]
    return found, best.numpy()


def make_samples(prior: Prior, lesson: Lesson, first: int, last: int) -> Made:
    """Samples [first, last) as rows of a store."""
    rows, labels = draw_rows(prior, lesson, first, last)
    rows, labels = rows.float().cpu(), labels.cpu()
    finite = torch.isfinite(rows.flatten(1)).all(1)
    clean = torch.where(finite.reshape(-1, *(1 for _ in rows.shape[1:])), rows, 0)
    numbers, distance = nearest_learned(lesson, clean)
    density = np.full(len(rows), np.nan, np.float32)
    if prior.exact:
        with torch.no_grad():
            device = next(iter(prior.state_dict().values())).device
            found = prior.log_prob(clean.to(device), labels.to(device)).cpu()
        density = (found - lesson.normalization.log_volume()).numpy().astype(np.float32)
    names = lesson.space.classes
    return Made(
        values=lesson.normalization.back(rows).numpy(),
        labels=tuple(names[i] if i >= 0 else "" for i in labels.tolist()),
        nearest_row=numbers,
        nearest_distance=distance,
        log_density=density,
    )


def write_sample_store(
    lesson: Lesson, prior: Prior, told: Callable[[int], None] = lambda done: None
) -> None:
    """The job's store: as many samples as it asks for. Goes on where an earlier call ended."""
    job = lesson.job
    fixed = fixed_rows(lesson.parent, lesson.space.array, lesson.dataset.selection.rows)
    plan = sample_plan(
        lesson.parent,
        name=job.name,
        count=job.sample.count,
        unit_rows=job.sample.unit_rows,
        identity=job.sample_identity(lesson.source_hash),
        keys=job.sample_keys(lesson.source_hash),
        parent_hash=lesson.source_hash,
    )

    def draw_unit(first: int, last: int) -> Made:
        told(first)
        return make_samples(prior, lesson, first, last)

    write_samples(lesson.objects, plan, lesson.parent, lesson.space.array, fixed, draw_unit)
