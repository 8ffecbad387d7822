"""SIREN on images: held-out pixels against a twin with the wrong start; numpy alone rebuilds."""

import numpy as np
import pytest

from benchmarks.acceptance import acceptance
from pipeline import methods
from pipeline.fields.bind import bind
from pipeline.fitting import describe, fit_rows, pack
from pipeline.samples import load_samples, pixel_coords
from tests.fitting.tables import picture_table


def test_the_start_decides_what_lies_between_the_pixels():
    module = acceptance("siren")
    module.check(module.run(0))


def test_the_default_reaches_its_target_in_tens_of_steps_and_says_so():
    samples = load_samples(picture_table([(32, 32)] * 8), "images")
    method = methods.build("siren", methods.configure("siren"), samples.form)
    fitted = fit_rows(method, {}, samples, seed=0)
    assert [s.name for s in fitted.status] == ["OK"] * 8
    assert fitted.steps.float().median() <= 60
    fit = -10 * (fitted.loss / 4).log10()
    assert (fit >= 30).all()
    assert (fit < 32).all()  # it stopped there


@pytest.mark.parametrize("channels", [3])
def test_a_picture_is_rebuilt_in_plain_numpy_from_arrays_and_specification(channels):
    samples = load_samples(picture_table([(20, 26)] * 2), "images")
    method = methods.build("siren", methods.configure("siren"), samples.form)
    fitted = fit_rows(method, {}, samples, seed=0)
    spec = describe(method, seed=0).model_dump(mode="json")
    (params,) = pack(method, fitted.rows).values()
    from pipeline.fitting import row_arrays

    names = row_arrays(method)[0].attributes["table"]

    def tensor(name):
        place = names[name]
        size = int(np.prod(place["shape"]))
        return params[1, place["offset"] : place["offset"] + size].reshape(place["shape"])

    h, w = 20, 26
    y, x = (2 * np.arange(h) + 1) / h - 1, (2 * np.arange(w) + 1) / w - 1
    assert spec["coords"]["axes"] == ["x (right)", "y (down)"]
    value = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    for layer in spec["layers"]:
        if layer["kind"] == "linear":
            value = layer["scale"] * (value @ tensor(layer["weight"]).T + tensor(layer["bias"]))
            value = np.sin(value) if layer["activation"] == "sine" else value
        else:
            assert layer["kind"] == "affine"
            value = value * layer["scale"] + layer["offset"]
    value = value.clip(*spec["output"]["range"])
    ours = method.read(
        bind(method.model, {k: v[1:] for k, v in fitted.rows.items()}), pixel_coords(h, w)[None]
    )
    assert np.abs(ours["color"][0].numpy() - value).max() < 1e-4
    source = np.frombuffer(picture_table([(20, 26)] * 2)["pixels"][1].as_py(), np.uint8) / 255
    assert -10 * np.log10(np.mean((value.ravel() - source) ** 2)) > 22
