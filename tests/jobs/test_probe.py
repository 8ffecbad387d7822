"""The verbs probe and prior on damaged and mistaken places: what is refused, what is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.downstream import load_job
from schemas.base import Location
from schemas.probing import ProbeJob
from tests.downstream.small import code_store, rings


@pytest.fixture
def job(tmp_path) -> str:
    code_store(Location(url=str(tmp_path / "codes.zarr")), *rings(60, 0))
    path = tmp_path / "probe.yaml"
    source = {"url": str(tmp_path / "codes.zarr"), "array": "code"}
    values = {
        "name": "rings",
        "source": source,
        "store": str(tmp_path / "report"),
        "test": ["test"],
    }
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_report_does_not_go_into_a_store_of_rows(job, tmp_path, capfd):
    other = tmp_path / "other.zarr"
    code_store(Location(url=str(other)), *rings(20, 0))
    before = sorted(other.rglob("*"))
    assert main(["probe", job, f"store={other}"]) == 2
    assert f"store: {other} is a store of rows; a report needs a folder" in capfd.readouterr().err
    assert sorted(other.rglob("*")) == before


def test_prepared_dataset_is_the_same_place_for_every_worker(job):
    found = load_job(job, ["prepared=out/x.prepared"], ProbeJob, folder="/data")
    assert found.prepared.url == str(Path("/data/out/x.prepared"))
    assert (
        load_job(job, ["prepared=s3://b/x.prepared"], ProbeJob).prepared.url == "s3://b/x.prepared"
    )


def test_damaged_samples_are_drawn_again_by_the_verb_that_is_told(job, tmp_path, capfd):
    values = yaml.safe_load(Path(job).read_text())
    del values["test"]
    values |= {"store": str(tmp_path / "p.zarr"), "method": "gaussian", "evaluate": {"rows": 0}}
    path = tmp_path / "prior.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["prior", str(path)]) == 0
    (shard,) = (tmp_path / "p.zarr" / "latents" / "code" / "c").rglob("0/0")
    before = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    assert main(["repair", str(tmp_path / "p.zarr")]) == 5
    assert "continue with: fieldmill prior RUN.yaml" in capfd.readouterr().out
    assert main(["prior", str(path)]) == 0
    assert shard.read_bytes() == before
