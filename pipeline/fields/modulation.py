"""Sine networks that all samples share, shifted layer by layer from a sample's latent (functa)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.fields.initializers import Constant, Uniform
from pipeline.fields.latent import Latent
from pipeline.fields.linear import Linear, linear


class ShiftedSirens(nn.Module):
    """sin(omega (W h + b + s)) with s a linear map of the latent, one for each layer (Dupont et al.
    2022, "From data to functa", sec. 3.1).

    With `cells` the latent is a grid of vectors (Bauer et al. 2023, "Spatial functa"). `nearest`: a
    point is shifted by the vector of its cell alone, with coordinates from 0 to 1 inside of it.
    `linear`: by the mean of the vectors of the cells around it, each of weight 1 at the center of
    its cell and 0 at the centers beside it, with the coordinates of the whole sample.

    Args:
        dims: Coordinate axes.
        outputs: Channels.
        width, depth: Of the sine layers.
        latent: Entries of the latent, or of each cell's.
        cells: Cells an axis; 0: one vector for the whole sample.
        lookup: How a point takes a vector from the grid.
        omega: Frequency factor of every layer.
    """

    def __init__(
        self,
        dims: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        latent: int,
        cells: int = 0,
        lookup: Literal["nearest", "linear"] = "nearest",
        omega: float = 30.0,
    ):
        super().__init__()
        self.cells, self.width, self.depth, self.omega = cells, width, depth, omega
        self.lookup = lookup
        self.code = Latent((*[cells] * dims, latent) if cells else (latent,))
        bound = math.sqrt(6 / width) / omega
        self.layers = nn.ModuleList()
        for i in range(depth):
            into = dims if i == 0 else width
            start = {
                "weight": Uniform(1 / dims if i == 0 else bound),
                "bias": Uniform(1 / math.sqrt(into)),
            }
            self.layers.append(Linear(into, width, start=start))
        last = {"weight": Uniform(bound), "bias": Constant(0.0)}
        self.last = Linear(width, outputs, start=last)
        self.shift = Linear(latent, depth * width)

    def forward(self, coords: Float[Tensor, "*n p d"]) -> Float[Tensor, "n p c"]:
        code = self.code()
        codes, hidden = (code.flatten(1, -2) if self.cells else code[:, None]), coords
        if self.cells and self.lookup == "linear":
            codes = torch.bmm(self.shares(coords).expand(len(code), -1, -1), codes)
        shifts = self.shift(codes) * self.omega
        if self.cells and self.lookup == "nearest":
            hidden, number = self.places(coords)
            number = number.expand(len(code), -1)[..., None].expand(-1, -1, shifts.shape[-1])
            shifts = shifts.gather(1, number)
        for layer, shift in zip(self.layers, shifts.split(self.width, -1)):
            weight, bias = layer.weight * self.omega, layer.bias * self.omega
            if self.cells:
                hidden = torch.sin(linear(hidden, weight, bias) + shift)
            else:  # one shift for all points goes in with the bias
                weight = weight.expand(len(code), *weight.shape)
                hidden = torch.sin(linear(hidden, weight, bias + shift[:, 0]))
        return self.last(hidden)

    def places(
        self, coords: Float[Tensor, "*n p d"]
    ) -> tuple[Float[Tensor, "*n p d"], Int[Tensor, "*n p"]]:
        """Coordinates in [0, 1) inside of a point's cell, and the number of the cell."""
        place = ((coords + 1) / 2 * self.cells).clamp(0, self.cells - 1e-4)
        cell = place.floor()
        number = cell[..., 0].long()
        for axis in range(1, cell.shape[-1]):
            number = number * self.cells + cell[..., axis].long()
        return place - cell, number

    def shares(self, coords: Float[Tensor, "*n p d"]) -> Float[Tensor, "*n p k"]:
        """What each of the cells, the last axis fastest, adds to the vector of a point."""
        place = ((coords + 1) / 2 * self.cells - 0.5).clamp(0, self.cells - 1)
        centers = torch.arange(self.cells, dtype=coords.dtype, device=coords.device)
        along = (1 - (place[..., None] - centers).abs()).clamp(min=0)
        found = along[..., 0, :]
        for axis in range(1, along.shape[-2]):
            found = (found[..., :, None] * along[..., axis, None, :]).flatten(-2)
        return found

    def describe(self) -> list[dict[str, Any]]:
        code = {**self.code.describe("code"), "cells": self.cells}
        if self.cells:
            code["lookup"] = self.lookup
        shift = {**self.shift.describe("shift"), "of": "code", "adds_to": "layers, in order"}
        layers = [
            {**layer.describe(f"layers.{i}"), "activation": "sine", "omega_0": self.omega}
            for i, layer in enumerate(self.layers)
        ]
        return [code, shift, *layers, self.last.describe("last")]
