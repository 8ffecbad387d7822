"""Convolutional Occupancy Networks: acceptance, stored grids, batch mates, windows, refusals."""

import numpy as np
import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance._solids import scene, table
from pipeline import methods
from pipeline.fields.bind import bind
from pipeline.fitting import bindable, fit_rows, row_arrays, start_shared, train
from pipeline.samples import load_samples
from schemas.samples import FormSpec

SMALL = {
    "planes": 8,
    "volume": 8,
    "features": 4,
    "inputs": 200,
    "encoder_width": 8,
    "encoder_blocks": 2,
    "unet_width": 4,
    "unet_levels": 2,
    "width": 8,
    "blocks": 2,
    "points": 64,
    "batch": 4,
    "train_steps": 5,
}
FULL = FormSpec(kind="shapes", dims=3, signed=True, normals=True, voxels=32)
WINDOWS = {"grid": "volume", "volume": 16, "crop": 4, "unet_levels": 1}


def scenes(count, seed=0, size=0.26, **sizes):
    random = np.random.default_rng(seed)
    made = [scene(random, 8, size) for _ in range(count)]
    return table(made, seed=seed, near=0, **{"uniform": 2048, "held_out": 256, **sizes})


def build(form, **settings):
    return methods.build("convonet", methods.configure("convonet", settings=settings), form)


@pytest.fixture(scope="module")
def figures():
    return acceptance("convonet").run(0)


def test_held_out_scenes_come_out_of_their_points(figures):
    acceptance("convonet").check(figures)


@pytest.mark.parametrize("grid", ["planes", "volume", "both"])
def test_grids_are_stored_in_their_natural_shape_and_independent_of_batch_mates(grid):
    prepared = scenes(5)
    samples = load_samples(prepared, "shapes")
    method = build(samples.form, **SMALL, grid=grid)
    arrays = {a.name: a.shape for a in row_arrays(method) if a.rows}
    shapes = {"latents/planes": (3, 4, 8, 8), "latents/volume": (4, 8, 8, 8)}
    wanted = {"planes": ["planes"], "volume": ["volume"], "both": ["planes", "volume"]}[grid]
    assert arrays == {f"latents/{name}": shapes[f"latents/{name}"] for name in wanted}
    shared = start_shared(method, 0)
    many, two = (fit_rows(method, shared, samples, seed=0, lanes=n).rows for n in (5, 2))
    alone = load_samples(prepared.slice(3, 1), "shapes")
    one = fit_rows(method, shared, alone, seed=0).rows
    for name, value in many.items():
        assert torch.equal(value, two[name])
        assert torch.equal(value[3], one[name][0])


def test_windows_learn_scenes_and_slide_over_new_ones():
    """Trained on windows of a 64th of the volume; beats saying outside everywhere."""
    sizes = {"uniform": 8192, "surface": 1024, "held_out": 512}
    known = load_samples(scenes(24, **sizes), "shapes")
    new = load_samples(scenes(4, seed=1, **sizes), "shapes")
    settings = {**SMALL, **WINDOWS, "features": 8, "unet_width": 8, "inputs": 600}
    settings |= {"points": 8192, "train_steps": 150, "rate": 1e-2, "width": 16, "encoder_width": 12}
    method = build(known.form, **settings)
    shared = train(method, known, seed=0).shared
    rows = fit_rows(method, shared, new, seed=0).rows
    from benchmarks.acceptance._shapes import held_out_iou

    ours = held_out_iou(method, shared, rows, new, level=0.4).mean()
    rolled = {name: value.roll(1, 0) for name, value in rows.items()}
    assert ours > held_out_iou(method, shared, rolled, new, level=0.4).mean() + 0.25
    assert ours > 0.45


def test_normals_of_the_field_can_be_differentiated_again():
    """Mesh refinement needs the gradient of a gradient through the reads."""
    samples = load_samples(scenes(2), "shapes")
    method = build(samples.form, **SMALL, grid="both")
    shared = start_shared(method, 0)
    rows = fit_rows(method, shared, samples, seed=0).rows
    bound = bind(method.model, bindable(method, shared, rows))
    coords = (torch.rand(2, 20, 3) - 0.5).requires_grad_()
    (slope,) = torch.autograd.grad(
        method.read(bound, coords)["logits"].sum(), coords, create_graph=True
    )
    (bend,) = torch.autograd.grad(slope.square().sum(), coords)
    assert slope.abs().max() > 0
    assert torch.isfinite(bend).all()


@pytest.mark.parametrize(
    ("form", "settings", "words"),
    [
        (FormSpec(kind="images", channels=3, dims=2), {}, "this dataset has images"),
        (FormSpec(kind="shapes", dims=3, distances=True), {}, "without signs: set ingest.sign"),
        (FULL.model_copy(update={"sets": ("near", "uniform")}), {}, "set ingest.surface"),
        (FULL.model_copy(update={"voxels": 0}), {"encoder": "voxels"}, "set ingest.voxels"),
        (FULL, {"planes": 30, "unet_levels": 3}, "planes of 30 cells .*multiple of 4"),
        (FULL, {"crop": 4}, "set grid: volume"),
        (FULL, {"grid": "volume", "volume": 16, "crop": 12, "unet_levels": 1}, "multiple of 12"),
    ],
)
def test_data_and_grids_it_cannot_use_are_refused_with_the_way_out(form, settings, words):
    with pytest.raises(ValueError, match=f"convonet.*{words}"):
        build(form, **settings)


@pytest.mark.parametrize("preset", ["paper", "paper-volume", "paper-rooms", "paper-crop"])
def test_the_papers_settings_build(preset):
    method = methods.build("convonet", methods.configure("convonet", preset), FULL)
    volume = {"paper-volume": 32, "paper-rooms": 64, "paper-crop": 64}
    name, shape = "planes", (3, 32, 64, 64)
    if preset in volume:
        name, shape = "volume", (32, *[volume[preset]] * 3)
    assert {a.name: a.shape for a in row_arrays(method) if a.rows} == {f"latents/{name}": shape}
