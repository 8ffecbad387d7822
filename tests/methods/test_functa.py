"""functa: latents in three steps, of new pictures, one number or cell at a time."""

import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance._digits import digits
from pipeline import methods
from pipeline.fields.bind import bind
from pipeline.fitting import (
    bindable,
    choose_encoding,
    fit_rows,
    pack,
    start_shared,
    train,
    unpack,
)
from pipeline.fitting.method import row_names
from pipeline.samples import load_samples, pixel_coords
from schemas.samples import FormSpec
from tests.fitting.tables import picture_table

SMALL = {"latent": 8, "width": 16, "depth": 2, "inner_pixels": 64, "omega": 6.0}


def built(samples, **settings):
    config = methods.configure("functa", settings={**SMALL, **settings})
    return methods.build("functa", config, samples.form)


@pytest.mark.slow
def test_new_digits_in_three_steps():
    module = acceptance("functa")
    module.check(module.run(0))


def test_a_cell_of_a_spatial_latent_changes_its_own_pixels_alone():
    samples = load_samples(picture_table([(16, 16)]), "images")
    method = built(samples, cells=4)
    shared = start_shared(method, 0)
    coords = pixel_coords(16, 16)[None]
    random = torch.Generator().manual_seed(0)
    code = torch.randn(1, 4, 4, 8, generator=random)
    changed = code.clone()
    changed[0, 2, 1] += 1.0

    def color(code):
        bound = bind(method.model, bindable(method, shared, {"code.value": code}))
        return bound(coords)[0].detach().reshape(16, 16, -1)

    moved = (color(changed) - color(code)).abs().amax(-1)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 8:12] = True  # cell (x, y) = (2, 1) of 4 x 4 pixels
    assert moved[~inside].max() <= 1e-6
    assert moved[inside].min() > 1e-3
    vector = built(samples)
    shared = start_shared(vector, 0)
    colors = [
        bind(vector.model, bindable(vector, shared, {"code.value": torch.full((1, 8), value)}))
        for value in (0.0, 0.1)
    ]
    apart = (colors[0](coords) - colors[1](coords)).abs()[0].amax(-1)
    assert (apart > 1e-4).float().mean() > 0.9  # a vector changes all of a picture


def test_an_interpolated_cell_changes_the_pixels_nearer_than_a_cell_to_its_center():
    samples = load_samples(picture_table([(16, 16)]), "images")
    method = built(samples, cells=4, lookup="linear")
    shared = start_shared(method, 0)
    coords = pixel_coords(16, 16)[None]
    code = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    changed = code.clone()
    changed[0, 2, 1] += 1.0
    fields = [
        bind(method.model, bindable(method, shared, {"code.value": value}))
        for value in (code, changed)
    ]
    moved = (fields[1](coords) - fields[0](coords)).abs().amax(-1)[0].detach()
    center = torch.tensor([2.5, 1.5]) / 4 * 2 - 1
    near = ((coords[0] - center).abs() < 2 / 4).all(-1)
    assert near.sum() == 64  # 8 x 8 of 16 x 16 pixels
    assert moved[~near].max() <= 1e-6
    assert moved[near].max() > 10 * moved[near].min() > 0  # it fades out
    # No seam: two points on both sides of a border differ as little as any so near.
    border = torch.tensor([[[-1e-5, 0.3], [1e-5, 0.3]]])
    left, right = fields[0](border)[0].detach()
    assert (left - right).abs().max() < 1e-3


def test_equal_cells_that_are_interpolated_are_one_vector():
    samples = load_samples(picture_table([(16, 16)]), "images")
    vector, cells = built(samples), built(samples, cells=3, lookup="linear")
    shared = {name: value for name, value in start_shared(vector, 0).items() if "code" not in name}
    code = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    coords = pixel_coords(16, 16)[None]
    one = bind(vector.model, {**shared, "code.value": code})(coords)
    many = bind(cells.model, {**shared, "code.value": code.expand(1, 3, 3, 8)})(coords)
    assert torch.allclose(one, many, atol=1e-5)


def test_interpolated_cells_are_found_by_plain_pytorch_and_it_says_so():
    samples = load_samples(picture_table([(16, 16), (16, 16), (12, 20)]), "images")
    method = built(samples, cells=2, lookup="linear", train_steps=2)
    shared = train(method, samples, seed=0).shared
    kernel, words = choose_encoding(method, shared, lambda: samples, 0)
    assert kernel == ""
    assert "from more than one cell (lookup: linear)" in words
    many = fit_rows(method, shared, samples, seed=0, lanes=3).rows["code.value"]
    few = fit_rows(method, shared, samples, seed=0, lanes=2).rows["code.value"]
    assert torch.equal(few, many)
    described = {part["kind"]: part for part in method.model.describe()}
    assert (described["latent"]["cells"], described["latent"]["lookup"]) == (2, "linear")
    with pytest.raises(ValueError, match=r"method\.lookup: 'linear' is of a grid of cells"):
        built(samples, lookup="linear")


def test_a_point_on_a_border_belongs_to_one_cell_and_the_far_edge_to_the_last():
    samples = load_samples(picture_table([(16, 16)]), "images")
    method = built(samples, cells=2)
    shared = start_shared(method, 0)
    code = torch.zeros(1, 2, 2, 8)
    code[0, 1, 1] = 1.0
    bound = bind(method.model, bindable(method, shared, {"code.value": code}))
    plain = bind(method.model, bindable(method, shared, {"code.value": code * 0}))
    coords = torch.tensor([[[1.0, 1.0], [0.0, 0.0], [-1e-3, 0.5], [-1.0, -1.0]]])
    moved = (bound(coords) - plain(coords)).abs().amax(-1)[0] > 1e-4
    assert moved.tolist() == [True, True, False, False]


def test_a_row_is_the_same_alone_and_in_company_and_nothing_shared_moves():
    table = picture_table([(16, 16), (12, 20), (16, 16), (10, 10), (24, 24)])
    samples = load_samples(table, "images")
    method = built(samples, train_steps=3)
    assert row_names(method) == ["code.value"]
    shared = train(method, samples, seed=0).shared
    before = {name: value.clone() for name, value in shared.items()}
    many = fit_rows(method, shared, samples, seed=0, lanes=5)
    for at in range(5):
        one = load_samples(table.slice(at, 1), "images")
        alone = fit_rows(method, shared, one, seed=0).rows["code.value"][0]
        assert torch.equal(alone, many.rows["code.value"][at])
    few = fit_rows(method, shared, samples, seed=0, lanes=2)
    assert torch.equal(few.rows["code.value"], many.rows["code.value"])
    assert all(torch.equal(shared[name], value) for name, value in before.items())
    again = unpack(method, pack(method, many.rows))
    assert torch.equal(again["code.value"], many.rows["code.value"])


def test_step_sizes_are_learned_one_for_each_entry_and_step():
    samples = load_samples(digits(24, 14, 0), "images")
    method = built(samples, train_steps=20, rate=3e-3, inner_rate=1.5)
    start, trained = start_shared(method, 0), train(method, samples, seed=0).shared
    name = "rate.code.value"
    assert start[name].shape == (3, 8)
    assert (start[name] == 1.5).all()
    assert trained[name].std() > 0
    assert torch.equal(trained["start.code.value"], torch.zeros(8))  # the start stays zero


def test_other_data_is_refused_by_name():
    form = FormSpec(kind="shapes", dims=3, signed=True)
    with pytest.raises(ValueError, match="functa fits images; this dataset has shapes"):
        methods.build("functa", methods.configure("functa"), form)


def test_the_paper_is_fifteen_layers_of_512():
    config = methods.configure("functa", "paper")
    assert (config.depth, config.width, config.omega, config.inner_steps) == (15, 512, 30.0, 3)
    form = FormSpec(kind="images", channels=3, dims=2)
    names = dict(methods.build("functa", config, form).model.named_parameters())
    assert names["shift.weight"].shape == (15 * 512, 256)


def test_keys_of_stores_from_before_there_was_a_lookup_mean_the_same():
    config = methods.configure("functa", settings={"latent": 8})
    assert "lookup" not in config.deciding()
    assert methods.configure("functa", settings={"cells": 4, "lookup": "linear"}).deciding()[
        "lookup"
    ]
