"""CPPN: graphs that grow and stay without cycles, symmetry by construction, mixed activations."""

import numpy as np
import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance.cppn import disc_with_stripes, stripes
from pipeline import methods
from pipeline.fields.bind import bind
from pipeline.fields.graph import NAMES
from pipeline.fitting import fit_rows, pack, start_shared, unpack
from pipeline.samples import load_samples, pixel_coords

SMALL = {"population": 12, "generations": 40, "pixels": 128, "steps": 20, "capacity": 12}


def fitted(table, seed=0, **settings):
    samples = load_samples(table, "images")
    method = methods.build("cppn", methods.configure("cppn", settings=settings), samples.form)
    return method, fit_rows(method, start_shared(method, seed), samples, seed=seed)


def drawn(method, rows, coords):
    with torch.no_grad():
        return method.read(bind(method.model, rows), coords[None])["color"]


@pytest.fixture(scope="module")
def evolved():
    return fitted(stripes(2, 16, 0), **SMALL)


@pytest.mark.slow
def test_mixed_activations_and_evolution_gain():
    module = acceptance("cppn")
    module.check(module.run(0))


def test_graphs_grow_and_have_no_cycles(evolved):
    _, result = evolved
    place, enabled = result.rows["graph.place.value"], result.rows["graph.enabled.value"]
    upward = place[:, :, None] > place[:, None, :]
    assert not (enabled.bool() & ~upward[:, None]).any()
    assert ((place > 0) & (place < 1)).sum(1).min() >= 3  # hidden nodes were made
    assert (enabled[:, 0].sum((1, 2)) > 4).all()  # and the best graph is more than its start
    fitness = result.rows["graph.fitness.value"]
    assert (fitness.diff(dim=1) <= 0).all()


def test_the_edge_that_a_node_split_is_on_record(evolved):
    _, result = evolved
    place, parents = result.rows["graph.place.value"], result.rows["graph.parents.value"].long()
    hidden = (place > 0) & (place < 1)
    low, high = (place.gather(1, parents[..., end]) for end in (0, 1))
    assert ((low < place) & (place < high))[hidden].all()


def test_a_radius_alone_gives_eightfold_symmetry():
    method, result = fitted(stripes(1, 16, 0), **SMALL, inputs=("radius",))
    picture = drawn(method, result.rows, pixel_coords(32, 32)).reshape(32, 32)
    assert picture.std() > 1e-3
    for other in (picture.T, picture.flip(0), picture.flip(1), picture.rot90()):
        torch.testing.assert_close(picture, other, rtol=0, atol=1e-6)


def test_a_picture_is_the_same_at_any_resolution():
    method, result = fitted(disc_with_stripes(24), **SMALL)
    once = drawn(method, result.rows, pixel_coords(24, 24)).reshape(24, 24)
    twice = drawn(method, result.rows, pixel_coords(48, 48)).reshape(24, 2, 24, 2).mean((1, 3))
    assert (once - twice).abs().mean() <= 0.05


def test_a_row_evolves_the_same_alone_and_in_company(evolved):
    _, result = evolved
    _, alone = fitted(stripes(2, 16, 0).slice(1), **SMALL)
    for name, value in alone.rows.items():
        assert torch.equal(value[0], result.rows[name][1]), name


def test_a_stored_graph_draws_the_same_picture(evolved):
    method, result = evolved
    stored = pack(method, result.rows)
    assert stored["latents/graph.enabled"].dtype == np.int32
    back = unpack(method, stored)
    coords = pixel_coords(16, 16)
    assert torch.equal(drawn(method, back, coords), drawn(method, result.rows, coords))
    assert method.field.layers[1]["functions"] == list(NAMES)


def test_descending_on_a_graph_improves_it():
    table = disc_with_stripes(16)
    few = {**SMALL, "generations": 4, "rate": 3e-2}
    _, before = fitted(table, **{**few, "steps": 1})
    _, after = fitted(table, **{**few, "steps": 150})
    assert after.loss[0] <= 0.9 * before.loss[0]


def test_a_capacity_without_room_is_refused():
    samples = load_samples(disc_with_stripes(8), "images")
    config = methods.configure("cppn", settings={"capacity": 5})
    with pytest.raises(ValueError, match="capacity: 5"):
        methods.build("cppn", config, samples.form)
