"""IM-Net: a voxel encoder and a decoder of occupancy, trained coarse to fine (Chen & Zhang 2019,
"Learning Implicit Fields for Generative Shape Modeling").

What it is for: codes of shapes that a latent GAN can learn, and shapes from a single view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Chen & Zhang 2019, CVPR, arXiv 1812.02822"
KINDS = ("shapes",)
STRATEGY = "encoder"
STORES = (
    "latents/code: a code in (0, 1) a shape, from its voxels; latents/view_code: from one view, "
    "where the dataset has views; shared/: encoders and decoder"
)


class Config(Schema):
    """Defaults: a network that learns a hundred shapes in about a minute on two CPU cores."""

    code: int = Field(64, ge=1)
    """Entries of a code (authors' code: 128, later release 256)."""
    release: Literal["first", "later"] = "later"
    """Decoder and points of the authors' first release (code and coordinates concatenated again
    after each of four layers, sigmoid, points at cell centers), or of the later one (no skips,
    leaky clip, points at a fine voxel of the right value within the cell)."""
    width: int = Field(128, ge=16)
    """Units of the decoder's widest layer (authors' code: 2048; later release: 1024)."""
    weight_std: float = Field(0.0, ge=0)
    """Standard deviation of the decoder's weights before training (authors' code: 0.02, which suits
    2,048 units); 0: variances that suit any width."""
    voxels: Literal[8, 16, 32, 64] = 32
    """Voxels along an axis that the encoder sees (authors' code: 64)."""
    channels: int = Field(8, ge=1)
    """Channels of the encoder's first convolution, doubled by each next one (authors' code: 32)."""
    levels: tuple[int, ...] = (16, 32)
    """Resolutions of training, one after another (authors' code: 16, 32, 64)."""
    level_steps: tuple[int, ...] = (300, 600)
    """Training steps of each level (authors' code: 50, 50 and 100 epochs)."""
    level_points: tuple[int, ...] = (256, 256)
    """Points a shape and step of each level (authors' code: the level's pool)."""
    level_pools: tuple[int, ...] = (600, 4096)
    """Cells of a shape that a level trains on: those with a mixed 3^3 neighborhood, then random
    ones (authors' code: 4,096, 8,192 and 32,768; later release: 4,096, 4,096 and 16,384). At 16^3
    that is all cells; a short training does better on 600, nearly all of them mixed."""
    batch: int = Field(16, ge=1)
    """Shapes a step (authors' code: 1)."""
    rate: float = Field(3e-3, gt=0)
    """Learning rate of Adam (authors' code: 5e-5)."""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """Decay of Adam's mean of gradients (authors' code: 0.5)."""
    falling: bool = True
    """Whether the rate falls along a cosine to a hundredth over all levels (authors' code: no)."""
    view_steps: int = Field(300, ge=1)
    """Steps of regressing codes from views, decoder and voxel encoder frozen, where the dataset has
    views (authors' code: 1,000 epochs)."""
    view_batch: int = Field(16, ge=1)
    """Views a step (authors' code: 64)."""
    view_width: int = Field(16, ge=1)
    """Channels of the view encoder's first stage, a ResNet-18 (authors' code: 64, a similar
    network of gray pictures)."""
    view_weights: str | None = None
    """A safetensors file of ResNet-18 weights for the view encoder to start from."""
    view_rate: float = Field(2e-3, gt=0)
    """Learning rate of the view encoder (authors' code: 5e-5)."""
    fields_from: Literal["voxels", "views"] = "voxels"
    """Which code the fields of the store are read with: that of the voxels, or of one view."""

    @model_validator(mode="after")
    def _levels_match(self) -> Config:
        for name in ("level_steps", "level_points", "level_pools"):
            if len(getattr(self, name)) != len(self.levels):
                raise ValueError(
                    f"{name}: {list(getattr(self, name))}, needs one number for each of levels: "
                    f"{list(self.levels)}"
                )
        wrong = [n for n in self.levels if n < 2]
        if wrong or not self.levels:
            raise ValueError(f"levels: {list(self.levels)}, needs resolutions of at least 2")
        numbers = (*self.level_steps, *self.level_points, *self.level_pools)
        if min(numbers) < 1:
            raise ValueError("level_steps, level_points and level_pools must be positive")
        return self

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: the authors' first release (IMAE, IMSVR); `later`: their PyTorch release.

        Epochs become steps for the 35,019 training shapes of their 13 classes at one shape a step.
        """
        shapes = 35_019
        paper = {
            "voxels": 64,
            "channels": 32,
            "weight_std": 0.02,
            "levels": (16, 32, 64),
            "batch": 1,
            "rate": 5e-5,
            "beta_1": 0.5,
            "falling": False,
            "view_batch": 64,
            "view_width": 64,
            "view_rate": 5e-5,
        }
        first = cls(
            **paper,
            release="first",
            code=128,
            width=2048,
            level_steps=(50 * shapes, 50 * shapes, 100 * shapes),
            level_points=(4096, 8192, 32_768),
            level_pools=(4096, 8192, 32_768),
            view_steps=1000 * shapes // 64,
        )
        later = cls(
            **paper,
            release="later",
            code=256,
            width=1024,
            level_steps=(100 * shapes, 100 * shapes, 200 * shapes),
            level_points=(4096, 4096, 16_384),
            level_pools=(4096, 4096, 16_384),
            view_steps=2000 * shapes // 64,
        )
        return {"default": cls(), "paper": first, "later": later}


def build(config: Config, form: FormSpec) -> Method:
    """Voxels to a code, (code, x, y, z) to occupancy, and views to the same codes."""
    from pipeline.encoders.images import ImageEncoder
    from pipeline.encoders.voxel_pyramid import VoxelPyramid
    from pipeline.encoders.weights import start_from
    from pipeline.fields.mlp import MLP
    from pipeline.fields.pyramid import PyramidField, pyramid_layers
    from pipeline.fitting.method import Descend, Encoded, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant, Cosine, Later
    from pipeline.objectives.voxel_cells import draw_cells
    from pipeline.samples import Size

    _refuse(config, form)
    layers = pyramid_layers(config.code, config.width, config.release, std=config.weight_std)
    net = MLP(config.code + 3, layers)
    views = None
    if form.views:
        views = ImageEncoder(config.code, config.view_width)
        if config.view_weights is not None:
            start_from(views, config.view_weights)
    voxels = VoxelPyramid(config.voxels, config.code, config.channels)
    decoded = "code" if config.fields_from == "voxels" else "view_code"
    model = PyramidField(config.code, net, voxels, views, decoded=decoded)

    def from_view(bound, batch):
        return bound.views(batch.views.color[:, 0]).sigmoid()

    def encode(bound, batch, draw):
        rows = {"code.value": bound.voxels(batch.voxels.occupancy)}
        if views is not None and not bound.training:  # in training, its own phase regresses it
            rows["view_code.value"] = from_view(bound, batch)
        return rows, {}

    def read(bound, coords):
        return {"occupancy": bound(coords)[..., 0].clamp(0, 1)}

    def falling(before):
        if not config.falling:
            return Constant(config.rate)
        cosine = Cosine(config.rate, sum(config.level_steps), floor=config.rate / 100)
        return Later(cosine, before)

    def level(number):
        resolution, points = config.levels[number], config.level_points[number]
        pool = config.level_pools[number]

        def loss(bound, batch, draw):
            coords, value = draw_cells(
                batch.voxels.occupancy,
                resolution,
                points,
                pool,
                draw,
                inside=config.release == "later",
            )
            error = (bound(coords)[..., 0] - value).square()
            return {"occupancy": error.mean(1)}

        adam = Adam(falling(sum(config.level_steps[:number])), betas=(config.beta_1, 0.999))
        return Phase(
            steps=config.level_steps[number],
            size=Size(pixels=0, voxels=form.voxels),
            batch=config.batch,
            updates=(Descend(loss, {"net.": adam, "voxels.": adam}),),
        )

    def regression(bound, batch, draw):
        error = from_view(bound, batch) - bound.code.value.detach()
        return {"view": error.square().mean(1)}

    train = [level(number) for number in range(len(config.levels))]
    if views is not None:
        view_rate = Cosine(config.view_rate, config.view_steps, floor=config.view_rate / 100)
        adam = Adam(
            view_rate if config.falling else Constant(config.view_rate),
            betas=(config.beta_1, 0.999),
        )
        train.append(
            Phase(
                steps=config.view_steps,
                size=Size(pixels=0, views=1),
                batch=config.view_batch,
                updates=(Descend(regression, {"views.": adam}),),
            )
        )
    field = Field(
        method="imnet",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={"axes": ["x", "y", "z"], "range": [-1.0, 1.0], "handedness": "as in the source"},
        output={"quantity": "occupancy", "inside": "high", "level": 0.5},
    )
    seen = Size(pixels=0, voxels=config.voxels, views=1 if views is not None else 0)
    return Encoded(field, encode=encode, size=seen, train=tuple(train))


def _refuse(config: Config, form: FormSpec) -> None:
    """Says what the dataset lacks."""
    if form.kind not in KINDS:
        raise ValueError(f"imnet needs shapes with voxels; this dataset has {form.kind}")
    if not form.voxels:
        raise ValueError(
            "imnet needs shapes with voxels; this dataset has none: set ingest.voxels: "
            f"{max(config.voxels, *config.levels)}"
        )
    for name, wanted in [("voxels", config.voxels), *(("levels", n) for n in config.levels)]:
        if form.voxels % wanted:
            raise ValueError(
                f"{name}: {wanted} is not a divisor of the {form.voxels} voxels of this dataset; "
                f"set ingest.voxels: {max(config.voxels, *config.levels)}"
            )
    if config.fields_from == "views" and not form.views:
        raise ValueError(
            "imnet with fields_from: views needs views; this dataset has none: set ingest.views"
        )
