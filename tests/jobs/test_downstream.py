"""The verbs prior and gan: from a run file to a store of samples, alone, stopped, and on Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.two_parts import two_parts
from jobs.cli import main
from jobs.config import load_run
from jobs.downstream import load_job
from jobs.tree import ConfigError
from pipeline.downstream.segment import run_segment
from pipeline.downstream.training import Interrupted
from pipeline.evaluate.opened import open_store
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.downstream import METHODS, GanJob, PriorJob, WassersteinGan
from schemas.probing import SegmentJob
from tests.downstream.small import code_store, rings
from tests.jobs.pictures import write_pictures, write_run

ROOT = Path(__file__).resolve().parents[2]


def write_job(folder: Path, **changes: object) -> str:
    """A run file of a prior on `folder/codes.zarr`; returns its path."""
    values = {
        "name": "prior",
        "source": str(folder / "codes.zarr"),
        "method": {"name": "rectified_flow", "width": 32, "depth": 2},
        "train": {"steps": 20, "batch": 32, "previews": 1},
        "sample": {"count": 6, "steps": 5},
        "evaluate": {"rows": 10, "decoded": False},
        "store": str(folder / "prior.zarr"),
        **changes,
    }
    path = folder / "prior.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


@pytest.fixture
def codes(tmp_path) -> Path:
    """200 codes of eight entries."""
    code_store(Location(url=str(tmp_path / "codes.zarr")), *rings(200, 0, size=8))
    return tmp_path


def state(folder: Path, name: str, store: str = "prior.zarr") -> bytes | None:
    """A file that training left."""
    found = list((folder / store / "_fieldmill" / "train").glob(f"*/{name}"))
    return found[0].read_bytes() if found else None


# --- run files --------------------------------------------------------------------------------


def test_all_errors_are_told_at_once_with_line_and_way_out(tmp_path):
    path = write_job(tmp_path, method={"name": "ddpm", "widht": 3}, sample={"cuont": 3})
    with pytest.raises(ConfigError) as caught:
        load_job(path, ["train.steps=0", "sorce.x=1"], PriorJob, methods=METHODS)
    text = "\n".join(caught.value.problems)
    assert "prior.yaml:5: method.widht: unknown key 'widht'; did you mean 'width'?" in text
    assert "sample.cuont: unknown key 'cuont'; did you mean 'count'?" in text
    assert "override 'train.steps=0': train.steps: must be greater than or equal to 1" in text
    assert "unknown key 'sorce'; did you mean 'source'?" in text
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="unknown method 'dppm'; did you mean 'ddpm'"):
        load_job(write_job(tmp_path, method="dppm"), [], PriorJob, methods=METHODS)
    with pytest.raises(ConfigError, match="is the source itself"):
        load_job(path, [f"store={tmp_path}/codes.zarr", "method={name: flow}", "sample={}"],
                 PriorJob, methods=METHODS)  # fmt: skip


def test_a_source_is_a_store_or_the_run_file_that_makes_it(tmp_path):
    run = write_run(tmp_path)
    job = load_job(write_job(tmp_path, source=run), [], PriorJob, methods=METHODS)
    assert job.source.url == load_run(run).store.url
    assert job.source.run == run
    beside = write_job(tmp_path, source={"run": "run.yaml", "array": "params"})
    job = load_job(beside, ["source.split=[val]"], PriorJob, methods=METHODS, folder="/")
    assert job.source.run == run
    assert job.source.split == ("val",)
    other = write_job(tmp_path, source=str(tmp_path / "other.zarr"))
    job = load_job(other, [f"source={run}", "source.split=[val]"], PriorJob, methods=METHODS)
    assert (job.source.run, job.source.url) == (run, load_run(run).store.url)
    assert job.source.split == ("val",)
    job = load_job(beside, [f"source={tmp_path}/other.zarr"], PriorJob, methods=METHODS)
    assert (job.source.run, job.source.url) == (None, str(tmp_path / "other.zarr"))
    gan = load_job(
        write_job(tmp_path, method={"width": 8}), [], GanJob, methods={"wgan_gp": WassersteinGan}
    )
    assert gan.method.width == 8


@pytest.mark.parametrize("name", ["prior", "gan"])
def test_examples_are_right(name):
    path = str(ROOT / "examples" / f"{name}.yaml")
    model, methods = {"prior": (PriorJob, METHODS), "gan": (GanJob, {"wgan_gp": WassersteinGan})}[
        name
    ]
    job = load_job(path, [], model, methods=methods, folder=str(ROOT))
    assert load_run(job.source.run).store.url == job.source.url


# --- runs -------------------------------------------------------------------------------------


def test_a_source_that_is_absent_is_made_first(tmp_path, capfd):
    write_pictures(tmp_path / "pictures", count=16)
    run = write_run(
        tmp_path,
        method={"name": "siren", "width": 8, "depth": 1, "steps": 6, "start": "common"},
        dataset={
            "url": str(tmp_path / "pictures"), "kind": "images", "split": {"train": 1, "test": 0},
        },
    )  # fmt: skip
    path = write_job(tmp_path, source=run)
    assert main(["prior", path]) == 0, capfd.readouterr()
    out = capfd.readouterr().out
    assert "is not there yet: running" in out
    assert "16 rows of params" in out
    opened = open_store(str(tmp_path / "prior.zarr"))
    assert opened.render("sample-000001").color.shape == (16, 16, 3)
    assert main(["verify", "--full", str(tmp_path / "prior.zarr")]) == 0
    picture = tmp_path / "one.png"
    store = str(tmp_path / "prior.zarr")
    assert main(["export", store, "--sample", "sample-000001", "--to", str(picture)]) == 0
    assert picture.stat().st_size > 100
    assert state(tmp_path, "previews/0000020.png").startswith(b"\x89PNG")
    assert state(tmp_path, "tensorboard/events*") is not None


def test_the_table_of_figures_is_printed_and_a_second_run_does_nothing(codes, capfd):
    path = write_job(codes)
    assert main(["prior", path]) == 0, capfd.readouterr()
    out = capfd.readouterr().out
    line = next(line for line in out.splitlines() if line.split()[:1] == ["one_nn"])
    assert len(line.split()) == 5  # measure, real, prior, gaussian, by_class
    started = time.monotonic()
    assert main(["prior", path]) == 0
    again = capfd.readouterr().out
    assert line in again
    assert "trained" not in again
    assert time.monotonic() - started < 5
    assert main(["prior", path, "sample.count=9"]) == 2
    assert "sample.count was 6, is 9" in capfd.readouterr().err
    assert main(["prior", path, "sample.count=9", "--replace"]) == 0
    assert len(open_store(str(codes / "prior.zarr"))) == 9


def test_a_gan_is_a_verb_of_its_own(codes, capfd):
    path = write_job(codes, method={"width": 16})
    assert main(["gan", path]) == 0, capfd.readouterr()
    assert "wgan_gp on 150 rows of latents/code [8], 3 classes" in capfd.readouterr().out
    assert set(open_store(str(codes / "prior.zarr")).index["label"].to_pylist()) <= {
        "ring0", "ring1", "ring2",
    }  # fmt: skip


def test_a_source_without_a_store_names_the_way_out(tmp_path, capfd):
    assert main(["prior", write_job(tmp_path)]) == 2
    assert "holds no finished store; name the run file that makes it" in capfd.readouterr().err
    assert not (tmp_path / "prior.zarr").exists()


@pytest.mark.slow
def test_a_signal_leaves_a_checkpoint_that_the_next_run_goes_on_from(codes, capfd):
    learning = {"steps": 600, "batch": 32, "previews": 0}
    path = write_job(codes, train=learning)
    command = [sys.executable, "-m", "jobs.cli", "prior", path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        for line in process.stdout:
            if line.startswith("train: step"):
                process.send_signal(signal.SIGTERM)
                break
        said = process.stdout.read()
    assert process.returncode == 143, said
    assert "stopped after step" in said
    assert state(codes, "checkpoint.safetensors")
    assert state(codes, "done.json") is None
    assert main(["prior", path]) == 0
    said = capfd.readouterr().out
    assert "train: step 60 of 600" not in said  # that was before the signal
    whole = write_job(codes, train=learning, store=str(codes / "whole.zarr"))
    assert main(["prior", whole]) == 0
    name = "model.safetensors"
    assert state(codes, name) == state(codes, name, "whole.zarr")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_two_workers_on_object_storage_learn_what_one_process_learns(
    ray_nodes, s3, tmp_path, capfd
):
    """Ray Train with gloo; source, checkpoints, events and samples all on S3."""
    from safetensors.numpy import load

    source = s3("codes.zarr")
    code_store(source, *rings(200, 0, size=8))
    files = {}
    for name, workers in (("one", 0), ("two", 2)):
        store = s3(f"{name}.zarr")
        path = write_job(
            tmp_path,
            source=source.location_fields(),
            store=store.location_fields(),
            train={"steps": 15, "batch": 32, "previews": 0, "checkpoint_s": 0.01},
            resources={"workers": workers},
        )
        assert main(["prior", path]) == 0, capfd.readouterr()
        objects = open_objects(store)
        found = {entry.key.rsplit("/", 1)[-1]: entry.key for entry in objects.list("_fieldmill")}
        files[name] = load(objects.get(found["model.safetensors"]))
        assert "checkpoint.safetensors" in found
        assert any(key.startswith("events.") for key in found)
        assert len(open_store(store)) == 6
    for name, value in files["one"].items():
        np.testing.assert_allclose(files["two"][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_two_workers_probe_what_one_process_probes(ray_nodes, tmp_path):
    """The networks of a probe learn with Ray Train and gloo."""
    code_store(Location(url=str(tmp_path / "codes.zarr")), *rings(200, 0, size=8))
    found = {}
    for workers in (0, 2):
        path = tmp_path / f"probe{workers}.yaml"
        values = {
            "name": "probe",
            "source": str(tmp_path / "codes.zarr"),
            "classifiers": ["linear", "mlp"],
            "train": {"steps": 60, "batch": 64, "checkpoint_s": 0.01},
            "shuffles": 1,
            "store": str(tmp_path / f"out{workers}"),
            "resources": {"workers": workers},
        }
        path.write_text(yaml.safe_dump(values))
        assert main(["probe", str(path)]) == 0
        report = json.loads((tmp_path / f"out{workers}" / "probe.json").read_text())
        found[workers] = report["features"]["latents/code"]
        assert not list((tmp_path / f"out{workers}").rglob("heads/*"))
    assert found[0]["linear"] == found[2]["linear"]
    assert found[0]["mlp"]["accuracy"] == pytest.approx(found[2]["mlp"]["accuracy"], abs=0.1)


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({"labels": {"kind": "masks", "masks": "m"}}, lambda job: job.labels.masks.url),
        ({"prepared": "m"}, lambda job: job.prepared.url),
        ({"evaluate": {"features": "m"}, "method": "gaussian"}, lambda job: job.evaluate.features),
    ],
    ids=["masks", "prepared", "features"],
)
def test_paths_are_absolute_before_workers_see_them(tmp_path, keys, read):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "source": "s.zarr", "store": "o", **keys}))
    model, methods = (PriorJob, METHODS) if "method" in keys else (SegmentJob, None)
    assert read(load_job(str(path), [], model, methods=methods, folder="/here")) == "/here/m"


@pytest.mark.ray
def test_two_workers_end_the_segmentation_that_one_process_began(tmp_path):
    """Heads that were finished, and the state of the one that was not, are what both go on from, in
    a cluster that the command itself starts."""
    random = np.random.default_rng(0)
    for kind in ("pictures", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(24):
        for kind, values in zip(("pictures", "masks"), two_parts(random)):
            Image.fromarray(values).save(tmp_path / kind / f"{number}.png")
    run = write_run(
        tmp_path,
        dataset={"url": str(tmp_path / "pictures"), "kind": "images"},
        ingest={"color": "gray"},
        method={"name": "functa", "latent": 8, "width": 12, "depth": 2, "inner_pixels": 64,
                "train_steps": 10, "batch": 8},
        store=str(tmp_path / "parts.zarr"),
        resources={"workers": 0},
    )  # fmt: skip
    assert main(["run", run]) in (0, 3)
    values = {
        "name": "parts",
        "source": str(tmp_path / "parts.zarr"),
        "labels": {"kind": "masks", "masks": str(tmp_path / "masks")},
        "labelled": 5,
        "test": ["train", "test"],
        "points": 200,
        "whole": False,
        "train": {"steps": 30, "batch": 256, "checkpoint_s": 0.01},
        "store": str(tmp_path / "one"),
    }
    whole = run_segment(SegmentJob.model_validate(values))
    values |= {"store": str(tmp_path / "two"), "resources": {"workers": 2}}
    stops = iter([False] * 40 + [True])
    with pytest.raises(Interrupted):  # in the second head
        run_segment(SegmentJob.model_validate(values), stop=lambda: next(stops))
    heads = {head.name for head in (tmp_path / "two").rglob("heads/*.safetensors")}
    assert "linear-on-features.safetensors" in heads
    assert "linear-on-features-and-latent.checkpoint.safetensors" in heads
    assert "linear-on-features-and-latent.safetensors" not in heads
    path = tmp_path / "segment.yaml"
    path.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "jobs.cli", "segment", str(path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "two" / "segment.json").read_text())
    assert not list((tmp_path / "two").rglob("heads/*"))
    assert list(found["table"]) == list(whole["table"])
    for name, figures in whole["table"].items():  # equal but for the order of sums
        assert found["table"][name]["accuracy"] == pytest.approx(figures["accuracy"], abs=0.02)
    one, two = (load_file(tmp_path / name / "head.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-4)
