"""Local Implicit Grids: a prior of small parts, and a scene as overlapping parts on a grid
(Jiang et al. 2020, "Local Implicit Grid Representations for 3D Scenes").

For whole scenes from oriented points, with a decoder that learned parts of other shapes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Jiang et al. 2020, CVPR, arXiv 2003.08981"
KINDS = ("shapes", "points")
STRATEGY = "autodecoder"
STORES = (
    "latents/nodes, nodes_keys, nodes_count: a table of codes a scene; latents/nodes_sides: the "
    "side of cells without codes; shared/: the decoder of parts"
)


class Config(Schema):
    """Defaults: parts of a quarter of the unit, a decoder that learns them in about a minute."""

    resolution: int = Field(16, ge=1, le=255)
    """Cells an axis of the box [-1, 1]^3; nodes lie on their corners, a part is two cells wide
    (authors: parts of 0.2 for unit objects, nodes half a part apart)."""
    capacity: int = Field(1536, ge=8)
    """Most nodes of a sample; one that needs more fails by name."""
    code: int = Field(12, ge=1)
    """Entries of a node's code (paper: 32, from memory)."""
    width: int = Field(4, ge=1)
    """Hidden layers have 16, 8, 4, 2 and 1 times this (paper: 32, from memory)."""
    slope: float = Field(0.2, ge=0, lt=1)
    """Of the leaky rectifiers (TensorFlow's default, as in the authors' code)."""
    move: float = Field(0.04, gt=0)
    """Points are moved along their normals by this standard deviation, in parts; the label is the
    sign of the move (authors: 0.01 m for parts of 0.25 m)."""
    band: float = Field(0.5, gt=0)
    """In training: cells that hold a point this near to the surface, in sides, get codes."""
    prior: float = Field(1e-2, ge=0)
    """Weight of the mean length of the codes (authors' default: 1e-2)."""
    empty: Literal["enclosed", "outside"] = "enclosed"
    """Cells of which not all corners have codes: all outside (authors' extraction, which leaves a
    wall inside of closed shapes, to be removed), or inside where codes enclose them and no point's
    normal looks into them."""
    code_std: float = Field(0.02, ge=0)
    """Standard deviation of codes before they are optimized (authors' code)."""
    train_std: float = Field(0.1, ge=0)
    """Standard deviation of codes before training."""
    rate: float = Field(1e-2, gt=0)
    """Learning rate of the decoder at its highest; it falls along a cosine to a hundredth."""
    code_rate: float = Field(5e-2, gt=0)
    """Learning rate of the codes in training, as the decoder's."""
    train_steps: int = Field(600, ge=1)
    """Training steps."""
    batch: int = Field(8, ge=1)
    """Shapes a step; each brings hundreds of parts."""
    points: int = Field(192, ge=2)
    """Points a shape and step, each seen by eight parts; a quarter uniform in the box."""
    fit_steps: int = Field(200, ge=1)
    """Steps of optimizing the codes of a scene (authors' code: 10,000)."""
    fit_points: int = Field(1024, ge=1)
    """Oriented points a step (authors' code: 10,000)."""
    fit_rate: float = Field(5e-2, gt=0)
    """Learning rate of the codes of a scene (authors' code: 1e-3)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: the authors' code (optimization of scenes); sizes of the decoder and its
        training are from memory: no training code was released, so its steps are our choice."""
        paper = cls(
            resolution=20,
            capacity=9261,
            code=32,
            width=32,
            empty="outside",
            train_steps=50_000,
            batch=32,
            points=2048,
            rate=1e-3,
            code_rate=1e-3,
            fit_steps=10_000,
            fit_points=10_000,
            fit_rate=1e-3,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """A decoder of parts, and codes of the nodes around a scene's points."""
    import torch
    import torch.nn.functional as F

    from pipeline.fields import nodes, sides, tables
    from pipeline.fields.activations import Identity, LeakyRelu
    from pipeline.fields.initializers import Constant, Normal
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting.method import Autodecoded, Descend, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine
    from pipeline.samples import ALL, Size

    if form.kind not in KINDS or not form.normals:
        raise ValueError(
            f"lig needs shapes or points with normals; this dataset has {form.kind}"
            + ("" if form.normals else " without normals")
        )
    side = config.resolution
    empty = (side + 1) ** 3
    inputs, layers, fan_in = config.code + 3, [], config.code + 3
    for number, part in enumerate((16, 8, 4, 2, 1)):
        fan_in += inputs if number else 0
        start = {"weight": Normal(math.sqrt(2 / fan_in)), "bias": Constant(0.0)}
        activation = LeakyRelu(config.slope)
        layers.append(Layer(part * config.width, activation, start, skip=number > 0))
        fan_in = part * config.width
    model = nodes.NodeField(
        MLP(inputs, [*layers, Layer(1, Identity())]),
        resolution=side,
        capacity=config.capacity,
        code=config.code,
        std=config.code_std,
    )
    sigma = config.move * 2 * 2 / side

    def started(draw, coords, valid, std, votes):
        """The nodes whose part holds a valid point: the corners of the points' cells."""
        key = tables.key_of(nodes.corners(tables.cell_at(coords, side)), side + 1)
        wanted = torch.where(valid[..., None], key, empty).flatten(1)
        keys, count = tables.allocate(
            wanted, config.capacity, empty, what="nodes", key="method.capacity"
        )
        codes = tables.start_codes(draw, keys, config.code, std, empty)
        inside = torch.zeros(len(keys), side**3, dtype=torch.bool, device=keys.device)
        if config.empty == "enclosed":
            free = ~nodes.complete_cells(keys, side)
            sign = sides.spread(votes, free, side)
            inside = free & ~sides.open_to_the_box(free, side) & (sign <= 0)
        found = tables.tables_of("nodes", keys, count, codes)
        return found | {"nodes_sides.value": sides.packed(inside)}

    def begin_signed(bound, rows, batch, draw):
        points = batch.points
        near = (points.distance.abs() <= config.band * 2 / side) & (points.weight > 0)
        coords = torch.cat([points.coords, points.surface], 1)
        valid = torch.cat([near, points.surface_weight > 0], 1)
        where = tables.key_of(tables.cell_at(points.coords, side), side)
        votes = sides.votes(where, torch.sign(points.distance) * points.weight, side**3)
        return started(draw, coords, valid, config.train_std, votes)

    def begin_oriented(std):
        def begin(bound, rows, batch, draw):
            points = batch.points
            away = 2 * sigma * points.normals
            coords = torch.cat([points.surface, points.surface - away, points.surface + away], 1)
            valid = (points.surface_weight > 0).repeat(1, 3)
            look = points.normals * (1.5 * 2 / side)
            ahead = tables.cell_at(
                torch.cat([points.surface + look, points.surface - look], 1), side
            )
            vote = torch.cat([points.surface_weight, -points.surface_weight], 1)
            votes = sides.votes(tables.key_of(ahead, side), vote, side**3)
            return started(draw, coords, valid, std, votes)

        return begin

    def nine_terms(bound, coords, outside, weight):
        """Cross entropy of each corner's logit and of the mix, where there are codes."""
        cell = tables.cell_at(coords, side)
        slot, found = nodes.corner_slots(bound.nodes_keys(), cell, side)
        codes = tables.gather(bound.nodes(), slot.flatten(1)).reshape(*slot.shape, -1)
        value = nodes.corner_values(bound, coords, cell, codes)
        mix = (value * nodes.corner_weights(coords, cell, side)).sum(-1, keepdim=True)
        logits = torch.cat([value, mix], -1)
        used = torch.cat([found, found.all(-1, keepdim=True)], -1) * weight[..., None]
        target = outside[..., None].to(logits.dtype).expand_as(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        entropy = torch.where(used > 0, entropy * used, 0.0)
        filled = tables.filled(bound.nodes_keys(), empty)
        length = bound.nodes().square().sum(-1).clamp(min=1e-12).sqrt()
        prior = (length * filled).sum(1) / filled.sum(1).clamp(min=1)
        return {"sign": entropy.mean((1, 2)), "prior": config.prior * prior}

    def signed_loss(bound, batch, draw):
        points = batch.points
        return nine_terms(bound, points.coords, points.distance > 0, points.weight)

    def oriented_loss(bound, batch, draw):
        points = batch.points
        move = draw.normal("move", points.surface.shape[1]) * sigma
        coords = points.surface + move[..., None] * points.normals
        return nine_terms(bound, coords, move > 0, points.surface_weight)

    def read(bound, coords):
        return {"occupancy": torch.sigmoid(-bound(coords))}

    def falling(rate, steps):
        return Adam(Cosine(rate, steps, floor=rate / 100))

    points = config.points
    oriented = Size(pixels=0, surface=points)
    signed = Size(pixels=0, near=points - points // 4, uniform=points // 4)
    shell, cloud = Size(pixels=0, near=ALL, surface=ALL), Size(pixels=0, surface=ALL)
    steps = config.train_steps
    groups = {
        "net.": falling(config.rate, steps),
        "nodes.": falling(config.code_rate, steps),
    }
    train = Phase(
        steps=steps,
        size=signed if form.signed else oriented,
        batch=config.batch,
        updates=(Descend(signed_loss if form.signed else oriented_loss, groups),),
        enter=begin_signed if form.signed else begin_oriented(config.train_std),
        enter_size=shell if form.signed else cloud,
    )
    fit = Phase(
        steps=config.fit_steps,
        size=Size(pixels=0, surface=config.fit_points),
        updates=(Descend(oriented_loss, {"nodes.": falling(config.fit_rate, config.fit_steps)}),),
        enter=begin_oriented(config.code_std),
        enter_size=cloud,
    )
    field = Field(
        method="lig",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "occupancy", "inside": "high", "level": 0.5},
    )
    return Autodecoded(field, train=(train,), fit=(fit,))
