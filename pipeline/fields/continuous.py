"""Continuous pictures from a grid of features: a network that is asked beside the nearest features
(LIIF, Chen et al. 2021, "Learning Continuous Image Representation with Local Implicit Image
Function")."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.fields.latent import Latent
from pipeline.fields.mlp import MLP

INSIDE = 1e-6
"""How far from the border a shifted query is kept."""


class LocalImage(nn.Module):
    """Color at coordinates, for pixels of any size, from features on a grid.

    Args:
        features: Channels of the grid.
        size: Rows and columns of the grid.
        channels: Of the picture.
        layers: The network's hidden layers and its linear output.
        ensemble: Asks beside the four features around a point and mixes by opposite areas
            (sec. 3, "local ensemble"); else beside the nearest one alone.
        unfold: Each place gets the features of its 3 x 3 neighbors ("feature unfolding").
        cell: The network is told the size of a pixel ("cell decoding").
        residual: The input picture, interpolated, is added to what the network says.
    """

    def __init__(
        self,
        features: int,
        size: tuple[int, int],
        channels: int,
        layers: list,
        *,
        ensemble: bool = True,
        unfold: bool = True,
        cell: bool = True,
        residual: bool = True,
    ):
        super().__init__()
        self.ensemble, self.unfold, self.cell, self.residual = ensemble, unfold, cell, residual
        self.feature = Latent((features, *size), dims=("feature", "row_of_grid", "column_of_grid"))
        axes = ("channel", "row_of_grid", "column_of_grid")
        self.low = Latent((channels, *size), trained=False, dims=axes)
        inputs = features * (9 if unfold else 1) + 2 + (2 if cell else 0)
        self.net = MLP(inputs, layers)

    def forward(
        self, coords: Float[Tensor, "*n p 2"], pixel: Float[Tensor, "*m 2"]
    ) -> Float[Tensor, "n p c"]:
        """Values in [-1, 1].

        Args:
            coords: x (right) and y (down) in [-1, 1].
            pixel: Width and height of a pixel in these units, for all points of a sample.
        """
        grid = self.feature()
        n, _, height, width = grid.shape
        coords = coords.expand(n, -1, -1)
        if self.unfold:
            grid = F.unfold(grid, 3, padding=1).reshape(n, -1, height, width)
        size = torch.tensor([width, height], device=coords.device, dtype=coords.dtype)
        flat = grid.flatten(2).transpose(1, 2)
        pixels = (pixel * size).reshape(-1, 1, 2).expand(n, coords.shape[1], 2)
        shifts = [(-1, -1), (-1, 1), (1, -1), (1, 1)] if self.ensemble else [(0, 0)]
        found, areas = [], []
        for shift in shifts:
            at = coords + (torch.tensor(shift, device=coords.device) + INSIDE) / size
            at = at.clamp(-1 + INSIDE, 1 - INSIDE)
            place = torch.minimum(((at + 1) / 2 * size).floor(), size - 1)
            beside = (coords - ((2 * place + 1) / size - 1)) * size
            number = (place[..., 1] * width + place[..., 0]).long()
            feature = flat.gather(1, number[..., None].expand(-1, -1, flat.shape[-1]))
            parts = [feature, beside, pixels] if self.cell else [feature, beside]
            found.append(self.net(torch.cat(parts, -1)))
            areas.append(beside.prod(-1).abs() + 1e-9)
        weights = torch.stack(areas[::-1])  # of the place diagonally across
        weights = weights / weights.sum(0)
        color = (torch.stack(found) * weights[..., None]).sum(0)
        return color + self._interpolated(coords) if self.residual else color

    def _interpolated(self, coords: Float[Tensor, "n p 2"]) -> Float[Tensor, "n p c"]:
        """The input picture between its pixels, bicubically."""
        picture = self.low()
        taken = F.grid_sample(
            picture,
            coords[:, None].expand(len(picture), -1, -1, -1),
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )
        return taken[:, :, 0].transpose(1, 2)

    def describe(self) -> list[dict[str, Any]]:
        first = {
            "kind": "local_image",
            "features": self.feature.describe("feature"),
            "low": self.low.describe("low"),
        }
        names = ("ensemble", "unfold", "cell", "residual")
        first |= {name: getattr(self, name) for name in names}
        return [first, *self.net.describe("net")]
