"""SIREN: a sinusoidal network for each image, sound or video (Sitzmann et al. 2020, "Implicit
Neural Representations with Periodic Activation Functions").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from schemas.base import Schema
from schemas.run import Pixels
from schemas.samples import FormSpec

if TYPE_CHECKING:
    from pipeline.fitting.method import Method

PAPER = "Sitzmann et al. 2020, NeurIPS, arXiv 2006.09661"
KINDS = ("images", "audio", "video")
STRATEGY = "per sample"
STORES = "params: the weights of one sine network a sample"
OMEGA_FIRST = {"images": 30.0, "audio": 3000.0, "video": 30.0}
"""Frequency factors of the first layer for coordinates in [-1, 1] (the authors' code: sounds have
theirs in [-100, 100], times 30)."""
QUANTITY = {"images": "color", "audio": "amplitude", "video": "color"}
AXES = {
    "images": ["x (right)", "y (down)"],
    "audio": ["t"],
    "video": ["t", "y (down)", "x (right)"],
}
CENTERS = {"images": "pixel_centers", "audio": "time_steps", "video": "voxel_centers"}
PRIOR_WEIGHT = {"tv": 1e-2, "hessian": 1e-4}


class Config(Schema):
    """Defaults: a small network that reaches 30 dB on small pictures in seconds on a CPU core. For
    sounds and videos take the presets `audio`, `video`: with the rate here sounds learn nothing."""

    LATER: ClassVar[tuple[str, ...]] = ("prior", "prior_weight", "prior_points")

    width: int = Field(64, ge=1)
    """Units of a sine layer."""
    depth: int = Field(3, ge=1)
    """Number of sine layers (before the linear output)."""
    omega_first: float | None = Field(None, gt=0)
    """Frequency factor of the first layer (sec. 3.2, supplement 1.5); absent: 30, of sounds 3000
    (the coordinates of all lie in [-1, 1])."""
    omega_hidden: float = Field(30.0, gt=0)
    """Frequency factor of the others."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate of Adam at its highest."""
    momentum: float = Field(0.8, ge=0, lt=1)
    """Decay of Adam's first moment. 0.8 takes a quarter to a third fewer steps to 30 dB than the
    usual 0.9 (32 to 128 pixels a side, widths 32 to 256; `benchmarks/results/engine.md`)."""
    warmup: int = Field(0, ge=0)
    """Steps over which the rate rises."""
    steps: int = Field(500, ge=1)
    """Most steps an image."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to a hundredth over `steps`, or stays."""
    pixels: Pixels | Literal["all"] | None = None
    """Pixels (time steps, voxels) a step; absent: all, but 4,096 of samples with more."""
    target_psnr: float | None = Field(30.0, gt=0)
    """An image is done at this PSNR (dB, of the pixels seen); absent: all steps are taken."""
    start: Literal["own", "common"] = "own"
    """Every image starts from weights of its own, or all from the same."""
    readout: Literal["drawn", "solved"] = "drawn"
    """How the output layer starts: drawn as the others, or solved by least squares for each image's
    pixels. That pays from learned hidden layers (`start: common`, `shared_from`), and with few
    layers (`benchmarks/results/engine.md`)."""

    prior: Literal["none", "tv", "hessian"] = "none"
    """What else is asked of a picture that is known in part (sec. 4.1, inpainting): small gradients
    (total variation) or small second derivatives, on average over random points."""
    prior_weight: float | None = Field(None, gt=0)
    """Weight of that, for values and coordinates in [-1, 1]; absent: 0.01 of `tv`, 1e-4 of
    `hessian`."""
    prior_points: int = Field(512, ge=1)
    """Random points of it a step (authors' code: half as many as the picture has pixels)."""

    @classmethod
    def presets(cls) -> dict[str, Config]:
        """`paper`: the authors' image experiment (experiment_scripts/train_img.py): 4 sine layers x
        256 ("3 hidden"), Adam at 1e-4 for 10,000 steps on all pixels. `paper_audio`
        (train_audio.py): 9,001 steps on the whole sound, first layer 3000. `paper_video`
        (train_video.py): 1,024 wide, 100,000 steps on 0.38 % of the voxels, here of the video
        "bikes", 250 x 272 x 640. `audio`, `video`: seconds of a core for a second of sound at
        8 kHz or a small video."""
        paper = {"width": 256, "depth": 4, "rate": 1e-4, "steps": 10_000, "schedule": "constant"}
        paper |= {"momentum": 0.9, "target_psnr": None, "pixels": "all"}
        sound = {"omega_first": 3000.0, "steps": 9_001}
        film = {"width": 1024, "steps": 100_000, "pixels": 165_376}
        return {
            "default": cls(),
            "paper": cls(**paper),
            "audio": cls(depth=4, rate=5e-4, omega_first=600.0, target_psnr=None),
            "video": cls(depth=4, rate=1e-3, omega_first=10.0, target_psnr=None),
            "paper_audio": cls(**{**paper, **sound}),
            "paper_video": cls(**{**paper, **film}),
        }


def build(config: Config, form: FormSpec) -> Method:
    """A sine network from coordinates to the channels of a sample, with values in [-1, 1]."""
    from pipeline.fields.mlp import MLP
    from pipeline.fields.sine import sine_layers
    from pipeline.fitting.method import Descend, Field, PerSample, Phase, Target
    from pipeline.fitting.optimizers import Adam
    from pipeline.fitting.readout import SolvedReadout
    from pipeline.fitting.schedules import Constant, Cosine
    from pipeline.objectives.photometric import ColorError, mse_of_psnr
    from pipeline.objectives.smoothness import SmoothColorError
    from pipeline.samples import ALL, Size

    if form.kind not in KINDS:
        raise ValueError(
            f"siren fits images, audio and video; this dataset has {form.kind} (try 'sdf' for "
            "shapes)"
        )
    omega_first = config.omega_first or OMEGA_FIRST[form.kind]
    layers = sine_layers(
        form.dims,
        config.width,
        config.depth,
        form.channels,
        omega_first=omega_first,
        omega_hidden=config.omega_hidden,
    )
    model = MLP(form.dims, layers)
    quantity, sound = QUANTITY[form.kind], form.kind == "audio"

    def read(bound, coords):
        value = bound(coords)
        return {quantity: value.clamp(-1, 1) if sound else value.mul(0.5).add(0.5).clamp(0, 1)}

    rate = Constant(config.rate)
    if config.schedule == "cosine":
        rate = Cosine(config.rate, config.steps, config.warmup, config.rate / 100)
    loss = ColorError()
    if config.prior != "none":
        weight = config.prior_weight or PRIOR_WEIGHT[config.prior]
        loss = SmoothColorError(config.prior, weight, config.prior_points)
    elif config.prior_weight is not None:
        raise ValueError(
            f"siren: prior_weight = {config.prior_weight:g} has no effect without a prior; set "
            "prior to tv or hessian"
        )
    target = None
    if config.target_psnr is not None:
        target = Target(mse_of_psnr(config.target_psnr), "mse", describe=_decibel)
    size = Size(pixels=ALL, most=4096)
    if config.pixels is not None:
        size = Size(pixels=ALL if config.pixels == "all" else config.pixels)
    phase = Phase(
        steps=config.steps,
        size=size,
        updates=(Descend(loss, {"": Adam(rate, betas=(config.momentum, 0.999))}),),
        enter=SolvedReadout(ColorError()) if config.readout == "solved" else None,
        target=target,
    )
    last = [] if sound else [{"kind": "affine", "scale": 0.5, "offset": 0.5}]
    field = Field(
        method="siren",
        config=config,
        form=form,
        model=model,
        read=read,
        layers=[*model.describe(""), *last],
        coords={
            "axes": AXES[form.kind],
            "range": [-1.0, 1.0],
            CENTERS[form.kind]: "(2 i + 1) / size - 1",
        },
        output={
            "quantity": quantity,
            "channels": form.channels,
            "range": [-1.0 if sound else 0.0, 1.0],
        },
    )
    return PerSample(field, fit=(phase,), start=config.start)


def _decibel(mse: float) -> str:
    from math import log10

    return f"{-10 * log10(max(mse, 1e-20) / 4):.2f} dB"
