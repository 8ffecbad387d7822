"""Lanes that were measured: quickly, once, kept safely; rows do not depend on them."""

from __future__ import annotations

import json
import time

import pytest
import torch

from pipeline import methods
from pipeline.fitting import fit_rows, measured_lanes
from pipeline.fitting.measured import BUDGET_S, lane_rates
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table


@pytest.fixture(scope="module")
def work():
    samples = load_samples(picture_table([(12, 12)] * 8), "images")
    settings = {"width": 16, "depth": 2, "steps": 30, "target_psnr": None}
    return methods.build("siren", methods.configure("siren", "default", settings), samples.form), (
        samples
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fieldmill" / "lanes.json"


def test_lanes_are_measured_once_within_the_budget_and_kept(work, cache):
    method, samples = work
    began = time.process_time()
    lanes, words = measured_lanes(method, {}, lambda: samples)
    assert time.process_time() - began < 1.5 * BUDGET_S
    assert words == "as measured now"
    rates = lane_rates(method, {}, samples)
    assert rates[lanes] > 0.6 * max(rates.values())  # not by chance: two lanes reach a third
    assert rates[2] < 0.7 * max(rates.values())

    def never():
        raise AssertionError("measured again")

    assert measured_lanes(method, {}, never) == (lanes, "as measured earlier")
    kept = json.loads(cache.read_text())
    assert [entry["lanes"] for entry in kept["known"].values()] == [lanes]
    with pytest.raises(AssertionError, match="measured again"):
        measured_lanes(method, {}, never, threads=2)  # another machine, as it were


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 0, "known": {}}', '{"version": 1}'])
def test_a_damaged_cache_is_measured_anew(work, cache, damage):
    method, samples = work
    cache.parent.mkdir()
    cache.write_text(damage)
    assert measured_lanes(method, {}, lambda: samples)[1] == "as measured now"
    assert measured_lanes(method, {}, lambda: samples)[1] == "as measured earlier"
    assert list(cache.parent.iterdir()) == [cache]


def test_where_nothing_can_be_kept_lanes_are_measured_each_time(work, monkeypatch):
    method, samples = work
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    for _ in range(2):
        assert measured_lanes(method, {}, lambda: samples)[1] == "as measured now"


def test_rows_do_not_depend_on_the_number_of_lanes(work):
    method, samples = work
    found = [fit_rows(method, {}, samples, seed=1, lanes=n) for n in (2, 3, 5, 8, 64)]
    for fitted in found[1:]:
        assert all(torch.equal(fitted.rows[n], found[0].rows[n]) for n in fitted.rows)
        assert torch.equal(fitted.loss, found[0].loss)
