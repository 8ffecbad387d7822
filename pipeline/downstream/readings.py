"""What segmentation is read from: fields, and the controls beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.downstream.classify import moments, perceptron
from pipeline.downstream.course import Course
from pipeline.downstream.field_features import (
    bound_features,
    row_latent,
    surroundings,
    untrained_bound,
)
from pipeline.draw import Draw
from pipeline.evaluate.opened import OpenedStore
from schemas.probing import SegmentJob

Parts = dict[str, Float[Tensor, "p f"]]
"""Inputs of the points of one row, by name."""


@dataclass(frozen=True)
class Reading:
    """A head and what it is given."""

    name: str
    inputs: tuple[str, ...]
    linear: bool


FEATURES = Reading("linear on features", ("features",), True)
"""The recipe of semantic SRN: its head is kept."""
FIELDS = (
    FEATURES,
    Reading("linear on features and latent", ("features", "latent"), True),
    Reading("linear on features and surroundings", ("features", "around"), True),
    Reading("linear on features, surroundings, latent", ("features", "around", "latent"), True),
    Reading("network on features and surroundings", ("features", "around"), False),
)
CONTROLS = (
    Reading("from scratch: coordinates", ("coords",), False),
    Reading("network on coordinates and latent", ("coords", "latent"), False),
    Reading("linear on untrained features", ("untrained",), True),
    Reading(
        "linear on untrained features, surroundings, latent",
        ("untrained", "untrained around", "latent"),
        True,
    ),
    Reading("linear on coordinates", ("coords",), True),
)


def readings(opened: OpenedStore, row: int, distances: tuple[float, ...]) -> tuple[Reading, ...]:
    """Those that a store allows: with latents, and with a network to have been trained."""
    absent = set()
    if not len(row_latent(opened, row)):
        absent.add("latent")
    if not any(not a.rows and a.name.endswith("weight") for a in opened.plan.arrays):
        absent |= {"untrained", "untrained around"}
    if not distances:
        absent |= {"around", "untrained around"}
    return tuple(r for r in (*FIELDS, *CONTROLS) if not absent & set(r.inputs))


def parts_of(
    opened: OpenedStore,
    row: int,
    coords: Float[Tensor, "p d"],
    chosen: tuple[Reading, ...],
    job: SegmentJob,
) -> Parts:
    """All that the readings need of points of a row."""
    needed = {name for reading in chosen for name in reading.inputs}
    parts = {"coords": coords}
    method, bound = opened.method, opened.bound(row)
    parts["features"] = bound_features(method, bound, coords)
    if "around" in needed:
        parts["around"] = surroundings(opened, bound, coords, job.surroundings)
    if "latent" in needed:
        parts["latent"] = row_latent(opened, row).expand(len(coords), -1)
    if "untrained" in needed:
        bound = untrained_bound(opened, row, job.seed + 1)
        parts["untrained"] = bound_features(method, bound, coords)
        if "untrained around" in needed:
            parts["untrained around"] = surroundings(opened, bound, coords, job.surroundings)
    return parts


def inputs_of(reading: Reading, parts: Parts) -> Float[Tensor, "p f"]:
    return torch.cat([parts[name] for name in reading.inputs], 1)


class Head(nn.Module):
    """Standardized inputs, then a linear layer or a network."""

    def __init__(self, mean: Tensor, scale: Tensor, net: nn.Module):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.net = net

    def forward(self, x: Float[Tensor, "p f"]) -> Float[Tensor, "p k"]:
        return self.net((x - self.mean) / self.scale)


def class_weights(classes: Int[Tensor, "p"], count: int) -> Float[Tensor, "k"]:
    """Rare classes weigh more: one over the root of their number; 1 on the mean of the points."""
    weight = 1 / torch.bincount(classes, minlength=count).clamp(min=1).float().sqrt()
    return weight / weight[classes].mean()


def weighted(
    scores: Float[Tensor, "p k"], classes: Int[Tensor, "p"], weight: Float[Tensor, "k"]
) -> Float[Tensor, ""]:
    """Cross-entropy whose value does not depend on what else is in a batch."""
    return (F.cross_entropy(scores, classes, reduction="none") * weight[classes]).mean()


def trained_head(
    inputs: Float[Tensor, "p f"],
    classes: Int[Tensor, "p"],
    count: int,
    job: SegmentJob,
    course: Course,
    reading: Reading,
) -> Callable[[Float[Tensor, "m f"]], Int[Tensor, "m"]]:
    """A `Head` trained by cross-entropy on labeled points."""
    device = course.device
    inputs, classes = inputs.to(device), classes.to(device)
    weight = class_weights(classes, count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        width = inputs.shape[1]
        net = nn.Linear(width, count) if reading.linear else perceptron(width, job.width, count)
        model = Head(*moments(inputs), net).to(device)

        def loss(index: Int[Tensor, "b"], draw: Draw) -> Float[Tensor, ""]:
            return weighted(model(inputs[index]), classes[index], weight)

        course.learn(model, loss, len(inputs), **job.train.descent(), name=reading.name,
                     seed=job.seed)  # fmt: skip
    model.requires_grad_(False).cpu()
    return model
