"""What segmentation is read from: fields, and the controls beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.downstream.classify import moments, neighbors, perceptron
from pipeline.downstream.course import Course
from pipeline.downstream.field_features import (
    bound_features,
    row_latent,
    surroundings,
    untrained_bound,
)
from pipeline.downstream.scratch import class_weights, point_scores, weighted
from pipeline.draw import Draw
from pipeline.evaluate.opened import OpenedStore
from schemas.probing import SegmentJob

VOTES = 5
"""Labeled points that answer for a point nearest to them."""
LATENT = 2.0
"""Weight of latents in nearness: a point asks the samples that look like its own."""
Parts = dict[str, Float[Tensor, "p f"]]
"""Inputs of the points of one row, by name."""


@dataclass(frozen=True)
class Reading:
    """A head and what it is given."""

    name: str
    inputs: tuple[str, ...]
    head: Literal["linear", "network", "nearest", "whole"]
    """`whole`: a PointNet of the points of a sample."""


FEATURES = Reading("linear on features", ("features",), "linear")
"""The recipe of semantic SRN: its head is kept."""
FIELDS = (
    FEATURES,
    Reading("linear on features and latent", ("features", "latent"), "linear"),
    Reading("linear on features and surroundings", ("features", "around"), "linear"),
    Reading("linear on features, surroundings, latent", ("features", "around", "latent"), "linear"),
    Reading("network on features and surroundings", ("features", "around"), "network"),
    Reading("whole samples of features and surroundings", ("features", "around"), "whole"),
    Reading("nearest by features and latent", ("features", "latent"), "nearest"),
)
WHOLE = "from scratch: whole samples"
CONTROLS = (
    Reading("from scratch: coordinates", ("coords",), "network"),
    Reading("network on coordinates and latent", ("coords", "latent"), "network"),
    Reading("linear on untrained features", ("untrained",), "linear"),
    Reading(
        "linear on untrained features, surroundings, latent",
        ("untrained", "untrained around", "latent"),
        "linear",
    ),
    Reading("nearest by untrained features and latent", ("untrained", "latent"), "nearest"),
    Reading("nearest by coordinates and latent", ("coords", "latent"), "nearest"),
    Reading("linear on coordinates", ("coords",), "linear"),
)


def readings(
    opened: OpenedStore, row: int, distances: tuple[float, ...], *, whole: bool
) -> tuple[Reading, ...]:
    """Those that a store allows: with latents, and with a network to have been trained.

    Args:
        whole: Also the PointNet of points in space; pictures have the U-Net of `scratch`.
    """
    absent = set()
    if not len(row_latent(opened, row)):
        absent.add("latent")
    if not any(not a.rows and a.name.endswith("weight") for a in opened.plan.arrays):
        absent |= {"untrained", "untrained around"}
    if not distances:
        absent |= {"around", "untrained around"}
    found = [r for r in (*FIELDS, *CONTROLS) if not absent & set(r.inputs)]
    if opened.dims == 3 and whole:
        found.append(Reading(WHOLE, ("coords",), "whole"))
    return tuple(found)


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


def trained_head(
    shown: Sequence[Parts],
    classes: Int[Tensor, "p"],
    count: int,
    job: SegmentJob,
    course: Course,
    reading: Reading,
) -> Callable[[Float[Tensor, "m f"]], Float[Tensor, "m k"]]:
    """Scores of the classes, learned from the labeled points of samples."""
    inputs = torch.cat([inputs_of(reading, parts) for parts in shown])
    if reading.head == "nearest":
        factor = _block_factors(reading, shown)
        scores = neighbors(inputs * factor, classes, count, VOTES)
        return lambda x: scores(x * factor)
    if reading.head == "whole":
        return point_scores(
            [inputs_of(reading, parts) for parts in shown],
            classes.split([len(parts["coords"]) for parts in shown]),
            class_weights(classes, count), job.train, job.seed, course, reading.name,
        )  # fmt: skip
    device = course.device
    inputs, classes = inputs.to(device), classes.to(device)
    weight = class_weights(classes, count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        width, linear = inputs.shape[1], reading.head == "linear"
        net = nn.Linear(width, count) if linear else perceptron(width, job.width, count)
        model = Head(*moments(inputs), net).to(device)

        def loss(index: Int[Tensor, "b"], draw: Draw) -> Float[Tensor, ""]:
            return weighted(model(inputs[index]), classes[index], weight)

        course.learn(model, loss, len(inputs), **job.train.descent(), name=reading.name,
                     seed=job.seed)  # fmt: skip
    return model.requires_grad_(False).cpu()


def _block_factors(reading: Reading, shown: Sequence[Parts]) -> Float[Tensor, "f"]:
    """Each kind of input varies by 1 as a whole, latents by `LATENT`."""
    found = []
    for name in reading.inputs:
        known = torch.cat([parts[name] for parts in shown])
        spread = (known - known.mean(0)).square().sum(1).mean().sqrt().clamp(min=1e-12)
        weight = LATENT if name == "latent" else 1.0
        found.append((weight / spread).expand(known.shape[1]))
    return torch.cat(found)
