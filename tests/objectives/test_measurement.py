"""Measurements of pictures: closed forms, linearity, seeded choices that stay."""

import math

import pytest
import torch
from skimage.transform import radon

from pipeline.draw import Draw, sample_keys
from pipeline.objectives.measurement import MaskedFourier, Radon, measured_error
from pipeline.samples import pixel_coords

DRAW = Draw.of(sample_keys(["a", "b"]), seed=0, stage="fit/0")


def disc(size, radius=0.6, at=(0.0, 0.0)):
    coords = pixel_coords(size, size).reshape(size, size, 2)
    inside = (coords - torch.tensor(at)).norm(dim=-1) < radius
    return inside.to(torch.float32)[None, :, :, None].expand(2, -1, -1, -1)


def test_projections_of_a_disc_are_its_chords():
    size = 128
    rays = Radon(8)(disc(size), DRAW).reshape(2, 8, size)
    at = (torch.arange(size) * 2 + 1) / size - 1
    chord = (0.36 - at**2).clamp(min=0).sqrt()  # half the chord: the mean over a ray of length 2
    assert (rays - chord).abs().mean() < 0.006
    assert (rays[:, :, size // 2] - 0.6).abs().max() < 0.02


def test_projections_agree_with_scikit_image():
    picture = disc(65, 0.3, (0.3, -0.2)) + 0.5 * disc(65, 0.2, (-0.4, 0.1))
    angles = [0.0, 45.0, 90.0, 135.0]
    ours = Radon(4)(picture, DRAW)[0].reshape(4, 65)
    theirs = torch.tensor(radon(picture[0, :, :, 0].numpy(), theta=angles)).T / 65
    # scikit-image turns the picture, we turn the rays: the same lines, from the other side.
    for mine, other in zip(ours, theirs[[0, 3, 2, 1]]):
        error = min((mine - other).abs().mean(), (mine.flip(0) - other).abs().mean())
        assert error < 0.03 * other.mean()


def test_a_wide_picture_is_projected_without_distortion():
    wide = torch.zeros(2, 32, 64, 1)
    wide[:, 8:24, 24:40] = 1.0  # a square of a quarter of the longer side
    rays = Radon(2)(wide, DRAW).reshape(2, 2, 64)
    assert rays.amax((0, 2)).tolist() == pytest.approx([0.25, 0.25], abs=1e-6)
    assert (rays > 0.1).sum(-1).tolist() == [[16, 16], [16, 16]]


@pytest.mark.parametrize("operator", [Radon(5), MaskedFourier(0.3)])
def test_measuring_is_linear_and_keeps_samples_apart(operator):
    a, b = torch.rand(2, 12, 10, 3), torch.rand(2, 12, 10, 3)
    both = operator(2 * a - b, DRAW)
    torch.testing.assert_close(both, 2 * operator(a, DRAW) - operator(b, DRAW))
    alone = operator(a[1:], Draw(DRAW.keys[1:], DRAW.step[1:]))
    torch.testing.assert_close(alone, operator(a, DRAW)[1:], rtol=0, atol=0)


def test_all_frequencies_keep_the_energy_and_a_choice_stays():
    picture = torch.rand(2, 16, 16, 1)
    everything = MaskedFourier(1.0, sigma=100.0)(picture, DRAW)
    torch.testing.assert_close(everything.square().sum((1, 2)), picture.square().sum((1, 2, 3)))
    operator = MaskedFourier(0.25)
    mask = operator.mask(64, 64, DRAW)
    assert mask.mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(mask[0], mask[1])
    later = Draw(DRAW.keys, torch.tensor([7, 100]))
    assert torch.equal(mask, operator.mask(64, 64, later))
    assert bool((mask[:, 0, 0] == 1).all())


def test_the_error_of_a_field_is_that_of_its_picture():
    picture = torch.rand(2, 8, 8, 1)
    offset = torch.tensor([0.0, 0.1])[:, None, None]
    flat = picture.reshape(2, 64, 1)
    error = measured_error(
        lambda coords: flat + offset, picture, lambda p, _: p.flatten(1, 2), DRAW
    )
    assert error.tolist() == pytest.approx([0.0, 0.01])
    assert math.isclose(
        measured_error(lambda coords: flat + offset, picture, Radon(3), DRAW)[0].item(), 0.0
    )
