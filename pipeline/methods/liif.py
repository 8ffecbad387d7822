"""LIIF: pictures of any resolution from a small one, by a network beside encoded features (Chen et
al. 2021, "Learning Continuous Image Representation with Local Implicit Image Function").

Super-resolution at any scale, with one model; a row is the feature grid of one picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Chen et al. 2021, CVPR, arXiv 2012.09161"
KINDS = ("images",)
STRATEGY = "encoder"
STORES = (
    "latents/feature: a feature grid a picture; latents/low: the picture it was made of; shared/"
)


class Config(Schema):
    """Defaults: pictures of 64 x 64 from 16 x 16, learned in a minute on two CPU cores."""

    height: int = Field(16, ge=3)
    """Rows of the small picture that is encoded."""
    width: int = Field(16, ge=3)
    """Columns of it."""
    features: int = Field(24, ge=1)
    """Channels of the feature grid (EDSR-baseline: 64)."""
    blocks: int = Field(4, ge=1)
    """Residual blocks of the encoder (EDSR-baseline: 16)."""
    hidden: int = Field(64, ge=1)
    """Units of a hidden layer (paper: 256)."""
    depth: int = Field(3, ge=1)
    """Hidden layers (paper: 4)."""
    largest: float = Field(4.0, gt=1)
    """Training draws scales from 1 to this (sec. 4.1: 4)."""
    points: int = Field(256, ge=1)
    """Pixels of the large picture a sample and step (paper: 2,304)."""
    ensemble: bool = True
    """Mix the answers beside four features (sec. 3)."""
    unfold: bool = True
    """3 x 3 features at each place (sec. 3)."""
    cell: bool = True
    """Tell the network the size of a pixel (sec. 3)."""
    residual: bool = True
    """Add the small picture, interpolated bicubically: the network learns what is missing. Not in
    the paper; it makes a minute of training worth having."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam, falling to a hundredth (paper: 1e-4, halved four times)."""
    train_steps: int = Field(600, ge=1)
    """Training steps (paper: 1,000,000)."""
    batch: int = Field(16, ge=1)
    """Pictures a step (paper: 16)."""
    read_scale: float = Field(4.0, gt=0)
    """Pixels of a row that is read are this much smaller than those of the small picture."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: EDSR-LIIF on DIV2K (sec. 4.1): inputs of 48 x 48, scales 1 to 4."""
        paper = cls(
            height=48,
            width=48,
            features=64,
            blocks=16,
            hidden=256,
            depth=4,
            points=2304,
            residual=False,
            rate=1e-4,
            train_steps=1_000_000,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """An encoder of small pictures and a network of (feature, offset, pixel size) to color."""
    import torch
    import torch.nn.functional as F

    from pipeline.draw import Draw
    from pipeline.encoders.edsr import Edsr
    from pipeline.fields.activations import Relu
    from pipeline.fields.continuous import LocalImage
    from pipeline.fields.mlp import Layer
    from pipeline.fitting.method import Descend, Encoded, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine
    from pipeline.samples import Size

    if form.kind not in KINDS:
        raise ValueError(f"liif takes images; this dataset has {form.kind}")
    small = (config.height, config.width)
    layers = [Layer(config.hidden, Relu()) for _ in range(config.depth)]
    model = LocalImage(
        config.features,
        small,
        form.channels,
        [*layers, Layer(form.channels)],
        ensemble=config.ensemble,
        unfold=config.unfold,
        cell=config.cell,
        residual=config.residual,
    )
    model.encoder = Edsr(form.channels, config.features, config.blocks)

    def cut(color, draw):
        """A seeded cut of each picture, larger than the small one by a scale drawn for the step."""
        n, height, width, _ = color.shape
        most = min(config.largest, height / small[0], width / small[1])
        step = Draw(torch.zeros_like(draw.step[:1]), draw.step[:1])
        scale = 1 + (most - 1) * float(step.uniform("scale")[0])
        rows, columns = round(small[0] * scale), round(small[1] * scale)
        corner = draw.uniform("corner", 2)
        top = (corner[:, 0] * (height - rows + 1)).long()[:, None]
        left = (corner[:, 1] * (width - columns + 1)).long()[:, None]
        y = top + torch.arange(rows, device=color.device)
        x = left + torch.arange(columns, device=color.device)
        sample = torch.arange(n, device=color.device)[:, None, None]
        return color[sample, y[:, :, None], x[:, None, :]]

    def reduced(color):
        values = color.permute(0, 3, 1, 2) * 2 - 1
        if values.shape[2:] == small:
            return values
        return F.interpolate(values, small, mode="bicubic", antialias=True, align_corners=False)

    def encode(bound, batch, draw):
        color = batch.picture.color
        low = reduced(cut(color, draw) if bound.training else color)
        return {"feature.value": bound.encoder(low), "low.value": low}, {}

    def loss(bound, batch, draw):
        color = cut(batch.picture.color, draw)
        n, rows, columns, channels = color.shape
        place = draw.integers("pixels", rows * columns, config.points)
        x, y = place % columns, torch.div(place, columns, rounding_mode="floor")
        coords = torch.stack([(2 * x + 1) / columns - 1, (2 * y + 1) / rows - 1], -1)
        pixel = torch.tensor([2 / columns, 2 / rows], device=color.device).expand(n, 2)
        wanted = color.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, channels))
        return {"l1": (bound(coords, pixel) - (wanted * 2 - 1)).abs().mean((1, 2))}

    def read(bound, coords):
        pixel = [2 / (side * config.read_scale) for side in (config.width, config.height)]
        color = bound(coords, torch.tensor([pixel], device=coords.device))
        return {"color": color.mul(0.5).add(0.5).clamp(0, 1)}

    size = Size(pixels=0, picture=True, least=small)
    rate = Cosine(config.rate, config.train_steps, floor=config.rate / 100)
    train = Phase(
        steps=config.train_steps,
        size=size,
        batch=config.batch,
        updates=(Descend(loss, {"net.": Adam(rate), "encoder.": Adam(rate)}),),
    )
    field = Field(
        method="liif",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[*model.describe(), model.encoder.describe("encoder")],
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return Encoded(field, encode=encode, size=size, train=(train,))
