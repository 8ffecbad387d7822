"""SIREN: the start decides what lies between the pixels, and whether derivatives mean anything."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures

DATA = "2 pictures of six sine waves, 96 x 96, 16 bits; pixels of even row and column are fitted"
METRIC = "PSNR of the pixels between, dB, of the worse picture"
CONTROL = "SIREN's start (PyTorch's own instead)"
CLAIM = "the start keeps activations at one scale, and derivatives are represented (sec. 3.2, 4.1)"
SIZE, PICTURES = 96, 2
SETTINGS = {"width": 128, "depth": 4, "steps": 300, "rate": 3e-4, "target_psnr": None}


def run(seed: int) -> Figures:
    """PSNR, relative squared error of gradients, and the spread of pre-activations."""
    from dataclasses import replace

    import torch

    from benchmarks.acceptance import _waves
    from pipeline import methods
    from pipeline.fields.activations import Relu
    from pipeline.fields.bind import bind
    from pipeline.fields.derivatives import value_and_jacobian
    from pipeline.fields.mlp import MLP, Layer
    from pipeline.fitting import choose_path, fit_rows
    from pipeline.samples import load_samples

    pictures = [_waves.Waves.seeded(seed, row, highest=20.0) for row in range(PICTURES)]
    held_out = np.ones((SIZE, SIZE), bool)
    held_out[::2, ::2] = False
    samples = load_samples(_waves.prepared(pictures, SIZE, held_out), "images")
    method = methods.build("siren", methods.configure("siren", settings=SETTINGS), samples.form)
    table = method.model.table

    def twin(activation=None):
        layers = [Layer(row.width, activation or row.activation) for row in table[:-1]]
        model = MLP(2, [*layers, Layer(samples.form.channels)])
        return replace(method, field=replace(method.field, model=model))

    coords, where = _waves.centers(SIZE), held_out.ravel()
    truth = np.stack([p.color(coords) for p in pictures])
    slopes = np.stack([p.gradient(coords[where]) for p in pictures])
    also = {}
    for name, kind in {"ours": method, "default start": twin(), "relu": twin(Relu())}.items():
        rows = fit_rows(kind, {}, samples, seed=seed, fused=choose_path(kind)[0]).rows
        bound = bind(kind.model, rows)
        at = torch.tensor(coords, dtype=torch.float32).expand(PICTURES, -1, -1)
        with torch.no_grad():
            color = bound(at).mul(0.5).add(0.5).clamp(0, 1).numpy()
            slope = value_and_jacobian(bound, at[:, where])[1].numpy() / 2
        error = (color - truth) ** 2
        also[name] = float(-10 * np.log10(error[:, where].mean((1, 2)).max()))
        also[f"{name}, fitted"] = float(-10 * np.log10(error[:, ~where].mean((1, 2)).max()))
        off = ((slope - slopes) ** 2).sum((1, 2, 3)) / (slopes**2).sum((1, 2, 3))
        also[f"{name}, gradient error"] = float(off.max())
        if name != "relu":
            low, high = _spread(kind, samples, seed, at)
            also[f"{name}, least spread"], also[f"{name}, most spread"] = low, high
    return Figures(also["ours"], also["default start"], also)


def _spread(method, samples, seed: int, at) -> tuple[float, float]:
    """Least and greatest standard deviation of what enters the sines from the second layer on, in
    networks just started."""
    import torch

    from pipeline.draw import Draw
    from pipeline.fields.bind import bind
    from pipeline.fields.initializers import start_rows

    model = method.model
    names = [name for name, _ in model.named_parameters()]
    started = start_rows(model, names, Draw.of(samples.keys, seed=seed, stage="spread"))
    seen = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for layer in model.layers[1:-1]
    ]
    with torch.no_grad():
        bind(model, started)(at)
    for hook in hooks:
        hook.remove()
    spread = [float(value.std()) for value in seen]
    return min(spread), max(spread)


def check(figures: Figures) -> None:
    """Gates of the calibration; the fitted pixels alone would tell nothing."""
    also = figures.also
    assert figures.ours >= 40, f"{figures.ours:.1f} dB between the pixels, 40 are asked"
    error = also["ours, gradient error"]
    assert error <= 0.05, f"relative squared error {error:.3f} of the gradients, 0.05 is allowed"
    low, high = also["ours, least spread"], also["ours, most spread"]
    assert 1 <= low <= high <= 2, f"sines start from pre-activations of {low:.2f} to {high:.2f}"
    assert also["default start, fitted"] >= 25, "the twin does not fit the pixels it sees"
    assert figures.control <= 25, f"PyTorch's start does as well: {figures.control:.1f} dB"
    assert also["default start, gradient error"] >= 1, "the twin's gradients are as good"
    assert also["relu"] <= figures.ours - 10, "ReLU does as well"
