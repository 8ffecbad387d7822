"""SIREN for surfaces: a sine network whose zero set runs through a cloud of points with normals
(Sitzmann et al. 2020, sec. 4.2). Its values away from the surface are no distances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09661, sec. 4.2"
KINDS = ("points", "shapes")
STRATEGY = "per sample"
STORES = "params: the weights of one sine network a cloud"


class Config(Schema):
    """Defaults: a network that fits a cloud in some ten seconds on a CPU core."""

    width: int = Field(64, ge=1)
    """Units of a sine layer (paper: 256)."""
    depth: int = Field(3, ge=1)
    """Number of sine layers (authors' code: 4, "3 hidden")."""
    omega_first: float = Field(20.0, gt=0)
    """Frequency factor of the first layer (authors' code: 30). Small networks in few steps need it
    lower, or bubbles stay away from the surface; at 10 they are few and large."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others (supplement 1.5)."""
    points: int = Field(320, ge=2)
    """Surface points a step, and as many uniform in the box (paper: 1,400 to 250,000)."""
    box: float = Field(1.0, gt=0)
    """Uniform points lie in [-box, box]^3."""
    surface: float = Field(1500.0, ge=0)
    """Weight of |f| on the surface. Terms are means over their own points; the authors' are over
    both kinds together, so their weights there are twice these (3e3)."""
    normals: float = Field(50.0, ge=0)
    """Weight of 1 - cos(grad f, normal) on the surface (authors' code: 1e2, of both kinds)."""
    away: float = Field(100.0, ge=0)
    """Weight of exp(-sharpness |f|) off the surface (authors' code: 1e2, of both kinds; the paper
    has another value)."""
    sharpness: float = Field(20.0, gt=0)
    """How near zero a value off the surface is held against it. At 100 (authors' code) bubbles of
    the wrong sign stay for thousands of steps, since only points right at their skin are pushed."""
    eikonal: float = Field(50.0, ge=0)
    """Weight of | |grad f| - 1 |, everywhere."""
    rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam, falling to a hundredth (authors' code: 1e-4, constant)."""
    clip: float = Field(1.0, gt=0)
    """Longest gradient (authors' code)."""
    steps: int = Field(500, ge=1)
    """Steps of fitting a cloud (authors' code: 10,000 epochs)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: experiment_scripts/train_sdf.py of the authors' code. The rate falls here."""
        paper = {"width": 256, "depth": 4, "omega_first": 30.0, "points": 1400, "rate": 1e-4}
        paper |= {"away": 50.0, "sharpness": 100.0}
        return {"default": cls(), "paper": cls(**paper, steps=10_000)}


def build(config: Config, form: FormSpec) -> Method:
    """A sine network from (x, y, z) to a value that is negative inside."""
    import torch

    from pipeline.fields.derivatives import value_and_gradient
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers
    from pipeline.fitting.method import Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine
    from pipeline.objectives.eikonal import (
        absolute_eikonal,
        normal_cosine_error,
        on_surface,
        zeros_away,
    )
    from pipeline.samples import Size, require

    if form.kind not in KINDS:
        raise ValueError(f"siren_sdf needs points on surfaces; this dataset has {form.kind}")
    if config.normals and not form.normals:
        raise ValueError(
            f"siren_sdf with normals: {config.normals:g} needs a normal at every point; this "
            "dataset has none. Try method 'igr', or method.normals: 0"
        )
    layers = sine_layers(
        3,
        config.width,
        config.depth,
        1,
        omega_first=config.omega_first,
        omega_hidden=config.omega_hidden,
    )
    model = MLP(3, layers)
    size = Size(pixels=0, surface=config.points)
    require(form, size)

    def loss(bound, batch, draw):
        points = batch.points
        on, weight = points.surface, points.surface_weight
        count = on.shape[1]
        off = (draw.uniform("box", count, 3) * 2 - 1) * config.box
        value, slope = value_and_gradient(bound, torch.cat([on, off], 1))
        some = torch.ones_like(off[..., 0])
        terms = {
            "surface": config.surface * on_surface(value[:, :count], weight),
            "away": config.away * zeros_away(value[:, count:], some, config.sharpness),
            "eikonal": config.eikonal * absolute_eikonal(slope, torch.cat([weight, some], 1)),
        }
        if config.normals:
            error = normal_cosine_error(slope[:, :count], points.normals, weight)
            terms["normals"] = config.normals * error
        return terms

    def read(bound, coords):
        return {"sdf": bound(coords)[..., 0]}

    rate = Cosine(config.rate, config.steps, floor=config.rate / 100)
    phase = Phase(
        steps=config.steps,
        size=size,
        updates=(Descend(loss, {"": Adam(rate, clip=config.clip)}),),
    )
    field = Field(
        method="siren_sdf",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(""),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0},
    )
    return PerSample(field, fit=(phase,))
