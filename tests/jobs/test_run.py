"""The command line from end to end in this process: results, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs import text
from jobs.cli import main
from pipeline import stages, store
from pipeline.storage import open_objects
from schemas.base import Location
from tests.jobs.pictures import write_pictures, write_run

ROOT = Path(__file__).resolve().parents[2]
SECRET = "planted/Secret+Key0123456789"


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    """A secret that nothing may print or store."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run; tests that change it copy the folder."""
    folder = tmp_path_factory.mktemp("finished")
    write_pictures(folder / "pictures")
    assert main(["run", write_run(folder)]) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A finished run of one's own, of the same pictures."""
    shutil.copytree(finished / "out", tmp_path / "out")
    write_run(tmp_path, dataset={"url": str(finished / "pictures"), "kind": "images"})
    return tmp_path


def objects(folder: Path):
    return open_objects(Location(url=str(folder / "out" / "pictures.zarr")))


def test_run_reports_rows_metrics_rejects_and_figures(tmp_path, capsys):
    write_pictures(tmp_path / "pictures")
    assert main(["run", write_run(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "prepared: 11 samples" in out
    assert "fit 3/3: unit 2" in out
    assert "2 rejected" in out
    assert "1 ignored" in out
    assert "rejected: round/broken.png: DECODE" in out
    assert "rejected: square/empty.png: EMPTY" in out
    assert "failures.parquet" in out
    assert "psnr" in out
    assert "samples/s" in out
    assert sum(line.startswith("fit ") for line in out.splitlines()) == 3
    # the same command again: nothing is listed, decoded, fitted or written
    before = store.store_hash(objects(tmp_path))
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert main(["run", str(tmp_path / "run.yaml")]) == 0
    assert "fit 1/" not in capsys.readouterr().out
    assert store.store_hash(objects(tmp_path)) == before
    changed = [
        p
        for p in (tmp_path / "out").rglob("*")
        if p.is_file() and times.get(p) != p.stat().st_mtime_ns
    ]
    assert len(changed) <= 2, changed


def test_stage_by_stage_gives_the_same_store(finished, tmp_path, capsys):
    shutil.copytree(finished / "pictures", tmp_path / "pictures")
    path = write_run(tmp_path)
    assert main(["fit", path]) == 4  # nothing is prepared yet
    assert "ingest" in capsys.readouterr().err
    for verb in ("ingest", "train", "fit", "evaluate"):
        assert main([verb, path, f"dataset.url={finished / 'pictures'}"]) == 0
    assert store.store_hash(objects(tmp_path)) == store.store_hash(objects(finished))


def test_changed_key_is_refused_before_anything_and_replaced_when_told(copied, capsys):
    path = str(copied / "run.yaml")
    before = store.store_hash(objects(copied))
    assert main(["run", path, "method.steps=4"]) == 2
    error = capsys.readouterr().err
    assert "method.steps was 6, is 4" in error
    assert "another store" in error
    assert "--replace" in error
    assert store.store_hash(objects(copied)) == before
    assert main(["run", path, "method.steps=4", "--replace"]) == 0
    assert store.store_hash(objects(copied)) != before
    assert store.verify(objects(copied), full=True).ok
    assert main(["run", path, "--replace", "method.steps=4"]) == 0  # nothing left to replace


def test_workers_and_endpoints_do_not_make_another_run(copied):
    path = str(copied / "run.yaml")
    assert main(["run", path, "resources.cores=2", "max_failed=0.9", "store.region=moon"]) == 0


def test_sizes_of_units_and_written_out_defaults_make_no_other_run(copied, capsys):
    path, before = str(copied / "run.yaml"), store.store_hash(objects(copied))
    folder = yaml.safe_load(Path(path).read_text())["dataset"]["url"]
    assert main(["run", path, "fit.unit_rows=2", "fit.lanes=5", "ingest.unit_objects=3"]) == 0
    said = capsys.readouterr().err
    assert "fit.unit_rows=2 has no effect: the store was begun with 4" in said
    assert "fit.lanes=5 has no effect: the store was begun with 2" in said
    assert main(["run", path, f"dataset.url={folder}/"]) == 0
    capsys.readouterr()
    assert main(["config", "show", path]) == 0
    full = copied / "full.yaml"
    full.write_text(capsys.readouterr().out)
    assert main(["run", str(full)]) == 0
    assert store.store_hash(objects(copied)) == before


def test_pilot_takes_the_first_samples_into_its_own_store(finished, tmp_path):
    path = write_run(tmp_path, dataset={"url": str(finished / "pictures"), "kind": "images"})
    assert main(["run", path, "--limit", "5"]) == 0
    pilot = store.open_arrays(Location(url=str(tmp_path / "out" / "pictures.limit-5.zarr")))
    whole = store.open_arrays(Location(url=str(finished / "out" / "pictures.zarr")))
    assert pilot.index["sample_id"].to_pylist() == whole.index["sample_id"].to_pylist()[:5]
    assert (pilot.params(range(5)) == whole.params(range(5))).all()
    assert not (tmp_path / "out" / "pictures.zarr").exists()


def test_update_appends_new_samples_and_keeps_old_rows(tmp_path):
    write_pictures(tmp_path / "pictures")
    path = write_run(tmp_path)
    assert main(["run", path]) == 0
    old = store.open_arrays(objects(tmp_path).location).params(range(11))
    write_pictures(tmp_path / "pictures", count=14)
    assert main(["run", path]) == 0  # the listing is frozen
    assert store.open_arrays(objects(tmp_path).location).index.num_rows == 11
    assert main(["run", path, "--update"]) == 0
    new = store.open_arrays(objects(tmp_path).location)
    assert new.index.num_rows == 14
    assert (new.params(range(11)) == old).all()
    assert store.verify(objects(tmp_path), full=True).ok


def test_memory_store_needs_no_ray(finished, tmp_path, capsys):
    path = write_run(
        tmp_path,
        dataset={"url": str(finished / "pictures"), "kind": "images"},
        store="memory://cli-test/pictures.zarr",
        resources={"workers": "auto"},
    )
    assert main(["run", path]) == 0
    assert "ray" not in capsys.readouterr().err


# --- looking ----------------------------------------------------------------------------------


def test_status_counts_units_and_rows(finished, tmp_path, capsys):
    path, place = str(finished / "run.yaml"), str(finished / "out" / "pictures.zarr")
    assert main(["status", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["units"], found["units_published"]) == ("complete", 3, 3)
    assert sum(found["rows_by_status"].values()) == found["rows"] == 11
    assert main(["status", place]) == 0
    assert "of 3 units 3 are fitted, 3 published" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "nothing.zarr")]) == 4
    assert "holds no store" in capsys.readouterr().err
    assert not (tmp_path / "nothing.zarr").exists()


def test_plan_shows_labels_before_and_after(finished, tmp_path, capsys):
    path = write_run(tmp_path, dataset={"url": str(finished / "pictures"), "kind": "images"})
    assert main(["plan", path]) == 0
    out = capsys.readouterr().out
    assert "round: 6" in out  # the broken one is not known yet
    assert "square: 7" in out
    assert not (tmp_path / "out").exists()
    assert main(["plan", str(finished / "run.yaml"), "method.width=9"]) == 0
    out = capsys.readouterr().out
    assert "round: 5" in out
    assert "square: 6" in out
    assert "differs: method.width: 8 in the store, 9 here" in out


def test_report_prints_the_summary_again(finished, capsys):
    assert main(["report", str(finished / "run.yaml")]) == 0
    assert "rejected: round/broken.png" in capsys.readouterr().out


def test_methods_and_config_show(finished, capsys):
    assert main(["methods"]) == 0
    assert "siren" in capsys.readouterr().out
    assert main(["methods", "siren", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["siren"]["keys"]["width"]["default"] == 64
    assert main(["config", "show", str(finished / "run.yaml"), "seed=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["seed"] == 7
    assert shown["method"]["omega_hidden"] == 30.0


def test_light_verbs_load_neither_torch_nor_ray(finished):
    code = (
        "import sys\nfrom jobs.cli import main\n"
        "for words in (['--help'], ['methods'], ['plan', sys.argv[1]], ['status', sys.argv[1]],"
        " ['config', 'show', sys.argv[1]]):\n"
        "    assert main(words) == 0\n"
        "    heavy = {'torch', 'ray'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished / "run.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# --- damage, retry ----------------------------------------------------------------------------


def test_damage_is_found_and_repaired(copied, capsys):
    place = str(copied / "out" / "pictures.zarr")
    before = store.store_hash(objects(copied))
    assert main(["verify", place]) == 0
    shard = copied / "out" / "pictures.zarr" / "params" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.unlink()  # it may be a hard link of its staged copy
    shard.write_bytes(data)
    assert main(["verify", place]) == 0  # sizes are right
    assert main(["verify", place, "--full"]) == 3
    captured = capsys.readouterr()
    assert "params/c/1/0 (unit 1): has other bytes" in captured.out
    assert f"continue with: fieldmill repair {place}" in captured.err
    assert main(["repair", place]) == 5
    assert main(["run", str(copied / "run.yaml")]) == 0
    assert main(["verify", place, "--full"]) == 0
    rows = store.open_arrays(objects(copied).location).params(range(11))
    assert rows.shape[0] == 11
    assert store.store_hash(objects(copied)) == before


def test_retry_needs_to_know_which_rows(copied, capsys):
    assert main(["retry", str(copied / "run.yaml")]) == 2
    assert "--failed" in capsys.readouterr().err
    assert main(["retry", str(copied / "run.yaml"), "--failed"]) == 0
    assert "0 units hold such rows" in capsys.readouterr().out
    assert main(["retry", str(copied / "run.yaml"), "--below-target"]) == 0
    assert "3 units hold such rows" in capsys.readouterr().out
    assert store.verify(objects(copied), full=True).ok


# --- exit codes -------------------------------------------------------------------------------


def test_the_plan_counts_what_is_in_containers(tmp_path, capsys):
    write_pictures(tmp_path / "pictures")
    np.save(tmp_path / "pictures" / "many.npy", np.zeros((600, 4, 4, 3), np.uint8))
    path = write_run(tmp_path)
    assert main(["plan", path]) == 0
    assert "613 samples to read" in capsys.readouterr().out


def test_gpu_that_is_not_there_is_told_before_anything_starts(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    write_pictures(tmp_path / "pictures", count=2)
    assert main(["run", write_run(tmp_path), "resources.gpus=1"]) == 2
    assert "resources.gpus: 1, but PyTorch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_samples_that_a_label_rule_leaves_out_are_counted(tmp_path, capsys):
    write_pictures(tmp_path / "pictures", count=4)
    dataset = {"url": str(tmp_path / "pictures"), "kind": "images", "label": {"regex": "(2)"}}
    assert main(["ingest", write_run(tmp_path, dataset=dataset)]) == 0
    assert "dataset.label gives 3 of 4 samples no label" in capsys.readouterr().err
    dataset["label"] = {"level": 0}
    assert main(["ingest", write_run(tmp_path, dataset=dataset, prepared=str(tmp_path / "b"))]) == 0
    assert "no label" not in capsys.readouterr().err


def test_bad_configuration_starts_nothing(tmp_path, capsys):
    write_pictures(tmp_path / "pictures")
    path = write_run(tmp_path)
    assert main(["run", path, "fit.unit_row=3"]) == 2
    assert "did you mean 'unit_rows'?" in capsys.readouterr().err
    assert main(["run", path, "--limit", "0"]) == 2
    assert main(["rnu", path]) == 2
    assert main(["verify", path, "key=value"]) == 2
    assert main(["verify", "ftp://host/store.zarr"]) == 2
    assert main(["export", "s3:///store.zarr", "--sample", "a", "--to", "a.png"]) == 2
    assert main(["verify", path, "--full", "--workers", "-2"]) == 2
    assert main([]) == 2
    assert not (tmp_path / "out").exists()


def test_missing_dataset_is_the_worlds_fault(tmp_path, capsys):
    assert main(["run", write_run(tmp_path)]) == 4
    error = capsys.readouterr().err
    assert "pictures" in error.splitlines()[0]
    assert "continue with: fieldmill run" in error


def test_nothing_usable_is_exit_3_without_a_store(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(b"no picture %d" % i)
    assert main(["run", write_run(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert "no usable sample" in error
    assert "DECODE" in error
    assert not (tmp_path / "out" / "pictures.zarr").exists()


def test_too_many_failures_are_exit_3_with_a_finished_store(finished, tmp_path, capsys):
    path = write_run(tmp_path, dataset={"url": str(finished / "pictures"), "kind": "images"})
    assert main(["run", path, "max_failed=0.1"]) == 3
    error = capsys.readouterr().err
    assert "2 of 13 samples have no usable row" in error
    assert "retry" not in error  # both were rejected: they have no row to fit again
    assert error.strip().endswith(f"run {path} max_failed=0.1 max_failed=0.16")
    assert main(["run", path, "max_failed=0.1", "max_failed=0.16"]) == 0
    assert store.verify(objects(tmp_path)).ok


def test_poisoned_unit_leaves_the_rest_fitted_and_its_traceback(
    finished, tmp_path, capsys, monkeypatch
):
    path = write_run(tmp_path, dataset={"url": str(finished / "pictures"), "kind": "images"})
    fit = stages.Fitter.fit

    def poisoned(self, unit, generation, attempt=None):
        if unit == 1:
            raise ArithmeticError(f"poison of unit 1, and {SECRET}")
        return fit(self, unit, generation, attempt)

    monkeypatch.setattr(stages.Fitter, "fit", poisoned)
    assert main(["run", path]) == 5
    captured = capsys.readouterr()
    assert "fit: 1 units were given up: 1" in captured.err
    assert "continue with: fieldmill run" in captured.err
    assert sum(line.startswith("fit ") for line in captured.out.splitlines()) == 2
    (note,) = (tmp_path / "out" / "pictures.zarr" / "_fieldmill" / "tracebacks").iterdir()
    assert "poison of unit 1, and <AWS_SECRET_ACCESS_KEY>" in note.read_text()
    assert SECRET not in captured.out + captured.err
    monkeypatch.setattr(stages.Fitter, "fit", fit)
    assert main(["run", path]) == 0
    assert store.store_hash(objects(tmp_path)) == store.store_hash(objects(finished))


def test_nothing_written_or_printed_holds_the_secret(finished, capsys):
    for words in (["plan"], ["status"], ["config", "show"], ["report"]):
        assert main([*words, str(finished / "run.yaml")]) == 0
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err
    for path in finished.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_with_its_code_and_the_next_run_goes_on(
    finished, tmp_path, capsys, monkeypatch, number, code
):
    path = write_run(tmp_path, dataset={"url": str(finished / "pictures"), "kind": "images"})
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    say = text.say

    def say_and_stop(line: str = "") -> None:
        say(line)
        if line.startswith("fit 2"):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(text, "say", say_and_stop)
    assert main(["run", path]) == code
    assert "continue with: fieldmill run" in capsys.readouterr().err
    state = store.progress(objects(tmp_path), store.load_plan(objects(tmp_path)))
    assert len(state.published) == 2
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.setattr(text, "say", say)
    assert main(["run", path]) == 0
    assert store.store_hash(objects(tmp_path)) == store.store_hash(objects(finished))


def test_reader_that_goes_away_is_no_bug(finished):
    done = subprocess.run(
        f"{sys.executable} -m jobs.cli methods siren | head -1",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "bug" not in done.stderr


def test_point_clouds_are_prepared_though_no_method_fits_them_yet(tmp_path, capsys):
    import numpy as np

    clouds = tmp_path / "clouds"
    clouds.mkdir()
    points = np.random.default_rng(0).normal(size=(400, 6))
    points[:, 3:] /= np.linalg.norm(points[:, 3:], axis=1, keepdims=True)
    np.savetxt(clouds / "with normals.xyz", points)
    np.savez(clouds / "without.npz", points=points[:, :3])
    (clouds / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 9\n")
    changes = {"dataset": {"url": str(clouds), "kind": "points"}, "ingest": {"surface": 200}}
    path = write_run(tmp_path, **changes)
    assert main(["run", path]) == 2
    assert "fits images, audio and video, not points" in capsys.readouterr().err
    assert main(["ingest", path]) == 0
    assert "prepared: 2 samples (2 accepted, 1 rejected)" in capsys.readouterr().out
