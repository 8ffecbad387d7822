"""Derivatives of fields by their coordinates, point by point, through the batched path.

A field is any function of coordinates `[n p d]`, such as a bound model, whose value at a point
depends on that point alone; values are `[n p]` or `[n p c]`. Derivative axes are appended to the
shape of the values. Every result can be differentiated again, by parameters and by coordinates, in
plain PyTorch and under `torch.compile`. Complex fields have two channels, real and imaginary part
(`complex_product`).

All of it is reverse mode, since functional forward mode does not compile. It is also the faster
one: the Laplacian of 3 x 64 sine networks at 4 x 512 points with its gradient by the weights takes
37 ms (compiled: 16), against 69 with forward over reverse and 87 with forward twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vjp

PointwiseField = Callable[[Float[Tensor, "n p d"]], Float[Tensor, "n p *c"]]
"""A bound model, or a function of one."""


def gradient(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
    """Gradient of a scalar field (values `[n p]` or `[n p 1]`)."""
    return value_and_gradient(field, coords)[1]


def value_and_gradient(
    field: PointwiseField, coords: Float[Tensor, "n p d"]
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p d"]]:
    """Value and gradient of a scalar field (values `[n p]` or `[n p 1]`), in one pass each way."""
    value, pull = vjp(field, coords)
    if value[0, 0].numel() != 1:
        raise ValueError(
            f"a gradient needs one value a point, this field gives {tuple(value.shape[2:])}; pick "
            "a channel, or take the jacobian"
        )
    (slope,) = pull(torch.ones_like(value))
    return value.reshape(coords.shape[:2]), slope


def jacobian(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p *c d"]:
    """First derivatives of every channel."""
    return value_and_jacobian(field, coords)[1]


def value_and_jacobian(
    field: PointwiseField, coords: Float[Tensor, "n p d"]
) -> tuple[Float[Tensor, "n p *c"], Float[Tensor, "n p *c d"]]:
    """Values and first derivatives of every channel; one reverse pass a channel."""
    value, pull = vjp(field, coords)
    slopes = [pull(_unit(value, k))[0] for k in range(_channels(value))]
    return value, torch.stack(slopes, 2).reshape(*value.shape, coords.shape[-1])


def second_derivatives(
    field: PointwiseField, coords: Float[Tensor, "n p d"]
) -> tuple[Float[Tensor, "n p *c"], Float[Tensor, "n p *c d"], Float[Tensor, "n p *c d"]]:
    """Values, first derivatives, and the second derivative along each axis by itself."""
    slope, pull, value = vjp(lambda x: _swapped(field, x), coords, has_aux=True)
    d = coords.shape[-1]
    second = [pull(_unit(slope, k))[0][..., k % d] for k in range(_channels(slope))]
    return value, slope, torch.stack(second, -1).reshape(slope.shape)


def laplacian(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p *c"]:
    """Sum of the second derivatives along the axes, of every channel."""
    return second_derivatives(field, coords)[2].sum(-1)


def hessian(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p *c d d"]:
    """All second derivatives of every channel."""
    slope, pull = vjp(lambda x: jacobian(field, x), coords)
    rows = [pull(_unit(slope, k))[0] for k in range(_channels(slope))]
    return torch.stack(rows, 2).reshape(*slope.shape, coords.shape[-1])


def divergence(field: PointwiseField, coords: Float[Tensor, "n p d"]) -> Float[Tensor, "n p *c"]:
    """Divergence of a vector field `[n p d]`, or of one a channel (`[n p c d]`).

    The last axis of the values is the direction: `divergence(lambda x: jacobian(f, x), coords)` is
    the Laplacian of f.
    """
    value, pull = vjp(field, coords)
    d = coords.shape[-1]
    if value.dim() < 3 or value.shape[-1] != d:
        raise ValueError(
            f"a divergence needs one component for each of the {d} axes last, this field gives "
            f"{tuple(value.shape[2:])} a point"
        )
    terms = [pull(_unit(value, k))[0][..., k % d] for k in range(_channels(value))]
    return torch.stack(terms, -1).reshape(value.shape).sum(-1)


def complex_product(a: Tensor, b: Tensor, axis: int = -1) -> Tensor:
    """Product of complex numbers whose real and imaginary parts lie along an axis of length 2."""
    (a_real, a_imag), (b_real, b_imag) = a.unbind(axis), b.unbind(axis)
    product = a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real
    return torch.stack(product, axis)


def _swapped(field: PointwiseField, coords: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = value_and_jacobian(field, coords)
    return slope, value


def _channels(value: Tensor) -> int:
    """Values a point."""
    return math.prod(value.shape[2:])


def _unit(value: Tensor, channel: int) -> Tensor:
    """Like `value`: one in a channel (counted through all its axes), zero in the others."""
    unit = torch.zeros(_channels(value), dtype=value.dtype, device=value.device)
    unit[channel] = 1
    return unit.reshape(value.shape[2:]).expand(value.shape)
