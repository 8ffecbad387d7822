"""Reading rows for training: nothing lost, nothing twice, nothing read again, in any process."""

from __future__ import annotations

import logging
import os
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.downstream import shard_source
from pipeline.downstream.dataset import Row, RowDataset, RowStream
from pipeline.downstream.selection import select
from pipeline.storage import open_objects
from pipeline.store.layout import shard_key
from schemas.base import Location
from schemas.store import ArraySpec, RowStatus
from tests.store.toy import ARRAYS, finished, make_plan, values_of

LATENT = ARRAYS[1]


def rows_of(items) -> list[int]:
    return [int(r) for item in items for r in item.row.reshape(-1)]


def check(item: Row, spec: ArraySpec = LATENT) -> None:
    rows = item.row.reshape(-1).numpy()
    expected = values_of(spec, rows).reshape(item.values.shape)
    np.testing.assert_array_equal(item.values.numpy(), expected)
    assert item.label.reshape(-1).tolist() == [r % 3 for r in rows]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two segments of 30 and 13 rows in shards of 4; rows 5 and 6 failed."""
    url = str(tmp_path_factory.mktemp("stores") / "toy.zarr")
    finished(Location(url=url), make_plan((30, 13)), failed=(5, 6))
    return url


USABLE_ROWS = sorted({*range(30), *range(32, 45)} - {5, 6})


def test_a_selection_counts_what_it_leaves_out(store, caplog):
    with caplog.at_level(logging.WARNING, "fieldmill"):
        chosen = select(store, "code")
    assert chosen.rows.tolist() == USABLE_ROWS
    assert chosen.left_out == {"failed": 2}
    assert "2 of 43 rows left out: 2 failed" in caplog.text
    assert chosen.classes == ("class 0", "class 1", "class 2")


def test_rows_are_selected_by_label_and_metric(store):
    assert select(store, "code", label="class 1").rows.tolist() == [
        r for r in USABLE_ROWS if r % 3 == 1
    ]
    assert select(store, "code", where={"psnr": (40, 49.5)}).rows.tolist() == list(range(10, 20))
    with pytest.raises(ValueError, match=r"no column 'psmr'; did you mean 'psnr'"):
        select(store, "code", where={"psmr": (1, None)})
    with pytest.raises(ValueError, match=r"no row has split \['exam'\]; there are \['train'\]"):
        select(store, "code", split="exam")
    with pytest.raises(ValueError, match=r"no row has label \['class 9'\]; there are \['class 0'"):
        select(store, "code", label=["class 1", "class 9"])
    with pytest.raises(ValueError, match="failed have no values"):
        select(store, "code", status=(RowStatus.OK, RowStatus.FAILED))


def test_the_array_must_be_clear(store, tmp_path):
    assert select(store).source.spec.name == "latents/code"  # weights and whole numbers beside it
    url = str(tmp_path / "two.zarr")
    two = (*ARRAYS[1:2], LATENT.model_copy(update={"name": "latents/texture"}), *ARRAYS[3:])
    finished(Location(url=url), make_plan((10,), arrays=two))
    with pytest.raises(ValueError, match=r"holds latents/code, latents/texture; say which one"):
        select(url)
    with pytest.raises(ValueError, match="no array 'cod'; it holds params, latents/code"):
        select(store, "cod")


def test_whole_numbers_are_no_latents_to_choose_from(tmp_path, caplog):
    url = str(tmp_path / "cells.zarr")
    plan = make_plan((10,))
    cells = tuple(spec for spec in plan.arrays if spec.name != "params")
    finished(Location(url=url), plan.model_copy(update={"arrays": cells}))
    with caplog.at_level(logging.WARNING, "fieldmill"):
        chosen = select(url)
    assert chosen.source.spec.name == "latents/code"
    assert "latents/code_keys are left out: whole numbers say where codes are" in caplog.text
    assert select(url, "code_keys").source.spec.dtype == "int32"  # by name they are read


def test_weights_of_mixed_starts_are_refused_unless_told(store):
    with pytest.raises(ValueError, match=r"random weights of its own.*starts='any'"):
        RowDataset(store, "params")
    assert len(RowDataset(store, "params", starts="any")) == len(USABLE_ROWS)


def test_weights_of_a_common_start_are_read(local):
    plan = make_plan((6,))
    field = plan.field.model_copy(update={"init": {"start": "common/0", "seed": 0}})
    finished(local("c.zarr"), plan.model_copy(update={"field": field}))
    item = RowDataset(local("c.zarr"), "params")[3]
    np.testing.assert_array_equal(item.values, values_of(ARRAYS[0], np.array([3]))[0])


@pytest.mark.parametrize("array", ["params", "code", "code_keys"])
def test_random_access_reads_the_right_rows(store, array):
    dataset = RowDataset(store, array, starts="any")
    spec = next(s for s in ARRAYS if s.name.endswith(array))
    order = np.random.default_rng(0).permutation(len(dataset))
    for item in dataset.__getitems__(order.tolist()):
        check(item, spec)
    assert rows_of(dataset.__getitems__(order.tolist())) == [USABLE_ROWS[i] for i in order]
    assert int(dataset[-1].row) == USABLE_ROWS[-1]
    with pytest.raises(IndexError, match="position 41"):
        dataset[41]
    everything = dataset.load()
    check(everything, spec)
    assert everything.row.tolist() == USABLE_ROWS


def test_large_rows_cut_along_their_first_axis_are_read(local):
    """Rows above 4 MiB are stored as several chunks."""
    spec = ArraySpec(name="latents/grid", shape=(160, 64, 128), dims=("x", "y", "z"))
    plan = make_plan((3,), unit_rows=2, arrays=(spec, *ARRAYS[3:]))
    finished(local("grid.zarr"), plan)
    dataset = RowDataset(local("grid.zarr"))
    np.testing.assert_array_equal(dataset[2].values, values_of(spec, np.array([2]))[0])
    np.testing.assert_array_equal(dataset.load().values, values_of(spec, np.arange(3)))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 100])
def test_a_stream_gives_every_row_once(store, shuffle, batch_size):
    stream = RowStream(store, "code", shuffle=shuffle, batch_size=batch_size)
    items = list(stream)
    for item in items:
        check(item)
    assert sorted(rows_of(items)) == USABLE_ROWS
    assert (rows_of(items) == USABLE_ROWS) != shuffle
    assert len(items) == stream.steps()


def test_drop_last_drops_only_the_last(store):
    stream = RowStream(store, "code", batch_size=7, drop_last=True)
    assert [len(item.row) for item in stream] == [7] * 5 == [7] * stream.steps()


class Counted:
    def __init__(self, objects):
        self.objects, self.keys = objects, Counter()

    def get(self, key):
        self.keys[key] += 1
        return self.objects.get(key)


@pytest.fixture
def counted(store, monkeypatch):
    chosen = select(store, "code")
    client = Counted(open_objects(chosen.source.location))
    key = os.getpid(), chosen.source.location.model_dump_json()
    monkeypatch.setitem(shard_source._clients, key, client)
    return client.keys


def test_shuffled_reading_reads_each_shard_once(store, counted):
    list(RowStream(store, "code", batch_size=5))
    shards = {shard_key(LATENT, row // 4) for row in USABLE_ROWS}
    assert counted == Counter(dict.fromkeys(shards, 1))


def test_consumers_of_whole_shards_read_each_once(store, counted):
    seen = []
    for rank in range(3):
        seen += rows_of(RowStream(store, "code", rank=rank, world=3, even=False))
    assert sorted(seen) == USABLE_ROWS
    assert set(counted.values()) == {1}


@pytest.mark.parametrize("world", [2, 3, 50])
def test_even_consumers_get_equal_numbers(store, counted, world):
    parts = [rows_of(RowStream(store, "code", rank=r, world=world)) for r in range(world)]
    assert sorted(row for part in parts for row in part) == USABLE_ROWS
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sum(counted.values()) <= 12 + min(world - 1, len(USABLE_ROWS))


def test_even_ranks_take_equally_many_steps(store):
    options = {"world": 3, "batch_size": 4, "drop_last": True}
    steps = [len(list(RowStream(store, "code", rank=r, **options))) for r in range(3)]
    assert len(set(steps)) == 1
    assert steps[0] > 0


def test_order_depends_on_seed_epoch_and_pass(store):
    def order(seed=0, epoch=0, passes=1):
        stream = RowStream(store, "code", seed=seed)
        stream.set_epoch(epoch)
        return [rows_of(stream) for _ in range(passes)][-1]

    assert order() == order()
    assert len({tuple(o) for o in (order(), order(seed=1), order(epoch=1), order(passes=2))}) == 4


def test_windows_bound_what_is_held(store, monkeypatch):
    from pipeline.downstream import dataset

    monkeypatch.setattr(dataset, "WINDOW_BYTES", 2 * 4 * 12 * 4)  # two shards
    seen = rows_of(RowStream(store, "code"))
    units = [row // 4 for row in seen]
    for start in range(0, len(units) - 8, 8):
        assert len(set(units[start : start + 6])) <= 3
    assert sorted(seen) == USABLE_ROWS


def test_forked_workers_share_rows_after_use_in_the_parent(store):
    stream = RowStream(store, "code", batch_size=5)
    next(iter(stream))  # the parent has its client open
    loader = DataLoader(
        stream, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    items = list(loader)
    for item in items:
        check(item)
    assert sorted(rows_of(items)) == USABLE_ROWS
    assert len(items) == stream.steps(num_workers=2)


def test_map_style_loading_with_the_usual_collation(store):
    dataset = RowDataset(store, "code")
    dataset[0]
    loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=1, timeout=60)
    items = list(loader)
    assert all(isinstance(item, Row) for item in items)
    for item in items:
        check(item)
    assert sorted(rows_of(items)) == USABLE_ROWS


def test_persistent_workers_see_a_later_epoch(store):
    stream = RowStream(store, "code", shuffle=True, even=True)
    loader = DataLoader(
        stream, batch_size=None, num_workers=1, persistent_workers=True,
        multiprocessing_context="spawn", timeout=60,
    )  # fmt: skip
    torch.manual_seed(0)
    first = rows_of(loader)
    stream.set_epoch(5)
    torch.manual_seed(0)  # the same base seed: only the epoch differs
    assert rows_of(loader) != first


def test_a_damaged_shard_is_named_not_read(local):
    finished(local("d.zarr"), make_plan((10,)))
    objects = open_objects(local("d.zarr"))
    key = shard_key(LATENT, 1)
    data = bytearray(objects.get(key))
    data[30] ^= 1
    objects.put(key, bytes(data))
    dataset = RowDataset(local("d.zarr"), "code")
    check(dataset[2])
    with pytest.raises(RuntimeError, match=r"row 4 is usable but 'latents/code'.*verify --full"):
        dataset.take(np.array([4, 5]))
    with pytest.raises(RuntimeError, match=r"row [4-7] is usable"):
        list(RowStream(local("d.zarr"), "code"))
    objects.delete(key)
    with pytest.raises(RuntimeError, match="is missing: the store is damaged"):
        dataset.take(np.array([4]))


def test_a_store_in_memory_names_the_way_out(memory):
    finished(memory("m.zarr"), make_plan((10,)))
    dataset = RowDataset(memory("m.zarr"), "code")
    check(dataset[2])
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="fork", timeout=60)
    with pytest.raises(ValueError, match="memory of another process; use num_workers=0"):
        list(loader)


@pytest.mark.s3
def test_forked_s3_workers_do_not_hang_after_use_in_the_parent(s3):
    finished(s3("t.zarr"), make_plan((22,)))
    stream = RowStream(s3("t.zarr"), "code", batch_size=4)
    dataset = RowDataset(s3("t.zarr"), "code")
    assert sorted(rows_of(stream)) == list(range(22))
    dataset[0]
    options = {"multiprocessing_context": "fork", "timeout": 60}
    loader = DataLoader(stream, batch_size=None, num_workers=2, **options)
    assert sorted(rows_of(loader)) == list(range(22))
    for item in DataLoader(dataset, batch_size=6, num_workers=1, **options):
        check(item)
    open_objects(s3("t.zarr")).delete(shard_key(LATENT, 1))
    with pytest.raises(RuntimeError, match="is missing: the store is damaged"):
        list(DataLoader(stream, batch_size=None, num_workers=1, **options))


@pytest.mark.s3
def test_spawned_s3_workers_find_the_credentials_themselves(s3):
    finished(s3("t.zarr"), make_plan((5,)))
    stream = RowStream(s3("t.zarr"), "code", batch_size=4)
    loader = DataLoader(
        stream, batch_size=None, num_workers=1, multiprocessing_context="spawn", timeout=90
    )
    assert sorted(rows_of(loader)) == list(range(5))


def test_what_travels_holds_no_credential(store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-ship-me")
    from multiprocessing.reduction import ForkingPickler

    stream = RowStream(store, "code")
    next(iter(stream))
    assert b"do-not-ship-me" not in bytes(ForkingPickler.dumps(stream.selection))


def test_bad_arguments_are_refused(store):
    with pytest.raises(ValueError, match=r"rank 2 is not in 0 \.\. 1"):
        RowStream(store, "code", rank=2, world=2)
    with pytest.raises(ValueError, match="both rank and world"):
        RowStream(store, "code", rank=0)
    with pytest.raises(ValueError, match="batch_size 0"):
        RowStream(store, "code", batch_size=0)
