"""Fourier features: a ReLU network behind sines of the coordinates, for each image (Tancik et al.
2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains").

Fits pixels, projections (computed tomography) or a choice of frequencies (magnetic resonance).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Tancik et al. 2020, NeurIPS, arXiv 2006.10739"
KINDS = ("images",)
STRATEGY = "per sample"
STORES = "params: the weights of one ReLU network an image; shared/: the fixed frequencies"


class Config(Schema):
    """Defaults: pictures of 64 to 256 pixels a side in a few seconds each on a CPU core."""

    encoding: Literal["gaussian", "positional", "basic", "none"] = "gaussian"
    """Frequencies drawn from a Gaussian; log-linear along the axes; 1 along each axis; none."""
    sigma: float = Field(5.0, gt=0)
    """gaussian: standard deviation, in cycles a picture (sec. 6.1: 10 natural, 14 text). The
    bandwidth: too low blurs, too high leaves noise between the pixels."""
    octaves: float = Field(6.0, gt=0)
    """positional: the highest frequency is 2^octaves - 1 cycles a picture."""
    frequencies: int = Field(64, ge=1)
    """gaussian: how many; positional: over all axes (paper: 256)."""
    width: int = Field(64, ge=1)
    """Units of a hidden layer (paper: 256)."""
    depth: int = Field(3, ge=1)
    """Hidden layers (authors' code: 4)."""
    operator: Literal["pixels", "radon", "fourier"] = "pixels"
    """What is measured of a picture: its pixels; projections (CT); some of its frequencies (MRI).
    Projections and frequencies are of the whole picture; no pixel is seen."""
    angles: int = Field(20, ge=1, le=1024)
    """radon: directions over half a turn (supplement: 20)."""
    share: float = Field(0.25, gt=0, le=1)
    """fourier: share of the frequencies that is measured, the low ones more often."""
    rate: float = Field(3e-3, gt=0)
    """Learning rate of Adam (authors' code: 1e-3 for wider networks)."""
    steps: int = Field(400, ge=1)
    """Steps an image (authors' code: 2,000; CT and MRI 1,000)."""
    pixels: int | None = Field(None, ge=1)
    """pixels: how many a step; absent: all, but 2,048 of pictures with more."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: the authors' natural images (supplement; demo notebook)."""
        paper = {"frequencies": 256, "width": 256, "depth": 4, "steps": 2000, "sigma": 10.0}
        paper["rate"] = 1e-3
        return {"default": cls(), "paper": cls(**paper)}


def build(config: Config, form: FormSpec) -> Method:
    """An encoded network from (x, y) to the channels of an image, with values in [0, 1]."""
    from pipeline.fields.activations import Relu, Sigmoid
    from pipeline.fields.encodings import EncodedField, FourierFeatures, LogLinear
    from pipeline.fields.initializers import glorot_normal
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting.method import Descend, Field, PerSample, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant
    from pipeline.objectives.measurement import MaskedFourier, Radon, measured_error
    from pipeline.objectives.photometric import color_mse
    from pipeline.samples import ALL, Size

    if form.kind not in KINDS:
        raise ValueError(
            f"fourier fits images; this dataset has {form.kind} (try 'sdf' for shapes)"
        )
    encoding = {
        "gaussian": lambda: FourierFeatures(2, config.frequencies, config.sigma),
        "positional": lambda: LogLinear(2, max(config.frequencies // 2, 1), config.octaves),
        "basic": lambda: LogLinear(2, 1, 1.0),
        "none": lambda: None,
    }[config.encoding]()
    inputs = 2 if encoding is None else encoding.outputs
    widths = [inputs, *[config.width] * config.depth]
    layers = [Layer(out, Relu(), start=glorot_normal(into, out)) for into, out in pairwise(widths)]
    last = Layer(form.channels, Sigmoid(), start=glorot_normal(widths[-1], form.channels))
    # The encodings count cycles a picture: coordinates run from 0 to 1 in front of them. Without
    # one the network gets [-1, 1], as in the authors' code.
    half = {} if encoding is None else {"scale": 0.5, "offset": 0.5}
    model = EncodedField(encoding, MLP(inputs, [*layers, last]), **half)
    operator = {
        "pixels": None,
        "radon": Radon(config.angles),
        "fourier": MaskedFourier(config.share),
    }[config.operator]

    def pixel_loss(bound, batch, draw):
        pixels = batch.grid
        return {"mse": color_mse(bound(pixels.coords), pixels.color, pixels.weight) / 2}

    def measured_loss(bound, batch, draw):
        return {"mse": measured_error(bound, batch.picture.color, operator, draw) / 2}

    def read(bound, coords):
        return {"color": bound(coords)}

    size = Size(pixels=0, picture=True)
    if config.operator == "fourier":  # of fewer pixels the share is less than one frequency
        side = math.ceil(config.share**-0.5)
        size = Size(pixels=0, picture=True, least=(side, side))
    if operator is None:
        few = config.pixels
        size = Size(pixels=ALL, most=2048) if few is None else Size(pixels=few)
    loss = pixel_loss if operator is None else measured_loss
    phase = Phase(
        steps=config.steps,
        size=size,
        updates=(Descend(loss, {"net.": Adam(Constant(config.rate))}),),
    )
    field = Field(
        method="fourier",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=model.describe(),
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return PerSample(field, fit=(phase,))
