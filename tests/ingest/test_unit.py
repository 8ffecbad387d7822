"""A unit is a pure function of source, listing and configuration; deaths change nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ingest import folders
from pipeline.ingest.fold import fold
from pipeline.ingest.listing import read_units, units_to_do, write_listing
from pipeline.ingest.prepared import open_prepared
from pipeline.ingest.records import KEY, find_record
from pipeline.ingest.unit import ingest_unit
from pipeline.storage import LocalObjects, Objects, StorageError, open_objects
from schemas.run import ImageIngest
from tests.ingest.tools import (
    SMALL,
    contents,
    encoded,
    grid,
    images,
    lines,
    picture,
    pixels_of,
    put,
    run_ingest,
    run_units,
)


def mixed(count: int = 20) -> dict[str, bytes]:
    """Pictures of several sizes and broken files."""
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(picture(i, 4 + i % 3, 5)) for i in range(count)}
    return files | {"a/bad.png": b"junk", "b/empty.png": b"", "b/copy.png": files["a/0.png"]}


def stable(location) -> dict[str, bytes]:
    """What is promised to be equal: all but the date of the listing and attempts' names."""
    kept = {}
    for key, data in contents(location).items():
        if key.startswith(("shards/", "rows/", "manifest/", "failures")):
            kept[key] = data
    return kept


def test_every_pixel_arrives_on_every_backend(anywhere):
    data, prepared = anywhere("data"), anywhere("p")
    put(data, mixed())
    done = run_ingest(images(data), prepared)
    found = pixels_of(done)
    assert done.meta.counts == {"accepted": 20, "duplicate": 1, "rejected": 2}
    for i in range(20):
        name = f"{'ab'[i % 2]}/{i}.png"
        if name != "a/0.png":
            assert np.array_equal(found[name], picture(i, 4 + i % 3, 5))


def test_bytes_are_equal_whatever_the_order_attempts_and_backend(local, memory):
    data, copies = local("data"), []
    put(data, mixed(30))
    for number, location in enumerate([local("p1"), local("p2"), memory("p3")]):
        objects = open_objects(location)
        write_listing(images(data), SMALL, objects, page=[3, 1000, 7][number])
        units = units_to_do(objects)
        order = [units, units[::-1], [u for u in units for _ in range(2)]][number]
        for i, unit in enumerate(order):
            ingest_unit(images(data), SMALL, location, unit, f"attempt {i}")
        fold(images(data), SMALL, location)
        copies.append(stable(location))
    assert len(copies[0]) > 8
    assert copies[0] == copies[1] == copies[2]


def test_a_second_run_decodes_nothing_and_writes_nothing(anywhere):
    data, prepared = anywhere("data"), anywhere("p")
    put(data, mixed())
    first = run_units(images(data), prepared)
    assert sum(outcome.decodes for outcome in first) == 22  # the empty file is not tried
    assert all(outcome.won for outcome in first)
    done = fold(images(data), SMALL, prepared)
    before = contents(prepared)
    assert run_units(images(data), prepared) == []
    for unit in read_units(open_objects(prepared)):
        again = ingest_unit(images(data), SMALL, prepared, unit.unit, "again")
        assert (again.won, again.decodes, again.written_bytes) == (False, 0, 0)
        assert again.counts == first[unit.unit].counts
    assert fold(images(data), SMALL, prepared) == done
    assert contents(prepared) == before


class Death(BaseException):
    """The process is killed here."""


@pytest.fixture
def fragile(monkeypatch):
    """Kills the n-th call that changes the prepared location, before or after it took effect."""
    state = {"left": None, "after": False, "calls": 0}
    for name, owner in itertools.product(("put", "create"), (LocalObjects, Objects)):
        real = getattr(owner, name)

        def wrapped(self, key, data, real=real):
            state["calls"] += 1
            if state["left"] == 0 and not state["after"]:
                state["left"] = None
                raise Death(key)
            result = real(self, key, data)
            if state["left"] == 0:
                state["left"] = None
                raise Death(key)
            if state["left"] is not None:
                state["left"] -= 1
            return result

        if name in vars(owner):
            monkeypatch.setattr(owner, name, wrapped)
    return state


@pytest.mark.parametrize("after", [False, True])
def test_death_at_every_store_operation_changes_nothing(memory, fragile, after):
    data = memory("data")
    put(data, mixed(12))
    run_ingest(images(data), memory("whole"))
    want, fragile["after"] = stable(memory("whole")), after
    fragile["calls"] = 0
    run_ingest(images(data), memory("counted"))
    operations = fragile["calls"]
    assert operations > 12
    for death in range(operations):
        prepared = memory(f"p{death}")
        fragile["left"] = death
        with pytest.raises(Death):
            run_ingest(images(data), prepared)
        assert fragile["left"] is None
        run_ingest(images(data), prepared)
        assert stable(prepared) == want, death


def test_two_attempts_at_once_commit_one(local, monkeypatch):
    data, prepared = local("data"), local("p")
    put(data, mixed())
    write_listing(images(data), SMALL, open_objects(prepared))
    inner = {}
    real = LocalObjects.create

    def racing(self, key, value):
        if key.startswith("units/") and not inner:
            inner["started"] = True
            inner["outcome"] = ingest_unit(images(data), SMALL, prepared, 0, "the other")
        return real(self, key, value)

    monkeypatch.setattr(LocalObjects, "create", racing)
    mine = ingest_unit(images(data), SMALL, prepared, 0, "mine")
    assert (mine.won, inner["outcome"].won) == (False, True)
    assert find_record(open_objects(prepared), 0).attempt == "the other"


@pytest.mark.parametrize("damage", [b"", b"x" * 500])
def test_a_damaged_record_is_superseded(local, damage):
    data, prepared = local("data"), local("p")
    put(data, mixed())
    objects = open_objects(prepared)
    run_units(images(data), prepared)
    objects.put(KEY.format(unit=1, generation=0), damage)
    if damage:
        with pytest.raises(RuntimeError, match=r"1 ingest units are not committed .first: \[1\]"):
            fold(images(data), SMALL, prepared)
    assert units_to_do(objects) == [1]
    assert ingest_unit(images(data), SMALL, prepared, 1, "b").won
    assert units_to_do(objects) == []
    assert fold(images(data), SMALL, prepared).rows == 20


def test_objects_that_changed_or_vanished_are_named(anywhere):
    data, prepared = anywhere("data"), anywhere("p")
    put(data, {f"{i}.png": encoded(picture(i)) for i in range(6)})
    put(data, {"s.npy": b"\x93NUMPY"})
    write_listing(images(data), SMALL, open_objects(prepared))
    put(data, {"1.png": encoded(picture(50, 9, 9))})
    open_objects(data).delete("2.png")
    done = run_ingest(images(data), prepared)
    codes = {r["sample_id"]: (r["code"], r["message"]) for r in done.failures().to_pylist()}
    assert codes["1.png"][0] == "INPUT_CHANGED"
    assert codes["2.png"] == ("INPUT_MISSING", "there is no object '2.png'")
    assert done.meta.rows == 4


def test_equal_size_changes_are_seen_too(anywhere):
    data, prepared = anywhere("data"), anywhere("p")
    one, two = encoded(picture(1), "BMP"), encoded(picture(2), "BMP")
    put(data, {"a.bmp": one, "b.bmp": encoded(picture(3), "BMP")})
    write_listing(images(data), SMALL, open_objects(prepared))
    assert len(one) == len(two)
    put(data, {"a.bmp": two})
    done = run_ingest(images(data), prepared)
    assert [r["code"] for r in done.failures().to_pylist()] == ["INPUT_CHANGED"]


def test_a_changed_container_is_not_read(local):
    data, prepared = local("data"), local("p")
    import io

    def stack(seed):
        sink = io.BytesIO()
        np.save(sink, np.random.default_rng(seed).integers(0, 255, (3, 5, 5), np.uint8))
        return sink.getvalue()

    put(data, {"s.npy": stack(1), "a.png": encoded(picture(1))})
    write_listing(images(data), SMALL, open_objects(prepared))
    put(data, {"s.npy": stack(2)})
    done = run_ingest(images(data), prepared)
    assert {r["code"] for r in done.failures().to_pylist()} == {"INPUT_CHANGED"}
    assert done.meta.rows == 1


def test_too_large_objects_are_not_even_read(local, monkeypatch):
    data, prepared = local("data"), local("p")
    put(data, {"a.png": encoded(picture(1)), "huge.png": b"x" * 5000})
    read = []
    real = folders.FolderSource.read
    monkeypatch.setattr(
        folders.FolderSource, "read", lambda self, key: read.append(key) or real(self, key)
    )
    done = run_ingest(images(data), prepared, ImageIngest(max_bytes=4000))
    (failed,) = done.failures().to_pylist()
    assert (failed["code"], failed["bytes"]) == ("TOO_LARGE", None)
    assert read == ["a.png"]


def test_a_storage_fault_is_not_a_samples_fault(local, monkeypatch):
    data, prepared = local("data"), local("p")
    put(data, mixed())
    write_listing(images(data), SMALL, open_objects(prepared))

    def broken(self, key):
        raise StorageError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(folders.FolderSource, "read", broken)
        with pytest.raises(StorageError, match="network"):
            ingest_unit(images(data), SMALL, prepared, 0, "a")
    assert units_to_do(open_objects(prepared)) == [0, 1, 2, 3]
    assert run_ingest(images(data), prepared).meta.rows == 20


def test_large_units_are_cut_into_several_shards(local, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.shards.BATCH_BYTES", 400)
    monkeypatch.setattr("pipeline.ingest.shards.PIECE_BYTES", 1000)
    data, prepared = local("data"), local("p")
    put(data, {f"{i}.png": encoded(picture(i)) for i in range(30)} | {"bad.png": b"junk"})
    done = run_ingest(images(data), prepared, ImageIngest(held_out=0.1))
    record = find_record(open_objects(prepared), 0)
    assert len(record.pieces) == 5
    assert len(record.pieces[0].batches) > 1
    everything = done.rows(0, 30).to_pylist()
    assert [row["row"] for row in everything] == list(range(30))
    for start, stop in itertools.combinations(range(0, 31, 3), 2):
        assert done.rows(start, stop).to_pylist() == everything[start:stop]
    for row in everything:
        assert np.array_equal(grid(row), picture(int(row["sample_id"][:-4])))
    for piece in record.pieces:  # and plain Arrow reads them
        shard = open_objects(prepared).get(f"shards/{piece.name}.arrow")
        assert pa.ipc.open_file(shard).read_all().num_rows == piece.rows


def test_rows_read_only_what_they_need(local, monkeypatch):
    data, prepared = local("data"), local("p")
    put(data, {f"{i}.png": encoded(picture(i)) for i in range(30)})
    run_ingest(images(data), prepared)
    read = []
    real_get, real_range = LocalObjects.get, LocalObjects.get_range
    monkeypatch.setattr(LocalObjects, "get", lambda s, k: read.append(k) or real_get(s, k))
    monkeypatch.setattr(
        LocalObjects, "get_range", lambda s, k, a, n: read.append(k) or real_range(s, k, a, n)
    )
    done = open_prepared(prepared)
    assert done.rows(8, 13).num_rows == 5
    shard = done.meta.shards[1][0]
    assert read == ["prepared.json", f"rows/{shard}.arrow", f"shards/{shard}.arrow"]
    assert done.rows(0, 0).num_rows == 0
    assert done.rows(2, 5, ["height", "label"]).column_names == [
        "row", "sample_id", "label", "split", "height",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="rows 0:31 are not in 0:30"):
        done.rows(0, 31)
    with pytest.raises(ValueError, match="no column depth"):
        done.rows(0, 1, ["depth"])


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named_not_read(local, damage):
    data, prepared = local("data"), local("p")
    put(data, {f"{i}.png": encoded(picture(i)) for i in range(10)})
    done = run_ingest(images(data), prepared)
    objects, name = open_objects(prepared), f"shards/{done.meta.shards[1][0]}.arrow"
    whole = objects.get(name)
    if damage == "gone":
        objects.delete(name)
    else:
        at = whole.index(picture(int(done.rows(8, 9)["sample_id"][0].as_py()[:-4])).tobytes())
        flipped = whole[: at + 5] + bytes([whole[at + 5] ^ 1]) + whole[at + 6 :]
        objects.put(name, flipped if damage == "flip" else whole[:at])
    assert done.rows(0, 7).num_rows == 7
    with pytest.raises((RuntimeError, FileNotFoundError), match=name.split("/")[1]):
        done.rows(7, 10)


def test_an_unfinished_dataset_is_not_opened(local):
    data, prepared = local("data"), local("p")
    put(data, mixed())
    with pytest.raises(FileNotFoundError, match="no finished prepared dataset"):
        open_prepared(prepared)
    write_listing(images(data), SMALL, open_objects(prepared))
    ingest_unit(images(data), SMALL, prepared, 0, "a")
    with pytest.raises(RuntimeError, match="3 ingest units are not committed"):
        fold(images(data), SMALL, prepared)
    with pytest.raises(FileNotFoundError):
        open_prepared(prepared)
    assert lines(run_ingest(images(data), prepared))["a/bad.png"]["code"] == "DECODE"
