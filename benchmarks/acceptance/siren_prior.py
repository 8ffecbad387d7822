"""SIREN's prior: new faces from a few of their pixels, in one pass."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.acceptance import Figures
from benchmarks.acceptance._faces import faces
from benchmarks.acceptance.learnit import mean_picture

DATA = "100 real faces that scikit-image ships, 25 x 25, gray; 20 of them new"
METRIC = "PSNR of the other 225 pixels of new faces from 400 known ones, dB"
CONTROL = "the start of the hypernetwork's last layers (PyTorch's own instead)"
CLAIM = "CelebA 32 x 32: squared error 0.033, 0.009, 0.008 from 10, 100, 1,000 pixels (table 1)"
CONTEXTS = (10, 50, 400)
SETTINGS = {
    "width": 48,
    "omega_first": 20.0,
    "hyper_width": 64,
    "encoder_width": 64,
    "latent": 64,
    "most": 400,
    "points": 256,
    "weights_weight": 5.0,
    "rate": 1e-3,
    "train_steps": 300,
}


def run(seed: int) -> Figures:
    """PSNR of the same pixels of new faces, given more and more of the others."""
    from pipeline import methods
    from pipeline.fitting import train
    from pipeline.samples import load_samples

    known, new = faces(seed, held_out=0.0)
    samples = load_samples(known, "images")
    config = methods.configure("siren_prior", settings=SETTINGS)
    also = {"mean face": mean_picture(known, new)}
    for name in ("ours", "control"):
        method = methods.build("siren_prior", config, samples.form)
        if name == "control":
            start_as_pytorch_does(method)
        shared = train(method, samples, seed=seed).shared
        for count in CONTEXTS:
            also[f"{name}, {count}"] = completed(method, shared, new, count, seed)
    return Figures(also["ours, 400"], also["control, 400"], also)


def check(figures: Figures) -> None:
    also = figures.also
    psnr = [also[f"ours, {count}"] for count in CONTEXTS]
    assert psnr[0] + 0.3 <= psnr[1], f"50 pixels tell no more than 10: {psnr}"
    assert psnr[1] + 0.1 <= psnr[2], f"400 pixels tell no more than 50: {psnr}"
    assert psnr[2] >= also["mean face"] + 1, "no more than the mean of the known faces"
    assert figures.ours >= figures.control + 2, "PyTorch's start does as well"
    assert figures.control <= also["mean face"], "PyTorch's start knows more than the mean"


def start_as_pytorch_does(method) -> None:
    """Takes the rules of the hypernetwork's last layers away."""
    from pipeline.fields.initializers import torch_default

    for network in method.model.hyper.networks:
        network.last.initializers = torch_default(network.last.inputs)


def completed(method, shared, new: pa.Table, count: int, seed: int) -> float:
    """Mean PSNR of the last pixels of a seeded order, from the first `count` of it."""
    from pipeline.evaluate.metrics import measure
    from pipeline.fitting import fit_rows
    from pipeline.samples import load_samples

    part, judged = (load_samples(known_pixels(new, c, seed), "images") for c in (count, 400))
    rows = fit_rows(method, shared, part, seed=seed).rows
    table = known_pixels(new, CONTEXTS[-1], seed)
    return float(measure("images", method, shared, rows, judged, table)["psnr"].mean())


def known_pixels(table: pa.Table, count: int, seed: int) -> pa.Table:
    """The first `count` pixels of a seeded order are known, the others held out."""
    masks = []
    sizes = zip(table["height"].to_pylist(), table["width"].to_pylist())
    for row, (height, width) in enumerate(sizes):
        held = np.ones(height * width, bool)
        held[np.random.default_rng([seed, row]).permutation(len(held))[:count]] = False
        masks.append(np.packbits(held).tobytes())
    place = table.schema.get_field_index("held_out")
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(masks, field.type))
