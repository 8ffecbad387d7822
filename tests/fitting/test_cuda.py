"""The kernel of GPUs, by Triton's interpreter on the CPU: equal to the lanes to rounding."""

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
from pipeline.fields.activations import Identity, Relu
from pipeline.fields.mlp import MLP, Layer
from pipeline.fitting import fit_rows
from pipeline.fitting.cuda.layout import Layout, modes_of, too_large
from pipeline.fitting.fused.recognize import recognize
from pipeline.fitting.method import Descend, Target
from pipeline.fitting.optimizers import Adam
from pipeline.fitting.starts import starts_of
from pipeline.fitting.units import Unit, fitted_unit
from pipeline.objectives.distance import DistanceError
from pipeline.samples import load_samples
from tests.fitting.tables import box_table, picture_table

pytest.importorskip(
    "triton",
    "3.9",
    reason="needs the interpreter of triton 3.9 (Linux on x86-64; make test installs it)",
)

from pipeline.fitting.cuda import choice, run
from pipeline.fitting.cuda.exact import losses
from pipeline.fitting.cuda.run import DIVERGED, MET, SPENT, Loop
from pipeline.fitting.cuda.stream import fit_by_kernel


def images(sizes, **settings):
    samples = load_samples(picture_table(sizes), "images")
    config = methods.configure("siren", "default", {"depth": 2, "width": 16, **settings})
    return methods.build("siren", config, samples.form), samples


def shapes(count, near=100, **settings):
    samples = load_samples(box_table(count, points=near, held=16), "shapes")
    size = {"depth": 2, "width": 16, "points": 60}
    config = methods.configure("sdf", "default", {**size, **settings})
    return methods.build("sdf", config, samples.form), samples


def with_phase(method, **changes):
    return replace(method, fit=(replace(method.fit[0], **changes),))


def by_kernel(method, samples, seed=1, mode="fp32", **settings):
    """(rows by name, outcomes) of the kernel."""
    loop, unit = Loop(method, {}, mode, "cpu", **settings), Unit.of(0, samples, seed)

    def starts(index):
        return starts_of(method, {}, samples, index, seed)[0]

    ((_, rows, outcomes),) = loop.fit(unit, starts)
    return rows, outcomes


def distance(rows, plain):
    """Largest difference of parameters, relative to the largest parameter."""
    worst = [(rows[n] - plain[n]).abs().max() / plain[n].abs().max() for n in plain]
    return float(max(worst))


def check(method, samples, seed=1, steps=0, **settings):
    """Outcomes of the kernel, which are those of the lanes."""
    plain = fit_rows(method, {}, samples, seed=seed, lanes=2)
    rows, outcomes = by_kernel(method, samples, seed, **settings)
    assert max(abs(o.steps - s) for o, s in zip(outcomes, plain.steps.tolist())) <= steps
    if not steps:
        assert [o.loss for o in outcomes] == pytest.approx(plain.loss.tolist(), rel=1e-4)
        # Adam's first steps move by the rate whatever the gradient: rounding of tiny ones shows.
        assert distance(rows, plain.rows) < 1e-3
    return outcomes


@pytest.mark.parametrize(
    ("width", "depth", "sizes"),
    [(20, 2, [(8, 8), (5, 9), (3, 3)]), (16, 1, [(9, 13)]), (64, 2, [(8, 9)]), (64, 3, [(6, 7)])],
)
def test_some_steps_on_images_equal_the_lanes(width, depth, sizes):
    method, samples = images(sizes, width=width, depth=depth, steps=5, target_psnr=None)
    outcomes = check(method, samples)
    assert [o.reason for o in outcomes] == [SPENT] * len(sizes)


def test_positive_parts_equal_the_lanes_and_one_channel_does():
    method, samples = shapes(2, steps=6, width=20)
    layers = [Layer(20, Relu()), Layer(20, Relu()), Layer(1, Identity())]
    check(replace(method, field=replace(method.field, model=MLP(3, layers))), samples)


@pytest.mark.parametrize("both", [False, True])
def test_drawn_points_of_shapes_equal_the_lanes(both):
    """Same draws, also past the end of the sets, schedule and smoothed loss."""
    method, samples = shapes(3, near=70, steps=8)
    method = with_phase(
        method,
        size=replace(method.fit[0].size, near=90, uniform=33),
        updates=(Descend(DistanceError(0.1, both), method.fit[0].updates[0].groups),),
        target=Target(1e-6, "sdf", smooth=0.5),
    )
    outcomes = check(method, samples)
    assert all(o.watched != o.loss for o in outcomes)


def test_large_images_draw_blocks_of_their_pixels():
    method, samples = images([(9, 8), (8, 8)], pixels=40, steps=5, target_psnr=None)
    check(method, samples)


def test_rows_end_at_the_step_at_which_they_end_in_lanes():
    method, samples = images([(6, 6)] * 5, target_psnr=11.0, steps=14)
    outcomes = check(method, samples, steps=1)
    assert {o.reason for o in outcomes} == {MET, SPENT}
    assert all(o.loss <= method.fit[0].target.value for o in outcomes if o.reason == MET)


def test_a_smoothed_target_ends_a_shape_as_in_the_lanes():
    method, samples = shapes(2, steps=30)
    method = with_phase(method, target=Target(0.045, "sdf", smooth=0.8))
    outcomes = check(method, samples, steps=1)
    assert [o.reason for o in outcomes] == [MET] * 2
    assert min(o.steps for o in outcomes) >= 10


def test_bits_depend_on_nothing_but_the_row():
    """Not on the number of programs, more or fewer than rows, nor on the order of rows."""
    table = picture_table([(6, 6), (5, 7), (4, 4)])
    method, samples = images([(6, 6)], steps=6, target_psnr=8.0)
    samples = load_samples(table, "images")
    first, outcomes = by_kernel(method, samples, programs=1)
    order = [2, 0, 1]
    mixed = load_samples(pa.concat_tables([table.slice(i, 1) for i in order]), "images")
    again, others = by_kernel(method, mixed, programs=5)
    for name, value in first.items():
        assert torch.equal(value[order], again[name])
    assert [outcomes[i].steps for i in order] == [o.steps for o in others]


def test_a_row_that_is_not_finite_starts_again_at_a_lower_rate_and_harms_nobody():
    method, samples = images([(4, 4)] * 3, steps=6, target_psnr=None)
    wild = with_phase(method, updates=(Descend(method.fit[0].updates[0].loss, {"": Adam(1e37)}),))
    plain = fit_rows(wild, {}, samples, seed=0, lanes=2)
    _, outcomes = by_kernel(wild, samples, seed=0)
    assert [o.reason for o in outcomes] == [DIVERGED] * 3
    assert [o.request.factor for o in outcomes] == [0.25] * 3
    assert all(np.isfinite(o.loss) for o in outcomes)
    assert [o.steps for o in outcomes] == plain.steps.tolist()
    # one of several: its start is not a number
    good, _ = by_kernel(method, samples, seed=0)
    loop, unit = Loop(method, {}, "fp32", "cpu"), Unit.of(0, samples, 0)

    def starts(index):
        rows = starts_of(method, {}, samples, index, 0)[0]
        for value in rows.values():
            value[index == 1] = float("nan")
        return rows

    ((_, rows, outcomes),) = loop.fit(unit, starts)
    assert [o.reason for o in outcomes] == [SPENT, DIVERGED, SPENT]
    assert all(torch.equal(rows[n][::2], good[n][::2]) for n in rows)


@pytest.mark.parametrize(("mode", "within"), [("tf32", 3e-3), ("bf16", 3e-2)])
def test_rounded_factors_change_a_fit_a_little(mode, within):
    method, samples = images([(8, 8)] * 2, width=32, steps=10, target_psnr=None)
    plain = fit_rows(method, {}, samples, seed=1, lanes=2)
    _, outcomes = by_kernel(method, samples, mode=mode)
    losses = np.array([o.loss for o in outcomes])
    change = np.abs(losses / plain.loss.numpy() - 1)
    assert (change > 1e-6).all()
    assert (change < within).all()


def test_networks_that_do_not_fit_on_a_chip_are_named():
    def of(width, depth):
        return Layout.of(recognize(images([(4, 4)], width=width, depth=depth)[0]))

    assert [too_large(of(w, d)) for w, d in ((64, 2), (64, 4), (100, 3), (128, 3))] == [""] * 4
    assert "3 x 256 needs 904 KB of registers" in too_large(of(256, 3))
    assert "4 x 128 needs" in too_large(of(128, 4))
    assert too_large(of(32, 6)) == "6 x 32 needs more shared memory than a multiprocessor has"
    assert modes_of(of(64, 2)) == ("bf16", "tf32", "fp32")
    assert modes_of(of(128, 3)) == ("bf16",)


def test_a_row_that_meets_its_target_by_rounding_alone_is_fitted_again_in_float32(monkeypatch):
    method, samples = images([(6, 6)] * 3, target_psnr=10.0, steps=40)
    loop = Loop(method, {}, "bf16", "cpu")
    unit = Unit.of(0, samples, 1)

    def starts(index):
        return starts_of(method, {}, samples, index, 1)[0]

    ((at, rows, outcomes),) = loop.fit(unit, starts)
    exact = losses(method, {}, samples, at, rows, unit.keys(at, "fit/0"))
    target = method.fit[0].target.value
    assert [o.reason for o in outcomes] == [MET] * 3
    assert [o.loss for o in outcomes] == exact.tolist()
    assert (exact <= target * 1.001).all()
    monkeypatch.setattr(run, "SLACK", float(exact[1]) / target - 1 - 1e-6)
    ((_, again, outcomes),) = loop.fit(Unit.of(0, samples, 1), starts)
    worse = (exact >= exact[1]).tolist()
    assert ["in float32" in o.request.note for o in outcomes] == worse
    reference, _ = by_kernel(method, samples)
    for name, value in again.items():
        for i, other in enumerate(worse):
            assert torch.equal(value[i], (reference if other else rows)[name][i])


def test_the_fastest_mode_that_fits_as_well_as_float32_is_chosen(monkeypatch):
    method, samples = images([(6, 6)] * 2, steps=12, target_psnr=None)
    mode, words = choice.choose_mode(method, {}, samples, 0)
    assert mode == "bf16"
    assert words.startswith("bf16: 1.00 x the steps, ")
    with monkeypatch.context() as patch:
        patch.setattr(choice, "LOSS", 0.5)  # so good is none
        mode, words = choice.choose_mode(method, {}, samples, 0)
    assert mode == ""
    assert all(f"{mode}: 1.00 x the steps" in words for mode in ("bf16", "tf32", "fp32"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mode, words = choice.choose_kernel(method, {}, None, 0)
    assert mode == "tf32"
    assert words.startswith("one program a network by triton 3.")
    clipped = {"": replace(method.fit[0].updates[0].groups[""], clip=1.0)}
    other = with_phase(method, updates=(replace(method.fit[0].updates[0], groups=clipped),))
    assert choice.choose_kernel(other, {}, None, 0)[0] == ""
    assert "clipping" in choice.choose_kernel(other, {}, None, 0)[1]
    with pytest.raises(ValueError, match="without clipping"):
        fit_by_kernel(other, {}, "bf16", torch.device("cpu"))


def test_units_of_the_kernel_are_those_of_lanes_with_the_rows_that_are_kept():
    table = picture_table([(6, 6), (5, 7), (4, 4)])
    method, _ = images([(6, 6)], steps=5, target_psnr=None)
    units = [Unit.of(i, load_samples(table.slice(0, n), "images"), 3) for i, n in enumerate((3, 2))]
    plain = fit_rows(method, {}, units[0].samples, seed=3, lanes=2)
    kept = {name: value[1] + 1 for name, value in plain.rows.items()}
    units.append(Unit.of(2, units[0].samples, 3, {1: kept}))
    waiting = list(units)
    fit = fit_by_kernel(method, {}, "fp32", torch.device("cpu"))
    found = [fitted_unit(method, u) for u in fit(lambda: waiting.pop(0) if waiting else None)]
    assert len(found) == 3
    for other in (found[0], found[2]):
        assert other.status == plain.status
    assert distance(found[0].rows, plain.rows) < 1e-3
    for name, value in found[0].rows.items():
        assert torch.equal(found[1].rows[name], value[:2])
        assert torch.equal(found[2].rows[name][::2], value[::2])
        assert torch.equal(found[2].rows[name][1], kept[name])


def test_a_plan_for_gpus_is_refused_without_one():
    method, samples = images([(4, 4)] * 2)
    with pytest.raises(ValueError, match="kernel of GPUs, this worker computes on cpu"):
        fit_rows(method, {}, samples, seed=0, kernel="bf16")


COMPILE = """
import sys, warnings
warnings.simplefilter("ignore")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from pipeline.fitting.cuda.kernel import descend
from pipeline.fitting.cuda.layout import Layout, shape_of
drawn, dims, channels, loss = map(int, sys.argv[1:])
layout = Layout(dims, 32, 1, channels, ())
floats = "rows moments scales coords wanted sizes roots speeds losses".split()
types = dict.fromkeys(floats, "*fp32") | dict.fromkeys("starts tags keys".split(), "*i64")
types |= dict.fromkeys("sets ends counter".split(), "*i32")
types |= dict.fromkeys("count budget settle".split(), "i32")
types |= dict.fromkeys("target gain clamp a b keep eps".split(), "fp32")
fixed = dict(SIZE=layout.size, WIDTH=32, HIDDEN=1, DIMS=dims, CHANNELS=channels, SINE=True)
fixed |= dict(LOSS=loss, SMOOTH=bool(drawn), DRAWN=drawn, TILE=64, MODE="bf16", EMULATE=False)
signature = {name: types.get(name, "constexpr") for name in descend.arg_names}
made = triton.compile(
    ASTSource(descend, signature=signature, constexprs=fixed),
    target=GPUTarget("cuda", 90, 32),
    options={"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True},
)
print(len(made.asm["cubin"]), made.metadata.shared, made.asm["ptx"].count("wgmma.mma_async"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("variant", [(0, 2, 3, 0), (2, 3, 1, 2)])
def test_the_kernel_compiles_for_hopper_without_a_gpu(variant, tmp_path):
    """All that the interpreter does not see: types, layouts, assembly of the sines."""
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE, *map(str, variant)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    code, shared, products = map(int, ran.stdout.split())
    assert code > 10_000
    assert shared < 100_000
    assert products >= 5


def test_what_falls_short_again_has_missed_its_target(monkeypatch):
    method, samples = images([(6, 6)] * 2, target_psnr=10.0, steps=40)
    monkeypatch.setattr(run, "SLACK", -1.0)  # nothing is close enough
    monkeypatch.setattr(run, "modes_of", lambda _: ("bf16", "tf32"))
    rows, outcomes = by_kernel(method, samples, mode="bf16")
    keys = torch.zeros(2, dtype=torch.int64)
    exact = losses(method, {}, samples, torch.arange(2), rows, keys)
    assert [o.reason for o in outcomes] == [SPENT] * 2
    assert [o.watched for o in outcomes] == [o.loss for o in outcomes] == exact.tolist()
