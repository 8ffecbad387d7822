"""Evaluation of a store: once for what is fitted, again for what was fitted anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from jobs.cli import main
from jobs.config import load_run
from pipeline.stages.evaluate import Evaluation
from pipeline.storage import open_objects
from tests.jobs.pictures import write_run


@pytest.fixture
def run_file(tmp_path) -> str:
    """Three balls, each to be fitted by a small network that cannot reach its target."""
    folder = tmp_path / "balls"
    folder.mkdir()
    for i in range(3):
        trimesh.creation.icosphere(subdivisions=1, radius=0.3 + i).export(folder / f"{i}.ply")
    return write_run(
        tmp_path,
        dataset={"url": str(folder), "kind": "shapes"},
        ingest={"near": 256, "uniform": 128, "surface": 128, "held_out": 64},
        method={"name": "sdf", "width": 8, "depth": 1, "steps": 4, "target_error": 1e-9},
        store=str(tmp_path / "balls.zarr"),
        evaluate={"resolution": 16, "points": 200},
    )


def measured(path: str) -> dict[str, np.ndarray] | None:
    run = load_run(path)
    return Evaluation.of(run, open_objects(run.store)).result()


def test_rows_that_were_fitted_again_are_measured_again(run_file, capsys):
    assert main(["run", run_file]) == 0
    before = measured(run_file)
    assert before["row"].tolist() == [0, 1, 2]
    assert main(["run", run_file]) == 0
    assert capsys.readouterr().out.count("evaluate 1/1") == 1  # the second time nothing is left
    assert main(["retry", run_file, "--below-target"]) == 0
    assert "evaluate 1/1" in capsys.readouterr().out
    after = measured(run_file)
    assert after["row"].tolist() == [0, 1, 2]
    same = [np.array_equal(before[name], after[name], equal_nan=True) for name in before]
    assert not all(same)


def test_no_row_to_measure_is_no_error(run_file, tmp_path):
    assert main(["run", run_file, "evaluate.rows=0"]) == 0
    assert not Path(tmp_path / "balls.zarr" / "evaluations").exists()
