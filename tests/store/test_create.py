"""Creating, joining and growing a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.storage import open_objects
from pipeline.store import (
    create_store,
    discard_store,
    extend_store,
    finalize,
    load_plan,
    open_arrays,
    progress,
    store_hash,
    verify,
)
from schemas.store import ArraySpec, ColumnSpec, RowStatus, Segment
from tests.store.faults import FaultyObjects
from tests.store.toy import ARRAYS, SHARED, drive, finished, fit_unit, make_plan, values_of


def test_race_of_sixteen_creates_ends_in_one_plan(anywhere):
    """Equal keys, another unit size each: all join the first one's plan."""
    location = anywhere("o")
    plans = [make_plan(unit_rows=1 + i) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        standing = list(
            pool.map(lambda plan: create_store(open_objects(location), plan, SHARED), plans)
        )
    assert all(plan == standing[0] for plan in standing)
    objects = open_objects(location)
    assert load_plan(objects) == standing[0]
    reference = open_objects(anywhere("reference"))
    assert drive(objects, standing[0]) == drive(reference, standing[0])


def test_joining_writes_nothing_and_keeps_the_standing_plan(memory):
    objects = open_objects(memory("o"))
    first = create_store(objects, make_plan(unit_rows=4), SHARED)
    counting = FaultyObjects(objects)
    assert create_store(counting, make_plan(unit_rows=2), SHARED) == first
    assert not {"put", "create"} & set(counting.counts)


def test_another_run_is_refused_with_the_keys_that_differ(memory):
    objects = open_objects(memory("o"))
    create_store(objects, make_plan(keys={"method": {"name": "siren", "width": 64}}), SHARED)
    other = make_plan(keys={"method": {"name": "siren", "width": 32}, "seed": 1})
    with pytest.raises(ValueError, match="holds rows of another run") as caught:
        create_store(objects, other, SHARED)
    text = str(caught.value)
    assert "method.width was 64, is 32" in text
    assert "seed was not set, is 1" in text
    assert "--replace" in text
    assert "name" not in text


def test_shared_arrays_must_be_those_of_the_plan_and_of_the_store(memory):
    objects = open_objects(memory("o"))
    with pytest.raises(ValueError, match="values were given for"):
        create_store(objects, make_plan(), {})
    wrong = {**SHARED, "scale": np.float64(0.5)}
    with pytest.raises(ValueError, match="shared 'scale' is float64"):
        create_store(objects, make_plan(), wrong)
    assert load_plan(objects) is None
    assert list(objects.list()) == []
    create_store(objects, make_plan(), SHARED)
    objects.delete("_fieldmill/plans/0000.json")
    with pytest.raises(ValueError, match=r"\['shared/scale/c'\] differ"):
        create_store(objects, make_plan(), {**SHARED, "scale": np.float32(2)})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"columns": (ColumnSpec(name="params", dtype="int32", description=""),)}, "twice"),
        ({"columns": (ColumnSpec(name="latents", dtype="int32", description=""),)}, "be named"),
        ({"arrays": (ArraySpec(name="params", shape=(3,), dims=()),)}, "but dims"),
        ({"arrays": (ArraySpec(name="params", shape=(0,), dims=("p",)),)}, "holds nothing"),
        ({"arrays": (ArraySpec(name="params", shape=(2**31,), dims=("p",)),)}, "fit.unit_rows"),
        ({"arrays": (ArraySpec(name="shared/a", shape=(), dims=()),)}, "shared arrays"),
        ({"segments": (Segment(prepared=0, store=2, rows=8),)}, "multiple of unit_rows"),
        ({"segments": (Segment(prepared=0, store=0, rows=3),)}, "end at row 3"),
    ],
)
def test_plans_that_cannot_be_laid_out_are_refused(memory, change, complaint):
    objects = open_objects(memory("o"))
    plan = make_plan(arrays=ARRAYS[:1]).model_copy(update=change)
    with pytest.raises(ValueError, match=complaint):
        create_store(objects, plan, {})
    assert list(objects.list()) == []


def test_growth_starts_at_a_shard_boundary_and_moves_nothing(anywhere):
    location = anywhere("o")
    objects = open_objects(location)
    old = finished(location, make_plan((10,)))
    before = {e.key: objects.get(e.key) for e in objects.list() if "/c/" in e.key}
    grown = make_plan((10, 3, 6))
    assert extend_store(objects, grown) == grown
    assert grown.rows == 22
    assert [grown.unit_range(u) for u in range(6)] == [
        (0, 4), (4, 8), (8, 10), (12, 15), (16, 20), (20, 22),
    ]  # fmt: skip
    # until it is finalized, readers see what was there
    assert store_hash(objects) == old
    assert verify(objects, full=True).ok
    assert open_arrays(location).index.num_rows == 10
    state = progress(objects, grown)
    assert state.to_fit == [(3, 0), (4, 0), (5, 0)]
    fit_unit(objects, grown, 4)
    assert verify(objects, full=True).ok
    partial = open_arrays(location, partial=True)
    assert list(partial.rows()) == [*range(10), *range(16, 20)]
    for unit in (3, 5):
        fit_unit(objects, grown, unit)
    new = finalize(objects, grown).hash
    assert new != old
    for key, data in before.items():
        if key.startswith(("params/", "latents/", "shared/")):
            assert objects.get(key) == data
    reader = open_arrays(location)
    rows = reader.rows()
    assert list(rows) == [*range(10), 12, 13, 14, *range(16, 22)]
    np.testing.assert_array_equal(reader.params(rows), values_of(ARRAYS[0], rows))
    assert np.isnan(reader.params([10, 15])).all()  # padding
    assert verify(objects, full=True).ok
    assert new == finished(anywhere("at once"), grown)


def test_growth_that_changes_something_else_is_refused(memory):
    objects = open_objects(memory("o"))
    plan = make_plan((10,))
    with pytest.raises(ValueError, match="create it first"):
        extend_store(objects, plan)
    create_store(objects, plan, SHARED)
    assert extend_store(objects, plan) == plan
    with pytest.raises(ValueError, match="keeps 'lanes': the store has 4, the new plan 8"):
        extend_store(objects, make_plan((10, 3)).model_copy(update={"lanes": 8}))
    with pytest.raises(ValueError, match="rows where they are"):
        extend_store(objects, make_plan((8, 3)))
    moved = make_plan((10, 3)).model_copy(
        update={"segments": (plan.segments[0], Segment(prepared=10, store=10, rows=3)), "rows": 13}
    )
    with pytest.raises(ValueError, match="multiple of unit_rows"):
        extend_store(objects, moved)


def test_padding_is_absent_and_nameless_in_the_root_columns(memory):
    import zarr

    location = memory("o")
    finished(location, make_plan((10, 3)))
    root = zarr.open_group(open_objects(location).zarr(), mode="r")
    assert list(root["status"][10:12]) == [int(RowStatus.ABSENT)] * 2
    assert list(root["sample_id"][9:13]) == ["folder/ä 9.png", "", "", "folder/ä 12.png"]


def test_discarding_a_store_leaves_what_is_not_its_own(anywhere):
    location = anywhere("o")
    finished(location)
    objects = open_objects(location)
    objects.put("evaluations/one/zarr.json", b"{}")
    theirs = ("notes/mine.txt", "paramsx/c/0", "_fieldmill/train/abc/done.json")
    for key in theirs:
        objects.put(key, b"mine")
    discard_store(objects, keep=("_fieldmill/train/",))
    assert {entry.key for entry in objects.list()} == set(theirs)
    assert load_plan(objects) is None
    finished(location, make_plan(keys={"seed": 1}))
    assert verify(objects, full=True).ok
