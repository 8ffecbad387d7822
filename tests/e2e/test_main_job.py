"""The main job on a real S3 server and a real Ray cluster, read back by tools that are not ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
import yaml

from jobs.cli import main
from pipeline import open_store, store
from pipeline.ingest.prepared import open_prepared
from pipeline.ingest.procedural import make_shapes
from pipeline.storage import Objects, open_objects
from schemas.base import Location
from tests.jobs.pictures import write_pictures

NAME = "round/picture 3.png"
PICTURES = 29  # neither a multiple of 4 rows nor of 7 samples


def upload(folder: Path, target: Location) -> None:
    objects = open_objects(target)
    for path in sorted(folder.rglob("*.*")):
        objects.put(path.relative_to(folder).as_posix(), path.read_bytes())


def run_file(folder: Path, name: str, **keys: object) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **keys}))
    return str(path)


def fields(location: Location) -> dict:
    return location.model_dump(exclude_none=True)


class Counted:
    """Counts what writes, and what decodes or fits, in this process."""

    def __init__(self, monkeypatch):
        self.calls = {"write": 0, "decode": 0, "fit": 0}
        from pipeline.ingest.guard import Guard
        from pipeline.stages import Fitter

        for owner, name, kind in (
            (Objects, "put", "write"),
            (Objects, "create", "write"),
            (Objects, "copy", "write"),
            (Guard, "__init__", "decode"),
            (Fitter, "compute", "fit"),
        ):
            self.count(monkeypatch, owner, name, kind)

    def count(self, monkeypatch, owner, name, kind):
        real = getattr(owner, name)

        def counted(*args, **kwargs):
            self.calls[kind] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)


@pytest.mark.s3
@pytest.mark.ray
@pytest.mark.slow
def test_two_datasets_in_one_bucket_through_s3_and_ray(s3, ray_nodes, tmp_path, capfd, monkeypatch):
    write_pictures(tmp_path / "pictures", count=PICTURES)
    write_pictures(tmp_path / "others", count=3)
    upload(tmp_path / "pictures", s3("data/pictures/"))
    upload(tmp_path / "others", s3("data/pictures-too/"))
    target = s3("out/pictures.zarr")
    keys = {
        "dataset": {**fields(s3("data/pictures/")), "kind": "images"},
        "ingest": {"unit_objects": 7},
        "method": {"name": "siren", "width": 16, "depth": 2, "steps": 150},
        "store": fields(target),
        "fit": {"unit_rows": 4, "lanes": 2},
    }
    path = run_file(tmp_path, "pictures", **keys)
    assert main(["run", path, "resources.workers=2"]) == 0
    out = capfd.readouterr().out
    assert f"prepared: {PICTURES} samples" in out
    assert "broken.png: DECODE" in out
    assert "empty.png: EMPTY" in out
    reader = store.open_arrays(target)
    assert reader.index.num_rows == PICTURES  # nothing of the other dataset
    assert reader.plan.units == 8
    first = store.store_hash(open_objects(target))

    # the same command again: nothing is decoded, fitted or written
    counted = Counted(monkeypatch)
    assert main(["run", path, "resources.workers=0"]) == 0
    assert counted.calls["decode"] == counted.calls["fit"] == 0
    assert counted.calls["write"] <= 2
    monkeypatch.undo()

    # without Ray, with other workers, at another place: the same bytes
    keys["store"] = str(tmp_path / "local.zarr")
    assert main(["run", run_file(tmp_path, "pictures", **keys), "resources.workers=0"]) == 0
    assert store.store_hash(open_objects(Location(url=keys["store"]))) == first


REBUILD = """
import sys
sys.modules.update(pipeline=None, jobs=None, schemas=None)  # importing them fails
import numpy as np, xarray as xr, zarr

group = zarr.open_group(sys.argv[1], mode="r")
table = xr.open_zarr(sys.argv[1])
row = int(np.flatnonzero(table["sample_id"].values == sys.argv[2])[0])
spec, places = group.attrs["field"], group["params"].attrs["table"]
params = group["params"][row]

def tensor(name):
    place = places[name]
    size = int(np.prod(place["shape"]))
    return params[place["offset"] : place["offset"] + size].reshape(place["shape"])

h, w = int(table["height"].values[row]), int(table["width"].values[row])
x, y = (2 * np.arange(w) + 1) / w - 1, (2 * np.arange(h) + 1) / h - 1
assert spec["coords"]["axes"] == ["x (right)", "y (down)"]
value = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
for layer in spec["layers"]:
    if layer["kind"] == "linear":
        value = layer["scale"] * (value @ tensor(layer["weight"]).T + tensor(layer["bias"]))
        value = np.sin(value) if layer["activation"] == "sine" else value
    else:
        value = value * layer["scale"] + layer["offset"]
np.save(sys.argv[3], value.reshape(h, w, -1).clip(0, 1))
print(float(table["psnr_fit"].values[row]))
"""


def test_copied_store_verifies_and_is_rebuilt_without_our_code(tmp_path, capsys):
    from PIL import Image

    write_pictures(tmp_path / "pictures", count=6)
    keys = {
        "dataset": {"url": str(tmp_path / "pictures"), "kind": "images"},
        "ingest": {"held_out": 0.0},
        "method": {"name": "siren", "width": 32, "depth": 2, "steps": 300},
        "store": str(tmp_path / "a.zarr"),
        "fit": {"unit_rows": 4, "lanes": 2},
        "resources": {"workers": 0},
    }
    assert main(["run", run_file(tmp_path, "a", **keys)]) == 0
    source = np.asarray(Image.open(tmp_path / "pictures" / "round" / "picture 3.png")) / 255
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "elsewhere" / "b.zarr")
    for gone in ("pictures", "a.zarr", "a.prepared"):
        shutil.rmtree(tmp_path / gone)
    copied = tmp_path / "elsewhere" / "b.zarr"
    assert main(["verify", str(copied), "--full"]) == 0

    picture = tmp_path / "picture.npy"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", REBUILD, str(copied), NAME, str(picture)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rebuilt = np.load(picture)
    decibel = -10 * np.log10(np.mean((rebuilt - source) ** 2))
    assert decibel > 25
    assert decibel == pytest.approx(float(done.stdout), abs=0.01)

    opened = open_store(str(copied))
    row = opened.row_number(NAME)
    ours = opened.render(row).color
    assert np.abs(np.asarray(ours, float) - rebuilt).max() < 1e-3
    capsys.readouterr()
    png = tmp_path / "out.png"
    assert main(["export", str(copied), "--sample", NAME, "--to", str(png)]) == 0
    assert np.abs(np.asarray(Image.open(png).convert("RGB")) / 255 - rebuilt).max() < 0.01


def test_prepared_dataset_serves_a_second_method_and_a_decoder_serves_new_shapes(
    tmp_path, monkeypatch, capsys
):
    make_shapes(tmp_path / "shapes", per_class=1)
    make_shapes(tmp_path / "new", per_class=1, seed=7)
    small = {
        "ingest": {"near": 2048, "uniform": 1024, "surface": 1024, "held_out": 512},
        "evaluate": {"resolution": 24, "points": 500, "rows": 2},
        "resources": {"workers": 0},
    }
    data = {"url": str(tmp_path / "shapes"), "kind": "shapes"}
    decoder = {"name": "deepsdf", "width": 32, "depth": 3, "code": 8, "train_steps": 60}
    decoder |= {"batch": 4, "points": 128, "fit_steps": 30, "fit_points": 128}
    first = {
        "dataset": data,
        "method": decoder,
        "store": str(tmp_path / "codes.zarr"),
        "prepared": str(tmp_path / "shapes.prepared"),
        **small,
    }
    assert main(["run", run_file(tmp_path, "codes", **first)]) == 0
    before = open_prepared(Location(url=first["prepared"])).meta.fingerprint

    counted = Counted(monkeypatch)
    second = {
        **first,
        "method": {"name": "sdf", "width": 32, "steps": 200},
        "store": str(tmp_path / "networks.zarr"),
    }
    assert main(["run", run_file(tmp_path, "networks", **second)]) == 0
    assert counted.calls["decode"] == 0
    assert counted.calls["fit"] > 0
    monkeypatch.undo()
    assert open_prepared(Location(url=first["prepared"])).meta.fingerprint == before

    third = {
        **first,
        "dataset": {"url": str(tmp_path / "new"), "kind": "shapes"},
        "method": {**decoder, "shared_from": first["store"]},
        "store": str(tmp_path / "new-codes.zarr"),
    }
    third.pop("prepared")
    assert main(["run", run_file(tmp_path, "new", **third)]) == 0
    ours, theirs = (
        store.open_arrays(Location(url=str(tmp_path / name))).shared()
        for name in ("new-codes.zarr", "codes.zarr")
    )
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)

    # codes as training left them, by one key
    kept = {**first, "fit": {"trained_rows": "keep"}, "store": str(tmp_path / "kept.zarr")}
    assert main(["run", run_file(tmp_path, "kept", **kept)]) == 0
    index = store.open_arrays(Location(url=kept["store"])).index
    split, origin = index["split"].to_pylist(), index["origin"].to_pylist()
    assert {"trained"} == {o for s, o in zip(split, origin) if s == "train"}
    assert {"inferred"} >= {o for s, o in zip(split, origin) if s != "train"}
    assert {"inferred"} == set(
        store.open_arrays(Location(url=first["store"])).index["origin"].to_pylist()
    )

    # a mesh in the units of its file
    name = index["sample_id"][0].as_py()
    out = tmp_path / "mesh.glb"
    assert main(["export", second["store"], "--sample", name, "--to", str(out)]) == 0
    ours, source = trimesh.load_mesh(out), trimesh.load_mesh(tmp_path / "shapes" / name)
    assert np.allclose(ours.bounds, source.bounds, atol=0.1 * source.extents.max())
