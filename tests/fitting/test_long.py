"""Long-lived workers and mixed samples: memory that stays, and little padding."""

from __future__ import annotations

import resource
from dataclasses import replace

import numpy as np
import pytest

from pipeline import methods
from pipeline.fitting import Stream, Together
from pipeline.fitting.method import Descend
from pipeline.fitting.units import Unit
from pipeline.samples import load_samples
from tests.fitting.tables import box_table, picture_table


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("fused", [False, True])
def test_a_worker_does_not_grow_over_200_units(fused):
    if fused:
        pytest.importorskip("numba")
    table = picture_table([(16, 16), (12, 9), (16, 16)])
    settings = {"width": 16, "depth": 2, "steps": 3, "target_psnr": None}
    form = load_samples(table, "images").form
    method = methods.build("siren", methods.configure("siren", "default", settings), form)
    together = Together(Stream(method, {}, lanes=4, fused=fused))

    def units(count):
        for _ in range(count):
            together.fit(load_samples(table, "images"), 0)

    units(30)
    before = resident()
    units(200)
    assert resident() - before < 4 * 2**20  # a unit's samples and results are 60 kB: 12 MB in all


def counting(method):
    """The method with a loss that counts the points it sees, and those of them that are real."""
    (update,) = method.fit[0].updates
    seen = np.zeros(2)

    def loss(bound, batch, draw):
        weight = (batch.grid or batch.points).weight
        seen[:] += weight.numel(), float((weight > 0).sum())
        return update.loss(bound, batch, draw)

    phase = replace(method.fit[0], updates=(Descend(loss, update.groups),))
    return replace(method, fit=(phase,)), seen


def fitted(method, samples, lanes=8):
    stream = Stream(method, {}, lanes=lanes)
    units = iter([Unit.of(0, samples, 0)])
    assert len(list(stream.run(lambda: next(units, None)))) == 1
    return stream.occupancy


def test_pictures_of_mixed_sizes_waste_little():
    """80 sizes from 8 x 8 to 40 x 40: what is computed for nothing, idle lanes included."""
    sides = np.random.default_rng(0).integers(8, 41, (80, 2))
    samples = load_samples(picture_table(list(map(tuple, sides.tolist()))), "images")
    settings = {"width": 8, "depth": 1, "steps": 2, "target_psnr": None}
    method = methods.build("siren", methods.configure("siren", "default", settings), samples.form)
    method, seen = counting(method)
    steps, computed, used = fitted(method, samples)
    padding = 1 - seen[1] / seen[0]
    assert 1 - (1 - padding) * used / computed <= 0.15
    assert used / steps > 2  # lanes are shared
    assert used == 80 * 3


def test_shapes_of_mixed_point_counts_share_lanes_without_padding():
    table = box_table(12, points=[100 * (k + 1) for k in range(12)])
    samples = load_samples(table, "shapes")
    config = methods.configure("sdf", "default", {"width": 8, "steps": 2, "points": 90})
    method, seen = counting(methods.build("sdf", config, samples.form))
    steps, computed, used = fitted(method, samples, lanes=12)
    assert seen[0] == seen[1]
    assert used == computed == 12 * 3
    assert steps == 3
