"""A small sinusoidal network of signed distance for each shape.

The network is SIREN's (Sitzmann et al. 2020); the supervision is DeepSDF's (Park et al. 2019):
sampled distances, clamped, instead of SIREN's boundary-value problem on oriented points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "network: Sitzmann et al. 2020, arXiv 2006.09661; loss: Park et al. 2019, arXiv 1901.05103"
KINDS = ("shapes",)
STRATEGY = "per sample"
STORES = "params: the weights of one sine network a shape"


class Config(Schema):
    """Defaults: a network of 8,641 weights that fits a part in about a second on a CPU core."""

    width: int = Field(64, ge=1)
    """Units of a sine layer."""
    depth: int = Field(3, ge=1)
    """Number of sine layers (before the linear output)."""
    omega_first: float = Field(20.0, gt=0)
    """Frequency factor of the first layer."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others (SIREN sec. 3.2)."""
    clamp: float = Field(0.1, gt=0)
    """Distances beyond this count as this (unit-sphere units; DeepSDF sec. 3)."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam at its highest; it falls along a cosine to a hundredth."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to a hundredth over `steps`, or stays."""
    steps: int = Field(300, ge=1)
    """Most steps a shape."""
    points: int = Field(1024, ge=2)
    """Points a step, two thirds of them near the surface."""
    target_error: float | None = Field(None, gt=0)
    """A shape is done when its mean clamped error (a running mean) is this; absent: all steps."""
    start: Literal["own", "common"] = "own"
    """Every shape starts from weights of its own, or all from the same."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: size and optimizer of SIREN's shapes (experiment_scripts/train_sdf.py): 4 sine
        layers x 256 ("3 hidden"), Adam at 1e-4; 10,000 steps of 4,096 points are our choice, since
        they count epochs over a scan."""
        paper = {"width": 256, "depth": 4, "omega_first": 30.0, "rate": 1e-4, "steps": 10_000}
        return {"default": cls(), "paper": cls(**paper, points=4096, schedule="constant")}


def build(config: Config, form: FormSpec) -> Method:
    """A sine network from (x, y, z) to signed distance, negative inside."""
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers
    from pipeline.fitting.method import Descend, Field, PerSample, Phase, Target
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant, Cosine
    from pipeline.objectives.distance import DistanceError
    from pipeline.samples import Size

    if form.kind not in KINDS or not form.signed:
        raise ValueError(
            f"sdf needs shapes with signed distances; this dataset has {form.kind}"
            + (" (try 'siren' for images)" if form.kind == "images" else " without signs")
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

    def read(bound, coords):
        return {"sdf": bound(coords)[..., 0]}

    rate = Constant(config.rate)
    if config.schedule == "cosine":
        rate = Cosine(config.rate, config.steps, floor=config.rate / 100)
    target = None
    if config.target_error is not None:
        target = Target(config.target_error, "sdf", smooth=0.9)
    phase = Phase(
        steps=config.steps,
        size=Size(pixels=0, near=config.points - config.points // 3, uniform=config.points // 3),
        updates=(Descend(DistanceError(config.clamp), {"": Adam(rate)}),),
        target=target,
    )
    field = Field(
        method="sdf",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(""),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0, "clamp": config.clamp},
    )
    return PerSample(field, fit=(phase,), start=config.start)
