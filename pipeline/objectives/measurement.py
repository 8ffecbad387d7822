"""Linear measurements of a whole picture: itself, its projections (CT), some of its frequencies
(MRI). A field is fitted to what was measured, never to the pixels behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pipeline.draw import Draw
from pipeline.samples import pixel_coords

Operator = Callable[[Tensor, Draw], Tensor]
"""Pictures `[n, h, w, c]` to measured values `[n, m, c]`, linear in the picture."""


@dataclass(frozen=True)
class Radon:
    """Parallel-beam projections: the mean along each ray, one ray a pixel of the longer side.

    Angles are evenly spaced over half a turn. A ray is sampled once a pixel, between pixels
    bilinearly; outside the picture there is nothing. Means and not sums (Tancik et al. 2021,
    "Learned Initializations", CT code), so that a loss does not grow with the resolution.
    """

    angles: int

    def __call__(self, picture: Float[Tensor, "n h w c"], draw: Draw) -> Float[Tensor, "n m c"]:
        n, height, width, channels = picture.shape
        side = max(height, width)
        at = (torch.arange(side, device=picture.device) * 2 + 1) / side - 1
        angle = torch.arange(self.angles, device=picture.device) * (math.pi / self.angles)
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        along, across = at[None, :, None], at[None, None, :]
        x = (across * cos - along * sin) * (side / width)
        y = (across * sin + along * cos) * (side / height)
        grid = torch.stack([x, y], -1).reshape(1, self.angles * side, side, 2)
        values = F.grid_sample(
            picture.movedim(-1, 1), grid.expand(n, -1, -1, -1), align_corners=False
        )
        rays = values.reshape(n, channels, self.angles, side, side).mean(3)
        return rays.flatten(2).movedim(1, -1)


@dataclass(frozen=True)
class MaskedFourier:
    """A seeded choice of a picture's frequencies, real and imaginary part one after the other.

    Each frequency is measured with a probability that falls off as a Gaussian of its distance from
    zero; a sample's choice is the same in every step. Orthonormal, so noise keeps its size.
    """

    share: float
    """Share of the frequencies that is measured, on average."""
    sigma: float = 0.25
    """Width of the fall-off, in units of the highest frequency."""

    def mask(self, height: int, width: int, draw: Draw) -> Float[Tensor, "n h w"]:
        """1 where a frequency is measured, in the order of `torch.fft.fftfreq`."""
        chance = draw.at(torch.zeros_like(draw.step)).uniform("frequencies", height, width)
        density = _density(height, width, self.share, self.sigma)
        return (chance < density.to(chance.device)).to(torch.float32)

    def __call__(self, picture: Float[Tensor, "n h w c"], draw: Draw) -> Float[Tensor, "n m c"]:
        _, height, width, _ = picture.shape
        spectrum = torch.view_as_real(torch.fft.fft2(picture, dim=(1, 2), norm="ortho"))
        measured = spectrum * self.mask(height, width, draw)[..., None, None]
        return measured.movedim(-1, 1).flatten(1, 3)


@lru_cache(maxsize=64)
def _density(height: int, width: int, share: float, sigma: float) -> Float[Tensor, "h w"]:
    """Chance of every frequency: a Gaussian scaled so that its mean, cut at 1, is `share`."""
    fy, fx = torch.fft.fftfreq(height) * 2, torch.fft.fftfreq(width) * 2
    weight = torch.exp(-(fy[:, None] ** 2 + fx[None] ** 2) / (2 * sigma**2))
    low, high = 0.0, 1 / float(weight.min().clamp(min=1e-12))
    for _ in range(60):
        middle = (low + high) / 2
        if (weight * middle).clamp(max=1.0).mean() < share:
            low = middle
        else:
            high = middle
    return (weight * high).clamp(max=1.0)


def measured_error(
    color: Callable[[Float[Tensor, "1 p 2"]], Float[Tensor, "n p c"]],
    picture: Float[Tensor, "n h w c"],
    operator: Operator,
    draw: Draw,
) -> Float[Tensor, "n"]:
    """Mean squared difference of what is measured of a field and of a picture.

    Args:
        color: The field's colors in [0, 1] at coordinates.
        picture: Colors in [0, 1]; the field is evaluated at its pixel centres.
    """
    n, height, width, channels = picture.shape
    coords = pixel_coords(height, width).to(picture.device)[None]
    found = color(coords).expand(n, -1, -1).reshape(n, height, width, channels)
    return (operator(found, draw) - operator(picture, draw)).square().mean((1, 2))
