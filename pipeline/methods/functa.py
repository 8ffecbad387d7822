"""functa: latents of images in three gradient steps, by shifting a shared sine network (Dupont et
al. 2022, "From data to functa: Your data point is a function and you can treat it like one").

The method to build a latent data set with: encoding costs a few steps a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Dupont et al. 2022, ICML, arXiv 2201.12204; spatial: Bauer et al. 2023, arXiv 2302.03130"
KINDS = ("images",)
STRATEGY = "meta-learning"
STORES = "latents/code: a vector, or a grid of vectors; shared/: the sine network and step sizes"


class Config(Schema):
    """Defaults: latents of small pictures, learned in a minute or two on two CPU cores."""

    LATER: ClassVar[tuple[str, ...]] = ("lookup",)

    latent: int = Field(64, ge=1)
    """Entries of a latent, or of each cell's (paper: 64 to 1,024)."""
    cells: int = Field(0, ge=0)
    """Cells an axis of a spatial latent; 0: a vector (spatial functa: 4 to 16)."""
    lookup: Literal["nearest", "linear"] = "nearest"
    """What a pixel takes of a spatial latent (both in the paper): `nearest`, its own cell, which
    knows nothing of its place; `linear`, a mean of the cells around it, so that pictures have no
    seams, and parts that tell of each other (centered digits, faces) are kept 2 dB better. Only
    `nearest` has a compiled loop."""
    width: int = Field(64, ge=1)
    """Units of a sine layer (paper: 512)."""
    depth: int = Field(4, ge=1)
    """Sine layers (paper: 15)."""
    omega: float = Field(8.0, gt=0)
    """Frequency factor of every layer (paper: 30 for 64 x 64 pixels)."""
    inner_steps: int = Field(3, ge=1)
    """Gradient steps from the zero latent (paper: 3)."""
    inner_rate: float = Field(1.0, gt=0)
    """Start of the learned step sizes, one for each entry and step. The loss is a mean over pixels,
    so useful sizes are far above 1 (paper: 0.005 to 0.1 for a summed loss)."""
    inner_pixels: int = Field(576, ge=1)
    """Pixels of an inner step, and of the outer loss (paper: all)."""
    rate: float = Field(3e-3, gt=0)
    """Learning rate of Adam in training, falling to a fiftieth (paper: 3e-6)."""
    train_steps: int = Field(1000, ge=1)
    """Training steps (paper: 500,000)."""
    batch: int = Field(16, ge=1)
    """Images a training step (paper: 16 a device)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: CelebA-HQ 64 x 64 with latents of 256 (sec. 4, appendix); `spatial`: 4 x 4 cells
        of 16."""
        paper = cls(
            latent=256,
            width=512,
            depth=15,
            omega=30.0,
            rate=3e-6,
            train_steps=500_000,
            inner_pixels=4096,
        )
        return {"default": cls(), "paper": paper, "spatial": cls(latent=16, cells=4)}


def build(config: Config, form: FormSpec) -> Method:
    """A shared network from (x, y) and a latent to colors; an inner loop that finds latents."""
    from pipeline.fields.modulation import ShiftedSirens
    from pipeline.fitting.method import Descend, Field, Inner, MetaLearned, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Cosine
    from pipeline.objectives.photometric import ColorError
    from pipeline.samples import Size

    if form.kind not in KINDS:
        raise ValueError(f"functa fits images; this dataset has {form.kind} (shapes: 'deepsdf')")
    if config.lookup != "nearest" and not config.cells:
        raise ValueError(
            f"method.lookup: {config.lookup!r} is of a grid of cells; set method.cells (4 to 16)"
        )
    model = ShiftedSirens(
        2,
        form.channels,
        width=config.width,
        depth=config.depth,
        latent=config.latent,
        cells=config.cells,
        lookup=config.lookup,
        omega=config.omega,
    )

    def read(bound, coords):
        return {"color": bound(coords).mul(0.5).add(0.5).clamp(0, 1)}

    size = Size(pixels=config.inner_pixels)
    inner = Inner(
        ColorError(),
        steps=config.inner_steps,
        rate=config.inner_rate,
        size=size,
        learned="parameter",
    )
    adam = Adam(Cosine(config.rate, config.train_steps, floor=config.rate / 50), clip=1.0)
    sizes = Adam(Cosine(config.rate * 10, config.train_steps, floor=config.rate / 5), clip=1.0)
    outer = Phase(
        steps=config.train_steps,
        size=size,
        batch=config.batch,
        updates=(
            Descend(
                ColorError(),
                {"layers.": adam, "last.": adam, "shift.": adam, "rate.": sizes},
            ),
        ),
    )
    field = Field(
        method="functa",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[*model.describe(), {"kind": "affine", "scale": 0.5, "offset": 0.5}],
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return MetaLearned(field, rows=("code.",), inner=inner, train=(outer,))
