"""MetaSDF: weights of a signed distance network after a few learned steps from a learned start
(Sitzmann et al. 2020, "MetaSDF: Meta-Learning Signed Distance Functions").

What it is for: a network of its own for each new shape, in a handful of gradient steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09662"
KINDS = ("shapes",)
STRATEGY = "meta-learning"
STORES = "params: the weights of a network a shape; shared/: their start and the learned step sizes"


class Config(Schema):
    """Defaults: a hundred shapes in about two minutes on two CPU cores."""

    network: Literal["relu", "encoded"] = "relu"
    """Coordinates as they are, or with sines and cosines of them in front (authors' "PE")."""
    octaves: int = Field(5, ge=1)
    """encoded: sines and cosines of 2^k x, k below this (authors' code: 5, without pi)."""
    width: int = Field(64, ge=1)
    """Units of a hidden layer (authors' code: 512)."""
    depth: int = Field(3, ge=1)
    """Hidden layers (authors' code: 8; encoded 6)."""
    inner_steps: int = Field(3, ge=1)
    """Gradient steps from the start (authors' code: 5; encoded 3)."""
    inner_rate: float = Field(5e-2, gt=0)
    """Step sizes before training; they may become negative (authors' code: 5e-3)."""
    learned: Literal["parameter", "tensor"] = "parameter"
    """A learned size for each step and number, or each step and tensor (encoded: tensor)."""
    order: Literal[1, 2] = 2
    """2 differentiates through the steps (MAML); 1 diverges at the same rates, and is cheaper."""
    points: int = Field(256, ge=2)
    """Points of an inner step, half near the surface (authors' code: 12,000; encoded 4,000)."""
    query_points: int = Field(512, ge=2)
    """Points of the outer loss (authors' code: 24,000; encoded 8,000)."""
    balanced: bool = False
    """Inside and outside points count alike (authors' data: as many of either)."""
    rate: float = Field(6e-3, gt=0)
    """Learning rate of Adam in training (authors' code: 5e-4)."""
    halve: int = Field(0, ge=0)
    """Training steps after which it halves (authors' code: 350 epochs); 0: a cosine to a tenth."""
    clip: float = Field(0.5, gt=0)
    """Longest outer gradient (authors' code clips every entry at 0.5)."""
    train_steps: int = Field(600, ge=1)
    """Training steps."""
    batch: int = Field(12, ge=1)
    """Shapes a training step (authors' code: 32)."""
    fit_steps: int = Field(0, ge=0)
    """More steps in a fit, at `fit_rate`."""
    fit_rate: float = Field(1e-2, gt=0)
    """Their size (authors' code)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper` and `paper-encoded`: the authors' planes (3,000 epochs of 1,780 shapes, 32 a
        step)."""
        epoch = math.ceil(1780 / 32)
        common = {"rate": 5e-4, "halve": 350 * epoch, "train_steps": 3000 * epoch, "batch": 32}
        common |= {"width": 512, "inner_rate": 5e-3, "balanced": True}
        relu = {"depth": 8, "inner_steps": 5, "points": 12_000, "query_points": 24_000}
        encoded = {"network": "encoded", "depth": 6, "inner_steps": 3, "learned": "tensor"}
        encoded |= {"points": 4000, "query_points": 8000}
        return {
            "default": cls(),
            "paper": cls(**common, **relu),
            "paper-encoded": cls(**common, **encoded),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A network from (x, y, z) to side and distance, with learned start and step sizes."""
    from pipeline.fields.side_and_distance import (
        SideAndDistance,
        side_and_distance_terms,
        signed,
    )
    from pipeline.fitting.method import Descend, Field, Inner, MetaLearned, Phase
    from pipeline.fitting.optimizers import Adam, Sgd
    from pipeline.fitting.schedules import Cosine, Steps
    from pipeline.objectives.balance import balanced_weight
    from pipeline.samples import Size

    if form.kind not in KINDS or not form.signed:
        raise ValueError(
            f"metasdf needs shapes with signed distances; this dataset has {form.kind}"
            + ("" if form.signed else " without signs")
        )
    octaves = config.octaves if config.network == "encoded" else 0
    model = SideAndDistance(config.width, config.depth, octaves=octaves)

    def terms(bound, batch, deviations):
        points = batch.points
        weight = points.weight
        if config.balanced:
            weight = balanced_weight(points.distance, weight)
        return side_and_distance_terms(bound(points.coords), points.distance, weight, deviations)

    def inner_loss(bound, batch, draw):
        return terms(bound, batch, bound.inner)

    def outer_loss(bound, batch, draw):
        return terms(bound, batch, bound.outer)

    def read(bound, coords):
        return {"sdf": signed(bound(coords))}

    def size(points):
        return Size(pixels=0, near=points - points // 2, uniform=points // 2)

    rate = Cosine(config.rate, config.train_steps, floor=config.rate / 10)
    if config.halve:
        rate = Steps(config.rate, config.halve)
    adam = Adam(rate, clip=config.clip)
    outer = Phase(
        steps=config.train_steps,
        size=size(config.query_points),
        batch=config.batch,
        updates=(
            Descend(outer_loss, {"start.": adam, "rate.": adam, "inner": adam, "outer": adam}),
        ),
    )
    further = Phase(
        config.fit_steps,
        size(config.points),
        (Descend(inner_loss, {"field.net.": Sgd(config.fit_rate)}),),
    )
    field = Field(
        method="metasdf",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0},
    )
    return MetaLearned(
        field,
        rows=("field.net.",),
        inner=Inner(
            inner_loss,
            steps=config.inner_steps,
            rate=config.inner_rate,
            size=size(config.points),
            learned=config.learned,
            order=config.order,
        ),
        train=(outer,),
        fit=(further,) if config.fit_steps else (),
    )
