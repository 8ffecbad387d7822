"""Fourier features: the bandwidth sweep on real pictures, tomography and frequencies."""

import warnings

import numpy as np
import pytest
import skimage.data
import torch
from skimage.transform import iradon, radon, resize

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.evaluate.metrics import measure
from pipeline.fitting import fit_rows, pack, start_shared, unpack
from pipeline.samples import load_samples
from tests.fitting.tables import picture_table

SMALL = {"frequencies": 48, "width": 48, "depth": 2}


def phantom_table(size):
    """The head phantom that scikit-image ships, nothing held out."""
    table = picture_table([(size, size)], held_out=0.0)
    picture = resize(skimage.data.shepp_logan_phantom(), (size, size), anti_aliasing=True)
    pixels = (picture.clip(0, 1) * 255).round().astype(np.uint8)
    lines = table.to_pylist()
    lines[0] |= {"pixels": pixels.tobytes(), "channels": 1}
    return type(table).from_pylist(lines, schema=table.schema), pixels / 255


def fitted_psnr(table, **settings):
    samples = load_samples(table, "images")
    method = methods.build("fourier", methods.configure("fourier", settings=settings), samples.form)
    shared = start_shared(method, 0)
    rows = fit_rows(method, shared, samples, seed=0).rows
    return float(measure("images", method, shared, rows, samples, table)["psnr_fit"][0])


@pytest.mark.slow
def test_the_bandwidth_decides_what_lies_between_the_pixels():
    module = acceptance("fourier")
    module.check(module.run(0))


def test_a_head_from_projections():
    """No pixel is seen. Better than filtered back projection (of its own projector), and than the
    same network without the encoding."""
    table, picture = phantom_table(40)
    angles = np.arange(20) * 9.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Radon transform: image must be zero outside")
        back = iradon(radon(picture, theta=angles, circle=True), theta=angles).clip(0, 1)
    common = {**SMALL, "operator": "radon", "angles": 20, "steps": 400, "rate": 1e-2}
    ours = fitted_psnr(table, **common, sigma=2.0)
    assert ours >= -10 * np.log10(((back - picture) ** 2).mean()) + 1
    assert ours >= fitted_psnr(table, **common, encoding="none") + 8


def test_a_head_from_some_of_its_frequencies():
    """Against the usual answer: frequencies that were not measured are zero."""
    from pipeline.draw import Draw
    from pipeline.objectives.measurement import MaskedFourier

    table, picture = phantom_table(40)
    samples = load_samples(table, "images")
    draw = Draw.of(samples.keys, seed=0, stage="fit/0")
    mask = MaskedFourier(0.25).mask(40, 40, draw)[0].numpy()
    filled = np.fft.ifft2(np.fft.fft2(picture) * mask).real.clip(0, 1)
    baseline = -10 * np.log10(((filled - picture) ** 2).mean())
    ours = fitted_psnr(table, **SMALL, operator="fourier", steps=250, rate=1e-2, sigma=2.0)
    assert ours >= baseline + 3


def test_the_frequencies_are_stored_and_not_trained():
    samples = load_samples(picture_table([(12, 12)] * 2), "images")
    config = methods.configure("fourier", settings={**SMALL, "steps": 3})
    method = methods.build("fourier", config, samples.form)
    shared = start_shared(method, 0)
    fitted = fit_rows(method, shared, samples, seed=0)
    assert list(shared) == ["encoding.frequencies"]
    assert shared["encoding.frequencies"].std() == pytest.approx(config.sigma, rel=0.2)
    assert set(fitted.rows) == {n for n, _ in method.model.named_parameters()}
    again = unpack(method, pack(method, fitted.rows))
    assert all(torch.equal(again[name], value) for name, value in fitted.rows.items())
    other = methods.build("fourier", config, samples.form)
    assert torch.equal(
        start_shared(other, 0)["encoding.frequencies"], shared["encoding.frequencies"]
    )


@pytest.mark.parametrize(("encoding", "inputs"), [("none", 2), ("basic", 4), ("positional", 96)])
def test_encodings_have_the_frequencies_of_the_paper(encoding, inputs):
    samples = load_samples(picture_table([(12, 12)]), "images")
    settings = {"encoding": encoding, "frequencies": 48, "octaves": 5.0}
    method = methods.build("fourier", methods.configure("fourier", settings=settings), samples.form)
    assert method.model.net.layers[0].inputs == inputs
    if encoding == "basic":  # one cycle a picture: the edges left and right look alike
        ends = method.model.encoding(torch.tensor([[0.0, 0.3], [1.0, 0.3]]))
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
    if encoding == "positional":
        highest = method.model.encoding.frequencies.max()
        assert highest == pytest.approx(2**5 - 1)


def test_a_share_of_less_than_one_frequency_is_refused_and_not_fitted_to_nothing():
    samples = load_samples(picture_table([(9, 9)], held_out=0.0), "images")
    settings = {**SMALL, "operator": "fourier", "share": 0.01, "steps": 2}
    method = methods.build("fourier", methods.configure("fourier", settings=settings), samples.form)
    with pytest.raises(ValueError, match="9 x 9 pixels; 10 x 10 at least"):
        fit_rows(method, start_shared(method, 0), samples, seed=0)
    for name in ("fourier", "learnit"):
        with pytest.raises(ValueError, match="angles"):
            methods.configure(name, settings={"angles": 100_000})
