"""Derivatives from pixels: exact for polynomials, at the right places, without held-out pixels."""

import pytest
import torch

from pipeline.batches import Picture
from pipeline.draw import Draw, sample_keys
from pipeline.objectives.poisson import picture_slopes, slope_error
from pipeline.samples import pixel_coords


def paraboloid(coords):
    """Two channels; differences of quadratics are exact at the middle."""
    x, y = coords[..., 0], coords[..., 1]
    return torch.stack([0.3 * x * x + 0.2 * x * y - y, x - 0.5 * y * y], -1)


def pictures(height, width, n=2):
    color = paraboloid(pixel_coords(height, width)).reshape(1, height, width, 2)
    return Picture(color.expand(n, -1, -1, -1), torch.ones(n, height, width))


@pytest.mark.parametrize("target", ["difference", "sobel", "laplacian"])
def test_they_are_those_of_the_function_behind_the_pixels(target):
    slopes = picture_slopes(pictures(9, 14), target)
    assert slope_error(paraboloid, slopes).max() < 1e-8
    assert slope_error(lambda x: paraboloid(x) * 1.1, slopes).min() > 1e-4
    counts = {"difference": 9 * 13 + 8 * 14, "sobel": 7 * 12, "laplacian": 7 * 12}
    assert slopes.coords.shape[1] == counts[target]


@pytest.mark.parametrize("target", ["difference", "sobel", "laplacian"])
def test_pixels_held_out_have_no_influence(target):
    picture = pictures(8, 8)
    picture.seen[:, 2, 3] = 0
    color = picture.color.clone()
    color[:, 2, 3] = 100.0
    wrong = Picture(color, picture.seen)
    one, other = (slope_error(paraboloid, picture_slopes(p, target)) for p in (picture, wrong))
    torch.testing.assert_close(one, other)
    seen = Picture(color, torch.ones_like(picture.seen))
    assert slope_error(paraboloid, picture_slopes(seen, target)).min() > 1


def test_some_are_drawn_by_sample_and_a_mean_is_linear():
    slopes = picture_slopes(pictures(8, 8), "difference")
    draw = Draw.of(sample_keys(["a", "b"]), seed=0, stage="s")
    some = slopes.some(20, draw)
    assert some.coords.shape == (2, 20, 2)
    assert (some.coords[0] != some.coords[1]).any()
    assert slope_error(paraboloid, some).max() < 1e-8
    assert slopes.some(1000, draw) is slopes
    double = Picture(pictures(8, 8).color * 3, torch.ones(2, 8, 8))
    mean = slopes.mean_with(picture_slopes(double, "difference"))
    assert slope_error(lambda x: 2 * paraboloid(x), mean).max() < 1e-8


def test_a_picture_too_small_for_a_stencil_is_named():
    with pytest.raises(ValueError, match="3 x 3 pixels, this has 2 x 9"):
        picture_slopes(pictures(2, 9), "difference")
