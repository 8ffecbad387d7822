"""The compiled loop: equal to the lanes to rounding, and to itself to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import methods
from pipeline.fitting import choose_path, fit_rows, fit_units, start_shared
from pipeline.fitting.fused.recognize import recognize
from pipeline.fitting.method import Descend, Target
from pipeline.fitting.optimizers import Adam
from pipeline.objectives.distance import DistanceError
from pipeline.samples import load_samples
from schemas.samples import Code
from schemas.store import RowStatus
from tests.fitting.tables import box_table, picture_table

numba = pytest.importorskip("numba")


def images(sizes, **settings):
    samples = load_samples(picture_table(sizes), "images")
    config = methods.configure("siren", "default", {"depth": 2, "width": 32, **settings})
    return methods.build("siren", config, samples.form), samples


def shapes(count, **settings):
    samples = load_samples(box_table(count, points=512, held=16), "shapes")
    config = methods.configure("sdf", "default", {"depth": 2, "width": 32, **settings})
    return methods.build("sdf", config, samples.form), samples


def with_phase(method, **changes):
    return replace(method, fit=(replace(method.fit[0], **changes),))


def distance(a, b):
    """Largest difference of two fits' parameters, relative to the largest parameter."""
    worst = [(a.rows[n] - b.rows[n]).abs().max() / b.rows[n].abs().max() for n in b.rows]
    return float(max(worst))


def test_sine_and_cosine_are_right_to_two_units_in_the_last_place():
    from numba import njit

    from pipeline.fitting.fused import simd
    from pipeline.fitting.fused.network import aligned

    @njit
    def both(value, slope):
        for i in range(0, 4 * value.size, 4 * simd.LANES):
            simd.sincos(np.int64(value.ctypes.data) + i, np.int64(slope.ctypes.data) + i)

    z = aligned(2**16)
    spread = np.random.default_rng(0).uniform(-1, 1, z.size) * np.geomspace(1e-6, 2e3, z.size)
    z[:] = spread
    z[:3] = 0, np.inf, np.nan
    exact = z.astype(np.float64)
    slope = aligned(z.size)
    both(z, slope)
    with np.errstate(invalid="ignore"):
        for value, wanted in ((z, np.sin(exact)), (slope, np.cos(exact))):
            unit = np.spacing(np.abs(wanted).astype(np.float32).clip(min=1e-3))
            assert (np.abs(value - wanted)[3:] <= 2 * unit[3:]).all()
            assert np.isnan(value[1:3]).all()
    assert (z[0], slope[0]) == (0, 1)


@pytest.mark.parametrize(
    ("width", "depth", "sizes"),
    [(64, 2, [(32, 32), (9, 13)]), (20, 3, [(5, 40), (17, 1)]), (96, 1, [(8, 8)])],
)
def test_some_steps_on_images_equal_the_lanes(width, depth, sizes):
    method, samples = images(sizes, width=width, depth=depth, steps=12, target_psnr=None)
    plain = fit_rows(method, {}, samples, seed=1, lanes=2)
    fused = fit_rows(method, {}, samples, seed=1, fused=True)
    assert fused.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-4)
    # Adam's first steps move by the rate whatever the gradient: rounding of tiny ones shows.
    assert distance(fused, plain) < 1e-3


def test_images_leave_at_the_same_step_with_the_same_psnr():
    method, samples = images([(24, 24)] * 6, width=64, target_psnr=28.0, steps=80)
    plain = fit_rows(method, {}, samples, seed=2, lanes=4)
    fused = fit_rows(method, {}, samples, seed=2, fused=True)
    assert fused.status == plain.status
    assert len(set(fused.steps.tolist())) > 1
    assert (fused.steps - plain.steps).abs().max() <= 1
    decibel = [(-10 * torch.log10(f.loss / 4)).numpy() for f in (plain, fused)]
    assert np.abs(decibel[0] - decibel[1]).max() < 0.3


@pytest.mark.parametrize("both", [False, True])
def test_drawn_points_of_shapes_equal_the_lanes(both):
    """Same draws, also past the end of the sets, schedule and smoothed target."""
    method, samples = shapes(3, points=300, steps=10, target_error=0.05)
    adam = method.fit[0].updates[0].groups[""]
    method = with_phase(method, updates=(Descend(DistanceError(0.1, both), {"": adam}),))
    plain = fit_rows(method, {}, samples, seed=1, lanes=2)
    fused = fit_rows(method, {}, samples, seed=1, fused=True)
    assert fused.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-3)
    assert distance(fused, plain) < 5e-3
    assert fused.steps.tolist() == plain.steps.tolist()


def test_a_smoothed_target_ends_a_shape_as_in_the_lanes():
    method, samples = shapes(2, points=300, steps=60)
    target = Target(0.035, "sdf", smooth=0.9)
    method = with_phase(method, target=target)
    plain = fit_rows(method, {}, samples, seed=4, lanes=2)
    fused = fit_rows(method, {}, samples, seed=4, fused=True)
    assert 20 <= fused.steps.min() < 60
    assert (fused.steps - plain.steps).abs().max() <= 1


def test_large_images_draw_blocks_of_their_pixels():
    method, samples = images([(40, 30)], pixels=500, steps=8, target_psnr=None)
    plain = fit_rows(method, {}, samples, seed=1, lanes=2)
    fused = fit_rows(method, {}, samples, seed=1, fused=True)
    assert fused.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-4)


def test_bits_depend_on_nothing_but_the_row():
    table = picture_table([(12, 12), (7, 9), (12, 12), (10, 12)])
    samples = load_samples(table, "images")
    method, _ = images([(8, 8)], steps=25, target_psnr=25.0)
    whole = fit_rows(method, {}, samples, seed=3, fused=True)
    order = [2, 0, 3, 1]
    mixed = load_samples(pa.concat_tables([table.slice(i, 1) for i in order]), "images")
    again = fit_rows(method, {}, mixed, seed=3, fused=True)
    for name, value in whole.rows.items():
        assert torch.equal(value[order], again.rows[name])
    units = [(i, load_samples(table.slice(i, 1), "images")) for i in range(4)]
    for i, alone in fit_units(method, {}, iter(units), seed=3, fused=True):
        assert all(torch.equal(alone.rows[n][0], whole.rows[n][i]) for n in whole.rows)


def test_a_diverging_row_starts_again_at_a_lower_rate_and_harms_nobody():
    method, samples = images([(8, 8)] * 3, steps=30, target_psnr=None)
    wild = with_phase(method, updates=(Descend(method.fit[0].updates[0].loss, {"": Adam(1e37)}),))
    plain = fit_rows(wild, {}, samples, seed=0, lanes=2)
    lost = fit_rows(wild, {}, samples, seed=0, fused=True)
    assert lost.status == [RowStatus.DIVERGED] * 3 == plain.status
    assert lost.code == [Code.NAN_LOSS] * 3
    assert all("again at a lower rate" in message for message in lost.message)
    assert all(torch.isnan(v).all() for v in lost.rows.values())


def test_rows_that_are_kept_stay_and_a_common_start_is_used():
    method, samples = images([(8, 8)] * 3, steps=5, target_psnr=None, start="common")
    shared = start_shared(method, 7)
    fused = fit_rows(method, shared, samples, seed=7, fused=True)
    plain = fit_rows(method, shared, samples, seed=7, lanes=2)
    assert distance(fused, plain) < 1e-3
    kept = {1: {name: value[1] + 1 for name, value in fused.rows.items()}}
    again = fit_rows(method, shared, samples, seed=7, fused=True, kept=kept)
    for name, value in again.rows.items():
        assert torch.equal(value[1], kept[1][name])
        assert torch.equal(value[::2], fused.rows[name][::2])


def test_what_the_loop_cannot_fit_is_named():
    method, samples = images([(8, 8)] * 2, steps=3)
    assert choose_path(method)[0]
    assert choose_path(method)[1].startswith("fused by numba")

    def mine(bound, batch, draw):
        return {"mse": bound(batch.grid.coords).square().mean((1, 2))}

    adam = method.fit[0].updates[0].groups[""]
    other = with_phase(method, updates=(Descend(mine, {"": adam}),))
    assert choose_path(other) == (False, "plain PyTorch (its loss is mine)")
    with pytest.raises(ValueError, match="its loss is mine"):
        fit_rows(other, {}, samples, seed=0, fused=True)
    clipped = with_phase(
        method, updates=(Descend(method.fit[0].updates[0].loss, {"": replace(adam, clip=1.0)}),)
    )
    assert "clipping" in recognize(clipped)
    form = load_samples(box_table(1), "shapes").form
    deepsdf = methods.build("deepsdf", methods.configure("deepsdf"), form)
    assert "shares parameters" in recognize(deepsdf)  # `codes` may take it


def test_compiled_kernels_are_kept_in_a_folder_of_the_user_alone(tmp_path, monkeypatch):
    from pipeline.fitting.fused import cache

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = cache.folder()
    assert place.is_relative_to(tmp_path)
    assert place.stat().st_mode & 0o077 == 0
    place.chmod(0o777)
    assert cache.folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert cache.folder() is None
    function = cache.cached(nogil=True)(lambda x: x + 1)
    assert function(1) == 2


def test_rows_side_by_side_in_threads_are_the_same_rows():
    method, samples = images([(9, 9)] * 5, steps=20, target_psnr=None)
    alone = fit_rows(method, {}, samples, seed=6, fused=True)
    torch.set_num_threads(2)
    try:
        beside = fit_rows(method, {}, samples, seed=6, fused=True)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(alone.rows[n], beside.rows[n]) for n in alone.rows)


FRESH = """
import torch
torch.set_num_threads(1)
from tests.fitting.test_fused import shapes, fit_rows
method, samples = shapes(5, width=16, points=96, steps=25)
print(fit_rows(method, {}, samples, seed=3, fused=True).loss.numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_code_just_compiled_and_code_from_the_cache_give_the_same_bits(tmp_path):
    outcomes = []
    for _ in range(2):
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", FRESH]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        outcomes.append(done.stdout)
        assert list(tmp_path.rglob("*.nbc"))
    assert outcomes[0] == outcomes[1] != ""
