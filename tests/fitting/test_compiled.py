"""What Inductor compiles is kept from one process to the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from pipeline.fitting.compiled import FOLDER, keep_compiled

FIT = """
import json, torch
torch.set_num_threads(1)
from torch._dynamo.utils import counters
from pipeline import methods
from pipeline.fitting import fit_rows
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table

samples = load_samples(picture_table([(8, 8)] * 5), "images")
settings = {"width": 8, "depth": 1, "steps": 3, "target_psnr": None}
method = methods.build("siren", methods.configure("siren", "default", settings), samples.form)
fitted = fit_rows(method, {}, samples, seed=1, lanes=2, compiled=True)
hits, misses = (counters["inductor"]["fxgraph_cache_" + n] for n in ("hit", "miss"))
print(json.dumps({"hits": hits, "misses": misses, "loss": fitted.loss.tolist()}))
"""


@pytest.mark.slow
def test_a_second_process_takes_what_the_first_has_compiled(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop(FOLDER, None)
    told = []
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-c", FIT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout))
    first, second = told
    assert first["hits"] == 0
    assert first["misses"] == 1  # once for the shape class, though rows came and went
    assert (second["hits"], second["misses"]) == (1, 0)
    assert first["loss"] == second["loss"]
    assert (tmp_path / "fieldmill" / "inductor").stat().st_mode & 0o077 == 0


def test_a_place_that_is_set_stays_and_an_unsafe_one_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, "/somewhere")
    keep_compiled()
    assert os.environ[FOLDER] == "/somewhere"
    monkeypatch.delenv(FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "fieldmill" / "inductor"
    place.mkdir(parents=True)
    place.chmod(0o777)
    with warnings.catch_warnings():
        keep_compiled()
    assert FOLDER not in os.environ
    place.chmod(0o700)
    keep_compiled()
    assert os.environ.pop(FOLDER) == str(place)
