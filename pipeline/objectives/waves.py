"""Residuals of wave equations on fields, through the batched path (SIREN sec. 4.3, supplement).

Helmholtz fields are complex: two channels, real and imaginary part, in this order.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.fields.derivatives import (
    PointwiseField,
    complex_product,
    divergence,
    jacobian,
    second_derivatives,
)


def wave_residual(
    field: PointwiseField, coords: Float[Tensor, "n p d"], speed: float = 1.0
) -> Float[Tensor, "n p *c"]:
    """u_tt - speed^2 laplacian(u); the first coordinate is the time."""
    second = second_derivatives(field, coords)[2]
    return second[..., 0] - speed**2 * second[..., 1:].sum(-1)


def initial_terms(
    field: PointwiseField, coords: Float[Tensor, "n p d"], wanted: Float[Tensor, "n p c"]
) -> tuple[Float[Tensor, "n p c"], Float[Tensor, "n p c"]]:
    """How far a field's values are from those wanted, and its derivatives by time from rest."""
    value, slope, _ = second_derivatives(field, coords)
    return value - wanted, slope[..., 0]


def absorption(
    coords: Float[Tensor, "n p d"], *, box: float = 1.0, depth: float = 0.5, strength: float = 5.0
) -> Float[Tensor, "n p d"]:
    """strength (distance into the layer / depth)^2 along each axis; 0 inside [-(box - depth), ..].

    Stretching x by s = 1 - i times this damps waves exp(-i k |x|), which go outward, within `depth`
    of the border of [-box, box]^d: a perfectly matched layer (a_0 = 5, depth 0.5 in the authors'
    code).
    """
    inward = (coords.abs() - (box - depth)).clamp(min=0) / depth
    return strength * inward.square()


def helmholtz_residual(
    field: PointwiseField,
    coords: Float[Tensor, "n p d"],
    wavenumber: float,
    *,
    box: float = 1.0,
    depth: float = 0.5,
    strength: float = 5.0,
    slowness: Float[Tensor, "n p 1"] | None = None,
) -> Float[Tensor, "n p 2"]:
    """div(a grad u) + s_1 .. s_d k^2 m^2 u in the stretched coordinates of a matched layer.

    s_j = 1 - i absorption_j, and a_j = s_1 .. s_d / s_j^2: in two dimensions the s_y/s_x and
    s_x/s_y of SIREN. The residual is the source (times the s, which are 1 inside). `slowness` m is
    1 where nothing else is said.
    """

    def stretch(x: Tensor) -> Float[Tensor, "n p 2 d"]:
        damped = absorption(x, box=box, depth=depth, strength=strength)
        return torch.stack([torch.ones_like(damped), -damped], 2)

    def volume(s: Float[Tensor, "n p 2 d"]) -> Float[Tensor, "n p 2"]:
        product = s[..., 0]
        for axis in range(1, s.shape[-1]):
            product = complex_product(product, s[..., axis])
        return product

    def flux(x: Tensor) -> Float[Tensor, "n p 2 d"]:
        s = stretch(x)
        inverse = torch.stack([s[:, :, 0], -s[:, :, 1]], 2) / s.square().sum(2, keepdim=True)
        factor = complex_product(inverse, inverse, axis=2)
        whole = volume(s)[..., None].expand_as(factor)
        factor = complex_product(whole, factor, axis=2)
        return complex_product(factor, jacobian(field, x), axis=2)

    second = wavenumber**2 * complex_product(volume(stretch(coords)), field(coords))
    if slowness is not None:
        second = second * slowness.square()
    return divergence(flux, coords) + second


def gaussian_source(
    coords: Float[Tensor, "n p d"], variance: float, *, at: tuple[float, ...] | None = None
) -> Float[Tensor, "n p"]:
    """Density of a normal distribution of this variance, 0 below 1e-5 (authors' code)."""
    d = coords.shape[-1]
    center = torch.tensor(at or (0.0,) * d, dtype=coords.dtype, device=coords.device)
    away = (coords - center).square().sum(-1)
    density = torch.exp(-away / (2 * variance)) / (2 * torch.pi * variance) ** (d / 2)
    return density * (density > 1e-5)
