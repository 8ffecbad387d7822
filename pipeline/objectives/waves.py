"""Residuals of wave equations on fields, through the batched path (SIREN sec. 4.3, supplement).

Helmholtz fields are complex: two channels, real and imaginary part, in this order.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from pipeline.draw import Draw
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


def helmholtz_of(
    value: Float[Tensor, "n p 2"],
    slope: Float[Tensor, "n p 2 d"],
    second: Float[Tensor, "n p 2 d"],
    coords: Float[Tensor, "n p d"],
    wavenumber: Float[Tensor, "n"],
    *,
    slowness: Float[Tensor, "n p"] | None = None,
    depth: float = 0.5,
    strength: float = 5.0,
) -> Float[Tensor, "n p 2"]:
    """`helmholtz_residual` in the box [-1, 1]^d from derivatives that are known, each row with a
    wave number of its own: the coefficients a_j and their slopes are written out.
    """
    a, drift, mass = stretched(
        coords, wavenumber, slowness=slowness, depth=depth, strength=strength
    )
    u, first, bent = (torch.complex(v[:, :, 0], v[:, :, 1]) for v in (value, slope, second))
    found = (a * (bent - drift * first)).sum(-1) + mass * u
    return torch.stack([found.real, found.imag], -1)


def helmholtz_of_units(
    value: Float[Tensor, "n p f"],
    slope: Float[Tensor, "n p f d"],
    second: Float[Tensor, "n p f d"],
    coords: Float[Tensor, "n p d"],
    wavenumber: Float[Tensor, "n"],
    *,
    slowness: Float[Tensor, "n p"],
    depth: float = 0.5,
    strength: float = 5.0,
) -> Complex[Tensor, "n p f"]:
    """`helmholtz_of` of each of several real fields by itself, such as the units of a layer; the
    equation is linear, so that of their sums are the sums of these."""
    a, drift, mass = stretched(
        coords, wavenumber, slowness=slowness, depth=depth, strength=strength
    )
    found = mass[..., None] * value
    for axis in range(coords.shape[-1]):
        by, along = a[..., axis, None], drift[..., axis, None]
        found = found + by * (second[..., axis] - along * slope[..., axis])
    return found


def stretched(
    coords: Float[Tensor, "n p d"],
    wavenumber: Float[Tensor, "n"],
    *,
    slowness: Float[Tensor, "n p"] | None,
    depth: float,
    strength: float,
) -> tuple[Complex[Tensor, "n p d"], Complex[Tensor, "n p d"], Complex[Tensor, "n p"]]:
    """Coefficients of the equation in the box with its layer: a_j (u_jj - drift_j u_j) + mass u."""
    inward = (coords.abs() - (1 - depth)).clamp(min=0) / depth
    s = torch.complex(torch.ones_like(inward), -strength * inward.square())
    bend = -1j * 2 * strength / depth * inward * coords.sign()
    whole = s.prod(-1, keepdim=True)
    mass = whole[..., 0] * wavenumber[:, None].square()
    if slowness is not None:
        mass = mass * slowness.square()
    return whole / s.square(), bend / s, mass


def speeds_at(
    nodes: Float[Tensor, "n *m"], coords: Float[Tensor, "n p d"], half: float
) -> Float[Tensor, "n p"]:
    """Values at evenly spaced nodes of [-half, half]^d (first axis x), linear in between, constant
    beyond."""
    n, sides = len(nodes), nodes.shape[1:]
    flat = nodes.reshape(n, -1)
    total = torch.zeros_like(coords[..., 0])
    places = [((coords[..., i] / half).clamp(-1, 1) + 1) / 2 * (m - 1) for i, m in enumerate(sides)]
    low = [p.floor().clamp(max=m - 2) for p, m in zip(places, sides)]
    for corner in range(2 ** len(sides)):
        weight, index = torch.ones_like(total), torch.zeros_like(total, dtype=torch.int64)
        for i, m in enumerate(sides):
            up = corner >> i & 1
            part = places[i] - low[i]
            weight = weight * (part if up else 1 - part)
            index = index * m + low[i].long() + up
        total = total + weight * flat.gather(1, index)
    return total


def gaussians(
    coords: Float[Tensor, "n p d"],
    at: Float[Tensor, "n s d"],
    variance: Float[Tensor, "n s"],
    strength: Float[Tensor, "n s c"],
    *,
    density: bool,
) -> Float[Tensor, "n p c"]:
    """Sum of Gaussians of these strengths: integrals (`density`), or heights."""
    away = (coords[:, :, None] - at[:, None]).square().sum(-1)
    height = torch.exp(-away / (2 * variance[:, None]))
    if density:
        height = height / (2 * torch.pi * variance[:, None]) ** (coords.shape[-1] / 2)
    return torch.bmm(height, strength)


def places_near(
    draw: Draw,
    at: Float[Tensor, "n s d"],
    variance: Float[Tensor, "n s"],
    strength: Float[Tensor, "n s c"],
    count: int,
    reach: float = 4.0,
) -> Float[Tensor, "n count d"]:
    """Uniform places within `reach` deviations of a source along each axis, any source as often;
    sources without strength stand last and get none."""
    d = at.shape[-1]
    sources = (strength != 0).any(-1).sum(1)
    which = draw.integers("source", sources, count)
    center = at.gather(1, which[..., None].expand(-1, -1, d))
    width = variance.gather(1, which).sqrt()[..., None] * reach
    return (center + (draw.uniform("near", count, d) * 2 - 1) * width).clamp(-1, 1)


def size_of(
    residual: Float[Tensor, "*shape"], norm: Literal["square", "absolute"]
) -> Float[Tensor, "*shape"]:
    """What of a residual is minimized: its square, or its absolute value."""
    return residual.square() if norm == "square" else residual.abs()


def gaussian_source(
    coords: Float[Tensor, "n p d"], variance: float, *, at: tuple[float, ...] | None = None
) -> Float[Tensor, "n p"]:
    """Density of a normal distribution of this variance, 0 below 1e-5 (authors' code)."""
    d = coords.shape[-1]
    center = torch.tensor(at or (0.0,) * d, dtype=coords.dtype, device=coords.device)
    away = (coords - center).square().sum(-1)
    density = torch.exp(-away / (2 * variance)) / (2 * torch.pi * variance) ** (d / 2)
    return density * (density > 1e-5)
