"""SIREN for the wave equation: a sine network of time and place for each problem, found from the
equation and the start alone (Sitzmann et al. 2020, sec. 4.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09661, sec. 4.4"
KINDS = ("equations",)
STRATEGY = "per sample"
STORES = "params: the weights of one sine network a wave equation"


class Config(Schema):
    """Defaults: a network that fits a wave on a line in some five seconds on a CPU core; in the
    plane take the preset `plane`."""

    width: int = Field(64, ge=1)
    """Units of a sine layer (authors' code: 512)."""
    depth: int = Field(3, ge=1)
    """Number of sine layers (authors' code: 4, "3 hidden")."""
    omega_first: float = Field(20.0, gt=0)
    """Frequency factor of the first layer (authors' code: 30). Where the waves are long beside the
    box, less is learned faster."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others (supplement 1.5)."""
    activation: Literal["sine", "tanh"] = "sine"
    """`tanh`: layers with which the paper compares, started as PyTorch starts them."""
    points: int = Field(256, ge=4)
    """Places a step (authors' code: 340^2)."""
    first: float = Field(0.25, gt=0, lt=1)
    """Share of them at the start, half of these near the sources (authors' code: 2,000)."""
    initial: float = Field(0.3, gt=0)
    """Weight of the start's values beside the equation's residual, which is multiplied by the
    variance of the narrowest source (authors' code: sums, this times N / 10: 0.1 here)."""
    rest: float = Field(1.0, gt=0)
    """Weight of the start's slopes in time, multiplied by that source's deviation (authors' code:
    sums, this times N / 100: 0.45 here)."""
    grow: float = Field(0.3, ge=0, le=1)
    """Share of the steps in which the times that are seen grow to the whole duration (authors'
    code: 1); 0: all of it from the first."""
    norm: Literal["square", "absolute"] = "square"
    """Of residuals (authors' code: absolute)."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam, falling to a hundredth (authors' code: 2e-5, constant)."""
    clip: float | None = Field(0.01, gt=0)
    """Gradients of a row longer than this are scaled back to it; null: none (authors' code). A
    single long one can blow the hidden weights up, after which the wave goes to zero."""
    steps: int = Field(1000, ge=1)
    """Steps a problem (authors' code: 100,000)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: experiment_scripts/train_wave_equation.py of the authors' code. The rate falls
        here; weights are those for a source of variance 5e-4. `plane`: waves in the plane in some
        five seconds each, a third nearer to the reference than by the defaults."""
        paper = {"width": 512, "depth": 4, "omega_first": 30.0, "points": 340**2, "rate": 2e-5}
        paper |= {"first": 2000 / 340**2, "initial": 0.1, "rest": 0.45, "grow": 1.0, "clip": None}
        return {
            "default": cls(),
            "plane": cls(points=512, steps=600),
            "paper": cls(**paper, norm="absolute", steps=100_000),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A network from t and x (, y) to the height of a wave."""
    import torch

    from pipeline.fields.jets import jets
    from pipeline.fields.sine import sine_or_tanh
    from pipeline.fitting.method import Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine, Ramp
    from pipeline.objectives.waves import gaussians, places_near, size_of, speeds_at
    from pipeline.problems import require_equation
    from pipeline.samples import Size

    require_equation("wave", form)
    d, first = form.dims - 1, max(2, round(config.points * config.first))
    omegas = {"omega_first": config.omega_first, "omega_hidden": config.omega_hidden}
    model = sine_or_tanh(config.activation, 1 + d, config.width, config.depth, 1, **omegas)
    window = Ramp(0.0, 1.0, max(1, round(config.grow * config.steps)))

    def loss(bound, batch, draw):
        problem = batch.problem
        sources = problem.at, problem.variance, problem.strength[..., :1]
        near = places_near(draw, *sources, first // 2)
        box = draw.uniform("box", config.points - near.shape[1], d) * 2 - 1
        place = torch.cat([near, box], 1)
        latest = problem.duration * (window(draw.step + 1) if config.grow else 1.0)
        time = draw.uniform("time", config.points, 1) * latest[:, None, None]
        time = torch.cat([torch.zeros_like(time[:, :first]), time[:, first:]], 1)
        value, slope, second = jets(bound, torch.cat([time, place], -1))
        width = problem.variance.amin(1)[:, None]
        speed = speeds_at(problem.speed, place, 1.0)
        off = second[:, :, 0, 0] - speed.square() * second[:, :, 0, 1:].sum(-1)
        start = value[:, :first] - gaussians(place[:, :first], *sources, density=False)
        rest = slope[:, :first, 0, 0] * width.sqrt()
        return {
            "equation": size_of(off * width, config.norm).mean(1),
            "initial": config.initial * size_of(start[..., 0], config.norm).mean(1),
            "rest": config.rest * size_of(rest, config.norm).mean(1),
        }

    def read(bound, coords):
        return {"wave": bound(coords)}

    rate = Cosine(config.rate, config.steps, floor=config.rate / 100)
    phase = Phase(
        steps=config.steps,
        size=Size(pixels=0, places=config.points),
        updates=(Descend(loss, {"": Adam(rate, clip=config.clip)}),),
    )
    field = Field(
        method="wave",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(""),
        coords={
            "axes": ["t", "x", "y"][: 1 + d],
            "range": [-1.0, 1.0],
            "times": "from 0 to the column `duration`",
        },
        output={"quantity": "wave", "channels": ["height"]},
    )
    return PerSample(field, fit=(phase,))
