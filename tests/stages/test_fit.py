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


def test_sample_that_raises_is_a_failed_row_and_the_others_keep_their_bits(tmp_path: Path):
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
    assert "has 1 channels" in failed["message"]
    assert "ingest.color" in failed["message"]
    assert len(lines) == 11
    for name, line in lines.items():
        assert line["status"] == RowStatus.OK or line["status"] == RowStatus.BELOW_TARGET
        assert np.array_equal(mixed.params([line["row"]])[0], whole[name])
    objects = open_objects(Location(url=changes["store"]))
    notes = [objects.get(e.key) for e in objects.list("_fieldmill/tracebacks")]
    assert any(b"gray one.png" in note for note in notes)


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
