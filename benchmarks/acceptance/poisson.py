"""Pictures from their gradients alone: sine layers against tanh and ReLU ones."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures

DATA = (
    "2 pictures of six sine waves, 48 x 48, 16 bits, seen as differences of neighbors only; a "
    "scikit-image photograph, 48 x 48; a pair of wave pictures to blend"
)
METRIC = "PSNR of all pixels of the wave pictures after the mean, dB, of the worse one"
CONTROL = "the sine layers (tanh; ReLU in the other figures)"
CLAIM = "a picture is recovered from its gradients (32.9 dB); ReLU and tanh fail (sec. 4.1, fig. 3)"
SIZE = 48
PHOTOGRAPHS = ("coffee",)
SETTINGS = {"steps": 200, "width": 64, "depth": 3, "points": 1024}


def run(seed: int) -> Figures:
    """Ours, the two twins, a photograph, and a blend of two pictures."""
    from dataclasses import replace

    import torch

    from benchmarks.acceptance import _pictures, _waves
    from pipeline import methods
    from pipeline.evaluate.metrics import measure
    from pipeline.fields.activations import Relu, Tanh
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting import fit_rows
    from pipeline.samples import load_samples

    def fitted(table, activation=None, **settings):
        """PSNR of every row's pixels; the method sets the mean itself."""
        samples = load_samples(table, "images")
        config = methods.configure("poisson", settings={**SETTINGS, **settings})
        method = methods.build("poisson", config, samples.form)
        if activation is not None:
            layers = [Layer(config.width, activation) for _ in range(config.depth)]
            model = MLP(2, [*layers, Layer(samples.form.channels)])
            method = replace(method, field=replace(method.field, model=model))
        rows = fit_rows(method, {}, samples, seed=seed).rows
        return method, rows, measure("images", method, {}, rows, samples, table)["psnr_fit"]

    nothing = np.zeros((SIZE, SIZE), bool)
    waves = [_waves.Waves.seeded(seed, row, channels=1) for row in range(2)]
    table = _waves.prepared(waves, SIZE, nothing)
    photographs = _pictures.cuts(PHOTOGRAPHS, SIZE, seed, nothing, reduce=4, gray=True)
    also = {
        "tanh": float(fitted(table, Tanh())[2].min()),
        "relu": float(fitted(table, Relu())[2].min()),
        "photograph": float(fitted(photographs, points=4096)[2].min()),
    }
    color = [wave.color(_waves.centers(SIZE)).reshape(SIZE, SIZE, 1) for wave in waves]
    pair = _waves.prepared_colors([np.concatenate(color, 1)], np.zeros((SIZE, 2 * SIZE), bool))
    method, rows, _ = fitted(pair, pair=True)
    from pipeline.fields.bind import bind

    at = torch.tensor(_waves.centers(SIZE), dtype=torch.float32)[None]
    with torch.no_grad():
        blend = bind(method.model, rows)(at)[0].numpy().reshape(SIZE, SIZE, 1)
    error = blend - (color[0] + color[1]) / 2
    also["blend"] = float(-10 * np.log10((error**2).mean()))
    ours = float(fitted(table)[2].min())
    return Figures(ours, also["tanh"], also)


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= 45, f"{figures.ours:.1f} dB from gradients, 45 are asked"
    best = max(figures.control, also["relu"])
    assert figures.ours >= best + 15, f"tanh or ReLU do nearly as well: {best:.1f} dB"
    assert also["photograph"] >= 25, f"a photograph only came to {also['photograph']:.1f} dB"
    assert also["blend"] >= 45, f"the blend is {also['blend']:.1f} dB from the mean of both"
