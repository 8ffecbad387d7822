"""Runs on a Ray cluster of several nodes: drivers and workers are killed, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.pool import RayPool
from jobs.units import Stop, WorldError
from jobs.workers import IngestWorker
from pipeline import store
from pipeline.storage import open_objects
from schemas.base import Location
from schemas.run import Resources, Run
from tests.jobs.pictures import write_pictures, write_run

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
SLOW = {"name": "siren", "width": 32, "depth": 3, "steps": 150, "target_psnr": None}


def objects(folder: Path):
    return open_objects(Location(url=str(folder / "out" / "pictures.zarr")))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)


def published(folder: Path) -> int:
    place = folder / "out" / "pictures.zarr" / "_fieldmill" / "published"
    return len(list(place.iterdir())) if place.exists() else 0


def reached(folder: Path, driver: subprocess.Popen, units: int) -> bool:
    """Whether so many units are published, or the driver has ended before."""
    return published(folder) >= units or driver.poll() is not None


def worker_processes(name: str) -> list[int]:
    """Processes of actors of a class, from their titles."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::" + name.encode()):
                found.append(int(entry.name))
    return found


def driver_command(path: str, *words: str) -> list[str]:
    """`fieldmill run` as the installed command is started: without the current folder."""
    return [sys.executable, "-P", "-m", "jobs.cli", "run", path, *words]


def foreign_folder(folder: Path) -> Path:
    """A folder with packages of our names that are not ours."""
    for name in ("pipeline", "jobs", "schemas"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('somebody else')\n")
    return folder


def test_killed_driver_and_killed_worker_do_not_change_the_store(ray_nodes, tmp_path, capfd):
    write_pictures(tmp_path / "pictures", count=16)
    path = write_run(
        tmp_path, method=SLOW, fit={"unit_rows": 1, "lanes": 2}, resources={"workers": 2}
    )
    elsewhere = foreign_folder(tmp_path / "elsewhere")
    for number, code, units in ((signal.SIGTERM, 143, 1), (signal.SIGKILL, -signal.SIGKILL, 6)):
        driver = subprocess.Popen(
            driver_command(path),
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray_nodes.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for(lambda units=units, driver=driver: reached(tmp_path, driver, units))
            driver.send_signal(number)
            out = driver.communicate(timeout=90)[0]
        finally:
            driver.kill()
        assert driver.returncode == code, out
        assert published(tmp_path) < 16, out
        assert ("continue with: fieldmill run" in out) == (number == signal.SIGTERM)
    wait_for(lambda: not worker_processes("FitWorker"))  # nobody owns them any more
    done_before = published(tmp_path)

    def kill_one() -> None:
        wait_for(lambda: published(tmp_path) > done_before)
        os.kill(worker_processes("FitWorker")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert main(["run", path, "resources.workers=3", "resources.retries=9"]) == 0
    killer.join()
    out = capfd.readouterr().out
    assert "ingest 1/" not in out  # that was done
    assert store.verify(objects(tmp_path), full=True).ok

    alone = tmp_path / "alone"
    alone.mkdir()
    path = write_run(
        alone,
        dataset={"url": str(tmp_path / "pictures"), "kind": "images"},
        method=SLOW,
        fit={"unit_rows": 1, "lanes": 2},
    )
    assert main(["run", path]) == 0
    assert store.store_hash(objects(alone)) == store.store_hash(objects(tmp_path))
    place = str(tmp_path / "out" / "pictures.zarr")
    assert main(["verify", place, "--full", "--workers", "2"]) == 0
    assert "compared all bytes" in capfd.readouterr().out


def test_folder_that_is_another_one_on_a_node_is_refused(ray_nodes, tmp_path):
    """A node whose path leads to its own disk: here the worker is sent to a folder of its own."""
    values = {
        "name": "x",
        "dataset": {"url": str(tmp_path), "kind": "images"},
        "method": {"name": "siren"},
        "resources": {"start_s": 60},
    }
    mine = Run(store=str(tmp_path / "mine.zarr"), **values)
    theirs = Run(store=str(tmp_path / "theirs.zarr"), **values)
    here, there = (open_objects(run.prepared_location) for run in (mine, theirs))
    with store.leave_nonce(here) as nonce, store.leave_nonce(there):
        args = (theirs.model_dump_json(), nonce, "")
        pool = RayPool(IngestWorker, args, Resources(), Stop(), size=2)
        with pytest.raises(WorldError, match="is not the same place on every node"):
            pool.__enter__()
        args = (mine.model_dump_json(), nonce, '["only the driver has this", false]')
        pool = RayPool(IngestWorker, args, Resources(), Stop(), size=1)
        with pytest.raises(WorldError, match="'only the driver has this' is missing"):
            pool.__enter__()


def test_submitted_job_runs_once_and_carries_its_exit_code(ray_nodes, tmp_path, capfd):
    write_pictures(tmp_path / "pictures", count=5)
    path = write_run(tmp_path, resources={"workers": 2}, fit={"unit_rows": 2, "lanes": 2})
    words = [
        "submit",
        path,
        "--address",
        f"http://{ray_nodes.webui_url}",
        "--python",
        sys.executable,
    ]
    assert main(words) == 2
    error = capfd.readouterr().err
    assert "dataset: '" in error
    assert "is a local path, which nodes of a cluster do not share" in error
    os.environ["AWS_SECRET_ACCESS_KEY"] = "planted/Secret+Key0123456789"
    try:
        assert main([*words, "--shared-filesystem", "--follow"]) == 0
        assert main([*words, "--shared-filesystem", "--no-wait"]) == 0
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]
    captured = capfd.readouterr()
    assert "submitted" in captured.out
    assert "fit 3/3" in captured.out
    assert "was submitted before" in captured.out
    for secret in (os.environ["RAY_AUTH_TOKEN"], "planted/Secret+Key0123456789"):
        assert secret not in captured.out + captured.err
    assert store.verify(objects(tmp_path), full=True).ok
    assert main([*words, "--shared-filesystem", "method.steps=7"]) == 2  # the store is another's
    captured = capfd.readouterr()
    assert "method.steps was 6, is 7" in captured.out
    assert "ended with exit code 2" in captured.err
