"""IGR: signed distances from raw points, by the eikonal equation (Gropp et al. 2020, "Implicit
Geometric Regularization for Learning Shapes").

For point clouds, with or without normals, that have no distances: a network for each cloud, or one
network for all of them and a code for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Gropp et al. 2020, ICML, arXiv 2002.10099"
KINDS = ("points", "shapes")
STRATEGY = "per sample, or autodecoder (mode: space)"
STORES = "params: one network a cloud; with mode space latents/code and shared/: the network"
NOISE = 0.05
"""Standard deviation of off-surface points where a dataset has none near the surface."""


class Config(Schema):
    """Defaults: a network that fits a cloud in a few seconds on a CPU core."""

    mode: Literal["sample", "space"] = "sample"
    """`sample`: a network for each cloud; `space`: one network, and a code for each cloud."""
    width: int = Field(64, ge=1)
    """Units of a hidden layer (paper: 512)."""
    depth: int = Field(5, ge=1)
    """Number of hidden layers (paper: 8)."""
    skip: int | None = Field(None, ge=1)
    """Hidden layer (from 0) whose input also gets the network's, over sqrt 2 (paper: 4)."""
    beta: float = Field(100.0, gt=0)
    """Sharpness of the softplus (authors' code)."""
    radius: float = Field(0.5, gt=0)
    """Radius of the sphere that a field starts as (authors' code: 1; clouds here fit in 0.97)."""
    start: Literal["geometric", "torch"] = "geometric"
    """`torch`: as `torch.nn.Linear`, for comparison; the sign is then a matter of luck."""
    points: int = Field(256, ge=2)
    """Surface points a step, and as many off the surface (paper: 16,384; shape space 8,000)."""
    sigma: float | None = Field(None, gt=0)
    """Standard deviation of the noise that moves points off the surface (shape space: 0.01).
    Absent: the dataset's stored points near the surface, which clouds have with `ingest.near`
    (their noise is the distance to the 50th neighbor, as in the paper); without these 0.05."""
    box: float = Field(1.1, gt=0)
    """Uniform points lie in [-box, box]^3 (paper: 1.8)."""
    uniform: float = Field(1.0, gt=0)
    """Uniform points for each one near the surface (paper: 1/8)."""
    eikonal: float = Field(1.0, ge=0)
    """Weight of (|grad f| - 1)^2 off the surface (paper: 0.1). In a few hundred steps 0.1 leaves
    distances far from the surface wrong by 0.05, 1 by 0.015."""
    normals: float | None = Field(None, ge=0)
    """Weight of |grad f - n| on the surface (paper: 1); absent: 1 where the data has normals."""
    rate: float = Field(4e-3, gt=0)
    """Learning rate of the network at the start (paper: 5e-3)."""
    halve: int = Field(0, ge=0)
    """Steps after which the rates halve (paper: 2,000); 0: a cosine to a hundredth."""
    steps: int = Field(500, ge=1)
    """Steps of fitting a network, or of training one in mode `space` (paper: 100,000)."""
    code: int = Field(32, ge=1)
    """Entries of a code, in mode `space` as all keys below (paper: 256)."""
    code_rate: float = Field(1e-3, gt=0)
    """Learning rate of the codes in training (authors' code)."""
    prior: float = Field(1e-3, ge=0)
    """Weight of a code's length in training, and of its mean absolute entry in fitting."""
    batch: int = Field(16, ge=1)
    """Clouds a training step (authors' code: 16)."""
    fit_steps: int = Field(300, ge=1)
    """Steps of inferring a code (authors' code: 800)."""
    fit_rate: float = Field(5e-3, gt=0)
    """Rate of inferring, a tenth of it in the second half (authors' code)."""
    fit_std: float = Field(1 / 256, ge=0)
    """Standard deviation of a code before it is inferred (authors' code)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: reconstruction/setup.conf of the authors' code, and the text; for the shape
        space (`mode: space`) they have 8,000 points, sigma 0.01 and a halving every 500 epochs."""
        paper = cls(
            width=512,
            depth=8,
            skip=4,
            radius=1.0,
            points=16_384,
            box=1.8,
            uniform=1 / 8,
            eikonal=0.1,
            rate=5e-3,
            halve=2_000,
            steps=100_000,
            code=256,
            fit_steps=800,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """A softplus network from (code and) x, y, z to signed distance, negative inside."""
    import torch

    from pipeline.fields.activations import Softplus
    from pipeline.fields.conditioning import CodedField
    from pipeline.fields.derivatives import gradient, value_and_gradient
    from pipeline.fields.geometric import distance_layers
    from pipeline.fields.mlp import MLP
    from pipeline.fitting.method import Autodecoded, Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine, Steps
    from pipeline.objectives.eikonal import eikonal, normal_error, off_surface, on_surface
    from pipeline.objectives.priors import code_mean_absolute, code_norm
    from pipeline.samples import Size, require

    if form.kind not in KINDS:
        raise ValueError(f"igr needs points on surfaces; this dataset has {form.kind}")
    normals = config.normals if config.normals is not None else float(form.normals)
    if normals and not form.normals:
        raise ValueError(
            f"igr with normals: {normals:g} needs a normal at every point; this dataset has none. "
            "Set method.normals: 0"
        )
    coded = config.mode == "space"
    inputs = 3 + (config.code if coded else 0)
    layers = distance_layers(
        inputs,
        config.width,
        config.depth,
        Softplus(config.beta),
        radius=config.radius,
        skip=config.skip,
        geometric=config.start == "geometric",
    )
    net = MLP(inputs, layers)
    model = CodedField(config.code, net, std=0.0) if coded else net
    stored = config.sigma is None and form.distances and "near" in (form.sets or ("near",))
    sigma = None if stored else config.sigma or NOISE
    size = Size(pixels=0, surface=config.points, near=config.points if stored else 0)
    require(form, size)

    def loss(bound, batch, draw):
        points = batch.points
        off, off_weight = off_surface(
            points, draw, sigma=sigma, share=config.uniform, box=config.box
        )
        on, count = points.surface, points.surface.shape[1]
        weight = points.surface_weight
        if normals:
            value, slope = value_and_gradient(bound, torch.cat([on, off], 1))
            value, slope_on, slope = value[:, :count], slope[:, :count], slope[:, count:]
            terms = {"normals": normals * normal_error(slope_on, points.normals, weight)}
        else:
            value, slope, terms = bound(on)[..., 0], gradient(bound, off), {}
        terms["surface"] = on_surface(value, weight)
        return {**terms, "eikonal": config.eikonal * eikonal(slope, off_weight)}

    def train_loss(bound, batch, draw):
        return {**loss(bound, batch, draw), "prior": config.prior * code_norm(bound.code.value)}

    def fit_loss(bound, batch, draw):
        prior = config.prior * code_mean_absolute(bound.code.value)
        return {**loss(bound, batch, draw), "prior": prior}

    def begin(bound, rows, batch, draw):
        return {"code.value": config.fit_std * draw.normal("code", config.code)}

    def falling(rate):
        if config.halve:
            return Steps(rate, config.halve, floor=rate / 1000)
        return Cosine(rate, config.steps, floor=rate / 100)

    def read(bound, coords):
        return {"sdf": bound(coords)[..., 0]}

    field = Field(
        method="igr",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe() if coded else model.describe(""),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0},
    )
    net_rate = Adam(falling(config.rate))
    if not coded:
        fit = Phase(steps=config.steps, size=size, updates=(Descend(loss, {"": net_rate}),))
        return PerSample(field, fit=(fit,))
    moved = {"net.": net_rate, "code.": Adam(falling(config.code_rate))}
    half = Steps(config.fit_rate, max(config.fit_steps // 2, 1), 0.1)
    train = Phase(
        steps=config.steps, size=size, batch=config.batch, updates=(Descend(train_loss, moved),)
    )
    fit = Phase(
        steps=config.fit_steps,
        size=size,
        updates=(Descend(fit_loss, {"code.": Adam(half)}),),
        enter=begin,
    )
    return Autodecoded(field, train=(train,), fit=(fit,))
