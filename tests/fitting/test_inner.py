"""Latents of shifted sine networks by the compiled loop: equal to plain PyTorch to rounding."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import methods
from pipeline.fitting import choose_encoding, fit_rows, start_shared, train
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table

numba = pytest.importorskip("numba")

from pipeline.fitting import encoding  # noqa: E402
from pipeline.fitting.fused import narrow  # noqa: E402
from pipeline.fitting.fused.inner import error_units, recognize_inner  # noqa: E402

NAME = "code.value"
SMALL = {"latent": 8, "width": 24, "depth": 3, "omega": 6.0, "inner_pixels": 64, "batch": 4}
SIZES = [(16, 16), (16, 16), (12, 20), (16, 16), (9, 7), (16, 16)]
NARROW = [mode for mode in narrow.modes() if mode != "float32"]


def pictures(channels=3):
    table = picture_table(SIZES)
    if channels == 3:
        return table
    lines = table.to_pylist()
    for line in lines:
        line |= {"pixels": line["pixels"][::3], "channels": 1}
    return pa.Table.from_pylist(lines, schema=table.schema)


@cache
def trained(channels=3, **settings):
    samples = load_samples(pictures(channels), "images")
    config = methods.configure("functa", settings={**SMALL, "train_steps": 25, **settings})
    method = methods.build("functa", config, samples.form)
    return method, train(method, samples, seed=0).shared, samples


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cells", [0, 2])
@pytest.mark.parametrize("kernel", ["float32", "float32@16x16"])
@pytest.mark.parametrize("pixels", [64, 400])
def test_latents_equal_those_of_plain_pytorch(channels, cells, kernel, pixels):
    method, shared, samples = trained(channels, cells=cells, inner_pixels=pixels)
    plain = fit_rows(method, shared, samples, seed=1)
    found = fit_rows(method, shared, samples, seed=1, kernel=kernel)
    assert apart(found.rows[NAME], plain.rows[NAME]) < 1e-4
    assert found.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-4)
    assert (found.status, found.steps.tolist()) == (plain.status, plain.steps.tolist())


@pytest.mark.parametrize("learned", ["none", "tensor"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_other_rates_steps_and_depths(learned, steps, depth):
    samples = load_samples(pictures(), "images")
    settings = {**SMALL, "inner_steps": steps, "depth": depth, "inner_rate": 2.0}
    method = methods.build("functa", methods.configure("functa", settings=settings), samples.form)
    method = replace(method, inner=replace(method.inner, learned=learned))
    shared = start_shared(method, 0)
    random = torch.Generator().manual_seed(0)
    shared["start.code.value"] = torch.randn(8, generator=random) * 0.1  # begins elsewhere
    if learned == "tensor":
        shared["rate.code.value"] = torch.tensor([1.5, 0.5])[:steps]
    plain = fit_rows(method, shared, samples, seed=1).rows[NAME]
    for kernel in ("float32", "float32@16x16"):
        found = fit_rows(method, shared, samples, seed=1, kernel=kernel).rows[NAME]
        assert apart(found, plain) < 1e-4


@pytest.mark.parametrize("mode", NARROW)
@pytest.mark.parametrize("cells", [0, 2])
def test_narrow_numbers_end_as_close_to_the_pixels(mode, cells):
    method, shared, samples = trained(cells=cells, inner_pixels=400)
    index = torch.arange(len(samples))
    losses = [
        encoding.log_losses(method, shared, samples, index, 1, k)
        for k in ("", mode, mode + "@16x16")
    ]
    start = encoding.log_losses(
        method, {**shared, "rate.code.value": shared["rate.code.value"] * 0}, samples, index, 1, ""
    )
    assert (losses[0] < start - 0.1).all()  # the steps do something
    for found in losses[1:]:
        assert (found - losses[0]).mean().abs() < 0.01
        assert (found - losses[0]).abs().max() < 0.03


@pytest.mark.parametrize("kernel", [f"{mode}@16x16" for mode in narrow.modes()])
def test_a_row_depends_on_nothing_but_its_picture(kernel):
    method, shared, samples = trained(cells=2)
    many = fit_rows(method, shared, samples, seed=1, kernel=kernel, lanes=2).rows[NAME]
    table = pictures()
    for at in range(len(samples)):
        alone = load_samples(table.slice(at, 1), "images")
        one = fit_rows(method, shared, alone, seed=1, kernel=kernel, lanes=7).rows[NAME][0]
        assert torch.equal(one, many[at])
    turned = load_samples(table.take(list(range(len(samples)))[::-1]), "images")
    torch.set_num_threads(2)
    try:
        again = fit_rows(method, shared, turned, seed=1, kernel=kernel).rows[NAME]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(again.flip(0), many)
    kept = {2: {NAME: torch.full((2, 2, 8), 0.1)}}
    others = fit_rows(method, shared, samples, seed=1, kernel=kernel, kept=kept).rows[NAME]
    assert torch.equal(others[2], kept[2][NAME])
    assert torch.equal(others[3:], many[3:])


def test_the_narrowest_numbers_that_lose_nothing_are_chosen():
    method, shared, samples = trained(inner_pixels=400)
    some = load_samples(pictures().take([0, 1, 3, 5]), "images")
    kernel, words = choose_encoding(method, shared, lambda: some, 0)
    assert kernel == f"{narrow.modes()[0]}@16x16"
    assert f"{narrow.modes()[0]}: 1.0" in words or f"{narrow.modes()[0]}: 0.99" in words
    mixed, _ = choose_encoding(method, shared, lambda: samples, 0)
    assert mixed == narrow.modes()[0]  # no size that all share


@pytest.mark.skipif("int8" not in NARROW, reason="this processor multiplies no bytes")
def test_a_network_that_bytes_cannot_hold_gets_wider_numbers():
    method, shared, _ = trained(inner_pixels=400)
    some = load_samples(pictures().take([0, 1, 3, 5]), "images")
    shared = {name: value.clone() for name, value in shared.items()}
    for name in ("layers.0.weight", "layers.0.bias", "shift.weight", "shift.bias"):
        shared[name][0] = 0  # the first unit's sine is zero, so its weights change nothing
    for name in ("layers.1.weight", "layers.2.weight"):
        shared[name][:, 0] = 50.0
    shared["layers.2.weight"][:, 0] = 0
    kernel, words = choose_encoding(method, shared, lambda: some, 0)
    assert kernel.split("@")[0] in ("bfloat16", "float32")
    assert words.index("int8") < words.index(kernel.split("@")[0] + ":")


def test_what_the_loop_cannot_take_stays_with_plain_pytorch():
    samples = load_samples(pictures(), "images")
    other = methods.build("learnit", methods.configure("learnit"), samples.form)
    kernel, words = choose_encoding(other, {}, lambda: samples, 0)
    assert kernel == ""
    assert words.startswith("plain PyTorch (MetaLearned of ")
    with pytest.raises(ValueError, match="cannot be taken by the compiled loop here: MetaLearned"):
        fit_rows(other, start_shared(other, 0), samples, seed=0, kernel="float32")
    method, shared, _ = trained()
    with pytest.raises(ValueError, match="kernel: 'int4'; as in 'int8'"):
        fit_rows(method, shared, samples, seed=0, kernel="int4")


def test_a_processor_without_the_instructions_says_so(monkeypatch):
    method, shared, samples = trained()
    monkeypatch.setattr(narrow, "modes", lambda: ("float32",))
    with pytest.raises(ValueError, match="multiplies float32, the plan chose int8"):
        fit_rows(method, shared, samples, seed=0, kernel="int8")


@pytest.mark.parametrize("mode", narrow.modes())
def test_panels_hold_the_matrix_and_columns_their_scales(mode):
    random = np.random.default_rng(0)
    weight = random.normal(size=(64, 2 * narrow.COLUMNS)).astype(np.float32)
    weight[:, 3] = 0
    panels, start, scale = narrow.packed(weight, mode)
    count = narrow.PACKED[mode]
    words = panels.reshape(2, 64 // count, narrow.COLUMNS, count)
    back = words.transpose(1, 3, 0, 2).reshape(weight.shape)
    if mode == "bfloat16":
        back = (back.astype(np.uint32) << 16).view(np.float32)
        assert np.abs(back - weight).max() <= np.abs(weight).max() * 2**-8
    elif mode == "int8":
        assert (start == -128 * back.astype(int).sum(0)).all()
        assert (np.abs(back * scale - weight) <= 0.501 * scale).all()
    else:
        assert (back == weight).all()


def test_units_of_errors_cut_few_of_them():
    method, shared, _ = trained()
    units = error_units(recognize_inner(method), shared)
    assert units.shape == (3,)
    assert (units > 0).all()
