"""Files that other programs read: each is loaded back and compared."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from PIL import Image

from pipeline.evaluate.export import export


def shown(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_meshes_load_again(spheres, tmp_path, suffix):
    store = spheres.open()
    path = export(store, "sphere/0003.obj", tmp_path / f"deep/out{suffix}", resolution=32)
    mesh = store.mesh(3, 32)
    back = trimesh.load(path, force="mesh")
    assert back.is_watertight
    assert len(back.faces) == len(mesh.faces)
    np.testing.assert_allclose(back.bounds, mesh.bounds, atol=1e-4)
    assert back.volume == pytest.approx(mesh.volume, rel=1e-4)


def test_pictures_load_again(pictures, tmp_path):
    store = pictures.open()
    path = export(store, 2, str(tmp_path / "out.PNG"))
    np.testing.assert_array_equal(shown(path), store.render(2).to_uint8())
    export(pictures.location, "class0/0002.png", tmp_path / "large.png", resolution=56)
    assert shown(tmp_path / "large.png").shape == (48, 56, 3)


def test_shapes_are_shown_as_pictures(spheres, tmp_path):
    export(spheres.open(), 1, tmp_path / "shape.png", resolution=48)
    picture = shown(tmp_path / "shape.png")
    assert picture.shape == (48, 48, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[24, 24].max() < 255


def test_parameters_are_named(pictures, spheres, tmp_path):
    store = pictures.open()
    with np.load(export(store, 4, tmp_path / "w.npz")) as found:
        total = sum(found[name].size for name in found)
        assert total == store.reader.params([4]).size
        assert all(found[name].dtype == np.float32 for name in found)
    with np.load(export(spheres.open(), 4, tmp_path / "z.npz")) as found:
        assert [found[name].shape for name in found] == [(2,)]


def test_bad_requests_name_the_way_out(pictures, tmp_path):
    store = pictures.open()
    for name, words in (
        ("a.png", "resolution 100000: 16384 is the most of a .png"),
        ("a.npz", "resolution 100000 has no effect on a .npz"),
        ("a.wav", "resolution 100000 has no effect on a .wav"),
        ("a.ply", "resolution 100000: 1024 is the most"),
        ("a.npy", "resolution 100000: 4096 is the most"),
    ):
        with pytest.raises(ValueError, match=words):
            export(store, 0, tmp_path / name, resolution=100_000)
    with pytest.raises(ValueError, match=r"cannot write '.stl'; known: .ply, .obj, .glb"):
        export(store, 0, tmp_path / "a.stl")
    with pytest.raises(ValueError, match=r"nearest: class1/0007.png"):
        export(store, "class1/0007.jpg", tmp_path / "a.png")
    with pytest.raises(ValueError, match="bound no solid"):
        export(store, 0, tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())
