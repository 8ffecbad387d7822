"""Convolutional Occupancy Networks: points write into planes or a volume, a U-Net spreads what is
known, and occupancy is read in between (Peng et al. 2020, "Convolutional Occupancy Networks").

For detailed shapes and whole scenes from point clouds or coarse voxels in one pass; with `crop` it
knows no absolute place, trains on windows and slides over scenes of any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Peng et al. 2020, ECCV, arXiv 2003.04618"
KINDS = ("shapes",)
STRATEGY = "encoder"
STORES = (
    "latents/planes: three planes of features a shape; latents/volume: a volume of them; "
    "shared/: the encoder and the decoder"
)


class Config(Schema):
    """Defaults: planes of 32^2 that learn two dozen scenes in a minute or two on a CPU core."""

    grid: Literal["planes", "volume", "both"] = "planes"
    """Where features lie: in three planes, in a volume, or in both (sec. 3.1)."""
    planes: int = Field(32, ge=2)
    """Cells an axis of a plane (paper: 64 for objects, 128 for rooms)."""
    volume: int = Field(16, ge=2)
    """Cells an axis of the volume (paper: 32 for objects, 64 for rooms)."""
    features: int = Field(16, ge=1)
    """Features of a cell (paper: 32)."""
    encoder: Literal["points", "voxels"] = "points"
    """What is written into the cells: noisy surface points, or voxels."""
    inputs: int = Field(1500, ge=1)
    """Surface points that the encoder sees (paper: 3,000; rooms: 10,000)."""
    noise: float = Field(0.01, ge=0)
    """Standard deviation of Gaussian noise on these points, in normalised units (paper: 0.005 of
    the longest edge; the unit sphere makes that edge up to 2)."""
    voxels: int = Field(32, ge=1)
    """Voxels an axis that the encoder sees (paper: 32)."""
    encoder_width: int = Field(16, ge=1)
    """Units of the encoder of points (paper: 32)."""
    encoder_blocks: int = Field(3, ge=1)
    """Residual blocks of the encoder of points (paper: 5)."""
    unet_width: int = Field(16, ge=1)
    """Channels of the U-Net's first level (paper: 32)."""
    unet_levels: int = Field(3, ge=1)
    """Resolutions of the U-Net (authors' code: 4 for planes of 64, 5 for 128; 3 for volumes of 32,
    4 for 64)."""
    width: int = Field(32, ge=1)
    """Units of the decoder (paper: 32)."""
    blocks: int = Field(3, ge=1)
    """Residual blocks of the decoder (paper: 5)."""
    crop: int = Field(0, ge=0)
    """Cells an axis of the windows that are trained on and slid over a scene, a divisor of `volume`
    (paper: 25); coordinates are then relative to cells, and nothing depends on the place. 0: whole
    scenes, absolute coordinates."""
    weights: str | None = None
    """A safetensors file of encoder weights to start from, its names those of the encoder."""
    share_inside: float | None = Field(0.1, gt=0, lt=1)
    """Occupancy that the decoder gives everywhere at the start; absent: none in particular
    (paper). Where little is inside, training gets there in a fraction of the steps."""
    threshold: float = Field(0.2, gt=0, lt=1)
    """Occupancy probability at the surface (paper's experiments: 0.2)."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam (paper: 1e-4)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to a hundredth over `train_steps`, or stays (paper)."""
    train_steps: int = Field(600, ge=1)
    """Training steps."""
    batch: int = Field(8, ge=1)
    """Shapes a step (paper: 32)."""
    points: int = Field(512, ge=1)
    """Points a shape and step, uniform in the box (paper: 2,048). Of windows, those of them that
    lie in the window: draw as many more as windows fit into the box."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: objects by planes of 64^2 (configs/pointcloud/shapenet_3plane.yaml);
        `paper-volume`: by a volume of 32^3; `paper-rooms`: rooms by a volume of 64^3;
        `paper-crop`: rooms of any size (configs/pointcloud_crop).

        They train until the validation IoU stops rising; 300,000 steps are our choice. Normalise
        with `ingest: {normalize: box}` to have their units.
        """
        objects = cls(
            planes=64,
            volume=32,
            features=32,
            inputs=3000,
            noise=0.005,
            encoder_width=32,
            encoder_blocks=5,
            unet_width=32,
            unet_levels=4,
            blocks=5,
            share_inside=None,
            rate=1e-4,
            schedule="constant",
            train_steps=300_000,
            batch=32,
            points=2048,
        )
        volume = {"grid": "volume", "unet_levels": 3}
        rooms = {**volume, "volume": 64, "unet_levels": 4, "inputs": 10_000, "batch": 6}
        crop = {**rooms, "unet_levels": 3, "crop": 16, "batch": 2, "points": 32_768}
        return {
            "default": cls(),
            "paper": objects,
            "paper-volume": objects.model_copy(update=volume),
            "paper-rooms": objects.model_copy(update=rooms),
            "paper-crop": objects.model_copy(update=crop),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A decoder of features at (x, y, z) to occupancy, and the encoder of planes and volumes."""
    from pipeline.encoders.grids import GridEncoder
    from pipeline.encoders.weights import start_from
    from pipeline.fields.residual import LocalField
    from pipeline.fitting.method import Descend, Encoded, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant, Cosine
    from pipeline.objectives.occupancy import inside_of, logit, occupancy_bce
    from pipeline.samples import Size, require

    if form.kind not in KINDS or not form.signed:
        raise ValueError(
            f"convonet needs shapes with an inside; this dataset has {form.kind}"
            + (" without signs: set ingest.sign to winding" if form.kind in KINDS else "")
        )
    size = Size(pixels=0, surface=config.inputs)
    if config.encoder == "voxels":
        size = Size(pixels=0, voxels=config.voxels)
    points = Size(pixels=0, uniform=config.points)
    for needed in (size, points):
        try:
            require(form, needed)
        except ValueError as error:
            raise ValueError(f"convonet from {config.encoder}: {error}") from error
    planes = config.planes if config.grid != "volume" else 0
    volume = config.volume if config.grid != "planes" else 0
    coarsest = 2 ** (config.unet_levels - 1)
    for key, cells in (("planes", planes), ("volume", volume), ("crop", config.crop)):
        if cells % coarsest:
            raise ValueError(
                f"convonet: {key} of {cells} cells cannot be halved {config.unet_levels - 1} "
                f"times; take a multiple of {coarsest}, or fewer unet_levels"
            )
    if config.crop and (planes or config.encoder == "voxels" or volume % config.crop):
        raise ValueError(
            f"convonet: windows of crop = {config.crop} cells slide over one volume of points; set "
            f"grid: volume, encoder: points and volume to a multiple of {config.crop}"
        )
    model = LocalField(
        config.width,
        config.blocks,
        config.features,
        planes=planes,
        volume=volume,
        cell=volume if config.crop else 0,
        level=None if config.share_inside is None else logit(config.share_inside),
    )
    model.encoder = encoder = GridEncoder(
        config.encoder,
        config.encoder_width,
        config.encoder_blocks,
        config.features,
        planes=planes,
        volume=volume,
        unet_width=config.unet_width,
        unet_levels=config.unet_levels,
        window=config.crop,
    )

    def observed(batch, draw):
        if config.encoder == "voxels":
            return batch.voxels.occupancy
        surface = batch.points.surface
        return surface + config.noise * draw.normal("noise", *surface.shape[1:])

    def encode(bound, batch, draw):
        seen = observed(batch, draw)
        if config.crop and bound.training:
            grids = bound.encoder(seen, encoder.windows(seen, draw))
        else:
            grids = bound.encoder(seen)
        return {f"{name}.value": value for name, value in grids.items()}, {}

    def loss(bound, batch, draw):
        points, weight = batch.points, batch.points.weight
        if config.crop:
            weight = weight * encoder.in_windows(
                points.coords, encoder.windows(observed(batch, draw), draw)
            )
        logits = bound(points.coords)[..., 0]
        return {"bce": occupancy_bce(logits, inside_of(points.distance), weight)}

    def read(bound, coords):
        logits = bound(coords)[..., 0]
        return {"occupancy": logits.sigmoid(), "logits": logits}

    rate = Constant(config.rate)
    if config.schedule == "cosine":
        rate = Cosine(config.rate, config.train_steps, floor=config.rate / 100)
    if config.crop:  # the loss finds the window of the encoder again
        points = Size(pixels=0, uniform=config.points, surface=config.inputs)
    train = Phase(
        steps=config.train_steps,
        size=points,
        batch=config.batch,
        updates=(Descend(loss, {"": Adam(rate)}),),
    )
    field = Field(
        method="convonet",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[*model.describe(), encoder.describe("encoder")],
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "occupancy", "inside": "high", "level": config.threshold},
    )
    if config.weights is not None:
        start_from(encoder, config.weights, own=("planes_net.last.", "volume_net.last."))
    return Encoded(field, encode=encode, size=size, train=(train,))
