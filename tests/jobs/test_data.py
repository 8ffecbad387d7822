"""A store as a Ray dataset: read by tasks, shard by shard, nothing held where it is described."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ray import cloudpickle

from jobs.data import StoreSource, read_store
from pipeline.downstream.selection import select
from schemas.base import Location
from tests.store.toy import ARRAYS, finished, make_plan, values_of

LATENT = ARRAYS[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("stores") / "toy.zarr")
    finished(Location(url=url), make_plan((30, 13)), failed=(5, 6))
    return url


# Ray Data warns when it reads its own default configuration
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_read_tasks_hold_whole_shards_and_no_values(store):
    source = StoreSource(select(store, "code", where={"psnr": (35, None)}), ["psnr"])
    assert source.estimate_inmemory_data_size() == 36 * 12 * 2
    for parallelism, expected in ((1, 1), (4, 4), (100, 11)):
        tasks = source.get_read_tasks(parallelism)
        assert len(tasks) == expected
        assert sum(task.metadata.num_rows for task in tasks) == 36
        units = [{row // 4 for row in task.read_fn.lines["row"].to_pylist()} for task in tasks]
        assert sum(map(len, units)) == len(set().union(*units)) == 11
        assert all(len(cloudpickle.dumps(task)) < 6_000 for task in tasks)
    block = next(iter(tasks[0].read_fn()))
    assert block.column_names == ["row", "sample_id", "label", "psnr", "code"]
    with pytest.raises(ValueError, match="no column 'psmr'"):
        StoreSource(select(store, "code"), ["psmr"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_dataset_has_every_usable_row_once(store, ray_nodes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Data warns about its own coming defaults
        dataset = read_store(store, "code", columns=["psnr"], parallelism=3)
        batches = list(dataset.iter_batches(batch_size=10, batch_format="numpy"))
        assert dataset.count() == 41
    rows = np.concatenate([batch["row"] for batch in batches])
    values = np.concatenate([batch["code"] for batch in batches])
    assert sorted(rows.tolist()) == sorted({*range(30), *range(32, 45)} - {5, 6})
    np.testing.assert_array_equal(values, values_of(LATENT, rows))
    np.testing.assert_array_equal(np.concatenate([b["psnr"] for b in batches]), rows + 30.0)
