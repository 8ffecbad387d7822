"""Whatever dies, whenever: running again ends in the store of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage import Objects, StorageError, open_objects
from pipeline.store import (
    StagingGone,
    create_store,
    finalize,
    open_arrays,
    progress,
    publish_unit,
    repair,
    retry_rows,
    store_hash,
    verify,
    write_unit,
)
from pipeline.store import keys as names
from pipeline.store.records import is_published, read_commit
from schemas.base import Location
from tests.store.faults import Died, FaultyObjects
from tests.store.toy import ARRAYS, SHARED, drive, finished, fit_unit, make_plan, result_of

PLAN = make_plan(arrays=ARRAYS[:2] + ARRAYS[3:])


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return finished(Location(url="memory://undisturbed/store"), PLAN)


def operations(location: Location) -> int:
    counting = FaultyObjects(open_objects(location))
    drive(counting, PLAN)
    return len(counting.calls)


def die_and_resume(location: Location, step: int, when: str) -> str:
    """A run that dies at an operation, then another process that runs the same command."""
    with pytest.raises(Died):
        drive(FaultyObjects(open_objects(location), step, when), PLAN)
    return drive(open_objects(location), PLAN)


@pytest.mark.parametrize("when", ["before", "after"])
def test_death_at_every_operation(memory, undisturbed, when):
    steps = operations(memory("count"))
    assert steps > 100
    for step in range(steps):
        location = memory(f"{step}")
        assert die_and_resume(location, step, when) == undisturbed, f"operation {step}"
    assert verify(open_objects(location), full=True).ok


def test_death_at_every_operation_on_local_files(local, undisturbed):
    for step in range(0, operations(local("count")), 3):
        location = local(f"{step}")
        assert die_and_resume(location, step, "after") == undisturbed, f"operation {step}"
        assert verify(open_objects(location), full=True).ok


@pytest.mark.s3
def test_death_at_every_kind_of_operation_on_s3(s3, undisturbed):
    counting = FaultyObjects(open_objects(s3("count")))
    drive(counting, PLAN)
    seen: dict[str, list[int]] = {}
    for step, (name, key) in enumerate(counting.calls):
        kind = f"{name} {key if isinstance(key, str) else key[0]}".translate(DIGITS)
        seen.setdefault(kind.split("/c")[0], []).append(step)
    steps = sorted(found[len(found) // 2] for found in seen.values())
    assert len(steps) >= 20
    for step in steps:
        assert die_and_resume(s3(f"{step}"), step, "after") == undisturbed, counting.calls[step]


DIGITS = str.maketrans("", "", "0123456789abcdef-")


def test_death_twice_while_resuming(memory, undisturbed):
    chance = random.Random(0)
    for trial in range(20):
        location = memory(f"{trial}")
        for _ in range(3):
            step, when = chance.randrange(110), chance.choice(["before", "after"])
            try:
                drive(FaultyObjects(open_objects(location), step, when), PLAN)
            except Died:
                continue
        assert finished(location, PLAN) == undisturbed


def test_second_run_writes_nothing(anywhere, undisturbed):
    location = anywhere("o")
    assert finished(location, PLAN) == undisturbed
    again = FaultyObjects(open_objects(location))
    assert drive(again, PLAN) == undisturbed
    assert not {"put", "create", "copy", "delete"} & set(again.counts), again.counts


LOOP = """
import sys, time
from pipeline.storage import open_objects
from schemas.base import Location
from tests.store.toy import drive, make_plan, ARRAYS
from tests.store.faults import FaultyObjects

class Slow(FaultyObjects):
    def _do(self, name, key, *args, **options):
        time.sleep(0.004)
        return super()._do(name, key, *args, **options)

print("ready", flush=True)
location = Location.model_validate_json(sys.argv[1])
drive(Slow(open_objects(location)), make_plan(arrays=ARRAYS[:2] + ARRAYS[3:]))
"""


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_sigkill_of_a_real_process(request, undisturbed, place):
    location = request.getfixturevalue(place)("killed")
    chance, killed = random.Random(1), 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, location.model_dump_json()],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        process.stdout.readline()
        time.sleep(chance.uniform(0.05, 0.5))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if killed == 4:
            break
    assert killed
    assert finished(location, PLAN) == undisturbed
    report = verify(open_objects(location), full=True)
    assert report.ok, report


def committed_not_copied(objects: Objects) -> None:
    """Unit 1 dies right after its commit record was created; unit 0 and 2 are published."""
    create_store(objects, PLAN, SHARED)
    fit_unit(objects, PLAN, 0)
    fit_unit(objects, PLAN, 2)
    with pytest.raises(Died):
        fit_unit(FaultyObjects(objects, 0, "before", only=("copy",)), PLAN, 1)
    assert read_commit(objects, 1, 0) is not None


def test_killed_between_commit_and_copy(anywhere, undisturbed):
    objects = open_objects(anywhere("o"))
    committed_not_copied(objects)
    state = progress(objects, PLAN)
    assert (state.to_fit, state.to_publish, state.published) == ([], [(1, 0)], {0: 0, 2: 0})
    with pytest.raises(RuntimeError, match="not complete: 0 of 3 units"):
        finalize(objects, PLAN)
    assert drive(objects, PLAN) == undisturbed
    assert list(objects.list(names.STAGING)) == []


def test_committed_but_staging_deleted_is_fitted_anew(anywhere, undisturbed):
    objects = open_objects(anywhere("o"))
    committed_not_copied(objects)
    for entry in list(objects.list(names.STAGING)):
        objects.delete(entry.key)
    with pytest.raises(StagingGone, match=r"unit 1 was committed .* run the same command again"):
        publish_unit(objects, PLAN, 1, 0)
    assert progress(objects, PLAN).to_fit == [(1, 1)]
    assert drive(objects, PLAN) == undisturbed
    assert progress(objects, PLAN).published == {0: 0, 1: 1, 2: 0}


def test_published_by_another_while_staging_went(memory, undisturbed):
    """Copied and cleared by another process, but its marker was lost: the bytes are looked at."""
    objects = open_objects(memory("o"))
    drive(objects, PLAN)
    objects.delete(names.record_key(names.PUBLISHED, 1, 0))
    assert progress(objects, PLAN).to_publish == [(1, 0)]
    assert drive(objects, PLAN) == undisturbed


def store_with_broken_record(objects: Objects, damage: bytes | None) -> None:
    """Unit 1 was fitted with other values; its record is replaced, or cut short (None)."""
    create_store(objects, PLAN, SHARED)
    fit_unit(objects, PLAN, 1, shift=5.0)
    key = names.record_key(names.COMMITS, 1, 0)
    objects.put(key, objects.get(key)[:-3] if damage is None else damage)


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_unit_with_a_broken_commit_record_is_fitted_anew(memory, undisturbed, damage):
    objects = open_objects(memory("o"))
    store_with_broken_record(objects, damage)
    objects.delete(names.record_key(names.PUBLISHED, 1, 0))
    assert (1, 1) in progress(objects, PLAN).to_fit
    assert drive(objects, PLAN) == undisturbed
    assert progress(objects, PLAN).published[1] == 1


@pytest.mark.parametrize("damage", [b"garbage", None])
def test_record_that_broke_after_publication_is_named_and_repaired(memory, undisturbed, damage):
    objects = open_objects(memory("o"))
    store_with_broken_record(objects, damage)
    with pytest.raises(RuntimeError, match=r"records of units \[1\] are damaged"):
        drive(objects, PLAN)
    report = verify(objects)
    assert report.units == [1]
    assert repair(objects, report).to_fit == [(1, 1)]
    assert drive(objects, PLAN) == undisturbed


def test_zero_length_published_marker_is_written_again(memory, undisturbed):
    objects = open_objects(memory("o"))
    drive(objects, PLAN)
    objects.put(names.record_key(names.PUBLISHED, 0, 0), b"")
    assert progress(objects, PLAN).to_publish == [(0, 0)]
    assert drive(objects, PLAN) == undisturbed
    assert is_published(objects, 0, 0)


class Paused(FaultyObjects):
    """Waits before its first copy until told to go on."""

    def __init__(self, inner: Objects):
        super().__init__(inner)
        self.waiting, self.go = threading.Event(), threading.Event()

    def copy(self, source, target):
        self.waiting.set()
        assert self.go.wait(20)
        return super().copy(source, target)


def zombie(objects: Objects) -> tuple[Paused, ThreadPoolExecutor, object]:
    """A worker that has committed unit 1 and stands still before it copies."""
    create_store(objects, PLAN, SHARED)
    paused, pool = Paused(objects), ThreadPoolExecutor(1)
    writing = pool.submit(fit_unit, paused, PLAN, 1, shift=7.0)
    assert paused.waiting.wait(20)
    return paused, pool, writing


def test_zombie_copier_after_the_next_generation(anywhere, undisturbed):
    """Its staging was cleared, the unit was fitted anew: it must not touch the new shards."""
    objects = open_objects(anywhere("o"))
    paused, pool, writing = zombie(objects)
    for entry in list(objects.list(names.STAGING)):
        objects.delete(entry.key)
    assert drive(objects, PLAN) == undisturbed
    paused.go.set()
    with pool, pytest.raises(StagingGone):
        writing.result(20)
    assert verify(objects, full=True).ok
    assert store_hash(objects) == undisturbed


def test_zombie_copier_after_publication_and_retry(anywhere, undisturbed):
    """Another process published generation 0 and died before clearing; then rows were retried."""
    objects = open_objects(anywhere("o"))
    paused, pool, writing = zombie(objects)
    with pytest.raises(Died):
        publish_unit(FaultyObjects(objects, 0, only=("delete",)), PLAN, 1, 0)
    assert list(objects.list(names.STAGING))
    for unit in (0, 2):
        fit_unit(objects, PLAN, unit)
    retry_rows(objects, PLAN, range(4, 8))
    assert drive(objects, PLAN) == undisturbed
    paused.go.set()
    with pool, pytest.raises(StagingGone):
        writing.result(20)
    assert verify(objects, full=True).ok


class LateCopy(FaultyObjects):
    """A copy that the server carries out only after the next generation was published."""

    def __init__(self, inner: Objects, meanwhile):
        super().__init__(inner)
        self.meanwhile = meanwhile

    def copy(self, source, target):
        data = self.inner.get(source)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        self.inner.put(target, data)


def test_copy_that_lands_after_the_next_generation_is_noticed(memory, undisturbed):
    objects = open_objects(memory("o"))
    create_store(objects, PLAN, SHARED)
    fit_unit(objects, PLAN, 0)
    fit_unit(objects, PLAN, 2)

    def meanwhile():
        publish_unit(objects, PLAN, 1, 0)
        retry_rows(objects, PLAN, range(4, 8))
        assert drive(objects, PLAN) == undisturbed

    fit_unit(LateCopy(objects, meanwhile), PLAN, 1, shift=7.0)
    assert not verify(objects, full=True).ok
    assert progress(objects, PLAN).to_fit == [(1, 2)]  # so that the next run mends it
    assert drive(objects, PLAN) == undisturbed
    assert verify(objects, full=True).ok


def test_two_publishers_at_once(anywhere, undisturbed):
    objects = open_objects(anywhere("o"))
    committed_not_copied(objects)
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(publish_unit, objects, PLAN, 1, 0) for _ in range(4)]
        assert all(each.result() for each in done)
    assert drive(objects, PLAN) == undisturbed


def test_racing_attempts_with_different_bytes_never_mix(anywhere):
    plan = make_plan((24,), 4, ARRAYS[:2] + ARRAYS[3:])
    location = anywhere("o")
    objects = open_objects(location)
    create_store(objects, plan, SHARED)

    def attempt(number: int):
        mine = open_objects(location)
        order = list(range(plan.units))
        random.Random(number).shuffle(order)
        return {u: fit_unit(mine, plan, u, shift=float(number)).won for u in order}

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(attempt, [1, 2, 3]))
    assert all(sum(each[unit] for each in won) == 1 for unit in range(plan.units))
    finalize(objects, plan)
    assert verify(objects, full=True).ok
    reader = open_arrays(location)
    psnr = reader.index["psnr"].to_numpy()
    for unit in range(plan.units):
        rows = np.arange(*plan.unit_range(unit))
        winner = next(n + 1 for n in range(3) if won[n][unit])
        wanted = result_of(plan, rows, shift=float(winner))
        for name in ("params", "latents/code"):
            np.testing.assert_array_equal(reader.array(name, rows), wanted.arrays[name])
        np.testing.assert_array_equal(psnr[rows], wanted.columns["psnr"].to_numpy())
    assert list(objects.list(names.STAGING)) == []


class LostAnswer(FaultyObjects):
    """The first commit is made, but its answer is lost and the request is sent once more."""

    def create(self, key, data):
        if names.COMMITS in key and not self.dead:
            self.dead = True
            self.inner.create(key, data)
            self.dead = False
            self.lost = getattr(self, "lost", 0) + 1
        return super().create(key, data)


def test_lost_answer_of_the_commit(anywhere, undisturbed):
    objects = open_objects(anywhere("o"))
    losing = LostAnswer(objects)
    create_store(objects, PLAN, SHARED)
    for unit in range(PLAN.units):
        assert fit_unit(losing, PLAN, unit).won
    assert losing.lost == PLAN.units
    assert drive(objects, PLAN) == undisturbed


def test_storage_errors_pass_through_and_a_rerun_continues(memory, undisturbed):
    class Flaky(FaultyObjects):
        failed = False

        def put(self, key, data):
            if key.startswith(names.STAGING) and not self.failed:
                self.failed = True
                raise StorageError("503 slow down")
            return super().put(key, data)

    objects = open_objects(memory("o"))
    flaky = Flaky(objects)
    with pytest.raises(StorageError, match="slow down"):
        drive(flaky, PLAN)
    assert drive(objects, PLAN) == undisturbed


def test_results_that_do_not_fit_are_refused_before_anything_is_written(memory):
    objects = open_objects(memory("o"))
    create_store(objects, PLAN, SHARED)
    counting = FaultyObjects(objects)
    rows = np.arange(4)
    nan = result_of(PLAN, rows)
    nan.arrays["params"][2, 7] = np.nan
    with pytest.raises(ValueError, match=r"row 2 \('folder/ä 2.png'\) is usable but 'params'"):
        write_unit(counting, PLAN, 0, 0, nan, "a")
    with pytest.raises(ValueError, match="unit 2 has rows 8:10, the columns have 4 lines"):
        write_unit(counting, PLAN, 2, 0, result_of(PLAN, rows), "a")
    short = result_of(PLAN, rows)
    del short.arrays["params"]
    with pytest.raises(ValueError, match="the plan's arrays are"):
        write_unit(counting, PLAN, 0, 0, short, "a")
    wrong = result_of(PLAN, rows)
    wrong.arrays["params"] = wrong.arrays["params"].astype("f8")
    with pytest.raises(ValueError, match="'params' is float64"):
        write_unit(counting, PLAN, 0, 0, wrong, "a")
    assert not counting.calls
