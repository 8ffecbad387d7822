"""The same small set of operations means the same on local files, in memory and on S3."""

from __future__ import annotations

import os
import pickle  # noqa: TID251  (to show that it is refused)
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.storage import Entry, Objects, StorageError, fsspec_client, open_objects
from schemas.base import Location

NAMES = ["a b.png", "sub/x#1.png", "p%20q.png", "é[1]~.png", "q?x&y+z.png", "w;:@=,'()!$.png"]


def test_objects_are_written_read_copied_and_removed(anywhere):
    objects = open_objects(anywhere("o"))
    with pytest.raises(FileNotFoundError, match="there is no such object"):
        objects.get("a/b")
    assert objects.entry("a/b") is None
    objects.put("a/b", b"0123456789")
    objects.put("a/b", b"9876543210")
    assert objects.get("a/b") == b"9876543210"
    assert objects.get_range("a/b", 2, 3) == b"765"
    assert objects.get_suffix("a/b", 4) == b"3210"
    assert objects.size("a/b") == 10
    objects.copy("a/b", "c/d/e")
    objects.put("a/b", b"new")
    assert objects.get("c/d/e") == b"9876543210"  # a copy, not an alias
    objects.delete("a/b")
    objects.delete(["a/b", "never"])
    assert objects.size("a/b") is None
    with pytest.raises(FileNotFoundError):
        objects.copy("a/b", "z")


def test_create_makes_one_winner_of_sixteen(anywhere):
    objects = open_objects(anywhere("o"))
    contents = [f"attempt {i}".encode() for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda data: objects.create("race/record", data), contents))
    assert sum(won) == 1
    assert objects.get("race/record") == contents[won.index(True)]
    assert not objects.create("race/record", b"later")
    assert objects.create("race/record", contents[won.index(True)])  # its own, asked again


def test_odd_names_survive(anywhere):
    objects = open_objects(anywhere("o"))
    for name in NAMES:
        objects.put(name, name.encode())
    listed = {entry.key: entry.size for entry in objects.list()}
    assert listed == {name: len(name.encode()) for name in NAMES}
    assert all(objects.get(name) == name.encode() for name in listed)


def test_listing_is_ordered_resumable_and_keeps_to_its_folder(anywhere):
    objects = open_objects(anywhere("o"))
    keys = sorted([f"in/{i:02d}/x" for i in range(7)] + ["in/03.txt", "in/03a", "inside", "z"])
    for key in reversed(keys):
        objects.put(key, b"1")
    listed = [entry.key for entry in objects.list(page=5)]
    assert sorted(listed) == keys
    if objects.location.scheme != "s3":  # SeaweedFS sorts by folder, AWS by key
        assert listed == keys
    for start in ("in/02/x", "in/03a", "inside"):
        rest = [entry.key for entry in objects.list(after=start, page=5)]
        assert rest == listed[listed.index(start) + 1 :]
    assert {entry.key for entry in objects.list("in")} == {k for k in keys if k.startswith("in/")}
    assert list(objects.list("nothing")) == []


def test_locations_below_a_location_are_its_folders(anywhere):
    below = anywhere("o").at("sub")
    open_objects(below).put("x", b"1")
    assert open_objects(anywhere("o")).get("sub/x") == b"1"
    assert [entry.key for entry in open_objects(below).list()] == ["x"]


def test_a_listing_shows_what_another_client_wrote_since(anywhere):
    one, other = open_objects(anywhere("o")), open_objects(anywhere("o"))
    one.put("a", b"1")
    assert len(list(one.list())) == 1
    other.put("b", b"2")
    assert [entry.key for entry in one.list()] == ["a", "b"]


def test_open_objects_do_not_travel(anywhere):
    with pytest.raises(TypeError, match="send its Location instead"):
        pickle.dumps(open_objects(anywhere("o")))


@pytest.mark.s3
def test_fsspec_reads_what_obstore_wrote_with_the_same_keys(s3):
    open_objects(s3("o")).put("x y", b"123")
    filesystem, path = fsspec_client(s3("o"))
    assert filesystem.cat_file(path + "/x y") == b"123"


class LostAnswers(Objects):
    """The first put-if-absent of each key fails after (or before) it was done."""

    def __init__(self, location: Location, *, done: bool):
        super().__init__(location)
        self.done, self.calls = done, 0

    def _put_new(self, key: str, data: bytes) -> bool:
        self.calls += 1
        if self.calls == 1:
            if self.done:
                super()._put_new(key, data)
            raise StorageError("the answer was lost")
        return super()._put_new(key, data)


@pytest.mark.parametrize("done", [True, False])
def test_a_lost_answer_of_create_is_read_back(memory, done):
    objects = LostAnswers(memory("o"), done=done)
    assert objects.create("record", b"mine")
    assert objects.get("record") == b"mine"
    other = LostAnswers(memory("o"), done=done)
    assert not other.create("record", b"other")
    assert objects.get("record") == b"mine"


def test_local_listing_skips_hidden_files_and_survives_link_loops(tmp_path):
    (tmp_path / "data/.git").mkdir(parents=True)
    (tmp_path / "data/.git/config").write_text("x")
    (tmp_path / "data/.DS_Store").write_text("x")
    (tmp_path / "data/a.txt").write_text("abc")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/dangling").symlink_to(tmp_path / "nowhere")
    objects = open_objects(Location(url=(tmp_path / "data").as_uri()))
    assert list(objects.list()) == [Entry("a.txt", 3, None)]


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    objects = open_objects(Location(url=str(tmp_path / "typo")))
    with pytest.raises(StorageError, match="typo: there is no such folder"):
        objects.check()
    assert not (tmp_path / "typo").exists()
    with pytest.raises(ValueError, match="leaves the folder"):
        objects.get("../secret")


WRITER = """
import os, sys
from pipeline.storage import open_objects
from schemas.base import Location
objects = open_objects(Location(url=sys.argv[1]))
while True:
    objects.put("big", os.urandom(1) * 20_000_000)
    print("written", flush=True)
"""


def test_readers_never_see_a_part_of_a_killed_write(tmp_path):
    objects = open_objects(Location(url=str(tmp_path / "o")))
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "o")],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    process.stdout.readline()
    for _ in range(5):
        data = objects.get("big")
        assert len(data) == 20_000_000
        assert len(set(data[::100_000])) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    data = objects.get("big")
    assert len(data) == 20_000_000
    assert len(set(data)) == 1
    assert [entry.key for entry in objects.list()] == ["big"]
    objects.tidy(older_than=-1)
    assert os.listdir(tmp_path / "o") == ["big"]


def test_missing_bucket_is_one_clear_line(moto_server):
    objects = open_objects(Location(url="s3://no-such-bucket/x", endpoint=moto_server.endpoint))
    for call in (objects.check, lambda: objects.get("a"), lambda: objects.put("a", b"1")):
        with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.s3
def test_wrong_keys_are_one_clear_line(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" + "0" * 20)
    objects = open_objects(s3("o"))
    for call in (objects.check, lambda: objects.create("a", b"1"), lambda: objects.size("a")):
        with pytest.raises(StorageError, match="check AWS_ACCESS_KEY_ID") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "wrong-" not in str(caught.value)


def test_missing_credentials_and_profiles_are_named(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no credentials found; set AWS_ACCESS_KEY_ID"):
        open_objects(Location(url="s3://bucket/x"))
    with pytest.raises(StorageError, match="no credentials found"):
        fsspec_client(Location(url="s3://bucket/x"))
    with pytest.raises(StorageError, match="lab"):
        open_objects(Location(url="s3://bucket/x", profile="lab"))
    open_objects(Location(url="s3://bucket/x", anonymous=True))


@pytest.mark.s3
def test_a_profile_serves_both_clients(s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id={s3_server.access_key}\n"
        f"aws_secret_access_key={s3_server.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url={s3_server.endpoint}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    location = Location(url="s3://tests/profile/", profile="lab")
    open_objects(location).put("x", b"profile")
    filesystem, path = fsspec_client(location)
    assert filesystem.cat_file(path + "/x") == b"profile"


def test_a_refused_connection_ends_in_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    objects = open_objects(Location(url="s3://bucket/x", endpoint="http://127.0.0.1:9"))
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9 cannot be reached"):
        objects.check()
    assert time.monotonic() - start < 15


def test_listing_pages_of_a_large_prefix_are_complete(moto_server):
    client = moto_server.client()
    for i in range(23):
        client.put_object(Bucket="tests", Key=f"pages/{i:03d}", Body=b"x")
    objects = open_objects(moto_server.location("tests", "pages"))
    assert [entry.key for entry in objects.list(page=5)] == [f"{i:03d}" for i in range(23)]
