"""A sample that cannot be fitted costs its own row, not its unit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from jobs.cli import main
from pipeline import store
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
