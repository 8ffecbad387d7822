"""Segmentation: features of the last hidden layer, both conventions of mIoU, labels, refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.two_parts import two_parts
from pipeline import fitting
from pipeline.downstream.course import ALONE
from pipeline.downstream.field_features import (
    directions,
    features,
    last_layer,
    row_features,
    row_latent,
    surroundings,
)
from pipeline.downstream.miou import intersection_over_union
from pipeline.downstream.part_labels import IGNORED, class_of, mask_labels
from pipeline.downstream.readings import (
    LATENT,
    Reading,
    _block_factors,
    inputs_of,
    trained_head,
)
from pipeline.downstream.segment import _in_turn, open_segment, run_segment
from pipeline.downstream.training import Interrupted
from pipeline.evaluate.opened import open_store
from pipeline.fields.bind import bind
from pipeline.fitting.rows import bindable
from pipeline.methods import build, configure
from schemas.base import Location
from schemas.probing import PartLabels, SegmentJob
from schemas.samples import FormSpec
from tests.downstream.small import code_store, rings

IMAGES = FormSpec(kind="images", channels=3, dims=2)
SHAPES = FormSpec(kind="shapes", dims=3, signed=True, distances=True, normals=True)


@pytest.mark.parametrize(
    ("name", "settings", "form", "wide"),
    [
        ("siren", {"width": 9, "depth": 2}, IMAGES, 9),
        ("functa", {"width": 8, "depth": 2, "latent": 5}, IMAGES, 8),
        ("deepsdf", {"width": 12, "depth": 3, "code": 6}, SHAPES, 12),
    ],
    ids=["siren", "functa", "deepsdf"],
)
def test_the_last_layer_makes_the_value_of_the_features(name, settings, form, wide):
    method = build(name, configure(name, "default", settings), form)
    shared = fitting.start_shared(method, 3)
    count = 4
    random = torch.Generator().manual_seed(0)
    rows = {
        k: torch.randn(count, *dict(method.model.named_parameters())[k].shape, generator=random)
        for k in fitting.method.row_names(method)
    }
    bound = bind(method.model, bindable(method, shared, rows))
    coords = torch.rand(count, 7, form.dims, generator=random) * 2 - 1
    found = features(method, bound, coords)
    assert found.shape == (count, 7, wide)
    alone = bind(method.model, bindable(method, shared, {k: v[2:3] for k, v in rows.items()}))
    assert torch.allclose(features(method, alone, coords[2:3])[0], found[2], atol=1e-5)
    layer = last_layer(method)
    tensors = bindable(method, shared, rows)
    weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
    if weight.dim() == 2:
        weight, bias = weight.expand(count, -1, -1), bias.expand(count, -1)
    value = torch.einsum("npf,ncf->npc", found, weight) + bias[:, None]
    read = method.field.read(bound, coords)
    wanted = read["sdf"][..., None] if "sdf" in read else read["color"]
    if "color" in read:
        value = value.mul(0.5).add(0.5).clamp(0, 1)
    elif value.shape == wanted.shape and (value - wanted).abs().max() > 1e-4:
        value = value.tanh()  # DeepSDF ends in tanh
    assert (value - wanted).abs().max() < 1e-4


def test_surroundings_are_values_around_a_point_and_along_the_gradient():
    """The field is the distance to the plane z = 0, of which the boundary of the box cuts some."""
    opened = SimpleNamespace(
        quantity="sdf",
        method=SimpleNamespace(field=SimpleNamespace(read=lambda b, x: {"sdf": x[..., 2]})),
    )
    at = torch.tensor([[0.1, 0.2, 0.3], [0.0, 0.0, 0.95]])
    found = surroundings(opened, None, at, (0.1, 0.2))
    assert found.shape == (2, 1 + 2 * 14 + 2 + 2 + 4)
    around = directions(3)
    assert torch.allclose(around.norm(dim=1), torch.ones(14))
    assert torch.allclose(found[:, 0], at[:, 2])
    assert torch.allclose(found[0, 1:15], 0.3 + 0.1 * around[:, 2], atol=1e-6)
    assert torch.allclose(found[0, 29:31], torch.full((2,), 0.3), atol=1e-6)  # means
    assert torch.allclose(found[0, 31:33], around[:, 2].std() * torch.tensor([0.1, 0.2]), atol=1e-6)
    assert torch.allclose(found[0, 33:], torch.tensor([0.4, 0.5, 0.2, 0.1]), atol=1e-6)
    assert found.max() <= 1  # nothing is asked outside


def test_both_conventions_of_miou_by_hand():
    wanted = {0: torch.tensor([0, 0, 1, 1]), 1: torch.tensor([0, 0, 0, 0])}
    guessed = {0: torch.tensor([0, 0, 1, 0]), 1: torch.tensor([0, 0, 0, 2])}
    found = intersection_over_union(wanted, guessed, ("a", "b", "c"))
    assert found["classes"] == {"a": pytest.approx(5 / 7), "b": pytest.approx(1 / 2)}
    assert found["class_miou"] == pytest.approx((5 / 7 + 1 / 2) / 2)  # nobody has c
    first, second = (2 / 3 + 1 / 2) / 2, (3 / 4 + 0) / 2  # c was guessed in the second sample
    assert found["sample_miou"] == pytest.approx((first + second) / 2)
    assert found["accuracy"] == pytest.approx(6 / 8)


def test_parts_are_classes_by_name_and_masks_by_sample(tmp_path):
    labels = PartLabels(names={"lid": "cover", "PIN*": "metal"})
    assert [class_of(n, labels) for n in ("leg 3", "leg.001", "lid", "R2D2_7", "12", "PIN-02")] == [
        "leg", "leg", "cover", "R2D2", "12", "metal"]  # fmt: skip
    assert class_of("lid", PartLabels(names={"*": "rest", "lid": "cover"})) == "cover"
    (tmp_path / "cats").mkdir()
    mask = np.array([[0, 1, 255], [1, 1, 255]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "cats" / "1.png")
    found = mask_labels(Location(url=str(tmp_path)), ["cats/1.jpg", "cats/2.jpg"], ("255",))
    assert found.classes == ("0", "1")
    labeled = found.samples["cats/1.jpg"]
    assert list(found.samples) == ["cats/1.jpg"]
    assert labeled.classes.tolist() == [0, 1, IGNORED, 1, 1, IGNORED]
    assert labeled.coords[2].tolist() == pytest.approx([2 / 3, -0.5])  # x right, y down
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "cats" / "1.png")
    with pytest.raises(ValueError, match=r"'cats/1\.png' has 3 channels"):
        mask_labels(Location(url=str(tmp_path)), ["cats/1.jpg"], ())
    Image.fromarray(mask).save(tmp_path / "set.gz#7.png")
    assert list(mask_labels(Location(url=str(tmp_path)), ["set.gz#7", "set.gz#8"], ()).samples) == [
        "set.gz#7"
    ]
    with pytest.raises(ValueError, match=r"none of them named .* e.g. 'dogs/1.png'"):
        mask_labels(Location(url=str(tmp_path)), ["dogs/1.jpg"], ())


def test_samples_of_each_class_come_in_turn_in_the_order_of_the_draw():
    pool = [(9, "a"), (4, "a"), (7, "b"), (1, "a"), (3, "c"), (8, "b")]
    assert [row for row, _ in _in_turn(pool)] == [9, 7, 3, 4, 8, 1]
    assert [row for row, _ in _in_turn([(5, None), (2, None)])] == [5, 2]


def test_the_nearest_points_answer_with_blocks_of_equal_spread():
    """Features decide by their form, whatever their scale; latents count twice."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    features = torch.randn(200, 3, generator=random) + 6.0 * labels[:, None]
    shown = [
        {"coords": x[:, :2], "features": 1e-3 * x, "latent": 1e3 * torch.randn(1, 4).expand(50, -1)}
        for x in features.split(50)
    ]
    reading = Reading("nearest", ("features", "latent"), "nearest")
    factors = _block_factors(reading, shown)
    joined = torch.cat([inputs_of(reading, parts) for parts in shown]) * factors
    spread = [(b - b.mean(0)).square().sum(1).mean().sqrt() for b in joined.split([3, 4], 1)]
    assert spread == pytest.approx([1.0, LATENT], rel=1e-3)
    job = SegmentJob.model_validate({"name": "n", "source": "a.zarr", "store": "b"})
    scores = trained_head(shown, labels, 2, job, ALONE, reading)
    near = scores(inputs_of(reading, {k: v + 1e-4 for k, v in shown[0].items()}))
    assert (near.argmax(1) == labels[:50]).float().mean() >= 0.95


# --- stores -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Location:
    """A finished store of pictures of two parts, a few steps long, and their masks beside it."""
    from jobs.cli import main
    from tests.jobs.pictures import write_run

    folder = tmp_path_factory.mktemp("parts")
    random = np.random.default_rng(0)
    for kind in ("pictures", "masks"):
        (folder / kind).mkdir()
    for number in range(24):
        picture, mask = two_parts(random)
        Image.fromarray(picture).save(folder / "pictures" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    run = write_run(
        folder,
        dataset={"url": str(folder / "pictures"), "kind": "images"},
        ingest={"color": "gray"},
        method={"name": "functa", "latent": 8, "width": 12, "depth": 2, "inner_pixels": 64,
                "train_steps": 20, "batch": 8},
        store=str(folder / "parts.zarr"),
        resources={"workers": 0},
    )  # fmt: skip
    assert main(["run", run]) in (0, 3)
    return Location(url=str(folder))


def job_of(folder: Location, store: object, **changes) -> SegmentJob:
    values = {
        "name": "parts",
        "source": f"{folder.url}/parts.zarr",
        "labels": {"kind": "masks", "masks": f"{folder.url}/masks"},
        "labelled": 5,
        "test": ["train", "test"],
        "points": 200,
        "train": {"steps": 30, "batch": 512, "rate": 0.01},
        "store": str(store),
        **changes,
    }
    return SegmentJob.model_validate(values)


def test_a_job_learns_from_its_samples_and_measures_others(pictures, tmp_path):
    job = job_of(pictures, tmp_path / "out")
    task = open_segment(job)
    assert len(task.known) == 5
    assert len(task.tests) == 19
    assert not set(task.known) & set(task.tests)
    assert all(len(p.classes) == 200 for p in task.points.values())
    report = run_segment(job)
    table = report["table"]
    assert len(table) == 16
    assert table["linear on features and surroundings"]["numbers"] == 12 + 1 + 5 * (8 + 2 + 2)
    assert table["linear on features"]["numbers"] == 12
    assert table["linear on features and latent"]["numbers"] == 20
    assert table["linear on features"]["class_miou"] > table["largest class"]["class_miou"]
    assert 0 < table["largest class"]["class_miou"] < 0.34  # background, of three classes
    assert json.loads((tmp_path / "out" / "segment.json").read_text()) == report
    assert run_segment(job) == report
    opened, row = open_store(job.source), task.tests[0]
    assert row_latent(opened, row).shape == (8,)
    at = task.points[row].coords
    parts = [row_features(opened, row, x) for x in at.split(17)]
    assert torch.allclose(torch.cat(parts), row_features(opened, row, at), atol=1e-5)


def test_a_stopped_job_ends_at_the_same_report(pictures, tmp_path):
    stops = iter([False] * 40 + [True])
    with pytest.raises(Interrupted):  # in the second head
        run_segment(job_of(pictures, tmp_path / "cut"), stop=lambda: next(stops))
    assert len(list((tmp_path / "cut").rglob("heads/*.safetensors"))) == 2
    cut = run_segment(job_of(pictures, tmp_path / "cut"))
    assert cut == run_segment(job_of(pictures, tmp_path / "whole"))
    names = ("cut", "whole")
    heads = [(tmp_path / name / "head.safetensors").read_bytes() for name in names]
    assert heads[0] == heads[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled": 100}, r"100 samples are asked for, but .* has \d+ with labels"),
        ({"labels": {"kind": "parts"}}, "holds images without parts"),
        ({"test": ["val"]}, "no other labeled rows of split val"),
        (
            {"labels": {"kind": "masks", "masks": "{}/masks", "ignore": ["0", "1"]}},
            "all labeled points are of one class, '2'",
        ),
    ],
    ids=["too few", "no parts", "no tests", "one class"],
)
def test_what_nothing_can_be_learned_from_is_refused(pictures, tmp_path, changes, message):
    changes = json.loads(json.dumps(changes).replace("{}", pictures.url))
    with pytest.raises(ValueError, match=message):
        open_segment(job_of(pictures, tmp_path, **changes))


def test_shapes_without_a_prepared_dataset_are_refused(tmp_path):
    code_store(Location(url=str(tmp_path / "codes.zarr")), *rings(40, 0))
    job = job_of(Location(url=str(tmp_path)), tmp_path / "o", labels={"kind": "parts"},
                 source=str(tmp_path / "codes.zarr"))  # fmt: skip
    with pytest.raises(ValueError, match="no prepared dataset beside it"):
        open_segment(job)
    with pytest.raises(ValueError, match="name the folder of masks"):
        PartLabels(kind="masks")


@pytest.mark.slow
def test_labels_of_ten_pictures_suffice_where_fields_of_three_hundred_were_learned(tmp_path):
    """All white silhouettes: only the form tells body and part apart."""
    from benchmarks.two_parts import write
    from jobs.cli import main

    write(tmp_path)
    assert main(["run", str(tmp_path / "functa.yaml")]) == 0
    assert main(["segment", str(tmp_path / "segment.yaml")]) == 0
    table = json.loads((tmp_path / "segments" / "segment.json").read_text())["table"]
    found = {name: figures["class_miou"] for name, figures in table.items()}
    ours = found["linear on features and surroundings"]
    assert ours >= 0.8
    assert ours >= found["linear on features"] + 0.05
    assert ours >= found["from scratch: coordinates"] + 0.2
    assert ours >= found["network on coordinates and latent"] + 0.1
    assert found["linear on coordinates"] <= 0.55
    assert found["linear on untrained features, surroundings, latent"] <= 0.6
    assert found["nearest by untrained features and latent"] <= 0.6
