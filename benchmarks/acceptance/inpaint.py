"""SIREN with a prior of smoothness: photographs from a tenth of their pixels."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._pictures import cuts, fit_pictures

DATA = "4 photographs of scikit-image, 48 x 48, gray; a tenth of the pixels is known"
METRIC = "PSNR of the other pixels, dB, mean of the photographs, with second derivatives kept small"
CONTROL = "the prior"
CLAIM = "inpainting of a tenth of the pixels by total variation or Hessians (sec. 4.1, suppl. 3)"
PICTURES = ("astronaut", "coffee", "chelsea", "camera")
SIZE, SHARE = 48, 0.1
SETTINGS = {"steps": 250, "rate": 1e-3, "target_psnr": None}


def run(seed: int) -> Figures:
    """The same fit with either prior and without one."""
    held_out = np.random.default_rng([seed, SIZE]).random((SIZE, SIZE)) >= SHARE
    table = cuts(PICTURES, SIZE, seed, held_out, reduce=3, gray=True)
    found = {
        prior: fit_pictures("siren", {**SETTINGS, "prior": prior}, table, seed)
        for prior in ("none", "tv", "hessian")
    }
    also = {}
    for prior, (between, known) in found.items():
        also[prior], also[f"{prior}, known"] = float(between.mean()), float(known.mean())
        also[f"{prior}, least gain"] = float((between - found["none"][0]).min())
    return Figures(also["hessian"], also["none"], also)


def check(figures: Figures) -> None:
    also = figures.also
    assert also["none, known"] >= 40, "the twin does not fit what it knows"
    for prior, gain in (("tv", 1.0), ("hessian", 2.0)):
        found = also[prior] - also["none"]
        assert found >= gain, f"{prior}: {found:.2f} dB more than without it, {gain} are asked"
        assert also[f"{prior}, least gain"] > 0, f"{prior} makes some photograph worse"
        assert also[f"{prior}, known"] >= 30, f"{prior}: known pixels are given up"
