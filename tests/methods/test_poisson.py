"""SIREN from derivatives: the acceptance; the constant; pairs; rows are their own."""

import numpy as np
import pytest
import torch

from benchmarks.acceptance import _waves, acceptance
from pipeline import methods
from pipeline.fields.bind import bind
from pipeline.fitting import fit_rows
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table

SMALL = {"width": 24, "depth": 2, "steps": 12, "points": 64}


def built(samples, **settings):
    config = methods.configure("poisson", settings={**SMALL, **settings})
    return methods.build("poisson", config, samples.form)


def color_of(method, rows, size):
    coords = torch.tensor(_waves.centers(size), dtype=torch.float32)[None]
    with torch.no_grad():
        return bind(method.model, rows)(coords)


def test_sines_recover_pictures_from_gradients():
    module = acceptance("poisson")
    module.check(module.run(0))


@pytest.mark.parametrize("target", ["difference", "sobel", "laplacian"])
def test_rows_do_not_depend_on_lanes_or_neighbors(target):
    table = picture_table([(12, 12), (12, 16), (12, 12)])
    samples = load_samples(table, "images")
    method = built(samples, target=target)
    together = fit_rows(method, {}, samples, seed=0).rows
    alone = fit_rows(method, {}, load_samples(table.slice(2, 1), "images"), seed=0).rows
    for name in together:
        assert torch.equal(together[name][2], alone[name][0])


def test_the_constant_is_that_of_the_fitted_pixels_and_nothing_else_is():
    size = 16
    held = np.zeros((size, size), bool)
    held[3:7, 2:9] = True
    wave = _waves.Waves.seeded(0, 0)
    samples = load_samples(_waves.prepared([wave], size, held), "images")
    rows = {
        mean: fit_rows(built(samples, mean=mean), {}, samples, seed=0).rows
        for mean in (True, False)
    }
    found = color_of(built(samples), rows[True], size)[0].reshape(size, size, 3).numpy()
    color = wave.color(_waves.centers(size)).reshape(size, size, 3)
    assert np.allclose(found[~held].mean(0), color[~held].mean(0), atol=1e-4)
    for name in rows[True]:
        same = torch.equal(rows[True][name], rows[False][name])
        assert same == (name != "layers.2.bias"), name


def test_a_laplacian_is_fitted():
    samples = load_samples(
        _waves.prepared([_waves.Waves.seeded(0, 0, channels=1)], 24, np.zeros((24, 24), bool)),
        "images",
    )
    settings = {"target": "laplacian", "width": 48, "points": 4096, "rate": 2e-3}
    first, last = (
        fit_rows(built(samples, **settings, steps=n), {}, samples, seed=0).loss for n in (1, 120)
    )
    assert last < first * 1e-4


def test_a_pair_reads_as_the_blend_in_both_halves():
    samples = load_samples(picture_table([(12, 24)]), "images")
    method = built(samples, pair=True)
    rows = fit_rows(method, {}, samples, seed=0).rows
    bound = bind(method.model, rows)
    left = torch.rand(1, 50, 2) * torch.tensor([0.99, 2.0]) - torch.tensor([0.995, 1.0])
    right = left + torch.tensor([1.0, 0.0])
    read = [method.read(bound, at)["color"] for at in (left, right)]
    torch.testing.assert_close(read[0], read[1], atol=1e-3, rtol=0)
    whole = (bound(left * torch.tensor([2.0, 1.0]) + torch.tensor([1.0, 0.0]))).clamp(0, 1)
    torch.testing.assert_close(read[0], whole)
