"""Lanes: each row as if it were alone, whatever its lane, neighbors, order and number of lanes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline import methods
from pipeline.draw import Draw, sample_keys
from pipeline.fields.initializers import start_rows
from pipeline.fitting import default_lanes, fit_rows, fit_units, pack, start_shared, unpack
from pipeline.fitting.method import Descend, Phase, Target, row_names
from pipeline.fitting.optimizers import Adam, Sgd
from pipeline.objectives.photometric import mse_of_psnr
from pipeline.samples import Size, load_samples
from schemas.samples import Code
from schemas.store import RowStatus
from tests.fitting.tables import box_table, picture_table

SMALL = {"width": 16, "depth": 2, "steps": 30, "target_psnr": None}


def images(sizes, **settings):
    samples = load_samples(picture_table(sizes), "images")
    return methods.build(
        "siren", methods.configure("siren", "default", {**SMALL, **settings}), samples.form
    ), samples


def with_phase(method, **changes):
    return replace(method, fit=(replace(method.fit[0], **changes),))


def equal(a, b, rows=None):
    rows = slice(None) if rows is None else rows
    return all(torch.equal(a.rows[n][rows], b.rows[n][rows]) for n in a.rows)


def test_a_row_equals_a_plain_torch_loop_over_its_sample():
    """torch.nn.Linear and torch.optim.Adam on one picture at a time, to float32 rounding."""
    method, samples = images(
        [(12, 10)] * 3, steps=40, schedule="constant", target_psnr=22.0, momentum=0.9
    )
    fitted = fit_rows(method, {}, samples, seed=5, lanes=2)
    assert len(set(fitted.steps.tolist())) > 1
    for i in range(3):
        keys = Draw.of(sample_keys([samples.ids[i]]), seed=5, stage="start")
        start = start_rows(method.model, row_names(method), keys)
        layers = [nn.Linear(2, 16), nn.Linear(16, 16), nn.Linear(16, 3)]
        for k, layer in enumerate(layers):
            layer.weight.data = start[f"layers.{k}.weight"][0]
            layer.bias.data = start[f"layers.{k}.bias"][0]
        optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], 2e-3)
        draw = Draw.of(samples.keys[i : i + 1], seed=5, stage="x")
        pixels = samples.draw(torch.tensor([i]), "context", Size(), draw).grid
        keep = pixels.weight[0] > 0
        x, y = pixels.coords[0][keep], pixels.color[0][keep] * 2 - 1
        losses = []
        for _ in range(int(fitted.steps[i]) + 1):
            h = torch.sin(30 * layers[0](x))
            loss = (layers[2](torch.sin(30 * layers[1](h))) - y).square().mean()
            losses.append(loss.item())
            if len(losses) <= int(fitted.steps[i]):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert fitted.loss[i].item() == pytest.approx(losses[-1], rel=2e-3)
        ours = torch.cat([fitted.rows[f"layers.{k}.weight"][i].flatten() for k in range(3)])
        theirs = torch.cat([layer.weight.detach().flatten() for layer in layers])
        assert (ours - theirs).abs().max() < 2e-3 * theirs.abs().max()
        met = [k for k, loss in enumerate(losses) if loss <= mse_of_psnr(22.0)]
        assert (met[0] if met else 40) == fitted.steps[i]


@pytest.mark.parametrize("kind", ["images", "shapes"])
def test_bits_do_not_depend_on_lanes_order_or_batch_mates(kind):
    if kind == "images":
        table = picture_table([(12, 12)] * 9)
        config = methods.configure("siren", "default", {**SMALL, "steps": 60, "target_psnr": 18.0})
        method = methods.build("siren", config, load_samples(table, kind).form)
    else:
        table = box_table(9, points=300)
        config = methods.configure("sdf", "default", {"width": 16, "steps": 25, "points": 96})
        method = methods.build("sdf", config, load_samples(table, kind).form)
    reference = fit_rows(method, {}, load_samples(table, kind), seed=1, lanes=2)
    if kind == "images":
        assert len(set(reference.steps.tolist())) > 2  # lanes were refilled at odd times
    for lanes in (3, 4, 9, 16):
        assert equal(
            reference, fit_rows(method, {}, load_samples(table, kind), seed=1, lanes=lanes)
        )
    order = np.random.default_rng(0).permutation(9)
    shuffled = load_samples(table.take(pa.array(order)), kind)
    again = fit_rows(method, {}, shuffled, seed=1, lanes=4)
    assert all(torch.equal(again.rows[n], reference.rows[n][order]) for n in again.rows)
    assert torch.equal(again.loss, reference.loss[order])
    alone = fit_rows(method, {}, load_samples(table.slice(4, 1), kind), seed=1, lanes=2)
    assert all(torch.equal(alone.rows[n][0], reference.rows[n][4]) for n in alone.rows)
    other = fit_rows(method, {}, load_samples(table, kind), seed=2, lanes=4)
    assert not equal(reference, other)


def poisoned(method, samples, bad, after):
    """The method with a loss that is NaN for one sample from a step on, while its rate is full."""
    key = samples.keys[bad]
    mark = Draw.of(key[None], seed=1, stage="fit/0").keys[0]
    (update,) = method.fit[0].updates

    def loss(bound, batch, draw):
        (value,) = update.loss(bound, batch, draw).values()
        hit = (draw.keys == mark) & (draw.step >= after)
        return {"mse": value * torch.where(hit, torch.nan, 1.0)}

    return with_phase(method, updates=(Descend(loss, update.groups),))


def test_a_diverging_row_leaves_its_neighbors_bits_alone_and_says_when():
    method, samples = images([(10, 10)] * 5)
    clean = fit_rows(method, {}, samples, seed=1, lanes=3)
    fitted = fit_rows(poisoned(method, samples, bad=1, after=7), {}, samples, seed=1, lanes=3)
    assert equal(clean, fitted, [0, 2, 3, 4])
    assert fitted.status[1] == RowStatus.DIVERGED
    assert fitted.code[1] == Code.NAN_LOSS
    assert "not finite at step 7 (last finite loss 0." in fitted.message[1]
    assert fitted.message[1].count("not finite") == 2  # it was tried again
    assert fitted.steps[1] == 7
    assert torch.isfinite(fitted.loss[1])
    assert all(torch.isnan(v[1]).all() for v in fitted.rows.values())
    assert [fitted.status[i] for i in (0, 2, 3, 4)] == [RowStatus.OK] * 4


def test_a_row_that_diverges_at_the_full_rate_is_saved_by_the_lower_one():
    method, samples = images([(10, 10)] * 4)
    (update,) = method.fit[0].updates

    def loss(bound, batch, draw):
        """Weights that are far from where sine networks live count as an overflow."""
        (value,) = update.loss(bound, batch, draw).values()
        size = bound.layers[2].weight.flatten(1).square().sum(1)
        return {"mse": value * torch.where(size > 40.0, torch.inf, 1.0)}

    wild = with_phase(method, steps=60, updates=(Descend(loss, {"": Sgd(6.0)}),))
    tame = with_phase(method, steps=60, updates=(Descend(loss, {"": Sgd(1.5)}),))
    low = fit_rows(tame, {}, samples, seed=1, lanes=2)
    assert set(low.status) == {RowStatus.OK}
    fitted = fit_rows(wild, {}, samples, seed=1, lanes=2)
    saved = [i for i, m in enumerate(fitted.message) if m.endswith("again at a lower rate: fine")]
    assert saved
    assert equal(low, fitted, saved)  # a quarter of the rate, from the same start
    assert all(fitted.status[i] == RowStatus.OK for i in saved)


def test_targets_end_rows_and_budgets_name_what_was_reached():
    method, samples = images([(12, 12)] * 4, steps=200, target_psnr=20.0)
    fitted = fit_rows(method, {}, samples, seed=1)
    assert set(fitted.status) == {RowStatus.OK}
    assert (fitted.loss <= mse_of_psnr(20.0)).all()
    short = with_phase(method, steps=2)
    fitted = fit_rows(short, {}, samples, seed=1)
    assert set(fitted.status) == {RowStatus.BELOW_TARGET}
    assert set(fitted.code) == {Code.BUDGET}
    assert fitted.message[0].endswith("dB after 2 steps; target 20.00 dB")
    assert fitted.steps.tolist() == [2] * 4


def test_the_loss_of_a_row_is_that_of_its_returned_parameters():
    method, samples = images([(12, 12)] * 3)
    fitted = fit_rows(method, {}, samples, seed=1)
    still = replace(
        method, fit=(Phase(0, Size(), method.fit[0].updates, enter=lambda *_: fitted.rows),)
    )
    assert torch.equal(fit_rows(still, {}, samples, seed=1, lanes=3).loss, fitted.loss)


def test_pictures_of_mixed_sizes_share_lanes():
    sizes = [(9, 9), (30, 20), (10, 8), (30, 20), (21, 29), (70, 70)]
    method, samples = images(sizes, steps=20)
    capped = with_phase(method, size=Size(most=2000))
    fitted = fit_rows(capped, {}, samples, seed=1, lanes=4)
    assert set(fitted.status) == {RowStatus.OK}
    for i in range(len(sizes)):
        table = picture_table(sizes).slice(i, 1)
        alone = fit_rows(capped, {}, load_samples(table, "images"), seed=1, lanes=2)
        assert all(torch.equal(alone.rows[n][0], fitted.rows[n][i]) for n in alone.rows)


def test_point_sets_of_different_counts_share_lanes():
    table = box_table(4, points=[100, 1000, 333, 64])
    config = methods.configure("sdf", "default", {"width": 16, "steps": 20, "points": 90})
    samples = load_samples(table, "shapes")
    method = methods.build("sdf", config, samples.form)
    fitted = fit_rows(method, {}, samples, seed=1, lanes=4)
    alone = fit_rows(method, {}, load_samples(table.slice(2, 1), "shapes"), seed=1, lanes=2)
    assert all(torch.equal(alone.rows[n][0], fitted.rows[n][2]) for n in alone.rows)


def test_units_stream_through_the_lanes_without_changing_a_bit():
    table = picture_table([(12, 12)] * 10)
    method, samples = images([(12, 12)] * 10, steps=60, target_psnr=18.0)
    whole = fit_rows(method, {}, samples, seed=1, lanes=4)
    pulled = []

    def units():
        for k in range(0, 10, 3):
            pulled.append(k)
            yield k, load_samples(table.slice(k, 3), "images")

    seen = []
    for key, fitted in fit_units(method, {}, units(), seed=1, lanes=4):
        seen.append(key)
        assert max(pulled) <= key + 3  # one unit ahead, no more
        for n in fitted.rows:
            assert torch.equal(fitted.rows[n], whole.rows[n][key : key + 3])
    assert sorted(seen) == [0, 3, 6, 9]


def test_kept_rows_are_not_fitted():
    method, samples = images([(12, 12)] * 4)
    fitted = fit_rows(method, {}, samples, seed=1)
    kept = {2: {n: torch.full_like(v[2], 0.5) for n, v in fitted.rows.items()}}
    again = fit_rows(method, {}, samples, seed=1, kept=kept)
    assert equal(fitted, again, [0, 1, 3])
    assert all((v[2] == 0.5).all() for v in again.rows.values())
    assert again.steps[2] == 0
    assert again.status[2] == RowStatus.OK


def test_unlisted_parameters_stay_and_groups_have_their_own_rates():
    method, samples = images([(12, 12)] * 3)
    (update,) = method.fit[0].updates
    groups = {"layers.1.": Adam(1e-3), "layers.2.bias": Sgd(0.0)}
    fitted = fit_rows(
        with_phase(method, updates=(Descend(update.loss, groups),)), {}, samples, seed=1
    )
    start = fit_rows(with_phase(method, steps=0), {}, samples, seed=1)
    moved = {n for n in fitted.rows if not torch.equal(fitted.rows[n], start.rows[n])}
    assert moved == {"layers.1.weight", "layers.1.bias"}
    twice = (
        Descend(update.loss, {"": Adam(1e-3)}),
        Descend(update.loss, {"layers.1.": Adam(1e-3)}),
    )
    with pytest.raises(ValueError, match=r"layers\.1\.weight.*two updates"):
        fit_rows(with_phase(method, updates=twice), {}, samples, seed=1)


def test_edits_happen_at_each_rows_own_steps():
    method, samples = images([(12, 12)] * 5)

    def edit(bound, rows, batch, draw):
        return {"layers.2.bias": torch.full_like(rows["layers.2.bias"], 0.25)}

    edited = with_phase(method, edits=((7, edit),))
    whole = fit_rows(edited, {}, samples, seed=1, lanes=2)
    assert equal(whole, fit_rows(edited, {}, samples, seed=1, lanes=5))
    at_seven = fit_rows(with_phase(edited, steps=7), {}, samples, seed=1, lanes=2)
    assert (at_seven.rows["layers.2.bias"] == 0.25).all()
    assert not (whole.rows["layers.2.bias"] == 0.25).any()


def test_phases_follow_one_another_with_fresh_moments_and_enter():
    method, samples = images([(12, 12)] * 3, steps=10, schedule="constant")
    (phase,) = method.fit

    def enter(bound, rows, batch, draw):
        return {"layers.2.bias": rows["layers.2.bias"] + 1}

    two = replace(method, fit=(phase, replace(phase, steps=0, enter=enter)))
    once, both = (fit_rows(m, {}, samples, seed=1, lanes=2) for m in (method, two))
    assert torch.allclose(both.rows["layers.2.bias"], once.rows["layers.2.bias"] + 1)
    assert torch.equal(both.rows["layers.1.weight"], once.rows["layers.1.weight"])
    third = replace(method, fit=(phase, phase))
    a, b = (fit_rows(third, {}, samples, seed=1, lanes=n) for n in (2, 5))
    assert equal(a, b)
    assert a.steps.tolist() == [20] * 3
    assert (a.loss < once.loss).all()


def test_smoothed_targets_wait_for_their_mean():
    samples = load_samples(box_table(3, points=400), "shapes")
    config = methods.configure(
        "sdf", "default", {"width": 16, "steps": 200, "points": 96, "target_error": 0.02}
    )
    method = methods.build("sdf", config, samples.form)
    fitted = fit_rows(method, {}, samples, seed=1)
    assert set(fitted.status) == {RowStatus.OK}
    assert (fitted.steps >= 20).all()
    assert (fitted.steps < 200).all()
    assert isinstance(method.fit[0].target, Target)


def test_common_starts_are_shared_and_rows_pack_and_unpack():
    method, samples = images([(12, 12)] * 3, start="common", steps=1)
    shared = start_shared(method, 1)
    assert {n for n in shared if n.startswith("start.")} == {
        f"start.{n}" for n in row_names(method)
    }
    still = with_phase(method, steps=0)
    fitted = fit_rows(still, shared, samples, seed=1)
    for name, value in fitted.rows.items():
        assert torch.equal(value, shared[f"start.{name}"].expand_as(value))
    arrays = pack(method, fitted.rows)
    assert arrays["params"].shape == (3, 16 * 3 + 16 * 17 + 17 * 3)
    back = unpack(method, arrays)
    assert all(torch.equal(back[n], fitted.rows[n]) for n in back)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # Inductor's own
def test_the_compiled_step_gives_the_same_quality_and_its_own_bits():
    table = box_table(5, points=300)
    config = methods.configure("sdf", "default", {"width": 16, "depth": 2, "points": 96})
    method = methods.build("sdf", config, load_samples(table, "shapes").form)
    method = with_phase(method, steps=25)
    samples = load_samples(table, "shapes")
    plain = fit_rows(method, {}, samples, seed=1, lanes=2)
    compiled = fit_rows(method, {}, samples, seed=1, lanes=2, compiled=True)
    assert torch.allclose(plain.loss, compiled.loss, rtol=0.02)
    again = fit_rows(
        method, {}, load_samples(table.slice(3, 2), "shapes"), seed=1, lanes=2, compiled=True
    )
    assert all(torch.equal(again.rows[n], compiled.rows[n][3:]) for n in again.rows)


def test_fewer_than_two_lanes_are_refused_and_the_default_suits_the_device():
    method, samples = images([(12, 12)] * 2)
    with pytest.raises(ValueError, match="at least 2"):
        fit_rows(method, {}, samples, seed=1, lanes=1)
    assert default_lanes(method, "cpu", 1024) == 16
    assert default_lanes(method, "cpu", 100_000) == 2
    assert default_lanes(method, "cuda", 1024) == 4096
