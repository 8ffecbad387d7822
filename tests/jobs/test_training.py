"""Shared parameters are trained by one actor or by Ray Train workers, and end up in the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from jobs.cli import main
from jobs.config import load_run
from pipeline import stages, store
from tests.jobs.pictures import write_run

pytestmark = [
    pytest.mark.ray,
    # Ray Train sets up Ray Data, which warns of its own default
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),
]
SHAPES = {
    "kind": "shapes",
    "split": {"train": 1.0, "test": 0.0},
}
INGEST = {"near": 256, "uniform": 128, "surface": 128, "held_out": 64, "unit_objects": 4}
METHOD = {
    "name": "deepsdf",
    "code": 4,
    "width": 16,
    "depth": 2,
    "train_steps": 12,
    "points": 64,
    "batch": 4,
    "fit_steps": 4,
    "fit_points": 64,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Six boxes and balls of different sizes."""
    folder = tmp_path_factory.mktemp("shapes")
    for i in range(3):
        trimesh.creation.box(extents=(1, 0.5 + 0.2 * i, 0.4)).export(folder / f"box{i}.ply")
        trimesh.creation.icosphere(subdivisions=1, radius=0.3 + i).export(folder / f"ball{i}.off")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_decoder_is_trained_and_codes_are_fitted(ray_nodes, shapes, tmp_path, capfd, workers):
    path = write_run(
        tmp_path,
        dataset={"url": str(shapes), **SHAPES},
        ingest=INGEST,
        method=METHOD,
        store=str(tmp_path / "shapes.zarr"),
        train={"workers": workers},
        resources={"workers": 2},
    )
    for verb in ("ingest", "train", "fit"):
        assert main([verb, path]) == 0, capfd.readouterr()
    run = load_run(path)
    assert stages.trained(run)
    out = capfd.readouterr().out
    assert "train: 6 samples" in out
    reader = store.open_arrays(run.store)
    shared, codes = reader.shared(), reader.latents("code", range(6))
    assert codes.shape == (6, 4)
    assert all(np.isfinite(value).all() for value in shared.values())
    assert len(np.unique(codes.round(6), axis=0)) == 6
    assert main(["train", path]) == 0  # nothing left to do
    assert "train:" not in capfd.readouterr().out


def test_training_that_diverges_is_a_matter_of_its_keys(shapes, tmp_path, capfd):
    path = write_run(
        tmp_path,
        dataset={"url": str(shapes), **SHAPES},
        ingest=INGEST,
        method={**METHOD, "rate": 1e30},
        store=str(tmp_path / "shapes.zarr"),
        resources={"workers": 0},
    )
    assert main(["run", path]) == 2
    told = capfd.readouterr().err
    assert "training of 'deepsdf' diverged at step" in told
    assert "(method.rate, method.code_rate)" in told
    assert "continue with" not in told
    assert "Traceback" not in told
