"""Per-shape distance networks on boxes, against the best sphere-like control."""

import torch

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.draw import Draw
from pipeline.fields.bind import bind
from pipeline.fitting import bindable, fit_rows
from pipeline.samples import ALL, Size, load_samples
from tests.fitting.tables import box_table


def held_out_iou(method, shared, rows, samples):
    index = torch.arange(len(samples))
    draw = Draw.of(samples.keys, seed=0, stage="q")
    points = samples.draw(index, "query", Size(uniform=ALL), draw).points
    with torch.no_grad():
        sdf = method.read(bind(method.model, bindable(method, shared, rows)), points.coords)["sdf"]
    inside, truth = sdf < 0, points.distance < 0
    keep = points.weight > 0
    return (inside & truth & keep).sum(1) / ((inside | truth) & keep).sum(1)


def test_boxes_are_fitted_on_held_out_points():
    samples = load_samples(box_table(4, points=8192), "shapes")
    config = methods.configure("sdf", settings={"steps": 200})
    method = methods.build("sdf", config, samples.form)
    fitted = fit_rows(method, {}, samples, seed=0)
    iou = held_out_iou(method, {}, fitted.rows, samples)
    assert (iou >= 0.93).all(), iou
    swapped = {name: value.roll(1, 0) for name, value in fitted.rows.items()}
    assert held_out_iou(method, {}, swapped, samples).mean() < 0.6  # another box's field
    points = samples.draw(
        torch.arange(4), "query", Size(near=ALL), Draw.of(samples.keys, seed=0, stage="q")
    ).points
    with torch.no_grad():
        sdf = method.read(bind(method.model, fitted.rows), points.coords)["sdf"]
    close = points.distance.abs() < 0.05
    assert (sdf - points.distance).abs()[close].mean() < 0.01  # metric near the surface


def test_shapes_are_fitted_between_points_because_sines_oscillate():
    module = acceptance("sdf")
    module.check(module.run(0))
