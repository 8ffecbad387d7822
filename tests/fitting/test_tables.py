"""Tables of cells through lanes, training, packing and a store: integers stay what they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray
import zarr

from pipeline import fitting, methods
from pipeline.evaluate.opened import open_store
from pipeline.fields.bind import bind
from pipeline.fitting import fit_rows, pack, row_arrays, start_shared, train, unpack
from pipeline.samples import load_samples
from pipeline.store import open_arrays, verify
from schemas.base import Location
from schemas.samples import Code
from schemas.store import USABLE, RowStatus
from tests.evaluate.stores import fitted_store
from tests.fitting.tables import box_table

SETTINGS = {
    "resolution": 6,
    "capacity": 160,
    "code": 4,
    "width": 16,
    "depth": 2,
    "points": 64,
    "batch": 4,
    "train_steps": 20,
    "fit_points": 64,
    "fit_steps": 8,
}
NAMES = ["cells.value", "cells_keys.value", "cells_count.value", "cells_sides.value"]


@pytest.fixture(scope="module")
def table():
    return box_table(7, points=[512, 512, 400, 512, 512, 300, 512], held=64)


@pytest.fixture(scope="module")
def fitted(table):
    samples = load_samples(table, "shapes")
    method = methods.build("deepls", methods.configure("deepls", settings=SETTINGS), samples.form)
    shared = start_shared(method, 0)
    return method, shared, samples, fit_rows(method, shared, samples, seed=0, lanes=3)


def test_keys_and_counts_leave_lanes_as_integers_in_order(fitted):
    *_, samples, result = fitted
    assert list(result.rows) == NAMES
    keys, count = result.rows["cells_keys.value"], result.rows["cells_count.value"]
    assert keys.dtype == count.dtype == torch.int32
    assert keys.shape == (7, 160)
    assert count.shape == (7,)
    for row in range(len(samples)):
        used = keys[row, : int(count[row])]
        assert (used.diff() > 0).all()
        assert (keys[row, int(count[row]) :] == 6**3).all()
        assert (result.rows["cells.value"][row, int(count[row]) :] == 0).all()
    assert len(set(count.tolist())) > 1


def test_a_row_is_the_same_alone_in_any_number_of_lanes_and_in_any_order(fitted, table):
    method, shared, _, result = fitted
    for lanes, order in ((2, [5]), (2, [6, 2]), (5, list(range(7)))):
        part = load_samples(table.take(order), "shapes")
        again = fit_rows(method, shared, part, seed=0, lanes=lanes)
        for name in NAMES:
            assert torch.equal(again.rows[name], result.rows[name][order])


def test_a_sample_that_needs_more_cells_fails_by_name_and_the_others_keep_their_bits(fitted):
    method, _, samples, result = fitted
    count = result.rows["cells_count.value"]
    capacity = int(count.sort().values[-2])
    config = method.field.config.model_copy(update={"capacity": capacity})
    small = methods.build("deepls", config, samples.form)
    some = fit_rows(small, start_shared(small, 0), samples, seed=0, lanes=3)
    worst = int(count.argmax())
    assert some.status[worst] == RowStatus.FAILED
    assert some.code[worst] == Code.TOO_LARGE
    assert f"needs {int(count[worst])} cells, method.capacity is {capacity}" in some.message[worst]
    assert torch.isnan(some.rows["cells.value"][worst]).all()
    assert (some.rows["cells_keys.value"][worst] == 0).all()
    for row in set(range(7)) - {worst}:
        assert some.status[row] in USABLE
        assert torch.equal(
            some.rows["cells.value"][row], result.rows["cells.value"][row, :capacity]
        )
    none = config.model_copy(update={"capacity": 1})
    none = methods.build("deepls", none, samples.form)
    all_failed = fit_rows(none, start_shared(none, 0), samples, seed=0, lanes=3)
    assert set(all_failed.status) == {RowStatus.FAILED}
    with pytest.raises(ValueError, match=r"cannot train on some samples: 'box000.obj' needs \d+"):
        train(none, samples, seed=0)


def test_a_second_phase_keeps_the_table_and_failed_samples_fail_once(fitted):
    method, shared, samples, result = fitted
    later = replace(method.fit[0], enter=None, enter_size=None, steps=2)
    twice = replace(method, fit=(method.fit[0], later))
    again = fit_rows(twice, shared, samples, seed=0, lanes=3)
    for name in NAMES[1:]:
        assert torch.equal(again.rows[name], result.rows[name])
    assert set(again.steps.tolist()) == {10}


def test_training_moves_codes_within_their_tables(fitted):
    method, _, samples, result = fitted
    trained = train(method, samples, seed=0)
    for name in NAMES[1:]:
        assert torch.equal(trained.rows[name], result.rows[name])
    used = trained.rows["cells_keys.value"] < 6**3
    assert (trained.rows["cells.value"][~used] == 0).all()
    moved = trained.rows["cells.value"][used].abs().amax(1) > 0.03
    assert moved.float().mean() > 0.5


def test_rows_are_packed_with_their_types_and_come_back(fitted):
    method, _, _, result = fitted
    arrays = pack(method, result.rows)
    specs = {spec.name: spec for spec in row_arrays(method) if spec.rows}
    assert {name: a.dtype.name for name, a in arrays.items()} == {
        "latents/cells": "float32",
        "latents/cells_keys": "int32",
        "latents/cells_count": "int32",
        "latents/cells_sides": "int32",
    }
    for name, values in arrays.items():
        assert values.shape[1:] == specs[name].shape
        assert values.dtype.name == specs[name].dtype
    back = unpack(method, arrays)
    assert all(torch.equal(back[name], result.rows[name]) for name in NAMES)
    assert back.keys() == result.rows.keys()


def test_a_store_of_tables_is_read_by_all_readers(table, tmp_path):
    location = Location(url=str(tmp_path / "cells.zarr"))
    fitted_store(location, table, "shapes", "deepls", SETTINGS, unit_rows=2)
    opened = open_store(location.url)
    method = opened.method
    samples = load_samples(table, "shapes")
    fitted = fit_rows(method, opened.shared, samples, seed=0, lanes=4)
    reader = open_arrays(location)
    arrays = pack(method, fitted.rows)
    for name, values in arrays.items():
        assert np.array_equal(reader.array(name, range(7)), values)
        assert np.array_equal(zarr.open_array(f"{location.url}/{name}", mode="r")[:], values)
    with xarray.open_zarr(location.url, group="latents", consolidated=False) as found:
        assert found["cells"].dims == ("row", "cells", "cells_code")
        assert found["cells_keys"].dims == ("row", "cells")
        assert found["cells_count"].dims == ("row",)
        assert found["cells_keys"].attrs["key"] == "(x * 6 + y) * 6 + z"
        assert found["cells_keys"].dtype == np.int32
    coords = torch.rand(50, 3) * 2 - 1
    tensors = fitting.bindable(method, opened.shared, {n: v[3:4] for n, v in fitted.rows.items()})
    expected = bind(method.model, tensors)(coords[None])[0]
    assert torch.equal(opened.values(3, coords)["sdf"], expected)
    assert not verify(reader.objects, full=True).damaged
