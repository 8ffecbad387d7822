"""A prior of pictures over SIRENs: an encoder of the known pixels and a hypernetwork give the
weights of a sine network (Sitzmann et al. 2020, "Implicit Neural Representations with Periodic
Activation Functions", sec. 4.4).

What it is for: whole pictures from a few pixels, and a sine network for each picture of a data set
in one pass. With `rows: weights` the store looks as one of `siren` does: readers, exports and
probes of weights serve. With `rows: codes` it holds the codes, far smaller, and priors learn them.
`fit: {context: half}` or a large `ingest.held_out` asks for completion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09661, sec. 4.4"
KINDS = ("images",)
STRATEGY = "encoder"
STORES = (
    "params: the weights of one sine network an image (rows: weights), or latents/code: the code "
    "they are made of (rows: codes); shared/: encoder and hypernetwork"
)


class Config(Schema):
    """Defaults: small pictures, learned in a minute or two on two CPU cores."""

    rows: Literal["weights", "codes"] = "weights"
    """What a row is: the weights that the hypernetwork made, or the code that it makes them of."""
    encoder: Literal["set", "conv"] = "set"
    """A network of each known pixel and their mean, or convolutions over the known part (paper:
    both)."""
    latent: int = Field(128, ge=1)
    """Entries of a code (authors' code: 256)."""
    width: int = Field(64, ge=1)
    """Units of a sine layer (authors' code: 256)."""
    depth: int = Field(3, ge=1)
    """Sine layers (authors' code: 4, "3 hidden")."""
    omega_first: float = Field(30.0, gt=0)
    """Frequency factor of the first layer (paper: 30)."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others (paper: 30)."""
    hyper_width: int = Field(128, ge=1)
    """Hidden units of the network for each tensor of weights (authors' code: 256)."""
    hyper_depth: int = Field(1, ge=0)
    """Hidden layers of it (authors' code: 2)."""
    encoder_width: int = Field(128, ge=1)
    """Hidden units or channels of the encoder (authors' code: 256)."""
    encoder_depth: int = Field(2, ge=1)
    """Hidden layers of the encoder of sets, or halving blocks of the convolutional one (authors'
    code: 2)."""
    least: int = Field(10, ge=1)
    """Fewest known pixels in training (authors' code: 10)."""
    most: int = Field(200, ge=1)
    """Most known pixels in training; their number is drawn (authors' code: 200)."""
    seen: int = Field(1024, ge=1)
    """set: most pixels of its context that the encoder sees of a picture in a fit."""
    points: int = Field(512, ge=1)
    """Pixels of the loss (authors' code: all)."""
    code_weight: float = Field(0.1, ge=0)
    """Weight of the mean square of the code in the loss (authors' code: 0.1)."""
    weights_weight: float = Field(100.0, ge=0)
    """Weight of the mean square of the network's weights (authors' code: 100)."""
    rate: float = Field(5e-4, gt=0)
    """Learning rate of Adam (authors' code: 5e-5)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to a hundredth over `train_steps`, or stays (authors' code)."""
    clip: float = Field(1.0, gt=0)
    """Longest gradient (authors' code: 1)."""
    train_steps: int = Field(1500, ge=1)
    """Training steps."""
    batch: int = Field(16, ge=1)
    """Images a step (authors' code: 100)."""
    fit_steps: int = Field(0, ge=0)
    """Steps of Adam on a row from where the encoder puts it; 0: one pass and no gradient."""
    fit_rate: float = Field(1e-4, gt=0)
    """Their learning rate, falling to a tenth."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: CelebA at 32 x 32 with the set encoder (experiment_scripts/
        train_img_neural_process.py: 401 epochs of 162,770 pictures, 100 a step). `encoder: conv` is
        their other one, with layers of ours."""
        paper = cls(
            latent=256,
            width=256,
            depth=4,
            hyper_width=256,
            hyper_depth=2,
            encoder_width=256,
            points=32 * 32,
            rate=5e-5,
            schedule="constant",
            train_steps=401 * 1628,
            batch=100,
        )
        return {"default": cls(), "paper": paper}


def build(config: Config, form: FormSpec) -> Method:
    """A sine network from (x, y) to colors, the hypernetwork of its weights, and the encoder."""
    import torch

    from pipeline.encoders.sets import MaskedImageEncoder, SetEncoder, first_of_each
    from pipeline.fields.hypernetwork import HyperField, HyperNetwork, PredictedField, mean_square
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers
    from pipeline.fitting.method import Descend, Encoded, Field, Phase
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.schedules import Constant, Cosine
    from pipeline.objectives.photometric import ColorError
    from pipeline.samples import ALL, Size

    if form.kind not in KINDS:
        raise ValueError(
            f"siren_prior takes images; this dataset has {form.kind} (shapes: 'occnet' has "
            "encoders, 'metasdf' gives weights)"
        )
    if config.least > config.most:
        raise ValueError(
            f"siren_prior: least = {config.least} known pixels are more than most = {config.most}"
        )
    codes, sets = config.rows == "codes", config.encoder == "set"
    trunk = MLP(
        2,
        sine_layers(
            2,
            config.width,
            config.depth,
            form.channels,
            omega_first=config.omega_first,
            omega_hidden=config.omega_hidden,
        ),
    )
    network = trunk.describe("net")
    hyper = HyperNetwork(config.latent, trunk, width=config.hyper_width, depth=config.hyper_depth)
    model = HyperField(config.latent, trunk, hyper) if codes else PredictedField(trunk, hyper)
    shape = config.encoder_width, config.encoder_depth, config.latent
    if sets:
        model.encoder = SetEncoder(2 + form.channels, *shape)
    else:
        model.encoder = MaskedImageEncoder(form.channels, *shape)
    color_error = ColorError()

    def code_of(bound, batch, draw):
        """The code of the known pixels; in training of some of them."""
        number = draw.integers("known", config.most - config.least + 1) + config.least
        if sets:
            pixels = batch.grid
            weight = pixels.weight * first_of_each(pixels.coords)
            points = torch.cat([pixels.coords, pixels.color * 2 - 1], -1)
            if bound.training:
                points, weight = points[:, : config.most], weight[:, : config.most]
                place = torch.arange(weight.shape[1], device=weight.device)
                weight = weight * (place < number[:, None])
            return bound.encoder(points, weight)
        picture, seen = batch.picture.color * 2 - 1, batch.picture.seen
        if bound.training:
            order = draw.uniform("which", *seen.shape[1:]) + (1 - seen)
            last = (
                order.flatten(1)
                .sort(1)
                .values.gather(1, number[:, None].clamp(max=order[0].numel()) - 1)
            )
            seen = seen * (order <= last[..., None])
        return bound.encoder(picture, seen)

    def encode(bound, batch, draw):
        code = code_of(bound, batch, draw)
        terms = {"code": config.code_weight * code.square().mean(1)}
        if codes:
            return {"code.value": code}, terms
        weights = bound.hyper(code)
        terms["weights"] = config.weights_weight * mean_square(weights)
        return {f"net.{name}": value for name, value in weights.items()}, terms

    def loss(bound, batch, draw):
        if not codes:
            return color_error(bound, batch, draw)
        weights = bound.hyper(bound.code())
        terms = color_error(lambda coords: bound(coords, weights), batch, draw)
        return {**terms, "weights": config.weights_weight * mean_square(weights)}

    def read(bound, coords):
        return {"color": bound(coords).mul(0.5).add(0.5).clamp(0, 1)}

    rate = Constant(config.rate)
    if config.schedule == "cosine":
        rate = Cosine(config.rate, config.train_steps, floor=config.rate / 100)
    adam = Adam(rate, clip=config.clip)
    train = Phase(
        steps=config.train_steps,
        size=Size(pixels=config.points),
        batch=config.batch,
        updates=(Descend(loss, {"hyper.": adam, "encoder.": adam}),),
    )
    further = Phase(
        steps=config.fit_steps,
        size=Size(pixels=ALL, most=4096),
        updates=(
            Descend(
                color_error,
                {"": Adam(Cosine(config.fit_rate, config.fit_steps, floor=config.fit_rate / 10))},
            ),
        ),
    )
    field = Field(
        method="siren_prior",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[
            hyper.describe("hyper", of="net"),
            *network,
            {"kind": "affine", "scale": 0.5, "offset": 0.5},
            model.encoder.describe("encoder"),
        ],
        coords={
            "axes": ["x (right)", "y (down)"],
            "range": [-1.0, 1.0],
            "pixel_centers": "(2 i + 1) / size - 1",
        },
        output={"quantity": "color", "channels": form.channels, "range": [0.0, 1.0]},
    )
    return Encoded(
        field,
        encode=encode,
        size=Size(pixels=config.seen) if sets else Size(pixels=0, picture=True),
        train=(train,),
        fit=(further,) if config.fit_steps else (),
        weights=() if codes else ("net.",),
    )
