"""The map over workers: nothing is lost when workers die, raise or never start."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from jobs.pool import RayPool
from jobs.units import Done, LocalPool, Quarantined, Stop, Stopped, Task, WorldError
from pipeline.storage import StorageError
from schemas.run import Resources


def make_worker() -> type:
    """A worker that notes each try in a folder; defined inside so that Ray sends it by value."""

    class Noting:
        def __init__(self, folder: str, behaviour: dict[int, str], seconds: float = 0.05):
            self.folder, self.behaviour, self.seconds = folder, behaviour, seconds

        def check(self) -> None:
            if not os.path.isdir(self.folder):
                raise RuntimeError(f"{self.folder} is not the same place on every node")

        def work(self, task, attempt: str) -> dict:
            import pathlib

            tries = pathlib.Path(self.folder, str(task.unit))
            tries.mkdir(exist_ok=True)
            tries.joinpath(attempt).write_text(str(os.getpid()))
            number = len(list(tries.iterdir()))
            time.sleep(self.seconds)
            what = self.behaviour.get(task.unit, "")
            if what == "no storage" and number <= 3:
                raise StorageError("s3://bucket: the server cannot be reached")
            if what == "raise" or (what == "raise once" and number == 1):
                raise ArithmeticError(f"unit {task.unit} is poisoned")
            if what == "die" or (what == "die once" and number == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return {"unit": task.unit, "pid": os.getpid(), "attempt": attempt}

    return Noting


def tries(folder: Path) -> Counter[int]:
    return Counter({int(unit.name): len(list(unit.iterdir())) for unit in folder.iterdir()})


def ray_map(folder: Path, behaviour: dict[int, str], units: int, **options) -> list:
    resources = Resources(retries=options.pop("retries", 5), start_s=options.pop("start_s", 60))
    size = options.pop("size", 3)
    args = (str(folder), behaviour, options.pop("seconds", 0.05))
    stop = options.pop("stop", Stop())
    with RayPool(make_worker(), args, resources, stop, size=size, pause_s=0.1) as pool:
        return list(pool.map([Task(unit) for unit in range(units)]))


def test_local_pool_tries_a_raising_unit_twice_and_goes_on(tmp_path):
    pool = LocalPool(make_worker(), (str(tmp_path), {1: "raise once", 2: "raise"}, 0.0), Stop())
    with pool:
        events = list(pool.map([Task(unit) for unit in range(4)]))
    assert [type(e) for e in events] == [Done, Done, Quarantined, Done]
    assert tries(tmp_path) == {0: 1, 1: 2, 2: 2, 3: 1}
    assert "unit 2 is poisoned" in events[2].traceback
    assert "Traceback" in events[2].traceback


def test_local_pool_stops_when_nothing_works(tmp_path):
    behaviour = dict.fromkeys(range(100), "raise")
    with (
        LocalPool(make_worker(), (str(tmp_path), behaviour, 0.0), Stop()) as pool,
        pytest.raises(WorldError, match=r"10 units in a row failed.*poisoned"),
    ):
        list(pool.map([Task(unit) for unit in range(100)]))
    assert len(tries(tmp_path)) == 10


@pytest.mark.ray
def test_every_unit_is_done_once_on_more_than_one_node(ray_nodes, tmp_path):
    events = ray_map(tmp_path, {}, 13)
    assert sorted(e.task.unit for e in events) == list(range(13))
    assert all(isinstance(e, Done) for e in events)
    assert tries(tmp_path) == dict.fromkeys(range(13), 1)
    assert len({e.record["pid"] for e in events}) == 3


@pytest.mark.ray
def test_killed_worker_is_replaced_and_only_its_unit_is_repeated(ray_nodes, tmp_path):
    events = ray_map(tmp_path, {3: "die once"}, 10)
    assert sorted(e.task.unit for e in events) == list(range(10))
    assert all(isinstance(e, Done) for e in events)
    counted = tries(tmp_path)
    assert counted[3] == 2
    assert counted.total() <= 12  # the unit that was waiting behind it may have begun


@pytest.mark.ray
def test_unit_that_raises_goes_to_another_worker_and_is_then_quarantined(ray_nodes, tmp_path):
    events = ray_map(tmp_path, {2: "raise", 5: "raise once"}, 9)
    bad = [e for e in events if isinstance(e, Quarantined)]
    assert [e.task.unit for e in bad] == [2]
    assert bad[0].cause == "application"
    assert "ArithmeticError: unit 2 is poisoned" in bad[0].traceback
    assert sorted(e.task.unit for e in events) == list(range(9))
    pids = {p.read_text() for p in (tmp_path / "2").iterdir()}
    assert len(pids) == 2
    assert tries(tmp_path).total() == 11


@pytest.mark.ray
def test_unit_that_kills_its_workers_is_quarantined_alone(ray_nodes, tmp_path):
    events = ray_map(tmp_path, {4: "die"}, 8, retries=2)
    bad = [e for e in events if isinstance(e, Quarantined)]
    assert [(e.task.unit, e.cause) for e in bad] == [(4, "machine")]
    assert tries(tmp_path)[4] in (3, 4)  # one more when it first died beside another unit
    assert sorted(e.task.unit for e in events) == list(range(8))


@pytest.mark.ray
def test_storage_that_fails_for_a_while_costs_a_unit_nothing_but_time(ray_nodes, tmp_path):
    events = ray_map(tmp_path, {1: "no storage"}, 4)
    assert all(isinstance(e, Done) for e in events)
    assert tries(tmp_path) == {0: 1, 1: 4, 2: 1, 3: 1}
    (tmp_path / "again").mkdir()
    events = ray_map(tmp_path / "again", {1: "no storage"}, 4, retries=1)
    (bad,) = (e for e in events if isinstance(e, Quarantined))
    assert bad.cause == "machine"
    assert "storage failed 2 times on this unit" in bad.traceback


@pytest.mark.ray
def test_folder_that_a_worker_does_not_see_is_refused_before_the_first_unit(ray_nodes, tmp_path):
    with pytest.raises(WorldError, match="not the same place on every node"):
        ray_map(tmp_path / "elsewhere", {}, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_workers_that_cannot_start_end_the_wait_with_the_reason(ray_nodes, tmp_path):
    resources = Resources(cores=64, start_s=1.5)
    pool = RayPool(make_worker(), (str(tmp_path), {}), resources, Stop(), size=2)
    with pytest.raises(WorldError, match="each wants 64 CPU and 0 GPU, the cluster has 4 CPU"):
        pool.__enter__()


@pytest.mark.ray
def test_more_workers_than_room_still_finish(ray_nodes, tmp_path):
    events = ray_map(tmp_path, {}, 9, size=7)
    assert sorted(e.task.unit for e in events) == list(range(9))
    assert tries(tmp_path).total() == 9


@pytest.mark.ray
def test_stop_lets_running_units_end_and_hands_out_no_more(ray_nodes, tmp_path):
    stop, seen = Stop(), []
    args = (str(tmp_path), {}, 0.5)
    with RayPool(make_worker(), args, Resources(), stop, size=2) as pool:
        threading.Timer(0.7, lambda: stop.handle(signal.SIGTERM, None)).start()
        with pytest.raises(Stopped) as caught:
            seen.extend(pool.map([Task(unit) for unit in range(40)]))
    assert caught.value.number == signal.SIGTERM
    assert 0 < len(seen) <= 10
    assert len(tries(tmp_path)) == len(seen)  # nothing was begun and dropped
