"""Wave operators on exact fields: their residuals vanish; wrong speeds, signs and layers do not."""

import math

import torch

from pipeline.draw import Draw, sample_keys
from pipeline.fields.derivatives import second_derivatives
from pipeline.objectives.waves import (
    absorption,
    gaussian_source,
    gaussians,
    helmholtz_of,
    helmholtz_of_units,
    helmholtz_residual,
    initial_terms,
    places_near,
    speeds_at,
    wave_residual,
)


def points(n, p, d, low=-1.0, high=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    where = torch.rand(n, p, d, generator=generator, dtype=torch.float64)
    return low + (high - low) * where


def test_traveling_waves_solve_the_wave_equation_at_their_speed_only():
    coords = points(2, 50, 3)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)

    def traveling(x):
        return torch.sin(4 * (x[..., 1:] @ direction - 1.5 * x[..., 0]))[..., None]

    assert wave_residual(traveling, coords, speed=1.5).abs().max() < 1e-9
    assert wave_residual(traveling, coords, speed=1.0).abs().max() > 1


def test_rest_and_the_first_values_are_measured():
    start = points(1, 20, 2)
    start[..., 0] = 0

    def standing(x):
        return (torch.cos(3 * x[..., 0]) * torch.sin(3 * x[..., 1]))[..., None]

    value, speed = initial_terms(standing, start, torch.sin(3 * start[..., 1:]))
    assert value.abs().max() < 1e-12
    assert speed.abs().max() < 1e-12
    later = start + torch.tensor([0.3, 0.0])
    assert initial_terms(standing, later, value)[1].abs().max() > 0.1


def outgoing(k, depth=0.5, strength=5.0, box=1.0, sign=-1.0):
    """exp(sign i k s(x)) along the first axis, with s the stretched |x|, s' = 1 - i absorption."""

    def field(x):
        away = x[..., 0].abs()
        layer = (away - (box - depth)).clamp(min=0)
        damped = strength * layer**3 / (3 * depth**2)
        # exp(sign i k (away - i damped)) = exp(sign k damped) exp(sign i k away)
        size = torch.exp(sign * k * damped)
        return torch.stack([size * torch.cos(k * away), sign * size * torch.sin(k * away)], -1)

    return field


def test_outgoing_waves_are_damped_by_the_layer_and_solve_its_equation():
    for d in (1, 2, 3):
        coords = points(1, 200, d)
        coords[..., 0] = coords[..., 0].abs().clamp(min=0.05)  # not at the source
        assert helmholtz_residual(outgoing(12.0), coords, 12.0).abs().max() < 1e-6
        assert helmholtz_residual(outgoing(12.0), coords, 9.0).abs().max() > 1
        # The conjugate grows in the layer: it solves the equation too, but is not small there.
    border = torch.tensor([[[1.0]]], dtype=torch.float64)
    assert outgoing(12.0)(border).norm() < 1e-4
    assert outgoing(12.0, sign=1.0)(border).norm() > 1e4


def test_the_layer_decides_the_direction():
    """Inside both directions solve the equation; a layer of the wrong sign refuses the wave."""
    coords = points(1, 100, 2, 0.55, 0.95)
    right = helmholtz_residual(outgoing(8.0), coords, 8.0)
    wrong = helmholtz_residual(outgoing(8.0), coords, 8.0, strength=-5.0)
    assert right.abs().max() < 1e-6
    assert wrong.abs().max() > 1


def test_outgoing_rings_solve_the_equation_in_the_plane():
    """The outgoing ring (i/4) H0^(2)(k r) as its integral over plane waves, off its source."""
    k, coords = 6.0, points(1, 30, 2, 0.15, 0.35)
    steps = torch.linspace(0, 6, 6001, dtype=torch.float64)

    def ring(x):
        # H0^(2)(z) = (2 i / pi) integral over s >= 0 of exp(-i z cosh s), turned to s - i g(s)
        radius = x.norm(dim=-1, keepdim=True)
        bend = (math.pi / 2) * torch.tanh(steps)
        real, imag = steps, -bend
        slope = -(math.pi / 2) / torch.cosh(steps) ** 2
        cosh = torch.cosh(real) * torch.cos(imag), torch.sinh(real) * torch.sin(imag)
        size = torch.exp(k * radius * cosh[1])
        wave = size * torch.cos(k * radius * cosh[0]), -size * torch.sin(k * radius * cosh[0])
        inner = wave[0] - slope * wave[1], wave[1] + slope * wave[0]
        whole = [torch.trapezoid(part, steps, dim=-1) / (2 * math.pi) for part in inner]
        return torch.stack([-whole[0], -whole[1]], -1)

    from scipy.special import hankel2

    radius = coords.norm(dim=-1).numpy()
    exact = 0.25j * hankel2(0, k * radius)
    value = ring(coords)
    assert abs(value[..., 0].numpy() + 1j * value[..., 1].numpy() - exact).max() < 1e-6
    assert helmholtz_residual(ring, coords, k).abs().max() < 1e-3
    assert helmholtz_residual(ring, coords, 1.2 * k).abs().max() > 1


def test_layer_and_source_have_their_shapes():
    x = torch.linspace(-1, 1, 401, dtype=torch.float64).reshape(1, -1, 1)
    layer = absorption(x)
    assert (layer[(x.abs() <= 0.5)] == 0).all()
    assert layer.max() == 5.0
    density = gaussian_source(x, 1e-3)
    torch.testing.assert_close(float(density.sum() * 2 / 400), 1.0, rtol=1e-3, atol=0)
    assert (density[:, 0] == 0).all()
    side = torch.linspace(-0.2, 0.2, 201, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(1, -1, 2)
    mass = float(gaussian_source(grid, 1e-4, at=(0.05, 0.0)).sum() * (0.4 / 200) ** 2)
    assert abs(mass - 1) < 1e-3


def test_written_out_coefficients_are_those_of_the_divergence():
    for d in (1, 2, 3):
        coords = points(2, 60, d)

        def field(x):
            phase = (x * torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype)).sum(-1)
            return torch.stack([torch.sin(3 * phase), torch.cos(2 * phase + 1)], -1)

        numbers = torch.tensor([7.0, 11.0], dtype=torch.float64)
        slowness = 1 + 0.2 * coords[..., 0]
        found = helmholtz_of(*second_derivatives(field, coords), coords, numbers, slowness=slowness)
        for i, k in enumerate(numbers.tolist()):
            one, m = coords[i : i + 1], slowness[i : i + 1, :, None]
            wanted = helmholtz_residual(field, one, k, slowness=m)
            torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-9, atol=1e-9)
        derivatives = second_derivatives(field, coords)
        units = helmholtz_of_units(*derivatives, coords, numbers, slowness=slowness)
        both = units[..., 0] + 1j * units[..., 1]
        torch.testing.assert_close(torch.view_as_real(both), found, rtol=1e-9, atol=1e-9)


def test_speeds_are_linear_between_nodes_and_constant_beyond():
    nodes = torch.arange(5.0).reshape(1, 5, 1) + 10 * torch.arange(3.0)
    coords = points(1, 100, 2).float()
    inside = coords.clamp(-0.5, 0.5)
    wanted = 4 * inside[..., 0] + 2 + 10 * (2 * inside[..., 1] + 1)
    torch.testing.assert_close(speeds_at(nodes, coords, 0.5), wanted)


def test_places_lie_at_sources_that_are_there():
    at = torch.tensor([[[0.5], [-0.5], [0.0]], [[0.1], [0.0], [0.0]]])
    variance = torch.tensor([[1e-4, 1e-4, 1.0], [4e-4, 1.0, 1.0]])
    strength = torch.tensor([[[1.0], [-2.0], [0.0]], [[1.0], [0.0], [0.0]]])
    draw = Draw.of(sample_keys(["a", "b"]), seed=0, stage="test")
    found = places_near(draw, at, variance, strength, 400)[..., 0]
    away = (found[0].abs() - 0.5).abs()
    assert away.max() <= 0.04 + 1e-6
    assert 150 < int((found[0] > 0).sum()) < 250
    assert (found[1] - 0.1).abs().max() <= 0.08 + 1e-6
    x = torch.linspace(-1, 1, 2001).reshape(1, -1, 1).expand(2, -1, -1)
    density = gaussians(x, at, variance, strength, density=True)[..., 0]
    torch.testing.assert_close(density.sum(1) / 1000, torch.tensor([-1.0, 1.0]), atol=1e-4, rtol=0)
    height = gaussians(at[:, :1], at, variance, strength, density=False)[..., 0]
    torch.testing.assert_close(height[:, 0], torch.tensor([1.0, 1.0]))
