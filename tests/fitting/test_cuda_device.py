"""The fast paths of GPUs on a GPU, each beside the plain path there. All need a CUDA device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline import methods
from pipeline.fitting import choose_kernel, fit_rows, fit_units
from pipeline.fitting.cuda.exact import losses
from pipeline.fitting.method import Descend, Target
from pipeline.fitting.optimizers import Adam
from pipeline.objectives.distance import DistanceError
from pipeline.samples import load_samples
from schemas.store import RowStatus
from tests.fitting.tables import box_table, picture_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def images(sizes, **settings):
    samples = load_samples(picture_table(sizes), "images", "cuda")
    config = methods.configure("siren", "default", {"depth": 2, "width": 64, **settings})
    return methods.build("siren", config, samples.form), samples


def shapes(count, **settings):
    samples = load_samples(box_table(count, points=2000, held=16), "shapes", "cuda")
    config = methods.configure("sdf", "default", {"depth": 2, "width": 64, **settings})
    return methods.build("sdf", config, samples.form), samples


def by_lanes(method, samples, **settings):
    return fit_rows(method, {}, samples, seed=1, device="cuda", **settings)


def distance(rows, plain):
    worst = [(rows[n] - plain[n]).abs().max() / plain[n].abs().max() for n in plain]
    return float(max(worst))


@pytest.mark.parametrize(
    ("width", "depth", "sizes"),
    [(64, 2, [(32, 32), (9, 13)]), (20, 3, [(5, 40), (17, 1)]), (64, 3, [(24, 24)] * 3)],
)
def test_the_kernel_equals_the_lanes_in_float32(width, depth, sizes):
    method, samples = images(sizes, width=width, depth=depth, steps=12, target_psnr=None)
    plain = by_lanes(method, samples)
    kernel = by_lanes(method, samples, kernel="fp32")
    assert kernel.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=1e-3)
    assert distance(kernel.rows, plain.rows) < 5e-3


WIDTHS = {("tf32", 0.02): (32, 64), ("bf16", 0.1): (32, 64, 128)}


@pytest.mark.parametrize(
    ("mode", "within", "width"), [(*mode, w) for mode, widths in WIDTHS.items() for w in widths]
)
def test_rounded_factors_change_losses_a_little(mode, within, width):
    method, samples = images([(32, 32)] * 8, width=width, steps=40, target_psnr=None)
    plain = by_lanes(method, samples)
    kernel = by_lanes(method, samples, kernel=mode)
    keys = torch.zeros(8, dtype=torch.int64, device="cuda")
    exact = losses(method, {}, samples, torch.arange(8), kernel.rows, keys).cpu()
    ratio = (exact / plain.loss).log().mean().exp()
    assert 1 - within < float(ratio) < 1 + within


@pytest.mark.parametrize("both", [False, True])
def test_drawn_points_of_shapes_are_those_of_the_lanes(both):
    method, samples = shapes(3, points=900, steps=10)
    phase = replace(
        method.fit[0],
        updates=(Descend(DistanceError(0.1, both), method.fit[0].updates[0].groups),),
        target=Target(1e-6, "sdf", smooth=0.5),
    )
    method = replace(method, fit=(phase,))
    plain, kernel = by_lanes(method, samples), by_lanes(method, samples, kernel="fp32")
    assert kernel.loss.tolist() == pytest.approx(plain.loss.tolist(), rel=5e-3)
    assert distance(kernel.rows, plain.rows) < 2e-2


@pytest.mark.parametrize("mode", ["fp32", "tf32", "bf16"])
def test_bits_do_not_depend_on_order_neighbors_or_the_run(mode):
    sizes = [(12 + i % 7, 10 + i % 5) for i in range(40)]
    table = picture_table(sizes)
    method, _ = images([(8, 8)], steps=60, target_psnr=28.0)
    whole = load_samples(table, "images", "cuda")
    first = fit_rows(method, {}, whole, seed=3, device="cuda", kernel=mode)
    again = fit_rows(method, {}, whole, seed=3, device="cuda", kernel=mode)
    order = list(range(39, -1, -1))
    mixed = load_samples(table.take(order), "images", "cuda")
    turned = fit_rows(method, {}, mixed, seed=3, device="cuda", kernel=mode)
    parts = [(i, load_samples(table.slice(i, 8), "images", "cuda")) for i in range(0, 40, 8)]
    for name, value in first.rows.items():
        assert torch.equal(value, again.rows[name])
        assert torch.equal(value[order], turned.rows[name])
    for i, part in fit_units(method, {}, iter(parts), seed=3, device="cuda", kernel=mode):
        assert all(torch.equal(part.rows[n], v[i : i + 8]) for n, v in first.rows.items())


@pytest.mark.parametrize("mode", ["tf32", "bf16"])
def test_every_row_that_is_fine_is_at_its_target_in_float32(mode):
    """More rows than programs are resident: each program takes several from the queue."""
    method, samples = images([(16, 16)] * 1500, target_psnr=30.0, steps=300)
    fitted = by_lanes(method, samples, kernel=mode)
    keys = torch.zeros(1500, dtype=torch.int64, device="cuda")
    exact = losses(method, {}, samples, torch.arange(1500), fitted.rows, keys).cpu()
    fine = torch.tensor([status == RowStatus.OK for status in fitted.status])
    assert fine.float().mean() > 0.95
    assert (exact[fine] <= method.fit[0].target.value * 1.002).all()


def test_a_diverging_row_starts_again_at_a_lower_rate():
    method, samples = images([(8, 8)] * 3, steps=30, target_psnr=None)
    wild = Descend(method.fit[0].updates[0].loss, {"": Adam(1e37)})
    method = replace(method, fit=(replace(method.fit[0], updates=(wild,)),))
    lost = by_lanes(method, samples, kernel="bf16")
    assert lost.status == [RowStatus.DIVERGED] * 3
    assert all("again at a lower rate" in message for message in lost.message)
    assert all(torch.isnan(v).all() for v in lost.rows.values())


def test_graphs_change_no_bits_of_lanes(monkeypatch):
    method, samples = images([(16, 16)] * 12 + [(9, 20)] * 3, target_psnr=26.0, steps=50)
    replayed = by_lanes(method, samples, lanes=4)
    monkeypatch.setattr("pipeline.fitting.cuda.graphs.Graphed._captured", lambda *_: None)
    plain = by_lanes(method, samples, lanes=4)
    assert replayed.steps.tolist() == plain.steps.tolist()
    for name, value in plain.rows.items():
        assert torch.equal(value, replayed.rows[name])


def test_the_mode_is_chosen_on_the_device():
    method, samples = images([(32, 32)] * 8, target_psnr=30.0, steps=200)
    mode, words = choose_kernel(method, {}, lambda: samples, 0)
    assert mode in ("bf16", "tf32")
    assert f"{mode}: " in words
