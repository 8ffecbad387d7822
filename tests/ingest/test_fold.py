"""Duplicates, labels, splits and row numbers: rules that hold for any order and any growth."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.ingest.labels import Levels, folders, split_of
from pipeline.ingest.spill import digest
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import ImageIngest, LabelRule, SplitRule
from tests.ingest.tools import (
    SMALL,
    contents,
    encoded,
    images,
    lines,
    picture,
    put,
    run_ingest,
    table_rows,
)


def labelled(done) -> dict[str, str | None]:
    rows = table_rows(done.rows(0, done.meta.rows, columns=[]))
    return {row["sample_id"]: row["label"] for row in rows}


def pictures(names: list[str]) -> dict[str, bytes]:
    return {name: encoded(picture(i)) for i, name in enumerate(names)}


def test_rows_follow_the_hash_order_without_gaps(local):
    names = [f"{i}.png" for i in range(25)]
    put(local("data"), pictures(names) | {f"bad{i}.png": bytes([i, 1]) for i in range(5)})
    done = run_ingest(images(local("data")), local("p"))
    table = done.rows(0, 25)
    assert table["row"].to_pylist() == list(range(25))
    assert table["sample_id"].to_pylist() == sorted(names, key=lambda n: (digest(n), n))
    rows = lines(done)
    assert [rows[n]["row"] for n in table["sample_id"].to_pylist()] == list(range(25))
    assert all(rows[f"bad{i}.png"]["row"] is None for i in range(5))
    assert done.meta.shards[0][1] == 0
    assert sum(count for _, _, count in done.meta.shards) == 25


def test_of_equal_bytes_the_smallest_id_is_kept(local):
    one, two = encoded(picture(1)), encoded(picture(2))
    files = {f"{name}.png": one for name in ("m", "c", "z", "x")} | {"k.png": two, "j.png": two}
    put(local("data"), files | {"e1.png": b"", "e2.png": b"", "b1.png": b"bad", "b2.png": b"bad"})
    done = run_ingest(images(local("data")), local("p"))
    assert set(labelled(done)) == {"c.png", "j.png"}
    rows = lines(done)
    for name, kept in (("m", "c"), ("z", "c"), ("x", "c"), ("k", "j")):
        assert (rows[f"{name}.png"]["status"], rows[f"{name}.png"]["same_as"]) == (
            "duplicate",
            f"{kept}.png",
        )
    assert {rows[f"{n}.png"]["status"] for n in ("e1", "e2", "b1", "b2")} == {"rejected"}
    assert done.meta.counts == {"accepted": 2, "duplicate": 4, "rejected": 4}


def test_duplicates_are_found_across_units_parts_and_blocks(local, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.fold.ORDER_BLOCK", 8)
    monkeypatch.setattr("pipeline.ingest.fold.PART_ROWS", 1)
    files = {f"{i:03d}.png": encoded(picture(i % 20)) for i in range(60)}
    put(local("data"), files)
    done = run_ingest(images(local("data")), local("p"))
    assert set(labelled(done)) == {f"{i:03d}.png" for i in range(20)}
    assert all(
        row["same_as"] == f"{int(name[:3]) % 20:03d}.png"
        for name, row in lines(done).items()
        if row["status"] == "duplicate"
    )


def test_an_older_row_wins_over_a_new_smaller_id(local):
    put(local("data"), {"m.png": encoded(picture(1)), "n.png": encoded(picture(2))})
    run_ingest(images(local("data")), local("p"))
    put(local("data"), {"a.png": encoded(picture(1))})
    done = run_ingest(images(local("data")), local("p"), update=True)
    assert set(labelled(done)) == {"m.png", "n.png"}
    assert lines(done)["a.png"]["same_as"] == "m.png"


@pytest.mark.parametrize(
    ("names", "rule", "want"),
    [
        (["cat/1.png", "dog/2.png", "3.png"], {}, ["cat", "dog", None]),
        (["all/cat/1.png", "all/dog/2.png"], {}, ["cat", "dog"]),
        (["all/cat/x/1.png", "all/dog/y/2.png"], {"level": 2}, ["x", "y"]),
        (["a/cat/1.png", "b/dog/deep/2.png"], {"level": -1}, ["cat", "deep"]),
        (["1.png", "2.png"], {}, [None, None]),
        (["one/1.png", "one/2.png"], {}, [None, None]),
        (["one/1.png", "2.png"], {"level": 0}, ["one", None]),
        (["x_cat_1.png", "x_dog_2.png", "none.png"], {"regex": "_([a-z]+)_"}, ["cat", "dog", None]),
    ],
)
def test_labels_follow_the_rule(local, names, rule, want):
    put(local("data"), pictures(names))
    done = run_ingest(images(local("data"), label=LabelRule(**rule)), local("p"))
    assert [labelled(done)[name] for name in names] == want


def test_labels_from_a_table(local):
    put(local("data"), pictures(["a.png", "b/c.png", "d.png"]))
    put(local("more"), {"labels.csv": b"id,label\na.png,red\nb/c.png,blue\nx.png,none\n"})
    rule = {"table": Location(url=local("more").url + "/labels.csv")}
    done = run_ingest(images(local("data"), label=rule), local("p"))
    assert labelled(done) == {"a.png": "red", "b/c.png": "blue", "d.png": None}
    assert done.meta.labels == {"blue": 1, "red": 1}


def test_a_broken_sample_does_not_decide_the_label_level(local):
    put(local("data"), pictures(["x/a/1.png", "x/b/2.png"]) | {"y/c/bad.png": b"junk"})
    done = run_ingest(images(local("data")), local("p"))
    assert done.meta.labels == {"a": 1, "b": 1}
    assert done.meta.label_level == 1


def test_very_many_labels_are_counted_in_bounded_memory(local, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.fold.MOST_LABELS", 3)
    put(local("data"), pictures([f"c{i}/1.png" for i in range(9)]))
    meta = run_ingest(images(local("data")), local("p")).meta
    assert len(meta.labels) == 4
    assert meta.labels["..."] == 6


def test_folder_levels_of_containers():
    assert folders("a/b/c.png") == ["a", "b"]
    assert folders("train/s.tar::cat/1.png") == ["train", "cat"]
    levels = Levels()
    for name in ("t/s0.tar::cat/1.png", "t/s1.tar::dog/1.png"):
        levels.see(name)
    assert levels.shallowest() == 1


def test_splits_are_shares_and_depend_on_id_and_seed(local):
    rule = SplitRule(train=0.7, val=0.1, test=0.2)
    found = [split_of(f"{i}.png", rule, 0) for i in range(5000)]
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs(found.count(name) / 5000 - share) < 0.03
    assert found != [split_of(f"{i}.png", rule, 1) for i in range(5000)]
    only = SplitRule(train=1, val=0, test=0)
    assert {split_of(str(i), only, 0) for i in range(500)} == {"train"}
    put(local("data"), pictures([f"{i}.png" for i in range(20)]))
    done = run_ingest(images(local("data"), split=rule), local("p"))
    for row in table_rows(done.rows(0, 20, columns=[])):
        assert row["split"] == split_of(row["sample_id"], rule, SMALL.seed)
    assert sum(done.meta.splits.values()) == 20


def test_a_sample_of_several_objects_is_hashed_whole(local):
    a, b, c = (encoded(picture(i)) for i in range(3))
    put(
        local("data"),
        {"1/x.png": a, "1/y.png": b, "2/x.png": a, "2/y.png": c, "3/x.png": a, "3/y.png": b},
    )
    done = run_ingest(images(local("data"), group=r"^(\d)/"), local("p"))
    assert set(labelled(done)) == {"1", "2"}
    assert lines(done)["3"]["same_as"] == "1"
    assert lines(done)["1"]["objects"] == ["1/x.png", "1/y.png"]


def test_the_fingerprint_is_of_ids_and_bytes(local):
    put(local("d1"), pictures(["a.png", "b.png"]))
    put(local("d2"), pictures(["a.png", "b.png"]))
    put(local("d3"), pictures(["b.png", "a.png"]))
    prints = [
        run_ingest(images(local(f"d{i}")), local(f"p{i}")).meta.fingerprint for i in (1, 2, 3)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_nothing_secret_or_local_is_written(local, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    put(local("data"), pictures(["a.png"]))
    dataset = images(
        Location(url=local("data").url, endpoint="http://inner:9000", profile="our-lab")
    )
    run_ingest(dataset, local("p"))
    for key, data in contents(local("p")).items():
        for word in (b"very-secret", b"inner:9000", b"our-lab"):
            assert word not in data, key


def test_sizes_differ_by_resolution_only_when_asked(local):
    put(local("data"), {f"{i}.png": encoded(picture(i, 9 + i, 12)) for i in range(4)})
    done = run_ingest(images(local("data")), local("p"), ImageIngest(resolution=4))
    table = done.rows(0, 4)
    assert set(table["height"].to_pylist()) == {4}
    assert all(size is not None for size in table["source_height"].to_pylist())
    assert {len(p) for p in table["pixels"].to_pylist()} == {4 * 4 * 3}
    assert np.unpackbits(np.frombuffer(table["held_out"][0].as_py(), np.uint8)).sum() == 1


def test_a_fold_that_did_not_end_leaves_no_old_row_numbers(local):
    data, prepared = local("data"), local("p")
    names = [f"{i}.png" for i in range(20)]
    before = sorted(names, key=lambda n: (digest(n), n))
    put(data, pictures(names))
    run_ingest(images(data), prepared)
    objects = open_objects(prepared)
    objects.delete("prepared.json")  # it ended just before
    objects.put("units/00000000/0000.arrow", b"damaged")
    with pytest.raises(RuntimeError, match="not committed"):
        run_ingest(images(data), prepared)
    put(data, {before[0]: b"changed since it was listed"})
    done = run_ingest(images(data), prepared)
    table = done.rows(0, done.meta.rows, columns=[])
    assert table["sample_id"].to_pylist() == before[1:]
    assert table["row"].to_pylist() == list(range(19))
    assert lines(done)[before[0]]["code"] == "INPUT_CHANGED"
    assert lines(done)[before[5]]["row"] == 4
