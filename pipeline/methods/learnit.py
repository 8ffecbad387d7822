"""Learned initializations: weights from which a few gradient steps fit a picture (Tancik et al.
2021, "Learned Initializations for Optimizing Coordinate-Based Neural Representations").

What it is for: fits that start close. The start is kept in the store (`shared/start.*`); `siren`
with `start: common` and `shared_from: STORE` begins from it. Pictures may be known by their pixels
or by projections alone (computed tomography).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Tancik et al. 2021, CVPR, arXiv 2012.02189"
KINDS = ("images",)
STRATEGY = "meta-learning"
STORES = "params: the weights of a network an image; shared/start.*: where all of them begin"


class Config(Schema):
    """Defaults: a start for small pictures, learned in a minute or two on two CPU cores."""

    outer: Literal["maml", "reptile"] = "maml"
    """The start follows the gradient through the inner steps, or moves to where they end."""
    measure: Literal["pixels", "radon"] = "pixels"
    """What is seen of a picture: pixels, or its projections (CT; no pixel is seen)."""
    network: Literal["sine", "fourier"] = "sine"
    """Sine layers, named as those of `siren`; or ReLU layers behind Fourier features (CT)."""
    angles: int = Field(20, ge=1, le=1024)
    """radon: directions over half a turn (authors' code: 20)."""
    width: int = Field(64, ge=1)
    """Units of a hidden layer (authors' code: 256)."""
    depth: int = Field(3, ge=1)
    """Hidden layers (authors' code: 5)."""
    omega_first: float = Field(30.0, gt=0)
    """sine: frequency factor of the first layer (authors' code: 200)."""
    omega_hidden: float = Field(30.0, gt=0)
    """sine: frequency factor of the others."""
    frequencies: int = Field(64, ge=1)
    """fourier: how many (authors' code: 256)."""
    sigma: float = Field(3.0, gt=0)
    """fourier: standard deviation of the frequencies, in cycles a picture."""
    inner_steps: int = Field(2, ge=1)
    """Gradient steps from the start in training (authors' code: 2; CT 12)."""
    inner_rate: float = Field(1e-2, gt=0)
    """Rate of these steps, never learned (authors' code: 1e-2; CT 10)."""
    fit_steps: int | None = Field(None, ge=0)
    """Steps of the same kind in a fit, if other than `inner_steps` (authors' code, CT: up to
    1,000). No momentum: Adam would leave the start at once."""
    inner_pixels: int = Field(256, ge=1)
    """pixels: how many an inner step sees, and the outer loss (authors' code: all)."""
    rate: float = Field(3e-4, gt=0)
    """Learning rate of Adam for the start, falling to a tenth (authors' code: 1e-5; CT 5e-5)."""
    train_steps: int = Field(1000, ge=1)
    """Training steps (authors' code: 150,000; CT 100,000)."""
    batch: int = Field(4, ge=1)
    """Images a training step (authors' code: 3; CT 1)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: CelebA at 178 x 178; `paper-ct`: 256 x 256 phantoms (authors' code). Their
        frequencies have a deviation of 30 without the factor 2 pi."""
        paper = cls(
            width=256,
            depth=5,
            omega_first=200.0,
            inner_pixels=178 * 178,
            rate=1e-5,
            train_steps=150_000,
            batch=3,
        )
        tomography = cls(
            outer="reptile",
            measure="radon",
            network="fourier",
            width=256,
            depth=5,
            frequencies=256,
            sigma=30 / 6.283185307,
            inner_steps=12,
            inner_rate=10.0,
            fit_steps=1000,
            rate=5e-5,
            train_steps=100_000,
            batch=1,
        )
        return {"default": cls(), "paper": paper, "paper-ct": tomography}


def build(config: Config, form: FormSpec) -> Method:
    """A network from (x, y) to colors whose start is learned, and the steps from there."""
    from pipeline.fitting.method import Descend, Field, Inner, MetaLearned, Phase
    from pipeline.fitting.optimizers import Adam, Sgd
    from pipeline.fitting.schedules import Cosine
    from pipeline.objectives.measurement import Radon, measured_error
    from pipeline.objectives.photometric import ColorError
    from pipeline.samples import Size

    if form.kind not in KINDS:
        raise ValueError(
            f"learnit fits images; this dataset has {form.kind} (shapes: 'metasdf' learns a start)"
        )
    if config.fit_steps is not None and config.fit_steps < config.inner_steps:
        raise ValueError(
            f"fit_steps: {config.fit_steps} are fewer than the inner_steps {config.inner_steps} "
            "of training; leave them out, or take more"
        )
    model = _sine(config, form) if config.network == "sine" else _fourier(config, form)
    operator = Radon(config.angles)

    def measured(bound, batch, draw):
        found = measured_error(
            lambda coords: bound(coords).mul(0.5).add(0.5), batch.picture.color, operator, draw
        )
        return {"mse": 4 * found}  # of colors in [-1, 1], as for pixels

    def read(bound, coords):
        return {"color": bound(coords).mul(0.5).add(0.5).clamp(0, 1)}

    pixels = config.measure == "pixels"
    loss = ColorError() if pixels else measured
    size = Size(pixels=config.inner_pixels) if pixels else Size(pixels=0, picture=True)
    inner = Inner(
        loss,
        steps=config.inner_steps,
        rate=config.inner_rate,
        size=size,
        order=2 if config.outer == "maml" else 0,
    )
    adam = Adam(Cosine(config.rate, config.train_steps, floor=config.rate / 10))
    outer = Phase(
        steps=config.train_steps,
        size=size,
        batch=config.batch,
        updates=(Descend(loss, {"start.": adam}),),
    )
    more = (config.fit_steps or config.inner_steps) - config.inner_steps
    further = Phase(more, size, (Descend(loss, {"": Sgd(config.inner_rate)}),))
    field = Field(
        method="learnit",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[
            *(model.describe("") if config.network == "sine" else model.describe()),
            {"kind": "affine", "scale": 0.5, "offset": 0.5},
        ],
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return MetaLearned(
        field,
        rows=("layers.", "net."),
        inner=inner,
        train=(outer,),
        fit=(further,) if more else (),
    )


def _sine(config: Config, form: FormSpec):
    """The network of `siren`, parameter by parameter."""
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers

    layers = sine_layers(
        2,
        config.width,
        config.depth,
        form.channels,
        omega_first=config.omega_first,
        omega_hidden=config.omega_hidden,
    )
    return MLP(2, layers)


def _fourier(config: Config, form: FormSpec):
    """A ReLU network behind sines of the coordinates, as in `fourier`, linear at the end."""
    from pipeline.fields.activations import Relu
    from pipeline.fields.encodings import EncodedField, FourierFeatures
    from pipeline.fields.initializers import glorot_normal
    from pipeline.fields.mlp import MLP, Layer

    encoding = FourierFeatures(2, config.frequencies, config.sigma)
    widths = [encoding.outputs, *[config.width] * config.depth]
    layers = [Layer(out, Relu(), start=glorot_normal(into, out)) for into, out in pairwise(widths)]
    last = Layer(form.channels, start=glorot_normal(widths[-1], form.channels))
    return EncodedField(encoding, MLP(encoding.outputs, [*layers, last]), scale=0.5, offset=0.5)
