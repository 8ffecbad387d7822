"""Output layers solved by least squares: right, row by row, and on every path."""

import pytest
import torch

from pipeline import methods
from pipeline.draw import Draw
from pipeline.fields.bind import bind
from pipeline.fitting import fit_rows, start_shared
from pipeline.fitting.fused.recognize import available, recognize
from pipeline.fitting.starts import entered, starts_of
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table

SIZES = [(12, 12), (9, 7), (12, 12), (16, 16)]


def siren(samples, **settings):
    size = {"depth": 2, "width": 24, "steps": 20, "target_psnr": None, "readout": "solved"}
    config = methods.configure("siren", "default", {**size, **settings})
    return methods.build("siren", config, samples.form)


def begun(method, samples, shared):
    """Rows after no step."""
    at = torch.arange(len(samples))
    rows, _ = starts_of(method, shared, samples, at, 0)
    return entered(method, shared, samples, at, method.fit[0], rows, 0, 0)[0]


@pytest.mark.parametrize("start", ["own", "common"])
def test_no_other_output_layer_has_a_smaller_error(start):
    """The gradient of error and ridge together is zero at the start, by weight and by bias."""
    samples = load_samples(picture_table(SIZES), "images")
    method = siren(samples, start=start)
    shared = start_shared(method, 0)
    rows = begun(method, samples, shared)
    (phase,) = method.fit
    for i in range(len(samples)):
        at = torch.tensor([i, i])
        draw = Draw.of(samples.keys[at], seed=0, stage="fit")
        batch = samples.draw(at, "context", phase.size, draw)
        own = {name: value[at].clone() for name, value in rows.items()}
        last = [own["layers.2.weight"].requires_grad_(), own["layers.2.bias"].requires_grad_()]
        error = phase.updates[0].loss(bind(method.model, own), batch, draw)["mse"]
        ridge = phase.enter.ridge * sum(t.square().flatten(1).sum(1) for t in last) / 3
        for gradient in torch.autograd.grad((error + ridge).sum(), last):
            assert gradient.abs().max() < 1e-5


def test_a_row_in_company_has_the_bits_of_the_row_alone():
    """Also where its neighbors let it share products, and where they do not."""
    samples = load_samples(picture_table(SIZES), "images")
    method = siren(samples, start="common", steps=3)
    shared = start_shared(method, 0)
    together = fit_rows(method, shared, samples, seed=0)
    for i in range(len(SIZES)):
        table = picture_table(SIZES).slice(i, 1)
        alone = fit_rows(method, shared, load_samples(table, "images"), seed=0)
        for name, value in alone.rows.items():
            assert torch.equal(value[0], together.rows[name][i])


@pytest.mark.skipif(bool(available()), reason="the compiled loop does not run here")
def test_the_compiled_loop_begins_where_the_lanes_begin():
    samples = load_samples(picture_table(SIZES), "images")
    method = siren(samples)
    assert not isinstance(recognize(method), str)
    fused, lanes = (fit_rows(method, {}, samples, seed=0, fused=fused) for fused in (True, False))
    drawn = fit_rows(siren(samples, readout="drawn"), {}, samples, seed=0, fused=True)
    assert torch.allclose(fused.loss, lanes.loss, rtol=1e-3)
    assert (fused.loss < 0.7 * drawn.loss).all()


def test_solving_saves_steps_to_the_target():
    samples = load_samples(picture_table(SIZES), "images")
    steps = {
        readout: fit_rows(
            siren(samples, steps=500, target_psnr=25.0, readout=readout), {}, samples, seed=0
        ).steps
        for readout in ("drawn", "solved")
    }
    assert steps["solved"].sum() < 0.8 * steps["drawn"].sum()
