"""An opened store: rows by any property, values, pictures and meshes from the store alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import pipeline
from pipeline.evaluate.mesh_metrics import mesh_metrics
from pipeline.evaluate.metrics import psnr
from pipeline.evaluate.opened import open_store
from pipeline.evaluate.prepared_lines import decode_picture, line_of
from pipeline.samples import pixel_coords
from schemas.base import Location
from tests.evaluate.stores import fitted_store


def test_rows_by_id_label_split_and_quality(pictures):
    store = pictures.open()
    assert len(store) == 9
    assert store.rows() == list(range(9))
    assert store.rows(id="class1/0003.png") == [3]
    assert store.rows(label="class0") == [0, 2, 4, 6, 8]
    assert store.rows(label="class0", split="test") == [4]
    quality = store.index["psnr"].to_numpy()
    limit = float(np.median(quality))
    better = [i for i in range(9) if quality[i] >= limit]
    assert store.rows(where={"psnr": (limit, None)}) == better
    assert store.rows(where=pc.field("psnr") >= limit) == better
    assert store.rows(where={"psnr": (limit, None), "label": "class1"}) == [
        i for i in better if i % 2
    ]


def test_unknown_rows_and_columns_name_the_nearest(pictures):
    store = pictures.open()
    with pytest.raises(ValueError, match=r"no sample 'class1/003.png' among the 9 rows; nearest: "
                       r"class1/0003.png"):  # fmt: skip
        store.render("class1/003.png")
    with pytest.raises(ValueError, match=r"no row 9; rows with a sample: 0 to 8"):
        store.values(9, np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"no column 'psnr_'; did you mean 'psnr'"):
        store.rows(where={"psnr_": (1, None)})
    with pytest.raises(ValueError, match=r"must be \(lowest, highest\)"):
        store.rows(where={"psnr": (None, None)})


def test_a_picture_comes_back_with_the_quality_that_is_written(pictures):
    store = pictures.open()
    for row in (0, 2):
        line = line_of(pictures.table, row)
        picture, seen = decode_picture(line), store.render(row).color
        assert seen.shape == picture.shape
        held = np.unpackbits(np.frombuffer(line["held_out"].as_buffer(), np.uint8))
        held = held[: picture.shape[0] * picture.shape[1]].reshape(picture.shape[:2]).astype(bool)
        assert psnr(seen[held], picture[held]) == pytest.approx(store.line(row)["psnr"], abs=0.01)
        assert store.line(row)["psnr"] > 22
    assert store.render("class0/0002.png", 28).color.shape == (24, 28, 3)
    assert store.render(0, (5, 50)).color.shape == (5, 50, 3)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (2,), (1, 4, 2)])
def test_coordinates_of_another_number_of_axes_are_refused(pictures, shape):
    store = pictures.open()
    with pytest.raises(ValueError, match=r"wants \[points, 2\]"):
        store.values(1, np.zeros(shape))


def test_values_do_not_depend_on_chunks(pictures):
    store = pictures.open()
    coords = pixel_coords(7, 9)
    whole = store.values(1, coords)["color"]
    parts = store.values(1, coords.numpy(), chunk=10)["color"]
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_meshes_return_to_the_units_of_the_source(spheres):
    store = spheres.open()
    radii = np.linspace(0.35, 0.6, 6)
    for row in (0, 5):
        mesh = store.mesh(row, 48)
        assert mesh.is_watertight
        np.testing.assert_allclose(mesh.vertices.mean(0), [5, -2, 7], atol=0.5)
        assert (3 * mesh.volume / 4 / np.pi) ** (1 / 3) == pytest.approx(10 * radii[row], rel=0.08)
        small = store.mesh(row, 48, original_units=False)
        np.testing.assert_allclose(small.vertices / 0.1 + [5, -2, 7], mesh.vertices, atol=1e-9)


def test_a_shape_is_rendered_as_its_surface(spheres):
    seen = spheres.open().render(3, 64)
    assert seen.color.shape == (64, 64, 3)
    assert seen.mask.mean() == pytest.approx(np.pi * 0.5**2 / 4, rel=0.15)


def test_pictures_have_no_mesh(pictures):
    with pytest.raises(ValueError, match="fields of 'color' in 2 axes: they bound no solid"):
        pictures.open().mesh(0)


def test_mesh_metrics_of_rows(spheres):
    store = spheres.open()
    found = mesh_metrics(store, 4, spheres.table.slice(4, 1), resolution=48, points=4000)
    assert found["normal_consistency"] > 0.95
    assert found["chamfer_l1_occnet"] < 0.04
    assert found["f_score_1pct"] > 0.1
    # in squared units of the source, which are ten times as large
    assert found["chamfer_l2_deepsdf"] > 10 * found["chamfer_l1_occnet"] ** 2


def test_a_copy_elsewhere_needs_nothing_else(spheres, tmp_path):
    shutil.copytree(spheres.location.url, tmp_path / "copy.zarr")
    code = (
        "import pipeline, sys; store = pipeline.open_store(sys.argv[1]);"
        "print(store.mesh('sphere/0002.obj', 24).is_watertight)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "copy.zarr")],
        cwd=Path(pipeline.__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr


def test_an_unfinished_store_opens_only_as_partial(pictures, tmp_path):
    location = Location(url=str(tmp_path / "p.zarr"))
    settings = {"width": 8, "depth": 1, "steps": 2}
    fitted_store(location, pictures.table.slice(0, 4), "images", "siren", settings, finish=False)
    with pytest.raises(RuntimeError, match="partial=True"):
        open_store(location)
    store = open_store(location.url, partial=True)
    assert store.render(3).color.shape == (16, 20, 3)


def test_rows_without_a_field_say_why(tmp_path):
    from tests.store.toy import finished, make_plan

    location = Location(url=str(tmp_path / "toy.zarr"))
    finished(location, make_plan((10,)), failed=(3,))
    store = open_store(location)
    assert store.rows() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert store.rows(status=None) == list(range(10))
    with pytest.raises(ValueError, match=r"row 3 .* it is failed \(NAN_LOSS the loss was not"):
        store.bound(3)


def test_importing_the_package_stays_light():
    code = "import pipeline, sys; print('torch' in sys.modules, hasattr(pipeline, 'nothing'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(pipeline.__file__).parents[1],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False False"
    assert pipeline.open_store is open_store
