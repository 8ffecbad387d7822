"""MetaSDF: networks of new shapes in three learned steps."""

import math

import pytest
import torch

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.draw import Draw
from pipeline.fields.bind import bind
from pipeline.fields.side_and_distance import SideAndDistance, side_and_distance_terms, signed
from pipeline.fitting import bindable, fit_rows, pack, start_shared, train, unpack
from pipeline.fitting.method import row_names, shared_names
from pipeline.samples import load_samples
from schemas.samples import FormSpec
from tests.fitting.tables import box_table

SMALL = {"width": 16, "depth": 2, "points": 64, "query_points": 64, "batch": 4, "train_steps": 6}


def built(samples, **settings):
    config = methods.configure("metasdf", settings={**SMALL, **settings})
    return methods.build("metasdf", config, samples.form)


@pytest.mark.slow
def test_new_boxes_in_three_steps():
    module = acceptance("metasdf")
    module.check(module.run(0))


def test_side_and_distance_are_weighed_by_their_deviations():
    """The terms against their formula, in float64; a perfect answer costs the deviations alone."""
    values = torch.tensor([[[2.0, 0.3], [-1.0, -0.2]]], dtype=torch.float64)
    distance = torch.tensor([[0.1, -0.4]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    deviations = torch.tensor([0.2, -0.3], dtype=torch.float64)
    terms = side_and_distance_terms(values, distance, weight, deviations)
    side = 0.25 * math.log(1 + math.exp(-2)) + 0.75 * math.log(1 + math.exp(-1))
    assert terms["side"].item() == pytest.approx(side / (2 * math.exp(0.4)))
    away = 0.25 * 0.2 + 0.75 * 0.2
    assert terms["distance"].item() == pytest.approx(away / (2 * math.exp(-0.6)))
    assert terms["deviations"].item() == pytest.approx(-0.1)
    right = torch.stack([distance.sign() * 50, distance.abs()], -1)
    terms = side_and_distance_terms(right, distance, weight, deviations)
    assert float(terms["side"] + terms["distance"]) == pytest.approx(0, abs=1e-12)
    assert torch.equal(signed(right), distance)


@pytest.mark.parametrize("octaves", [0, 5])
def test_networks_start_as_the_authors_do(octaves):
    model = SideAndDistance(64, 3, octaves=octaves)
    samples = load_samples(box_table(1, points=8), "shapes")
    network = "encoded" if octaves else "relu"
    method = built(samples, width=64, depth=3, network=network)
    shared = start_shared(method, 0)
    last = shared["start.field.net.layers.3.weight"]
    assert torch.equal(last, torch.full((2, 64), math.sqrt(math.pi / 64)))
    hidden = shared["start.field.net.layers.1.weight"]
    assert hidden.std() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    if octaves:
        at = torch.tensor([[0.2, -0.5, 0.9]])
        waves = model.field.encoding(at * model.field.scale)
        wanted = torch.cat([torch.sin(2.0**k * at) for k in range(5)], -1)
        torch.testing.assert_close(waves[:, 3:18], wanted, rtol=0, atol=1e-6)


def test_rows_are_networks_and_the_rest_is_shared():
    samples = load_samples(box_table(6, points=200), "shapes")
    method = built(samples)
    assert all(name.startswith("field.net.") for name in row_names(method))
    assert set(shared_names(method)) == {"inner", "outer"}
    start, trained = start_shared(method, 0), train(method, samples, seed=0).shared
    for name in row_names(method):  # a size for every number and step
        assert start[f"rate.{name}"].shape == (3, *start[f"start.{name}"].shape)
        assert not torch.equal(trained[f"start.{name}"], start[f"start.{name}"])
    for name in ("inner", "outer", "rate.field.net.layers.0.weight"):
        assert not torch.equal(trained[name], start[name]), name
    tensor = start_shared(built(samples, learned="tensor"), 0)
    assert tensor["rate.field.net.layers.0.weight"].shape == (3,)


def test_a_network_is_the_same_alone_and_in_company():
    table = box_table(5, points=200)
    samples = load_samples(table, "shapes")
    method = built(samples)
    shared = train(method, samples, seed=0).shared
    many = fit_rows(method, shared, samples, seed=0, lanes=5).rows
    one = load_samples(table.slice(3, 1), "shapes")
    alone = fit_rows(method, shared, one, seed=0).rows
    few = fit_rows(method, shared, samples, seed=0, lanes=2).rows
    again = unpack(method, pack(method, many))
    for name, value in many.items():
        assert torch.equal(alone[name][0], value[3])
        assert torch.equal(few[name], value)
        assert torch.equal(again[name], value)


def test_more_steps_of_a_fit_go_on_from_the_learned_ones():
    samples = load_samples(box_table(4, points=200), "shapes")
    few, more = built(samples), built(samples, fit_steps=40)
    shared = start_shared(few, 0)

    def loss(method):
        rows = fit_rows(method, shared, samples, seed=0).rows
        bound = bind(method.model, bindable(method, shared, rows))
        draw = Draw.of(samples.keys, seed=1, stage="look")
        batch = samples.draw(torch.arange(4), "context", method.inner.size, draw)
        return torch.stack(list(method.inner.loss(bound, batch, draw).values())).sum(0)

    assert (loss(more) < loss(few)).all()


def test_unsigned_shapes_are_refused_by_name():
    form = FormSpec(kind="shapes", dims=3, signed=False)
    with pytest.raises(ValueError, match=r"metasdf needs shapes with signed .* without signs"):
        methods.build("metasdf", methods.configure("metasdf"), form)
