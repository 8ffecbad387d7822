"""A finished store: readable without this project, verified anywhere, repaired byte for byte."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  (readers must travel, their clients must not)
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.storage import open_objects
from pipeline.store import (
    create_store,
    finalize,
    is_retry,
    open_arrays,
    progress,
    repair,
    retry_rows,
    rows_to_fit,
    store_hash,
    verify,
    verify_unit,
)
from schemas.base import Location
from schemas.store import RowStatus
from tests.store.faults import Died, FaultyObjects
from tests.store.toy import ARRAYS, SHARED, drive, finished, fit_unit, make_plan, values_of

FOREIGN = """
import sys, warnings, json
warnings.simplefilter("error")
sys.modules.update(pipeline=None, schemas=None, jobs=None, torch=None)
import numpy as np, xarray as xr, zarr
url = sys.argv[1]
root = zarr.open_group(url, mode="r")
data = xr.open_zarr(url)
tree = xr.open_datatree(url, engine="zarr")
assert set(data["params"].dims) == {"row", "param"}
np.testing.assert_array_equal(data["params"].values, root["params"][:])
np.testing.assert_array_equal(tree["latents/code"].values, root["latents/code"][:])
ids = [str(name) for name in data["sample_id"].values]
print(json.dumps({
    "ids": ids,
    "rows": root["params"][[0, 9]].tolist(),
    "keys": root["latents/code_keys"][5].tolist(),
    "weight": root["shared/net.0.weight"][:].tolist(),
    "field": root.attrs["field"]["method"],
    "table": root["params"].attrs["table"],
    "psnr": data["psnr"].attrs["description"],
    "status": data["status"].values.tolist(),
    "shape": list(tree["shared/net.1.weight"].shape),
}))
"""


def test_zarr_and_xarray_read_it_without_this_project(tmp_path):
    finished(Location(url=str(tmp_path / "s.zarr")), failed=(3,))
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tmp_path / "s.zarr")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["ids"] == [f"folder/ä {row}.png" for row in range(10)]
    assert seen["rows"] == values_of(ARRAYS[0], np.array([0, 9])).tolist()
    assert seen["keys"] == values_of(ARRAYS[2], np.array([5]))[0].tolist()
    assert seen["weight"] == SHARED["net.0.weight"].tolist()
    assert (seen["field"], seen["table"]) == ("toy", {"w": [0, [50]]})
    assert seen["psnr"] == "made up, in dB"
    assert seen["status"] == [1, 1, 1, 4, 1, 1, 1, 1, 1, 1]
    assert seen["shape"] == [2, 6]


def test_store_hash_is_one_whatever_the_place(local, memory):
    assert finished(local("a")) == finished(memory("b"))


@pytest.mark.s3
def test_store_hash_on_s3_is_that_of_a_folder(s3, local):
    assert finished(s3("a")) == finished(local("b"))


def test_a_copied_store_verifies_and_reads_with_the_source_gone(tmp_path):
    finished(Location(url=str(tmp_path / "s.zarr")))
    shutil.copytree(tmp_path / "s.zarr", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "s.zarr")
    copied = Location(url=str(tmp_path / "elsewhere"))
    report = verify(open_objects(copied), full=True)
    assert report.ok
    assert report.bytes > 10_000
    reader = open_arrays(copied)
    np.testing.assert_array_equal(reader.params([7]), values_of(ARRAYS[0], np.array([7])))
    assert reader.shared()["scale"] == 0.5


@pytest.mark.s3
def test_a_store_copied_object_by_object_to_a_bucket_verifies(s3, memory):
    digest = finished(memory("a"))
    source, target = open_objects(memory("a")), open_objects(s3("b"))
    for entry in source.list():
        target.put(entry.key, source.get(entry.key))
    assert verify(target, full=True).ok
    assert store_hash(target) == digest
    reader = open_arrays(s3("b"))
    rows = np.array([9, 2, 2, 5])
    np.testing.assert_array_equal(reader.latents("code", rows), values_of(ARRAYS[1], rows))


def test_rows_are_read_in_any_order_from_the_chunks_they_need(anywhere):
    location = anywhere("o")
    finished(location, failed=(1, 6))
    reader = open_arrays(location)
    for rows in ([0], [9, 0], [2, 3, 4, 5], [8, 8, 3], []):
        wanted = np.array(rows, int)
        for spec in ARRAYS[:3]:
            np.testing.assert_array_equal(reader.array(spec.name, rows), values_of(spec, wanted))
    assert np.isnan(reader.params([6])).all()
    assert list(reader.rows()) == [0, 2, 3, 4, 5, 7, 8, 9]
    assert list(reader.rows(usable=False)) == list(range(10))
    label = reader.rows(where=pc.field("label") == "class 2")
    assert list(label) == [2, 5, 8]
    assert list(reader.rows(where=pc.field("psnr") > 36)) == [7, 8, 9]
    np.testing.assert_array_equal(reader.shared()["net.1.weight"], SHARED["net.1.weight"])
    with pytest.raises(ValueError, match="row 10 is not one of the 10 rows"):
        reader.params([10])
    with pytest.raises(ValueError, match="no array 'latents/z'; it has params, latents/code"):
        reader.latents("z", [0])
    again = pickle.loads(pickle.dumps(reader))
    if location.scheme != "s3":
        assert list(again.rows()) == list(reader.rows())
    assert b"AWS" not in pickle.dumps(reader)


def test_unfinished_stores_are_refused_or_read_in_part(memory):
    location = memory("o")
    with pytest.raises(RuntimeError, match="holds no fieldmill store"):
        open_arrays(location)
    objects, plan = open_objects(location), make_plan()
    create_store(objects, plan, SHARED)
    fit_unit(objects, plan, 1)
    with pytest.raises(RuntimeError, match=r"no final record.*partial=True"):
        open_arrays(location)
    with pytest.raises(RuntimeError, match="2 of 3 units are to be fitted"):
        finalize(objects, plan)
    reader = open_arrays(location, partial=True)
    assert list(reader.rows()) == [4, 5, 6, 7]
    assert reader.index["row"].to_pylist() == [4, 5, 6, 7]
    np.testing.assert_array_equal(reader.params([6]), values_of(ARRAYS[0], np.array([6])))
    assert reader.shared()["scale"] == 0.5
    report = verify(objects, full=True)
    assert report.ok
    assert "not finished" in report.notes[0]


def test_failures_and_tracebacks_are_kept(memory):
    objects = open_objects(memory("o"))
    drive(objects, make_plan(), failed=(1, 6))
    import io

    failures = pq.read_table(io.BytesIO(objects.get("_fieldmill/failures.parquet")))
    assert failures["row"].to_pylist() == [1, 6]
    assert failures["code"].to_pylist() == ["NAN_LOSS"] * 2
    kept = [e.key for e in objects.list("_fieldmill/tracebacks")]
    assert len(kept) == 2
    assert objects.get(kept[0]) == b"Traceback: made up"
    assert all(e.key.endswith("zarr.json") or "/c" in e.key or e.key.startswith("_fieldmill/")
               for e in objects.list())  # fmt: skip


def test_retry_of_failed_rows_keeps_all_others(anywhere):
    location, whole = anywhere("o"), finished(anywhere("whole"))
    objects, plan = open_objects(location), make_plan()
    drive(objects, plan, failed=(1, 6))
    first = store_hash(objects)
    assert first != whole
    failed = lambda columns: columns["status"].to_numpy() == RowStatus.FAILED  # noqa: E731
    assert retry_rows(objects, plan, where=failed) == [(0, 1), (1, 1)]
    assert rows_to_fit(objects, plan, 0, 1) == [1]
    assert progress(objects, plan).to_fit == [(0, 1), (1, 1)]
    assert store_hash(objects) == first  # readers keep the old state until it is finalized
    counting = FaultyObjects(objects)
    assert drive(counting, plan) == whole
    assert not [key for name, key in counting.calls if name == "copy" and "00000002" in key]
    assert verify(objects, full=True).ok
    # retried with other values: the rows that were not asked for keep theirs
    retry_rows(objects, plan, [6])
    drive(objects, plan, shift=3.0)
    reader = open_arrays(location)
    np.testing.assert_array_equal(reader.params([5, 7]), values_of(ARRAYS[0], np.array([5, 7])))
    np.testing.assert_array_equal(reader.params([6]), values_of(ARRAYS[0], np.array([6]), 3.0))
    with pytest.raises(ValueError, match="row 11"):
        retry_rows(objects, plan, [11])


def test_reopening_twice_fits_the_rows_of_both(memory):
    objects, plan = open_objects(memory("o")), make_plan()
    drive(objects, plan)
    assert retry_rows(objects, plan, [5]) == [(1, 1)]
    with pytest.raises(RuntimeError, match="not complete"):
        retry_rows(objects, plan, [7])
    from pipeline.store.retry import reopen

    reopen(objects, 1, [7], (), "again")
    assert rows_to_fit(objects, plan, 1, 1) == [5, 7]
    assert is_retry(objects, 1, 1)
    assert not is_retry(objects, 0, 0)


def test_a_retry_that_lost_its_staging_is_retried_with_the_same_wish(memory):
    """Generation 1 copied one of its arrays, died, and what it had staged went."""
    objects, plan = open_objects(memory("o")), make_plan()
    drive(objects, plan, failed=(6,))
    retry_rows(objects, plan, [6])
    with pytest.raises(Died):
        fit_unit(FaultyObjects(objects, 1, only=("copy",)), plan, 1, 1, shift=9.0)
    objects.delete([entry.key for entry in objects.list("_fieldmill/staging")])
    assert progress(objects, plan).to_fit == [(1, 2)]
    assert rows_to_fit(objects, plan, 1, 2) == [6]
    assert is_retry(objects, 1, 2)
    assert drive(objects, plan) == finished(memory("whole"))
    assert verify(objects, full=True).ok
    assert rows_to_fit(objects, plan, 1, 3) is None


def damage(objects, key: str, how: str) -> None:
    data = bytearray(objects.get(key))
    if how == "missing":
        objects.delete(key)
    elif how == "short":
        objects.put(key, bytes(data[:-7]))
    else:
        data[len(data) // 3 if how == "flip" else -9] ^= 1
        objects.put(key, bytes(data))


@pytest.mark.parametrize("key", ["shared/net.0.weight/c/0/0", "psnr/c/0", "params/c/1/0"])
def test_verifying_units_elsewhere_still_reads_all_that_is_no_shard(memory, key):
    finished(memory("o"))
    objects = open_objects(memory("o"))
    damage(objects, key, "flip")
    here = [d.key for d in verify(objects, full=True, shard_bytes=False).damaged]
    there = [d.key for unit in range(3) for d in verify_unit(objects, unit).damaged]
    assert (here, there) == (([], [key]) if key.startswith("params") else ([key], []))
    assert [d.key for d in verify(objects, full=True).damaged] == [key]


@pytest.mark.parametrize("how", ["flip", "index", "missing", "short"])
def test_damage_is_found_and_only_the_damaged_shard_is_written_again(anywhere, how):
    location, plan = anywhere("o"), make_plan()
    digest = finished(location, plan)
    objects = open_objects(location)
    damage(objects, "params/c/1/0", how)
    report = verify(objects, full=True)
    assert [(d.key, d.unit, d.array) for d in report.damaged] == [("params/c/1/0", 1, "params")]
    assert verify(objects).ok == (
        how in ("flip", "index")
    )  # sizes alone show what is missing or short
    assert verify_unit(objects, 0).ok
    assert not verify_unit(objects, 1).ok
    with pytest.raises((RuntimeError, ValueError, OSError)) as caught:
        open_arrays(location).params(np.arange(4, 8))
    if how == "missing":
        assert "row 4 ('folder/ä 4.png') is usable but 'params' has no values" in str(caught.value)
    todo = repair(objects, report)
    assert todo.to_fit == [(1, 1)]
    counting = FaultyObjects(objects)
    assert drive(counting, plan) == digest
    assert [key for name, key in counting.calls if name == "copy"] == [
        key for name, key in counting.calls if name == "put" and "staging" in key
    ]
    assert counting.counts["copy"] == 1
    assert verify(objects, full=True).ok


def test_a_missing_shard_of_integers_is_noticed_on_reading(memory):
    location = memory("o")
    finished(location)
    objects = open_objects(location)
    damage(objects, "latents/code_keys/c/2/0", "missing")
    reader = open_arrays(location)
    reader.latents("code_keys", [0])
    with pytest.raises(RuntimeError, match=r"row 8 .* is usable but 'latents/code_keys'"):
        reader.latents("code_keys", [8, 9])


def test_only_unreadable_rows_of_a_damaged_shard_are_fitted_again(memory):
    from schemas.store import ArraySpec

    arrays = (ArraySpec(name="params", shape=(60_000,), dims=("param",)),)  # a chunk a row
    location, plan = memory("o"), make_plan(arrays=arrays)
    objects = open_objects(location)
    create_store(objects, plan, {})
    for unit in range(plan.units):
        fit_unit(objects, plan, unit)
    digest = finalize(objects, plan).hash
    data = bytearray(objects.get("params/c/1/0"))
    data[2 * 240_004 + 9] ^= 16
    objects.put("params/c/1/0", bytes(data))
    repair(objects, verify(objects, full=True))
    assert rows_to_fit(objects, plan, 1, 1) == [6]
    fit_unit(objects, plan, 1, 1)
    assert finalize(objects, plan).hash == digest
    assert verify(objects, full=True).ok


@pytest.mark.parametrize(
    "key", ["zarr.json", "params/zarr.json", "psnr/c/0", "_fieldmill/index.parquet"]
)
@pytest.mark.parametrize("how", ["flip", "missing"])
def test_metadata_columns_and_index_are_written_again_from_the_records(memory, key, how):
    location = memory("o")
    digest = finished(location)
    objects = open_objects(location)
    damage(objects, key, how)
    report = verify(objects, full=True)
    assert [d.key for d in report.damaged] == [key]
    assert repair(objects, report).rewritten == [key]
    assert store_hash(objects) == digest
    assert verify(objects, full=True).ok


def test_damaged_shared_arrays_are_refused_and_named_as_lost(memory):
    location = memory("o")
    finished(location)
    objects = open_objects(location)
    damage(objects, "shared/net.0.weight/c/0/0", "flip")
    with pytest.raises(RuntimeError, match=r"net\.0\.weight/c/0/0 is missing or damaged"):
        open_arrays(location).shared()
    report = verify(objects, full=True)
    assert repair(objects, report).lost == ["shared/net.0.weight/c/0/0"]


def test_a_garbled_final_record_falls_back_to_the_one_before(memory):
    location, plan = memory("o"), make_plan()
    digest = finished(location, plan)
    objects = open_objects(location)
    retry_rows(objects, plan, [0])
    drive(objects, plan)
    objects.put("_fieldmill/final/000001", b"")
    assert open_arrays(location).final.number == 0
    assert finalize(objects, plan).number == 2
    assert store_hash(objects) == digest


def test_pipeline_store_imports_no_torch_and_no_ray():
    code = (
        "import sys, pipeline.store; "
        "assert not {'torch', 'ray', 'pipeline.ingest', 'pipeline.fields'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
