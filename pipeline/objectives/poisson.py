"""What differences of neighboring pixels say of a picture's derivatives (SIREN sec. 4.1, the
Poisson equation): a field is fitted to these, never to the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.batches import Picture
from pipeline.draw import Draw
from pipeline.fields.derivatives import PointwiseField, jacobian, laplacian

Target = Literal["difference", "sobel", "laplacian"]
EDGE = torch.tensor([[-1.0, 1.0]])
"""Taps of a difference along x."""
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
SECOND = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 1.0], [0.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Slopes:
    """Derivatives wanted at places of a picture, in units of color by coordinate ([-1, 1])."""

    coords: Float[Tensor, "n q 2"]
    wanted: Float[Tensor, "n q c k"]
    """Gradients (k = 2: along x and y) or Laplacians (k = 1)."""
    weight: Float[Tensor, "n q k"]
    """0 where a component is not known, or needs a pixel that is held out."""

    def some(self, count: int, draw: Draw) -> Slopes:
        """`count` of them, drawn anew each step; all where there are no more."""
        there = self.coords.shape[1]
        if count >= there:
            return self
        at = draw.integers("slopes", there, count)
        row = torch.arange(len(at), device=at.device)[:, None]
        return Slopes(self.coords[row, at], self.wanted[row, at], self.weight[row, at])

    def mean_with(self, other: Slopes) -> Slopes:
        """The mean of two pictures' derivatives at the same places."""
        wanted = (self.wanted + other.wanted) / 2
        return Slopes(self.coords, wanted, self.weight * other.weight)


def picture_slopes(picture: Picture, target: Target) -> Slopes:
    """Derivatives of pictures by differences of their pixels.

    `difference`: a gradient's component along the edge between two pixels, at its middle, where a
    difference is right to second order. `sobel`: both components at inner pixels, smoothed across
    (as in the authors' code, but in true units). `laplacian`: the 5-point stencil at inner pixels.
    """
    height, width = picture.color.shape[1:3]
    if min(height, width) < 3:
        raise ValueError(f"derivatives of a picture need 3 x 3 pixels, this has {height} x {width}")
    if target == "difference":
        parts = [
            _applied(picture, EDGE, width / 2, component=0),
            _applied(picture, EDGE.T, height / 2, component=1),
        ]
        coords, wanted, weight = (torch.cat(columns, 1) for columns in zip(*parts))
        return Slopes(coords, wanted, weight)
    if target == "sobel":
        (coords, along_x, seen_x) = _applied(picture, SOBEL, width / 2, component=0)
        (_, along_y, seen_y) = _applied(picture, SOBEL.T, height / 2, component=1)
        return Slopes(coords, along_x + along_y, seen_x + seen_y)
    coords, along_x, seen_x = _applied(picture, SECOND, (width / 2) ** 2)
    _, along_y, seen_y = _applied(picture, SECOND.T, (height / 2) ** 2)
    return Slopes(coords, along_x + along_y, seen_x * seen_y)


def _applied(
    picture: Picture, taps: Tensor, unit: float, component: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Places, values and weights of a stencil, wherever all its pixels are in the picture."""
    n, height, width, channels = picture.color.shape
    device = picture.color.device
    high, wide = taps.shape
    rows, columns = height - high + 1, width - wide + 1
    value = torch.zeros(n, rows, columns, channels, device=device)
    seen = torch.ones(n, rows, columns, device=device)
    for dy in range(high):
        for dx in range(wide):
            factor = float(taps[dy, dx])
            if factor:
                there = slice(dy, dy + rows), slice(dx, dx + columns)
                value = value + factor * unit * picture.color[:, *there]
                seen = seen * picture.seen[:, *there]
    y = (torch.arange(rows, device=device) * 2 + high) / height - 1
    x = (torch.arange(columns, device=device) * 2 + wide) / width - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1).reshape(1, -1, 2)
    value, seen = value.reshape(n, -1, channels, 1), seen.reshape(n, -1, 1)
    if component is not None:
        axis = torch.eye(2, device=device)[component]
        value, seen = value * axis, seen * axis
    return grid.expand(n, -1, 2), value, seen


def slope_error(field: PointwiseField, slopes: Slopes) -> Float[Tensor, "n"]:
    """Mean squared error of a field's gradients or Laplacians, over what is known of them."""
    coords = slopes.coords
    if slopes.wanted.shape[-1] == 2:
        found = jacobian(field, coords)
    else:
        found = laplacian(field, coords)[..., None]
    error = (found - slopes.wanted).square().mean(2) * slopes.weight
    return error.sum((1, 2)) / slopes.weight.sum((1, 2)).clamp(min=1)
