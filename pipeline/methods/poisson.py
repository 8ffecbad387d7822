"""SIREN from derivatives: a sine network for each picture, found from its gradients or Laplacian
alone (Sitzmann et al. 2020, sec. 4.1); two pictures blend where their gradients are averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09661, sec. 4.1"
KINDS = ("images",)
STRATEGY = "per sample"
STORES = "params: the weights of one sine network an image"


class Config(Schema):
    """Defaults: pictures of 48 to 128 pixels a side in some ten seconds each on a CPU core."""

    target: Literal["difference", "sobel", "laplacian"] = "difference"
    """What is known: differences of neighbors, taken as gradients between them; gradients by Sobel
    filters (authors' code), which smooth; the Laplacian, which leaves much open at the border."""
    pair: bool = False
    """A picture holds two, side by side: the mean of their gradients is fitted (sec. 4.1, image
    editing). Both halves then read as the blend."""
    mean: bool = True
    """Derivatives leave a constant open. It is set from the mean color of the pixels fitted, at the
    end; false: it stays what it became."""
    width: int = Field(64, ge=1)
    """Units of a sine layer."""
    depth: int = Field(3, ge=1)
    """Number of sine layers (before the linear output)."""
    omega_first: float = Field(30.0, gt=0)
    """Frequency factor of the first layer (supplement 1.5)."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others."""
    rate: float = Field(1e-3, gt=0)
    """Learning rate of Adam, falling to a hundredth (authors' code: 1e-4, constant)."""
    steps: int = Field(500, ge=1)
    """Steps an image (authors' code: 10,000)."""
    points: int = Field(4096, ge=1)
    """Places a step, all of smaller pictures (authors' code: all). With few of them large areas
    drift: a photograph of 64 x 64 comes to 22 to 27 dB with 4,096, to 19 to 22 with 1,024."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: the authors' experiment_scripts/train_poisson_grad_img.py: 4 sine layers x 256
        ("3 hidden"), all of 256 x 256 gradients a step. The rate falls here."""
        paper = {"width": 256, "depth": 4, "rate": 1e-4, "steps": 10_000, "target": "sobel"}
        return {"default": cls(), "paper": cls(**paper, points=2**16)}


def build(config: Config, form: FormSpec) -> Method:
    """A sine network from (x, y) to the channels of an image, with values in [0, 1]."""
    import torch

    from pipeline.batches import Picture
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers
    from pipeline.fitting.method import Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine
    from pipeline.objectives.poisson import picture_slopes, slope_error
    from pipeline.samples import Size, pixel_coords

    if form.kind not in KINDS:
        raise ValueError(f"poisson fits images; this dataset has {form.kind} (try 'siren_sdf')")
    layers = sine_layers(
        2,
        config.width,
        config.depth,
        form.channels,
        omega_first=config.omega_first,
        omega_hidden=config.omega_hidden,
    )
    model = MLP(2, layers)
    last = f"layers.{config.depth}.bias"

    def halves(picture):
        """The pictures of a sample: one, or the left and the right half."""
        if not config.pair:
            return [picture]
        wide = picture.color.shape[2] // 2
        sides = (slice(0, wide), slice(picture.color.shape[2] - wide, None))
        return [Picture(picture.color[:, :, s], picture.seen[:, :, s]) for s in sides]

    def loss(bound, batch, draw):
        slopes = [picture_slopes(half, config.target) for half in halves(batch.picture)]
        wanted = slopes[0].mean_with(slopes[1]) if config.pair else slopes[0]
        return {"slopes": slope_error(bound, wanted.some(config.points, draw))}

    def set_mean(bound, rows, batch, draw):
        """Moves the output's bias so that the mean color is the picture's."""
        parts = halves(batch.picture)
        seen = torch.stack([part.seen for part in parts]).amin(0)[..., None]
        color = torch.stack([part.color for part in parts]).mean(0)
        coords = pixel_coords(*color.shape[1:3]).to(color.device)[None]
        found = bound(coords).expand(len(color), -1, -1).reshape(color.shape)
        off = ((color - found) * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
        return {last: rows[last] + off}

    def read(bound, coords):
        if config.pair:  # x in [-1, 0] and in [0, 1] each span the blend
            x = coords[..., :1]
            x = torch.where(x < 0, 2 * x + 1, 2 * x - 1)
            coords = torch.cat([x, coords[..., 1:]], -1)
        return {"color": bound(coords).clamp(0, 1)}

    phase = Phase(
        steps=config.steps,
        size=Size(pixels=0, picture=True, least=(3, 6 if config.pair else 3)),
        updates=(
            Descend(loss, {"": Adam(Cosine(config.rate, config.steps, floor=config.rate / 100))}),
        ),
        edits=((config.steps, set_mean),) if config.mean else (),
    )
    halved = {"halves": "x -> 2 x + 1 left of 0, 2 x - 1 right of it"} if config.pair else {}
    field = Field(
        method="poisson",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(""),
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
            **halved,
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return PerSample(field, fit=(phase,))
