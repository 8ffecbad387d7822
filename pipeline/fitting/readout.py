"""Rows that begin with the linear output layer of a network solved by least squares.

With the hidden layers given, the best output layer has a closed form: 64 sine units that know
nothing of a picture of 32x32 pixels begin at 24 dB with it instead of at 5 dB, and units learned on
other pictures (`start: common`) at 28 dB. See `benchmarks/engine_starts.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from pipeline.draw import Draw
from pipeline.fields.bind import Bound, Tensors
from pipeline.fields.linear import linear
from pipeline.objectives.photometric import ColorError
from pipeline.samples import Batch


@dataclass(frozen=True)
class SolvedReadout:
    """`Phase.enter` of an `MLP` whose rows have all weights: replaces those of the last layer.

    Rows of one common start that see the same points (in any order) share the products that do not
    depend on colors, which leaves little to do for each.
    """

    loss: ColorError
    """What the output layer is to minimize."""
    ridge: float = 1e-3
    """Added to the diagonal of the features' mean products: it keeps weights of features that
    hardly differ small. From 1e-4 to 1e-2 the steps to 30 dB are the same."""

    def __call__(self, bound: Bound, rows: Tensors, batch: Batch, draw: Draw) -> Tensors:
        last = len(bound.table) - 1
        weight, bias = f"layers.{last}.weight", f"layers.{last}.bias"
        n, order = len(batch.grid.coords), by_place(batch.grid.coords)
        wanted = in_order(self.loss.wanted(batch), order)
        given = {
            "coords": in_order(batch.grid.coords, order),
            "weight": batch.grid.weight.gather(1, order),
        }
        given |= {name: value for name, value in rows.items() if name not in (weight, bias)}
        if all(bool((value == value[:1]).all()) for value in given.values()):
            given = {name: value[:2] for name, value in given.items()}
        features = hidden_features(bound, given, given["coords"])
        features = torch.cat([features, torch.ones_like(features[..., :1])], 2)
        share = given["weight"] / given["weight"].sum(1, keepdim=True).clamp(min=1e-12)
        weighed = (features * share[..., None]).mT
        inverse = inverse_products(weighed, features, self.ridge)
        if len(inverse) < n:
            inverse, weighed = (t[:1].expand(n, *t.shape[1:]) for t in (inverse, weighed))
        solved = torch.bmm(inverse, torch.bmm(weighed, wanted))
        return {**rows, weight: solved[:, :-1].mT.contiguous(), bias: solved[:, -1].contiguous()}


def complex_readout(
    columns: Complex[Tensor, "n p f"],
    wanted: Complex[Tensor, "n p"],
    weight: Float[Tensor, "p"],
    ridge: float = 1e-8,
) -> Complex[Tensor, "n f"]:
    """The x that bring `columns` x nearest to what is wanted, by weighed squares, in double
    precision; `ridge` is relative to the mean of the squared columns."""
    root = weight.to(torch.float64).sqrt()[:, None]
    columns, wanted = columns.to(torch.complex128) * root, wanted[..., None] * root
    gram = torch.bmm(columns.mH, columns)
    size = gram.diagonal(dim1=1, dim2=2).real.mean(1)[:, None, None]
    gram = gram + ridge * size * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, torch.bmm(columns.mH, wanted))[..., 0]


def by_place(coords: Float[Tensor, "n p d"]) -> Int[Tensor, "n p"]:
    """The order of each row's points by their last coordinate, then by the one before."""
    order = coords[..., 0].argsort(dim=1, stable=True)
    for axis in range(1, coords.shape[-1]):
        order = order.gather(1, coords[..., axis].gather(1, order).argsort(dim=1, stable=True))
    return order


def in_order(values: Float[Tensor, "n p c"], order: Int[Tensor, "n p"]) -> Float[Tensor, "n p c"]:
    """The points of each row in an order of its own."""
    return values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))


def hidden_features(
    bound: Bound, rows: Tensors, coords: Float[Tensor, "n p d"]
) -> Float[Tensor, "n p f"]:
    """What the last layer of an `MLP` sees, by the weights in `rows`."""
    hidden = coords
    for i, layer in enumerate(bound.table[:-1]):
        scale = bound.layers[i].scale
        weight, bias = rows[f"layers.{i}.weight"], rows[f"layers.{i}.bias"]
        hidden = layer.activation(linear(hidden, weight * scale, bias * scale))
    return hidden


def inverse_products(
    weighed: Float[Tensor, "n f p"], features: Float[Tensor, "n p f"], ridge: float
) -> Float[Tensor, "n f f"]:
    """Inverse of the features' mean products with the ridge added; in double precision, since
    features that hardly differ leave it ill-conditioned."""
    gram = torch.bmm(weighed, features).to(torch.float64)
    gram = gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.inv(gram).to(features.dtype)
