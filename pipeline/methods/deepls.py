"""Deep Local Shapes: a code for every cell near the surface, one small decoder for all cells
(Chabra et al. 2020, "Deep Local Shapes: Learning Local SDF Priors for Detailed 3D Reconstruction").

For shapes and whole scenes that one code cannot hold.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Chabra et al. 2020, ECCV, arXiv 2003.10983"
KINDS = ("shapes",)
STRATEGY = "autodecoder"
STORES = (
    "latents/cells, cells_keys, cells_count: a table of codes a shape; latents/cells_sides: the "
    "side of its other cells; shared/: the decoder"
)


class Config(Schema):
    """Defaults: 16^3 cells, a decoder that learns from the cells of a few shapes in a minute."""

    LATER: ClassVar[tuple[str, ...]] = ("slope",)

    resolution: int = Field(16, ge=1, le=256)
    """Cells an axis of the box [-1, 1]^3 (paper: 32 for objects, from memory)."""
    capacity: int = Field(1024, ge=1)
    """Most cells of a shape; one that needs more fails by name."""
    band: float = Field(0.5, gt=0)
    """A cell is kept if it holds a point this near to the surface, in sides of a cell."""
    code: int = Field(32, ge=1)
    """Entries of a cell's code (paper: 125)."""
    width: int = Field(48, ge=1)
    """Units of a hidden layer (paper: 128)."""
    depth: int = Field(3, ge=1)
    """Number of hidden layers (paper: 4 layers)."""
    slope: float = Field(0.0, ge=0, lt=1)
    """Of the rectifiers below zero (sources differ: leaky, or plain in the re-implementation)."""
    overlap: float = Field(1.5, ge=0.5, le=4)
    """A cell learns from points within this of its center along each axis, in sides of a cell
    (paper sec. 4: 1.5, so that neighboring cells agree where they meet; 0.5: its own only)."""
    neighbors: int = Field(4, ge=0)
    """Cells that a point teaches in one step, drawn of those that it lies in; 0: all of them."""
    clamp: float = Field(0.5, gt=0)
    """Distances beyond this count as this, in sides of a cell."""
    prior: float = Field(1e-2, ge=0)
    """Weight of a code's squared length beside the sum of its errors in cell sides (1/sigma^2)."""
    max_norm: float | None = Field(None, gt=0)
    """Longer codes are scaled back to this length when used (re-implementation: 1)."""
    code_std: float = Field(0.1, ge=0)
    """Standard deviation of codes at the start."""
    rate: float = Field(5e-3, gt=0)
    """Learning rate of the decoder at its highest; it falls along a cosine to a hundredth."""
    code_rate: float = Field(5e-2, gt=0)
    """Learning rate of the codes, as the decoder's (re-implementation: 1e-2 for both)."""
    halve: int = Field(0, ge=0)
    """Training steps after which both rates halve; 0: a cosine."""
    train_steps: int = Field(800, ge=1)
    """Training steps."""
    batch: int = Field(8, ge=1)
    """Shapes a step; each brings hundreds of cells."""
    points: int = Field(256, ge=2)
    """Points a shape and step, a quarter of them uniform in the box."""
    fit_steps: int = Field(150, ge=1)
    """Steps of inferring codes."""
    fit_points: int = Field(1024, ge=2)
    """Points a step of inferring."""
    fit_rate: float = Field(5e-2, gt=0)
    """Rate of inferring at its highest; it falls along a cosine to a hundredth."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: sizes of the paper, from a re-implementation and from memory (there is no
        official code): 32^3 cells, codes of 125, four layers of 128, Adam at 0.01 halved every 500
        epochs, codes within length 1 from std 1/sqrt(125), weight 1e-4. Steps are our choice."""
        paper = cls(
            resolution=32,
            capacity=8192,
            code=125,
            width=128,
            depth=4,
            neighbors=0,
            prior=1e-4,
            clamp=1.0,
            max_norm=1.0,
            code_std=1 / math.sqrt(125),
            rate=1e-2,
            code_rate=1e-2,
            halve=5_000,
            train_steps=20_000,
            batch=8,
            points=8192,
            fit_steps=800,
            fit_points=8192,
            fit_rate=1e-2,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """A decoder of (cell code, local coordinates) to distance, and codes of the occupied cells."""
    import torch

    from pipeline.fields import cells, sides, tables
    from pipeline.fields.activations import Identity, LeakyRelu, Relu
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting.method import Autodecoded, Descend, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine, Steps
    from pipeline.samples import ALL, Size

    if form.kind not in KINDS or not form.signed:
        raise ValueError(
            f"deepls needs shapes with signed distances; this dataset has {form.kind}"
            + ("" if form.signed else " without signs")
        )
    side, empty = config.resolution, config.resolution**3
    inputs = config.code + 3
    bend = LeakyRelu(config.slope) if config.slope else Relu()
    hidden = [Layer(config.width, bend) for _ in range(config.depth)]
    model = cells.CellField(
        MLP(inputs, [*hidden, Layer(1, Identity())]),
        resolution=side,
        capacity=config.capacity,
        code=config.code,
        std=config.code_std,
        max_norm=config.max_norm,
    )
    block = math.ceil(2 * config.overlap) ** 3
    drawn = config.neighbors if 0 < config.neighbors < block else 0

    def enter(bound, rows, batch, draw):
        points = batch.points
        near = (points.distance.abs() <= config.band * 2 / side) & (points.weight > 0)
        wanted = [cells.cells_near(points.coords, near, side)]
        wanted.append(cells.cells_near(points.surface, points.surface_weight > 0, side))
        keys, count = tables.allocate(
            torch.cat(wanted, 1), config.capacity, empty, what="cells", key="method.capacity"
        )
        codes = tables.start_codes(draw, keys, config.code, config.code_std, empty)
        where = tables.key_of(tables.cell_at(points.coords, side), side)
        outside = torch.sign(points.distance) * points.weight
        free = ~tables.held(keys, empty)
        sign = sides.spread(sides.votes(where, outside, empty), free, side)
        inside = sides.packed((sign < 0) & free)
        return tables.tables_of("cells", keys, count, codes) | {"cells_sides.value": inside}

    def loss(bound, batch, draw):
        points = batch.points
        n, p, _ = points.coords.shape
        choice = draw.integers("neighbors", block, p, drawn) if drawn else None
        cell = cells.neighbors(points.coords, side, config.overlap, choice)
        many = cell.shape[2]
        cell = cell.reshape(n, p * many, 3)
        slot, found = tables.find(bound.cells_keys(), tables.key_of(cell, side), empty)
        coords = points.coords.repeat_interleave(many, 1)
        value = cells.cell_values(bound, coords, cell, slot) * (side / 2)
        wanted = (points.distance * (side / 2)).clamp(-config.clamp, config.clamp)
        error = (value - wanted.repeat_interleave(many, 1)).abs()
        weight = found * points.weight.repeat_interleave(many, 1)
        used = tables.filled(bound.cells_keys(), empty)
        prior = (bound.cells().square().sum(-1) * used).sum(1)
        # Sums over a fixed number of pairs: each cell's gradient is what it would be alone.
        return {
            "sdf": torch.where(weight > 0, error * weight, 0.0).sum(1) / (p * many),
            "prior": config.prior * prior / (p * many),
        }

    def read(bound, coords):
        return {"sdf": bound(coords)}

    def falling(rate):
        if config.halve:
            return Steps(rate, config.halve)
        return Cosine(rate, config.train_steps, floor=rate / 100)

    def size(points):
        return Size(pixels=0, near=points - points // 4, uniform=points // 4)

    seen = Size(pixels=0, near=ALL, uniform=ALL, surface=ALL)
    groups = {"net.": Adam(falling(config.rate)), "cells.": Adam(falling(config.code_rate))}
    train = Phase(
        steps=config.train_steps,
        size=size(config.points),
        batch=config.batch,
        updates=(Descend(loss, groups),),
        enter=enter,
        enter_size=seen,
    )
    inferring = Cosine(config.fit_rate, config.fit_steps, floor=config.fit_rate / 100)
    fit = Phase(
        steps=config.fit_steps,
        size=size(config.fit_points),
        updates=(Descend(loss, {"cells.": Adam(inferring)}),),
        enter=enter,
        enter_size=seen,
    )
    field = Field(
        method="deepls",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0},
    )
    return Autodecoded(field, train=(train,), fit=(fit,))
