"""LIIF: real photographs beyond bicubic, no seams, pictures that are not square, refusals."""

import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance.liif import cuts
from pipeline import methods
from pipeline.fields.bind import bind
from pipeline.fields.continuous import LocalImage
from pipeline.fields.mlp import Layer
from pipeline.fitting import fit_rows, start_shared, train
from pipeline.samples import load_samples, pixel_coords
from tests.fitting.tables import box_table, picture_table

SMALL = {"height": 8, "width": 8, "features": 6, "blocks": 1, "hidden": 16, "points": 32}


def built(samples, **settings):
    return methods.build(
        "liif", methods.configure("liif", settings={**SMALL, **settings}), samples.form
    )


@pytest.mark.slow
def test_unseen_photographs_gain_over_bicubic_at_seen_and_unseen_scales():
    module = acceptance("liif")
    module.check(module.run(0))


def test_a_network_that_says_nothing_leaves_the_interpolated_picture():
    """At pixel centres of a picture that is not square the interpolation is the picture."""
    model = LocalImage(4, (6, 10), 1, [Layer(8), Layer(1)])
    picture = torch.rand(6, 10)
    tensors = {name: torch.zeros_like(p)[None] for name, p in model.named_parameters()}
    tensors["low.value"] = picture[None, None]
    found = bind(model, tensors)(pixel_coords(6, 10)[None], torch.tensor([[0.1, 0.1]]))
    torch.testing.assert_close(found.reshape(6, 10), picture, rtol=0, atol=1e-5)


def test_the_mix_is_continuous_where_the_nearest_feature_changes():
    """The mixed answers of random features on a grid of 5 x 7 do not jump at any border."""
    layers = [Layer(8), Layer(1)]
    g = torch.Generator().manual_seed(0)
    y = torch.linspace(-0.8, 0.8, 21)
    borders = torch.arange(1, 7) * 2 / 7 - 1
    jumps = {}
    for ensemble in (True, False):
        model = LocalImage(4, (5, 7), 1, layers, ensemble=ensemble, residual=False)
        g.manual_seed(0)
        tensors = {n: torch.randn(1, *p.shape, generator=g) for n, p in model.named_parameters()}
        bound = bind(model, tensors)
        sides = [
            bound(torch.cartesian_prod(borders + step, y)[None], torch.tensor([[0.1, 0.1]]))
            for step in (-2e-5, 2e-5)
        ]
        jumps[ensemble] = (sides[0] - sides[1]).abs().max()
    assert jumps[True] < 0.01 * jumps[False]


def test_a_row_is_the_same_alone_and_in_company():
    samples = load_samples(cuts(("astronaut",), 4, 24, 0), "images")
    method = built(samples, train_steps=5, batch=4)
    shared = train(method, samples, seed=0).shared
    rows = fit_rows(method, shared, samples, seed=0).rows
    one = load_samples(cuts(("astronaut",), 4, 24, 0).slice(2, 1), "images")
    alone = fit_rows(method, shared, one, seed=0).rows
    assert rows["feature.value"].shape == (4, 6, 8, 8)
    assert all(torch.equal(alone[name][0], rows[name][2]) for name in rows)


def test_pictures_that_are_too_small_are_told_with_the_keys():
    samples = load_samples(picture_table([(6, 6)] * 2, held_out=0.0), "images")
    method = built(samples)
    with pytest.raises(ValueError, match="6 x 6 pixels; 8 x 8"):
        fit_rows(method, start_shared(method, 0), samples, seed=0)
    with pytest.raises(ValueError, match="liif takes images"):
        built(load_samples(box_table(1, points=8), "shapes"))
