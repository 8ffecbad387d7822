"""Quality of samples of pictures and of surfaces: measured on what they decode to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.downstream.decoded import Pictures, Surfaces, decode
from pipeline.downstream.features import (
    Classifier,
    class_measures,
    load_classifier,
    pca_features,
    train_classifier,
)
from pipeline.downstream.lesson import open_lesson
from pipeline.downstream.prior_stage import run_prior
from pipeline.downstream.report import read_report
from pipeline.downstream.sample_store import opened_rows
from pipeline.downstream.set_metrics import frechet_distance, kernel_distance
from pipeline.evaluate.opened import open_store
from schemas.base import Location
from schemas.downstream import PriorJob
from tests.downstream.small import code_store, ring
from tests.evaluate.prepared import picture_table
from tests.evaluate.stores import fitted_store


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 pictures of a slope whose direction and brightness vary, fitted from a common start."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:1:8j, 0:1:8j]
    made = []
    for _ in range(40):
        angle, level = random.uniform(0, 2 * np.pi), random.uniform(0.4, 0.6)
        slope = level + 0.3 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
        made.append(np.repeat(slope[..., None], 3, -1))
    table = picture_table(pictures=made)
    splits = ["train" if i % 4 else "test" for i in range(40)]
    where = table.column_names.index("split")
    table = table.set_column(where, table.schema.field("split"), [splits])
    location = Location(url=str(tmp_path_factory.mktemp("stores") / "pictures.zarr"))
    settings = {"width": 8, "depth": 1, "steps": 60, "omega_first": 4.0, "start": "common",
                "target_psnr": None, "rate": 1e-2}  # fmt: skip
    fitted_store(location, table, "images", "siren", settings, unit_rows=16)
    return location.url


def job_of(source: str, store, **changes) -> PriorJob:
    values = {
        "name": "quality",
        "source": {"url": source},
        "store": str(store),
        "method": {"name": "gaussian", "conditional": False},
        "sample": {"count": 6},
        "evaluate": {"rows": 10, "resolution": 8},
    }
    return PriorJob.model_validate({**values, **changes})


def test_rows_in_memory_decode_as_rows_of_the_store_do(pictures):
    parent = open_store(pictures)
    values = parent.reader.params([3, 5])
    opened = opened_rows(parent, "params", values)
    found = decode(opened, [0, 1], resolution=8, points=16)
    assert isinstance(found, Pictures)
    expected = decode(parent, [3, 5], resolution=8, points=16)
    torch.testing.assert_close(found.values, expected.values)
    assert found.values.shape == (2, 3, 8, 8)


def test_pictures_are_compared_by_features(pictures, tmp_path):
    job = job_of(pictures, tmp_path / "a")
    run_prior(job)
    lesson = open_lesson(job)
    table = read_report(lesson)["quality"]["table"]["decoded"]
    assert set(table) == {"real", "prior", "gaussian"}
    assert {"frechet", "kid", "one_nn", "cov", "mmd", "density", "coverage"} <= set(table["real"])
    for name in ("sheet.png", "paths.png"):
        assert lesson.files.get(name).startswith(b"\x89PNG")
    assert open_store(job.store).render("sample-000002").color.shape == (8, 8, 3)


def test_noise_is_told_from_pictures(pictures):
    parent = open_store(pictures)
    learned, held = (
        decode(parent, parent.rows(split=split), resolution=8, points=16).values
        for split in ("train", "test")
    )
    extract = pca_features(learned, 8)
    noise = torch.rand(held.shape, generator=torch.Generator().manual_seed(0))
    alike = kernel_distance(extract(learned), extract(held))
    apart = kernel_distance(extract(noise), extract(held))
    assert apart > 3 * max(alike, 0.01)
    far = frechet_distance(extract(noise), extract(held))
    assert far > 3 * frechet_distance(extract(learned), extract(held))


def test_features_are_those_of_a_classifier_of_ones_own(pictures, tmp_path):
    torch.manual_seed(0)
    x = torch.rand(40, 3, 8, 8) * 0.2
    labels = torch.arange(40) % 2
    x[labels == 1, 0] += 0.5
    model = train_classifier(x, labels, 2, steps=40)
    assert (model(x).argmax(1) == labels).float().mean() > 0.9
    path = str(tmp_path / "own.safetensors")
    save_file(model.state_dict(), path)
    again = load_classifier(path)
    assert torch.equal(again.features(x), model.features(x))
    job = job_of(pictures, tmp_path / "b", evaluate={"rows": 10, "features": path})
    run_prior(job)
    real = read_report(open_lesson(job))["quality"]["table"]["decoded"]["real"]
    assert real["kid"] is not None
    assert 0.5 <= real["confidence"] <= 1
    assert 0 <= real["class_shift"] <= 1
    sure, one_class = class_measures(model, x, x), class_measures(model, x[labels == 1], x)
    assert sure["class_shift"] == 0
    assert one_class["class_shift"] == pytest.approx(0.5, abs=0.1)  # half of them are missing
    assert class_measures(model, torch.rand(40, 3, 8, 8), x)["confidence"] <= 1
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"not the weights of the classifier.*net\.0\.weight"):
        load_classifier(path)


def test_features_that_cannot_be_had_are_told_before_anything_is_trained(pictures, tmp_path):
    other = tmp_path / "other.safetensors"
    job = job_of(pictures, tmp_path / "c", evaluate={"rows": 10, "features": str(other)})
    with pytest.raises(ValueError, match=r"evaluate\.features: .*other\.safetensors is no file"):
        open_lesson(job)
    other.write_text("store: not such a file")
    with pytest.raises(ValueError, match=r"other\.safetensors is no file of safetensors"):
        open_lesson(job)
    save_file(Classifier(1, 2).state_dict(), other)
    with pytest.raises(ValueError, match=r"takes pictures of 1 channels, those of .* have 3"):
        open_lesson(job)


def test_surfaces_are_points_and_rows_without_one_are_counted(tmp_path):
    from pipeline.evaluate.opened import OpenedStore

    codes, labels = ring(40, 0)
    code_store(Location(url=str(tmp_path / "s.zarr")), codes, labels)
    opened: OpenedStore = open_store(str(tmp_path / "s.zarr"))
    opened.distance_of = lambda row: lambda x: x.norm(dim=1) - (9 if row == 1 else 0.4)
    found = decode(opened, [0, 1, 2], resolution=16, points=200)
    assert isinstance(found, Surfaces)
    assert (len(found), found.empty) == (2, 1)
    torch.testing.assert_close(
        found.points.norm(dim=-1), torch.full((2, 200), 0.4), rtol=0, atol=0.02
    )


def test_too_few_held_out_rows_are_told_not_measured(tmp_path):
    codes, labels = ring(24, 0)
    url = str(tmp_path / "few.zarr")
    code_store(Location(url=url), codes, labels)
    job = job_of(url, tmp_path / "o")
    run_prior(job)
    quality = read_report(open_lesson(job))["quality"]
    assert quality["table"] == {}
    assert "6 rows of split test, val: at least 8 are needed" in quality["notes"][0]
    with pytest.raises(ValueError, match=r"evaluate\.split: train is learned from"):
        run_prior(job_of(url, tmp_path / "p", evaluate={"split": ["train"]}))
