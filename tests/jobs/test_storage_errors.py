"""What goes wrong with a bucket is one clear line and exit code 4, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main
from tests.jobs.pictures import write_pictures, write_run


def run_at(folder: Path, dataset: dict, store: dict | str) -> str:
    return write_run(folder, dataset={"kind": "images", **dataset}, store=store)


def one_line(capsys: pytest.CaptureFixture) -> str:
    """The only line of error, without the one that says how to go on."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith("  continue with: fieldmill run")
    return lines[0]


@pytest.mark.s3
def test_missing_bucket(s3_server, s3, tmp_path, capsys):
    write_pictures(tmp_path / "pictures", count=3)
    there = s3("x").model_dump(exclude_none=True)
    gone = {**there, "url": "s3://no-such-bucket-here/prefix/"}
    assert main(["run", run_at(tmp_path, gone, str(tmp_path / "x.zarr"))]) == 4
    assert "no-such-bucket-here" in one_line(capsys)


@pytest.mark.s3
def test_wrong_credentials(s3_server, s3, tmp_path, capsys, monkeypatch):
    write_pictures(tmp_path / "pictures", count=3)
    there = s3("x.zarr").model_dump(exclude_none=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong/Secret+Key0123456789")
    assert main(["run", run_at(tmp_path, {"url": str(tmp_path / "pictures")}, there)]) == 4
    line = one_line(capsys)
    assert "the secret key does not match" in line
    assert "wrong/Secret" not in line


def test_server_that_does_not_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong/Secret+Key0123456789")
    write_pictures(tmp_path / "pictures", count=3)
    store = {"url": "s3://bucket/x.zarr", "endpoint": "http://127.0.0.1:9"}
    assert main(["run", run_at(tmp_path, {"url": str(tmp_path / "pictures")}, store)]) == 4
    line = one_line(capsys)
    assert "127.0.0.1:9" in line
    assert "wrong/Secret" not in line


@pytest.mark.s3
def test_run_from_a_bucket_into_a_bucket(s3, tmp_path, capsys):
    from pipeline import store as stores
    from pipeline.storage import open_objects

    write_pictures(tmp_path / "pictures", count=6)
    source, target = s3("data/"), s3("out/pictures.zarr")
    objects = open_objects(source)
    for path in sorted((tmp_path / "pictures").rglob("*.*")):
        objects.put(path.relative_to(tmp_path / "pictures").as_posix(), path.read_bytes())
    path = run_at(
        tmp_path, source.model_dump(exclude_none=True), target.model_dump(exclude_none=True)
    )
    assert main(["run", path]) == 0
    words = ["--endpoint", target.endpoint, "--region", target.region]
    assert main(["verify", target.url, "--full", *words]) == 0
    assert main(["status", target.url, *words]) == 0
    reader = stores.open_arrays(target)
    assert reader.index.num_rows == 6
    assert sorted(set(reader.index["label"].to_pylist())) == ["round", "square"]
