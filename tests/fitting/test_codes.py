"""Codes of frozen networks by the compiled loop: equal to the lanes to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline import methods
from pipeline.fitting import choose_path, fit_rows, start_shared
from pipeline.fitting.fused.codes import recognize_codes
from pipeline.fitting.method import Descend, Target
from pipeline.fitting.optimizers import Adam
from pipeline.samples import load_samples
from schemas.store import RowStatus
from tests.fitting.tables import box_table

numba = pytest.importorskip("numba")


def boxes(count=4, **settings):
    samples = load_samples(box_table(count, points=500, held=16), "shapes")
    usual = {"width": 32, "code": 8, "fit_steps": 30, "fit_points": 150}
    method = methods.build(
        "deepsdf", methods.configure("deepsdf", "default", {**usual, **settings}), samples.form
    )
    return method, samples, start_shared(method, 1)


def with_phase(method, **changes):
    return replace(method, fit=(replace(method.fit[0], **changes),))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"width": 40, "depth": 1},
        {"width": 50, "depth": 4, "skip": 2, "weight_norm": True, "code": 11},
        {"fit_std": 0.9, "prior": 0.05},  # codes beyond the limit, and a prior that counts
        {"max_norm": None, "fit_points": 700},  # past the end of the sets
    ],
)
def test_codes_equal_those_of_the_lanes(settings):
    method, samples, shared = boxes(**settings)
    assert choose_path(method)[0]
    plain = fit_rows(method, shared, samples, seed=1, lanes=2)
    fused = fit_rows(method, shared, samples, seed=1, fused=True)
    assert fused.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-5)
    error = (fused.rows["code.value"] - plain.rows["code.value"]).abs().max()
    assert error < 1e-5 * plain.rows["code.value"].abs().max() + 1e-6
    if "max_norm" not in settings:
        assert (fused.rows["code.value"].norm(dim=1) <= 1 + 1e-6).all()


@pytest.mark.parametrize("term", [None, "sdf"])
def test_a_target_ends_a_code_as_in_the_lanes(term):
    method, samples, shared = boxes(fit_steps=200, fit_rate=2e-2, prior=2e-3)
    losses = fit_rows(with_phase(method, steps=60), shared, samples, seed=1, fused=True).loss
    value = float(losses.median())
    method = with_phase(method, target=Target(value, term, smooth=0.8))
    plain = fit_rows(method, shared, samples, seed=1, lanes=2)
    fused = fit_rows(method, shared, samples, seed=1, fused=True)
    assert len(set(plain.steps.tolist())) > 1
    assert (plain.steps - fused.steps).abs().max() <= 1
    assert fused.status == plain.status


def test_a_code_depends_on_nothing_but_its_row():
    method, samples, shared = boxes(5)
    whole = fit_rows(method, shared, samples, seed=1, fused=True)
    alone = load_samples(box_table(5, points=500, held=16).slice(3, 1), "shapes")
    one = fit_rows(method, shared, alone, seed=1, fused=True)
    assert torch.equal(one.rows["code.value"][0], whole.rows["code.value"][3])
    kept = {0: {"code.value": torch.full((8,), 0.1)}}
    again = fit_rows(method, shared, samples, seed=1, fused=True, kept=kept)
    assert torch.equal(again.rows["code.value"][1:], whole.rows["code.value"][1:])
    assert torch.equal(again.rows["code.value"][0], kept[0]["code.value"])


def test_a_code_that_diverges_is_tried_again_and_named():
    method, samples, shared = boxes(2, max_norm=None)
    (update,) = method.fit[0].updates
    wild = with_phase(method, updates=(Descend(update.loss, {"code.": Adam(1e37)}),))
    fitted = fit_rows(wild, shared, samples, seed=1, fused=True)
    assert set(fitted.status) == {RowStatus.DIVERGED}
    assert all("again at a lower rate" in message for message in fitted.message)


def test_what_the_loop_cannot_take_goes_through_lanes():
    method, _, _ = boxes()
    assert "widths" in recognize_codes(boxes(width=512)[0])
    assert "clipping" in recognize_codes(
        with_phase(
            method,
            updates=(Descend(method.fit[0].updates[0].loss, {"code.": Adam(1e-3, clip=1.0)}),),
        )
    )
    path = choose_path(boxes(width=512)[0])
    assert not path[0]
    assert path[1].startswith("plain PyTorch (its size")
