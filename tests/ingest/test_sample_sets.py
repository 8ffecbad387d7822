"""Sample sets: made once, the same bytes anywhere, read like any other data set."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import igl
import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from jobs.config import load_run
from jobs.tree import ConfigError
from pipeline.ingest import sample_sets
from pipeline.ingest.clouds import read_cloud
from pipeline.ingest.glyphs import CELLS, GLYPHS, glyphs, solid
from pipeline.ingest.mesh import is_watertight, welded_faces
from pipeline.ingest.meshes import read_mesh
from pipeline.ingest.procedural import CLASSES, generator
from pipeline.ingest.sample_sets import VERSION, folder, is_complete
from pipeline.ingest.scenes import COUNTS, scan
from pipeline.ingest.target import find_target
from schemas.base import Location
from schemas.run import SAMPLE_SETS, Dataset, ImageIngest, PointIngest, ingest_keys
from tests.ingest.tools import lines, run_ingest

EXPECTED = {  # files, classes
    "photos": (48, 6),
    "pictures": (8, 8),
    "glyph-images": (96, 16),
    "shapes": (60, 5),
    "glyphs": (96, 16),
    "scenes": (24, 4),
    "clouds": (60, 5),
    "equations": (36, 6),
    "sounds": (20, 5),
    "clips": (12, 4),
}
HOLES = {"0": 1, "1": 0, "2": 0, "6": 1, "8": 2, "9": 1, "A": 1, "K": 0, "S": 0}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fieldmill"


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))


@pytest.mark.parametrize("name", SAMPLE_SETS)
def test_every_set_is_there_in_classes(name):
    made = files(folder(name))
    count, classes = EXPECTED[name]
    assert len(made) == count
    assert len({p.parent.name for p in made}) == classes
    assert len({p.read_bytes() for p in made}) == count


def test_pictures_have_their_size_and_content():
    for path in files(folder("photos"))[::7] + files(folder("glyph-images"))[::17]:
        with Image.open(path) as picture:
            assert picture.size == (64, 64)
            assert np.asarray(picture, float).std() > 5, path
    for path in files(folder("pictures")):
        with Image.open(path) as picture:
            assert picture.size == (256, 256)


def test_glyph_solids_are_closed_with_the_holes_and_the_volume_of_their_outline():
    seen = Counter()
    for glyph in list(glyphs())[::2]:
        mesh = solid(glyph)
        assert is_watertight(welded_faces(mesh.vertices, mesh.faces)), glyph.character
        assert (np.ptp(mesh.vertices, axis=0) > 0.1).all()
        inked = glyph.coverage.sum() / CELLS**2 * glyph.depth
        assert mesh.volume == pytest.approx(inked, rel=0.06), glyph.character
        if glyph.character in HOLES:
            assert mesh.euler_number == 2 - 2 * HOLES[glyph.character], glyph.character
            seen[glyph.character] += 1
    assert len(seen) == len(HOLES)
    assert set(GLYPHS) >= set(HOLES)


def test_scans_hold_the_outer_surface_only_and_their_normals_point_out():
    """A mug's handle ends inside its wall: no scanner sees that."""
    hidden = 0
    for name, (make, _) in CLASSES.items():
        number = list(CLASSES).index(name)
        parts = make(generator(0, number, 0))
        points, normals = scan(parts, 512, np.random.default_rng(1))
        assert len(points) == 512
        assert np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-6
        for mesh, _ in parts.values():
            vertices = np.ascontiguousarray(mesh.vertices, np.float64)
            faces = np.ascontiguousarray(mesh.faces, np.int64)
            step = 2e-3 * normals
            inside = igl.fast_winding_number(vertices, faces, np.ascontiguousarray(points + step))
            hidden += int((inside > 0.5).sum())
    assert hidden <= 5


def test_clouds_are_read_with_their_normals():
    for path in files(folder("clouds"))[::13]:
        cloud, _ = read_cloud({path.name: path.read_bytes()}, path.name, PointIngest(), "k")
        assert len(cloud.points) == 4096
        assert cloud.normals is not None
        assert cloud.color is None


def test_a_scene_is_a_floor_and_the_shapes_of_its_class():
    for path in files(folder("scenes"))[::5]:
        mesh = read_mesh({path.name: path.read_bytes()}, path.name, 10**6)
        shapes = {tuple(n.split()[:2]) for n in mesh.part_names if n != "floor"}
        assert len(shapes) == COUNTS[path.parent.name]
        assert "floor" in mesh.part_names
        boxes = {}
        for i, part in enumerate(mesh.part_names):
            at = mesh.vertices[mesh.faces[mesh.part == i].reshape(-1)]
            boxes.setdefault(part if part == "floor" else part.rpartition(" ")[0], []).append(at)
        places = [np.concatenate(v)[:, :2] for k, v in boxes.items() if k != "floor"]
        for i, one in enumerate(places):
            for other in places[:i]:
                apart = np.linalg.norm((one.min(0) + one.max(0) - other.min(0) - other.max(0)) / 2)
                assert apart > 0.2
                assert cKDTree(one).query(other)[0].min() > 0.02
        assert mesh.vertices[:, 2].min() > -0.07
        assert np.abs(mesh.vertices[:, :2]).max() < 1.25


def test_a_set_is_the_same_in_another_cache_to_the_date_of_its_files(cache, tmp_path, monkeypatch):
    first = folder("glyph-images")
    assert first == cache / f"glyph-images-{VERSION}" / "files"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    second = folder("sample:glyph-images")
    assert second != first
    dataset = Dataset(url="sample:glyph-images", kind="images")
    seen = []
    for home in ("cache", "other"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        found = [item for page in find_target(dataset).list(1000) for item in page]
        seen.append(sorted((f.key, f.size, f.etag) for f in found))
    assert seen[0] == seen[1]
    assert [p.read_bytes() for p in files(first)] == [p.read_bytes() for p in files(second)]


def test_several_processes_make_one_set_at_once(cache):
    code = "from pipeline.ingest.sample_sets import folder; print(folder('glyph-images'))"
    crowd = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate()[0].strip() for process in crowd}
    assert all(process.returncode == 0 for process in crowd)
    assert said == {str(cache / f"glyph-images-{VERSION}" / "files")}
    assert [p.name for p in cache.iterdir()] == [f"glyph-images-{VERSION}"]
    assert len(files(cache / f"glyph-images-{VERSION}" / "files")) == 96


def test_a_set_that_lost_a_file_is_made_again(cache):
    made = folder("glyph-images")
    files(made)[3].unlink()
    assert not is_complete(made.parent)
    assert len(files(folder("glyph-images"))) == 96
    before = os.stat(made).st_mtime_ns
    folder("glyph-images")
    assert os.stat(made).st_mtime_ns == before
    assert [p.name for p in cache.iterdir()] == [f"glyph-images-{VERSION}"]


def test_without_a_home_a_temporary_folder_serves(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(sample_sets.tempfile, "gettempdir", lambda: str(tmp_path))
    assert sample_sets.cache_folder() == tmp_path / f"fieldmill-{os.getuid()}"


def test_a_sample_set_is_ingested_under_its_url_with_its_classes(tmp_path):
    dataset = Dataset(url="sample:glyph-images", kind="images")
    ingest = ImageIngest(color="gray", unit_objects=40)
    assert ingest_keys(dataset, ingest)["dataset"]["url"] == "sample:glyph-images"
    prepared = run_ingest(dataset, Location(url=str(tmp_path / "p")), ingest)
    assert prepared.meta.labels == dict.fromkeys(sorted(GLYPHS), 6)
    assert prepared.meta.dataset["url"] == "sample:glyph-images"
    assert "A/A_0.png" in lines(prepared)
    assert prepared.meta.counts == {"accepted": 96}


def run_file(tmp_path, dataset, extra=""):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: a\ndataset: {dataset}\nmethod: siren\nstore: {tmp_path}/a.zarr\n{extra}"
    )
    return str(path)


def test_a_run_file_keeps_the_url_and_refuses_what_is_wrong_with_it(tmp_path):
    run = load_run(run_file(tmp_path, "{url: 'sample:photos', kind: images}"))
    assert run.dataset.url == "sample:photos"
    for dataset, match in (
        (
            "{url: 'sample:photo', kind: images}",
            "no sample set 'photo'; did you mean 'sample:photos'",
        ),
        ("{url: 'sample:shapes', kind: images}", "sample:shapes holds shapes; set kind: shapes"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_run(run_file(tmp_path, dataset))
    wrong = run_file(tmp_path, "{url: 'sample:photos', kind: images}", "")
    with pytest.raises(ConfigError, match="a store needs"):
        load_run(wrong, ["store=sample:photos"])
    with pytest.raises(ValueError, match=r"did you mean 'sample:glyphs'"):
        folder("glyph")
