"""Fourier features: the bandwidth decides what lies between the pixels of a real photograph."""

from __future__ import annotations

import numpy as np

from benchmarks.acceptance import Figures
from benchmarks.acceptance._pictures import every_other_pixel, fit_pictures

DATA = "3 scikit-image photographs, gray, 96 x 96; one pixel in four is fitted"
METRIC = "PSNR of the pixels between, dB, mean of the crops (Gaussian, sigma 3)"
CONTROL = "the encoding (coordinates go in as they are)"
CLAIM = "natural images, 2D: 25.57 dB with Gaussian features, 19.32 dB without (table 1)"
SETTINGS = {"frequencies": 64, "width": 64, "depth": 3, "steps": 200, "pixels": 1024}
PICTURES = ("astronaut", "coffee", "camera")
SIGMAS = (0.3, 3.0, 100.0)


def run(seed: int) -> Figures:
    """Held-out and fitted PSNR without an encoding and for three bandwidths."""
    table = every_other_pixel(PICTURES, 96, seed, reduce=4, gray=True)
    rows = {"none": {"encoding": "none", "rate": 5e-3}}
    rows |= {f"sigma {s:g}": {"sigma": s, "rate": 3e-3} for s in SIGMAS}
    also = {}
    for name, keys in rows.items():
        found = fit_pictures("fourier", {**SETTINGS, **keys}, table, seed)
        also[name], also[f"{name}, fitted"] = (float(np.mean(v)) for v in found)
    return Figures(also["sigma 3"], also["none"], also)


def check(figures: Figures) -> None:
    also = figures.also
    assert figures.ours >= figures.control + 4, "no gain over plain coordinates"
    assert figures.ours >= also["sigma 0.3"] + 1, "no gain over a low bandwidth (too smooth)"
    assert also["sigma 100"] <= also["none"], "a high bandwidth should fail between the pixels"
    assert also["sigma 100, fitted"] >= 30, "it should fit the pixels themselves"
