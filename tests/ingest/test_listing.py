"""The frozen listing: the same whatever the pages, complete, bounded units, odd names, updates."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.ingest.buckets import ObjectSource
from pipeline.ingest.freeze import Freeze
from pipeline.ingest.listing import last_listing, read_units, units_to_do, write_listing
from pipeline.ingest.segments import read_entries, read_ignored, read_segments
from pipeline.ingest.spill import digest
from pipeline.storage import StorageError, open_objects
from schemas.base import Location
from schemas.run import Dataset, ImageIngest
from schemas.samples import NothingUsable
from tests.ingest.tools import SMALL, contents, encoded, images, picture, put, run_ingest, write

PNG = encoded(picture(0))
ODD = [
    "a b.png",
    "sub/x#1.png",
    "p%20q.png",
    "50%.png",
    "é[1]~.png",
    "q?x&y+z.png",
    "w;:@=,'()!$.png",
    "日本/写真.png",
    "n" * 240 + ".png",
    "UPPER.PNG",
    "two..dots.png",
    "x{1}.png",
    '"quoted".png',
]


def listed(prepared) -> list[str]:
    objects = open_objects(prepared)
    return [e["sample_id"] for u in read_units(objects) for e in read_entries(objects, u.unit)]


def ignored(prepared) -> dict[str, str]:
    objects = open_objects(prepared)
    rows = [
        r for s in read_segments(objects) for b in read_ignored(objects, s) for r in b.to_pylist()
    ]
    return {row["sample_id"]: row["message"] for row in rows}


@pytest.mark.parametrize("page", [1, 5, 1000])
def test_pages_do_not_change_the_listing(anywhere, page):
    data, prepared = anywhere("data"), anywhere("prepared")
    names = [f"c{i % 3}/{i}.png" for i in range(40)]
    put(data, dict.fromkeys(names, PNG))
    assert write_listing(images(data), SMALL, open_objects(prepared), page) == 6
    assert listed(prepared) == sorted(names, key=lambda name: (digest(name), name))
    units = read_units(open_objects(prepared))
    assert [u.entries for u in units] == [7] * 5 + [5]
    assert [u.bytes for u in units] == [7 * len(PNG)] * 5 + [5 * len(PNG)]
    assert units_to_do(open_objects(prepared)) == list(range(6))


def test_a_listing_is_frozen(local):
    data, prepared = local("data"), local("prepared")
    put(data, {"a.png": PNG, "b.png": PNG})
    write_listing(images(data), SMALL, open_objects(prepared))
    before = contents(prepared)
    put(data, {"c.png": PNG})
    write_listing(images(data), SMALL, open_objects(prepared))
    assert contents(prepared) == before


def test_units_are_bounded_by_bytes_too(local):
    data, prepared = local("data"), local("prepared")
    put(data, {f"{i}.png": PNG for i in range(10)})
    ingest = ImageIngest(unit_bytes=2 * len(PNG) + 1)
    write_listing(images(data), ingest, open_objects(prepared))
    assert [u.entries for u in read_units(open_objects(prepared))] == [2] * 5
    assert [len(read_entries(open_objects(prepared), u)) for u in range(5)] == [2] * 5


def test_many_parts_give_the_same_entries(local, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.freeze.PART_ENTRIES", 10)
    monkeypatch.setattr("pipeline.ingest.freeze.IGNORED_BATCH", 3)
    data, prepared = local("data"), local("prepared")
    names = [f"{i}.png" for i in range(40)]
    put(data, dict.fromkeys(names, PNG) | {f"{i}.txt": b"" for i in range(20)})
    write_listing(images(data), SMALL, open_objects(prepared))
    assert sorted(listed(prepared)) == sorted(names)
    assert len(ignored(prepared)) == 20


def test_odd_names_are_listed_and_read(anywhere):
    data, prepared = anywhere("data"), anywhere("prepared")
    put(data, {name: encoded(picture(i)) for i, name in enumerate(ODD)})
    done = run_ingest(images(data), prepared)
    assert sorted(done.rows(0, done.meta.rows)["sample_id"].to_pylist()) == sorted(ODD)


def test_keys_that_only_s3_allows_are_listed_and_read(moto_server):
    client = moto_server.client()
    client.create_bucket(Bucket="odd-keys")
    names = ["ok.png", "d/e//f.png", "d/../g.png", "/lead.png", "z/ok.png", "a/./b.png"]
    for i, name in enumerate(names):
        client.put_object(Bucket="odd-keys", Key="p/" + name, Body=encoded(picture(i)))
    client.put_object(Bucket="odd-keys", Key="p/folder/", Body=b"")
    data = moto_server.location("odd-keys", "p/")
    done = run_ingest(images(data), moto_server.location("odd-keys", "prepared"), page=2)
    assert sorted(done.rows(0, done.meta.rows)["sample_id"].to_pylist()) == sorted(names)


def test_folders_of_a_bucket_are_listed_in_parallel(moto_server, monkeypatch):
    names = {f"{c}/{i}.png" for c in "abcdefgh" for i in range(6)} | {f"r{i}.png" for i in range(9)}
    client = moto_server.client()
    client.create_bucket(Bucket="parallel")
    for name in names:
        client.put_object(Bucket="parallel", Key="p/" + name, Body=b"x")
    client.put_object(Bucket="parallel", Key="p2/other.png", Body=b"x")
    source = ObjectSource(moto_server.location("parallel", "p"))
    assert len(source._bounds(None, 5)) == 10
    for page, skips, alone in ((5, 32, 1), (5, 3, 1), (2, 32, 3), (1, 4, 2), (1000, 32, 1)):
        monkeypatch.setattr("pipeline.ingest.buckets.SKIPS", skips)
        monkeypatch.setattr("pipeline.ingest.buckets.ALONE", alone)
        found = [item.key for batch in source.list(page) for item in batch]
        assert len(found) == len(set(found))
        assert set(found) == names


def test_two_datasets_of_one_bucket_do_not_mix(anywhere):
    one, two = anywhere("bucket/one"), anywhere("bucket/one-more")
    put(one, {f"{i}.png": encoded(picture(i)) for i in range(5)})
    put(two, {f"{i}.png": encoded(picture(100 + i)) for i in range(3)})
    first = run_ingest(images(one), anywhere("bucket/one.prepared"))
    second = run_ingest(images(two), anywhere("bucket/two.prepared"))
    assert (first.meta.rows, second.meta.rows) == (5, 3)
    assert first.meta.fingerprint != second.meta.fingerprint


def test_a_mistyped_dataset_does_not_keep_the_prepared_location(anywhere):
    empty, data, prepared = anywhere("typo/empty"), anywhere("right"), anywhere("out.prepared")
    put(empty, {"notes.txt": b"no picture"})
    put(data, {"a.png": PNG})
    with pytest.raises(NothingUsable):
        write_listing(images(empty), SMALL, open_objects(prepared))
    assert run_ingest(images(data), prepared).meta.rows == 1
    with pytest.raises(ValueError, match="prepared with other keys"):
        write_listing(images(empty), SMALL, open_objects(prepared))


def test_stores_and_prepared_data_inside_the_dataset_are_left_out(anywhere):
    data = anywhere("data")
    put(data, {"a.png": PNG, "old.zarr/c/0.png": PNG, "x.prepared/y.png": PNG})
    prepared = anywhere("data/sub/prep")
    dataset = images(data)
    assert run_ingest(dataset, prepared).meta.rows == 1
    put(data, {"b.png": encoded(picture(2))})
    assert run_ingest(dataset, prepared, update=True).meta.rows == 2
    assert set(ignored(prepared)) == {"old.zarr/c/0.png", "x.prepared/y.png"}


def test_files_of_another_kind_and_hidden_ones_are_counted(local):
    data, prepared = local("data"), local("prepared")
    others = {".DS_Store": b"", "notes.txt": b"x", ".git/a.png": PNG, "__MACOSX/b.png": PNG,
              "noextension": b"", "mesh.obj": b"v", "png": PNG}  # fmt: skip
    put(data, {"a.png": PNG, "x/.hidden.png": PNG})
    write(Path(data.url), others)
    write_listing(images(data), SMALL, open_objects(prepared))
    assert listed(prepared) == ["a.png"]
    assert set(ignored(prepared)) == {*others, "x/.hidden.png"}
    assert ignored(prepared)["notes.txt"] == "of another kind (.txt)"
    assert last_listing(open_objects(prepared)).counts["ignored"] == 8


def test_include_exclude_and_group_choose_samples(local):
    data = local("data")
    put(
        data,
        {f"{c}/{i}.png": encoded(picture(9 * i + len(c))) for c in ("a", "bb") for i in (1, 2)},
    )
    chosen = images(data, include=["a/*"], exclude=["*/2.png"])
    write_listing(chosen, SMALL, open_objects(local("p1")))
    assert listed(local("p1")) == ["a/1.png"]
    grouped = images(data, group=r"/(\d)\.png$")
    write_listing(grouped, SMALL, open_objects(local("p2")))
    entries = read_entries(open_objects(local("p2")), 0)
    assert {e["sample_id"]: e["keys"] for e in entries} == {
        "1": ["a/1.png", "bb/1.png"],
        "2": ["a/2.png", "bb/2.png"],
    }


def test_links_loops_and_folders_named_like_files_are_handled(tmp_path):
    data = write(tmp_path / "data", {"x.png/inner.png": PNG, "real/1.png": PNG})
    os.symlink(data, data / "loop")
    os.symlink(data / "real", data / "alias")
    os.symlink(data / "nowhere.png", data / "dangling.png")
    os.mkfifo(data / "pipe.png")
    done = run_ingest(images(data), Location(url=str(tmp_path / "p")))
    assert set(listed(done.location)) == {
        "x.png/inner.png", "real/1.png", "alias/1.png", "dangling.png", "pipe.png",
    }  # fmt: skip
    failed = {r["sample_id"]: (r["code"], r["message"]) for r in done.failures().to_pylist()}
    assert failed == {
        "dangling.png": ("INPUT_MISSING", "the link leads nowhere"),
        "pipe.png": ("INPUT_MISSING", "not a regular file"),
    }
    assert done.meta.counts == {"accepted": 1, "duplicate": 2, "rejected": 2}


def test_names_that_are_not_text_are_rejected_by_name(tmp_path):
    data = write(tmp_path / "data", {"a.png": PNG})
    with open(os.fsencode(data) + b"/caf\xe9.png", "wb") as file:
        file.write(PNG)
    done = run_ingest(images(data), Location(url=str(tmp_path / "p")))
    (failed,) = done.failures().to_pylist()
    assert (failed["sample_id"], failed["message"]) == (
        r"caf\xe9.png",
        "the file name is not UTF-8",
    )


def test_unreadable_files_and_folders_are_rejected_not_fatal(tmp_path, monkeypatch):
    data = write(tmp_path / "data", {"a.png": PNG, "b.png": PNG, "c/d.png": PNG})
    real_open, real_scan = open, os.scandir

    def denied(path, *args, **kwargs):
        if str(path).endswith("b.png"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)

    def denied_folder(path):
        if str(path).endswith("/c"):
            raise PermissionError(13, "Permission denied")
        return real_scan(path)

    monkeypatch.setattr("pipeline.ingest.folders.open", denied, raising=False)
    monkeypatch.setattr("pipeline.ingest.folders.os.scandir", denied_folder)
    done = run_ingest(images(data), Location(url=str(tmp_path / "p")))
    failed = {r["sample_id"]: (r["code"], r["message"]) for r in done.failures().to_pylist()}
    assert failed["b.png"] == ("INPUT_MISSING", "Permission denied")
    assert done.meta.counts["accepted"] == 1
    assert "c" in ignored(done.location)


def test_nothing_usable_names_the_first_reasons(local):
    data = local("data")
    open_objects(data).put("x.txt", b"1")
    open_objects(data).put("y/z.doc", b"1")
    with pytest.raises(
        NothingUsable, match=r"no sample of kind 'images' among 2 files.*another kind"
    ):
        write_listing(images(data), SMALL, open_objects(local("p")))
    (tmp := Path(local("empty").url)).mkdir()
    with pytest.raises(NothingUsable, match="is empty"):
        write_listing(images(tmp), SMALL, open_objects(local("p2")))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_listing(images(local("nowhere")), SMALL, open_objects(local("p3")))
    put(data, {"bad.png": b"not a picture", "worse.png": b""})
    with pytest.raises(NothingUsable, match=r"worse.png: EMPTY|bad.png: DECODE"):
        run_ingest(images(data), local("p4"))


def test_a_missing_bucket_is_one_clear_line(moto_server):
    data = moto_server.location("never-made", "x")
    with pytest.raises(StorageError, match="there is no bucket 'never-made'") as caught:
        write_listing(images(data), SMALL, open_objects(Location(url="memory://missing")))
    assert "\n" not in str(caught.value)


def test_a_prepared_location_of_other_keys_is_refused(local):
    data, prepared = local("data"), local("p")
    put(data, {"a.png": PNG})
    run_ingest(images(data), prepared)
    with pytest.raises(ValueError, match=r"ingest\.resolution: null there, 8 here.*another URL"):
        write_listing(images(data), ImageIngest(**{**SMALL.model_dump(), "resolution": 8}),
                      open_objects(prepared))  # fmt: skip
    with pytest.raises(ValueError, match=r"dataset\.url"):
        write_listing(images(local("other")), SMALL, open_objects(prepared))


def test_an_update_appends_and_reports(anywhere):
    data, prepared = anywhere("data"), anywhere("p")
    put(data, {f"{i}.png": encoded(picture(i)) for i in range(10)})
    before = run_ingest(images(data), prepared)
    old = before.rows(0, 10)
    put(data, {f"{i}.png": encoded(picture(i)) for i in range(10, 15)})
    put(data, {"3.png": encoded(picture(99, 9, 9))})  # changed bytes: reported, not replaced
    put(data, {"copy-of-4.png": encoded(picture(4))})
    open_objects(data).delete("5.png")
    put(data, {"note.txt": b"x"})
    after = run_ingest(images(data), prepared, update=True)
    assert after.meta.rows == 15
    assert after.meta.segments == (0, 10)
    assert after.rows(0, 10) == old
    report = last_listing(open_objects(prepared))
    assert report.changed == ("3.png",)
    assert {k: report.counts[k] for k in ("usable", "known", "changed", "vanished", "ignored")} == {
        "usable": 6, "known": 8, "changed": 1, "vanished": 1, "ignored": 1,
    }  # fmt: skip
    assert after.meta.counts == {"accepted": 15, "duplicate": 1, "ignored": 1}
    for _ in range(2):  # nothing new: nothing is appended
        again = run_ingest(images(data), prepared, update=True)
        assert again.meta == after.meta
        assert len(read_segments(open_objects(prepared))) == 2


def test_two_drivers_that_list_at_once_agree(local, monkeypatch):
    data, prepared = local("data"), local("p")
    put(data, {f"{i}.png": PNG for i in range(20)})
    close = Freeze.close

    def slow(self, date):
        made = close(self, date)
        if not read_segments(open_objects(prepared)):  # the other one is faster, and sees more
            monkeypatch.setattr(Freeze, "close", close)
            put(data, {"late.png": PNG})
            write_listing(images(data), SMALL, open_objects(prepared))
        return made

    monkeypatch.setattr(Freeze, "close", slow)
    write_listing(images(data), SMALL, open_objects(prepared))
    assert len(listed(prepared)) == 21
    assert json.loads(open_objects(prepared).get("listing/0.json"))["counts"]["usable"] == 21


def test_pilot_lists_the_head_of_the_same_order_and_is_not_taken_for_the_whole(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i}.png").write_bytes(b"%d" % i)
    dataset, ingest = Dataset(url=str(folder), kind="images"), ImageIngest(unit_objects=5)

    def listed(name, limit):
        prepared = open_objects(Location(url=str(tmp_path / name)))
        units = write_listing(dataset, ingest, prepared, limit=limit)
        return [e["sample_id"] for u in range(units) for e in read_entries(prepared, u)]

    whole, head = listed("whole", None), listed("head", 12)
    assert len(whole) == 200
    assert 12 <= len(head) < 30
    assert head == whole[: len(head)]
    with pytest.raises(ValueError, match="pilot of 12 samples only"):
        listed("head", None)
