"""Which distribution over rows each method of a prior or of a latent GAN builds."""

from __future__ import annotations

from pipeline.downstream.adversarial import LatentGan
from pipeline.downstream.codes import Space
from pipeline.downstream.denoisers import DenoisingDiffusion, StraightFlow
from pipeline.downstream.distribution import Prior
from pipeline.downstream.mixture import Mixture
from pipeline.downstream.spline_flow import SplineFlow
from schemas.downstream import Conditional


def build_prior(config: Conditional, space: Space, shape: tuple[int, ...], classes: int) -> Prior:
    """The distribution of a method; its parameters are drawn from torch's global generator."""
    known = {
        "gaussian": Mixture,
        "flow": SplineFlow,
        "ddpm": DenoisingDiffusion,
        "rectified_flow": StraightFlow,
        "wgan_gp": LatentGan,
    }
    return known[config.name](config, space, shape, classes)
