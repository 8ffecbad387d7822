"""DeepSDF: one decoder for all shapes and a code for each (Park et al. 2019, "DeepSDF: Learning
Continuous Signed Distance Functions for Shape Representation").

What it is for: a space of shapes in which new ones are found by optimizing a code, also from a part
of their surface (`fit: {context: view}`), and between two of which lie plausible others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Park et al. 2019, CVPR, arXiv 1901.05103"
KINDS = ("shapes",)
STRATEGY = "autodecoder"
STORES = "latents/code: one code a shape; shared/: the decoder"


class Config(Schema):
    """Defaults: a decoder that learns a hundred shapes in about a minute on two CPU cores."""

    code: int = Field(64, ge=1)
    """Entries of a code (paper: 256)."""
    width: int = Field(128, ge=1)
    """Units of a hidden layer (paper: 512)."""
    depth: int = Field(3, ge=1)
    """Number of hidden layers (paper: 8)."""
    skip: int | None = Field(None, ge=1)
    """Hidden layer (from 0) whose input also gets the code and coordinates (paper: 4)."""
    weight_norm: bool = False
    """Weight normalization of the hidden layers (as in the paper)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training (paper: 0.2)."""
    clamp: float = Field(0.1, gt=0)
    """Distances beyond this count as this (unit-sphere units; sec. 3)."""
    balanced: bool = False
    """Inside and outside points of a shape count alike (authors' code: half a batch of each)."""
    code_std: float = Field(0.0, ge=0)
    """Standard deviation of codes before training; 0: 1 / sqrt(code), as the authors'."""
    max_norm: float | None = Field(1.0, gt=0)
    """Longer codes are scaled back to this length when used (authors' code: 1)."""
    prior: float = Field(1e-4, ge=0)
    """Weight of the code's length in training and of its mean square in fitting (authors' code)."""
    prior_ramp: int = Field(500, ge=0)
    """Training steps in which the prior's weight rises to full (authors' code: 100 epochs)."""
    rate: float = Field(5e-3, gt=0)
    """Learning rate of the decoder at the start (authors' code: 5e-4)."""
    code_rate: float = Field(5e-3, gt=0)
    """Learning rate of the codes at the start (authors' code: 1e-3)."""
    halve: int = Field(0, ge=0)
    """Training steps after which both rates halve; 0: a cosine to a hundredth."""
    train_steps: int = Field(1500, ge=1)
    """Training steps."""
    batch: int = Field(64, ge=1)
    """Shapes a step (authors' code: 64)."""
    points: int = Field(128, ge=2)
    """Points a shape and step (authors' code: 16,384); two thirds near the surface."""
    fit_steps: int = Field(300, ge=1)
    """Steps of inferring a code (authors' code: 800)."""
    fit_points: int = Field(512, ge=2)
    """Points a step of inferring (authors' code: 8,000)."""
    fit_rate: float = Field(5e-3, gt=0)
    """Rate of inferring, a tenth of it in the second half (authors' code)."""
    fit_std: float = Field(0.01, ge=0)
    """Standard deviation of a code before it is inferred (authors' code)."""
    fit_from: Literal["samples", "scan"] = "samples"
    """What a code is inferred from: distances at sampled points, or (sec. 6.3, completion) surface
    points with normals: distances of `eta` on either side of them, and free space in front."""
    eta: float = Field(0.02, gt=0)
    """Distance along the normals at which a scan's surface points say +eta and -eta."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: the authors' code and specs (examples/chairs/specs.json; reconstruct.py).

        2,001 epochs become steps for the 4,746 training chairs at 64 a step: 75 steps an epoch.
        Their batches hold as many outside as inside points; ours are unbiased draws, weighted so.
        """
        epoch = math.ceil(4746 / 64)
        paper = cls(
            code=256,
            width=512,
            depth=8,
            skip=4,
            weight_norm=True,
            dropout=0.2,
            rate=5e-4,
            code_rate=1e-3,
            prior_ramp=100 * epoch,
            halve=500 * epoch,
            train_steps=2001 * epoch,
            batch=64,
            points=16_384,
            fit_steps=800,
            fit_points=8_000,
            balanced=True,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """A decoder of (code, x, y, z) to signed distance, and the two optimizations around it."""
    from pipeline.fields.activations import Relu, Tanh
    from pipeline.fields.conditioning import CodedField
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting.method import Autodecoded, Descend, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine, Steps
    from pipeline.objectives.balance import balanced_weight
    from pipeline.objectives.distance import CodedDistanceError, clamped_l1
    from pipeline.objectives.priors import code_mean_square, code_norm
    from pipeline.objectives.scan import scan_l1
    from pipeline.samples import Size

    if form.kind not in KINDS or not form.signed:
        raise ValueError(
            f"deepsdf needs shapes with signed distances; this dataset has {form.kind}"
            + ("" if form.signed else " without signs")
        )
    if config.fit_from == "scan" and not form.normals:
        raise ValueError(
            "deepsdf with fit_from: scan needs surface points with normals; this dataset of "
            f"{form.kind} has no normals"
        )
    inputs = config.code + 3
    if config.skip is not None and not 0 < config.skip < config.depth:
        raise ValueError(f"skip: {config.skip} is not a hidden layer 1 .. {config.depth - 1}")
    layers = [
        Layer(
            config.width - inputs if config.skip == i + 1 else config.width,
            Relu(),
            skip=config.skip == i,
            weight_norm=config.weight_norm,
            dropout=config.dropout,
        )
        for i in range(config.depth)
    ]
    if min(layer.width for layer in layers) < 1:
        raise ValueError(f"width {config.width} leaves no room for a skip of {inputs} inputs")
    net = MLP(inputs, [*layers, Layer(1, Tanh())])
    std = config.code_std or 1 / math.sqrt(config.code)
    model = CodedField(config.code, net, std=std, max_norm=config.max_norm)

    def error(bound, batch):
        points = batch.points
        sdf = bound(points.coords)[..., 0]
        weight = points.weight
        if config.balanced:
            weight = balanced_weight(points.distance, weight)
        return clamped_l1(sdf, points.distance, weight, config.clamp)

    def train_loss(bound, batch, draw):
        ramp = ((draw.step + 1) / max(config.prior_ramp, 1)).clamp(max=1.0)
        prior = config.prior * ramp * code_norm(bound.code.value)
        return {"sdf": error(bound, batch), "prior": prior}

    def fit_loss(bound, batch, draw):
        prior = config.prior * code_mean_square(bound.code.value)
        if config.fit_from == "scan":
            return {**scan_l1(bound, batch.points, config.eta, config.clamp), "prior": prior}
        return {"sdf": error(bound, batch), "prior": prior}

    if config.fit_from == "samples" and not config.balanced:
        fit_loss = CodedDistanceError(config.clamp, config.prior)  # a compiled loop knows it

    def begin(bound, rows, batch, draw):
        return {"code.value": rows["code.value"] * (config.fit_std / std)}

    def read(bound, coords):
        return {"sdf": bound(coords)[..., 0]}

    def falling(rate):
        if config.halve:
            return Steps(rate, config.halve)
        return Cosine(rate, config.train_steps, floor=rate / 100)

    def size(points):
        return Size(pixels=0, near=points - points // 3, uniform=points // 3)

    seen = size(config.fit_points)
    if config.fit_from == "scan":  # each surface point is two points of known distance
        third = max(config.fit_points // 3, 1)
        seen = Size(pixels=0, surface=third, uniform=third)
    train = Phase(
        steps=config.train_steps,
        size=size(config.points),
        batch=config.batch,
        updates=(
            Descend(
                train_loss,
                {"net.": Adam(falling(config.rate)), "code.": Adam(falling(config.code_rate))},
            ),
        ),
    )
    fit = Phase(
        steps=config.fit_steps,
        size=seen,
        updates=(
            Descend(
                fit_loss,
                {"code.": Adam(Steps(config.fit_rate, max(config.fit_steps // 2, 1), 0.1))},
            ),
        ),
        enter=begin,
    )
    field = Field(
        method="deepsdf",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0, "clamp": config.clamp},
    )
    return Autodecoded(field, train=(train,), fit=(fit,))
