"""Units through a worker: what a sample costs that cannot be fitted, and two units at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from jobs.config import load_run
from pipeline import stages, store
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.store import RowStatus
from tests.jobs.pictures import write_pictures, write_run


@pytest.mark.parametrize("known", [True, False], ids=["known before", "it raises"])
def test_sample_that_cannot_be_fitted_is_a_failed_row_and_the_others_keep_their_bits(
    tmp_path: Path, monkeypatch, known: bool
):
    if not known:
        monkeypatch.setattr("pipeline.stages.fit.refused", lambda *of: {})
    write_pictures(tmp_path / "pictures", count=11)
    changes = {"ingest": {"color": "keep", "unit_objects": 5}}
    assert main(["run", write_run(tmp_path, **changes)]) == 0
    location = Location(url=str(tmp_path / "out" / "pictures.zarr"))
    alone = store.open_arrays(location)
    whole = dict(zip(alone.index["sample_id"].to_pylist(), alone.params(alone.rows())))

    gray = np.uint8(np.arange(256).reshape(16, 16))
    Image.fromarray(gray).save(tmp_path / "pictures" / "round" / "gray one.png")
    changes["store"] = str(tmp_path / "again" / "pictures.zarr")
    assert main(["run", write_run(tmp_path, **changes)]) == 0
    mixed = store.open_arrays(Location(url=changes["store"]))
    lines = {line["sample_id"]: line for line in mixed.index.to_pylist()}
    failed = lines.pop("round/gray one.png")
    assert failed["status"] == RowStatus.FAILED
    assert failed["code"] == "FIT_ERROR"
    if known:
        assert "has 1 channels" in failed["message"]
        assert "ingest.color" in failed["message"]
    else:
        assert failed["message"]
        objects = open_objects(Location(url=changes["store"]))
        notes = [objects.get(e.key) for e in objects.list("_fieldmill/tracebacks")]
        assert any(b"gray one.png" in note for note in notes)
    assert len(lines) == 11
    for name, line in lines.items():
        assert line["status"] == RowStatus.OK or line["status"] == RowStatus.BELOW_TARGET
        assert np.array_equal(mixed.params([line["row"]])[0], whole[name])


def test_unit_of_samples_that_the_method_cannot_take_is_rows_and_not_given_up(tmp_path, capfd):
    """One row a unit: the unit of the tiny picture has nothing else in it."""
    write_pictures(tmp_path / "pictures", count=3)
    tiny = np.uint8(np.arange(12).reshape(2, 2, 3))
    Image.fromarray(tiny).save(tmp_path / "pictures" / "round" / "tiny.png")
    changes = {"method": {"name": "poisson", "steps": 2, "width": 8}, "fit": {"unit_rows": 1}}
    path = write_run(tmp_path, **changes)
    assert main(["run", path]) == 0, capfd.readouterr()
    arrays = store.open_arrays(Location(url=str(tmp_path / "out" / "pictures.zarr")))
    lines = {line["sample_id"]: line for line in arrays.index.to_pylist()}
    assert lines.pop("round/tiny.png")["message"].startswith("has 2 x 2 pixels; poisson")
    assert [line["status"] for line in lines.values()] == [RowStatus.OK] * 3


def test_unit_of_a_sample_of_which_nothing_is_seen_is_a_row_and_not_given_up(tmp_path, capfd):
    """Half of one pixel is all or nothing of it."""
    write_pictures(tmp_path / "pictures", count=2)
    for i in range(6):
        pixel = np.uint8([[[9, 5, 30 * i]]])
        Image.fromarray(pixel).save(tmp_path / "pictures" / "round" / f"pixel {i}.png")
    path = write_run(tmp_path, fit={"unit_rows": 1, "context": "half"}, max_failed=1.0)
    assert main(["run", path]) == 0, capfd.readouterr()
    lines = store.open_arrays(Location(url=str(tmp_path / "out" / "pictures.zarr"))).index
    lines = {line["sample_id"]: line for line in lines.to_pylist()}
    failed = [line for line in lines.values() if line["status"] == RowStatus.FAILED]
    assert 0 < len(failed) <= 6
    assert {line["code"] for line in failed} == {"DEGENERATE"}
    assert "nothing of the set 'context' is seen" in failed[0]["message"]


def test_pictures_of_several_sizes_train_together_and_too_small_ones_get_a_reason(tmp_path, capfd):
    write_pictures(tmp_path / "pictures", count=6)
    for side in (4, 9, 14):
        grid = np.mgrid[:side, :side].sum(0)[..., None] * np.array([9, 5, 3])
        Image.fromarray(np.uint8(grid)).save(tmp_path / "pictures" / "round" / f"{side}.png")
    method = {"name": "liif", "height": 8, "width": 8, "features": 4, "blocks": 1, "hidden": 8}
    method |= {"train_steps": 3, "batch": 9, "points": 16}
    splits = {"split": {"train": 1.0, "test": 0.0}}
    dataset = {"url": str(tmp_path / "pictures"), "kind": "images", **splits}
    changes = {"method": method, "dataset": dataset}
    path = write_run(tmp_path, **changes)
    assert main(["run", path]) == 0, capfd.readouterr()
    assert "1 samples do not train; the first: round/4.png has 4 x 4" in capfd.readouterr().err
    arrays = store.open_arrays(Location(url=str(tmp_path / "out" / "pictures.zarr")))
    lines = {line["sample_id"]: line for line in arrays.index.to_pylist()}
    failed = lines.pop("round/4.png")
    assert failed["status"] == RowStatus.FAILED
    assert "needs 8 x 8" in failed["message"]
    assert [line["status"] for line in lines.values()] == [RowStatus.OK] * 8

    assert main(["run", path, "train.splits=[val]", f"store={tmp_path / 'a.zarr'}"]) == 2
    assert "prepared dataset has {'train': 9}: take more" in capfd.readouterr().err
    # Where none is large enough nothing is trained, and that is told before it is tried.
    assert main(["run", path, "method.height=99", f"store={tmp_path / 'b.zarr'}"]) == 2
    assert "can train on none of the 9 samples" in capfd.readouterr().err
    assert main(["run", path, "ingest.resolution=7", f"store={tmp_path / 'c.zarr'}"]) == 2
    assert "pictures of 7 x 7 pixels; liif" in capfd.readouterr().err


@pytest.mark.parametrize("compiled", ["auto", "never"])
def test_two_units_at_a_time_give_the_same_rows_and_share_lanes(tmp_path: Path, compiled: str):
    """As an actor calls it, with a sample among them that cannot be fitted, or full lanes."""
    count = 24 if compiled == "never" else 23
    write_pictures(tmp_path / "pictures", count=count)
    if count == 23:
        gray = np.uint8(np.arange(256).reshape(16, 16))
        Image.fromarray(gray).save(tmp_path / "pictures" / "round" / "gray one.png")
    method = {"name": "siren", "width": 16, "depth": 2, "steps": 120, "target_psnr": None}
    changes = {
        "method": method,
        "fit": {"unit_rows": 6, "lanes": 4, "compile": compiled},
        "ingest": {"color": "keep", "unit_objects": 40},
    }
    assert main(["run", write_run(tmp_path, **changes)]) == 0
    first = store.open_arrays(Location(url=str(tmp_path / "out" / "pictures.zarr")))
    changes["prepared"] = str(tmp_path / "out" / "pictures.prepared")
    changes["store"] = str(tmp_path / "again" / "pictures.zarr")
    run = load_run(write_run(tmp_path, **changes), [])
    todo = stages.plan_fit(run)
    fitter = stages.Fitter(run)
    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(lambda unit: fitter.fit(*unit), todo.to_fit))
    assert sum(sum(record["rows"].values()) for record in records) == 24
    assert all({"read_s", "fit_s", "measure_s", "write_s"} <= record.keys() for record in records)
    stages.finish(run)
    second = store.open_arrays(run.store)
    assert str(first.index.to_pylist()) == str(second.index.to_pylist())
    rows = first.rows()
    assert len(rows) == count
    assert np.array_equal(first.params(rows), second.params(rows))
    if compiled == "never":
        steps, _, used = fitter.together.stream.occupancy
        assert used / steps > 3.4  # one unit after the other: 3
