"""Samples inside tar, Parquet, NPY, NPZ and IDX files, and in tables of URIs."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import io
import json
import struct
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest.listing import read_units, write_listing
from pipeline.storage import StorageError, open_objects
from schemas.base import Location
from schemas.run import ImageIngest
from tests.ingest.tools import (
    SMALL,
    encoded,
    images,
    lines,
    picture,
    pixels_of,
    put,
    run_ingest,
    table_rows,
)

KEEP = ImageIngest(unit_objects=7, color="keep")


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def parquet(columns: dict, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def labels(prepared) -> dict[str, str | None]:
    rows = table_rows(prepared.rows(0, prepared.meta.rows, columns=[]))
    return {row["sample_id"]: row["label"] for row in rows}


def order(prepared) -> list[str]:
    return prepared.rows(0, prepared.meta.rows, columns=[])["sample_id"].to_pylist()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_webdataset_shards_are_grouped_by_base_name(anywhere, mode):
    data = anywhere("data")
    shards = {}
    for shard in range(3):
        files = {}
        for i in range(5):
            files[f"d/{i:04d}.rgb.png"] = encoded(picture(10 * shard + i))
            files[f"d/{i:04d}.cls"] = str(i % 2).encode()
            files[f"d/{i:04d}.json"] = json.dumps({"label": "not this", "x": [1]}).encode()
        shards[f"train/shard-{shard}.tar" + (".gz" if mode == "w:gz" else "")] = tar(files, mode)
    put(data, shards)
    done = run_ingest(images(data), anywhere("p"))
    name = next(iter(shards))
    found = pixels_of(done)
    assert done.meta.rows == 15
    assert np.array_equal(found[f"{name}::d/0003.rgb.png"], picture(3))
    assert labels(done)[f"{name}::d/0003.rgb.png"] == "1"
    assert done.meta.labels == {"0": 9, "1": 6}
    first = [i for i in order(done) if i.startswith(name)]
    assert first == sorted(first)  # members in stored order
    assert done.meta.counts == {"accepted": 15}


def test_json_alone_labels_a_group_and_other_members_are_ignored(local):
    data = local("data")
    files = {
        "0.jpg": encoded(picture(0, 32, 32), "JPEG"),
        "0.json": b'{"label": "cat"}',
        "1.jpg": encoded(picture(1, 32, 32), "JPEG"),
        "1.json": b"not json",
        "2.wav": b"RIFF",
        "3.png": b"",
        "._0.jpg": b"resource fork",
    }
    put(data, {"s.tar": tar(files)})
    done = run_ingest(images(data), local("p"))
    assert labels(done) == {"s.tar::0.jpg": "cat", "s.tar::1.jpg": None}
    states = {k: (v["status"], v["code"]) for k, v in lines(done).items()}
    assert states["s.tar::2.wav"] == ("ignored", "")
    assert states["s.tar::._0.jpg"] == ("ignored", "")
    assert states["s.tar::3.png"] == ("rejected", "EMPTY")


def test_a_folder_tree_in_a_tar_is_labelled_by_its_folders(local):
    data = local("data")
    files = {f"{c}/my.photo.{i}.png": encoded(picture(i + 7 * len(c)))
             for c in ("a", "bb") for i in range(3)}  # fmt: skip
    put(data, {"all.tar": tar(files)})
    done = run_ingest(images(Location(url=data.url + "/all.tar")), local("p"))
    assert done.meta.labels == {"a": 3, "bb": 3}
    assert "all.tar::bb/my.photo.2.png" in order(done)


def test_a_damaged_tar_keeps_what_came_before_the_damage(local):
    data = local("data")
    whole = tar({f"{i}.png": encoded(picture(i)) for i in range(6)})
    put(
        data,
        {
            "cut.tar": whole[: 3 * 1024 + 540],
            "junk.tar": b"\1" * 5000,
            "ok.png": encoded(picture(50)),
        },
    )
    done = run_ingest(images(data), local("p"))
    assert set(order(done)) == {"cut.tar::0.png", "cut.tar::1.png", "cut.tar::2.png", "ok.png"}
    failed = {r["sample_id"]: r["message"] for r in done.failures().to_pylist()}
    assert set(failed) == {"cut.tar", "junk.tar"}
    assert "damaged after 2.png" in failed["cut.tar"]


def test_equal_names_in_one_tar_stay_apart(local):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for i in range(3):
            info = tarfile.TarInfo("a.png")
            data = encoded(picture(i))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    put(local("data"), {"s.tar": sink.getvalue()})
    done = run_ingest(images(local("data")), local("p"))
    assert len(lines(done)) == done.meta.rows == 3


@pytest.mark.parametrize("struct_column", [True, False])
def test_parquet_with_an_image_column(anywhere, struct_column):
    data = anywhere("data")
    files = [encoded(picture(i)) for i in range(20)]
    column = [{"bytes": f, "path": f"{i}.png"} for i, f in enumerate(files)]
    table = {"image": column if struct_column else files, "label": [i % 4 for i in range(20)],
             "split": ["train", "test"] * 10}  # fmt: skip
    put(
        data,
        {"part-0.parquet": parquet(table, row_group_size=6), "meta.parquet": parquet({"x": [1]})},
    )
    done = run_ingest(images(data), anywhere("p"))
    assert done.meta.rows == 20
    assert [u.entries for u in read_units(open_objects(anywhere("p")))] == [7, 7, 6]
    assert order(done) == [f"part-0.parquet#{i:06d}" for i in range(20)]
    assert np.array_equal(pixels_of(done)["part-0.parquet#000013"], picture(13))
    assert done.meta.labels == {"0": 5, "1": 5, "2": 5, "3": 5}
    assert done.meta.splits == {"test": 10, "train": 10}
    assert lines(done)["meta.parquet"]["status"] == "ignored"


def test_parquet_columns_can_be_named(local):
    table = {"img": [encoded(picture(0)), None], "key": ["k/0", "k/1"], "kind": ["x", "y"]}
    put(local("data"), {"d.parquet": parquet(table)})
    named = {"image": "img", "id": "key", "label": "kind"}
    done = run_ingest(images(local("data"), columns=named), local("p"))
    assert labels(done) == {"k/0": "x"}
    assert lines(done)["k/1"]["code"] == "EMPTY"


def test_stacks_of_pictures_in_npy(anywhere):
    data = anywhere("data")
    color = np.stack([picture(i) for i in range(10)])
    gray = np.random.default_rng(1).integers(0, 65536, (8, 6, 7), np.uint16)
    put(data, {
        "color.npy": npy(color), "gray.npy": npy(gray), "one.npy": npy(picture(77, 9, 9)),
        "first.npy": npy(np.moveaxis(color, 3, 1) ^ 1),
        "fortran.npy": npy(np.asfortranarray(gray ^ 1)),
        "vector.npy": npy(np.arange(5)), "objects.npy": b"\x93NUMPY\1\0",
    })  # fmt: skip
    done = run_ingest(images(data), anywhere("p"), KEEP)
    found = pixels_of(done)
    assert len(found) == 10 + 8 + 1 + 10 + 8
    assert np.array_equal(found["color.npy#000009"], color[9])
    assert np.array_equal(found["gray.npy#000003"][..., 0], gray[3])
    assert found["gray.npy#000003"].dtype == np.uint16
    assert np.array_equal(found["first.npy#000002"], color[2] ^ 1)
    assert np.array_equal(found["fortran.npy#000007"][..., 0], gray[7] ^ 1)
    assert np.array_equal(found["one.npy"], picture(77, 9, 9))
    assert {r["sample_id"] for r in done.failures().to_pylist()} == {"vector.npy", "objects.npy"}


def test_an_array_with_python_objects_is_never_unpickled(local):
    put(
        local("data"),
        {"evil.npy": npy(np.array([[{}]], dtype=object)), "a.png": encoded(picture(1))},
    )
    done = run_ingest(images(local("data")), local("p"))
    (failed,) = done.failures().to_pylist()
    assert failed["code"] == "DECODE"
    assert "objects" in failed["message"]


def test_npz_pairs_pictures_with_labels(local):
    sink = io.BytesIO()
    train, test = (np.random.default_rng(s).random((n, 5, 6)) for s, n in ((0, 9), (1, 4)))
    np.savez_compressed(
        sink, x_train=train, y_train=np.arange(9) % 3, x_test=test, y_test=np.ones(4, int)
    )
    put(local("data"), {"digits.npz": sink.getvalue()})
    done = run_ingest(images(local("data")), local("p"), KEEP)
    assert done.meta.rows == 13
    assert labels(done)["digits.npz::x_train#000005"] == "2"
    assert labels(done)["digits.npz::x_test#000003"] == "1"
    found = pixels_of(done)["digits.npz::x_train#000005"]
    assert found.dtype == np.uint16
    assert np.abs(found[..., 0] / 65535 - train[5]).max() < 1e-5


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_take_their_labels_from_beside(anywhere, packed):
    data, end = anywhere("data"), ".gz" if packed else ""
    pack = gzip.compress if packed else bytes
    stack = np.stack([picture(i, channels=1)[..., 0] for i in range(30)])
    put(data, {
        f"train-images-idx3-ubyte{end}": pack(idx(stack)),
        f"train-labels-idx1-ubyte{end}": pack(idx(np.arange(30, dtype=np.uint8) % 10)),
        f"t10k-images-idx3-ubyte{end}": pack(idx(stack[:3] ^ 1)),
        "broken-images-idx3-ubyte": b"\0\0\7\3abc",
    })  # fmt: skip
    done = run_ingest(images(data), anywhere("p"), KEEP)
    name = f"train-images-idx3-ubyte{end}"
    assert done.meta.rows == 33
    assert np.array_equal(pixels_of(done)[f"{name}#000029"][..., 0], stack[29])
    assert labels(done)[f"{name}#000029"] == "9"
    assert done.meta.labels == {str(i): 3 for i in range(10)}
    units = read_units(open_objects(anywhere("p")))
    assert max(u.entries for u in units) == 7
    assert {r["sample_id"] for r in done.failures().to_pylist()} == {"broken-images-idx3-ubyte"}


@pytest.mark.parametrize("kind", ["npy", "idx"])
def test_a_container_cut_short_gives_what_it_holds(local, kind):
    stack = np.stack([picture(i) for i in range(20)])
    if kind == "npy":
        name, data = "s.npy", npy(stack)[: -6 * 90 - 1]
    else:
        name, data = "s-idx3-ubyte", idx(stack[..., 0])[: -6 * 30 - 1]
    put(local("data"), {name: data, "empty.npy": npy(np.zeros((10**9, 0, 4), np.uint8))})
    put(local("data"), {"liar-idx3-ubyte": b"\0\0\x08\3" + b"\xff" * 12 + bytes(50)})
    done = run_ingest(images(local("data")), local("p"))
    assert done.meta.rows == 13
    failed = {r["sample_id"]: r["message"] for r in done.failures().to_pylist()}
    assert set(failed) == {f"{name}#000013-", "empty.npy", "liar-idx3-ubyte"}
    assert "cut short" in failed[f"{name}#000013-"]


# --- tables of URIs --------------------------------------------------------------------------


def test_a_table_of_relative_and_absolute_uris(anywhere, local):
    data, other = anywhere("data"), local("elsewhere")
    put(data, {f"pics/{i}.png": encoded(picture(i)) for i in range(4)})
    put(other, {"x y.png": encoded(picture(50))})
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["uri", "id", "label", "split"])
    for i in range(4):
        table.writerow(
            [f"pics/{i}.png", f"n{i}" if i else "", "even" if i % 2 == 0 else "odd", "val"]
        )
    table.writerow([f"file://{other.url}/x y.png", "far", "", ""])
    table.writerow(["pics/none.png", "missing", "", ""])
    open_objects(data).put("table.csv", text.getvalue().encode())
    done = run_ingest(images(data.at("table.csv")), anywhere("p"))
    assert labels(done) == {
        "pics/0.png": "even",
        "n1": "odd",
        "n2": "even",
        "n3": "odd",
        "far": None,
    }
    assert np.array_equal(pixels_of(done)["far"], picture(50))
    rows = lines(done)
    assert rows["n1"]["split"] == "val"
    assert rows["missing"]["code"] == "INPUT_MISSING"
    assert rows["n2"]["objects"] == ["pics/2.png"]


def test_a_parquet_table_and_its_mistakes(local):
    data = local("data")
    put(data, {"a.png": encoded(picture(1)), "t.tar": tar({"b.png": encoded(picture(2))})})
    put(data, {"ok.parquet": parquet({"path": ["a.png", "t.tar"], "label": ["x", "y"]})})
    done = run_ingest(images(data.at("ok.parquet"), columns={"uri": "path"}), local("p"))
    assert labels(done) == {"a.png": "x", "t.tar::b.png": "y"}
    for name, text, message in (
        ("no.csv", "url,id\na.png,1\n", "no column 'uri' .it has url, id"),
        ("two.csv", "uri,id\na.png,1\nb.png,1\n", "two lines of the table have the id '1'"),
        ("split.csv", "uri,split\na.png,dev\n", "split 'dev' is not one of train, val, test"),
        ("hole.csv", "uri,id\n,1\n", "'uri' is empty"),
    ):
        put(data, {name: text.encode()})
        with pytest.raises(ValueError, match=message):
            write_listing(images(data.at(name)), SMALL, open_objects(local("p-" + name)))


@pytest.fixture
def web(tmp_path):
    """A folder served over HTTP."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            return

        def do_GET(self):
            path = folder / self.path[1:]
            if path.with_suffix(".cut").exists():  # the connection breaks in the middle
                self.send_response(200)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.end_headers()
                self.wfile.write(path.read_bytes()[: path.stat().st_size // 2])
                self.close_connection = True
            else:
                super().do_GET()

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_containers_and_tables_over_http(web, local):
    folder, url = web
    (folder / "s.tar").write_bytes(tar({f"{i}.png": encoded(picture(i)) for i in range(3)}))
    (folder / "a b.png").write_bytes(encoded(picture(9)))
    (folder / "t.csv").write_text(f"uri,label\na b.png,x\n{url}/s.tar,y\n")
    one = run_ingest(images(f"{url}/s.tar"), local("p1"))
    assert set(order(one)) == {"s.tar::0.png", "s.tar::1.png", "s.tar::2.png"}
    two = run_ingest(images(f"{url}/t.csv"), local("p2"))
    assert two.meta.labels == {"x": 1, "y": 3}
    with pytest.raises(ValueError, match="cannot be listed"):
        write_listing(images(url), SMALL, open_objects(local("p3")))
    with pytest.raises(FileNotFoundError, match="no such file"):
        write_listing(images(f"{url}/none.tar"), SMALL, open_objects(local("p4")))


def test_a_connection_that_breaks_is_no_damage_of_a_container(web, local):
    folder, url = web
    (folder / "s.tar").write_bytes(tar({f"{i}.png": encoded(picture(i)) for i in range(3)}))
    (folder / "s.cut").touch()
    with pytest.raises(StorageError, match=r"cannot read http.*s\.tar"):
        run_ingest(images(f"{url}/s.tar"), local("p"))
    (folder / "s.cut").unlink()
    assert len(order(run_ingest(images(f"{url}/s.tar"), local("p")))) == 3
