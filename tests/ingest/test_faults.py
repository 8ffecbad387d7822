"""A sample's fault becomes a row, the machine's stops the unit; the files a mesh names are read."""

from __future__ import annotations

import errno
import json
import os
import sys
import textwrap

import numpy as np
import pytest

from pipeline.ingest import containers, folders
from pipeline.ingest.fold import fold
from pipeline.ingest.guard import guard
from pipeline.ingest.listing import units_to_do, write_listing
from pipeline.ingest.unit import ingest_unit
from pipeline.storage import StorageError, open_objects
from schemas.base import Location
from schemas.run import Dataset, ImageIngest, PointIngest, ShapeIngest
from schemas.samples import NothingUsable
from tests.ingest.test_containers import idx, tar
from tests.ingest.tools import (
    SMALL,
    encoded,
    images,
    lines,
    picture,
    put,
    run_ingest,
    write,
)

TINY = ShapeIngest(near=64, uniform=32, surface=32, held_out=8, unit_objects=3)
CUBE = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
FACES = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6),
         (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]  # fmt: skip


def cube_obj(size: float, head: str = "") -> bytes:
    text = head + "".join(f"v {x * size} {y * size} {z}\n" for x, y, z in CUBE)
    return (text + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in FACES)).encode()


def cube_gltf(buffer: str) -> tuple[bytes, bytes]:
    """A glTF file that names its buffer by `buffer`, and the buffer."""
    points = np.array(CUBE, np.float32).tobytes()
    corners = np.array(FACES, np.uint16).tobytes()
    scene = {
        "asset": {"version": "2.0"},
        "buffers": [{"uri": buffer, "byteLength": len(points) + len(corners)}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(points)},
            {"buffer": 0, "byteOffset": len(points), "byteLength": len(corners)},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": 8, "type": "VEC3",
             "min": [0, 0, 0], "max": [1, 1, 1]},
            {"bufferView": 1, "componentType": 5123, "count": 36, "type": "SCALAR"},
        ],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
        "scene": 0,
    }  # fmt: skip
    return json.dumps(scene).encode(), points + corners


def test_meshes_with_the_files_they_name(anywhere):
    data = anywhere("data")
    near, buffer = cube_gltf("parts/my%20buffer.bin")
    far, _ = cube_gltf("../../outside.bin")
    put(data, {
        "a/colored.obj": cube_obj(1, "mtllib c.mtl\n"), "a/c.mtl": b"newmtl x\nKd 1 0 0\n",
        "b/near.gltf": near, "b/parts/my buffer.bin": buffer, "b/far.gltf": far,
        "b/broken.gltf": b"{", "b/missing.obj": cube_obj(2, "mtllib none.mtl\n"),
        "t.tar": tar({"c/box.obj": cube_obj(3), "c/box.cls": b"boxes"}), "notes.txt": b"x",
    })  # fmt: skip
    put(anywhere(""), {"outside.bin": buffer})
    done = run_ingest(Dataset(**data.location_fields(), kind="shapes"), anywhere("p"), TINY)
    rows = lines(done)
    accepted = {name: row["objects"] for name, row in rows.items() if row["status"] == "accepted"}
    assert accepted == {
        "a/colored.obj": ["a/colored.obj", "a/c.mtl"],
        "b/near.gltf": ["b/near.gltf", "b/parts/my buffer.bin"],
        "b/missing.obj": ["b/missing.obj"],
        "t.tar::c/box.obj": ["t.tar"],
    }
    assert {n for n, r in rows.items() if r["status"] == "rejected"} == {
        "b/far.gltf",
        "b/broken.gltf",
    }
    assert done.meta.labels == {"a": 1, "b": 2, "boxes": 1}
    row = done.rows(0, 1).to_pylist()[0]
    assert len(row["near_coords"]) == 64 * 3 * 2
    assert row["faces"] == 12


def test_equal_meshes_are_sampled_equally_whatever_their_names(local):
    put(local("d1"), {"a.obj": cube_obj(1), "z.obj": cube_obj(5)})
    put(local("d2"), {"other/b.obj": cube_obj(1), "y.obj": cube_obj(5)})
    tables = [
        run_ingest(Dataset(url=local(d).url, kind="shapes"), local("p" + d), TINY).rows(0, 2)
        for d in ("d1", "d2")
    ]
    one, two = ({r["near_coords"] for r in table.to_pylist()} for table in tables)
    assert one == two
    assert len(one) == 2


def test_point_clouds_are_ingested(local):
    cloud = np.random.default_rng(0).normal(size=(200, 3))
    text = "\n".join(" ".join(f"{x:.6f}" for x in row) for row in cloud)
    put(local("data"), {"c.xyz": text.encode(), "bad.xyz": b"a b c\n"})
    ingest = PointIngest(surface=100, held_out=20)
    done = run_ingest(Dataset(url=local("data").url, kind="points"), local("p"), ingest)
    assert done.meta.counts == {"accepted": 1, "rejected": 1}


def test_a_full_file_table_is_the_machines_fault(local, monkeypatch):
    put(local("data"), {"a.png": encoded(picture(1)), "b.png": encoded(picture(2))})
    write_listing(images(local("data")), SMALL, open_objects(local("p")))

    def failing(self, key):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folders.FolderSource, "read", failing)
    number = errno.EMFILE
    with pytest.raises(StorageError, match="Too many open files"):
        ingest_unit(images(local("data")), SMALL, local("p"), 0, "a")
    assert units_to_do(open_objects(local("p"))) == [0]
    number = errno.EACCES
    with pytest.raises(NothingUsable, match="Permission denied"):
        run_ingest(images(local("data")), local("p"))


def test_uris_that_cannot_be_read_are_rows(local):
    table = "uri\n" + "\n".join(
        ["ok.png", "../beside.png", "../" * 30 + "x.png", "file:///no/such/folder/x.png",
         "ftp://host/x.png", "n" * 300 + ".png",
         "folder.png", "/no/such/s.tar", "nul\0.png"]
    )  # fmt: skip
    put(
        local("data"), {"ok.png": encoded(picture(1)), "folder.png/x": b"", "t.csv": table.encode()}
    )
    put(local(""), {"beside.png": encoded(picture(2))})
    done = run_ingest(images(local("data").url + "/t.csv"), local("p"))
    rows = lines(done)
    good = {name for name, row in rows.items() if row["status"] == "accepted"}
    assert good == {"ok.png", "../beside.png"}
    assert len(rows) == 9
    assert {row["code"] for name, row in rows.items() if name not in good} == {"INPUT_MISSING"}


def test_failures_are_written_even_when_nothing_is_usable(local):
    put(local("data"), {f"{i}.png": bytes([i]) for i in range(9)})
    with pytest.raises(NothingUsable, match=r"no usable sample: .'rejected': 9"):
        run_ingest(images(local("data")), local("p"))
    import pyarrow.parquet as pq

    with open(local("p").url + "/failures.parquet", "rb") as file:
        assert pq.read_table(file).num_rows == 9
    with pytest.raises(NothingUsable):
        fold(images(local("data")), SMALL, local("p"))


def test_a_packed_container_is_read_once_for_all_its_units(local, monkeypatch):
    import gzip

    stack = np.random.default_rng(0).integers(0, 255, (40, 4, 4), np.uint8)
    put(local("data"), {"images-idx3-ubyte.gz": gzip.compress(idx(stack))})
    containers._idx_array.cache_clear()
    read = []
    real = folders.FolderSource.read
    monkeypatch.setattr(
        folders.FolderSource, "read", lambda self, key: read.append(key) or real(self, key)
    )
    assert run_ingest(images(local("data")), local("p")).meta.rows == 40
    assert read == ["images-idx3-ubyte.gz"]


def test_the_child_takes_our_packages_in_a_folder_with_its_own(tmp_path, monkeypatch):
    write(tmp_path, {"pipeline/__init__.py": b"raise SystemExit('the wrong package')",
                     "schemas/__init__.py": b"raise SystemExit('the wrong package')"})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    put(Location(url=str(tmp_path / "data")), {"a.png": encoded(picture(1))})
    ingest = ImageIngest(seed=77)  # a configuration of its own, so a child of its own
    done = run_ingest(images(tmp_path / "data"), Location(url=str(tmp_path / "p")), ingest)
    assert done.meta.rows == 1


def test_no_heavy_import_in_listing_and_child():
    import subprocess

    code = textwrap.dedent("""
        import sys
        import pipeline.ingest.listing, pipeline.ingest.unit, pipeline.ingest.fold
        import pipeline.ingest.guard_child, pipeline.ingest.prepared
        heavy = {"torch", "ray", "zarr", "pandas", "igl", "trimesh"} & set(sys.modules)
        raise SystemExit(f"imports {heavy}" if heavy else 0)
    """)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())


def test_a_guard_is_kept_between_units_and_replaced_for_other_settings():
    one = guard("images", ImageIngest())
    assert guard("images", ImageIngest()) is one
    assert guard("images", ImageIngest(seed=3)) is not one
