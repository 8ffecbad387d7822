"""Encoding in narrow numbers: as good as in float32 on new pictures, or not in these numbers."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from benchmarks.acceptance.functa import OF_CUTS, SETTINGS, cuts
from pipeline import methods
from pipeline.fitting import choose_encoding, train
from pipeline.samples import load_samples

pytest.importorskip("numba")

from pipeline.fitting import encoding
from pipeline.fitting.fused import narrow

LOST = 0.2
"""dB that narrow numbers may cost new pictures in the mean."""
bytes_only = pytest.mark.skipif("int8" not in narrow.modes(), reason="no products of bytes here")


@cache
def taught():
    """A network that knows photographs, pictures for the guard, and others."""
    known, new = (
        cuts(count, 0, right=right, side=16, reduce=2, held_out=0.0)
        for count, right in ((240, False), (24, True))
    )
    samples = load_samples(known, "images")
    settings = {**SETTINGS, **OF_CUTS, "latent": 32, "train_steps": 120}
    config = methods.configure("functa", settings=settings)
    shared = train(methods.build("functa", config, samples.form), samples, seed=0).shared
    config = methods.configure("functa", settings={**settings, "inner_pixels": 256})
    method = methods.build("functa", config, samples.form)
    return method, shared, *(load_samples(new.slice(s, 12), "images") for s in (0, 12))


def decibels(method, shared, samples, kernel: str) -> torch.Tensor:
    """PSNR of each picture by float32, of latents found by a path."""
    index = torch.arange(len(samples))
    losses = encoding.log_losses(method, shared, samples, index, 0, kernel)
    return 10 * torch.log10(4 / losses.exp())


@bytes_only
def test_bytes_lose_nothing_on_new_pictures_of_a_good_network():
    method, shared, guard, new = taught()
    kernel, words = choose_encoding(method, shared, lambda: guard, 0)
    assert kernel == "int8@16x16"
    assert "int8: " in words
    plain = decibels(method, shared, new, "")
    resting = {**shared, "rate.code.value": shared["rate.code.value"] * 0}
    assert plain.mean() >= 22  # a loss of quality would show
    assert plain.mean() >= decibels(method, resting, new, "").mean() + 6
    apart = decibels(method, shared, new, kernel) - plain
    assert apart.mean() >= -LOST
    assert apart.min() >= -5 * LOST


@bytes_only
def test_bytes_that_would_lose_quality_are_left_and_it_is_said():
    method, shared, guard, new = taught()
    worn = {name: value.clone() for name, value in shared.items()}
    for name in ("layers.0.weight", "layers.0.bias", "shift.weight", "shift.bias"):
        worn[name][0] = 0  # the first unit's sine is zero, so its weights change nothing
    worn["layers.1.weight"][:, 0] = 50.0  # but bytes now count in steps of 50 / 127
    plain = decibels(method, worn, new, "")
    assert (decibels(method, worn, new, "int8@16x16") - plain).mean() < -LOST
    kernel, words = choose_encoding(method, worn, lambda: guard, 0)
    chosen = kernel.split("@")[0]
    assert chosen in ("bfloat16", "float32")
    lost = float(words.split("int8: ")[1].split(" x the loss")[0])
    assert lost > encoding.LOSS  # what it would have cost stands in the plan
    assert f"inner steps in {chosen}" in words
    assert (decibels(method, worn, new, kernel) - plain).mean() >= -LOST


@bytes_only
def test_numbers_in_which_a_picture_diverges_are_left(monkeypatch):
    method, shared, guard, _ = taught()
    real = encoding.log_losses

    def losses(*args):
        found = real(*args)
        return (
            torch.where(torch.arange(len(found)) == 3, torch.nan, found)
            if args[-1][:4] == "int8"
            else found
        )

    monkeypatch.setattr(encoding, "log_losses", losses)
    kernel, words = choose_encoding(method, shared, lambda: guard, 0)
    assert not kernel.startswith("int8")
    assert "int8: nan x the loss" in words
