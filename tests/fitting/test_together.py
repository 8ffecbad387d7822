"""Units of several threads in one stream: full lanes, equal bits, nobody pays for another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from pipeline import methods
from pipeline.draw import Draw
from pipeline.fitting import Stream, Together, fit_rows
from pipeline.fitting.method import Descend
from pipeline.fitting.units import Unit
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table

LANES, ROWS, UNITS = 4, 6, 5


def unit_tables():
    table = picture_table([(12, 12)] * ROWS * UNITS)
    return [table.slice(ROWS * k, ROWS) for k in range(UNITS)]


@pytest.fixture(scope="module")
def method():
    settings = {"width": 16, "depth": 2, "steps": 150, "target_psnr": 19.0}
    form = load_samples(unit_tables()[0], "images").form
    return methods.build("siren", methods.configure("siren", "default", settings), form)


def in_two_threads(together, tables, seeds):
    """What an actor does with two units at a time: one thread for each."""

    def fit(k):
        try:
            return together.fit(load_samples(tables[k], "images"), seeds[k])[0]
        except ValueError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(fit, range(len(tables))))


@pytest.mark.parametrize("fused", [False, True])
def test_units_of_two_threads_keep_their_bits_whatever_their_seeds(method, fused):
    if fused:
        pytest.importorskip("numba")
    tables, seeds = unit_tables(), [0, 0, 77, 0, 1]
    together = Together(Stream(method, {}, lanes=LANES, fused=fused))
    found = in_two_threads(together, tables, seeds)
    for table, seed, fitted in zip(tables, seeds, found):
        samples = load_samples(table, "images")
        alone = fit_rows(method, {}, samples, seed=seed, lanes=LANES, fused=fused)
        assert all(torch.equal(fitted.rows[n], alone.rows[n]) for n in alone.rows)
        assert fitted.steps.tolist() == alone.steps.tolist()
        assert fitted.message == alone.message


def test_no_lane_idles_between_units(method):
    """Units of 6 rows on 4 lanes: one at a time ends with 2 lanes, the stream keeps all 4 full."""
    tables = unit_tables()
    alone = Stream(method, {}, lanes=LANES)
    for table in tables:
        Together(alone).fit(load_samples(table, "images"), 0)
    stream = Stream(method, {}, lanes=LANES)
    units = iter([Unit.of(k, load_samples(t, "images"), 0) for k, t in enumerate(tables)])
    assert [unit.key for unit in stream.run(lambda: next(units, None))] == list(range(UNITS))
    steps, computed, used = stream.occupancy
    assert used == alone.occupancy[2]  # the same work
    assert computed - used <= 150  # a last row beside an empty lane: two is the fewest
    assert used / steps > 0.9 * LANES
    assert alone.occupancy[2] / alone.occupancy[0] < 0.8 * LANES
    together = Together(Stream(method, {}, lanes=LANES))
    in_two_threads(together, tables, [0] * UNITS)
    steps, _, used = together.stream.occupancy
    assert used / steps > 1.1 * alone.occupancy[2] / alone.occupancy[0]


def poisoned(method, samples):
    """The method with a loss that raises as soon as one of these samples is in a lane."""
    (update,) = method.fit[0].updates
    marks = set(Draw.of(samples.keys, seed=0, stage="fit/0").keys.tolist())

    def loss(bound, batch, draw):
        if marks & set(draw.keys.tolist()):
            raise ValueError("poisoned")
        return update.loss(bound, batch, draw)

    phase = replace(method.fit[0], updates=(Descend(loss, update.groups),))
    return replace(method, fit=(phase,))


@pytest.mark.parametrize("fused", [False, True])
def test_a_unit_that_raises_does_not_hurt_the_one_beside_it(method, fused):
    if fused:
        pytest.importorskip("numba")
    tables = unit_tables()
    both = threading.Barrier(2)
    samples = [load_samples(table, "images") for table in tables[:2]]
    if fused:
        samples[1].sets["context"].columns.pop("color")
        broken = method
    else:
        broken = poisoned(method, samples[1])
    together = Together(Stream(broken, {}, lanes=8, fused=fused))

    def fit(k):
        both.wait()
        try:
            return together.fit(samples[k], 0)[0]
        except (ValueError, KeyError) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        good, bad = pool.map(fit, range(2))
    assert isinstance(bad, ValueError | KeyError)
    alone = fit_rows(method, {}, load_samples(tables[0], "images"), seed=0, lanes=2, fused=fused)
    assert all(torch.equal(good.rows[n], alone.rows[n]) for n in alone.rows)
    after = together.fit(load_samples(tables[0], "images"), 0)[0]  # the stream still works
    assert all(torch.equal(after.rows[n], alone.rows[n]) for n in alone.rows)
