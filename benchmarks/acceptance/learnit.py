"""Learned initializations: new faces after two gradient steps from a start learned on others."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._digits import held_out_psnr
from benchmarks.acceptance._faces import faces

DATA = "100 real faces that scikit-image ships, 25 x 25, gray; 20 of them new"
METRIC = "PSNR of held-out pixels of new faces after two steps of gradient descent, dB"
CONTROL = "the learned start (the same two steps from a random one)"
CLAIM = "2 steps on CelebA: about 30 dB from the learned start, 11 to 16 from others (table 1)"
SETTINGS = {
    "omega_first": 15.0,
    "inner_pixels": 300,
    "inner_rate": 2e-2,
    "rate": 5e-4,
    "train_steps": 500,
}


def run(seed: int) -> Figures:
    from pipeline import methods
    from pipeline.evaluate.metrics import measure
    from pipeline.fitting import fit_rows, start_shared, train
    from pipeline.samples import load_samples

    tables = faces(seed)
    known, new = (load_samples(table, "images") for table in tables)
    method = methods.build("learnit", methods.configure("learnit", settings=SETTINGS), known.form)
    shared, random = train(method, known, seed=seed).shared, start_shared(method, seed)
    rows = fit_rows(method, shared, new, seed=seed).rows
    of_random = fit_rows(method, random, new, seed=seed).rows
    start = {n: shared[f"start.{n}"].expand_as(v).contiguous() for n, v in rows.items()}

    def fitted(shared, rows):
        return float(measure("images", method, shared, rows, new, tables[1])["psnr_fit"].mean())

    return Figures(
        ours=held_out_psnr(method, shared, rows, new, tables[1]),
        control=held_out_psnr(method, random, of_random, new, tables[1]),
        also={
            "no step": held_out_psnr(method, shared, start, new, tables[1]),
            "mean face": mean_picture(*tables),
            "fitted pixels": fitted(shared, rows),
            "fitted pixels, control": fitted(random, of_random),
        },
    )


def mean_picture(known, new) -> float:
    """PSNR of the mean of the known pictures, mean over the new ones, dB."""
    known, new = (
        np.stack([np.frombuffer(data, np.uint8) for data in table["pixels"].to_pylist()]) / 255
        for table in (known, new)
    )
    return float(np.mean(-10 * np.log10(((new - known.mean(0)) ** 2).mean(1))))


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= also["mean face"] + 5, "no more than the mean of the known faces"
    assert figures.ours >= figures.control + 5, "a random start does as well"
    assert also["fitted pixels"] >= also["mean face"] + 8, "two steps fit too little"
    assert also["fitted pixels"] >= also["fitted pixels, control"] + 8, (
        "a random start fits as well"
    )
    assert abs(also["no step"] - also["mean face"]) <= 2, "the start is not about the mean face"
