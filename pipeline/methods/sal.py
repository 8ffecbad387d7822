"""SAL: signed fields from raw data without signs (Atzmon & Lipman 2020, "SAL: Sign Agnostic
Learning of Shapes from Raw Data").

For scans, clouds and open or broken meshes, where only the unsigned distance is known: a network
for each, or an encoder of clouds and one decoder for all of them.

Not for hollow shapes with thin walls (mugs, open bottles): the distances are as small for a field
that is inside throughout as for one that leaves the wall again, so the cavity tends to be filled.
With normals take `igr`; where the data tell signs, `sdf` or `deepsdf`. In a store of clouds with
normals a low `normal_cosine` tells which rows it happened to: inner walls face the other way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Atzmon & Lipman 2020, CVPR, arXiv 1911.10414"
KINDS = ("shapes", "points")
STRATEGY = "per sample, or encoder (mode: vae)"
STORES = "params: one network a shape; with mode vae latents/code and shared/: encoder, decoder"


class Config(Schema):
    """Defaults: a network that fits a shape in a few seconds on a CPU core."""

    mode: Literal["sample", "vae"] = "sample"
    """`sample`: a network for each shape; `vae`: an encoder of surface points, one decoder."""
    distance: Literal["l2", "l0"] = "l2"
    """`l2`: distance to the surface; `l0`: 1 off the surface and 0 on it (sec. 4), without
    distances; the field is then no distance, only its zero set counts."""
    width: int = Field(96, ge=1)
    """Units of a hidden layer (paper: 512)."""
    depth: int = Field(5, ge=1)
    """Number of hidden layers (paper: 8)."""
    skip: int | None = Field(None, ge=1)
    """Hidden layer (from 0) whose input also gets the network's, over sqrt 2 (paper: none or 4)."""
    weight_norm: bool = False
    """Weight normalization of the hidden layers (as in the authors' code)."""
    start: Literal["geometric", "torch"] = "geometric"
    """`geometric`: as a sphere (sec. 5); `torch`: as `torch.nn.Linear`, for comparison."""
    radius: float = Field(0.5, gt=0)
    """Radius of that sphere (authors' code: 0.5)."""
    slope: float = Field(1.0, gt=0)
    """Length of the first gradient: the start is slope (|x| - radius) (authors' code: 2)."""
    points: int = Field(384, ge=1)
    """Points near the surface a step, and as many uniform ones (paper: 16,384)."""
    rate: float = Field(3e-3, gt=0)
    """Learning rate of the network at the start (paper: 5e-4)."""
    schedule: Literal["cosine", "constant", "halving"] = "cosine"
    """The rate falls to a hundredth over `steps`; stays (the authors' single shapes); or halves
    four times on the way (the authors' D-Faust: every 500 of 2,000 epochs)."""
    steps: int = Field(700, ge=1)
    """Steps of fitting a network, or of training with mode `vae`."""
    code: int = Field(32, ge=1)
    """Entries of a code, in mode `vae` as all keys below (paper: 256)."""
    encoder_width: int = Field(64, ge=1)
    """Units of the encoder (paper: 512)."""
    encoder_points: int = Field(256, ge=1)
    """Surface points that the encoder sees (authors' code: as many as a step)."""
    prior: float = Field(1e-3, ge=0)
    """Weight of mean |mean| + mean |log std + 1| of a code (supplement; an L1 in place of KL)."""
    batch: int = Field(16, ge=1)
    """Shapes a training step (paper: 64)."""
    refine_steps: int = Field(0, ge=0)
    """Steps that refine a code after the encoder found it (paper, optional: 800); 0: none."""
    refine_rate: float = Field(1e-3, gt=0)
    """Rate of refining, a tenth of it in the second half (authors' code)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: confs/recon_3d.conf and dfaust_vae.conf of the authors' code. Their single shape
        takes one step an epoch at a constant rate, D-Faust (`mode: vae`, `schedule: halving`) 2,000
        epochs of 64 shapes; their second set of points is the cloud with noise 1, ours uniform."""
        paper = cls(
            width=512,
            depth=8,
            weight_norm=True,
            slope=2.0,
            points=16_384,
            rate=5e-4,
            schedule="constant",
            steps=10_000,
            code=256,
            encoder_width=512,
            encoder_points=16_384,
            batch=64,
            refine_steps=800,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """A ReLU network from (code and) x, y, z to a distance that finds its own sign."""
    from pipeline.encoders.points import Posterior
    from pipeline.fields.activations import Relu
    from pipeline.fields.conditioning import CodedField
    from pipeline.fields.geometric import distance_layers
    from pipeline.fields.mlp import MLP
    from pipeline.fitting.method import Descend, Encoded, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant, Cosine, Steps
    from pipeline.objectives.priors import normal_surrogate
    from pipeline.objectives.unsigned import sign_agnostic, sign_agnostic_occupancy
    from pipeline.samples import Size, require

    if form.kind not in KINDS:
        raise ValueError(f"sal needs shapes or point clouds; this dataset has {form.kind}")
    occupancy, coded = config.distance == "l0", config.mode == "vae"
    size = Size(
        pixels=0,
        near=config.points,
        uniform=config.points,
        surface=config.points if occupancy else 0,
    )
    if not form.distances:
        raise ValueError(
            f"sal needs points off the surface with their distances; this dataset of {form.kind} "
            "has none. Set ingest.near and ingest.uniform, for example to 65536 and 32768"
        )
    require(form, size)
    inputs = 3 + (config.code if coded else 0)
    layers = distance_layers(
        inputs,
        config.width,
        config.depth,
        Relu(),
        radius=config.radius,
        slope=config.slope,
        std=1e-6,
        skip=config.skip,
        weight_norm=config.weight_norm,
        geometric=config.start == "geometric",
    )
    net = MLP(inputs, layers)
    model = net
    if coded:
        model = CodedField(config.code, net, std=0.0)
        model.encoder = Posterior(
            3, config.encoder_width, config.code, blocks=4, std=math.exp(-10), zero=True
        )

    def loss(bound, batch, draw):
        points = batch.points
        value = bound(points.coords)[..., 0]
        if not occupancy:
            return {"distance": sign_agnostic(value, points.distance, points.weight)}
        on = bound(points.surface)[..., 0]
        return {
            "distance": sign_agnostic_occupancy(value, points.weight, on, points.surface_weight)
        }

    def encode(bound, batch, draw):
        points = batch.points
        mean, log_std = bound.encoder(points.surface, points.surface_weight)
        if not bound.training:
            return {"code.value": mean}, {}
        code = mean + log_std.exp() * draw.normal("code", config.code)
        return {"code.value": code}, {"prior": config.prior * normal_surrogate(mean, log_std)}

    def read(bound, coords):
        return {"sdf": bound(coords)[..., 0]}

    rates = {
        "cosine": Cosine(config.rate, config.steps, floor=config.rate / 100),
        "constant": Constant(config.rate),
        "halving": Steps(config.rate, max(config.steps // 4, 1), floor=1e-5),
    }
    descend = Descend(loss, {"": Adam(rates[config.schedule])})
    field = Field(
        method="sal",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe() if coded else model.describe(""),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "sdf", "inside": "negative", "level": 0.0},
    )
    if not coded:
        return PerSample(field, fit=(Phase(steps=config.steps, size=size, updates=(descend,)),))
    train = Phase(steps=config.steps, size=size, batch=config.batch, updates=(descend,))
    half = Steps(config.refine_rate, max(config.refine_steps // 2, 1), 0.1)
    refine = Phase(
        steps=config.refine_steps, size=size, updates=(Descend(loss, {"code.": Adam(half)}),)
    )
    return Encoded(
        field,
        encode=encode,
        size=Size(pixels=0, surface=config.encoder_points),
        train=(train,),
        fit=(refine,) if config.refine_steps else (),
    )
