"""SAL: signs out of unsigned data, per sample and by an encoder; rows alone, refusals."""

from dataclasses import replace

import pytest
import torch

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.fitting import fit_rows, train
from pipeline.samples import load_samples
from schemas.samples import FormSpec
from tests.fitting.tables import box_table
from tests.methods.test_sdf import held_out_iou

SMALL = {"width": 32, "depth": 3, "points": 64, "steps": 30}


def built(samples, **settings):
    return methods.build("sal", methods.configure("sal", settings=settings), samples.form)


def test_signs_are_found_from_the_sphere_and_not_by_plain_l1():
    module = acceptance("sal")
    module.check(module.run(0))


@pytest.mark.parametrize("distance", ["l2", "l0"])
def test_rows_do_not_depend_on_lanes_or_neighbors(distance):
    table = box_table(5, points=512, surface=256)
    samples = load_samples(table, "shapes")
    method = built(samples, distance=distance, weight_norm=True, **SMALL)
    two, many = (fit_rows(method, {}, samples, seed=0, lanes=n).rows for n in (2, 5))
    alone = fit_rows(method, {}, load_samples(table.slice(3, 1), "shapes"), seed=0, lanes=2).rows
    for name in two:
        assert torch.equal(two[name], many[name])
        assert torch.equal(two[name][3], alone[name][0])


def test_the_sign_of_the_data_has_no_influence():
    """Signed shapes and the same shapes without sign give the same rows."""
    samples = load_samples(box_table(2, points=512), "shapes")
    bare = replace(
        samples,
        form=samples.form.model_copy(update={"signed": False}),
        sets={
            name: replace(
                s, columns={k: abs(v) if k == "distance" else v for k, v in s.columns.items()}
            )
            for name, s in samples.sets.items()
        },
    )
    one, other = (fit_rows(built(s, **SMALL), {}, s, seed=0).rows for s in (samples, bare))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_occupancy_of_the_sphere_start_finds_boxes():
    """h_0 needs no distances: a surface, and all else is 1 away."""
    samples = load_samples(box_table(2, points=2048, surface=2048), "shapes")
    method = built(samples, distance="l0", width=64, depth=4, points=256, steps=300)
    iou = held_out_iou(method, {}, fit_rows(method, {}, samples, seed=0).rows, samples)
    assert (iou > 0.85).all(), iou


@pytest.fixture(scope="module")
def trained():
    table = box_table(40, points=1024, surface=256)
    known, new = load_samples(table.slice(0, 32), "shapes"), load_samples(table.slice(32), "shapes")
    settings = {
        "mode": "vae",
        "width": 48,
        "depth": 3,
        "code": 16,
        "encoder_width": 24,
        "rate": 5e-3,
    }
    settings |= {"steps": 400, "points": 48, "batch": 8, "encoder_points": 64, "refine_steps": 60}
    method = built(known, **settings)
    return method, known, new, train(method, known, seed=0)


def test_an_encoder_of_clouds_knows_new_boxes_and_refining_helps(trained):
    method, _, new, result = trained
    before = {name: value.clone() for name, value in result.shared.items()}
    refined = fit_rows(method, result.shared, new, seed=0)
    assert all(torch.equal(before[name], value) for name, value in result.shared.items())
    encoded = fit_rows(replace(method, fit=()), result.shared, new, seed=0)
    assert refined.rows.keys() == encoded.rows.keys() == {"code.value"}
    found = held_out_iou(method, result.shared, encoded.rows, new).mean()
    better = held_out_iou(method, result.shared, refined.rows, new).mean()
    swapped = {name: value.roll(1, 0) for name, value in encoded.rows.items()}
    other = held_out_iou(method, result.shared, swapped, new).mean()
    assert found > other + 0.1, (found, other)
    assert better >= found - 0.01, (found, better)


def test_codes_start_near_zero_with_little_noise(trained):
    """The sphere lies in the space of code and coordinates: a code would change its radius."""
    method, known, *_ = trained
    fresh = train(replace(method, train=(replace(method.train[0], steps=1),)), known, seed=0)
    method.model.eval()
    mean = fit_rows(replace(method, fit=()), fresh.shared, known, seed=0).rows["code.value"]
    assert mean.abs().max() < 0.05


def test_what_it_cannot_use_is_named():
    with pytest.raises(ValueError, match=r"sal needs points off the surface .* points has none"):
        methods.build("sal", methods.configure("sal"), FormSpec(kind="points", dims=3))
    images = FormSpec(kind="images", dims=2, channels=3)
    with pytest.raises(
        ValueError, match="sal needs shapes or point clouds; this dataset has images"
    ):
        methods.build("sal", methods.configure("sal"), images)
    no_uniform = FormSpec(kind="points", dims=3, distances=True, sets=("near", "surface"))
    with pytest.raises(ValueError, match=r"set ingest\.uniform"):
        methods.build("sal", methods.configure("sal"), no_uniform)


def test_the_paper_preset_is_the_authors_network():
    form = FormSpec(kind="shapes", dims=3, distances=True)
    method = methods.build("sal", methods.configure("sal", "paper"), form)
    assert [layer.width for layer in method.model.table] == [512] * 8 + [1]
    assert all(layer.weight_norm for layer in method.model.table[:-1])
    start = method.model.layers[-1].initializers
    assert start["bias"].value == -1.0  # slope 2, radius 0.5
