"""SIREN for the Helmholtz equation: a complex sine network (two channels) for each problem, found
from the equation alone in a box with an absorbing layer (Sitzmann et al. 2020, sec. 4.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.equations import LAYER
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09661, sec. 4.3"
KINDS = ("equations",)
STRATEGY = "per sample"
STORES = "params: the weights of one sine network a Helmholtz equation"
MORE = 4
"""Times the places of a step, at which the output layer is solved."""


class Config(Schema):
    """Defaults: a network that fits a problem on a line in some two seconds on a CPU core; in the
    plane take the preset `plane`."""

    width: int = Field(64, ge=1)
    """Units of a sine layer (authors' code: 256)."""
    depth: int = Field(3, ge=1)
    """Number of sine layers (authors' code: 4, "3 hidden")."""
    omega_first: float = Field(15.0, gt=0)
    """Frequency factor of the first layer (authors' code: 30). Where the waves are long beside the
    box, less is learned faster."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others (supplement 1.5)."""
    activation: Literal["sine", "tanh"] = "sine"
    """`tanh`: layers with which the paper compares, started as PyTorch starts them."""
    strength: float = Field(5.0, gt=0)
    """How strongly the layer absorbs at the border, a_0 (authors' code)."""
    points: int = Field(256, ge=4)
    """Places a step (authors' code: 230^2)."""
    near: float = Field(0.25, gt=0, lt=1)
    """Share of them at the sources (authors' code: 100 of 230^2)."""
    source: float = Field(1.0, gt=0)
    """Weight of the mean residual at the sources beside that everywhere (authors' code: sums, that
    at the sources times N / 1e3, which is 0.1 here)."""
    norm: Literal["square", "absolute"] = "square"
    """Of residuals, which are divided by k^2 (authors' code: absolute). Small networks learn from
    squares in hundreds of steps what they do not in thousands from absolute values."""
    rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam, falling to a hundredth (authors' code: 2e-5, constant)."""
    clip: float | None = Field(0.01, gt=0)
    """Gradients of a row longer than this are scaled back to it; null: none (authors' code). The
    worst of 18 problems on a line comes to a relative L2 of 0.012 with it, to 0.077 without."""
    steps: int = Field(600, ge=1)
    """Steps a problem (authors' code: 50,000)."""

    solve: bool = False
    """At the end the output layer is solved by least squares, which the equation, linear in it,
    allows (not in the paper)."""

    LATER: ClassVar[tuple[str, ...]] = ("solve",)

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: experiment_scripts/train_helmholtz.py of the authors' code. The rate falls
        here. `plane`: problems in the plane, k = 10 to a relative L2 of 0.02 to 0.03 in half a
        minute each. `plane-solved`: as near in three seconds, by the solved output layer over 768
        units as they start; steps of Adam before make units serve the output that they have (512
        units: 0.07 after one step, 0.41 after 25)."""
        paper = {"width": 256, "depth": 4, "omega_first": 30.0, "points": 230**2, "rate": 2e-5}
        paper |= {"near": 100 / 230**2, "source": 0.1, "norm": "absolute", "steps": 50_000}
        paper |= {"clip": None}
        plane = {"points": 1024, "source": 0.3}
        solved = {"width": 768, "depth": 2, "omega_hidden": 10.0, "steps": 1, "solve": True}
        return {
            "default": cls(),
            "plane": cls(**plane, steps=3000),
            "plane-solved": cls(**plane, **solved),
            "paper": cls(**paper),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A network from x (, y) to the real and the imaginary part of a wave."""
    import torch

    from pipeline.fields.bind import bind
    from pipeline.fields.jets import jets
    from pipeline.fields.sine import sine_or_tanh
    from pipeline.fitting.method import Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.readout import complex_readout
    from pipeline.fitting.schedules import Cosine
    from pipeline.objectives.waves import (
        gaussians,
        helmholtz_of,
        helmholtz_of_units,
        places_near,
        size_of,
        speeds_at,
    )
    from pipeline.problems import require_equation
    from pipeline.samples import Size

    require_equation("helmholtz", form)
    d, near = form.dims, max(1, round(config.points * config.near))
    omegas = {"omega_first": config.omega_first, "omega_hidden": config.omega_hidden}
    model = sine_or_tanh(config.activation, d, config.width, config.depth, 2, **omegas)
    weight, bias = (f"layers.{config.depth}.{part}" for part in ("weight", "bias"))

    def places(problem, draw, count, at_sources):
        sources = problem.at, problem.variance, problem.strength
        box = draw.uniform("box", count - at_sources, d) * 2 - 1
        return torch.cat([places_near(draw, *sources, at_sources), box], 1)

    def medium(problem, coords):
        slowness = 1 / speeds_at(problem.speed, coords, 1 - LAYER)
        return {"slowness": slowness, "depth": LAYER, "strength": config.strength}

    def source_at(problem, coords):
        return gaussians(coords, problem.at, problem.variance, problem.strength, density=True)

    def loss(bound, batch, draw):
        problem = batch.problem
        coords = places(problem, draw, config.points, near)
        known = medium(problem, coords)
        found = helmholtz_of(*jets(bound, coords), coords, problem.wavenumber, **known)
        off = found - source_at(problem, coords)
        off = off / problem.wavenumber[:, None, None].square()
        error = size_of(off, config.norm).sum(-1)
        return {
            "equation": error[:, near:].mean(1),
            "source": config.source * error[:, :near].mean(1),
        }

    def solved(bound, rows, batch, draw):
        """The output layer that leaves the least of the squared residuals at more places; row by
        row, since what the units are at all places takes memory."""
        share, f = MORE * near, config.width
        coords = places(batch.problem, draw, MORE * config.points, share)
        mean = torch.ones(coords.shape[1], device=coords.device) / (coords.shape[1] - share)
        mean[:share] = config.source / share
        units = {weight: torch.eye(f)[None], bias: torch.zeros(1, f)}
        units = {name: value.to(rows[name]) for name, value in units.items()}
        found = []
        for i, at in enumerate(coords.split(1)):
            problem = batch.problem.take(torch.tensor([i]))
            hidden = {name: value[i : i + 1] for name, value in rows.items()} | units
            value, *slopes = jets(bind(model, hidden), at)
            value = torch.cat([value, torch.ones_like(value[..., :1])], 2)  # of the bias
            slopes = [torch.cat([v, torch.zeros_like(v[:, :, :1])], 2) for v in slopes]
            known = medium(problem, at)
            columns = helmholtz_of_units(value, *slopes, at, problem.wavenumber, **known)
            wanted = torch.view_as_complex(source_at(problem, at).double().contiguous())
            found.append(complex_readout(columns, wanted, mean))
        x = torch.view_as_real(torch.cat(found)).to(rows[weight]).movedim(2, 1)
        return {weight: x[..., :-1].contiguous(), bias: x[..., -1].contiguous()}

    def read(bound, coords):
        return {"wave": bound(coords)}

    rate = Cosine(config.rate, config.steps, floor=config.rate / 100)
    phase = Phase(
        steps=config.steps,
        size=Size(pixels=0, places=config.points),
        updates=(Descend(loss, {"": Adam(rate, clip=config.clip)}),),
        edits=((config.steps, solved),) if config.solve else (),
    )
    field = Field(
        method="helmholtz",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(""),
        coords={
            "axes": ["x", "y"][:d],
            "range": [-1.0, 1.0],
            "domain": [LAYER - 1, 1 - LAYER],
            "beyond": "a perfectly matched layer",
        },
        output={"quantity": "wave", "channels": ["real", "imaginary"], "outgoing": "exp(-i k r)"},
    )
    return PerSample(field, fit=(phase,))
