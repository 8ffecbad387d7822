"""Eikonal, surface, normal and sign-agnostic terms: closed forms, one value a sample."""

import pytest
import torch

from pipeline.draw import Draw, sample_keys
from pipeline.objectives.eikonal import eikonal, normal_error, off_surface, on_surface
from pipeline.objectives.unsigned import sign_agnostic, sign_agnostic_occupancy
from pipeline.samples import Points


def test_eikonal_terms():
    slope = torch.tensor([[[3.0, 4.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]] * 2])
    weight = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert eikonal(slope, weight).tolist() == pytest.approx([8.0, 1.0])
    normals = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]] * 2])
    assert normal_error(slope, normals, weight).tolist() == pytest.approx([(5 + 2**0.5) / 2, 1.0])
    assert on_surface(torch.tensor([[-1.0, 2.0], [3.0, 9.0]]), weight).tolist() == [1.5, 3.0]
    slope = torch.zeros(1, 1, 3, requires_grad=True)
    eikonal(slope, torch.ones(1, 1)).sum().backward()
    assert torch.equal(slope.grad, torch.zeros(1, 1, 3))  # no NaN where the gradient vanishes


def test_sign_agnostic_terms_do_not_change_with_the_sign():
    f = torch.tensor([[0.5, -0.1, 0.3]])
    h = torch.tensor([[0.2, 0.1, 0.0]])
    w = torch.ones(1, 3)
    assert sign_agnostic(f, h, w).item() == pytest.approx((0.3 + 0 + 0.3) / 3)
    assert torch.equal(sign_agnostic(-f, h, w), sign_agnostic(f, -h, w))
    both = sign_agnostic_occupancy(f, w, h, w)
    assert both.item() == pytest.approx((0.5 + 0.9 + 0.7) / 3 + 2 * 0.1)


def test_points_off_the_surface():
    keys = sample_keys(["a", "b"])
    surface = torch.zeros(2, 4000, 3)
    weight = torch.ones(2, 4000)
    weight[1, 9:] = 0  # a small cloud, padded
    points = Points(surface + 7, None, weight, surface, None, None, weight)
    draw = Draw.of(keys, seed=0, stage="s")
    off, off_weight = off_surface(points, draw, sigma=0.1, share=1 / 8, box=1.5)
    assert off.shape == (2, 4500, 3)
    assert off[:, :4000].std().item() == pytest.approx(0.1, rel=0.02)
    assert off[:, 4000:].abs().max() <= 1.5
    assert off[:, 4000:].abs().mean().item() == pytest.approx(0.75, rel=0.05)
    assert off_weight.sum(1).tolist() == [4500.0, 509.0]
    stored, _ = off_surface(points, draw, sigma=None, share=1 / 8, box=1.5)
    assert torch.equal(stored[:, :4000], points.coords)
    one = off_surface(
        Points(*(None if v is None else v[1:] for v in vars(points).values())),
        Draw.of(keys[1:], seed=0, stage="s"),
        sigma=0.1,
        share=1 / 8,
        box=1.5,
    )[0]
    assert torch.equal(one[0], off[1])
