"""Occupancy Networks: an encoder gives each shape a code, one decoder says inside or outside
(Mescheder et al. 2019, "Occupancy Networks: Learning 3D Reconstruction in Function Space").

For shapes from few noisy points, coarse voxels or one picture in one pass, without fitting; with
`encoder: vae` for a smooth space of shapes that new ones can be drawn from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Mescheder et al. 2019, CVPR, arXiv 1812.03828"
KINDS = ("shapes",)
STRATEGY = "encoder"
STORES = "latents/code: one code a shape; shared/: the encoder and the decoder"


class Config(Schema):
    """Defaults: a conditional decoder that learns a hundred shapes in a minute on a CPU core."""

    encoder: Literal["points", "voxels", "image", "vae"] = "points"
    """What a code is made of: noisy surface points, voxels, a view, or (variational, with a prior
    to draw new shapes from) points with their occupancies (sec. 3.2, 3.3)."""
    code: int = Field(64, ge=1)
    """Entries of a code (paper: 256 for pictures and voxels, 512 for points, 128 for the VAE)."""
    width: int = Field(64, ge=1)
    """Units of the decoder (paper: 256; VAE: 128)."""
    blocks: int = Field(3, ge=1)
    """Residual blocks of the decoder (paper: 5)."""
    encoder_width: int = Field(64, ge=1)
    """Units of the encoder of points (paper: 512; VAE: 128); channels of the first layer of the
    encoder of voxels (paper: 32) and of pictures (paper: 64, ResNet-18)."""
    encoder_blocks: int = Field(3, ge=1)
    """Residual blocks of the encoder of points (paper: 5)."""
    inputs: int = Field(300, ge=1)
    """Surface points that the encoder sees (paper: 300); of the VAE, points with occupancy."""
    noise: float = Field(0.01, ge=0)
    """Standard deviation of Gaussian noise on these points, in normalised units (paper: 0.005 of
    the longest edge; the unit sphere makes that edge up to 2)."""
    voxels: int = Field(32, ge=1)
    """Voxels an axis that the encoder sees (paper: 32)."""
    weights: str | None = None
    """A safetensors file of encoder weights to start from, its names those of the encoder (of
    `image`: torchvision's names of a ResNet-18; the classifier `fc` is left out)."""
    kl: float = Field(1.0, ge=0)
    """Weight of the VAE's divergence from the prior, beside a cross-entropy summed over points."""
    kl_ramp: int = Field(500, ge=0)
    """Training steps in which that weight rises to full (paper: 0): where it is full from the
    start, a short training ignores the codes."""
    share_inside: float | None = Field(0.1, gt=0, lt=1)
    """Occupancy that the decoder gives everywhere at the start; absent: none in particular
    (paper). Where little is inside, training gets there in a fraction of the steps."""
    threshold: float = Field(0.2, gt=0, lt=1)
    """Occupancy probability at the surface (paper's experiments: 0.2)."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam (paper: 1e-4)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to a hundredth over `train_steps`, or stays (paper)."""
    train_steps: int = Field(1500, ge=1)
    """Training steps."""
    batch: int = Field(16, ge=1)
    """Shapes a step (paper: 64)."""
    points: int = Field(256, ge=1)
    """Points a shape and step, uniform in the box (paper: 2,048; voxels: 1,024)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: points; `paper-voxels`, `paper-image`, `paper-vae`: the authors' other settings
        (configs/pointcloud/onet.yaml, voxels, img, unconditional).

        They train until the validation IoU stops rising; 300,000 steps are our choice. Normalise
        with `ingest: {normalize: box}` to have their units.
        """
        points = cls(
            code=512,
            width=256,
            blocks=5,
            encoder_width=512,
            encoder_blocks=5,
            noise=0.005,
            kl_ramp=0,
            share_inside=None,
            rate=1e-4,
            schedule="constant",
            train_steps=300_000,
            batch=64,
            points=2048,
        )
        voxels = {"encoder": "voxels", "code": 256, "encoder_width": 32, "points": 1024}
        image = {"encoder": "image", "code": 256, "encoder_width": 64}
        vae = {"encoder": "vae", "code": 128, "width": 128, "encoder_width": 128, "inputs": 2048}
        return {
            "default": cls(),
            "paper": points,
            "paper-voxels": points.model_copy(update=voxels),
            "paper-image": points.model_copy(update=image),
            "paper-vae": points.model_copy(update=vae),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A decoder of (x, y, z) to occupancy, conditioned on a code, and the encoder of codes."""
    import torch

    from pipeline.encoders.images import ImageEncoder
    from pipeline.encoders.points import PointNet, Posterior
    from pipeline.encoders.voxels import VoxelEncoder
    from pipeline.encoders.weights import start_from
    from pipeline.fields.residual import AddedField, NormedField
    from pipeline.fitting.method import Descend, Encoded, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant, Cosine
    from pipeline.objectives.occupancy import (
        gaussian_divergence,
        inside_of,
        logit,
        occupancy_bce,
    )
    from pipeline.samples import Size, require

    if form.kind not in KINDS or not form.signed:
        raise ValueError(
            f"occnet needs shapes with an inside; this dataset has {form.kind}"
            + (" without signs: set ingest.sign to winding" if form.kind in KINDS else "")
        )
    size = {
        "points": Size(pixels=0, surface=config.inputs),
        "vae": Size(pixels=0, uniform=config.inputs),
        "voxels": Size(pixels=0, voxels=config.voxels),
        "image": Size(pixels=0, views=1),
    }[config.encoder]
    for needed in (size, Size(pixels=0, uniform=config.points)):
        try:
            require(form, needed)
        except ValueError as error:
            raise ValueError(f"occnet with encoder {config.encoder}: {error}") from error
    level = None if config.share_inside is None else logit(config.share_inside)
    if config.encoder == "vae":
        model = AddedField(config.code, config.width, config.blocks, level=level)
        encoder = Posterior(4, config.encoder_width, config.code, config.encoder_blocks)
    else:
        model = NormedField(config.code, config.width, config.blocks, level=level)
        if config.encoder == "points":
            encoder = PointNet(3, config.encoder_width, config.code, config.encoder_blocks)
        elif config.encoder == "voxels":
            encoder = VoxelEncoder(config.voxels, config.encoder_width, config.code)
        else:
            encoder = ImageEncoder(config.code, config.encoder_width)
    model.encoder = encoder

    def encode(bound, batch, draw):
        points = batch.points
        if config.encoder == "voxels":
            code = bound.encoder(batch.voxels.occupancy)
        elif config.encoder == "image":
            code = bound.encoder(batch.views.color[:, 0])
        elif config.encoder == "points":
            noise = config.noise * draw.normal("noise", *points.surface.shape[1:])
            code = bound.encoder(points.surface + noise, points.surface_weight)
        else:
            inside = inside_of(points.distance).to(points.coords.dtype)[..., None]
            code, log_std = bound.encoder(torch.cat([points.coords, inside], -1), points.weight)
            divergence = config.kl * gaussian_divergence(code, log_std)
            if bound.training:
                divergence = divergence * ((draw.step + 1) / max(config.kl_ramp, 1)).clamp(max=1.0)
                code = code + log_std.exp() * draw.normal("code", config.code)
            return {"code.value": code}, {"kl": divergence}
        return {"code.value": code}, {}

    def loss(bound, batch, draw):
        points = batch.points
        logits = bound(points.coords)[..., 0]
        return {"bce": occupancy_bce(logits, inside_of(points.distance), points.weight)}

    def read(bound, coords):
        logits = bound(coords)[..., 0]
        return {"occupancy": logits.sigmoid(), "logits": logits}

    rate = Constant(config.rate)
    if config.schedule == "cosine":
        rate = Cosine(config.rate, config.train_steps, floor=config.rate / 100)
    train = Phase(
        steps=config.train_steps,
        size=Size(pixels=0, uniform=config.points),
        batch=config.batch,
        updates=(Descend(loss, {"": Adam(rate)}),),
    )
    field = Field(
        method="occnet",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[*model.describe(), encoder.describe("encoder")],
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "occupancy", "inside": "high", "level": config.threshold},
    )
    if config.weights is not None:
        start_from(encoder, config.weights)
    return Encoded(field, encode=encode, size=size, train=(train,))
