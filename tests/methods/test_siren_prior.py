"""SIREN's prior: completed faces, weights or codes as rows, rows that are the same alone."""

import numpy as np
import pytest
import torch

from benchmarks.acceptance import acceptance
from benchmarks.acceptance.siren_prior import known_pixels
from pipeline import methods
from pipeline.evaluate.metrics import measure
from pipeline.fields.bind import bind
from pipeline.fitting import describe, fit_rows, pack, row_arrays, start_shared, train, unpack
from pipeline.fitting.method import row_names, shared_names
from pipeline.fitting.rows import bindable
from pipeline.samples import load_samples, pixel_coords
from schemas.samples import FormSpec
from tests.fitting.tables import picture_table

SMALL = {"width": 16, "depth": 2, "latent": 16, "hyper_width": 16, "encoder_width": 16}
SMALL |= {"points": 64, "most": 100, "seen": 120, "train_steps": 5, "batch": 4}


def built(samples, **settings):
    config = methods.configure("siren_prior", settings={**SMALL, **settings})
    return methods.build("siren_prior", config, samples.form)


@pytest.mark.slow
def test_new_faces_from_a_few_pixels():
    module = acceptance("siren_prior")
    module.check(module.run(0))


@pytest.mark.parametrize("rows", ["weights", "codes"])
@pytest.mark.parametrize("encoder", ["set", "conv"])
def test_rows_are_the_same_alone_and_in_company_and_as_stored(rows, encoder):
    samples = load_samples(picture_table([(12, 12)] * 5), "images")
    method = built(samples, rows=rows, encoder=encoder)
    shared = train(method, samples, seed=0).shared
    many = fit_rows(method, shared, samples, seed=0, lanes=4)
    table = picture_table([(12, 12)] * 5)
    alone = fit_rows(method, shared, load_samples(table.slice(2, 1), "images"), seed=0).rows
    again = unpack(method, pack(method, many.rows))
    assert [s.name for s in many.status] == ["OK"] * 5
    for name in row_names(method):
        assert torch.equal(alone[name][0], many.rows[name][2])
        assert torch.equal(again[name], many.rows[name])
        assert not torch.equal(many.rows[name][0], many.rows[name][1])


def test_weights_and_codes_are_two_ways_to_keep_the_same_pictures():
    samples = load_samples(picture_table([(12, 12)] * 4), "images")
    weights, codes = (built(samples, rows=rows) for rows in ("weights", "codes"))
    assert shared_names(weights) == shared_names(codes)
    assert [a.name for a in row_arrays(weights) if a.rows] == ["params"]
    assert [a.name for a in row_arrays(codes) if a.rows] == ["latents/code"]
    of_weights, of_codes = (train(m, samples, seed=0).shared for m in (weights, codes))
    for name, value in of_weights.items():
        assert torch.allclose(value, of_codes[name], atol=1e-5), name
    coords = pixel_coords(12, 12)[None]
    found = []
    for method in (weights, codes):
        rows = fit_rows(method, of_codes, samples, seed=0).rows
        bound = bind(method.model, bindable(method, of_codes, rows))
        found.append(method.read(bound, coords)["color"])
    assert torch.allclose(*found, atol=1e-5)
    assert found[0].std() > 0
    assert describe(weights, seed=0).init["start"] == "encoded"


def test_pixels_that_are_held_out_do_not_decide_a_row():
    table = picture_table([(12, 12)] * 3)
    samples = load_samples(known_pixels(table, 40, 0), "images")
    mask = np.unpackbits(np.frombuffer(known_pixels(table, 40, 0)["held_out"][0].as_py(), np.uint8))
    pixels = np.frombuffer(table["pixels"][0].as_py(), np.uint8).reshape(144, 3).copy()
    pixels[mask[:144] > 0] = 0
    lines = table.to_pylist()
    lines[0]["pixels"] = pixels.tobytes()
    hidden = load_samples(known_pixels(table.from_pylist(lines, table.schema), 40, 0), "images")
    for encoder in ("set", "conv"):
        method = built(samples, encoder=encoder)
        shared = start_shared(method, 0)
        rows = [fit_rows(method, shared, s, seed=0).rows for s in (samples, hidden)]
        assert all(torch.equal(rows[0][n], rows[1][n]) for n in rows[0])


@pytest.mark.parametrize(("rows", "rate", "gain"), [("weights", 5e-3, 1), ("codes", 0.2, 0.05)])
def test_a_fit_goes_on_from_where_the_encoder_puts_a_row(rows, rate, gain):
    """Codes gain little while the hypernetwork knows nothing."""
    table = picture_table([(16, 16)] * 3)
    samples = load_samples(table, "images")
    shared = start_shared(built(samples, rows=rows), 0)
    found = []
    for steps in (0, 60):
        method = built(samples, rows=rows, fit_steps=steps, fit_rate=rate)
        fitted = fit_rows(method, shared, samples, seed=0)
        assert (fitted.steps == steps).all()
        found.append(measure("images", method, shared, fitted.rows, samples, table)["psnr_fit"])
    assert (found[1] > found[0] + gain).all()


def test_what_cannot_be_is_refused_by_name():
    form = FormSpec(kind="shapes", dims=3, signed=True)
    with pytest.raises(ValueError, match="siren_prior takes images; this dataset has shapes"):
        methods.build("siren_prior", methods.configure("siren_prior"), form)
    samples = load_samples(picture_table([(8, 8)]), "images")
    with pytest.raises(ValueError, match="least = 300 known pixels are more than most = 100"):
        built(samples, least=300)


def test_the_paper_has_the_sizes_of_the_authors():
    config = methods.configure("siren_prior", "paper")
    assert (config.latent, config.width, config.depth, config.batch) == (256, 256, 4, 100)
    assert (config.code_weight, config.weights_weight, config.clip) == (0.1, 100.0, 1.0)
    method = methods.build("siren_prior", config, FormSpec(kind="images", channels=3, dims=2))
    (params,) = (a for a in row_arrays(method) if a.rows)
    assert params.shape == (2 * 256 + 256 + 3 * (256 * 256 + 256) + 256 * 3 + 3,)
