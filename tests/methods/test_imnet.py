"""IM-Net: its acceptance, codes from views, and what must not depend on a batch."""

from dataclasses import replace

import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance._shapes import prepared
from pipeline import methods
from pipeline.fitting import fit_rows, start_shared, train
from pipeline.samples import load_samples
from schemas.samples import FormSpec

SETTINGS = {
    "release": "later",
    "code": 16,
    "width": 32,
    "voxels": 16,
    "channels": 4,
    "levels": [8, 16],
    "level_steps": [20, 20],
    "level_points": [64, 64],
    "level_pools": [200, 1000],
    "view_steps": 100,
    "view_batch": 12,
    "view_width": 8,
}
FORM = FormSpec(kind="shapes", dims=3, signed=True, voxels=32, views=4, view_size=32)


@pytest.fixture(scope="module")
def figures():
    return acceptance("imnet").run(0)


def test_codes_reconstruct_unseen_shapes(figures):
    acceptance("imnet").check(figures)


@pytest.fixture(scope="module")
def trained():
    """Every fifth of sample:shapes, with voxels and views."""
    table = prepared(
        "shapes", near=16, uniform=16, surface=16, held_out=64, voxels=16, views=6, view_size=24
    )
    samples = load_samples(table.take(list(range(0, 60, 5))), "shapes")
    method = methods.build("imnet", methods.configure("imnet", settings=SETTINGS), samples.form)
    return method, samples, table, train(method, samples, seed=0).shared


def test_views_are_regressed_on_codes_of_a_frozen_autoencoder(trained):
    method, samples, _, shared = trained
    before = train(replace(method, train=method.train[:-1]), samples, seed=0).shared
    still = [name for name in shared if not name.startswith("views.")]
    assert all(torch.equal(shared[name], before[name]) for name in still)
    rows = fit_rows(method, shared, samples, seed=1).rows
    assert rows.keys() == {"code.value", "view_code.value"}
    code, seen = rows["code.value"], rows["view_code.value"]
    assert float(code.min()) > 0
    assert float(code.max()) < 1
    error = (seen - code).square().mean()
    assert error < 0.5 * (code.mean(0) - code).square().mean()  # the best constant code


def test_a_code_is_the_same_alone_and_in_any_batch(trained):
    method, samples, table, shared = trained
    many = fit_rows(method, shared, samples, seed=0, lanes=12).rows
    few = fit_rows(method, shared, samples, seed=0, lanes=2).rows
    alone = load_samples(table.take([15]), "shapes")
    one = fit_rows(method, shared, alone, seed=0).rows
    for name in many:
        assert torch.equal(many[name], few[name])
        assert torch.equal(many[name][3], one[name][0])


def test_fields_are_read_with_the_code_that_the_configuration_names(trained):
    method, samples, _, _ = trained
    config = methods.configure("imnet", settings={**SETTINGS, "fields_from": "views"})
    other = methods.build("imnet", config, samples.form)
    assert method.field.layers[0]["parts"][0]["array"] == "latents/code"
    assert other.field.layers[0]["parts"][0]["array"] == "latents/view_code"
    assert start_shared(other, 0).keys() == start_shared(method, 0).keys()


@pytest.mark.parametrize(
    ("settings", "form", "message"),
    [
        ({}, {"voxels": 0}, "imnet needs shapes with voxels; this dataset has none: set ingest"),
        ({"voxels": 64}, {}, "voxels: 64 is not a divisor of the 32 voxels .* ingest.voxels: 64"),
        ({"levels": [16, 24]}, {}, "levels: 24 is not a divisor"),
        ({"fields_from": "views"}, {"views": 0}, "needs views; this dataset has none: set ingest"),
    ],
)
def test_data_that_cannot_serve_is_refused(settings, form, message):
    config = methods.configure("imnet", settings=settings)
    with pytest.raises(ValueError, match=message):
        methods.build("imnet", config, FORM.model_copy(update=form))


def test_every_level_needs_its_numbers():
    with pytest.raises(ValueError, match=r"level_steps: \[5\], needs one number for each of level"):
        methods.configure("imnet", settings={"level_steps": [5]})
