"""functa: latents of new digits after three gradient steps from zero, and what can be read off."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.acceptance import Figures
from benchmarks.acceptance._digits import digits, held_out_psnr

DATA = "600 digits of a font, 14 x 14, turned and sheared; 200 others are new"
METRIC = "PSNR of held-out pixels of new digits after three inner steps, dB"
CONTROL = "meta-learning (the same three steps on the network as it starts)"
CLAIM = "a latent of 64 to 1,024 in 3 steps: 21.6 to 30.7 dB on CelebA-HQ 64 (sec. 4.1)"
SETTINGS = {
    "latent": 64,
    "width": 40,
    "inner_pixels": 160,
    "omega": 6.0,
    "batch": 8,
    "train_steps": 500,
}


def run(seed: int) -> Figures:
    import torch

    from pipeline import methods
    from pipeline.fitting import fit_rows, start_shared, train
    from pipeline.samples import load_samples

    tables = digits(600, 14, 2 * seed), digits(200, 14, 2 * seed + 1)
    known, new = (load_samples(table, "images") for table in tables)
    method = methods.build("functa", methods.configure("functa", settings=SETTINGS), known.form)
    shared = train(method, known, seed=seed).shared
    untrained = start_shared(method, seed)

    def psnr(shared, rows):
        return held_out_psnr(method, shared, rows, new, tables[1])

    of_known = fit_rows(method, shared, known, seed=seed).rows
    of_new = fit_rows(method, shared, new, seed=seed).rows
    zero = {name: torch.zeros_like(value) for name, value in of_new.items()}
    codes = [rows["code.value"].numpy() for rows in (of_known, of_new)]
    labels = [np.array(table["label"].to_pylist(), int) for table in tables]
    return Figures(
        ours=psnr(shared, of_new),
        control=psnr(untrained, fit_rows(method, untrained, new, seed=seed).rows),
        also={
            "zero latent": psnr(shared, zero),
            "another's latent": psnr(shared, {k: v.roll(1, 0) for k, v in of_new.items()}),
            "probe of latents": probe(*codes, *labels),
            "probe of pixels": probe(*(pixels(table) for table in tables), *labels),
        },
    )


def pixels(table: pa.Table) -> np.ndarray:
    """All pixels of each picture in a row."""
    rows = [np.frombuffer(data, np.uint8) for data in table["pixels"].to_pylist()]
    return np.stack(rows) / 255


def probe(train: np.ndarray, test: np.ndarray, known: np.ndarray, wanted: np.ndarray) -> float:
    """Share of test rows that a ridge regression to the classes gets right."""
    mean, std = train.mean(0), train.std() + 1e-12
    train, test = (train - mean) / std, (test - mean) / std
    weight = 0.1 * len(train) * np.eye(train.shape[1])
    one_hot = np.eye(10)[known]
    solved = np.linalg.solve(train.T @ train + weight, train.T @ (one_hot - 0.1))
    return float(((test @ solved).argmax(1) == wanted).mean())


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= 24.0, "new digits are not reconstructed in three steps"
    assert figures.ours >= also["zero latent"] + 8, "the steps do little"
    assert figures.ours >= figures.control + 8, "an untrained network does as well"
    assert also["another's latent"] <= also["zero latent"] + 3, "a latent says little of its digit"
    assert also["probe of latents"] >= also["probe of pixels"] - 0.03, "classes got lost"
